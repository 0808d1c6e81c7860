"""The public surface of the core, found by looking, and good arguments for it, found by watching small runs.

Left out are what draws (plots, workbench), the studies, which are scripts, the inside of the stacked engine, Ray, which
starts processes, and `check` itself.
"""

import importlib
import inspect
import pkgutil
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import fedlab_core
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.layerwise.network import build_staged
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.registry import METHODS
from fedlab_core.settings import Settings
from tools.faults.small import small_data, small_model, small_partition, small_run

LEFT_OUT = ("workbench", "studies", "plots", "claims", "stacked", "ray", "cli", "check", "__main__")
OBJECTS = (Federation, Experiment, Settings, Dataset, Partition)
"""Classes whose public methods are called too."""


@dataclass(frozen=True)
class Thing:
    """Something to call: its name, whom to call, and good arguments."""

    path: str
    call: Callable[..., Any]
    good: dict[str, Any]


def public() -> dict[str, Callable[..., Any]]:
    """Functions, classes and methods of `OBJECTS` that a module of the core defines under a public name, by path."""
    found: dict[str, Callable[..., Any]] = {}
    for module in pkgutil.walk_packages(fedlab_core.__path__, "fedlab_core."):
        if any(part in LEFT_OUT or part.startswith("_") for part in module.name.split(".")):
            continue
        inside = importlib.import_module(module.name)
        for name, value in vars(inside).items():
            own = getattr(value, "__module__", None) == module.name and not name.startswith("_")
            if own and (inspect.isfunction(value) or (inspect.isclass(value) and not _no_constructor(value))):
                found[f"{module.name.removeprefix('fedlab_core.')}.{name}"] = value
    for kind in OBJECTS:
        for name, value in vars(kind).items():
            if inspect.isfunction(value) and not name.startswith("_"):
                found[f"{kind.__name__}.{name}"] = value
    return found


def _no_constructor(kind: type) -> bool:
    made = inspect.unwrap(kind.__init__)  # type: ignore[misc]
    own = inspect.isfunction(made) and str(made.__globals__.get("__name__")).startswith("fedlab_core")
    return bool(getattr(kind, "_is_protocol", False)) or issubclass(kind, BaseException) or not own


def hinted(call: Callable[..., Any]) -> Callable[..., Any]:
    """The function that has the annotations of a thing's arguments."""
    return inspect.unwrap(call.__init__ if inspect.isclass(call) else call)


def by_name() -> dict[str, Any]:
    """Good arguments by the name of the argument, where that says what it is."""
    federation = small_run().run(2)
    data, partition, state = small_data(), small_partition(), federation.state
    images = torch.rand(4, 1, 8, 8, generator=generator(0, "fuzz"))
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    return {
        **dict.fromkeys(("data", "dataset"), data),
        **dict.fromkeys(("federation", "run", "fed"), federation),
        **dict.fromkeys(("draws", "generator"), generator(0, "fuzz")),
        **dict.fromkeys(("labels", "y", "targets"), data.y),
        **dict.fromkeys(("state", "start", "merged", "like", "a", "b", "c", "payload", "end"), state),
        **dict.fromkeys(("n", "examples"), 60),
        **dict.fromkeys(("clients", "count", "channels", "dim", "columns"), 4),
        **dict.fromkeys(("steps", "epochs", "size", "batch_size", "per_client", "rounds", "heads", "units"), 2),
        **dict.fromkeys(("width", "depth", "blocks", "rows", "codes", "pairs", "shots", "intervals", "classes"), 2),
        **dict.fromkeys(("seed", "client"), 0),
        **dict.fromkeys(("alpha", "lr", "fraction", "sigma", "share", "temperature", "mu", "strength"), 0.5),
        **dict.fromkeys(("images", "z", "z1", "z2", "p1", "p2", "queries", "keys", "x"), images),
        **dict.fromkeys(("folder", "path", "out", "root"), Path("no such folder")),
        **dict.fromkeys(("norm", "split"), "none"),
        **dict.fromkeys(("round", "stage"), 1),
        "partition": partition,
        "sizes": partition.sizes,
        "indices": partition.indices,
        "offsets": partition.offsets,
        "description": "blocks",
        "model": small_model(),
        "settings": federation.settings,
        "method": federation.method,
        "history": federation.history,
        "states": [state, state],
        "weights": [0.5, 0.5],
        "sampled": [0, 1],
        "names": names,
        "target": 0.5,
        "name": "fedavg",
        "purpose": "sampling",
        "kind": "method",
        "weighting": "examples",
        "batch_norm": "local",
        "device": "cpu",
        "engine": "loop",
        "num_classes": 3,
        "input_shape": (1, 8, 8),
        "layer": torch.nn.Linear(4, 4),
    }


