"""Text data sets for next-character prediction, one natural client per topic or speaking role."""

from __future__ import annotations

import hashlib
import platform
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlab_core import check, files
from fedlab_core.check import Many
from fedlab_core.data.checks import ELSEWHERE
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.measures import IGNORE

LINE = "\n"  # id 0: starts every line as input, ends every line as target, fills the padding of x
LONG = 40  # characters: lines long enough that two equal ones are no coincidence
OVERLAP = 0.3  # share of long lines already seen from which a topic counts as a copy
LARGEST = 100_000_000  # bytes of a text file: an example's characters are kept as int64 twice
SHAKESPEARE_FILES = ("tinyshakespeare.txt", "shakespeare.txt")


@check.checked
def python_docs(length: Many = 80) -> Dataset:
    """The reference text inside Python (`pydoc_data.topics`), one client per topic, copied topics left out.

    Some topics repeat larger ones almost whole, which would put one client's test text into another's training text:
    from the largest topic to the smallest, one with 30 % or more of its long lines (40 characters and more) already
    seen in larger topics is dropped. The text differs between Python versions; its hash is in `notes`.

    Args:
        length: T, the number of characters of an example.

    Raises:
        FileNotFoundError: this Python comes without `pydoc_data.topics`.
        ValueError: `length` is not positive.
    """
    topics = _topics()
    kept = _without_copies(topics)
    digest = _sha256(repr(sorted(topics.items())))
    clients = {name: topics[name].splitlines() for name in sorted(kept)}
    notes = (
        f"Python {platform.python_version()} documentation, {len(kept)} of {len(topics)} topics after de-duplication, "
        f"text SHA-256 {digest}"
    )
    return _dataset("python_docs", clients, length, notes)


