"""Arguments, checked once and said in one grammar: the argument, its value, what is accepted."""

import functools
import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import numpy as np

from fedlab_core.hints import LARGEST, Within, accepting, passes, ranged, said

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


Natural = Annotated[int, Within(0, LARGEST)]
"""0, 1, 2 and so on."""
Client = Annotated[int, Within(-1, LARGEST)]
"""The number of a client; -1 stands for a stack of them."""
Size = Annotated[int, Within(1, 2**16)]
"""How large a layer or an image is; more would not fit into memory."""
Depth = Annotated[int, Within(1, 1000)]
"""How many layers or blocks."""
Many = Annotated[int, Within(0, 10**7)]
"""A count of things that are all in memory at once."""
Amount = Annotated[float, Within(0)]
"""A number that is not negative."""
Measured = Annotated[float, Within(nan=True)]
"""What was measured; nan where there was nothing to measure."""


def refuse(name: str, value: Any, accepted: str) -> ValueError:
    """The error to raise for an argument that is not accepted."""
    shown = repr(value)
    if len(shown) > 200:
        shown = f"{shown[:200]} ..."
    return ValueError(f"{name}={shown}, accepted: {accepted}")


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number within bounds; NumPy's count, True and False do not."""
    plain = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if plain is None or (least is not None and plain < least) or (most is not None and plain > most):
        beyond = most != LARGEST or (plain is not None and plain > LARGEST)  # that bound is said where it matters
        raise refuse(name, value, ranged("a whole number", least, most if beyond else None))
    return plain


def number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """A finite number within bounds.

    Args:
        above, below: bounds that are not themselves accepted.
    """
    accepted = ranged("a number", least, most, above, below)
    if isinstance(value, numbers.Integral) and abs(int(value)) > LARGEST:
        raise refuse(name, value, f"{accepted}, at most 2**63 - 1 where it is whole")
    plain = math.nan if isinstance(value, bool) or not isinstance(value, numbers.Real) else float(value)
    inside = (least is None or plain >= least) and (most is None or plain <= most)
    if not (math.isfinite(plain) and inside and (above is None or plain > above) and (below is None or plain < below)):
        raise refuse(name, value, accepted)
    return plain


def choice(name: str, value: Any, accepted: Iterable[T]) -> T:
    """One of a few values."""
    options = list(accepted)
    if not any(type(value) is type(option) and value == option for option in options):
        raise refuse(name, value, ", ".join(repr(option) for option in options))
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False")
    return value


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise refuse(name, value, "a text")
    return value


def instance(name: str, value: Any, kind: type[T], accepted: str | None = None) -> T:
    """An object of a class."""
    if not isinstance(value, kind):
        raise refuse(name, value, accepted or f"a {kind.__name__}")
    return value


def sized(name: str, value: Any, **axes: int) -> np.ndarray:
    """An array with so many entries along each axis, by the axis' name."""
    array = np.asarray(value)
    if array.shape != tuple(axes.values()):
        wanted = ", ".join(f"{count} {axis}" for axis, count in axes.items())
        raise ValueError(f"{name}: shape {array.shape}, accepted: ({wanted})")
    return array


def checked(thing: C) -> C:
    """Check what a function, or the constructor of a class, is called with against the types that it names.

    Each argument is refused by the rules of this module: a whole number where `int` is named, a number where `float`
    is, an object of the class otherwise; of a list, tuple or mapping the members too. What `Any`, a type variable or a
    protocol stands for is not checked. The annotations are read at the first call.
    """
    function: Callable[..., Any] = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]
    guarded: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal guarded
        if guarded is None:
            guarded = _guarded(function)
        return guarded(*args, **kwargs)

    if isinstance(thing, type):
        thing.__init__ = call  # type: ignore[misc]
        return thing
    return typing.cast(C, call)


def checked_methods(kind: type[T]) -> type[T]:
    """Check what the public methods of a class are called with, as `checked` does."""
    for name, value in list(vars(kind).items()):
        if inspect.isfunction(value) and not name.startswith("_"):
            setattr(kind, name, checked(value))
    return kind


def annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's arguments, bounds included."""
    plain = inspect.unwrap(function)
    own = {name: hint for name, hint in plain.__annotations__.items() if name != "return"}
    read = types.SimpleNamespace(__annotations__=own)  # what is returned may be of a package not imported yet
    return typing.get_type_hints(read, plain.__globals__, include_extras=True)


_NAMED = inspect.Parameter.KEYWORD_ONLY
_OPEN: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind its checks, written out argument by argument: a round makes hundreds of such calls.

    What an argument usually is passes by a comparison or two; anything else goes to its rule.
    """
    hints, parameters = annotations(function), inspect.signature(function).parameters.values()
    known: dict[str, Any] = {"_call": function, "_type": type, "_is": isinstance, "_len": len, "_map": map}
    head, lines, handed, kinds = list[str](), list[str](), list[str](), [one.kind for one in parameters]
    for i, one in enumerate(parameters):
        name, stars, default = one.name, _OPEN.get(one.kind, ""), "" if one.default is one.empty else f"_default{i}"
        if one.kind is _NAMED and not {_NAMED, *_OPEN} & {*kinds[:i]}:
            head.append("*")
        head.append(stars + name + (default and f"={default}"))
        if one.kind is inspect.Parameter.POSITIONAL_ONLY and kinds[i + 1 : i + 2] != [one.kind]:
            head.append("/")
        handed.append(f"{name}={name}" if one.kind is _NAMED else stars + name)
        known |= {f"_default{i}": one.default, f"_rule{i}": None if stars else _rule(hints.get(name, Any))}
        if known[f"_rule{i}"] is not None:
            usual = f"{name} is {default} or " if default else ""
            lines.append(f"    {usual}{passes(hints[name], name, f'_kind{i}', known)} or _rule{i}({name!r}, {name})")
    source = [f"def _checked({', '.join(head)}):", *lines, f"    return _call({', '.join(handed)})"]
    exec(compile("\n".join(source), f"<checks of {function.__qualname__}>", "exec"), known)
    made = typing.cast(Callable[..., Any], known["_checked"])
    made.__qualname__ = function.__qualname__
    return made


def _rule(hint: Any) -> Callable[[str, Any], None] | None:
    """How a value of an annotation is checked; None for what is not checked."""
    accepts = accepting(hint)
    if accepts is None:
        return None
    wanted = said(hint)

    def rule(name: str, value: Any) -> None:
        if not accepts(value):
            large = isinstance(value, int) and value > LARGEST
            raise refuse(name, value, f"{wanted}, at most 2**63 - 1" if large else wanted)

    return rule
