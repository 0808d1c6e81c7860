"""Local training of several clients as one network of stacked layers."""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from itertools import groupby, zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import pad_sequence

from fedlab_core.engines.stacked.dense import DenseStack, dense_layers
from fedlab_core.engines.stacked.functions import Descent
from fedlab_core.engines.stacked.modules import Fold
from fedlab_core.engines.stacked.pace import Pace
from fedlab_core.local.training import (
    as_input,
    batches,
    correct,
    freeze_statistics,
    handed_back,
    local_context,
    on_device,
    plain_sgd,
    stored_data,
)
from fedlab_core.local.work import LocalMethod, Task, Update, Work
from fedlab_core.randomness import generator
from fedlab_core.state import State

IGNORED = -100
GATHERED = 2**20  # values of inputs that are gathered and normalised together


def train_together(
    network: nn.Module,
    fold: Fold,
    work: Work,
    tasks: Sequence[Task],
    method: LocalMethod,
    stop: Callable[[], bool],
    pace: Pace,
) -> list[Update] | None:
    """The local training of clients whose memories have the same names; None if stopped before its end.

    Every client takes the batches that it would take alone. One that has finished drops out; a batch that is smaller
    than others of its step is filled up with rows that count nowhere.

    Args:
        network, fold: from `stack.stack`.
        stop: asked before every step.
        pace: threads of the operations of dense stacks.
    """
    settings = work.settings
    sizes = [len(work.partition[task.client]) for task in tasks]
    draws = [generator(settings.seed, "batches", work.round, task.client) for task in tasks]
    drawn = [list(batches(size, settings, g, method.full_batches)) for size, g in zip(sizes, draws, strict=True)]
    order = sorted(range(len(tasks)), key=lambda k: -len(drawn[k]))  # those who finish first stand last
    tasks, sizes, drawn = [tasks[k] for k in order], [sizes[k] for k in order], [drawn[k] for k in order]
    lengths = [[batch.shape[0] for batch in own] for own in drawn]  # of a tensor, len() takes ten times as long
    x, y, positions = gather(work, [task.client for task in tasks])
    rows = _rows(drawn, lengths, positions).to(x.device)
    simple = y.ndim == 1 and work.dataset.kind == "image"  # every example has one target

    start, memory = stack_states([task.state for task in tasks]), stack_states([task.memory for task in tasks])
    frozen = work.roles.frozen
    end = {n: t if n in frozen else t.clone(memory_format=torch.contiguous_format) for n, t in start.items()}
    lr = settings.lr_at(work.round)
    together = local_context(network, work, Task(-1, start, memory))
    plain = method.plain and plain_sgd(settings)
    descent = Descent(lr, settings.weight_decay)
    fold.examples, fold.descent = 0, descent if plain else None
    layers = dense_layers(work.model) if plain else None
    network.train()
    if settings.batch_norm == "frozen":
        freeze_statistics(network)
    normalised = any(isinstance(module, _BatchNorm) and module.training for module in network.modules())
    trained = {name for name, parameter in work.model.named_parameters() if parameter.requires_grad}
    velocity = {name: torch.zeros_like(end[name]) for name in trained} if settings.momentum else {}

    total, active = torch.zeros(len(tasks), device=x.device, dtype=torch.float64), 0
    for step, (size, inputs, targets) in enumerate(_steps(work, x, y, rows, lengths)):
        if stop():
            return None
        if active != len(size):
            active = len(size)
            weights, *inside = ({n: t[:active] for n, t in state.items()} for state in (end, start, memory, velocity))
            if layers is None:
                parameters = load(network, weights, trained)
            else:
                if not step:
                    pace.begin(active)
                dense = DenseStack(weights, layers, descent)
        if layers is not None:
            pace.step(active)
        width = max(size)
        filled = min(size) < width
        fold.real = None
        if filled:
            real = (torch.arange(width) < torch.tensor(size)[:, None]).to(x.device)
            targets = torch.where(real.view(-1, *[1] * (targets.ndim - 1)), targets, IGNORED)
            fold.real, fold.least = (real if normalised else None), min(size)
        values = [network(inputs)] if layers is None else dense.forward(inputs)
        logits = values[-1].detach().view(*targets.shape, -1)
        losses, gradient = client_losses(logits, targets, active, width if simple and not filled else None)
        total[:active] += losses
        if layers is not None:
            dense.backward(values, gradient)
            continue
        (values[-1] * gradient).sum().backward()  # as backward(gradient), which imports sympy
        if method.corrects:
            correct(method, replace(together, start=inside[0], memory=inside[1]), parameters)
        _step(parameters, inside[2], lr, settings.momentum, settings.weight_decay)

    updates: dict[int, Update] = {}
    for k, (task, own, loss) in enumerate(zip(tasks, lengths, total.tolist(), strict=True)):
        moved = {name: tensor[k] for name, tensor in end.items() if name not in frozen}
        context = replace(local_context(network, work, task), step=len(own))
        updates[order[k]] = handed_back(context, task, method, sizes[k], sum(own), moved, loss / len(own))
    return [updates[k] for k in range(len(tasks))]


