"""Writing a run into its folder: what is new, and `run.json` last."""

import contextlib
import json
import os
import re
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fedlab_core import files
from fedlab_core.about import version
from fedlab_core.check import checked
from fedlab_core.checkpoint.manifest import OURS, Head, Kept, Stored, kept_to_json, read_journal, stored_from_json
from fedlab_core.checkpoint.place import (
    HEAD,
    LOCK,
    MOST,
    Place,
    chain,
    damaged_files,
    file_stat,
    needed_memories,
    place_key,
    read_journal_bytes,
    sha256,
    stored_files,
    warn,
)
from fedlab_core.history import Past
from fedlab_core.memory import fits, packed
from fedlab_core.state import State
from fedlab_core.timeline import Snapshot

_NOTE = "A run of fedlab_core is saved in this folder. The lock on this file is held while it is written.\n"


@checked
def write_run(past: Past, about: Mapping[str, str], folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a run into a folder; of a run that is there already, only what is new.

    A file that was damaged since the last save is written again, with a warning.

    Args:
        about: of what the run was made with, see `read.fingerprints`.
        overwrite: also into a folder that holds another run, which is replaced, or other files, which stay.

    Raises:
        ValueError: the folder holds another run, rounds of this run that `past` does not have, or other files; or a
            method has options that cannot be saved. Nothing has been written then.
        OSError: a file cannot be written; the error names it, and the folder holds what it held before.
        TimeoutError: another process is writing there.
    """
    folder = Path(folder)
    if not overwrite:
        _refuse_foreign(folder)
    with files.named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with files.locked(folder / LOCK, _NOTE):
        old = _standing(past, folder, overwrite)
        new = _store(past, about, folder, old)
        past.places[place_key(folder)] = new
        _tidy(folder, old, new)


def _refuse_foreign(folder: Path) -> None:
    if not folder.is_dir() or (folder / HEAD).exists() or (folder / LOCK).exists():
        return
    foreign = sorted(file.name for file in folder.iterdir() if not OURS.fullmatch(file.name))
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(
            f"folder={str(folder)!r}: holds {foreign[:3]}{more}, accepted: a new or empty folder, or overwrite=True, "
            "which leaves these files alone"
        )


def _standing(past: Past, folder: Path, overwrite: bool) -> Place:
    """What of the folder's content the run goes on from; an empty place if everything is to be written anew.

    Raises:
        ValueError: the folder holds what would be lost.
    """
    place, path = past.places.get(place_key(folder)), folder / HEAD
    try:
        head = files.read(path, MOST)
    except FileNotFoundError:
        if place is not None:
            warn(path, "is gone")
        return Place()
    if place is not None and head == place.head:
        damaged = damaged_files(folder, place)
        goes_on = _goes_on(past, place)
        if goes_on and not damaged:
            return place
        if goes_on or overwrite or any(record is place.last for record in past.withdrawn):
            return Place(seen={name: seen for name, seen in place.seen.items() if name not in damaged})
    if overwrite:
        return Place()
    try:
        there = files.unseal(head, path)
        journal = stored_from_json(there.get("journal"), f"{path}: journal")
    except ValueError:
        if place is not None:
            warn(path, "was damaged")
            return Place()
        raise _refusal(folder, "a damaged run, or one of an earlier version") from None
    if there.get("id") != past.id:
        raise _refusal(folder, f"another run, {there.get('name')!r} with {there.get('round')} rounds")
    records, _, _ = read_journal(read_journal_bytes(folder, journal), folder / journal.file)
    if list(past.records[: len(records)]) != records:
        raise _refusal(folder, f"{len(records) - 1} rounds of this run, saved elsewhere; this one does not have them")
    return Place()


def _refusal(folder: Path, what: str) -> ValueError:
    return ValueError(
        f"folder={str(folder)!r}: holds {what}, accepted: a new folder, the run's own, or overwrite=True; "
        "Federation.load goes on with a saved run"
    )


def _goes_on(past: Past, place: Place) -> bool:
    """Whether what is saved is the beginning of the run, so that only new lines and files are needed."""
    if place.records and (len(past.records) < place.records or past.records[place.records - 1] is not place.last):
        return False
    here = {snapshot.round: snapshot for snapshot in past.timeline}
    last = max(place.snapshots, default=-1)
    return all(here[r] is place.snapshots[r]() if r in place.snapshots else r > last for r in here)


def _store(past: Past, about: Mapping[str, str], folder: Path, old: Place) -> Place:
    """Write what the run has and the folder has not, `run.json` last."""
    seen, clients = dict(old.seen), old.clients
    lines: list[dict[str, Any]] = [{"record": record.to_json()} for record in past.records[old.records :]]
    gone = {one.round for one in old.kept} - old.dropped - {*past.timeline.rounds()}
    if gone:
        lines.append({"dropped": sorted(gone)})
    kept, first = list(old.kept), past.timeline.at_or_before(0)
    for snapshot in past.timeline:
        if snapshot.round not in old.snapshots:
            kept.append(_store_snapshot(folder, snapshot, first, clients, seen))
            lines.append({"kept": kept_to_json(kept[-1])})
            clients = snapshot.clients
    tensors = {n: (str(t.dtype), tuple(t.shape)) for n, t in past.now.state.items()}
    content = b"".join(json.dumps(line, allow_nan=False).encode() + b"\n" for line in lines)
    start = old.journal or Stored(f"journal-{uuid.uuid4().hex[:8]}.jsonl", 0, "")
    journal = Stored(start.file, start.bytes + len(content), chain(start.sha256, content))
    made_with = torch.__version__, version()
    about_run = Head(
        past.id, past.name, past.parent, past.now.round, dict(about), past.segments, tensors, journal, *made_with
    )
    head = files.seal(about_run.to_json())
    if content:
        files.append(folder / journal.file, start.bytes, content)
        seen[journal.file] = file_stat(os.lstat(folder / journal.file))
    if head != old.head:
        files.write(folder / HEAD, head)
    dropped = old.dropped | gone
    needed = needed_memories(kept, dropped)
    kept = [one for one in kept if one.round not in dropped or one.round in needed]
    dropped &= {one.round for one in kept}
    snapshots = {snapshot.round: weakref.ref(snapshot) for snapshot in past.timeline}
    last = past.records[-1] if past.records else None
    new = Place(head, journal, len(past.records), last, kept, dropped, snapshots, past.now.clients, seen)
    names = {one.file for one in stored_files(new)}
    new.seen, new.swept = {name: stat for name, stat in seen.items() if name in names}, True
    return new


def _store_snapshot(
    folder: Path, snapshot: Snapshot, first: Snapshot, before: Mapping[int, State], seen: dict[str, tuple[int, int]]
) -> Kept:
    known = {} if snapshot is first else first.state
    state = {f"state/{n}": t for n, t in snapshot.state.items() if known.get(n) is not t}
    state |= {f"server/{i}/{n}": t for i, (n, t) in enumerate(snapshot.server.items())}
    fresh = not before.keys() <= snapshot.clients.keys()
    changed = {c: m for c, m in snapshot.clients.items() if fresh or m is not before.get(c)}
    memories = {f"{c}/{i}/{n}": t for c, memory in changed.items() for i, (n, t) in enumerate(memory.items())}
    return Kept(
        snapshot.round,
        _put(folder, f"round-{snapshot.round:06d}", state, seen),
        _put(folder, f"clients-{snapshot.round:06d}", memories, seen) if changed else None,
        tuple(changed),
        fresh,
    )


def _put(folder: Path, stem: str, tensors: State, seen: dict[str, tuple[int, int]]) -> Stored:
    try:
        with fits(file=str(folder / stem)):
            plain = {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
            content = packed(plain)
    except (KeyError, ValueError, SafetensorError) as error:
        kinds = sorted({str(t.dtype) for t in tensors.values()})
        raise ValueError(f"{folder / stem}: tensors of {kinds} cannot be saved ({error!r})") from error
    checksum = sha256(content)
    path = folder / f"{stem}-{checksum[:8]}.safetensors"
    if path.name not in seen:  # what is there unseen may be half of it
        files.write(path, content)
        seen[path.name] = file_stat(os.lstat(path))
    return Stored(path.name, len(content), checksum)


def _tidy(folder: Path, old: Place, new: Place) -> None:
    """Remove the run's own files that are no longer named, and what a killed process left half-written."""
    for name in old.seen.keys() - new.seen.keys():
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    if old.swept:
        return
    part = re.compile(files.PART)
    for file in folder.iterdir():
        if (OURS.fullmatch(file.name) and file.name not in new.seen) or part.fullmatch(file.name):
            with contextlib.suppress(OSError):
                file.unlink()
