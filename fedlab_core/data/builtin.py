"""Image data sets that need no download: scikit-learn's digits and rendered letters."""

from __future__ import annotations

import torch

from ..randomness import generator
from .dataset import Dataset, channel_statistics, stratified_split


def digits() -> Dataset:
    """scikit-learn's 1,797 scanned digits of 8 x 8 pixels; 1,437 for training, 360 for testing, every class split alike.

    The original grey values v in 0..16 are kept without loss as x = round(255 v / 16), so v = round(16 x / 255).
    The split is fixed. Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998), test part.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels).to(torch.int64)
    train, test = stratified_split(y, _largest_remainder(torch.bincount(y), 360), generator(0, "digits split"))
    mean, std = channel_statistics(x[train])
    return Dataset(
        name="digits",
        kind="image",
        x=x[train],
        y=y[train],
        test_x=x[test],
        test_y=y[test],
        classes=tuple("0123456789"),
        mean=mean,
        std=std,
        notes="scikit-learn's digits (UCI optdigits, 8x8 scans), fixed stratified 80/20 split",
    )


def _largest_remainder(counts: torch.Tensor, total: int) -> torch.Tensor:
    """`total` seats in proportion to int64 (classes,) `counts`: Hamilton's method, ties to the lower index."""
    seats = counts * total // counts.sum()
    remainder = counts * total - seats * counts.sum()
    seats[remainder.argsort(descending=True, stable=True)[: total - int(seats.sum())]] += 1
    return seats
