"""Damaged files: saved runs, kept results of studies, starts, image caches."""

import hashlib
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from fedlab_core import files
from fedlab_core.data.cache import read_images, read_index, write_images, write_index
from fedlab_core.pretraining import kept
from fedlab_core.studies.record import recorded
from tools.faults.calls import Late, limited
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
    kept.write([folder], "key", kept.Start("start", dict(sorted(state.items())), {"kind": "test"}, 3, 100))


def _start_read(folder: Path) -> str:
    start = kept.read(folder / "key", "start")
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
LIMITED: Callable[[Callable[[], str]], str] = limited if sys.platform.startswith("linux") else lambda call: call()
"""Ends a reading that hangs, where the system can."""
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
    """So many damaged files, of each kind in turn; damage that changes no byte is drawn again."""
    table, draws = Table(), random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        whole = {}
        for kind, (make, read) in KINDS.items():
            make(Path(root, kind))
            whole[kind] = read(Path(root, kind))
        for number in range(count):
            kind = list(KINDS)[number % len(KINDS)]
            copy, how, changed = Path(root, "copy"), "", list[str]()
            while not changed:
                shutil.rmtree(copy, ignore_errors=True)
                shutil.copytree(Path(root, kind), copy, ignore=shutil.ignore_patterns("*.lock"))
                how, changed = _damage(copy, draws)
            table.add(kind, *_outcome(kind, copy, whole[kind], how, changed))
    return table


def _damage(folder: Path, draws: random.Random) -> tuple[str, list[str]]:
    """Damage a file of a folder, or exchange two.

    Returns:
        How, and the names of the files whose content is another one then.
    """
    files = {file: file.read_bytes() for file in sorted(folder.iterdir())}
    file, how = draws.choice([*files]), draws.choice([*DAMAGE, "gone", "swapped"])
    if how == "gone":
        file.unlink()
    elif how == "swapped":
        other = draws.choice([*files])
        file.write_bytes(files[other])
        other.write_bytes(files[file])
    else:
        file.write_bytes(DAMAGE[how](files[file], draws))
    return how, [f.name for f, content in files.items() if not f.exists() or f.read_bytes() != content]


def _outcome(kind: str, folder: Path, whole: str, how: str, changed: list[str]) -> tuple[str, str]:
    """How a damaged folder is read: an error or a warning has to name a file that was damaged."""
    example = f"{how} of {' and '.join(changed)}"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = LIMITED(lambda: KINDS[kind][1](folder))
    except Late:
        return "crash", f"{example}: no answer"
    except Exception as error:
        named = isinstance(error, ValueError | OSError) and any(name in str(error) for name in changed)
        return "clear" if named else "unclear", f"{example}: {error!r}"
    if found not in (whole, AGAIN.get(kind)):
        return "silent", example
    if kind == "start" and how != "gone" and found != whole:  # it is learnt again, which has to be said
        named = any(name in str(one.message) for one in said for name in changed)
        return "clear" if named else "silent", f"{example}: learnt again without a word"
    return "sound", example
