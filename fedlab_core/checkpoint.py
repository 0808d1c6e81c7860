"""Saving and loading runs: safetensors and JSON, nothing pickled, so that loading never runs code.

A run is a folder: `run.json` (settings, methods, records, checksums) and one `round-000012.safetensors` per kept
snapshot; parameters that are never trained are in the first one only. Every file is written under a temporary name and
renamed, snapshots before the `run.json` that names them: a process killed at any moment leaves the last complete run
behind.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from fedlab_core.data import Dataset
from fedlab_core.history import Past, Record, Segment
from fedlab_core.methods import METHODS, FedAvg, build_method
from fedlab_core.partition import Partition
from fedlab_core.settings import Settings
from fedlab_core.state import State, frozen_names
from fedlab_core.timeline import Snapshot, Timeline

FORMAT = 1
_CHECKSUMS: WeakKeyDictionary[Snapshot, str] = WeakKeyDictionary()  # snapshots never change, so each is hashed once


def write(past: Past, fingerprints: Mapping[str, str], folder: str | Path) -> None:
    """Write a run into a folder; snapshots that are there already are not written again.

    Args:
        fingerprints: of what the run was made with, see `fingerprints`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    snapshots, first = {}, past.timeline.at_or_before(0)
    for snapshot in past.timeline:
        checksum, content = _CHECKSUMS.get(snapshot), None
        if checksum is None:
            content = safetensors.torch.save(_to_tensors(snapshot, first))
            checksum = _CHECKSUMS[snapshot] = hashlib.sha256(content).hexdigest()
        file = folder / f"round-{snapshot.round:06d}-{checksum[:8]}.safetensors"
        if not file.exists():
            _write(file, content or safetensors.torch.save(_to_tensors(snapshot, first)))
        snapshots[str(snapshot.round)] = {"file": file.name, "sha256": checksum}
    run = {
        "format": FORMAT,
        "name": past.name,
        "parent": past.parent,
        "round": past.now.round,
        "fingerprints": dict(fingerprints),
        "segments": [
            {"start": s.start, "settings": s.settings.to_json(), "method": method_to_json(s.method)}
            for s in past.segments
        ],
        "snapshots": snapshots,
        "records": [record.to_json() for record in past.records],
        "torch": torch.__version__,
    }
    _write(folder / "run.json", json.dumps(run, allow_nan=False).encode())
    named = {entry["file"] for entry in snapshots.values()}
    for file in (*folder.glob("round-*"), *folder.glob("*.part")):  # thinned, or half-written by a killed process
        if file.name not in named:
            file.unlink(missing_ok=True)


def read(folder: str | Path, fingerprints: Mapping[str, str], names: Sequence[str], memory_mib: float = 512.0) -> Past:
    """Read a run back.

    Args:
        fingerprints: of what the run is to go on with, see `fingerprints`.
        names: of the model's tensors, in their order.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: a file is damaged (the message names it), or data, partition or architecture are not the run's.
    """
    folder = Path(folder)
    run = _read(folder / "run.json")
    if run.get("format") != FORMAT:
        raise ValueError(f"{folder / 'run.json'}: format {run.get('format')!r}, accepted: {FORMAT}")
    for part in ("name", "parent", "round", "fingerprints", "segments", "records"):
        if part not in run:
            raise ValueError(f"{folder / 'run.json'}: not a complete run, {part!r} is missing")
    for what, expected in fingerprints.items():
        if run["fingerprints"].get(what) != expected:
            raise ValueError(
                f"{what}: {expected} is not what the run in {folder} was made with: {run['fingerprints'].get(what)}"
            )
    try:
        segments = tuple(
            Segment(s["start"], Settings(**s["settings"]), build_method(s["method"]["name"], **s["method"]["options"]))
            for s in run["segments"]
        )
        device = segments[-1].settings.device
        records = tuple(Record.from_json(record) for record in run["records"])
        parent = tuple(run["parent"]) if run["parent"] else None
        entries = sorted((int(round), entry) for round, entry in run["snapshots"].items())
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder / 'run.json'}: not a complete run ({error!r})") from error
    timeline, starts = Timeline(int(memory_mib * 2**20)), {segment.start for segment in segments}
    for round, entry in entries:
        tensors = _read_tensors(folder / entry["file"], entry["sha256"], device)
        first = timeline.at_or_before(0) if round else None
        snapshot = _from_tensors(round, tensors, names, first)
        _CHECKSUMS[snapshot] = entry["sha256"]
        timeline = timeline.added(snapshot, pin=round in starts)
    if timeline.last.round != run["round"]:
        raise ValueError(f"{folder / 'run.json'}: the snapshot of round {run['round']} is missing")
    return Past(run["name"], parent, segments, records, timeline)


def method_to_json(method: FedAvg) -> dict[str, Any]:
    """Name and options of a method, as `build_method` takes them."""
    return {"name": next(name for name, kind in METHODS.items() if kind is type(method)), "options": asdict(method)}


def fingerprints(dataset: Dataset, partition: Partition, model: nn.Module) -> dict[str, str]:
    """What tells data, partition and architecture from others."""
    shapes = repr([(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()])
    frozen = sorted(frozen_names(model))
    return {
        "dataset": dataset.fingerprint,
        "partition": partition.fingerprint,
        "model": hashlib.sha256((shapes + (repr(frozen) if frozen else "")).encode()).hexdigest()[:16],
    }


def _to_tensors(snapshot: Snapshot, first: Snapshot) -> State:
    known = {} if snapshot is first else first.state
    parts = {"state": {n: t for n, t in snapshot.state.items() if known.get(n) is not t}, "server": snapshot.server}
    parts |= {f"client-{client}": memory for client, memory in snapshot.clients.items()}
    return {
        f"{part}/{n}": t.cpu().clone(memory_format=torch.contiguous_format)
        for part, tensors in parts.items()
        for n, t in tensors.items()
    }


def _from_tensors(round: int, tensors: State, order: Iterable[str], first: Snapshot | None) -> Snapshot:
    state: State = dict(first.state) if first else {}
    server: State = {}
    clients: dict[int, State] = {}
    for key, tensor in tensors.items():
        part, name = key.split("/", 1)
        if part.startswith("client-"):
            clients.setdefault(int(part.removeprefix("client-")), {})[name] = tensor
        else:
            (state if part == "state" else server)[name] = tensor
    return Snapshot(round, {name: state[name] for name in order}, server, dict(sorted(clients.items())))


def _read_tensors(file: Path, checksum: str, device: str) -> State:
    if not file.exists():
        raise ValueError(f"{file}: missing, though run.json names it")
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != checksum:
        raise ValueError(f"{file}: damaged, its checksum is not the one in run.json")
    try:
        return {name: tensor.to(device) for name, tensor in safetensors.torch.load(content).items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: not a safetensors file ({error})") from error


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"{file}: no run is saved there")
    try:
        run = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: damaged, not readable as JSON ({error})") from error
    if not isinstance(run, dict) or not isinstance(run.get("snapshots"), dict):
        raise ValueError(f"{file}: not a saved run, it has no snapshots")
    return run


def _write(file: Path, content: bytes) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    with part.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
