"""The statistics behind the verdicts: paired differences, intervals of a mean, the error that a test set leaves."""

import math
from collections.abc import Sequence

from fedlab_core.check import Measured, checked
from fedlab_core.intervals import half_width


@checked
def differences(a: Sequence[Measured], b: Sequence[Measured]) -> list[float]:
    """a minus b, seed by seed.

    Raises:
        ValueError: not as many values in a as in b.
    """
    return [x - y for x, y in zip(a, b, strict=True)]


@checked
def ratios(a: Sequence[Measured], b: Sequence[Measured]) -> list[float]:
    """a over b, seed by seed; infinite where b is 0."""
    return [x / y if y else math.inf for x, y in zip(a, b, strict=True)]


@checked
def interval(values: Sequence[Measured]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean by Student's t (of paired differences: the paired t interval).

    Args:
        values: one per seed, taken to be independent and normal.

    Returns:
        Its ends; None for fewer than two values or for values that are not all finite.
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    mean, half = math.fsum(values) / len(values), float(half_width(values))
    return mean - half, mean + half


@checked
def test_set_error(accuracy: float, examples: int) -> float:
    """Standard error of an accuracy that comes from the draw of the test examples, sqrt(p (1 - p) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / examples)


test_set_error.__test__ = False  # type: ignore[attr-defined]  # pytest would take it for a test
