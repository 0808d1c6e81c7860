"""Damaged files: saved runs, kept results of studies, starts, image caches."""

import hashlib
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from fedlab_core import files
from fedlab_core.data.cache import read_images, read_index, write_images, write_index
from fedlab_core.pretraining import starts
from fedlab_core.studies.record import recorded
from tools.faults.small import ROUNDS, load, run_on, small_data, small_run
from tools.faults.table import Table


def _run(folder: Path) -> None:
    run_on(folder, ROUNDS // 2)


def _run_read(folder: Path) -> str:
    federation = load(folder)
    states = [federation.state_at(t) for t in range(federation.round + 1)]
    states += [federation.client_state(c) for c in range(len(federation.partition))]
    content = b"".join(safetensors.torch.save(state) for state in states) + repr(federation.past.records).encode()
    return hashlib.sha256(content + repr((federation.name, federation.segments)).encode()).hexdigest()


def _record(folder: Path) -> None:
    content = {"curve": [0.5, 0.75, 0.875], "seeds": [0, 1, 2], "name": "FedAvg"}
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / "accuracy.json", files.seal(content))


def _record_read(folder: Path) -> str:
    return repr(recorded("accuracy", folder))


def _start(folder: Path) -> None:
    state = small_run().state
    starts.write([folder], "key", starts.Start("start", dict(sorted(state.items())), {"kind": "test"}, 3, 100))


def _start_read(folder: Path) -> str:
    start = starts.read(folder / "key", "start")
    if start is None:  # it would be learnt again
        return "learnt again"
    return repr((start.fingerprint, start.recipe, start.rounds, start.bytes))


def _images(number: int) -> tuple[torch.Tensor, tuple[float, ...], tuple[float, ...]]:
    return small_data().x.roll(number, 0), (0.25,), (0.5,)


def _cache(folder: Path) -> None:
    for number in (0, 1):
        write_images([folder], f"images{number}", _images(number))
        write_index([folder], f"listing{number}", f"images{number}")


def _cache_read(folder: Path) -> str:
    """What two data sets find in the cache; what is damaged counts as absent, and is decoded again."""
    found = []
    for number in (0, 1):
        content = read_index([folder], f"listing{number}")
        pixels, *rest = (content and read_images([folder], content)) or _images(number)
        found.append((hashlib.sha256(pixels.numpy().tobytes()).hexdigest(), rest))
    return repr(found)


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], str]]] = {
    "saved run": (_run, _run_read),
    "kept result": (_record, _record_read),
    "start": (_start, _start_read),
    "image cache": (_cache, _cache_read),
}
AGAIN = {"start": "learnt again", "kept result": "None"}  # what is missing may also be made anew


def _flip(content: bytes, draws: random.Random) -> bytes:
    at = draws.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draws.randrange(8))]) + content[at + 1 :]


def _digit(content: bytes, draws: random.Random) -> bytes:
    places = [k for k, byte in enumerate(content) if 48 <= byte <= 57] or [0]
    at = draws.choice(places)
    return content[:at] + draws.choice(b"0123456789-eE.").to_bytes() + content[at + 1 :]


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit": _flip,
    "cut": lambda content, draws: content[: draws.randrange(len(content))],
    "digit": _digit,
    "zeros": lambda content, draws: (
        content[: (at := draws.randrange(len(content)))] + bytes(min(64, len(content) - at)) + content[at + 64 :]
    ),
    "longer": lambda content, draws: content + draws.randbytes(draws.randrange(1, 50)),
    "doubled": lambda content, draws: content + content,
    "lost lines": lambda content, draws: b"\n".join(content.split(b"\n")[: -draws.randrange(1, 4)]),
    "empty": lambda content, draws: b"",
}


def corruptions(count: int, seed: int = 0) -> Table:
    """So many damaged files, taken in turn."""
    table, draws = Table(), random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        whole = {}
        for kind, (make, read) in KINDS.items():
            make(Path(root, kind))
            whole[kind] = read(Path(root, kind))
        for number in range(count):
            kind = list(KINDS)[number % len(KINDS)]
            copy = Path(root, "copy")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(Path(root, kind), copy, ignore=shutil.ignore_patterns("*.lock"))
            files = sorted(copy.iterdir())
            file = draws.choice(files)
            content = file.read_bytes()
            how = draws.choice([*DAMAGE, "gone", "swapped"])
            if how == "gone":
                file.unlink()
            elif how == "swapped":
                other = draws.choice(files)
                other_content = other.read_bytes()
                file.write_bytes(other_content)
                other.write_bytes(content)
            else:
                file.write_bytes(DAMAGE[how](content, draws))
            example = f"{how} of {file.name}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = KINDS[kind][1](copy)
            except (ValueError, OSError) as error:
                named = any(f.name in str(error) for f in files)
                table.add(kind, "clear" if named else "unclear", f"{example}: {error!r}")
            except Exception as error:
                table.add(kind, "unclear", f"{example}: {error!r}")
            else:
                good = found in (whole[kind], AGAIN.get(kind))
                table.add(kind, "sound" if good else "silent", example)
    return table
