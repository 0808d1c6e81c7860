"""Reading a run back: everything is checked against its checksum and for what it says, and no code is run."""

import hashlib
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fedlab_core import files
from fedlab_core.check import checked
from fedlab_core.checkpoint.manifest import (
    FORMAT,
    Head,
    Stored,
    head_from_json,
    read_journal,
)
from fedlab_core.checkpoint.place import (
    HEAD,
    MOST,
    Place,
    file_stat,
    needed_memories,
    place_key,
    read_bytes,
    read_journal_bytes,
    stored_files,
)
from fedlab_core.data import Dataset
from fedlab_core.history import Past, Segment
from fedlab_core.methods.saving import Methods
from fedlab_core.partition import Partition
from fedlab_core.state import State, frozen_names, tensors
from fedlab_core.timeline import Snapshot, Timeline


@checked
def fingerprints(dataset: Dataset, partition: Partition, model: nn.Module) -> dict[str, str]:
    """What tells data, partition and architecture from others."""
    shapes = repr([(n, tuple(t.shape)) for n, t in tensors(model).items()])
    frozen = sorted(frozen_names(model))
    return {
        "dataset": dataset.fingerprint,
        "partition": partition.fingerprint,
        "model": hashlib.sha256((shapes + (repr(frozen) if frozen else "")).encode()).hexdigest()[:16],
    }


@checked
def read_run(
    folder: str | Path,
    about: Mapping[str, str],
    names: Sequence[str],
    *,
    methods: Methods = (),
    device: str | None = None,
    engine: str | None = None,
    memory_mib: float = 512.0,
) -> Past:
    """Read a run back.

    Args:
        about: of what the run is to go on with, see `fingerprints`.
        names: of the model's tensors, in their order.
        methods: classes of one's own methods.
        device, engine: where to go on; None for where the run was.
        memory_mib: limit of the kept snapshots.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: a file is damaged (the message names it), or data, partition or architecture are not the run's.
    """
    folder = Path(folder)
    for attempt in range(5):
        head = _head(folder)
        try:
            return _read(folder, head, about, names, methods, device, engine, int(memory_mib * 2**20))
        except ValueError:
            if attempt == 4 or _head(folder) == head:
                raise  # else another process saved meanwhile, and has removed a file
    raise AssertionError


def _head(folder: Path) -> bytes:
    try:
        return files.read(folder / HEAD, MOST)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder / HEAD}: no run is saved there") from None


def _read(
    folder: Path,
    content: bytes,
    about: Mapping[str, str],
    names: Sequence[str],
    methods: Methods,
    device: str | None,
    engine: str | None,
    limit: int,
) -> Past:
    path, place = folder / HEAD, Place(head=content)
    format = files.parse(content, path).get("format")
    if format != FORMAT:
        why = "; runs of fedlab_core 0.1 carry no checksum over what they say: run it again" if format == 1 else ""
        raise ValueError(f"{path}: format {format!r}, accepted: {FORMAT}{why}")
    head = head_from_json(files.unseal(content, path), path, methods)
    _check_made_with(about, head.fingerprints, folder)
    head = replace(head, segments=_moved(head.segments, head.round, device, engine, path))
    past = _run(folder, head, names, limit, place)
    return replace(past, places={place_key(folder): place})


def _check_made_with(about: Mapping[str, str], made_with: Mapping[str, str], folder: Path) -> None:
    for what, expected in about.items():
        if made_with.get(what) != expected:
            raise ValueError(f"{what}: {expected} is not what the run in {folder} was made with: {made_with.get(what)}")


def _moved(
    segments: Sequence[Segment], round: int, device: str | None, engine: str | None, path: Path
) -> tuple[Segment, ...]:
    """The segments with another device and engine, where these are given."""
    last = segments[-1]
    if last.start > round:
        raise ValueError(f"{path}: a segment starts at round {last.start}, after {round}, the last")
    if engine is None and ":" in last.settings.engine:
        raise ValueError(
            f"engine={last.settings.engine!r} is the address where the run of {path} was; it is contacted only if "
            "load(..., engine=...) names it; engine='loop' goes on here"
        )
    device, engine = device or last.settings.device, engine or last.settings.engine
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} is not on this machine, accepted: load(..., device='cpu')") from error
    return tuple(replace(s, settings=s.settings.replace(device=device, engine=engine)) for s in segments)


