"""States by name, and the arithmetic on them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import equal, small_federation, split
from torch import nn

from fedlab_core.state import (
    distance,
    flatten,
    get_state,
    local_names,
    mean_state,
    parameter_names,
    set_state,
    unflatten,
)


def block() -> nn.Module:
    """Batch normalisation under a name that does not say so, and nested."""
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.Identity(), nn.BatchNorm2d(2)), nn.GroupNorm(1, 2))


def test_local_names_go_by_module_type() -> None:
    gamma_beta = {"1.1.weight", "1.1.bias"}
    statistics = {"1.1.running_mean", "1.1.running_var", "1.1.num_batches_tracked"}
    assert local_names(block(), "local") == gamma_beta | statistics
    assert local_names(block(), "local_statistics") == statistics
    assert local_names(block(), "average") == local_names(nn.Linear(1, 1), None) == frozenset()
    assert local_names(nn.BatchNorm1d(3), "local_statistics") == {"running_mean", "running_var", "num_batches_tracked"}


def test_get_and_set_are_inverse_and_check_names_and_shapes() -> None:
    model, other = block(), block()
    set_state(other, get_state(model))
    assert equal(get_state(model), get_state(other))
    state = get_state(model)
    state["0.weight"] += 1
    assert not torch.equal(state["0.weight"], model[0].weight), "a copy"
    with pytest.raises(ValueError, match=r"missing \['0.bias'\]"):
        set_state(model, {n: t for n, t in state.items() if n != "0.bias"})
    with pytest.raises(ValueError, match="'0.bias'.*shape"):
        set_state(model, {**state, "0.bias": torch.zeros(1)})


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.integers(0, 99))
def test_the_mean_is_linear_and_keeps_what_all_agree_on(weights: list[float], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    states = [{"w": torch.randn(3, generator=draws).double(), "n": torch.tensor(7)} for _ in weights]
    shares = [weight / sum(weights) for weight in weights]
    mean = mean_state(states, shares)
    assert torch.allclose(mean["w"], sum(s["w"] * p for s, p in zip(states, shares, strict=True)), atol=1e-15)
    assert mean["n"] == 7 and mean["n"].dtype == torch.int64
    assert torch.equal(mean_state([states[0]], [1.0])["w"], states[0]["w"])


def test_the_mean_needs_one_weight_per_state() -> None:
    with pytest.raises(ValueError, match="2 values for 1 states"):
        mean_state([{"w": torch.zeros(1)}], [0.5, 0.5])
    with pytest.raises(ValueError, match="at least one"):
        mean_state([], [])


def test_flatten_and_unflatten_are_inverse() -> None:
    run = small_federation(split(20), norm="batch", batch_norm="average").run(1)
    for names in (None, run.trained_names):
        vector = flatten(run.state, names)
        assert equal(unflatten(vector, run.state_at(1), names), run.state)
    moved = unflatten(flatten(run.state, run.trained_names) + 1, run.state, run.trained_names)
    assert distance(moved, run.state, run.trained_names) == pytest.approx(
        flatten(run.state, run.trained_names).numel() ** 0.5
    )
    assert parameter_names(run.model) == run.trained_names
    with pytest.raises(ValueError, match="vector has 3 numbers"):
        unflatten(torch.zeros(3), run.state)
