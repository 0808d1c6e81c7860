"""Clients on many processes or machines, by Ray (an optional extra: pip install "fedlab_core[ray]").

Data, model and partition are placed in Ray's object store once, so that every machine fetches them once; a round's
global model likewise, once per round. A client's training is a task without a state of its own: when its process or its
machine dies, Ray runs it again somewhere else, with the same result.
"""

import atexit
import contextlib
import copy
import importlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from fedlab_core.check import Many, checked, refuse
from fedlab_core.engines.threads import ThreadsEngine
from fedlab_core.local.training import train_client, worker_copy
from fedlab_core.local.work import LocalMethod, Task, Update, Work
from fedlab_core.state import State, tensors

RETRIES = 8  # of one client, when the process that trains it dies
PATIENCE = 0.1  # seconds between two looks at `stop`
ANSWER = 16.0  # seconds that a cluster may take to answer
ADDRESS = re.compile(r"(ray://)?([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}")


@checked
class RayEngine:
    """One client per Ray worker with one intra-op thread each: the bits of `loop` on like processors.

    Args:
        address: of a running cluster, such as "10.0.0.1:6379" or "ray://10.0.0.1:10001"; None takes the one that this
            process is connected to, or the variable RAY_ADDRESS, or else starts one on this machine; "auto" finds one
            that runs here. The cluster's machines need this package, in the same version.

    Raises:
        ValueError: Ray is not installed.
    """

    name = "ray"

    def __init__(self, address: str | None = None) -> None:
        if address not in (None, "auto", "local") and not ADDRESS.fullmatch(address or ""):
            raise refuse("address", address, "'auto', HOST:PORT or ray://HOST:PORT")
        self._ray, self.address = _ray(address), address
        self._placed: tuple[Any, ...] | None = None
        self._threads = ThreadsEngine()

    def check(self, work: Work, method: LocalMethod) -> None:
        """See `local.work.Engine`; any work can be done here."""

    def train(
        self, work: Work, tasks: Sequence[Task], method: LocalMethod, stop: Callable[[], bool]
    ) -> Iterator[Update]:
        """See `local.work.Engine`. Stopping, or leaving the iterator, ends the clients under way, and a
        cluster that was started here."""
        if stop():
            return
        connect(self.address)
        ray = self._ray
        common = {n: t for n, t in tasks[0].state.items() if all(task.state[n] is t for task in tasks)}
        frozen = {n: common.pop(n) for n in work.roles.frozen}
        place = self._place(work, frozen)
        about = work.settings, method, work.round, work.roles, work.traits
        sent = ray.put((about, _arrays(work.received), _arrays(common)))
        options = {"num_cpus": 1, "max_retries": RETRIES, "num_gpus": int(work.settings.device != "cpu")}
        train = ray.remote(_train).options(**options)
        waiting = []
        for task in tasks:
            own = _arrays({n: t for n, t in task.state.items() if n not in common | frozen})
            waiting.append(train.remote([place], [sent], task.client, own, _arrays(task.memory)))
        try:
            while waiting:
                if stop():
                    return
                ready, _ = ray.wait(waiting[:1], timeout=PATIENCE)
                if ready:
                    update = ray.get(waiting[0])
                    update = _mapped(update, lambda state: _tensors(state, work.settings.device, copy=True))
                    task = tasks[len(tasks) - len(waiting)]
                    del waiting[0]
                    yield replace(update, state=task.state | update.state)
        finally:
            if waiting:
                for client in waiting:
                    ray.cancel(client, force=True)
                disconnect()

    def evaluate(self, work: Work, states: Sequence[State], split: str = "test") -> list[dict[str, float]]:
        """See `local.work.Engine`; on this machine."""
        return self._threads.evaluate(work, states, split)

    def _place(self, work: Work, frozen: State) -> Any:
        """A reference to what all rounds have in common, put into the object store once per cluster."""
        job = self._ray.get_runtime_context().get_job_id(), self._ray.get_runtime_context().get_node_id()
        parts = (work.model, work.dataset, work.partition, *frozen.values())
        if self._placed is None or self._placed[:2] != (job, tuple(map(id, parts))):
            data, partition = work.dataset, work.partition
            large = {"x": data.x, "y": data.y, "indices": partition.indices, "offsets": partition.offsets}
            one: dict[str, Any] = {"x": data.x[:1], "y": data.y[:1], "test_x": data.x[:1], "test_y": data.y[:1]}
            none: dict[str, Any] = dict.fromkeys(("groups", "test_groups", "validation_x", "validation_y"))
            slim = replace(data, **one, **none)
            rest = (work.model, slim, replace(partition, indices=partition.indices[:0], offsets=torch.zeros(2).long()))
            placed = self._ray.put((_arrays(large), _arrays(frozen), rest))
            self._placed = job, tuple(map(id, parts)), placed, parts
        return self._placed[2]


_started_here = False


