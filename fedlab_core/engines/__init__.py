"""Where clients run. An engine trains the sampled clients of a round and evaluates models; it decides nothing else."""

from fedlab_core.check import checked
from fedlab_core.engines.auto import AutoEngine
from fedlab_core.engines.frozen import FrozenEngine
from fedlab_core.engines.loop import LoopEngine
from fedlab_core.engines.ray import RayEngine
from fedlab_core.engines.stacked.engine import StackedEngine
from fedlab_core.engines.threads import ThreadsEngine
from fedlab_core.local.work import Engine

ENGINES = {
    "loop": "one client after the other; the reference",
    "threads": "one client per core; the bits of loop",
    "stacked": "many clients as one network; loop within rounding",
    "auto": "stacked or threads, by model, batch and device",
    "ray": "clients on many processes or machines; 'ray:10.0.0.1:6379' is a cluster's address",
}
"""What `Settings.engine` may name."""
_MAKERS = {
    "loop": LoopEngine,
    "threads": ThreadsEngine,
    "stacked": StackedEngine,
    "auto": AutoEngine,
    "ray": RayEngine,
}


@checked
def get_engine(name: str, cache_frozen: bool = False) -> Engine:
    """The engine called `name`, a key of `ENGINES`; "ray" may be followed by an address.

    Args:
        cache_frozen: compute frozen first parts of models once, see `engines.frozen`.

    Raises:
        ValueError: an unknown name, or Ray is not installed.
    """
    kind, colon, address = name.partition(":")
    if kind not in ENGINES or (colon and (kind != "ray" or not address)):
        raise ValueError(f"engine={name!r}, accepted: {sorted(ENGINES)}")
    engine = _MAKERS[kind](*[address] if address else [])
    return FrozenEngine(engine) if cache_frozen else engine
