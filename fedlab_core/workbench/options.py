"""Options of methods, models and settings, read from their own code: name, default, what is accepted, what it means."""

import ast
import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedlab_core.check import checked
from fedlab_core.hints import LARGEST

SIMPLE = (bool, int, float, str, type(None), tuple, list)


@checked
@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: of the argument.
        default: its own, of the class it belongs to.
        accepted: all accepted values where they can be listed.
        words: what it means, from the docstring, and of a number what is accepted.
    """

    name: str
    default: Any
    accepted: Sequence[Any] = ()
    words: str = ""

    @property
    def label(self) -> str:
        """How a form calls it."""
        return self.name.replace("_", " ").strip()


@checked
def options_of(given: Any) -> tuple[Option, ...]:
    """The options of a dataclass, or of an instance, whose values are then the defaults. Options that a form could not
    show, such as other objects, are left out."""
    kind = given if isinstance(given, type) else type(given)
    found = []
    for f in dataclasses.fields(kind):
        default = getattr(given, f.name) if given is not kind else _default(f)
        if f.init and isinstance(default, SIMPLE):
            listed = accepted_by(kind, f.name) if isinstance(default, str) else ()
            words = " ".join(filter(None, (described(kind, f.name), _range(kind, f.name, default))))
            found.append(Option(f.name, default, listed, words))
    return tuple(found)


@checked
def options_from(defaults: Mapping[str, Any], words: Mapping[str, str]) -> tuple[Option, ...]:
    """Options that are known by their defaults only, such as a model's.

    Args:
        words: what they mean, by name.
    """
    plain = {name: value for name, value in defaults.items() if isinstance(value, SIMPLE)}
    return tuple(Option(name, value, words=words.get(name, "")) for name, value in plain.items())


@checked
def differing(given: Any) -> dict[str, Any]:
    """What of a dataclass is not its default, as plain data: what it can be made of again without its class's name,
    where its owner takes a dictionary too."""
    pairs = ((f, getattr(given, f.name)) for f in dataclasses.fields(given) if f.init)
    return {
        f.name: differing(value) if dataclasses.is_dataclass(value) else value
        for f, value in pairs
        if value != _default(f)
    }


@checked
def accepted_by(kind: type, name: str) -> tuple[str, ...]:
    """The texts that a dataclass accepts for a field: it is asked for an impossible one, and its error lists them."""
    words = _refusal(kind, name, "?")
    listed = re.search(r"accepted[^\[(]*([\[(].*[\])])", words) or re.search(r"accepted: ('.*)$", words)
    try:
        found = ast.literal_eval(listed[1]) if listed else ()
        return (found,) if isinstance(found, str) else tuple(found)
    except (ValueError, SyntaxError):
        return ()


@checked
def described(kind: type, name: str) -> str:
    """What the docstring of a class, or of one that it is derived from, says about an argument; "" if nothing."""
    for one in kind.__mro__:
        part = re.search(
            rf"^( +)(?:\w+, )*{name}(?:, \w+)*: (.*(?:\n\1 +.*)*)", inspect.getdoc(one) or "", re.MULTILINE
        )
        if part:
            words = " ".join(part[2].split())
            known = vars(sys.modules[one.__module__])
            elsewhere = re.fullmatch(r"see `(?:\w+\.)*(\w+)`\.", words)
            other = known.get(elsewhere[1]) if elsewhere else None
            return described(other, name) if isinstance(other, type) else _said(words, known)
    return ""


def _said(words: str, known: Mapping[str, Any]) -> str:
    """Words of a docstring as a form says them: a table by what it says of its names, a switch by on and off."""
    names = r"(?P<lead>,? ?)(?:a key of|see) `(?:\w+\.)*(?P<table>\w+)`"

    def listed(found: re.Match[str]) -> str:
        table = known.get(found["table"])
        if not isinstance(table, Mapping):
            return ""
        meanings = (f'"{key}", {text}' if isinstance(text, str) else f'"{key}"' for key, text in table.items())
        return f"{': ' if found['lead'] else ''}{'; '.join(meanings)}"

    words = re.sub(names, listed, words)
    for code, word in (("True", "on"), ("False", "off"), ("None", "none")):
        words = re.sub(rf"\b{code}\b", word, words)
    return re.sub(r"`([^`]*)`", lambda found: found[1].replace("_", " "), words).lstrip("; ")


def _range(kind: type, name: str, default: Any) -> str:
    """What a dataclass accepts for a number, in the words of the error that an impossible one gets, or ""."""
    if isinstance(default, bool) or not isinstance(default, (int, float)):
        return ""
    for impossible in (-LARGEST, LARGEST, math.nan):
        if found := re.search(r"accepted: (.*)$", _refusal(kind, name, impossible)):
            return f"Accepted: {found[1]}."
    return ""


def _refusal(kind: type, name: str, value: Any) -> str:
    """What a dataclass says of a value of a field that it does not take; "" if it takes it."""
    try:
        kind(**{name: value})
    except Exception as error:
        return str(error)
    return ""


def _default(f: dataclasses.Field) -> Any:
    if f.default is not dataclasses.MISSING:
        return f.default
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else object()
