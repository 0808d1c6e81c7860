"""How far a mean over seeds may be off, by Student's t."""

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedlab_core.check import checked
from fedlab_core.hints import Shaped

LEVEL = 0.95


@checked
def half_width(values: Annotated[ArrayLike, Shaped()]) -> NDArray:
    """Half the width of the interval that covers a mean along the first axis with probability `LEVEL`.

    Args:
        values: (seeds, ...), taken to be independent and normal.

    Returns:
        (...); nan for a single seed.
    """
    from scipy.special import stdtrit  # scipy.stats, whose `t.ppf` it is, takes half a second

    values = np.asarray(values, float)
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return stdtrit(len(values) - 1, (1 + LEVEL) / 2) * (values.std(0, ddof=1) / np.sqrt(len(values)))
