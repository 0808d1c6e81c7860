"""Methods by name, so that an experiment as plain data can say which one it follows."""

import inspect
from typing import Any

from fedlab_core.check import checked, choice
from fedlab_core.methods.client import FedDyn, FedProx, Moon, Scaffold
from fedlab_core.methods.fedavg import FedAvg, FedSGD, LocalOnly
from fedlab_core.methods.robust import GeometricMedian, Krum, Median, MultiKrum, NormClipping, TrimmedMean
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
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "geometric_median": GeometricMedian,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "norm_clipping": NormClipping,
}
"""Those of this package; `registry` adds the ones that need more, and a reader's own."""


@checked
def build_method(name: str, **options: Any) -> FedAvg:
    """The method called `name` (a key of `METHODS`) with its own options, such as `mu` of FedProx.

    Raises:
        ValueError: an unknown name, or options that the method does not take.
    """
    choice("method", name, sorted(METHODS))
    known = inspect.signature(METHODS[name]).parameters
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"method {name!r} does not take {unknown}, accepted: {list(known) or 'no options'}")
    tuples = {o: tuple(v) for o, v in options.items() if isinstance(v, list) and isinstance(known[o].default, tuple)}
    return METHODS[name](**options | tuples)  # JSON has lists only
