"""Files that are whole or absent: one way to write them, and one to read what may be damaged, forged or no file."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedlab_core.check import Depth, Natural, checked, refuse

PART = r"\.[^/]+\.[0-9a-f]{32}\.part"
"""How a file that is being written is called: a regular expression."""
_SEAL = ', "sha256": "'


@checked
@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """A new name beside `path`, for a file that takes its place when the block ends well and vanishes when it does not.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with named(path, part):
            yield part
            os.replace(part, path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@checked
def write(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever looks sees the old content or the new one, also after a loss of power."""
    with published(path) as part, part.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@checked
def between(text: str, begin: str, end: str, lines: Sequence[str]) -> str:
    """A page with other lines from a mark to the next end mark, both of which stay.

    Raises:
        ValueError: one of the marks is missing.
    """
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise ValueError(f"text: lacks the mark {(end if found else begin)!r}, accepted: a page that has both marks")
    return before + "\n".join([begin, *lines, end]) + after


@checked
def append(path: Path, at: Natural, content: bytes) -> None:
    """Write content at a position of a file and cut off what stood after it."""
    with named(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        with os.fdopen(descriptor, "r+b") as stream:
            stream.truncate(at)
            stream.seek(at)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())


@checked
def read(path: Path, most: Natural = 2**36, first: Natural | None = None) -> bytes:
    """The content of a regular file, or its first bytes.

    Raises:
        OSError: it is not there or cannot be read; the error names it.
        ValueError: it is a link, a pipe, a device or a folder, or holds more than `most` bytes. Nothing is read then.
    """
    with named(path):
        _check(path, os.lstat(path), most)  # before opening: opening a pipe would wait for a writer
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
        with os.fdopen(descriptor, "rb") as stream:
            info = os.fstat(descriptor)
            _check(path, info, most)
            return stream.read(info.st_size if first is None else min(first, info.st_size))


def _check(path: Path, info: os.stat_result, most: int) -> None:
    if not stat.S_ISREG(info.st_mode):
        kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder"}
        raise ValueError(f"{path}: {kinds.get(stat.S_IFMT(info.st_mode), 'a device')}, accepted: a regular file")
    if info.st_size > most:
        raise ValueError(f"{path}: {info.st_size} bytes, accepted: at most {most}")


_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"))


@checked
@contextlib.contextmanager
def named(path: Path, part: Path | None = None) -> Iterator[None]:
    """Let whatever the system says of a file name it: a full disk does not by itself, nor does a lack of memory.

    Args:
        part: another file that stands for it.
    """
    try:
        yield
    except MemoryError:
        raise MemoryError(f"{path}: there is not enough memory") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"{path}: a link, accepted: a regular file") from error
        if error.errno is None or error.filename not in (None, part and str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@checked
def inside(path: Path, folder: Path, remedy: str) -> None:
    """Let links lead to other places of a folder, nowhere else; the folder itself may be one. A path that is not below
    the folder by its name was given as such, and passes.

    Raises:
        ValueError: a link on the way leads out; names it, its target and the remedy.
    """
    root, real = Path(os.path.abspath(folder)), Path(os.path.realpath(folder))
    way = Path(os.path.abspath(path))
    if not way.is_relative_to(root) or Path(os.path.realpath(way)).is_relative_to(real):
        return
    below = [one for one in (*reversed(way.parents), way) if one.is_relative_to(root) and one != root]
    link = next(one for one in below if not Path(os.path.realpath(one)).is_relative_to(real))
    raise ValueError(f"{link} is a link to {os.path.realpath(link)}, outside of {folder}: {remedy}")


@checked
def expanded(name: str, path: str | Path) -> Path:
    """A path with "~" replaced by the home folder.

    Raises:
        ValueError: there is no home folder; the message names the argument.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise refuse(name, str(path), "a path without ~, since there is no home folder") from None


@checked
def seal(data: dict[str, Any], indent: Depth | None = None) -> bytes:
    """Plain data as JSON that ends with the checksum of all before it."""
    text = json.dumps(data, indent=indent, allow_nan=False)[:-1].rstrip().encode()
    return text + f'{_SEAL}{hashlib.sha256(text).hexdigest()}"}}\n'.encode()


@checked
def unseal(content: bytes, path: Path) -> dict[str, Any]:
    """The data that `seal` wrote.

    Raises:
        ValueError: a byte of it has changed; the message names the file.
    """
    text, end = content[: -len(_SEAL) - 67], content[-len(_SEAL) - 67 :]
    if end != f'{_SEAL}{hashlib.sha256(text).hexdigest()}"}}\n'.encode():
        raise ValueError(f"{path}: damaged, its checksum is wrong")
    return parse(text + b"}", path)


@checked
def parse_any(content: bytes, path: Path) -> Any:
    """JSON, read strictly; the seal of an object, if it has one, is checked and taken off.

    Raises:
        ValueError: not JSON, a name given twice, a number that JSON does not know, or a wrong seal; names the file.
    """
    try:
        data = json.loads(content, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not readable as JSON ({error})") from None
    sealed = isinstance(data, dict) and ("sha256" in data or re.search(rb'"[0-9a-f]{64}"\}\s*$', content))
    return unseal(content, path) if sealed else data


@checked
def parse(content: bytes, path: Path) -> dict[str, Any]:
    """A JSON object, read as `parse_any` does. Raises ValueError, which names the file, also where it is none."""
    data = parse_any(content, path)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: damaged, holds a {type(data).__name__}, accepted: an object")
    return data


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        raise ValueError("a name is given twice")
    return data


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


@checked
@contextlib.contextmanager
def locked(path: Path, note: str, seconds: float = 20.0) -> Iterator[None]:
    """Hold a lock file, made if it is not there. The system frees it when the process ends, whatever ends it.

    Args:
        note: written into a new lock file, for people who find it.

    Raises:
        TimeoutError: another process has held it for so many seconds.
    """
    with named(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
    try:
        deadline = time.monotonic() + seconds
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path}: another process has held this lock for {seconds:g} s")
            time.sleep(0.01)
        if not os.fstat(descriptor).st_size:
            with named(path):
                os.write(descriptor, note.encode())
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