def _ray(address: str | None) -> Any:
    """The package. A cluster that is started here takes calls with its token only; Ray reads it when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = address in (None, "local") and "RAY_ADDRESS" not in os.environ
    if own and "ray" not in sys.modules and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError:
        raise ValueError("engine='ray' needs Ray: pip install 'fedlab_core[ray]'; or take 'threads'") from None
    return ray


@checked
def connect(address: str | None = None, workers: Many | None = None) -> None:
    """Connect this process to a cluster unless it is connected; start one where no address is given, on this machine
    and reached from this machine only.

    Args:
        address: see `RayEngine`.
        workers: clients that a cluster started here trains at a time; one per core by default.

    Raises:
        ValueError: `workers` for a cluster that is not started here.
        ConnectionError: nothing at the address answers as a cluster of Ray, within 20 s; or none could be started here
            in two tries, as on a machine that is very busy.
    """
    ray = _ray(address)
    found = address or os.environ.get("RAY_ADDRESS") or "local"
    here = found == "local" and not ray.is_initialized()
    if workers is not None and not here:
        raise refuse("workers", workers, "None for a cluster that was started elsewhere or before")
    if ray.is_initialized():
        return
    if here:
        try:
            _start(ray, workers)
        except Exception:  # a busy machine may be too slow once
            try:
                _start(ray, workers)
            except Exception as error:
                raise ConnectionError(f"engine='ray': Ray does not start on this machine: {error}") from error
        return
    if found != "auto":
        _probe(found)
    ray.init(found, log_to_driver=False, logging_level="error")


def _start(ray: Any, workers: int | None) -> None:
    """Start a cluster of so many workers; nothing of it is left where that fails or is interrupted."""
    global _started_here
    _started_here = True  # also where Ctrl-C comes while it starts
    try:
        with _loopback(), _ctrl_c_afterwards():
            ray.init("local", num_cpus=workers, log_to_driver=False, logging_level="error", include_dashboard=False)
    except BaseException:
        disconnect()
        raise


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let Ray bind to 127.0.0.1 as it does on macOS and Windows; on Linux it would bind to the network's address."""
    constants: Any = importlib.import_module("ray._private.ray_constants")
    usual = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = usual


@contextlib.contextmanager
def _ctrl_c_afterwards() -> Iterator[None]:
    """Let Ctrl-C end the block only when it is through: Ray, cut off half-way, ends the process at its next start."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[Any] = []
    usual = signal.signal(signal.SIGINT, lambda *_: caught.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if caught:
        raise KeyboardInterrupt


def _probe(address: str) -> None:
    """Whether a cluster answers, asked by a process that can be ended: Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    ask = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False, logging_level='critical')"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        subprocess.run([sys.executable, "-c", ask, address], check=True, timeout=ANSWER, capture_output=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        raise ConnectionError(f"address={address!r}: no cluster of Ray answers ({why})") from error


def disconnect() -> None:
    """Ends the cluster that `connect` started, with all its processes; another one is left alone."""
    global _started_here
    if _started_here:
        import ray

        ray.shutdown()
        _started_here = False


atexit.register(disconnect)

_cache: dict[str, Any] = {}  # in a worker: the work of the federation it works for


def _train(place: list[Any], sent: list[Any], client: int, own: dict[str, Any], memory: dict[str, Any]) -> Update:
    """A client's local training in a worker process."""
    import ray

    torch.set_num_threads(1)
    (settings, method, number, roles, traits), received, common = ray.get(sent[0])
    key = f"{place[0].hex()} {settings.device} {settings.double} {settings.memory_format} {traits}"
    if key not in _cache:
        arrays, frozen, (model, dataset, partition) = ray.get(place[0])
        x, y, indices, offsets = _tensors(arrays).values()
        dataset, partition = replace(dataset, x=x, y=y), replace(partition, indices=indices, offsets=offsets)
        work = Work(model, dataset, partition, settings, {}, 0, roles, traits)
        _cache.clear()
        _cache[key] = work, worker_copy(work), _tensors(frozen, settings.device)
    work, model, frozen = _cache[key]
    if traits.fresh:
        model = worker_copy(work)
    state, kept, sent_down = (_tensors(arrays, settings.device) for arrays in (common | own, memory, received))
    work = replace(work, settings=settings, received=sent_down, round=number, roles=roles)
    ordered = {name: frozen[name] if name in frozen else state[name] for name in tensors(model)}
    update = train_client(model, work, Task(client, ordered, kept), method)
    assert update is not None, "nothing stops a client in another process"
    return _mapped(replace(update, state={n: t for n, t in update.state.items() if n not in frozen}), _arrays)


def _mapped(update: Update, change: Callable[[Any], Any]) -> Update:
    """The update with its three states changed, also to arrays, which its constructor would refuse."""
    other = copy.copy(update)
    for name in ("state", "memory", "extra"):
        object.__setattr__(other, name, change(getattr(update, name)))
    return other


def _arrays(state: State) -> dict[str, Any]:
    """Arrays lie in the object store as they are; every process of a machine reads the same memory. NumPy has no
    bfloat16: such tensors are stored as they are."""
    return {
        name: tensor.detach().cpu() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy(force=True)
        for name, tensor in state.items()
    }


def _tensors(arrays: dict[str, Any], device: str = "cpu", copy: bool = False) -> State:
    """Tensors over the memory of the object store, never to be written to; or copies, which do not keep it occupied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return {name: _tensor(array, copy).to(device) for name, array in arrays.items()}


def _tensor(array: Any, copy: bool) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.clone()
    return torch.from_numpy(array.copy() if copy else array)
