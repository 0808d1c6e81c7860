"""What the files of a saved run say, as plain data, and how it is checked: `run.json` and the lines of its journal."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab_core import check
from fedlab_core.check import Natural
from fedlab_core.costs import Costs
from fedlab_core.files import parse
from fedlab_core.history import Record, Segment
from fedlab_core.methods.saving import Methods, method_from_json, method_to_json
from fedlab_core.settings import Settings

FORMAT = 2
OURS = re.compile(r"(round|clients)-\d{6,}-[0-9a-f]{8}\.safetensors|journal-[0-9a-f]{8}\.jsonl")
"""Names of a run's files besides `run.json`."""


@check.checked
@dataclass(frozen=True)
class Stored:
    """A file of a run: its name, its bytes and their checksum."""

    file: str
    bytes: Natural
    sha256: str


@check.checked
@dataclass(frozen=True)
class Kept:
    """Where a snapshot is stored.

    Attributes:
        round: of the snapshot.
        state: the global model and the server's memory; tensors that are the first snapshot's are only there.
        memories: of the clients that `clients` names. All others have those of the snapshot before.
        fresh: no client has a memory from before.
    """

    round: Natural
    state: Stored
    memories: Stored | None
    clients: tuple[int, ...]
    fresh: bool


@check.checked
@dataclass(frozen=True)
class Head:
    """What `run.json` says: everything but the records and where the snapshots are, which its journal says.

    Attributes:
        id: of the run, the same in all its life.
        fingerprints: of data, partition and architecture.
        tensors: name, dtype and shape of the model's tensors after the last round, in their order.
        journal: its file and how much of it counts; what a killed process wrote after that does not.
        torch, fedlab_core: the versions that wrote it last; "" of the latter in the first runs, which did not say.
    """

    id: str
    name: str
    parent: tuple[str, int] | None
    round: Natural
    fingerprints: Mapping[str, str]
    segments: tuple[Segment, ...]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    journal: Stored
    torch: str
    fedlab_core: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        segments = [
            {"start": s.start, "settings": s.settings.to_json(), "method": method_to_json(s.method)}
            for s in self.segments
        ]
        shallow = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "format": FORMAT,
            **shallow,
            "segments": segments,
            "journal": dataclasses.asdict(self.journal),
        }


@check.checked
def head_from_json(data: Mapping[str, Any], path: Path, methods: Methods = ()) -> Head:
    """The inverse of `Head.to_json`. Raises ValueError, which names the file, where anything is not as it must be."""
    names = ["format", *(field.name for field in dataclasses.fields(Head))]
    part = _Part({"fedlab_core": "", **data}, str(path), names)
    tensors = part.mapping("tensors", lambda value, where: _list(value, where, 2))
    return Head(
        id=part.match("id", r"[0-9a-f]{32}"),
        name=part.text("name"),
        parent=parent_from_json(data["parent"], f"{path}: parent"),
        round=part.whole("round"),
        fingerprints=part.mapping("fingerprints", lambda v, where: check.text(where, v)),
        segments=segments_from_json(data["segments"], path, methods),
        tensors={n: (check.text(f"{path}: dtype", d), _wholes(s, f"{path}: shape")) for n, (d, s) in tensors.items()},
        journal=stored_from_json(data["journal"], f"{path}: journal"),
        torch=part.text("torch"),
        fedlab_core=part.text("fedlab_core"),
    )


@check.checked
def parent_from_json(value: Any, where: str) -> tuple[str, int] | None:
    """Name and round of the run that a run was forked from. Raises ValueError, which says where."""
    if value is None:
        return None
    name, round = _list(value, where, 2)
    return check.text(where, name), check.whole(where, round, 0)


