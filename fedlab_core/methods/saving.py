"""Methods as plain data: which class, and with which options. Reading never imports a module that a file names."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from fedlab_core import check
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import METHODS

Methods = Mapping[str, type[FedAvg]] | Iterable[type[FedAvg]]
"""Classes to look a method up in: by name, or just the classes."""


@check.checked
def method_to_json(method: FedAvg) -> dict[str, Any]:
    """Class and options of a method; its name too where it is one of `METHODS`.

    Raises:
        ValueError: the class is no dataclass, or an option is not plain data (numbers, texts, tuples and dictionaries
            of them); such a method could not be read back.
    """
    kind = type(method)
    maker = next(one for one in kind.__mro__ if "__init__" in vars(one))
    if not getattr(vars(maker).get("__dataclass_params__"), "init", False):
        raise ValueError(
            f"method={kind.__name__} has an __init__ of its own, accepted: a frozen dataclass whose options are its "
            "fields; a run with it could not be saved"
        )
    options = {
        field.name: _plain(f"{kind.__name__}.{field.name}", getattr(method, field.name))
        for field in dataclasses.fields(method)
        if field.init
    }
    names = [name for name, known in METHODS.items() if known is kind]
    return {**({"name": names[0]} if names else {}), "class": _path(kind), "options": options}


@check.checked
def method_from_json(value: Any, where: str, methods: Methods = ()) -> FedAvg:
    """The method that `method_to_json` wrote.

    It is looked for among `methods`, in `METHODS`, and among all classes derived from `FedAvg` that are defined at the
    moment; of several with one name the latest counts, so that a notebook cell may be run again.

    Raises:
        ValueError: there is no such class, or it does not take the options.
    """
    data = check.instance(where, value, dict, "an object")
    if not {"options"} <= data.keys() <= {"name", "class", "options"} or not data.keys() & {"name", "class"}:
        raise check.refuse(f"{where}: method", sorted(data), "name or class, and options")
    options = check.instance(f"{where}: options", data["options"], dict, "an object")
    kind = _find(**{key: check.text(f"{where}: {key}", data.get(key, "")) for key in ("name", "class")}, known=methods)
    if kind is None:
        said = data.get("class", data.get("name"))
        raise ValueError(
            f"{where}: method={said!r} is not defined here; define it, import the module that does, "
            "or pass the class as load(..., methods=[...])"
        )
    fields = {field.name for field in dataclasses.fields(kind) if field.init}
    if unknown := sorted(options.keys() - fields):
        raise ValueError(f"{where}: {kind.__name__} does not take {unknown}, accepted: {sorted(fields)}")
    try:
        return kind(**{name: _option(f"{where}: {name}", option, methods) for name, option in options.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {kind.__name__}: {error}") from error


def _find(known: Methods, **said: str) -> type[FedAvg] | None:
    name, path = said["name"], said["class"]
    by_name = dict(known) if isinstance(known, Mapping) else {}
    classes: list[type[FedAvg]] = list(by_name.values() if isinstance(known, Mapping) else known)
    for kind in classes:
        check.instance("methods", kind, type, "classes derived from FedAvg")
    last = path.rpartition(":")[2].rpartition(".")[2]
    for wanted in (name, path, last):
        if wanted and wanted in by_name:
            return by_name[wanted]
    for kind in classes:
        if path == _path(kind) or last == kind.__name__:
            return kind
    if name in METHODS:
        return METHODS[name]
    module, _, qualified = path.partition(":")
    found: Any = sys.modules.get(module)  # imported already: nothing is imported here
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, FedAvg):
        return found
    defined = [kind for kind in _derived(FedAvg) if _path(kind) == path]
    return defined[-1] if defined else None


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _derived(kind: type[FedAvg]) -> list[type[FedAvg]]:
    return [one for child in kind.__subclasses__() for one in (child, *_derived(child))]


def _plain(where: str, value: Any) -> Any:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return check.number(where, value)
    if type(value) in (list, tuple):
        return [_plain(f"{where}[{i}]", one) for i, one in enumerate(value)]
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _plain(f"{where}[{key!r}]", one) for key, one in value.items()}}
    if isinstance(value, FedAvg):
        return {"method": method_to_json(value)}
    raise check.refuse(where, value, "numbers, texts, methods, and tuples and dictionaries of them")


def _option(where: str, value: Any, methods: Methods) -> Any:
    if isinstance(value, list):
        return tuple(_option(where, one, methods) for one in value)
    if not isinstance(value, dict):
        return value
    if set(value) == {"method"}:
        return method_from_json(value["method"], where, methods)
    if set(value) == {"dict"} and isinstance(value["dict"], dict):
        return {key: _option(where, one, methods) for key, one in value["dict"].items()}
    raise check.refuse(where, value, "a method or a dict")
