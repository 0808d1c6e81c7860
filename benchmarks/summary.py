"""What a benchmark says of many times."""

import statistics
from collections.abc import Sequence
from typing import Any

PRESSES = 30


def summary(values: Sequence[float | None], digits: int = 3) -> dict[str, Any]:
    """Median and worst; None among the values is what did not come in time, and is counted apart."""
    there = [value for value in values if value is not None]
    found: dict[str, Any] = {"n": len(values)}
    if there:
        found = {"median": round(statistics.median(there), digits), "worst": round(max(there), digits)} | found
    return found if len(there) == len(values) else found | {"not in time": len(values) - len(there)}
