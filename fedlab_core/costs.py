"""What training costs: bytes that travel, local steps, floating-point operations, bytes kept for the backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedlab_core.state import State


@dataclass(frozen=True)
class Costs:
    """Costs of one round, or of several added up.

    Attributes:
        bytes_down: bytes sent from the server to the sampled clients, counted from the payload itself.
        bytes_up: bytes sent back by them.
        steps: local gradient steps, summed over clients.
        examples: examples that went through forward and backward, summed over clients (a repeated epoch counts again).
        exchanges: times that the server and all sampled clients wait for each other; 1 per round of FedAvg.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    steps: int = 0
    examples: int = 0
    exchanges: int = 0

    @property
    def bytes(self) -> int:
        """Both directions."""
        return self.bytes_down + self.bytes_up

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(
            self.bytes_down + other.bytes_down,
            self.bytes_up + other.bytes_up,
            self.steps + other.steps,
            self.examples + other.examples,
            self.exchanges + other.exchanges,
        )


def serialise(payload: State) -> bytes:
    """The payload as it would go over a wire (safetensors): 8 bytes of length, a JSON header, then the tensors'
    bytes."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in payload.items()})


def serialised_tensor_bytes(message: bytes) -> int:
    """Bytes of a serialised payload that hold tensors: its length less the 8 length bytes and the header they
    announce."""
    return len(message) - 8 - int.from_bytes(message[:8], "little")


def count_flops(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """Floating-point operations of one forward and backward pass (one multiply-add = 2), matrix products and
    convolutions.

    Args:
        loss: maps the model to a scalar loss; only its operations and their gradients are counted.
    """
    with FlopCounterMode(display=False) as counter:
        loss(model).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def kept_for_backward(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward: each storage once, parameters and buffers excluded.

    On the meta device too, where nothing is computed."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:  # its address; holding the tensor keeps it from being used again
            kept[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(model)
    return sum(size for size, _ in kept.values())
