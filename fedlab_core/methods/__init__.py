"""What differs between federated algorithms, as hooks around one round loop; by name in `METHODS`."""

import importlib

from fedlab_core.methods.client import FedDyn, FedProx, Moon, Scaffold
from fedlab_core.methods.fedavg import FedAvg, FedSGD, LocalOnly, Update, task_loss
from fedlab_core.methods.server import FedAdam, FedAvgM, FedNova, FedYogi

METHODS: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedsgd": FedSGD,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "local_only": LocalOnly,
    "fednova": FedNova,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "feddyn": FedDyn,
    "moon": Moon,
}
# Packages that add methods of their own to `METHODS` when they are imported.
ELSEWHERE = {"fedtan": "batchnorm", "union_sgd": "batchnorm", "layer_wise": "layerwise"}

__all__ = [
    "METHODS",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedDyn",
    "FedNova",
    "FedProx",
    "FedSGD",
    "FedYogi",
    "LocalOnly",
    "Moon",
    "Scaffold",
    "Update",
    "build_method",
    "task_loss",
]


def build_method(name: str, **options: float) -> FedAvg:
    """The method called `name` (a key of `METHODS` or of `ELSEWHERE`) with its own options, such as `mu` of FedProx.

    Raises:
        ValueError: an unknown name, or options that the method does not take.
    """
    if name in ELSEWHERE:
        importlib.import_module(f"fedlab_core.{ELSEWHERE[name]}")
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown, accepted: {sorted(METHODS | ELSEWHERE)}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise ValueError(f"method {name!r} does not take these options: {options} ({error})") from None