def scenes(root: Path) -> Iterator[Callable[[], object]]:
    """Small runs that call most of the core."""
    for name, method in METHODS.items():
        if name != "fedsgd":
            yield lambda method=method: small_run(method=method(), batch_norm="average").run(2)
    for engine in ("threads", "stacked", "auto"):
        yield lambda engine=engine: small_run(engine).run(1)
    failing = {"failures": {"liars": 0.3, "late": 0.5, "lost": 0.2, "unavailable": 0.2, "stale": 0.2}}
    yield lambda: small_run(batch_norm=None, method=METHODS["fedavg"](), norm="none", **failing).run(3)
    yield lambda: small_run().run(1)
    yield lambda: small_run(batch_norm="total_variance", optimiser="adam", keep_optimiser=True).run(1)
    run = small_run(batch_norm="average", method=METHODS["fedavg"]()).run(2)
    yield lambda: [small_run().save(root / "run"), Federation.load(root / "run", *_parts())]
    yield lambda: [run.trained_model(), run.client_state(1), run.evaluate(), run.inside(1), run.state_at(1)]
    yield lambda: [run.fork("other", lr=0.2), run.evaluate_states([run.state]), run.rewind(2)]
    yield lambda: [small_data().subset(30, 10), small_data().with_validation(0.2), small_data().summary()]
    for partition in ("iid", "dirichlet", "shards"):
        yield lambda partition=partition: Experiment(partition=partition, clients=4).build().run(1)
    skewed = {"feature_skew": "rotation", "strength": 30}
    yield lambda: Experiment(partition_options=skewed, clients=4, method="fedprox").build().run(1)
    yield lambda: Experiment("letters", model="small_cnn", norm="group", clients=4).build()
    yield lambda: build_staged((1, 8, 8), 3, generator(0, "staged"), blocks=2, width=8)
    yield from map(partial, _probes(run))


def _probes(run: Federation) -> list[Callable[[], object]]:
    from fedlab_core.batchnorm.measures import fixed_batches, mismatch
    from fedlab_core.batchnorm.neighbours import four_ways, reestimate
    from fedlab_core.probes.attribution import attribute
    from fedlab_core.probes.lines import line
    from fedlab_core.probes.mixtures import spread
    from fedlab_core.probes.planes import plane_of_path, scan

    states = [run.state_at(t) for t in range(3)]
    plane = plane_of_path(states, run.trained_names)
    return [
        lambda: line(run, states[0], states[1]),
        lambda: spread(run, states, [0.5, 0.3, 0.2]),
        lambda: scan(run, plane),
        lambda: four_ways(run),
        lambda: reestimate(run),
        lambda: mismatch(run.model, fixed_batches(run, 4)),
        lambda: attribute(run, ("skew", "steps"), seeds=(0, 1), rounds=1),
    ]


def _parts() -> tuple[Dataset, Partition, torch.nn.Module]:
    return small_data(), small_partition(), small_model()


@contextmanager
def watched(codes: dict[CodeType, str], seen: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Inside the block, note with which arguments the code of public things is called first, in any thread."""

    def look(frame: FrameType, event: str, _: Any) -> None:
        path = codes.get(frame.f_code) if event == "call" else None
        if path is not None and path not in seen:
            seen[path] = dict(frame.f_locals)

    before = sys.getprofile()
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(before)


def things(call: Callable[[Callable[[], Any]], Any]) -> list[Thing]:
    """Everything public of which a good call is known.

    Args:
        call: calls something within limits of time and memory; raises whatever goes wrong.
    """
    pool, every = by_name(), public()
    codes = {hinted(one).__code__: path for path, one in every.items()}
    seen: dict[str, dict[str, Any]] = {}
    tries: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as root, watched(codes, seen), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scene in scenes(Path(root)):
            with suppress(ValueError):  # what does not go together
                scene()
        for path, one in every.items():
            named = _named(one, pool)
            if named is not None:
                with suppress(Exception, SystemExit):
                    call(lambda one=one, named=named: finish(one(**named)))  # it may call others, which are watched
                    tries.append((path, one, named))
    known = {path for path, _, _ in tries}
    for path, one in every.items():
        if path in seen and path not in known:
            tries.append((path, *_bound(one, seen[path])))
    found = []
    for path, one, good in tries:
        with suppress(Exception, SystemExit), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(lambda one=one, good=good: finish(one(**good)))
            found.append(Thing(path, one, good))
    return found


def finish(result: Any) -> Any:
    """A generator does nothing before its first value; it is asked for that."""
    if inspect.isgenerator(result):
        next(result, None)
        result.close()
    return result


def _named(one: Callable[..., Any], pool: dict[str, Any]) -> dict[str, Any] | None:
    """Good arguments for all that have no default; None if there are none by their names."""
    found = {}
    with suppress(ValueError, TypeError):
        for name, parameter in inspect.signature(one).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                continue
            if parameter.default is parameter.empty:
                if name not in pool:
                    return None
                found[name] = pool[name]
        return found
    return None


def _bound(one: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What was seen, to be called again with named arguments."""
    parameters = inspect.signature(hinted(one)).parameters
    plain = {
        name: arguments[name]
        for name, parameter in parameters.items()
        if name in arguments and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    itself = plain.pop("self", None)
    return (one if inspect.isclass(one) or itself is None else partial(one, itself)), plain