@check.checked
def segments_from_json(values: Any, path: Path, methods: Methods) -> tuple[Segment, ...]:
    """Settings and methods of a run. Raises ValueError, which says where."""
    segments = []
    for number, value in enumerate(_list(values, f"{path}: segments")):
        where = f"{path}: segments[{number}]"
        part = _Part(value, where, ["start", "settings", "method"])
        if unknown := _dict(value["settings"], where).keys() - {field.name for field in dataclasses.fields(Settings)}:
            raise ValueError(f"{where}: settings {sorted(unknown)} are unknown here")
        try:
            settings = Settings(**value["settings"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
        segments.append(Segment(part.whole("start"), settings, method_from_json(value["method"], where, methods)))
    starts = [segment.start for segment in segments]
    if not starts or starts[0] != 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
        raise ValueError(f"{path}: segments start at {starts}, accepted: ascending from 0")
    return tuple(segments)


@check.checked
def stored_from_json(value: Any, where: str) -> Stored:
    """The inverse of `dataclasses.asdict`. Raises ValueError, which says where."""
    part = _Part(value, where, ["file", "bytes", "sha256"])
    if not OURS.fullmatch(part.text("file")):
        raise check.refuse(f"{where}.file", value["file"], f"a name like {OURS.pattern}")
    return Stored(value["file"], part.whole("bytes"), part.match("sha256", r"[0-9a-f]{64}"))


@check.checked
def kept_to_json(kept: Kept) -> dict[str, Any]:
    """Plain data."""
    return dataclasses.asdict(kept)


def _kept(value: Any, where: str) -> Kept:
    part = _Part(value, where, [field.name for field in dataclasses.fields(Kept)])
    memories = None if value["memories"] is None else stored_from_json(value["memories"], f"{where}: memories")
    clients = _wholes(value["clients"], f"{where}: clients")
    if len(set(clients)) < len(clients) or bool(clients) != (memories is not None):
        raise ValueError(f"{where}: clients {clients} do not fit to their memories")
    state = stored_from_json(value["state"], f"{where}: state")
    return Kept(part.whole("round"), state, memories, clients, check.flag(f"{where}: fresh", value["fresh"]))


@check.checked
def read_journal(content: bytes, path: Path) -> tuple[list[Record], list[Kept], set[int]]:
    """What a journal says.

    Returns:
        The records; the snapshots, in order; and the rounds whose snapshot was thinned since.

    Raises:
        ValueError: a line is not as it must be; the message names the file and the line.
    """
    records: list[Record] = []
    kept: dict[int, Kept] = {}
    dropped: set[int] = set()
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{path}: line {number}"
        entry = parse(line, path)
        match sorted(entry):
            case ["record"]:
                records.append(record_from_json(entry["record"], where))
                check_follows(records, where)
            case ["kept"]:
                one = _kept(entry["kept"], where)
                if kept and one.round <= max(kept):
                    raise ValueError(f"{where}: the snapshot of round {one.round} comes after that of {max(kept)}")
                kept[one.round] = one
            case ["dropped"]:
                dropped |= set(_wholes(entry["dropped"], where))
            case names:
                raise ValueError(f"{where}: {names}, accepted: record, kept or dropped")
    if not kept or 0 not in kept.keys() - dropped or not dropped <= kept.keys():
        raise ValueError(f"{path}: the snapshot of round 0 is missing")
    return records, list(kept.values()), dropped


@check.checked
def record_from_json(value: Any, where: str) -> Record:
    """A record, strictly checked; what was not recorded when it was written has its default. Raises ValueError, which
    says where."""
    part = _Part(value, where, *_names(Record))
    lost = _dict(part.data.get("failed", {}), f"{where}: failed")
    return Record(
        round=part.whole("round"),
        lr=check.number(f"{where}: lr", value["lr"], 0),
        metrics=part.mapping("metrics", _float),
        costs=_costs(value["costs"], f"{where}: costs"),
        total=_costs(value["total"], f"{where}: total"),
        clients=[_client(row, f"{where}: clients") for row in _list(value["clients"], f"{where}: clients")],
        non_finite=list(_wholes(value.get("non_finite", []), f"{where}: non_finite")),
        failed={how: list(_wholes(clients, f"{where}: failed")) for how, clients in lost.items()},
        seconds=check.number(f"{where}: seconds", value.get("seconds", 0.0), 0),
        engine=check.text(f"{where}: engine", value.get("engine", "")),
    )


@check.checked
def check_follows(records: list[Record], where: str) -> None:
    """Raise ValueError unless the last record is that of the next round and its totals are right."""
    last = records[-1]
    if last.round != len(records) - 1:
        raise ValueError(f"{where}: the record of round {last.round} in the place of round {len(records) - 1}")
    before = records[-2].total if len(records) > 1 else Costs()
    if last.total != before + last.costs:
        raise ValueError(f"{where}: the costs of round {last.round} do not add up")


def _client(value: Any, where: str) -> dict[str, float]:
    row = _dict(value, where)
    return {n: v if type(v) is int else _float(v, f"{where}.{n}") for n, v in row.items()}


def _costs(value: Any, where: str) -> Costs:
    part = _Part(value, where, *_names(Costs))
    return Costs(**{name: part.whole(name) for name in part.data})


def _names(kind: type) -> tuple[list[str], list[str]]:
    """Names of a dataclass's fields: those that must be given, and those that have a default."""
    given = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    return given, [f.name for f in dataclasses.fields(kind) if f.name not in given]


def _float(value: Any, where: str) -> float:
    """A number; what is not finite is written as a text."""
    return float(value) if value in ("nan", "inf", "-inf") and type(value) is str else check.number(where, value)


def _dict(value: Any, where: str) -> dict[str, Any]:
    return check.instance(where, value, dict, "an object")


def _list(value: Any, where: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise check.refuse(where, value, f"a list{'' if length is None else f' of {length}'}")
    return value


def _wholes(value: Any, where: str) -> tuple[int, ...]:
    return tuple(check.whole(where, one, 0) for one in _list(value, where))


class _Part:
    """An object with these names, perhaps some of the optional ones, and no others; values are asked for by kind."""

    def __init__(self, data: Any, where: str, names: Iterable[str], optional: Iterable[str] = ()) -> None:
        self.data, self.where = _dict(data, where), where
        missing = sorted(set(names) - self.data.keys())
        extra = sorted(self.data.keys() - set(names) - set(optional))
        if missing or extra:
            raise ValueError(f"{where}: not complete, missing {missing}, unknown {extra}")

    def text(self, name: str) -> str:
        return check.text(f"{self.where}: {name}", self.data[name])

    def whole(self, name: str) -> int:
        return check.whole(f"{self.where}: {name}", self.data[name], 0, check.LARGEST)

    def match(self, name: str, pattern: str) -> str:
        if not re.fullmatch(pattern, self.text(name)):
            raise check.refuse(f"{self.where}: {name}", self.data[name], pattern)
        return self.data[name]

    def mapping(self, name: str, value: Callable[[Any, str], Any]) -> dict[str, Any]:
        where = f"{self.where}: {name}"
        return {key: value(one, f"{where}.{key}") for key, one in _dict(self.data[name], where).items()}
