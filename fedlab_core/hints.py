"""What an annotation of the package accepts, in three forms: a test of a value, an expression that passes most values
fast, and words for a message."""

import functools
import itertools
import numbers
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np

LARGEST = 2**63 - 1
_MANY = 16  # members of a list or mapping that are looked at
_MANY_KINDS = (dict, list, tuple, frozenset, abc.Mapping, abc.Sequence, abc.Collection, abc.Iterable)


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


class Shaped:
    """The axes of an array of numbers, in its annotation: `Annotated[ArrayLike, Shaped("clients", "classes")]`.

    Args:
        axes: their names; without any, every number of axes is accepted but none.
    """

    def __init__(self, *axes: str) -> None:
        self.axes = axes

    def __call__(self, value: Any) -> bool:
        """Whether NumPy makes of a value an array of whole or real numbers with so many axes."""
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError):  # ragged lists, objects, tensors that keep their gradient
            return False
        return array.dtype.kind in "iuf" and (array.ndim == len(self.axes) if self.axes else array.ndim > 0)

    def __str__(self) -> str:
        return "an array of numbers" + (f" ({', '.join(self.axes)})" if self.axes else "")


def _shape(hint: Any) -> Shaped | None:
    """The axes that an annotation names, if it is of an array."""
    return next((bound for bound in typing.get_args(hint) if isinstance(bound, Shaped)), None)


def accepting(hint: Any) -> Callable[[Any], bool] | None:
    """A test of a value; None where an annotation says nothing that could be tested."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if shape := _shape(hint):
        return shape
    if origin is Annotated:
        bounds = [bound for bound in parts[1:] if isinstance(bound, Within)]
        kind = accepting(numbers.Real if any(bound.nan for bound in bounds) else parts[0])
        return functools.reduce(_both, bounds, kind) if kind else None
    if origin in (typing.Union, types.UnionType):
        several = [accepting(part) for part in parts]
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
        each = [accepting(part) or (lambda value: True) for part in parts]
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


def _is_many(hint: Any) -> bool:
    """Whether an annotation is of a list or mapping with members of one kind."""
    origin = typing.get_origin(hint)
    return origin in _MANY_KINDS and (origin is not tuple or typing.get_args(hint)[1:] == (...,))


def _both(first: Callable[[Any], bool], second: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: first(value) and second(value)


def _members(outer: type, parts: Sequence[Any], values: Callable[[Any], Iterable[Any]]) -> Callable[[Any], bool]:
    inner = accepting(parts[0]) if parts else None

    def accepts(value: Any) -> bool:
        if isinstance(value, str | bytes) or not isinstance(value, outer):
            return False
        if outer is abc.Collection and isinstance(value, abc.Mapping):
            return False
        if inner is None or not isinstance(value, list | tuple | abc.Mapping):
            return True
        return all(inner(one) for one in itertools.islice(values(value), _MANY))

    return accepts


def said(hint: Any) -> str:
    """An annotation in words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if shape := _shape(hint):
        return str(shape)
    if origin is Annotated:
        least, most, above = next((b.least, b.most, b.above) for b in parts[1:] if isinstance(b, Within))
        return ranged(said(parts[0]), least, None if most == LARGEST else most, above)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(said(part) for part in parts)
    if origin is typing.Literal:
        return ", ".join(map(repr, parts))
    if _is_many(hint):
        mapping = origin in (dict, abc.Mapping)
        return f"{'a mapping with values' if mapping else 'a list'} of {said(parts[mapping])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
    if hint in words:
        return words[hint]
    if isinstance(hint, type) and not parts:
        return f"{'an' if hint.__name__[0] in 'AEIO' else 'a'} {hint.__name__}"
    return str(hint).replace("collections.abc.", "").replace("fedlab_core.", "")


def passes(hint: Any, name: str, kind: str, known: dict[str, Any]) -> str:
    """An expression that is true of most values that an annotation accepts, and of nothing else.

    Args:
        hint: the annotation.
        name: of the variable in the expression.
        kind: a name that is free for what the expression needs.
        known: takes up what the expression needs.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if _shape(hint):
        return "False"
    if origin is Annotated:
        known[kind] = parts[0]
        bounds = [f"({_bounds(name, bound)})" for bound in parts[1:] if isinstance(bound, Within)]
        return f"({' and '.join([f'_type({name}) is {kind}', *bounds])})"
    if origin in (typing.Union, types.UnionType):
        return f"({' or '.join(passes(part, name, f'{kind}_{j}', known) for j, part in enumerate(parts))})"
    if hint in (None, types.NoneType):
        return f"{name} is None"
    if hint in (int, float):
        return f"(_type({name}) is {hint.__name__} and {name} == {name})"
    if _is_many(hint):
        mapping = origin in (dict, abc.Mapping)
        measured = any(getattr(bound, "nan", False) for bound in getattr(parts[mapping], "__metadata__", ()))
        member = float if measured else None if parts[mapping] is float else parts[mapping]
        known |= {kind: {member}, f"{kind}_of": (dict,) if mapping else (list, tuple, frozenset)}
        members = f"{name}.values()" if mapping else name
        few = f"_len({name}) <= {_MANY} and {{*_map(_type, {members})}} <= {kind}"
        return f"(_type({name}) in {kind}_of and {'True' if accepting(parts[mapping]) is None else few})"
    if isinstance(hint, type):
        known[kind] = hint
        return f"_is({name}, {kind})"
    return "False"


def _bounds(name: str, bound: Within) -> str:
    pairs = ((">=", bound.least), ("<=", bound.most), (">", bound.above))
    inside = (
        " and ".join(f"{name} {sign} {limit!r}" for sign, limit in pairs if limit is not None) or f"{name} == {name}"
    )
    return f"{inside} or {name} != {name}" if bound.nan else inside


def ranged(
    what: str, least: float | None, most: float | None, above: float | None = None, below: float | None = None
) -> str:
    """What a number within bounds is called."""
    pairs = ((">=", least), (">", above), ("<=", most), ("<", below))
    bounds = [f"{sign} {bound}" for sign, bound in pairs if bound is not None]
    return " and ".join([f"{what} {bounds[0]}", *bounds[1:]]) if bounds else what
