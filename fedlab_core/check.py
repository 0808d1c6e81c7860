"""Arguments, checked once and said in one grammar: the argument, its value, what is accepted."""

import functools
import inspect
import itertools
import math
import numbers
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])


@dataclass(frozen=True)
class Within:
    """Bounds of a number, in its annotation: `Annotated[int, Within(1)]`.

    Attributes:
        above: a bound that is not itself accepted.
        nan: whether "not a number" is accepted too.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    nan: bool = False

    def __call__(self, value: Any) -> bool:
        """Whether a number lies within the bounds."""
        low, high, above = self.least, self.most, self.above
        inside = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
        return inside or (self.nan and value != value)


LARGEST = 2**63 - 1
Count = Annotated[int, Within(1, LARGEST)]
"""How many there are of something, at least one."""
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
Share = Annotated[float, Within(0, 1)]
"""A part of a whole."""
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


def checked(thing: C) -> C:
    """Check what a function, or the constructor of a class, is called with against the types that it names.

    Each argument is refused by the rules of this module: a whole number where `int` is named, a number where `float`
    is, an object of the class otherwise; of a list, tuple or mapping the members too. What `Any`, a type variable or a
    protocol stands for is not checked. The annotations are read at the first call.
    """
    function: Callable[..., Any] = thing.__init__ if isinstance(thing, type) else thing  # type: ignore[misc]
    signature, rules = inspect.signature(function), dict[str, Callable[[str, Any], None] | None]()
    order = list(signature.parameters)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not rules:
            hints = annotations(function)
            closed = (name for name in order if signature.parameters[name].kind not in _OPEN)
            rules.update(dict.fromkeys(order) | {name: _rule(hints.get(name, Any)) for name in closed})
        for name, value in (*zip(order, args, strict=False), *kwargs.items()):
            rule = rules.get(name)
            if rule is not None:
                rule(name, value)
        return function(*args, **kwargs)

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


_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_MANY = 16  # members of a list or mapping that are looked at


def _rule(hint: Any) -> Callable[[str, Any], None] | None:
    """How a value of an annotation is checked; None for what is not checked."""
    accepts = _accepts(hint)
    if accepts is None:
        return None
    wanted = _said(hint)

    def rule(name: str, value: Any) -> None:
        if not accepts(value):
            large = isinstance(value, int) and value > LARGEST
            raise refuse(name, value, f"{wanted}, at most 2**63 - 1" if large else wanted)

    return rule


def _accepts(hint: Any) -> Callable[[Any], bool] | None:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        bounds = [bound for bound in parts[1:] if isinstance(bound, Within)]
        kind = _accepts(numbers.Real if any(bound.nan for bound in bounds) else parts[0])
        return functools.reduce(_both, bounds, kind) if kind else None
    if origin in (typing.Union, types.UnionType):
        several = [_accepts(part) for part in parts]
        if None in several:
            return None
        return lambda value: any(accepts(value) for accepts in several if accepts)
    if origin is typing.Literal:
        return lambda value: any(type(value) is type(part) and value == part for part in parts)
    if hint is None or hint is type(None):
        return lambda value: value is None
    if hint is int:
        return lambda value: type(value) is int or isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if hint is float:
        return lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool) and value == value
    kind = origin or hint
    if kind is abc.Callable:
        return callable
    if kind is Any or not isinstance(kind, type) or kind is object or getattr(kind, "_is_protocol", False):
        return None
    if issubclass(kind, abc.Mapping):
        return _members(abc.Mapping, parts[-1:], lambda value: value.values())
    if kind is tuple and parts and ... not in parts:
        each = [_accepts(part) or (lambda value: True) for part in parts]
        return lambda value: (
            isinstance(value, tuple | list)
            and len(value) == len(each)
            and all(accepts(one) for accepts, one in zip(each, value, strict=True))
        )
    if issubclass(kind, abc.Iterable) and parts and kind.__module__ in ("builtins", "collections.abc"):
        outer = abc.Iterable if kind in (abc.Iterable, abc.Iterator) else abc.Collection
        inner = parts[:1] if len(parts) == 1 or parts[1:] == (...,) else ()
        return _members(outer, inner, lambda value: value)
    return lambda value: type(value) is kind or isinstance(value, kind)


def _both(first: Callable[[Any], bool], second: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: first(value) and second(value)


def _members(outer: type, parts: Sequence[Any], values: Callable[[Any], Iterable[Any]]) -> Callable[[Any], bool]:
    inner = _accepts(parts[0]) if parts else None

    def accepts(value: Any) -> bool:
        if isinstance(value, str | bytes) or not isinstance(value, outer):
            return False
        if outer is abc.Collection and isinstance(value, abc.Mapping):
            return False
        if inner is None or not isinstance(value, list | tuple | abc.Mapping):
            return True
        return all(inner(one) for one in itertools.islice(values(value), _MANY))

    return accepts


def _said(hint: Any) -> str:
    """An annotation in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        least, most, above = next((b.least, b.most, b.above) for b in parts[1:] if isinstance(b, Within))
        return _range(_said(parts[0]), least, None if most == LARGEST else most, above)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_said(part) for part in parts)
    if origin is typing.Literal:
        return ", ".join(map(repr, parts))
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
    if hint in words:
        return words[hint]
    if isinstance(hint, type) and not parts:
        return f"{'an' if hint.__name__[0] in 'AEIO' else 'a'} {hint.__name__}"
    return str(hint).replace("collections.abc.", "").replace("fedlab_core.", "")