def _run(folder: Path, head: Head, names: Sequence[str], limit: int, place: Place) -> Past:
    path = folder / head.journal.file
    if list(head.tensors) != list(names):
        raise ValueError(f"{folder / HEAD}: its tensors {list(head.tensors)} are not the model's {list(names)}")
    records, kept, dropped = read_journal(read_journal_bytes(folder, head.journal), path)
    if kept[-1].round != head.round or kept[-1].round in dropped:
        raise ValueError(f"{path}: the snapshot of round {head.round} is missing")
    if len(records) != head.round + 1 and (records or head.round):
        raise ValueError(f"{path}: {len(records)} records, round {head.round} needs {head.round + 1}")
    needed = needed_memories(kept, dropped)
    starts, device = {segment.start for segment in head.segments}, head.segments[-1].settings.device
    timeline = Timeline(limit)
    clients: dict[int, State] = {}
    for one in kept:
        clients = {} if one.fresh else clients
        if one.memories is not None and one.round in needed:
            clients = clients | _memories(folder, one.memories, one.clients, device)
        if one.round not in dropped:
            first = timeline.at_or_before(0).state if one.round else {}
            state, server = _state(folder, one.state, first, head, device)
            if one.round == head.round:
                _check_dtypes(folder, one.state, state, head)
            timeline = timeline.added(Snapshot(one.round, state, server, clients), pin=one.round in starts)
    place.journal, place.records, place.last = head.journal, len(records), records[-1] if records else None
    place.kept = [one for one in kept if one.round not in dropped or one.round in needed]
    place.dropped = dropped & needed
    place.snapshots = {snapshot.round: weakref.ref(snapshot) for snapshot in timeline}
    place.clients = timeline.last.clients
    place.seen = {one.file: file_stat(os.lstat(folder / one.file)) for one in stored_files(place)}
    return Past(head.name, head.parent, head.segments, tuple(records), timeline, id=head.id)


def _tensors(folder: Path, stored: Stored, device: str) -> State:
    content = read_bytes(folder, stored)
    try:
        return {name: tensor.to(device) for name, tensor in safetensors.torch.load(content).items()}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / stored.file}: not a safetensors file ({error})") from error


def _state(folder: Path, stored: Stored, first: State, head: Head, device: str) -> tuple[State, State]:
    """The global model and the server's memory of a snapshot."""
    path = folder / stored.file
    state: State = dict(first)
    server: dict[int, tuple[str, Tensor]] = {}
    for key, tensor in _tensors(folder, stored, device).items():
        part, _, name = key.partition("/")
        if part == "state":
            state[name] = tensor
        elif part == "server":
            place, name = _place(name, path)
            server[place] = name, tensor
        else:
            raise ValueError(f"{path}: {key!r} is neither of the state nor of the server")
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}  # a fork may compute in another precision
    if found != {name: shape for name, (_, shape) in head.tensors.items()}:
        raise ValueError(f"{path}: its tensors are not those that {HEAD} lists")
    return {name: state[name] for name in head.tensors}, dict(server[place] for place in sorted(server))


def _check_dtypes(folder: Path, stored: Stored, state: State, head: Head) -> None:
    """Let the last snapshot have the types that the head says; a fork may have computed in others before."""
    for name, (dtype, _) in head.tensors.items():
        if str(state[name].dtype) != dtype:
            raise ValueError(f"{folder / stored.file}: {name} is {state[name].dtype}, {folder / HEAD} says {dtype!r}")


def _memories(folder: Path, stored: Stored, clients: Sequence[int], device: str) -> dict[int, State]:
    """What clients keep, by their number."""
    path = folder / stored.file
    found: dict[int, dict[int, tuple[str, Tensor]]] = {client: {} for client in clients}
    for key, tensor in _tensors(folder, stored, device).items():
        client, key = _place(key, path)
        place, name = _place(key, path)
        if client not in found:
            raise ValueError(f"{path}: client {client} is none of those that the run names")
        found[client][place] = name, tensor
    return {client: dict(memory[place] for place in sorted(memory)) for client, memory in found.items()}


def _place(key: str, path: Path) -> tuple[int, str]:
    number, _, rest = key.partition("/")
    if not number.isdecimal():
        raise ValueError(f"{path}: {key!r} does not begin with a number")
    return int(number), rest
