"""A claim: what was expected, what was measured, and a verdict that follows from the two."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VERDICTS = ("shown", "partly", "not shown", "not run")


@dataclass(frozen=True)
class Range:
    """Accepted values of a number, both limits included.

    Raises:
        ValueError: the lower limit is above the upper, or one of them is nan.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"low={self.low}, high={self.high}: expected low <= high")

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return f"= {self.low:,.10g}"
        if math.isinf(self.low) or math.isinf(self.high):
            limits = [f">= {self.low:,.10g}"] * math.isfinite(self.low) + [f"<= {self.high:,.10g}"] * math.isfinite(
                self.high
            )
            return "".join(limits) or "any"
        return f"{self.low:,.10g} to {self.high:,.10g}"


@dataclass(frozen=True)
class Claim:
    """One row of the table of claims.

    Attributes:
        id: study and name, "fedavg.figure_one".
        text: what is claimed, with the settings it is claimed for.
        source: where the claim comes from (paper and table, or "ours").
        size: "quick", "standard" or "paper".
        expected: accepted range of each part.
        measured: number of each part; None where it was not measured, further names are shown and not judged.
        seeds: the seeds behind the numbers.

    Raises:
        ValueError: nothing is expected.
    """

    id: str
    text: str
    source: str
    size: str
    expected: Mapping[str, Range]
    measured: Mapping[str, float | None] = field(default_factory=dict)
    seeds: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not self.expected:
            raise ValueError(f"{self.id}: expected={self.expected!r}, at least one part is needed")

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`: every expected part in its range, some, none, or nothing measured."""
        values = [self.measured.get(part) for part in self.expected]
        if all(value is None for value in values):
            return "not run"
        good = [v is not None and v in limits for v, limits in zip(values, self.expected.values(), strict=True)]
        return "shown" if all(good) else "partly" if any(good) else "not shown"

    def row(self) -> dict[str, Any]:
        """Plain data that `json` can write: ranges as text, numbers to four digits, infinity as "never"."""
        return {
            "id": self.id,
            "claim": self.text,
            "source": self.source,
            "size": self.size,
            "expected": {part: str(limits) for part, limits in self.expected.items()},
            "measured": {part: _number(value) for part, value in self.measured.items()},
            "seeds": list(self.seeds),
            "verdict": self.verdict,
        }


def differences(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, over the seeds, of a minus b."""
    values = [x - y for x, y in zip(a, b, strict=True)]
    return statistics.fmean(values), statistics.stdev(values)


def _number(value: float | None) -> float | int | str | None:
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return "never" if value == math.inf else str(value)
    rounded = float(f"{value:.4g}")
    return rounded if math.isfinite(rounded) else value  # the largest of all cannot be rounded up


def two_digits(value: float) -> float:
    """A measured value that depends a little on kernels, to the two digits that do not."""
    return float(f"{value:.2g}")
