"""A claim: what was expected, what was measured, and a verdict that follows from the two."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedlab_core.check import Measured as Number
from fedlab_core.check import checked
from fedlab_core.studies.statistics import interval, test_set_error

VERDICTS = ("shown", "refuted", "undecided", "not run")
Measured = Number | Sequence[Number] | None
"""A number, one number per seed, or None where nothing was measured."""


@checked
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


@checked
@dataclass(frozen=True)
class Claim:
    """One row of the table of claims.

    A claim about a mean over seeds has a headline: the one part whose 95 % interval decides. A claim without one is
    exact (an identity, a count, a single measurement): every expected part has to lie in its range.

    Attributes:
        id: study and name, "fedavg.figure_one".
        text: what is claimed, with the settings it is claimed for.
        source: where the claim comes from (paper and table, or "ours").
        size: "quick", "standard" or "paper".
        expected: accepted range of the headline, or of each part of an exact claim.
        measured: by part a number, or one number per seed; None where it was not measured. Parts that are not expected
            are shown and not judged.
        seeds: the seeds behind the numbers, in their order; of a record that has fewer so far, the first of them.
        headline: the part that decides; "" for an exact claim.
        registered: the commit in which the expected range was set, and whether that was before the record.
        test_size: examples of the test set, where accuracies on one are compared.
        references: what the numbers should be read against: chance, a majority class, a ceiling, what was "reached".

    Raises:
        ValueError: nothing is expected, or something besides the headline.
    """

    id: str
    text: str
    source: str
    size: str
    expected: Mapping[str, Range]
    measured: Mapping[str, Measured] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    headline: str = ""
    registered: str = ""
    test_size: int | None = None
    references: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.expected:
            raise ValueError(f"{self.id}: expected={self.expected!r}, at least one part is needed")
        if self.headline and list(self.expected) != [self.headline]:
            raise ValueError(
                f"{self.id}: expected={list(self.expected)}, accepted: the headline {self.headline!r} alone"
            )

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the headline's mean; None for exact claims and for fewer than two finite values."""
        value = self.measured.get(self.headline)
        return interval(value) if isinstance(value, Sequence) else None

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`.

        Of a headline: "shown" if its interval lies inside the expected range, "refuted" if it lies outside, "undecided"
        if neither holds or there is no interval. Of an exact claim: "shown" if every part lies in its range, "refuted"
        if one does not, "undecided" if one was not measured. "not run" if nothing expected was measured.
        """
        if all(_mean(self.measured.get(part)) is None for part in self.expected):
            return "not run"
        if self.headline:
            if self.interval is None:
                return "undecided"
            (low, high), limits = self.interval, self.expected[self.headline]
            if low in limits and high in limits:
                return "shown"
            return "refuted" if high < limits.low or low > limits.high else "undecided"
        if self.failed:
            return "refuted"
        return "undecided" if None in [_mean(self.measured.get(part)) for part in self.expected] else "shown"

    @property
    def failed(self) -> list[str]:
        """The parts of an exact claim that lie outside of their range."""
        values = {part: _mean(self.measured.get(part)) for part in self.expected if not self.headline}
        return [part for part, value in values.items() if value is not None and value not in self.expected[part]]

    def row(self) -> dict[str, Any]:
        """Plain data that `json` can write: ranges as text, numbers to four digits, infinity as "never"."""
        value = self.measured.get(self.headline)
        judged = value if isinstance(value, Sequence) else []
        ends = {part: interval(v) for part, v in self.measured.items() if isinstance(v, Sequence)}
        row: dict[str, Any] = {
            "id": self.id,
            "claim": self.text,
            "source": self.source,
            "size": self.size,
            "headline": self.headline,
            "expected": {part: str(limits) for part, limits in self.expected.items()},
            "failed": self.failed,
            "registered": self.registered,
            "measured": {part: _number(_mean(value)) for part, value in self.measured.items()},
            "interval": _numbers(self.interval),
            "n": len(judged) or None,
            "intervals": {part: _numbers(e) for part, e in ends.items() if e is not None and part != self.headline},
            "seeds": list(self.seeds)[: len(judged) or None],
            "test_size": self.test_size,
            "references": {name: _number(value) for name, value in self.references.items()},
            "verdict": self.verdict,
        }
        reached = self.references.get("reached")
        if self.test_size and len(judged) > 1 and reached is not None and 0 <= reached <= 1:
            error = test_set_error(reached, self.test_size)
            if error > statistics.stdev(judged):
                row["test_set_error"] = _number(error)
        return row


ADDED = "seeds beyond the third were added with three known"


@checked
def extended(registered: str, data: Mapping[str, Any] | None) -> str:
    """When a range was set; of a record that has more than three seeds by now, also that two were added later."""
    later = data is not None and len(data.get("complete", ())) > 3
    return f"{registered}; two of its seeds were added with three known" if later else registered


@checked
def headlined(
    id: str, text: str, expected: Range, measured: Mapping[str, Measured], headline: str = "", **more: Any
) -> Claim:
    """A claim about a mean over seeds.

    Args:
        expected: range of the headline.
        headline: by default the first part measured.
        more: other attributes of the `Claim`.
    """
    headline = headline or next(iter(measured))
    return Claim(id, text, expected={headline: expected}, measured=measured, headline=headline, **more)


@checked
def exact(id: str, text: str, parts: Mapping[str, tuple[Measured, Range | None]], **more: Any) -> Claim:
    """An exact claim.

    Args:
        parts: by name what was measured, and the range that it has to lie in; None for what is only shown.
        more: other attributes of the `Claim`.
    """
    expected = {part: limits for part, (_, limits) in parts.items() if limits is not None}
    return Claim(id, text, expected=expected, measured={part: value for part, (value, _) in parts.items()}, **more)


def _mean(value: Measured) -> float | None:
    if isinstance(value, Sequence):
        return None if not value else value[0] if len(value) == 1 else statistics.fmean(value)
    return value


def _numbers(values: Sequence[float] | None) -> list[Any] | None:
    return None if values is None else [_number(value) for value in values]


def _number(value: float | None) -> float | int | str | None:
    if value is None or isinstance(value, int):
        return value
    if not math.isfinite(value):
        return "never" if value == math.inf else str(value)
    rounded = float(f"{value:.4g}")
    return rounded if math.isfinite(rounded) else value  # the largest of all cannot be rounded up


@checked
def two_digits(value: float) -> float:
    """A measured value that depends a little on kernels, to the two digits that do not."""
    return float(f"{value:.2g}")
