"""Random numbers that a model draws in its forward pass (dropout, stochastic depth), addressed like all draws."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedlab_core.check import checked
from fedlab_core.randomness import generator

_LOCK = threading.Lock()  # torch's default generators belong to the whole process


@checked
class AddressedDraws(TorchDispatchMode):
    """Inside the block, operations that would draw from torch's global generators draw from a stream of their own.

    The stream is keyed like a `randomness.generator`, one for each device. The global generators are put back after
    every draw, so they are never moved; and threads that draw at the same time do not disturb each other.

    Args:
        seed, purpose, address: the key of the stream.

    Attributes:
        used: whether anything was drawn.
    """

    def __init__(self, seed: int, purpose: str, *address: int) -> None:
        super().__init__()
        self._key = seed, purpose, address
        self._streams: dict[torch.device, torch.Tensor] = {}
        self.used = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tells torch not to hide this class from its compiler, which it would import, for over a second, to do so."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        with _LOCK:
            return self._drawn(lambda: func(*args, **kwargs), _device(args, kwargs))

    def _drawn(self, draw: Callable[[], Any], device: torch.device) -> Any:
        own = _default_generator(device)
        before = own.get_state()
        try:
            if device in self._streams:
                own.set_state(self._streams[device])
            else:
                seed, purpose, address = self._key
                own.manual_seed(generator(seed, purpose, *address).initial_seed())
            first = own.get_state()
            result = draw()
            self._streams[device] = own.get_state()
            self.used |= not torch.equal(first, self._streams[device])  # attention without dropout draws nothing
            return result
        finally:
            own.set_state(before)


def _device(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """The device that an operation draws on: its tensors', or the one it is asked to make a tensor on."""
    found = next((a.device for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)), kwargs.get("device"))
    return torch.device("cpu" if found is None else found)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
