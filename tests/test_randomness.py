"""Addressed randomness: the address decides, and nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab_core.randomness import generator

addresses = st.tuples(st.integers(), st.text(max_size=8), st.lists(st.integers(), max_size=3))


def first(seed: int, purpose: str, *address: int) -> tuple[int, ...]:
    return tuple(torch.randint(2**62, (2,), generator=generator(seed, purpose, *address)).tolist())


@given(addresses, addresses)
def test_streams_are_equal_exactly_for_equal_addresses(
    a: tuple[int, str, list[int]], b: tuple[int, str, list[int]]
) -> None:
    assert first(a[0], a[1], *a[2]) == first(a[0], a[1], *a[2])
    assert (first(a[0], a[1], *a[2]) == first(b[0], b[1], *b[2])) == (a == b)


def test_keys_are_fixed() -> None:
    """Recorded runs depend on this number: another one here means that none of them can be repeated."""
    assert generator(0, "batches", 3, 14).initial_seed() == 6791975436639643314


def test_address_parts_do_not_run_together() -> None:
    assert first(1, "a", 12, 3) != first(1, "a", 1, 23)
    assert first(1, "a1", 2) != first(1, "a", 12)
    assert first(11, "a") != first(1, "1a")


def test_integers_count_by_value() -> None:
    """Rounds and clients may arrive as zero-dimensional tensors: the number decides, not its type."""
    assert first(0, "a", torch.tensor(5)) == first(0, "a", 5)  # type: ignore[arg-type]


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    first(0, "a", 1)
    assert torch.equal(before, torch.get_rng_state())


def test_streams_of_neighbouring_clients_are_uncorrelated() -> None:
    draws = torch.stack([torch.randn(2000, generator=generator(0, "a", k)) for k in range(30)])
    correlation = torch.corrcoef(draws) - torch.eye(30)
    assert correlation.abs().max() < 5 / 2000**0.5
