"""Matrix products and recurrences of many clients at once, with backward passes that update the weights in place."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Descent:
    """A plain SGD step, w <- (1 - lr * decay) w - lr * gradient, taken where the gradient is computed.

    The gradient is never stored: one matrix product reads and writes the weights. This is right where nothing else
    reads the gradient and where a weight is used once in a forward pass.
    """

    lr: float
    decay: float

    def weight(self, weight: Tensor, g: Tensor, x: Tensor) -> None:
        """Steps a weight (clients, out, in) along g^T x, from g (clients, rows, out) and x (clients, rows, in)."""
        weight.baddbmm_(g.transpose(1, 2), x, beta=1 - self.lr * self.decay, alpha=-self.lr)

    def bias(self, bias: Tensor, gradient: Tensor) -> None:
        """Steps a bias."""
        if self.decay:
            bias.mul_(1 - self.lr * self.decay)
        bias.sub_(gradient, alpha=self.lr)


def _descend(weight: Tensor, g: Tensor, x: Tensor, descent: Descent | None) -> None:
    """The gradient g^T x of a weight (clients, out, in), from g (clients, rows, out) and x (clients, rows, in): taken
    as a step, or left in `weight.grad`, whose memory is used again and again."""
    with torch.no_grad():
        if descent is not None:
            descent.weight(weight, g, x)
            return
        if weight.grad is not None:
            weight.grad.baddbmm_(g.transpose(1, 2), x)
            return
        if (kept := getattr(weight, "kept", None)) is None:
            kept = torch.empty_like(weight)
            weight.kept = kept  # type: ignore[attr-defined]
        weight.grad = torch.bmm(g.transpose(1, 2), x, out=kept)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, descent: Descent | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.bias, ctx.descent = weight, bias, descent
        transposed = weight.transpose(1, 2)
        return torch.bmm(x, transposed) if bias is None else torch.baddbmm(bias[:, None], x, transposed)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        inputs = torch.bmm(g, ctx.weight) if ctx.needs_input_grad[0] else None
        bias = g.sum(1) if ctx.needs_input_grad[2] else None
        if bias is not None and ctx.bias.is_leaf and ctx.descent is not None:
            with torch.no_grad():
                ctx.descent.bias(ctx.bias, bias)
            bias = None
        if ctx.needs_input_grad[1]:
            _descend(ctx.weight, g, x, ctx.descent)
        return inputs, None, bias, None


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, descent: Descent | None) -> Tensor:
    """x W^T + b of every client.

    Args:
        x: (clients, rows, in).
        weight: (clients, out, in), a leaf; the backward pass steps it or sets its `grad`.
        bias: (clients, out) or None; a leaf is stepped as well.
        descent: the step of the weights; None leaves their gradients.

    Returns:
        (clients, rows, out).
    """
    return _Affine.apply(x, weight, bias, descent)


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, descent: Descent | None, keep: bool) -> Tensor:
        clients, length, rows, width = gates.shape
        size, transposed = width // 4, weight.transpose(1, 2)
        outputs = gates.new_empty(clients, length, rows, size)
        kept = length if keep else 1
        cells, squashed = outputs.new_empty(clients, kept, rows, size), gates.new_empty(clients, kept, rows, width)
        hidden = cell = gates.new_zeros(clients, rows, size)
        for t in range(length):
            now = torch.baddbmm(gates[:, t], hidden, transposed)
            gate = squashed[:, t % kept]
            i, f, g, o = gate.split(size, -1)
            torch.sigmoid(now[..., : 2 * size], out=gate[..., : 2 * size])
            torch.tanh(now[..., 2 * size : 3 * size], out=g)
            torch.sigmoid(now[..., 3 * size :], out=o)
            cell = torch.mul(f, cell, out=cells[:, t % kept]).addcmul_(i, g)
            hidden = torch.mul(o, cell.tanh(), out=outputs[:, t])
        ctx.save_for_backward(squashed, cells, outputs)
        ctx.weight, ctx.descent = weight, descent
        return outputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        squashed, cells, outputs = ctx.saved_tensors
        clients, length, rows, size = outputs.shape
        i, f, g, o = squashed.split(size, -1)
        tanh = cells.tanh()
        before = torch.cat([torch.zeros_like(cells[:, :1]), cells[:, :-1]], 1)
        # Everything that does not depend on what comes back through time, for all positions at once.
        through = torch.stack([g * i * (1 - i), before * f * (1 - f), i * (1 - g * g)], -2)  # of the cell, per gate
        out, inward = tanh * o * (1 - o), o * (1 - tanh * tanh)
        back = torch.empty_like(squashed)
        cell = torch.zeros_like(cells[:, 0])
        for t in reversed(range(length)):
            hidden = grad[:, t] if t == length - 1 else torch.baddbmm(grad[:, t], back[:, t + 1], ctx.weight)
            cell = cell.addcmul(hidden, inward[:, t])
            torch.mul(through[:, t], cell.unsqueeze(-2), out=back[:, t, :, : 3 * size].unflatten(-1, (3, size)))
            torch.mul(out[:, t], hidden, out=back[:, t, :, 3 * size :])
            cell = cell * f[:, t]
        if ctx.needs_input_grad[1]:
            earlier = torch.cat([torch.zeros_like(outputs[:, :1]), outputs[:, :-1]], 1)
            _descend(ctx.weight, back.flatten(1, 2), earlier.flatten(1, 2), ctx.descent)
        return back, None, None, None


def recurrent(gates: Tensor, weight: Tensor, descent: Descent | None) -> Tensor:
    """An LSTM layer of every client, from a zero state (Hochreiter and Schmidhuber 1997, with forget gates).

    Args:
        gates: (clients, T, B, 4 * size) what input and biases give to the gates i, f, g, o.
        weight: (clients, 4 * size, size), a leaf; the backward pass steps it or sets its `grad`.
        descent: see `affine`.

    Returns:
        (clients, T, B, size) hidden states.
    """
    return _Recurrent.apply(gates, weight, descent, torch.is_grad_enabled())