@check.checked
def shakespeare(root: Path, length: Many = 80) -> Dataset:
    """Plays in a text file of the data root, one client per speaking role with at least two lines.

    A speech is a paragraph whose first line is the role's name and a colon; a paragraph without one continues the
    speech. Following section 3 of McMahan et al. (2017), except that the file does not say where a play begins, so
    roles of one name in different plays are one client.

    Args:
        root: data root holding `tinyshakespeare.txt` or `shakespeare.txt`.
        length: T, the number of characters of an example.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, no UTF-8 text or without roles, or `length` is not positive.
    """
    path = next((root / name for name in SHAKESPEARE_FILES if (root / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(missing_shakespeare(root))
    text = _read(path, root)
    clients = {role: lines for role, lines in _roles(text).items() if len(lines) >= 2}
    if not clients:
        raise ValueError(f"{path} has no speaking role with two lines: a speech is a line 'NAME:' and what follows")
    notes = f"{path.name}, {len(clients)} speaking roles with at least two lines, text SHA-256 {_sha256(text)}"
    return _dataset("shakespeare", clients, length, notes)


@check.checked
def text_file(root: Path, path: str, length: Many = 80, clients: str | None = None, name: str | None = None) -> Dataset:
    """A text file of one's own for next-character prediction, one client per chapter or paragraph.

    A chapter begins with a heading: a line that starts with "#", or with a word such as "Chapter", "Part" or "Act" and
    a number. Paragraphs are separated by blank lines. A client with one line gets its sentences as lines. The first
    80 % of each client's lines are for training, the rest, at least one, for testing; clients with fewer than two lines
    are left out, and `notes` says how many.

    Args:
        root: data root.
        path: of the file, absolute, from the home folder (~) or relative to `root`.
        length: T, the number of characters of an example.
        clients: "chapters" or "paragraphs"; None for chapters if there are two, else paragraphs.
        name: of the data set, by default `text:path`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an option out of range, or a file that is empty, too large, no UTF-8 text, or too short to divide.
    """
    if clients not in (None, "chapters", "paragraphs"):
        raise ValueError(f"clients={clients!r}, accepted: None, 'chapters' or 'paragraphs'")
    place = root / files.expanded("path", path)
    if not path or not place.exists():
        raise FileNotFoundError(missing_text(root, path))
    text = _read(place, root)
    parts, kind = (_chapters(text) if clients != "paragraphs" else {}), "chapters"
    if len(parts) < 2:
        if clients == "chapters":
            raise ValueError(f"clients='chapters': {place} has {len(parts)}, accepted: 2 or more; or 'paragraphs'")
        kind = "paragraphs"
        parts = {f"paragraph {i}": lines for i, lines in enumerate(_paragraphs(text), 1)}
    lines = {client: own if len(own) > 1 else _SENTENCE.split(own[0]) for client, own in parts.items() if own}
    kept = {client: own for client, own in lines.items() if len(own) > 1}
    if not kept:
        raise ValueError(f"{place} has no chapter or paragraph with two lines or sentences: one to train, one to test")
    notes = f"{place.name}, {len(kept)} {kind}"
    if left_out := len(parts) - len(kept):
        notes += f", {left_out} with fewer than two lines left out"
    return _dataset(name or f"text:{path}", kept, length, f"{notes}, text SHA-256 {_sha256(text)}")


@check.checked
def missing_text(root: Path, path: str) -> str:
    """Empty if the file is there, else the sentence that says what goes where."""
    place = root / files.expanded("path", path)
    if path and place.is_file():
        return ""
    return f"text: needs a text file, as in text:book.txt: put it at {place} (or set $FEDLAB_DATA to its folder)"


@check.checked
def missing_shakespeare(root: Path) -> str:
    """Empty if the text is in the data root, else the sentence that says what goes where."""
    if any((root / name).is_file() for name in SHAKESPEARE_FILES):
        return ""
    return f"shakespeare needs a text file: put it at {root / SHAKESPEARE_FILES[0]} (or set $FEDLAB_DATA to its folder)"


@check.checked
def encode_lines(lines: list[str], vocabulary: dict[str, int], length: Many) -> tuple[Tensor, Tensor, Tensor]:
    """Next-character examples: the input of a line is a line break and the line, its target the line and a line break.

    A line longer than `length` - 1 goes on in further examples whose input starts with the character before, so every
    character of every line is a target exactly once.

    Args:
        lines: n lines without line breaks.
        vocabulary: character -> id, with the line break at id 0.
        length: T, the number of characters of an example.

    Returns:
        x int64 (examples, T), 0 where padded; y int64 (examples, T), -100 where padded; line int64 (examples,), the
        line each example comes from.

    Raises:
        ValueError: `length` is not positive.
    """
    check.whole("length", length, 1, 10_000)
    stream = np.array([vocabulary[c] for c in LINE + "".join(line + LINE for line in lines)], dtype=np.int64)
    widths = np.array([len(line) + 1 for line in lines], dtype=np.int64)
    windows = -(-widths // length)
    place = np.arange(widths.sum()) - np.repeat(widths.cumsum() - widths, widths)  # within the line
    row = np.repeat(windows.cumsum() - windows, widths) + place // length
    x = np.zeros((windows.sum(), length), np.int64)
    y = np.full_like(x, IGNORE)
    x[row, place % length] = stream[:-1]
    y[row, place % length] = stream[1:]
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(np.repeat(np.arange(len(lines)), windows))


def _dataset(name: str, clients: dict[str, list[str]], length: int, notes: str) -> Dataset:
    """Per client the first 80 % of its lines for training, the rest, at least one, for testing; blank lines dropped."""
    clients = {client: [text for line in lines if (text := line.rstrip())] for client, lines in clients.items()}
    clients = {client: lines for client, lines in clients.items() if len(lines) >= 2}
    characters = sorted({c for lines in clients.values() for line in lines for c in line})
    vocabulary = {c: i for i, c in enumerate([LINE, *characters])}
    parts = []
    for part in (slice(0, 4), slice(4, 5)):
        lines, owners = [], []
        for owner, own in enumerate(clients.values()):
            chosen = own[len(own) * part.start // 5 : len(own) * part.stop // 5]
            lines += chosen
            owners += [owner] * len(chosen)
        x, y, line = encode_lines(lines, vocabulary, length)
        parts.append((x, y, torch.tensor(owners)[line]))
    (x, y, groups), (test_x, test_y, test_groups) = parts
    return Dataset(
        name=name,
        kind="text",
        x=x,
        y=y,
        test_x=test_x,
        test_y=test_y,
        classes=tuple(vocabulary),
        groups=groups,
        group_names=tuple(clients),
        notes=notes,
        test_groups=test_groups,
    )


def _topics() -> dict[str, str]:
    """Topic name -> text, as this Python has it."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            "python_docs needs the standard module pydoc_data.topics, which this Python lacks: "
            "install the full standard library (for instance python.org's or conda's Python)"
        ) from error
    if not topics or not all(isinstance(text, str) for text in topics.values()):
        raise ValueError(f"pydoc_data.topics of Python {platform.python_version()} is no dictionary of texts")
    return topics


def _without_copies(topics: dict[str, str]) -> list[str]:
    """Names of the topics that are no copies, from the largest to the smallest."""
    seen: set[str] = set()
    kept = []
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        long = [text for line in topics[name].splitlines() if len(text := line.strip()) >= LONG]
        if sum(text in seen for text in long) < OVERLAP * len(long) or not long:
            kept.append(name)
            seen.update(long)
    return kept


_HEADING = re.compile(
    r"^(#+ .*|(chapter|part|book|act|scene|canto|letter|kapitel|teil|chapitre|cap[ií]tulo)\s+([0-9]+|[ivxlcdm]+)\b.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE = re.compile(r"(?<=[.!?…])\s+")


def _read(path: Path, root: Path) -> str:
    """A text file's content.

    Raises:
        ValueError: it is a link out of the data root, empty, no ordinary file, larger than `LARGEST`, or no UTF-8; the
            message names it.
    """
    files.inside(path, root, ELSEWHERE)
    content = files.read(path.resolve(), LARGEST)
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); replace it with plain text") from error
    if not text.strip():
        raise ValueError(f"{path} is empty; replace it with plain text")
    return text


def _paragraphs(text: str) -> list[list[str]]:
    """Lines of each paragraph, without blank ones."""
    blocks = re.split(r"\n[ \t]*(?:\n[ \t]*)+", text.strip())
    return [[line for line in block.split("\n") if line.strip()] for block in blocks]


def _chapters(text: str) -> dict[str, list[str]]:
    """Heading -> lines below it, without blank ones; equal headings are numbered. What precedes the first is no
    chapter."""
    places = [*_HEADING.finditer(text)]
    chapters: dict[str, list[str]] = {}
    for k, heading in enumerate(places):
        end = places[k + 1].start() if k + 1 < len(places) else len(text)
        lines = [line for line in text[heading.end() : end].split("\n") if line.strip()]
        name = heading[0].strip("# ").strip()
        if lines:
            chapters[name if name not in chapters else f"{name} ({k + 1})"] = lines
    return chapters


def _roles(text: str) -> dict[str, list[str]]:
    """Role -> its lines in order."""
    roles: dict[str, list[str]] = {}
    role = None
    for paragraph in re.split(r"\n[ \t]*(?:\n[ \t]*)+", text.replace("\r\n", "\n").strip()):
        first, *lines = paragraph.split("\n")
        if first.rstrip().endswith(":"):
            role = first.strip()[:-1].strip()
        else:
            lines = [first, *lines]
        if role:
            roles.setdefault(role, []).extend(line for line in lines if line.strip())
    return roles


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
