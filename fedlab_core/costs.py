"""What training costs: bytes that travel, local steps, floating-point operations, bytes in memory."""

import inspect
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fedlab_core.check import Natural, checked
from fedlab_core.memory import packed
from fedlab_core.state import State, parameter_names, state_bytes

MIB = 2**20


@checked
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

    bytes_down: Natural = 0
    bytes_up: Natural = 0
    steps: Natural = 0
    examples: Natural = 0
    exchanges: Natural = 0

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


@checked
def serialise(payload: State) -> bytes:
    """The payload as it would go over a wire (safetensors): 8 bytes of length, a JSON header, then the tensors'
    bytes."""
    return packed({name: tensor.detach().cpu().contiguous() for name, tensor in payload.items()})


@checked
def serialised_tensor_bytes(message: bytes) -> int:
    """Bytes of a serialised payload that hold tensors: its length less the 8 length bytes and the header they
    announce."""
    return len(message) - 8 - int.from_bytes(message[:8], "little")


@checked
@dataclass(frozen=True)
class Memory:
    """Bytes a client needs for one training step.

    Attributes:
        kept: activations that autograd keeps for the backward pass, each storage once.
        weights: parameters and buffers that the client holds, a moving-average copy of them included.
        gradients: one value per trained weight.
        optimiser: what the optimiser keeps between steps.
    """

    kept: Natural
    weights: Natural
    gradients: Natural
    optimiser: Natural

    @property
    def total(self) -> int:
        """All four."""
        return self.kept + self.weights + self.gradients + self.optimiser

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self) | {"total": self.total}


@checked
def step_memory(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    moments: Natural = 0,
    *,
    trained: Collection[str] | None = None,
    held: Collection[str] | None = None,
) -> Memory:
    """Bytes that one local step needs: activations are measured, weights, gradients and moments are counted.

    Left out: activations that are freed before the backward pass, temporary buffers of kernels, and the overhead of the
    allocator and of PyTorch itself. On the meta device attention consists of plain products, whose weights
    (B, heads, T, T) are kept; the fused kernels of a CPU and a GPU compute them again.

    Args:
        loss: maps the model to a scalar loss.
        moments: values that the optimiser keeps per trained weight: 0 for plain SGD, 1 with momentum, 2 for Adam.
        trained: names of the trained parameters; by default those that ask for a gradient.
        held: names of the parameters and buffers that the client holds; all by default.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    chosen = parameter_names(model) if trained is None else trained
    gradients = state_bytes({name: p for name, p in model.named_parameters() if name in chosen})
    weights = state_bytes({name: tensor for name, tensor in state.items() if held is None or name in held})
    return Memory(kept_for_backward(model, loss), weights, gradients, moments * gradients)


@checked
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


@checked
def count_flops(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> int:
    """Floating-point operations of one forward and backward pass (one multiply-add = 2), in products and convolutions.

    Counted is what the formulas define, not what an implementation does with them: the count depends neither on the
    processor nor on PyTorch's version, and a fused kernel that computes something twice is charged once. Every product
    a b costs as much again for each of a and b that asks for a gradient. Only the forward pass is run; under
    `torch.no_grad` it is all that is counted. Counted are linear layers, convolutions, matrix products, einsum of two
    operands, attention and recurrent layers (whose first step is charged like the others); everything else (norms,
    activations, sums) is left out.

    Args:
        loss: maps the model to a scalar loss; only its operations and their gradients are counted.
    """
    with _Products() as counted:
        loss(model)
    return counted.total


class _Products(TorchFunctionMode):
    """Adds up what the products called inside it cost, see `count_flops`."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        form = _FORMS.get(getattr(func, "__name__", ""))
        if form is not None:
            for multiply_adds, *factors in form(out, *args, **(kwargs or {})):
                gradients = sum(map(_asks, factors)) if torch.is_grad_enabled() else 0
                self.total += 2 * multiply_adds * (1 + gradients)
        return out


Products = Iterator[tuple[Any, ...]]
"""The products of an operation: multiply-adds, then for both factors the tensor, or whether it asks for a gradient."""


def _asks(factor: Tensor | bool) -> bool:
    return factor if isinstance(factor, bool) else factor.requires_grad


def _product(out: Tensor, input: Tensor, other: Tensor | None = None, *_: Any, **named: Any) -> Products:
    yield out.numel() * input.shape[-1], input, named["mat2"] if other is None else other


def _linear(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Products:
    yield out.numel() * weight.shape[-1], input, weight


def _convolution(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Products:
    yield out.numel() * weight[0].numel(), input, weight


def _transposed_convolution(out: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Products:
    yield input.numel() * weight[0].numel(), input, weight


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Products:
    scores = out.numel() // out.shape[-1] * key.shape[-2]
    yield scores * query.shape[-1], query, key
    yield scores * value.shape[-1], _asks(query) or _asks(key), value


def _multi_head_attention(out: Any, *args: Any, **kwargs: Any) -> Products:
    """`nn.MultiheadAttention`, inputs (T, B, width) or (T, width): four projections around the heads' attention."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs).arguments
    query, key, asks = given["query"], given["key"], []
    for name in ("query", "key", "value"):
        own, tensor = given.get(f"{name[0]}_proj_weight"), given[name]
        weight = given["in_proj_weight"] if own is None else own
        yield tensor.numel() * query.shape[-1], tensor, weight
        asks.append(_asks(tensor) or _asks(weight))
    yield query.numel() * len(key), asks[0], asks[1]
    yield query.numel() * len(key), asks[0] or asks[1], asks[2]
    yield query.numel() * query.shape[-1], any(asks), given["out_proj_weight"]


def _recurrent(out: Any, input: Tensor, *rest: Any) -> Products:
    """`nn.LSTM`, `nn.GRU` and `nn.RNN`: every weight matrix once for each example and time step."""
    weights, _, layers, _, _, both = rest[2:8] if isinstance(rest[2], list | tuple) else rest[1:7]  # packed or padded
    steps, per_direction = input.numel() // input.shape[-1], len(weights) // (layers * (1 + both))
    asks = _asks(input) or any(map(_asks, weights))
    for number, weight in enumerate(weights):
        if weight.ndim == 2:  # not a bias
            reads_input = number in (0, per_direction * both)
            yield steps * weight.numel(), _asks(input) if reads_input else asks, weight


def _cell(out: Any, input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, *_: Any) -> Products:
    steps, state = input.numel() // input.shape[-1], hx if isinstance(hx, Tensor) else hx[0]
    yield steps * w_ih.numel(), input, w_ih
    yield steps * w_hh.numel(), state, w_hh


def _einsum(out: Tensor, equation: str, *operands: Tensor) -> Products:
    terms, arrow, result = equation.replace(" ", "").partition("->")
    if len(operands) == 2:
        sizes: dict[str, int] = {}
        for term, tensor in zip(terms.split(","), operands, strict=True):
            before, _, after = term.partition("...")
            sizes |= dict(zip(before, tensor.shape, strict=False))
            sizes |= dict(zip(after[::-1], tensor.shape[::-1], strict=False))
        summed = [x for x in sizes if (x not in result if arrow else terms.count(x) > 1)]
        yield out.numel() * math.prod(sizes[x] for x in summed), *operands


_FORMS: dict[str, Callable[..., Products]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner"), _product),
    **dict.fromkeys(("addmm", "addmv", "baddbmm"), lambda out, _, *factors, **__: _product(out, *factors)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _cell),
    "einsum": _einsum,
}
"""How many multiply-adds a function of PyTorch takes, by its name: (its output, *its arguments) -> products."""
