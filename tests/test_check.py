"""Arrays as arguments: what passes, what is refused, and by which name."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import ArrayLike

from fedlab_core.check import checked, sized
from fedlab_core.hints import Shaped


@checked
def taken(
    table: Annotated[ArrayLike, Shaped("rows", "columns")],
    line: Annotated[ArrayLike, Shaped("points")] | None = None,
    lines: Mapping[str, Annotated[ArrayLike, Shaped("points")]] | None = None,
    anything: Annotated[ArrayLike, Shaped()] = 0,
) -> tuple[int, ...]:
    return np.shape(table)


@given(arrays.arrays(st.sampled_from([np.int64, np.uint8, np.float32, np.float64]), arrays.array_shapes(max_dims=4)))
def test_numbers_with_the_right_axes_pass(found: np.ndarray) -> None:
    for form in (found, found.tolist(), torch.from_numpy(found.copy())):
        assert taken([[1]], anything=form) == (1, 1)
        if found.ndim == 2:
            assert taken(form) == found.shape
        else:
            with pytest.raises(ValueError, match=r"(?s)^table=.* accepted: an array of numbers \(rows, columns\)"):
                taken(form)


@pytest.mark.parametrize(
    "value",
    ["text", b"1", 3 + 4j, [[3j]], [[True]], [["a"]], [[object()]], [[1], [1, 2]], {"non": "sense"}, object(), None, 7]
    + [torch.ones(2, 2, requires_grad=True), np.array([["2026-01-01"]], dtype="datetime64[D]")],
)
def test_what_is_no_table_of_numbers_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"(?s)^table="):
        taken(value)
    with pytest.raises(ValueError, match=r"(?s)^anything="):
        taken([[1]], anything=value)
    with pytest.raises(ValueError, match=r"(?s)^lines="):
        taken([[1]], lines={"a": value})
    if value is not None:
        with pytest.raises(ValueError, match=r"(?s)^line=.* or None"):
            taken([[1]], line=value)


@given(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_entries_are_counted_along_each_axis(has: tuple[int, int], wanted: tuple[int, int]) -> None:
    counts = {"clients": wanted[0], "classes": wanted[1]}
    if has == wanted:
        assert sized("counts", np.zeros(has), **counts).shape == has
    else:
        with pytest.raises(ValueError, match=rf"shape .*accepted: \({wanted[0]} clients, {wanted[1]} classes\)"):
            sized("counts", np.zeros(has), **counts)
