"""Cooperative games: how a value that depends on a set is shared among its members."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedlab_core.check import checked
from fedlab_core.probes.cells import subsets


@checked
def shapley(causes: Sequence[str]) -> Tensor:
    """(causes, cells) float64: what takes the cells' values to the Shapley values.

    phi_i = sum over T without i of |T|! (n - |T| - 1)! / n! [v(T with i) - v(T)].
    """
    cells, n = subsets(causes), len(causes)
    place = {frozenset(cell): k for k, cell in enumerate(cells)}
    matrix = torch.zeros(n, len(cells), dtype=torch.float64)
    for i, cause in enumerate(causes):
        for cell in cells:
            if cause not in cell:
                weight = math.factorial(len(cell)) * math.factorial(n - len(cell) - 1) / math.factorial(n)
                matrix[i, place[frozenset({*cell, cause})]] += weight
                matrix[i, place[frozenset(cell)]] -= weight
    return matrix


@checked
def moebius(causes: Sequence[str]) -> Tensor:
    """(cells, cells) float64: what takes the cells' values to the interactions d(T)."""
    cells = subsets(causes)
    pairs = itertools.product(cells, cells)
    signs = [(-1.0) ** (len(t) - len(q)) if set(q) <= set(t) else 0.0 for t, q in pairs]
    return torch.tensor(signs, dtype=torch.float64).view(len(cells), len(cells))
