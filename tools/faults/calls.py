"""Every public function and constructor of the core, found by looking, called with one argument that makes no sense."""

import dataclasses
import importlib
import inspect
import math
import pkgutil
import random
import resource
import signal
import socket
import types
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import fedlab_core
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from tools.faults.small import small_data, small_model, small_partition, small_run
from tools.faults.table import Table

LEFT_OUT = ("workbench", "studies", "plots", "claims", "engines", "weights", "__main__")
SECONDS, MEMORY = 5.0, 8 * 2**30


def public() -> dict[str, Callable[..., Any]]:
    """Functions and classes that a module of the core defines under a public name, by their path."""
    found = {}
    for module in pkgutil.walk_packages(fedlab_core.__path__, "fedlab_core."):
        if any(part in LEFT_OUT or part.startswith("_") for part in module.name.split(".")):
            continue
        inside = importlib.import_module(module.name)
        for name, value in vars(inside).items():
            own = getattr(value, "__module__", None) == module.name and not name.startswith("_")
            if own and (inspect.isfunction(value) or (inspect.isclass(value) and not _is_protocol(value))):
                found[f"{module.name.removeprefix('fedlab_core.')}.{name}"] = value
    return found


def _is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False)) or issubclass(kind, BaseException)


def valid() -> dict[str, Any]:
    """Good arguments by name."""
    federation = small_run().run(2)
    data, partition, state = small_data(), small_partition(), federation.state
    names = [name for name, tensor in state.items() if tensor.is_floating_point()]
    return {
        **dict.fromkeys(("data", "dataset"), data),
        **dict.fromkeys(("federation", "run", "fed"), federation),
        **dict.fromkeys(("draws", "generator"), generator(0, "fuzz")),
        **dict.fromkeys(("labels", "y", "targets"), data.y),
        **dict.fromkeys(("state", "start", "merged", "like", "a", "b", "payload", "end"), state),
        **dict.fromkeys(("n", "examples"), 60),
        **dict.fromkeys(("clients", "count"), 4),
        **dict.fromkeys(("steps", "epochs", "size", "batch_size", "per_client", "rounds"), 2),
        **dict.fromkeys(("seed", "client"), 0),
        **dict.fromkeys(("alpha", "lr", "fraction", "sigma", "share", "temperature", "mu"), 0.5),
        "round": 1,
        "partition": partition,
        "model": small_model(),
        "settings": federation.settings,
        "method": federation.method,
        "history": federation.history,
        "states": [state, state],
        "weights": [0.5, 0.5],
        "sizes": partition.sizes,
        "sampled": [0, 1],
        "names": names,
        "target": 0.5,
        "name": "fedavg",
        "purpose": "sampling",
        "folder": Path("no such folder"),
        "kind": "method",
        "weighting": "examples",
        "batch_norm": "local",
        "indices": partition.indices,
        "offsets": partition.offsets,
        "x": data.x,
    }


def nonsense(annotation: Any) -> list[Any]:
    """Values that can never be right for an argument that is so annotated."""
    kinds = set(typing.get_args(annotation)) if isinstance(annotation, types.UnionType) else {annotation}
    if kinds & {Any, object, inspect.Parameter.empty} or any("Callable" in str(kind) for kind in kinds):
        return []
    values: list[Any] = [object(), ["nonsense"]]
    if kinds <= {int, float, type(None)}:
        values += ["nonsense", math.nan, {}]
    if kinds <= {int, type(None)}:
        values += [1.5, -(10**30)]
    if kinds <= {str, type(None)}:
        values += [3, 0.5]
    if type(None) not in kinds:
        values.append(None)
    if not kinds & {int, float, bool}:
        values.append(7)
    return values


def _arguments(function: Callable[..., Any], pool: dict[str, Any]) -> dict[str, Any] | None:
    """Good arguments for all that have no default; None if the pool has none."""
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            continue
        if parameter.default is parameter.empty:
            if name not in pool:
                return None
            found[name] = pool[name]
    return found


def cases(pool: dict[str, Any]) -> Iterator[tuple[str, Callable[..., Any], dict[str, Any], str, Any]]:
    """Path, function, good arguments, and which of them is replaced by what."""
    for path, function in public().items():
        try:
            good, hints = _arguments(function, pool), typing.get_type_hints(function)
            if inspect.isclass(function):
                hints = typing.get_type_hints(function.__init__)
        except (TypeError, ValueError, NameError):
            continue
        if good is None:
            continue
        try:
            with _limits(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = function(**good)
                if inspect.isgenerator(result):
                    result.close()
        except BaseException:  # not a good call after all
            continue
        for name in inspect.signature(function).parameters:
            for value in nonsense(hints.get(name, Any)):
                yield path, function, good, name, value
    for kind in (Settings, *_methods()):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            for value in nonsense(hints[field.name]):
                yield kind.__name__, kind, {}, field.name, value


def _methods() -> Sequence[type[FedAvg]]:
    from fedlab_core.registry import METHODS

    return list(METHODS.values())


class _limits:
    """Inside the block a call that takes too long is ended."""

    def __enter__(self) -> None:
        def late(*_: Any) -> None:
            raise TimeoutError("no answer")

        self.before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)

    def __exit__(self, *_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self.before)


def calls(count: int, seed: int = 0) -> Table:
    """So many of the calls, drawn at random, or as many as there are."""
    table, pool = Table(), valid()
    torch.manual_seed(seed)
    draws, (soft, hard) = random.Random(seed), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, hard))
    connect = mock.patch.object(socket.socket, "connect", side_effect=OSError("there is no network here"))
    resolve = mock.patch.object(socket, "getaddrinfo", side_effect=OSError("there is no network here"))
    try:
        connect.start()
        resolve.start()
        every = list(cases(pool))
        draws.shuffle(every)
        for path, function, good, name, value in every[:count]:
            what = f"{path}({name}={value!r:.60})"
            try:
                with _limits(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = function(**{**good, name: value})
                    if inspect.isgenerator(result):
                        next(result, None)
                        result.close()
            except TimeoutError as error:
                table.add(path.partition(".")[0], "crash", f"{what}: {error}")
            except (ValueError, TypeError, OSError, LookupError, ArithmeticError) as error:
                clear = name in str(error) and isinstance(error, ValueError | OSError | TypeError)
                table.add(path.partition(".")[0], "clear" if clear else "unclear", f"{what}: {error!r:.160}")
            except Exception as error:
                table.add(path.partition(".")[0], "unclear", f"{what}: {error!r:.160}")
            else:
                table.add(path.partition(".")[0], "silent", what)
    finally:
        connect.stop()
        resolve.stop()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return table
