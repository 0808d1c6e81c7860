"""Tables of counts beside a count by hand, character by character."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab_core.data import Dataset, load_dataset
from fedlab_core.data.counts import table_bits
from fedlab_core.data.measures import IGNORE

Lines = list[list[int]]


def text(train: Lines, test: Lines, size: int = 4, length: int = 6) -> Dataset:
    def rows(lines: Lines) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.zeros(len(lines), length, dtype=torch.int64)
        y = torch.full((len(lines), length), IGNORE)
        for i, line in enumerate(lines):
            x[i, 1 : len(line)] = torch.tensor(line[:-1], dtype=torch.int64)
            y[i, : len(line)] = torch.tensor(line)
        return x, y

    names = tuple("abcdefgh"[:size])
    return Dataset("own", "text", *rows(train), *rows(test), names)


def by_hand(train: Lines, test: Lines, order: int, size: int = 4) -> float:
    def probability(before: tuple[int, ...], c: int, length: int) -> float:
        if length < 0:
            return 1 / size
        context, after = before[len(before) - length :], Counter()
        for line in train:
            for t, one in enumerate(line):
                if tuple(([0] * 10 + line[:t])[10 + t - length :]) == context:
                    after[one] += 1
        lower = probability(before, c, length - 1)
        return (after[c] + len(after) * lower) / (after.total() + len(after)) if after else lower

    bits = [-math.log2(probability((*[0] * 10, *line[:t]), c, order)) for line in test for t, c in enumerate(line)]
    return sum(bits) / len(bits)


LINES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=6)


@given(LINES, LINES, st.integers(0, 3))
def test_tables_agree_with_counting_by_hand(train: Lines, test: Lines, order: int) -> None:
    assert math.isclose(table_bits(text(train, test), order), by_hand(train, test, order), rel_tol=1e-9)


def test_longer_contexts_say_more_about_english_and_nothing_is_better_than_its_entropy() -> None:
    data = load_dataset("python_docs").subset(1500)
    unigram, bigram, trigram = (table_bits(data, order) for order in range(3))
    assert math.log2(data.num_classes) > unigram > bigram > trigram > 1


def test_only_text_has_a_next_character() -> None:
    with pytest.raises(ValueError, match="accepted: text"):
        table_bits(load_dataset("digits"), 1)
