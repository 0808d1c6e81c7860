"""Arguments, checked once and said in one grammar: the argument, its value, what is accepted."""

import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def refuse(name: str, value: Any, accepted: str) -> ValueError:
    """The error to raise for an argument that is not accepted."""
    shown = repr(value)
    if len(shown) > 200:
        shown = f"{shown[:200]} ..."
    return ValueError(f"{name}={shown}, accepted: {accepted}")


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number within bounds; NumPy's count, True and False do not."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise refuse(name, value, _range("a whole number", least, most))
    plain = int(value)
    if (least is not None and plain < least) or (most is not None and plain > most):
        raise refuse(name, value, _range("a whole number", least, most))
    return plain


def number(
    name: str, value: Any, least: float | None = None, most: float | None = None, *, above: float | None = None
) -> float:
    """A finite number within bounds.

    Args:
        above: a bound that is not itself accepted.
    """
    accepted = _range("a number", least, most, above)
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise refuse(name, value, accepted)
    plain = float(value)
    if (least is not None and plain < least) or (most is not None and plain > most):
        raise refuse(name, value, accepted)
    if above is not None and not plain > above:
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


def _range(what: str, least: float | None, most: float | None, above: float | None = None) -> str:
    bounds = [f"{sign} {bound}" for sign, bound in ((">=", least), (">", above), ("<=", most)) if bound is not None]
    return " and ".join([f"{what} {bounds[0]}", *bounds[1:]]) if bounds else what
