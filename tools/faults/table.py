"""How the project takes what goes wrong, counted."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

OUTCOMES = {
    "sound": "nothing was lost or changed",
    "clear": "an error that names the file or the argument",
    "unclear": "an error that does not",
    "silent": "a wrong result without a word",
    "crash": "a process that died or did not answer",
}


@dataclass
class Table:
    """Outcomes by what was tried, with an example of each that should not be."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, tried: str, outcome: str, example: str = "") -> None:
        """Count one outcome, a key of `OUTCOMES`."""
        self.counts.setdefault(tried, Counter())[outcome] += 1
        if outcome in ("unclear", "silent", "crash"):
            self.examples.append(f"{outcome}: {tried}: {example}")

    @property
    def bad(self) -> int:
        """How many were unclear, silent or a crash."""
        return sum(counts[outcome] for counts in self.counts.values() for outcome in ("unclear", "silent", "crash"))

    def __str__(self) -> str:
        width = max([len(tried) for tried in self.counts] + [5])
        lines = [f"{'':{width}}  tried " + " ".join(f"{outcome:>8}" for outcome in OUTCOMES)]
        for tried, counts in self.counts.items():
            cells = " ".join(f"{counts[outcome]:8d}" for outcome in OUTCOMES)
            lines.append(f"{tried:{width}}  {sum(counts.values()):5d} {cells}")
        return "\n".join(lines + self.notes)

    def to_json(self) -> dict[str, Any]:
        """Plain data: by what was tried how often, and with which outcomes."""
        rows = {tried: {"tried": counts.total(), **counts} for tried, counts in self.counts.items()}
        return {"rows": rows, "bad": self.bad, "notes": self.notes, "examples": self.examples[:20]}
