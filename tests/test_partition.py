"""Partitions are exact, repeatable and say what is possible; feature skew does what its parameters say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlab_core.data.feature_skew import FeatureSkew
from fedlab_core.data.shares import dirichlet_rows, raised_to
from fedlab_core.partition import (
    Partition,
    dirichlet,
    iid,
    label_counts,
    natural,
    pooled,
    quantity,
    shards,
    with_feature_skew,
)
from fedlab_core.randomness import generator

FAST = settings(max_examples=60)


def draws(seed: int = 0) -> torch.Generator:
    return generator(seed, "test partition")


def labels_of(n: int, classes: int = 10, seed: int = 0) -> Tensor:
    return torch.randint(classes, (n,), generator=generator(seed, "test labels"))


def is_exact(partition: Partition, n: int) -> bool:
    return torch.equal(partition.indices.sort().values, torch.arange(n)) and int(partition.sizes.sum()) == n


@st.composite
def requests(draw: st.DrawFn) -> tuple[int, int, int]:
    """n examples, clients, min_size that are possible together, up to the very edge."""
    clients, min_size = draw(st.integers(1, 40)), draw(st.integers(0, 5))
    return max(1, clients * min_size) + draw(st.integers(0, 200)), clients, min_size


# --- every kind ------------------------------------------------------------------------------------------------------


@FAST
@given(requests(), st.integers(0, 2**32), st.integers(1, 12), st.sampled_from([1e-3, 0.05, 0.3, 1.0, 100.0]))
def test_dirichlet_is_exact_and_honours_min_size(
    request: tuple[int, int, int], seed: int, classes: int, alpha: float
) -> None:
    n, clients, min_size = request
    labels = labels_of(n, classes, seed)
    made = dirichlet(labels, clients, alpha, draws(seed), min_size)
    assert is_exact(made, n) and len(made) == clients and int(made.sizes.min()) >= min_size
    assert torch.equal(label_counts(made, labels, classes).sum(0), labels.bincount(minlength=classes))
    again = dirichlet(labels, clients, alpha, draws(seed), min_size)
    assert torch.equal(made.indices, again.indices) and made.fingerprint == again.fingerprint


@FAST
@given(requests(), st.integers(0, 2**32), st.sampled_from([0.0, 0.5, 1.0, 5.0, 1000.0]))
def test_quantity_is_exact_and_honours_min_size(request: tuple[int, int, int], seed: int, sigma: float) -> None:
    n, clients, min_size = request
    made = quantity(n, clients, draws(seed), sigma, min_size)
    assert is_exact(made, n) and len(made) == clients and int(made.sizes.min()) >= min_size
    assert made.fingerprint == quantity(n, clients, draws(seed), sigma, min_size).fingerprint


@FAST
@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 100), st.integers(0, 2**32))
def test_shards_are_exact_and_even(clients: int, per_client: int, extra: int, seed: int) -> None:
    n = clients * per_client + extra
    labels = labels_of(n, 5, seed)
    made = shards(labels, clients, per_client, draws(seed))
    assert is_exact(made, n) and len(made) == clients
    assert int(made.sizes.max() - made.sizes.min()) <= per_client
    assert made.fingerprint == shards(labels, clients, per_client, draws(seed)).fingerprint


@FAST
@given(st.integers(1, 300), st.data())
def test_iid_is_exact_and_even(n: int, data: st.DataObject) -> None:
    clients, seed = data.draw(st.integers(1, n)), data.draw(st.integers(0, 2**32))
    made = iid(n, clients, draws(seed))
    assert is_exact(made, n) and len(made) == clients
    assert int(made.sizes.max() - made.sizes.min()) <= 1
    assert made.fingerprint == iid(n, clients, draws(seed)).fingerprint


@FAST
@given(st.lists(st.integers(-3, 30), min_size=1, max_size=200))
def test_natural_clients_are_the_groups(values: list[int]) -> None:
    groups = torch.tensor(values)
    made = natural(groups)
    assert is_exact(made, len(values)) and len(made) == len(set(values))
    for client, group in zip(made, sorted(set(values)), strict=True):
        assert torch.equal(client, (groups == group).nonzero().flatten())


def test_million_clients_of_one_example() -> None:
    n = 1_000_000
    assert is_exact(iid(n, n, draws()), n)
    assert quantity(n, n, draws(), min_size=1).sizes.eq(1).all()
    assert len(natural(torch.arange(n))) == n
    assert len(pooled(n)[0]) == n


def test_another_generator_gives_another_partition() -> None:
    labels = labels_of(300)
    for make in (
        lambda g: iid(300, 7, g),
        lambda g: shards(labels, 7, 2, g),
        lambda g: dirichlet(labels, 7, 0.3, g),
        lambda g: quantity(300, 7, g),
    ):
        assert make(draws(0)).fingerprint != make(draws(1)).fingerprint


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    labels = labels_of(300)
    made = with_feature_skew(dirichlet(labels, 20, 0.1, draws(), 10), "noise", 0.1, draws())
    assert made.transform is not None
    made.transform.apply(torch.zeros(2, 1, 4, 4), 3)
    shards(labels, 5, 2, draws())
    quantity(300, 5, draws())
    assert torch.equal(before, torch.get_rng_state())


# --- what each kind is for -------------------------------------------------------------------------------------------


def test_two_shards_of_balanced_classes_hold_at_most_two_labels() -> None:
    """MNIST's shape in McMahan et al. 2017, section 3: 200 shards of 300, two per client."""
    labels = torch.arange(10).repeat(6000)
    made = shards(labels, 100, 2, draws())
    counts = label_counts(made, labels, 10)
    assert made.sizes.eq(600).all()
    assert int((counts > 0).sum(1).max()) == 2
    assert sorted(counts[counts > 0].unique().tolist()) == [300, 600]


