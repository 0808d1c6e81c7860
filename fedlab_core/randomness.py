"""Randomness that is addressed, not consumed: every draw has a name, so order, engine and workers cannot change it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedlab_core.check import checked


@checked
def generator(seed: int, purpose: str, *address: int) -> torch.Generator:
    """A CPU generator keyed by everything that names the draw.

    Args:
        seed: the run's seed, any integer.
        purpose: what is drawn, such as "sampling", "batches" or "initial weights".
        address: further coordinates, usually (round,) or (round, client).

    Returns:
        A `torch.Generator` whose stream depends on all arguments and on nothing else: equal addresses give equal
        streams, different ones independent streams (the key is a BLAKE2b hash).
    """
    key = repr((int(seed), str(purpose), tuple(int(a) for a in address))).encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little", signed=True)
    return torch.Generator().manual_seed(number)


@checked
@contextmanager
def torch_draws_from(draws: torch.Generator) -> Iterator[None]:
    """Inside the block, torch's global CPU generator is seeded by one draw from `draws`; after it, it is as it was."""
    seed = int(torch.randint(2**62, (), generator=draws))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs as well
        yield
