"""What a table of counts makes of a text: the reference that a model of the next character should be better than."""

from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from fedlab_core.check import checked
from fedlab_core.data.dataset import Dataset
from fedlab_core.data.measures import IGNORE
from fedlab_core.hints import Within


@checked
def table_bits(data: Dataset, order: Annotated[int, Within(0, 16)]) -> float:
    """Bits per test character of a table of how often each character followed the `order` before it in training.

    Order 1 is a bigram table, 2 a trigram table. Witten and Bell (1991) smooth it: with n and d the numbers of
    characters and of different characters that were seen after a context, p(c) = (count(c) + d p'(c)) / (n + d), where
    p' is the table of one character less, and at last 1 / (size of the vocabulary).

    Args:
        data: next-character text, see `data.text`; the beginning of a line is filled with the character of id 0.
        order: characters that are looked at, 0 or more.

    Raises:
        ValueError: a data set without next characters, or a negative order.
    """
    if data.kind != "text" or data.y.ndim != 2 or order < 0:
        raise ValueError(f"data={data.kind!r} with targets {tuple(data.y.shape)}, order={order}, accepted: text, >= 0")
    size = data.num_classes
    probability: NDArray[np.float64] = np.full(int((data.test_y != IGNORE).sum()), 1 / size)
    for length in range(order + 1):
        (context, target), (asked, wanted) = (
            _contexts(x.cpu().numpy(), y.cpu().numpy(), length, size)
            for x, y in ((data.x, data.y), (data.test_x, data.test_y))
        )
        pairs, times = np.unique(context * size + target, return_counts=True)
        seen = _looked_up(pairs // size, times, asked)
        kinds = _looked_up(pairs // size, np.ones_like(times), asked)
        count = _looked_up(pairs, times, asked * size + wanted)
        probability = np.where(seen > 0, (count + kinds * probability) / np.maximum(seen + kinds, 1), probability)
    return float(-np.log2(probability).mean())


def _contexts(
    x: NDArray[np.int64], y: NDArray[np.int64], length: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every target that is not padding: the `length` characters before it as one number, and the target."""
    padded = np.concatenate([np.zeros((len(x), length), dtype=np.int64), x], axis=1)
    keys = np.zeros_like(x)
    for back in range(length):
        keys = keys * size + padded[:, length - back : length - back + x.shape[1]]
    return keys[y != IGNORE], y[y != IGNORE]


def _looked_up(keys: NDArray[np.int64], values: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of the values of each key that is asked for; 0 where there is none. Keys are ascending."""
    known, place = np.unique(keys, return_inverse=True)
    sums = np.bincount(place, weights=values).astype(np.int64)
    at = np.searchsorted(known, asked).clip(max=len(known) - 1)
    return np.where(known[at] == asked, sums[at], 0)