def test_shards_shuffle_ties() -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    assert shards(labels, 2, 1, draws())[0].sort().values.tolist() != list(range(50))


@pytest.mark.parametrize("alpha", [1e-4, 0.1, 1.0, 30.0])
def test_dirichlet_draws_have_the_right_moments(alpha: float) -> None:
    rows, columns = 20_000, 4
    share = dirichlet_rows(alpha, rows, columns, draws())
    assert torch.allclose(share.sum(1), torch.ones(rows, dtype=torch.float64)) and bool(share.isfinite().all())
    variance = (1 / columns) * (1 - 1 / columns) / (columns * alpha + 1)
    assert torch.allclose(
        share.mean(0), torch.full((4,), 0.25, dtype=torch.float64), atol=5 * math.sqrt(variance / rows)
    )
    assert torch.allclose(share.var(0), torch.full((4,), variance, dtype=torch.float64), rtol=0.06)


def test_alpha_orders_the_skew() -> None:
    labels = labels_of(6000)

    def concentration(alpha: float) -> float:
        counts = label_counts(dirichlet(labels, 10, alpha, draws(), min_size=0), labels, 10).double()
        return float((counts.max(0).values / counts.sum(0)).mean())  # the largest holder's share of a class

    values = [concentration(alpha) for alpha in (1e-3, 0.1, 1.0, 1e6)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.95 and values[-1] < 0.11


def test_dirichlet_says_how_many_examples_it_moved() -> None:
    labels = labels_of(100, 2)
    made = dirichlet(labels, 20, 0.01, draws(), min_size=5)
    assert made.sizes.eq(5).all()
    assert made.description.startswith("dirichlet(alpha=0.01) with ")
    assert "moved for min_size=5, 20 clients" in made.description


@FAST
@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 10))
def test_repair_takes_one_by_one_from_the_largest(sizes: list[int], least: int) -> None:
    least = min(least, sum(sizes) // len(sizes))
    expected = list(sizes)
    while min(expected) < least:
        expected[expected.index(min(expected))] += 1
        expected[expected.index(max(expected))] -= 1
    raised = raised_to(torch.tensor(sizes), least)
    assert sorted(raised.tolist()) == sorted(expected)
    assert all(after <= before or after == least for before, after in zip(sizes, raised.tolist(), strict=True))


def test_sigma_orders_the_sizes() -> None:
    spread = [quantity(10_000, 50, draws(), s).sizes.double().std().item() for s in (0.0, 0.5, 1.0, 2.0)]
    assert spread == sorted(spread) and spread[0] == 0.0 and spread[3] > 200


def test_natural_leaves_out_small_groups_and_says_so() -> None:
    groups = torch.tensor([5, 5, 7, 9, 9, 9])
    made = natural(groups, min_size=2)
    assert [client.tolist() for client in made] == [[0, 1], [3, 4, 5]]
    assert made.description == "natural(min_size=2, 1 groups left out), 2 clients"
    assert [int(groups[client[0]]) for client in made] == [5, 9]


def test_descriptions() -> None:
    labels = labels_of(100)
    assert iid(100, 20, draws()).description == "iid, 20 clients"
    assert pooled(100).description == "pooled, 1 client"
    assert shards(labels, 10, 2, draws()).description == "shards(2 per client), 10 clients"
    assert dirichlet(labels, 3, 0.3, draws()).description == "dirichlet(alpha=0.3), 3 clients"
    assert quantity(100, 3, draws()).description == "quantity(sigma=1), 3 clients"
    skewed = with_feature_skew(iid(100, 20, draws()), "rotation", 30, draws())
    assert skewed.description == "iid, 20 clients, rotation(30)"


# --- the container ---------------------------------------------------------------------------------------------------


def test_label_counts_against_a_plain_count() -> None:
    labels = labels_of(200, 4)
    made = dirichlet(labels, 9, 0.2, draws())
    counts = label_counts(made, labels, 4)
    assert counts.tolist() == [[int((labels[client] == c).sum()) for c in range(4)] for client in made]


def test_clients_are_rows() -> None:
    made = Partition(torch.tensor([4, 2, 0, 1, 3]), torch.tensor([0, 2, 2, 5]), "by hand")
    assert len(made) == 3 and made.sizes.tolist() == [2, 0, 3]
    assert [client.tolist() for client in made] == [[4, 2], [], [0, 1, 3]]
    for client in (-1, 3):
        with pytest.raises(IndexError, match="expected 0 to 2"):
            made[client]


def test_fingerprint_tells_content_not_words() -> None:
    made = iid(50, 5, draws())
    same = Partition(made.indices, made.offsets, "other words")
    moved = Partition(made.indices, torch.tensor([0, 9, 20, 30, 40, 50]), made.description)
    assert len(made.fingerprint) == 16 and made.fingerprint == same.fingerprint
    others = [moved, Partition(made.indices.flip(0), made.offsets, made.description)]
    others += [with_feature_skew(made, kind, 0.5, draws()) for kind in ("rotation", "contrast", "noise")]
    assert len({p.fingerprint for p in [made, *others]}) == 6


@pytest.mark.parametrize("offsets", [[0], [1, 3], [0, 2], [0, 4], [0, 2, 1, 3]])
def test_bad_offsets(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets"):
        Partition(torch.arange(3), torch.tensor(offsets), "bad")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (lambda: iid(100, 200, draws()), "clients=200: 100 examples make at most 100 clients"),
        (lambda: iid(100, 0, draws()), "clients=0: expected 1 or more"),
        (lambda: iid(0, 1, draws()), "n=0"),
        (lambda: pooled(0), "n=0"),
        (lambda: quantity(100, 30, draws(), min_size=4), "at most 25 clients with min_size=4, or min_size at most 3"),
        (lambda: quantity(100, 3, draws(), sigma=-1), "sigma=-1"),
        (lambda: quantity(100, 3, draws(), sigma=math.inf), "sigma=inf"),
        (lambda: quantity(100, 3, draws(), min_size=-1), "min_size=-1: expected 0 or more"),
        (
            lambda: shards(labels_of(100), 60, 2, draws()),
            "at most 50 clients with per_client=2, or per_client at most 1",
        ),
        (lambda: shards(labels_of(100), 5, 0, draws()), "per_client=0"),
        (lambda: shards(labels_of(100).view(50, 2), 5, 2, draws()), r"labels: got \(50, 2\) of int64"),
        (lambda: dirichlet(labels_of(100), 101, 1.0, draws()), "clients=101: 100 examples make at most 100 clients"),
        (lambda: dirichlet(labels_of(100), 5, 0.0, draws()), "alpha=0.0: expected a positive, finite number"),
        (lambda: dirichlet(labels_of(100), 5, math.nan, draws()), "alpha=nan"),
        (lambda: dirichlet(labels_of(100).float(), 5, 1.0, draws()), "labels: got .* of float32"),
        (lambda: natural(None), "no natural clients"),
        (lambda: natural(torch.tensor([1, 1, 2]), 3), "min_size=3: the largest group has 2 examples, so at most that"),
        (lambda: label_counts(pooled(3), torch.tensor([0, 1, 5]), 5), "from 0 to 5, expected 0 to 4"),
        (lambda: with_feature_skew(pooled(3), "blur", 1.0, draws()), "kind='blur', accepted: 'rotation'"),  # type: ignore[arg-type]
        (
            lambda: with_feature_skew(pooled(3), "rotation", 181, draws()),
            "strength=181, accepted: .* <= 180",
        ),
        (lambda: with_feature_skew(pooled(3), "noise", -0.1, draws()), "strength=-0.1"),
    ],
)
def test_impossible_requests_say_what_is_possible(request_, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        request_()


# --- feature skew ----------------------------------------------------------------------------------------------------


def skew(kind: str, *parameters: float) -> FeatureSkew:
    return FeatureSkew(kind, torch.tensor(parameters), seed=7)  # type: ignore[arg-type]


def images(n: int = 6, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    return torch.randint(256, (n, channels, height, width), generator=generator(0, "test images"), dtype=torch.uint8)


def test_rotation_by_a_right_angle_is_rot90() -> None:
    x = images(channels=3)
    transform = skew("rotation", 90.0, -90.0, 180.0, 0.0)
    for client, turns in enumerate((1, -1, 2, 0)):
        assert torch.equal(transform.apply(x, client), torch.rot90(x, turns, (2, 3)))


def test_rotation_keeps_a_round_spot_round_in_a_wide_image() -> None:
    y, x = torch.meshgrid(torch.arange(20) - 9.5, torch.arange(40) - 19.5, indexing="ij")
    spot = (-(y**2 + x**2) / (2 * 3**2)).exp()[None, None]
    assert torch.allclose(skew("rotation", 37.0).apply(spot, 0), spot, atol=0.03)


def test_contrast_scales_around_each_image_mean() -> None:
    x = torch.tensor([[[[0.4, 0.6]]], [[[0.1, 0.3]]]])
    expected = torch.tensor([[[[0.45, 0.55]]], [[[0.15, 0.25]]]])
    assert torch.allclose(skew("contrast", 0.5).apply(x, 0), expected)
    assert skew("contrast", 100.0).apply(x, 0).unique().tolist() == [0.0, 1.0]
    assert torch.equal(skew("contrast", 1.0).apply(images(), 0), images())


def test_noise_belongs_to_the_example() -> None:
    x = images(50)
    transform = skew("noise", 0.1, 0.1)
    whole = transform.apply(x, 0)
    order = torch.randperm(50, generator=draws())
    assert torch.equal(transform.apply(x[order], 0), whole[order])
    assert torch.equal(torch.cat([transform.apply(batch, 0) for batch in x.split(7)]), whole)
    assert not torch.equal(transform.apply(x, 1), whole)
    assert torch.equal(skew("noise", 0.1, 0.1).apply(x, 0), whole)


def test_noise_has_the_stated_level_and_differs_between_examples() -> None:
    x = 0.3 + 0.4 * torch.rand(200, 1, 16, 16, generator=draws())
    noise = skew("noise", 0.05).apply(x, 0) - x
    assert abs(noise.std().item() - 0.05) < 0.005 and abs(noise.mean().item()) < 0.002
    correlation = torch.corrcoef(noise.flatten(1)[:20]) - torch.eye(20)
    assert correlation.abs().max() < 0.3


def test_a_generator_draws_fresh_noise() -> None:
    x = torch.full((2, 1, 8, 8), 0.5)
    transform = skew("noise", 0.1)
    first, second = (transform.apply(x, 0, draws(seed)) for seed in (0, 1))
    assert torch.equal(first, transform.apply(x, 0, draws(0)))
    assert not torch.equal(first, second) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize(("kind", "value"), [("rotation", 20.0), ("contrast", 0.7), ("noise", 0.1)])
def test_bytes_and_floats_agree_and_the_input_stays(kind: str, value: float) -> None:
    x = images(channels=3)
    kept, transform = x.clone(), skew(kind, value)
    as_bytes, as_floats = transform.apply(x, 0), transform.apply(x.float() / 255, 0)
    assert torch.equal(x, kept) and as_bytes.dtype == torch.uint8 and as_floats.dtype == torch.float32
    assert not torch.equal(as_bytes, x)
    assert torch.allclose(as_bytes.float() / 255, as_floats, atol=0.51 / 255)
    assert transform.apply(x[:0], 0).shape == (0, 3, 8, 8)


def test_parameters_are_drawn_per_client_within_the_strength() -> None:
    base = iid(2000, 2000, draws())
    for kind, low, high in (("rotation", -30, 30), ("contrast", math.exp(-0.5), math.exp(0.5)), ("noise", 0, 0.2)):
        strength = {"rotation": 30, "contrast": 0.5, "noise": 0.2}[kind]
        transform = with_feature_skew(base, kind, strength, draws()).transform  # type: ignore[arg-type]
        assert transform is not None and transform.parameters.shape == (2000,)
        smallest, largest = transform.parameters.min().item(), transform.parameters.max().item()
        edge = 0.01 * (high - low)
        assert low <= smallest < low + edge and high - edge < largest <= high + 1e-6


@pytest.mark.parametrize(
    ("x", "client", "says"),
    [
        (torch.zeros(2, 8, 8), 0, r"x has shape \(2, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8), 1, "client=1: expected 0 to 0"),
        (torch.full((2, 1, 8, 8), -0.1), 0, "not yet normalised"),
        (torch.full((2, 1, 8, 8), 2.0), 0, "not yet normalised"),
    ],
)
def test_bad_images(x: Tensor, client: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        skew("rotation", 10.0).apply(x, client)


# --- arguments of any kind -------------------------------------------------------------------------------------------


@FAST
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=5), min_size=1, max_size=8), st.sampled_from(["list", "numpy", "i4"])
)
def test_lists_and_arrays_become_tensors(clients: list[list[int]], form: str) -> None:
    indices, offsets = [i for client in clients for i in client], [0]
    for client in clients:
        offsets.append(offsets[-1] + len(client))
    dtype = {"list": None, "numpy": np.int64, "i4": np.int32}[form]
    given_ = (indices, offsets) if dtype is None else (np.array(indices, dtype), np.array(offsets, dtype))
    made = Partition(*given_, "own")
    assert [client.tolist() for client in made] == clients and made.indices.dtype == made.offsets.dtype == torch.int64
    assert made.fingerprint == Partition(torch.tensor(indices).long(), torch.tensor(offsets), "own").fingerprint
    counts = [indices.count(i) for i in set(indices)]
    assert made.repeated == sum(count > 1 for count in counts)
    assert ("held more than once" in made.description) == (made.repeated > 0)
    assert replace(made, transform=None).description == made.description  # said once
    highest = max(indices, default=-1)
    made.check(highest + 1 if indices else 1)
    if highest > 0:
        with pytest.raises(ValueError, match=f"client .* holds example {highest}, accepted: 0 to {highest - 1}"):
            made.check(highest)


@pytest.mark.parametrize(
    ("indices", "offsets", "says"),
    [
        ([0, -1], [0, 2], r"indices\[1\]=-1, accepted: positions in the training set, from 0"),
        ([0.0, 1.0], [0, 2], r"indices is float64 \(2,\), accepted: whole numbers"),
        ([[0, 1]], [0, 2], r"indices is int64 \(1, 2\), accepted: whole numbers"),
        ([True, False], [0, 2], r"indices is bool \(2,\)"),
        (["a"], [0, 1], "indices: .*accepted: whole numbers"),
        ([[0], [1, 2]], [0, 1], "indices: .*accepted: whole numbers"),
        ([0, 1], [0, 3], r"offsets=\[0, 3\]: expected to rise from 0 to the number of indices, 2"),
        ([0, 1, 2], [0, 2, 1, 3], r"offsets=\[0, 2, 1, 3\]: expected to rise"),
    ],
)
def test_indices_and_offsets_that_cannot_be(indices: list, offsets: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Partition(indices, offsets, "own")  # type: ignore[arg-type]


def test_examples_held_twice_are_said() -> None:
    assert Partition([0, 1, 1, 2], [0, 2, 4], "own").description == "own, 1 example held more than once"  # type: ignore[arg-type]
    assert Partition([0, 1, 1, 0], [0, 2, 4], "").description == "2 examples held more than once"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="indices: client 1 holds example 99, accepted: 0 to 59, 60 examples"):
        Partition([0, 1, 99, 3], [0, 2, 4], "own").check(60)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="transform is for 3 clients, accepted: for 2, as many as here"):
        replace(Partition([0, 1], [0, 1, 2], "own"), transform=skew("rotation", 1.0, 2.0, 3.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (lambda: dirichlet(labels_of(100), 10**9, 1.0, draws(), 0), "clients=1000000000, accepted: at most 10000000"),
        (lambda: quantity(100, 10**9, draws(), min_size=0), "clients=1000000000, accepted: at most 10000000"),
        (lambda: iid(10**12, 10, draws()), "n=1000000000000, accepted: at most 100000000"),
        (lambda: dirichlet(torch.arange(10**4), 10**4, 1.0, draws()), "clients=10000: a table .* at most 5000 clients"),
        (lambda: label_counts(pooled(3), torch.tensor([0, 1, 2]), 10**9), "clients=1: a table .* too large"),
        (lambda: label_counts(pooled(4), torch.tensor([0, 1, 2]), 3), "holds example 3, accepted: 0 to 2"),
        (lambda: iid(100, 2.5, draws()), "clients=2.5, accepted: a whole number"),
        (lambda: iid(100, True, draws()), "clients=True, accepted: a whole number"),
        (lambda: iid("100", 5, draws()), "n='100', accepted: a whole number"),
        (lambda: iid(100, 5, 0), "generator=0, accepted: a torch.Generator"),
        (lambda: quantity(100, 5, draws(), sigma="1"), "sigma='1', accepted: a number"),
        (lambda: quantity(100, 5, draws(), sigma=math.nan), "sigma=nan, accepted: a number"),
        (lambda: quantity(100, 5, draws(), min_size=1.5), "min_size=1.5, accepted: a whole number"),
        (lambda: shards(labels_of(100), 5, None, draws()), "per_client=None, accepted: a whole number"),
        (lambda: dirichlet(labels_of(100), 5, None, draws()), "alpha=None, accepted: a number"),
        (lambda: dirichlet(labels_of(100), 5, [1.0], draws()), r"alpha=\[1.0\], accepted: a number"),
        (lambda: dirichlet([0.5, 1.5], 1, 1.0, draws()), "labels is float64 .*accepted: whole numbers"),
        (lambda: natural([]), "groups: got .0,. of int64, expected one int64 per example"),
        (lambda: natural([1, 1], 0), "min_size=0, accepted: a whole number >= 1"),
        (lambda: with_feature_skew(pooled(3), "noise", "0.1", draws()), "strength='0.1', accepted: a number"),
        (lambda: with_feature_skew(pooled(3), "noise", 0.1, None), "generator=None, accepted"),
    ],
)
def test_unfit_and_unbounded_requests_are_refused_at_once(request_, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        request_()


def test_scalars_and_labels_of_numpy_are_as_good() -> None:
    labels = labels_of(100)
    made = dirichlet(labels.numpy(), np.int32(7), np.float32(0.5), draws(), np.int64(2))
    assert made.fingerprint == dirichlet(labels, 7, 0.5, draws(), 2).fingerprint
    assert iid(np.int64(100), np.int8(4), draws()).fingerprint == iid(100, 4, draws()).fingerprint
    assert natural(labels.tolist()).fingerprint == natural(labels).fingerprint
