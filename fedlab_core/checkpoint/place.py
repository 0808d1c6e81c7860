"""What stands in the folder of a run, as far as this process wrote or read it."""

import dataclasses
import hashlib
import operator
import os
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedlab_core import files
from fedlab_core.check import Natural, checked
from fedlab_core.checkpoint.manifest import Kept, Stored
from fedlab_core.history import Record
from fedlab_core.state import State
from fedlab_core.timeline import Snapshot

HEAD, LOCK = "run.json", "run.lock"
MOST = 2**28  # bytes of a run.json; a real one has some thousands
file_stat = operator.attrgetter("st_size", "st_mtime_ns")
"""What shows that a file may have changed: its size, and when it was last written."""


@checked
@dataclass
class Place:
    """What stands in a folder, as far as this process wrote or read it.

    Attributes:
        head: the bytes of `run.json`.
        journal: its file; None if the next save begins one.
        records, last: how many it holds, and the last of them.
        kept: snapshots in their order, also thinned ones whose clients' memories later ones need.
        dropped: rounds of the thinned ones.
        snapshots: those in `kept`, while they live.
        clients: the memories after the last snapshot.
        seen: size and time of the last change of every file.
        swept: whether what a killed process left behind has been removed.
    """

    head: bytes = b""
    journal: Stored | None = None
    records: Natural = 0
    last: Record | None = None
    kept: list[Kept] = dataclasses.field(default_factory=list)
    dropped: set[int] = dataclasses.field(default_factory=set)
    snapshots: dict[int, weakref.ref[Snapshot]] = dataclasses.field(default_factory=dict)
    clients: Mapping[int, State] = dataclasses.field(default_factory=dict)
    seen: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    swept: bool = False


@checked
def damaged_files(folder: Path, place: Place) -> set[str]:
    """Names of the saved files that are no longer what was written; only files that changed are read."""
    with os.scandir(folder) as entries:
        found = {e.name: file_stat(e.stat(follow_symlinks=False)) for e in entries if e.name in place.seen}
    stored = {one.file: one for one in stored_files(place)}
    damaged = set()
    for name in place.seen.keys() - {n for n, seen in found.items() if seen == place.seen[n]}:
        try:
            (read_journal_bytes if stored[name] is place.journal else read_bytes)(folder, stored[name])
            place.seen[name] = found[name]
        except (OSError, ValueError):
            warn(folder / name, "was damaged")
            damaged.add(name)
    return damaged


@checked
def stored_files(place: Place) -> list[Stored]:
    """The files that a folder's run still needs, without `run.json`."""
    needed = needed_memories(place.kept, place.dropped)
    states = [one.state for one in place.kept if one.round not in place.dropped]
    memories = [one.memories for one in place.kept if one.memories and one.round in needed]
    return [*states, *memories, *([place.journal] if place.journal else [])]


@checked
def needed_memories(kept: Sequence[Kept], dropped: set[int]) -> set[int]:
    """Rounds whose stored memories belong to a snapshot that is not thinned: their own or a later one."""
    needed: set[int] = set()
    newer: set[int] | None = None  # clients that have a newer memory at the next snapshot; None: no one asks
    for one in reversed(kept):
        if one.round not in dropped:
            newer = set()
        if newer is not None and not newer.issuperset(one.clients):
            needed.add(one.round)
        if newer is not None:
            newer = None if one.fresh else newer.union(one.clients)
    return needed


@checked
def sha256(content: bytes) -> str:
    """The checksum of a file, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


@checked
def chain(checksum: str, content: bytes) -> str:
    """The checksum of a journal, from that of its beginning and the lines that follow."""
    for line in content.splitlines(keepends=True):
        checksum = sha256(checksum.encode() + line)
    return checksum


@checked
def warn(path: Path, what: str) -> None:
    """Say that a file is written again, and why."""
    warnings.warn(f"{path}: {what} since it was saved; it is written again", RuntimeWarning, stacklevel=6)


@checked
def read_bytes(folder: Path, stored: Stored) -> bytes:
    """A file of a run, as it was written. Raises ValueError, which names it, where it is not."""
    path = folder / stored.file
    try:
        content = files.read(path, stored.bytes)
    except FileNotFoundError:
        raise ValueError(f"{path}: missing, though the run names it") from None
    if len(content) != stored.bytes or sha256(content) != stored.sha256:
        raise ValueError(f"{path}: damaged, its checksum is not the one of the run")
    return content


@checked
def read_journal_bytes(folder: Path, stored: Stored) -> bytes:
    """The part of a journal that counts. Raises ValueError, which names it, where it is not what was written."""
    path = folder / stored.file
    try:
        content = files.read(path, first=stored.bytes)
    except FileNotFoundError:
        raise ValueError(f"{path}: missing, though the run names it") from None
    if len(content) != stored.bytes or chain("", content) != stored.sha256:
        raise ValueError(f"{path}: damaged, its checksum is not the one of the run")
    return content


@checked
def place_key(folder: Path) -> str:
    """The key under which a run keeps what it knows of a folder."""
    return str(folder.resolve())
