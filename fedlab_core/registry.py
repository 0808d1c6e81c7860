"""The one table of names: what an experiment as plain data, and every menu, may choose from.

`register` adds to it, from a notebook cell as well; running that cell again replaces the entry.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedlab_core import partition as partitions
from fedlab_core.batchnorm.fedtan import FedTAN, UnionSGD
from fedlab_core.batchnorm.hybrid import FBN, HBN
from fedlab_core.batchnorm.split import label_blocks
from fedlab_core.check import checked, choice
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.load import LOADERS
from fedlab_core.finetuning.lora import FedSALoRA, ResidualLoRA, StackedLoRA
from fedlab_core.finetuning.tuning import TUNINGS, Tuning
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import METHODS
from fedlab_core.models.build import MODELS, ModelInfo, own_model
from fedlab_core.partition import Partition
from fedlab_core.pretraining.named import OWN, STARTS

METHODS.update(fedtan=FedTAN, union_sgd=UnionSGD, layer_wise=LayerWise)
METHODS.update(hbn=HBN, fbn=FBN, fedsa_lora=FedSALoRA, flora=StackedLoRA, fedex_lora=ResidualLoRA)


def _iid(data: Dataset, clients: int, draws: torch.Generator) -> Partition:
    return partitions.iid(len(data.x), clients, draws)


def _shards(data: Dataset, clients: int, draws: torch.Generator, per_client: int = 2) -> Partition:
    return partitions.shards(_labels(data, "shards"), clients, per_client, draws)


def _label_blocks(data: Dataset, clients: int, draws: torch.Generator, skew: float = 1.0) -> Partition:
    return label_blocks(_labels(data, "label_blocks"), clients, skew, draws)


def _dirichlet(data: Dataset, clients: int, draws: torch.Generator, alpha: float = 0.3, min_size: int = 1) -> Partition:
    return partitions.dirichlet(_labels(data, "dirichlet"), clients, alpha, draws, min_size)


def _quantity(data: Dataset, clients: int, draws: torch.Generator, sigma: float = 1.0, min_size: int = 1) -> Partition:
    return partitions.quantity(len(data.x), clients, draws, sigma, min_size)


def _natural(data: Dataset, clients: int, draws: torch.Generator, min_size: int = 1) -> Partition:
    return partitions.natural(data.groups, min_size)


def _pooled(data: Dataset, clients: int, draws: torch.Generator) -> Partition:
    return partitions.pooled(len(data.x))


def _labels(data: Dataset, partition: str) -> Tensor:
    if data.y.ndim != 1:
        raise ValueError(f"partition={partition!r} needs one label per example, {data.name} has none")
    return data.y


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "iid": _iid,
    "shards": _shards,
    "label_blocks": _label_blocks,
    "dirichlet": _dirichlet,
    "quantity": _quantity,
    "natural": _natural,
    "pooled": _pooled,
}
"""Who holds what: functions of (data, clients, draws) and options."""
TABLES: dict[str, dict[str, Any]] = {
    "data": LOADERS,
    "partition": PARTITIONS,
    "model": MODELS,
    "method": METHODS,
    "start": STARTS,
    "tuning": TUNINGS,
}
"""Every name that an experiment may use, by kind; the dictionaries are those that the packages look names up in."""
_BUILT_IN = {kind: frozenset(table) for kind, table in TABLES.items()}


@checked
def register(kind: str, name: str, entry: Any = None) -> Any:
    """Give something of one's own a name, to be used in experiments and shown in menus.

        register("model", "mine", MyNetwork)

        @register("data", "ours")
        def ours(): ...

    A name that was registered before is replaced.

    Args:
        kind: what the entry is:

            - "data": a `Dataset`, or a function that returns one; its parameters are the data set's options, and one
              called `root` gets the data root;
            - "partition": a function of (data, clients, draws) and options that returns a `Partition`;
            - "model": an `nn.Module` class or a function that returns a module, see `models.build.own_model`;
            - "method": a dataclass derived from `FedAvg`;
            - "start": tensors by name, or a function that returns them; of `model` (the network with random weights),
              `data`, `partition` and `seed` it gets those that its signature names;
            - "tuning": a function of (model, generator) that returns the model with `requires_grad` set for what is to
              be trained, or a `Tuning`.
        name: what it is to be called.
        entry: without it, `register` returns a decorator.

    Returns:
        The entry.

    Raises:
        ValueError: an unknown kind, the name of something built in, or an entry that is not of its kind.
    """
    choice("kind", kind, TABLES)
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}, accepted: a text")
    if name in _BUILT_IN[kind]:
        raise ValueError(f"name={name!r} is a built-in {kind}, accepted: another name")
    if entry is None:
        return functools.partial(register, kind, name)
    made = _CHECKS[kind](name, entry)
    if kind == "start":
        OWN[name] = entry
    TABLES[kind][name] = made
    return entry


def _data(name: str, entry: Any) -> Callable[..., Dataset]:
    if isinstance(entry, Dataset):
        return lambda: entry
    _callable("data", name, entry, "a Dataset, or a function that returns one")

    @functools.wraps(entry)
    def load(**options: Any) -> Dataset:
        made = entry(**options)
        if not isinstance(made, Dataset):
            raise ValueError(f"data {name!r} made a {type(made).__name__}, accepted: a Dataset")
        return made

    return load


def _partition(name: str, entry: Any) -> Callable[..., Partition]:
    _callable("partition", name, entry, "a function of (data, clients, draws) that returns a Partition")

    @functools.wraps(entry)
    def make(data: Dataset, clients: int, draws: torch.Generator, **options: Any) -> Partition:
        made = entry(data, clients, draws, **options)
        if not isinstance(made, Partition):
            raise ValueError(f"partition {name!r} made a {type(made).__name__}, accepted: a Partition")
        return made

    return make


def _model(name: str, entry: Any) -> ModelInfo:
    return entry if isinstance(entry, ModelInfo) else own_model(entry)


def _method(name: str, entry: Any) -> type[FedAvg]:
    if not (isinstance(entry, type) and issubclass(entry, FedAvg)):
        raise ValueError(f"method {name!r} is {entry!r}, accepted: a dataclass derived from FedAvg")
    return entry


def _start(name: str, entry: Any) -> str:
    if isinstance(entry, Mapping) and entry and all(isinstance(tensor, Tensor) for tensor in entry.values()):
        return "tensors of one's own"
    _callable("start", name, entry, "tensors by name, such as a state_dict(), or a function that returns them")
    return _first_line(entry) or "a function of one's own"


def _tuning(name: str, entry: Any) -> Tuning:
    if isinstance(entry, Tuning):
        return entry
    _callable("tuning", name, entry, "a function of (model, generator) that returns a module, or a Tuning")
    options = {key: p.default for key, p in list(inspect.signature(entry).parameters.items())[2:]}

    def make(model: nn.Module, generator: torch.Generator, **options: Any) -> nn.Module:
        return entry(model, generator, **options)

    return Tuning("modules", _first_line(entry) or name, options, own=make)


def _callable(kind: str, name: str, entry: Any, accepted: str) -> None:
    if not callable(entry):
        raise ValueError(f"{kind} {name!r} is a {type(entry).__name__}, accepted: {accepted}")


def _first_line(entry: Any) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0].rstrip(".")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "data": _data,
    "partition": _partition,
    "model": _model,
    "method": _method,
    "start": _start,
    "tuning": _tuning,
}
