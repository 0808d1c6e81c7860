"""The same rounds in other frameworks, through their own public interfaces, where they are installed.

Examples, clients, network, batches, plain SGD and the mean weighted by examples are the plain loop's; nothing is
evaluated. Pixels are prepared before the first round, and laid out channels-last where there are convolutions: both
make these frameworks faster. Each has to compute one round of the task's examples and local steps before it is timed.
Memory is that of the process that was asked, without the others that pfl and Flower start.

* FedJAX: `fed_avg`, on JAX's own threads. It has no place for batch norm's running statistics: no ResNet.
* pfl-research: `FederatedAveraging` on a `SimulatedBackend`, in this process with 1 or 2 threads, or in 2
  processes. Clients come in turn, their examples unshuffled; running statistics are not averaged.
* Flower: `FedAvg` and one Ray actor per core. Messages and replies are looked for every 0.1 seconds, so that
  short rounds consist of waiting.
"""

import functools
import importlib.util
import itertools
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tasks import BenchTask, Way
from fedlab_core.about import version
from fedlab_core.models import parameter_count
from fedlab_core.partition import iid
from fedlab_core.randomness import generator

PEERS = {"FedJAX": ("fedjax", "jax"), "pfl-research": ("pfl",), "Flower": ("flwr", "ray")}
"""The packages that each needs besides PyTorch."""
MODELS = {"FedJAX": ("2nn", "cnn"), "pfl-research": ("2nn", "cnn", "resnet20"), "Flower": ("2nn", "cnn", "resnet20")}
"""What each can train as it stands in a task."""
Answer = Callable[[Callable[[], Any]], None]


def ways(task: BenchTask) -> dict[str, Way]:
    """What a task is timed with, by those that are installed and can train its model."""
    found = {
        "FedJAX": Way("FedJAX"),
        "pfl-research, 1 thread": Way("pfl-research"),
        "pfl-research, 2 threads": Way("pfl-research", 2),
        "pfl-research, 2 processes": Way("pfl-research", processes=2),
        "Flower": Way("Flower"),
    }
    able = [peer for peer in PEERS if _installed(peer) and task.model in MODELS[peer]]
    return {name: way for name, way in found.items() if way.engine in able and way.processes <= task.sampled}


def versions() -> dict[str, str]:
    """The packages of those that are installed."""
    return {peer: ", ".join(f"{p} {version(p)}" for p in PEERS[peer]) for peer in PEERS if _installed(peer)}


def run(task: BenchTask, way: Way, answer: Answer) -> None:
    """Calls `answer` with something that runs a round; what the framework has started ends with the call.

    Raises:
        RuntimeError: another number of examples, local steps or parameters than the task's.
    """
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "FLWR_TELEMETRY_ENABLED": "0"}
    {"FedJAX": _fedjax, "pfl-research": _pfl, "Flower": _flwr}[way.engine](task, way, answer)


def _installed(peer: str) -> bool:
    return all(importlib.util.find_spec(package) for package in PEERS[peer])


def _layout(task: BenchTask) -> torch.memory_format:
    return torch.channels_last if task.images else torch.contiguous_format


def _network(task: BenchTask) -> nn.Module:
    return task.network().to(memory_format=_layout(task))


def _clients(task: BenchTask) -> list[tuple[Tensor, Tensor]]:
    """What every client holds, as the network reads it."""
    data = task.data()
    partition = iid(len(data.x), task.clients, generator(0, "bench partition"))
    examples = (data.prepare(data.x[rows]).contiguous(memory_format=_layout(task)) for rows in partition)
    return [(x, data.y[rows]) for x, rows in zip(examples, partition, strict=True)]


