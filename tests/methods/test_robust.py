"""Robust aggregation against oracles: NumPy, SciPy, brute force, and what liars can do to it."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import trim_mean
from small import equal, gap, small_federation, split

from fedlab_core.local.work import Update
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import build_method
from fedlab_core.methods.robust import GeometricMedian, Krum, Median, MultiKrum, NormClipping, TrimmedMean
from fedlab_core.randomness import generator

ROBUST = ("median", "trimmed_mean", "geometric_median", "krum", "multi_krum", "norm_clipping")
COUNTS = st.integers(1, 9)
SEEDS = st.integers(0, 2**20)


def points(count: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """(count, 7) float64."""
    return spread * torch.randn(count, 7, generator=generator(seed, "points"), dtype=torch.float64)


def merge(method: FedAvg, rows: torch.Tensor, weights: list[float] | None = None) -> torch.Tensor:
    """The aggregate of models whose parameters are the rows, split into two tensors; the start is 0."""
    states = [{"a": row[:4].reshape(2, 2), "b": row[4:]} for row in rows]
    updates = [Update(k, 1, 1, 1, state, {}, {}, 0.0) for k, state in enumerate(states)]
    start = {"a": torch.zeros(2, 2, dtype=rows.dtype), "b": torch.zeros(3, dtype=rows.dtype)}
    state, server = method.aggregate(start, updates, weights or [1 / len(rows)] * len(rows), {}, 20)
    assert server == {} and list(state) == ["a", "b"]
    return torch.cat([state["a"].flatten(), state["b"]])


@limits(deadline=None)
@given(COUNTS, SEEDS)
def test_median_is_numpys(count: int, seed: int) -> None:
    rows = points(count, seed)
    assert np.allclose(merge(Median(), rows), np.median(rows.numpy(), axis=0), atol=1e-14)


@limits(deadline=None)
@given(COUNTS, SEEDS, st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 0.49]))
def test_trimmed_mean_is_scipys(count: int, seed: int, trim: float) -> None:
    rows = points(count, seed)
    assert np.allclose(merge(TrimmedMean(trim), rows), trim_mean(rows.numpy(), trim, axis=0), atol=1e-13)


KINDS = ("anywhere", "on a line", "on a plane", "some twice", "near and far", "some far off")


def arranged(kind: str, count: int, seed: int) -> torch.Tensor:
    """(count, 7) float64: points in a position that is hard for steps towards a geometric median."""
    rows, draws = points(count, seed), generator(seed, "arranged")
    scales = 10 ** (6 * torch.rand(count, 1, generator=draws, dtype=torch.float64) - 6)
    match kind:
        case "on a line" | "on a plane":
            rank = 1 if kind == "on a line" else 2
            return rows[:, :rank] @ points(rank, seed + 1) + points(1, seed + 2)
        case "some twice":
            return rows[torch.randint((count + 1) // 2, (count,), generator=draws)]
        case "near and far":
            return scales * rows
        case "some far off":
            rows[: count // 3] *= 1e8
    return rows


def distances(rows: torch.Tensor, weights: list[float], z: np.ndarray) -> float:
    """What a geometric median minimises."""
    return float(np.linalg.norm(rows.numpy() - z, axis=1) @ weights)


@limits(deadline=None)
@given(st.integers(1, 9), st.sampled_from(KINDS), SEEDS, st.sampled_from([0, 1, 4]))
def test_geometric_median_minimises_the_weighted_distances(count: int, kind: str, seed: int, power: int) -> None:
    rows = arranged(kind, count, seed)
    draws = torch.rand(count, generator=generator(seed, "weights"), dtype=torch.float64) ** power + 0.001
    weights = (draws / draws.sum()).tolist()
    ours = merge(GeometricMedian(steps=2000), rows, weights).numpy()
    begins = [ours, rows.mean(0).numpy(), min(rows.numpy(), key=lambda row: distances(rows, weights, row))]
    best = min(minimize(lambda z: distances(rows, weights, z), begin, tol=1e-12).fun for begin in begins)
    assert distances(rows, weights, ours) <= best * (1 + 2e-6) + 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_geometric_median_is_the_very_model_on_which_the_minimum_lies(seed: int) -> None:
    rows = points(6, seed)
    for weights in ([0.5001, 0.4999], [0.2, 0.5, 0.3], [0.1, 0.1, 0.1, 0.6, 0.1]):
        heaviest = rows[int(np.argmax(weights))]
        assert torch.equal(merge(GeometricMedian(), rows[: len(weights)], weights), heaviest)
    line = torch.tensor([[0.0], [1.0], [2.0], [50.0], [1000.0]], dtype=torch.float64) * rows[5]
    assert torch.equal(merge(GeometricMedian(), line), line[2])
    assert torch.allclose(merge(GeometricMedian(), rows[:2]), rows[:2].mean(0), atol=1e-15), "all between are minima"


@pytest.mark.parametrize("size", [1e160, 1e300])
@pytest.mark.parametrize("name", ["geometric_median", "krum", "multi_krum", "norm_clipping"])
def test_values_whose_squares_are_infinite_are_as_far_as_can_be(name: str, size: float) -> None:
    rows = 1 + points(9, 3, 0.01)
    honest, rows[2] = rows[[0, 1, *range(3, 9)]].mean(0), size
    rows[5] = -size
    options = {"liars": 2} if "krum" in name else {}
    merged = merge(build_method(name, **options), rows)
    assert (merged - honest).abs().max() < (2.5 if name == "norm_clipping" else 0.05)


@limits(deadline=None)
@given(st.integers(4, 8), SEEDS, st.integers(0, 2), st.integers(1, 3))
def test_krum_is_the_brute_force(count: int, seed: int, liars: int, chosen: int) -> None:
    rows = points(count, seed).numpy()
    scores = []
    for k in range(count):
        others = [float(((rows[k] - rows[j]) ** 2).sum()) for j in range(count) if j != k]
        size = max(1, count - liars - 2)
        scores.append(min(sum(group) for group in itertools.combinations(others, size)))
    best = np.argsort(scores)[:chosen]
    ordered = sorted(scores)
    assume(chosen == count or ordered[chosen] - ordered[chosen - 1] > 1e-9)  # a tie has several right answers
    assert np.allclose(merge(MultiKrum(liars, chosen), torch.from_numpy(rows)), rows[best].mean(0), atol=1e-13)
    if chosen == 1:
        assert np.array_equal(merge(Krum(liars), torch.from_numpy(rows)), rows[best[0]])


@limits(deadline=None)
@given(COUNTS, SEEDS, st.sampled_from([0.5, 2.0, 1e9]))
def test_norm_clipping_scales_updates_down(count: int, seed: int, bound: float) -> None:
    rows = points(count, seed)
    clipped = np.stack([row * min(1, bound / np.linalg.norm(row)) for row in rows.numpy()])
    assert np.allclose(merge(NormClipping(bound), rows), clipped.mean(0), atol=1e-14)


@pytest.mark.parametrize("name", ROBUST)
def test_equal_models_are_kept_and_clients_can_be_renumbered(name: str) -> None:
    method, rows = build_method(name), points(7, 1, 0.1)
    assert torch.allclose(merge(method, rows[:1].expand(5, -1)), rows[0], atol=1e-14)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert torch.allclose(merge(method, rows), merge(method, rows[order]), atol=1e-12)


@pytest.mark.parametrize("lie", [1e6, -1e6, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ROBUST)
def test_two_liars_of_seven_move_the_result_little(name: str, lie: float) -> None:
    options: dict[str, dict[str, Any]] = {"trimmed_mean": {"trim": 2 / 7}, "krum": {"liars": 2}}
    options |= {"multi_krum": {"liars": 2, "chosen": 3}}
    method, rows = build_method(name, **options.get(name, {})), 1 + points(7, 2, 0.01)
    honest, rows[[1, 4]] = rows[[0, 2, 3, 5, 6]].mean(0), lie
    bound = 2.5 if name == "norm_clipping" else 0.05  # clipping bounds a liar's pull, it does not end it
    assert (merge(method, rows) - honest).abs().max() < bound
    assert not (merge(FedAvg(), rows) - honest).abs().max() < 1e5


@pytest.mark.parametrize("name", ROBUST)
def test_nothing_usable_leaves_the_model_as_it_was(name: str) -> None:
    assert torch.equal(merge(build_method(name), torch.full((3, 7), float("nan"))), torch.zeros(7))


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("engine", ["threads", "stacked", "auto"])
def test_every_engine_gives_the_same(name: str, engine: str) -> None:
    loop, other = (
        small_federation(split(12, 12, 9, 12, 15), build_method(name), batch_size=5, engine=e).run(2)
        for e in ("loop", engine)
    )
    assert gap(loop.state, other.state) < 1e-12


def test_one_client_and_no_trimming_are_fedavg() -> None:
    plain = small_federation(split(20)).run(2).state
    for name in ROBUST:
        assert (
            gap(
                small_federation(split(20), build_method(name, **({"bound": 1e9} if "clip" in name else {})))
                .run(2)
                .state,
                plain,
            )
            < 1e-12
        )
    uniform = {"weighting": "uniform", "batch_size": 5}
    mean = small_federation(split(12, 9, 15), **uniform).run(2).state
    trimmed = small_federation(split(12, 9, 15), TrimmedMean(0.0), **uniform).run(2).state
    assert gap(trimmed, mean) < 1e-12 and not equal(small_federation(split(12, 9, 15), **uniform).state, mean)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("trimmed_mean", {"trim": 0.5}, "trim=0.5, accepted: a number >= 0"),
        ("geometric_median", {"steps": 0}, "steps=0, accepted: a whole number >= 1"),
        ("krum", {"liars": -1}, "liars=-1, accepted: a whole number >= 0"),
        ("multi_krum", {"chosen": 1.5}, "chosen=1.5, accepted: a whole number >= 1"),
        ("norm_clipping", {"bound": float("inf")}, "bound=inf, accepted: a number > 0"),
    ],
)
def test_options_are_checked(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_method(name, **options)
