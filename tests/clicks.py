"""The path of clicks of docs/path.md as data, for the tests that follow it."""

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "path.md"


@dataclass(frozen=True)
class Step:
    """A numbered step: the notebook it names, if any, a lab by its title, and knobs with values as a reader sees them,
    each followed by Run."""

    number: int
    notebook: str
    lab: str
    settings: tuple[tuple[str, str], ...]


def steps() -> list[Step]:
    """Every step, in its order; "the same lab" is that of the step before."""
    found: list[Step] = []
    for number, text in re.findall(r"^(\d+)\. (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        notebook, lab = re.search(r"notebooks/(\w+\.ipynb)", text), re.search(r"lab \*([^*]+)\*", text)
        title = lab[1] if lab else found[-1].lab
        settings = tuple(re.findall(r"`(\w+) = ([^`]+)`", text))
        found.append(Step(int(number), notebook[1] if notebook else "", title, settings))
    return found