def stack_states(states: Sequence[State]) -> State:
    """States of the same names with a leading client dimension; tensors that all have in common are not copied."""
    return {
        name: tensor.expand(len(states), *tensor.shape)
        if all(state[name] is tensor for state in states)
        else torch.stack([state[name] for state in states])
        for name, tensor in states[0].items()
    }


def load(network: nn.Module, state: State, trained: Set[str] = frozenset()) -> dict[str, Any]:
    """Makes the network compute with the tensors of a stacked state themselves, not with copies.

    Returns:
        the trained parameters by name, as new leaves.
    """
    leaves = {}
    for prefix, module in network.named_modules():
        kinds: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for kind in kinds:
            for name, old in kind.items():
                if old is None:
                    continue
                full = f"{prefix}.{name}" if prefix else name
                kind[name] = state[full]
                if kind is module._parameters:
                    kind[name] = nn.Parameter(state[full], requires_grad=full in trained)
                    if full in trained:
                        leaves[full] = kind[name]
    return leaves


def client_losses(logits: Tensor, targets: Tensor, clients: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Each client's mean cross-entropy over its targets, and the gradient of their sum; targets of -100 count nowhere.

    Args:
        logits: (clients * B, ..., classes).
        targets: (clients * B, ...).
        count: each client's number of targets, where all are known to count.

    Returns:
        (clients,) losses, and the gradient with respect to the logits, (clients * B, ..., classes).
    """
    log = logits.log_softmax(-1)
    gradient = log.exp()
    counts: Any = count
    if count is None:
        real = targets != IGNORED
        counts = real.view(clients, -1).sum(1)
        index, weight = torch.where(real, targets, 0).unsqueeze(-1), real.to(log.dtype)
        losses = log.gather(-1, index).squeeze(-1) * weight
        share = (weight.view(clients, -1) / counts[:, None].clamp_min(1)).view(*targets.shape, 1)
        gradient = gradient.scatter_add_(-1, index, torch.full_like(share, -1)).mul_(share)
    else:
        index = targets.unsqueeze(-1)
        losses = log.gather(-1, index)
        gradient = gradient.scatter_add_(-1, index, torch.full_like(losses, -1)).div_(counts)
    return losses.view(clients, -1).sum(1).neg_() / counts, gradient


def gather(work: Work, clients: Sequence[int]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Where some clients' examples lie.

    Returns:
        inputs and targets as they are stored, on the run's device, and each client's positions in them: the whole
        training set where clients see it as it is, otherwise a copy of their examples.
    """
    if work.partition.transform is None:
        data = on_device(work.dataset, work.settings.device)
        return data.x, data.y, [work.partition[client] for client in clients]
    x, y = (torch.cat(parts) for parts in zip(*(stored_data(work, client) for client in clients), strict=True))
    positions = torch.arange(len(y)).split([len(work.partition[client]) for client in clients])
    return x, y, list(positions)


def _steps(
    work: Work, x: Tensor, y: Tensor, rows: Tensor, lengths: Sequence[Sequence[int]]
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Step by step: sizes of the active clients' batches, and their inputs and targets (active * largest, ...).

    Steps of the same shape are gathered and normalised some at a time: for small networks that took as long as the
    step itself.
    """
    sizes = [[count for count in counts if count is not None] for counts in zip_longest(*lengths)]
    shapes = [(len(size), max(size)) for size in sizes]
    first = 0
    for (active, width), alike in groupby(shapes):
        end, most = first + len(list(alike)), max(1, GATHERED // (active * width * x[0].numel()))
        for begin in range(first, end, most):
            chosen = slice(begin, min(end, begin + most))
            batch = rows[chosen, :active, :width].flatten()
            inputs = as_input(work, work.dataset.prepare(x.index_select(0, batch)))
            parts = (tensor.split(active * width) for tensor in (inputs, y.index_select(0, batch)))
            yield from zip(sizes[chosen], *parts, strict=True)
        first = end


def _rows(drawn: Sequence[Sequence[Tensor]], lengths: Sequence[Sequence[int]], positions: Sequence[Tensor]) -> Tensor:
    """(steps, clients, B) where each row of each batch lies; filled up with the client's first example."""
    rows = torch.zeros(len(drawn[0]), len(drawn), max(map(max, lengths)), dtype=torch.int64)
    for k, (own, position) in enumerate(zip(drawn, positions, strict=True)):
        padded = position[pad_sequence(list(own), batch_first=True)]
        rows[:, k] = position[0]
        rows[: padded.shape[0], k, : padded.shape[1]] = padded
    return rows


def _step(parameters: dict[str, Any], velocity: State, lr: float, momentum: float, decay: float) -> None:
    """`torch.optim.SGD`'s step of the parameters that have a gradient, which they lose."""
    names = [name for name, parameter in parameters.items() if parameter.grad is not None]
    if not names:
        return
    weights = [parameters[name] for name in names]
    grads: Any = [weight.grad for weight in weights]
    with torch.no_grad():
        if decay:
            grads = torch._foreach_add(grads, weights, alpha=decay)
        if momentum:
            moving = [velocity[name] for name in names]
            torch._foreach_mul_(moving, momentum)
            torch._foreach_add_(moving, grads)
            grads = moving
        torch._foreach_add_(weights, grads, alpha=-lr)
    for weight in weights:
        weight.grad = None