def _check(task: BenchTask, batches: Sequence[int], sampled: int) -> None:
    """Compares the sizes of some clients' batches with what they should be."""
    found, wanted = (len(batches), sum(batches)), (-(-task.examples // task.batch) * sampled, task.examples * sampled)
    if found != wanted:
        raise RuntimeError(f"(steps, examples) of a round are {found}, not {wanted}")


def _fedjax(task: BenchTask, way: Way, answer: Answer) -> None:
    import fedjax
    import jax
    from jax.example_libraries import stax

    jax.tree_map = jax.tree_util.tree_map  # FedJAX 0.0.17 knows it by this name, which JAX has dropped

    def convolution(channels: int) -> Any:
        pool = stax.MaxPool((2, 2), strides=(2, 2))
        return stax.serial(stax.Conv(channels, (5, 5), padding="SAME"), pool, stax.Relu)

    def dense(*widths: int) -> list[Any]:
        return [layer for width in widths for layer in (stax.Dense(width), stax.Relu)]

    layers = {
        "2nn": [stax.Flatten, *dense(200, 200)],
        "cnn": [convolution(32), convolution(64), stax.Flatten, *dense(512)],
    }[task.model]
    channels, *sides = task.shape
    model = fedjax.create_model_from_stax(
        *stax.serial(*layers, stax.Dense(task.classes)),
        sample_shape=(-1, *sides, channels),
        train_loss=lambda batch, logits: fedjax.metrics.unreduced_cross_entropy_loss(batch["y"], logits),
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        fedjax.model_grad(model),
        fedjax.optimizers.sgd(task.lr),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=task.batch),
    )
    held = {i: {"x": x.movedim(1, -1).numpy(), "y": y.numpy()} for i, (x, y) in enumerate(_clients(task))}
    state = algorithm.init(model.init(jax.random.PRNGKey(0)))
    count = sum(leaf.size for leaf in jax.tree_util.tree_leaves(state.params))
    if count != parameter_count(task.network()):
        raise RuntimeError(f"{count} parameters, not {parameter_count(task.network())}")

    batches: list[int] = []

    def counted(batch: dict[str, Any]) -> dict[str, Any]:
        batches.append(len(batch["y"]))
        return batch

    def one_round(sampler: Any) -> None:
        nonlocal state
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)

    data = fedjax.InMemoryFederatedData(held)
    plain, counting = (
        fedjax.client_samplers.UniformGetClientSampler(each, task.sampled, seed=0)
        for each in (data, data.preprocess_batch(counted))
    )
    batches.clear()  # all data went through once
    one_round(counting)
    _check(task, batches, task.sampled)
    answer(functools.partial(one_round, plain))


def _pfl(task: BenchTask, way: Way, answer: Answer) -> None:
    """A second process, if asked for, waits for a word at the beginning of each round."""
    if way.processes == 1:
        return answer(_pfl_rounds(task, way))
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    channel, other = context.Pipe()
    os.environ |= {"PFL_WORKER_ADDRESSES": f"{address},{address}", "PFL_WORKER_RANK": "1"}
    context.Process(target=_pfl_follow, args=(task, way, other), daemon=True).start()
    os.environ["PFL_WORKER_RANK"] = "0"
    lead = _pfl_rounds(task, way)

    def one_round() -> None:
        channel.send("round")
        lead()

    answer(one_round)
    channel.send(None)


def _pfl_follow(task: BenchTask, way: Way, channel: Connection) -> None:
    one_round = _pfl_rounds(task, way)
    while channel.recv():
        one_round()


def _pfl_rounds(task: BenchTask, way: Way) -> Callable[[], None]:
    """One process's share of a round."""
    torch.set_num_threads(way.threads)
    multiprocessing.current_process().name = "MainProcess"  # pfl takes a process of another name for a loader of data
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.model.pytorch import PyTorchModel

    network, batches = _network(task), list[int]()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        batches.append(len(x))
        return F.cross_entropy(network(x), y)

    network.loss, network.metrics = loss, lambda *_: {}
    users = [PyTorchTensorDataset(held) for held in _clients(task)]
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", range(task.clients)))
    backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    local = NNTrainHyperParams(task.batch, local_num_epochs=1, local_learning_rate=task.lr)
    algorithm, rounds = FederatedAveraging(), itertools.count(1)

    def one_round() -> None:
        settings = NNAlgorithmParams(next(rounds), 10**9, task.sampled, None)
        algorithm.run(settings, backend, model, local, send_metrics_to_platform=False)

    one_round()
    _check(task, batches, task.sampled // way.processes)
    return one_round


def _flwr(task: BenchTask, way: Way, answer: Answer) -> None:
    """The server's function gives the answers; the simulation ends when it returns."""
    from flwr.app import ArrayRecord, ConfigRecord, Context
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    server, client = ServerApp(), ClientApp()
    client.train()(functools.partial(_flwr_train, task))

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(task.sampled / task.clients, 0.0, task.sampled, min_available_nodes=task.clients)
        arrays, rounds = ArrayRecord(task.network().state_dict()), itertools.count(1)

        def one_round() -> None:
            nonlocal arrays
            number = next(rounds)
            messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            replies = list(grid.send_and_receive(messages))
            arrays, _ = strategy.aggregate_train(number, replies)
            if number == 1:
                _check(task, [size for reply in replies for size in reply.content["batches"]["sizes"]], task.sampled)

        answer(one_round)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"log_to_driver": False}}
    run_simulation(server, client, task.clients, backend_config=resources)


def _flwr_train(task: BenchTask, message: Any, context: Any) -> Any:
    """A client's epoch, in an actor's process."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

    network, clients = _flwr_actor(task)
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=task.lr)
    x, y = clients[context.node_config["partition-id"]]
    batches = torch.randperm(len(x)).split(task.batch)
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord(network.state_dict()),
        "metrics": MetricRecord({"num-examples": len(x)}),
        "batches": ConfigRecord({"sizes": [len(batch) for batch in batches]}),
    }
    return Message(RecordDict(content), reply_to=message)


@functools.cache
def _flwr_actor(task: BenchTask) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.set_num_threads(1)
    return _network(task), _clients(task)
