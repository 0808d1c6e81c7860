"""The public surface, found by looking, and good arguments for it, found by watching small runs.

What is not called is listed in `omitted`, with the reason.
"""

import importlib
import inspect
import pkgutil
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import fedlab_core
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from tools.faults import scenes
from tools.faults.faces import faces
from tools.faults.omitted import OMITTED
from tools.faults.small import small_data, small_model, small_partition, small_run

OBJECTS = (Federation, Experiment, Settings, Dataset, Partition)
"""Classes whose public methods are called too."""
UNTRIED: dict[str, dict[str, Any]] = {
    "engines.ray.RayEngine": {},
    "engines.ray.connect": {"address": "127.0.0.1:9"},
    **{f"data.vision.{name}": {"root": Path("nowhere")} for name in ("mnist", "fashion_mnist", "cifar10", "cifar100")},
    "data.text.shakespeare": {"root": Path("nowhere")},
    "models.weights.clip.load_clip": {"source": "nowhere"},
    "models.weights.clip.load_tokenizer": {"source": "nowhere"},
    "models.weights.clip.load_open_clip": {"name": "nowhere"},
    "pretraining.named.imagenet_start": {"model": small_model()},
}
"""Good arguments of what needs a cluster, or files that are not here: not called with them, only with nonsense."""


@dataclass(frozen=True)
class Thing:
    """Something to call: its name, whom to call, and good arguments."""

    path: str
    call: Callable[..., Any]
    good: dict[str, Any]


def public() -> dict[str, Callable[..., Any]]:
    """Functions, classes and methods of `OBJECTS` that a module defines under a public name, by path."""
    found: dict[str, Callable[..., Any]] = {}
    for module in pkgutil.walk_packages(fedlab_core.__path__, "fedlab_core."):
        if any(part.startswith("_") for part in module.name.split(".")):
            continue
        inside = importlib.import_module(module.name)
        for name, value in vars(inside).items():
            own = getattr(value, "__module__", None) == module.name and not name.startswith("_")
            if own and (inspect.isfunction(value) or (inspect.isclass(value) and not _no_constructor(value))):
                found[f"{module.name.removeprefix('fedlab_core.')}.{name}"] = value
    for kind in OBJECTS:
        for name, value in vars(kind).items():
            if not name.startswith("_") and isinstance(value, types.FunctionType | classmethod):
                found[f"{kind.__name__}.{name}"] = getattr(kind, name)
    return {path: one for path, one in found.items() if _arguments(one)}


def unlisted(found: list["Thing"]) -> list[str]:
    """What the list of omissions lacks: things that are neither called nor listed; and what it has too many: patterns
    that fit nothing, and things that are called although they are listed."""
    called, every = {thing.path for thing in found}, public()
    fits = {path: [pattern for pattern in OMITTED if fnmatchcase(path, pattern)] for path in every}
    used = {pattern for patterns in fits.values() for pattern in patterns}
    lacking = [f"{path} is neither called nor listed" for path in every if path not in called and not fits[path]]
    idle = [f"{pattern} fits nothing" for pattern in OMITTED if pattern not in used]
    return lacking + idle + [f"{path} is called although {fits[path][0]} is listed" for path in called if fits[path]]


def _arguments(one: Callable[..., Any]) -> bool:
    """Whether it takes any that could be wrong."""
    given = [p for p in inspect.signature(one).parameters.values() if p.name not in ("self", "cls")]
    return any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given)


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


@contextmanager
def watched(codes: dict[CodeType, str], seen: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Inside the block, note with which arguments the code of public things is called first, in any thread."""

    def look(frame: FrameType, event: str, _: Any) -> None:
        path = codes.get(frame.f_code)
        if path is not None and event == "call" and path not in seen:
            seen[path] = dict(frame.f_locals)
        elif path is not None and event == "return" and path in seen:  # what closures share is there only now
            shared = {name: frame.f_locals[name] for name in frame.f_code.co_cellvars if name in frame.f_locals}
            seen[path] = {**shared, **seen[path]}

    before = sys.getprofile()
    threading.setprofile(look)
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)
        threading.setprofile(before)


def things(call: Callable[[Callable[[], Any]], Any], root: Path) -> list[Thing]:
    """Everything public of which a good call is known.

    Args:
        call: calls something within limits of time and memory; raises whatever goes wrong.
        root: an empty folder for what the calls write.
    """
    pool, every = by_name(), public()
    for name in ("open_clip", "transformers", "timm"):  # an import takes longer than a call may
        with suppress(ImportError):
            importlib.import_module(name)
    omitted = {path for path in every if any(fnmatchcase(path, pattern) for pattern in OMITTED)}
    codes = {hinted(one).__code__: path for path, one in every.items()}
    seen: dict[str, dict[str, Any]] = {}
    tries: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []
    with watched(codes, seen), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scene in (*scenes.core(root), *faces(root)):
            scene()
        for path, one in every.items():
            named = _named(one, pool)
            if named is not None and path not in omitted | UNTRIED.keys():
                with suppress(Exception, SystemExit):
                    call(lambda one=one, named=named: finish(one(**named)))  # it may call others, which are watched
                    tries.append((path, one, named))
    known = {path for path, _, _ in tries}
    for path, one in every.items():
        if path in seen and path not in known | omitted | UNTRIED.keys():
            tries.append((path, *_bound(one, seen[path])))
    found = [Thing(path, every[path], good) for path, good in UNTRIED.items()]
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
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            plain |= arguments.get(name, {})
    itself, _ = plain.pop("self", None), plain.pop("cls", None)
    return (one if inspect.isclass(one) or itself is None else partial(one, itself)), plain
