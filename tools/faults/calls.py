"""Every public function, constructor and method, called with one argument that makes no sense, or is far too large."""

import contextlib
import gc
import inspect
import math
import random
import re
import resource
import signal
import socket
import tempfile
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fedlab_core.check import annotations
from tools.faults.surface import Thing, finish, hinted, public, things, unlisted
from tools.faults.table import Table

SECONDS, MEMORY = 5.0, 2**30
GOOD_SECONDS = 60.0  # a call that is right is watched step by step, on a machine that may be busy
LARGE = 10**9
ANY_WHOLE = ("seed", "address")
"""Arguments for which every whole number is right."""
CHOICES = (
    "weighting batch_norm norm method optimiser lr_schedule engine device split non_finite lie kind model task "
    "partition start tuning metric measure"
).split()
"""Arguments that name one of several."""
NOT_NEGATIVE = (
    "lr fraction alpha sigma share temperature mu strength lr_decay weight_decay clip_norm trim memory_mib".split()
)
"""Numbers that are never below 0."""
AS_LONG_AS_ASKED = ("Federation.run", "Federation.rounds", "studies.arms.trained")
"""A billion rounds are what they say, and can be left after each."""


class Late(BaseException):
    """No answer in time; nothing may catch it."""


def nonsense(name: str, annotation: Any, draws: random.Random) -> list[Any]:
    """Values that can never be right for an argument of this name and annotation."""
    kinds = {_bare(kind) for kind in _either(annotation)}
    if kinds & {Any, object, inspect.Parameter.empty} or any(_open(kind) for kind in kinds):
        return []
    values: list[Any] = [object(), [object()], {"non": "sense"}, 3 + 4j]
    text, whole, real = str in kinds, int in kinds, float in kinds
    if not text:
        values.append("".join(draws.choices("abcdefgh", k=9)))
    elif name in CHOICES:
        values.append("".join(draws.choices("abcdefgh", k=9)))
    if (whole or real) and not kinds - {int, float, type(None)}:
        values += [math.nan, b"1"]
    if whole and not real:
        values += [draws.randrange(1, 99) + 0.5]
        if name not in ANY_WHOLE:
            values.append(-(10 ** draws.randrange(1, 31)))
    if real and name in NOT_NEGATIVE:
        values.append(-draws.random() - 0.01)
    if text:
        values += [draws.randrange(100), 0.5]
    if type(None) not in kinds:
        values.append(None)
    if not kinds & {int, float, bool}:
        values.append(draws.randrange(2, 100))
    return [value for value in values if not any(_is(value, kind) for kind in kinds)]


def large(annotation: Any, draws: random.Random) -> list[Any]:
    """Values that ask for far too much where they are a count; where they are none, they may be right."""
    return [LARGE, 10**30] if int in {_bare(kind) for kind in _either(annotation)} else []


def _either(annotation: Any) -> tuple[Any, ...]:
    several = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    return typing.get_args(annotation) if several else (annotation,)


def _bare(annotation: Any) -> Any:
    origin = typing.get_origin(annotation)
    return _bare(typing.get_args(annotation)[0]) if origin is typing.Annotated else origin or annotation


def _open(kind: Any) -> bool:
    """Whether the annotation says too little to know what can never be right."""
    unknown = isinstance(kind, typing.TypeVar) or bool(getattr(kind, "_is_protocol", False))
    return unknown or "Callable" in str(kind)


def _is(value: Any, kind: Any) -> bool:
    return kind is not object and isinstance(kind, type) and isinstance(value, kind)


def cases(found: list[Thing], draws: random.Random) -> Iterator[tuple[Thing, str, Any, bool]]:
    """What is called, which of its arguments is replaced by what, and whether that may be right after all."""
    for thing in found:
        hints = annotations(hinted(getattr(thing.call, "func", thing.call)))
        for name, parameter in inspect.signature(thing.call).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
                continue
            for value in nonsense(name, hints.get(name, Any), draws):
                yield thing, name, value, False
            if thing.path not in AS_LONG_AS_ASKED:
                for value in large(hints.get(name, Any), draws):
                    yield thing, name, value, True


def limited(call: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What a call returns that takes so many seconds of computing, or 12 times that of waiting, and 1 GiB more at most.

    Raises:
        Late: it takes longer.
        MemoryError, RuntimeError: it asks for more.
    """

    def late(*_: Any) -> None:
        raise Late("no answer")

    before = [(number, signal.signal(number, late)) for number in (signal.SIGPROF, signal.SIGALRM)]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 12 * seconds)
        return call()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def offline() -> Iterator[None]:
    """Inside the block there is no network."""
    gone = OSError("there is no network here")
    connect = mock.patch.object(socket.socket, "connect", side_effect=gone)
    with connect, mock.patch.object(socket, "getaddrinfo", side_effect=gone):
        yield


def calls(count: int, seed: int = 0) -> Table:
    """So many calls: all that there are, in an order drawn by the seed, and then all again with other values."""
    table, draws = Table(), random.Random(seed)
    torch.manual_seed(seed)
    with (
        tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder),
        offline(), mock.patch("sys.argv", ["faults"]),
    ):  # fmt: skip
        found, done = things(lambda call: limited(call, GOOD_SECONDS), Path(folder)), 0
        for said in unlisted(found):
            table.add("list of omissions", "silent", said)
        table.notes.append(f"{len(found)} of {len(public())} public things with arguments; the rest: omitted.py")
        while found and done < count:
            every = list(cases(found, draws))
            draws.shuffle(every)
            for thing, name, value, maybe in every[: count - done]:
                part, _, _ = thing.path.partition(".")
                outcome, said = tried(thing, name, value)
                if outcome == "silent" and maybe:
                    outcome = "sound"
                table.add(part, outcome, f"{thing.path}({name}={value!r:.60}): {said}")
                done += 1
    return table


def tried(thing: Thing, name: str, value: Any) -> tuple[str, str]:
    """The outcome of one call, and what was said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            limited(lambda: finish(thing.call(**{**thing.good, name: value})))
    except Late:
        return "crash", "no answer"
    except MemoryError as error:
        return "crash", f"too much memory: {error!r:.200}"
    except (ValueError, TypeError, OSError, LookupError) as error:
        return ("clear" if re.search(rf"\b{name}\b", str(error)) else "unclear"), f"{error!r:.200}"
    except Exception as error:
        return ("crash" if "memory" in str(error) else "unclear"), f"{error!r:.200}"
    finally:
        gc.collect(0)
    return "silent", "no error"
