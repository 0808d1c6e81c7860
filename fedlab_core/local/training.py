"""The reference: how one client trains and how one model is evaluated, step by step, in plain PyTorch."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedlab_core.check import Client, Many, Measured, Natural, checked
from fedlab_core.data import Dataset
from fedlab_core.local.draws import AddressedDraws
from fedlab_core.local.factored import factored
from fedlab_core.local.fitness import in_precision
from fedlab_core.local.optimisers import moments, recall
from fedlab_core.local.work import Context, LocalMethod, Stopped, Task, Update, Work, task_loss
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, batch_norms, set_state, tensors

EVALUATION_BATCH = 512  # examples of one target each
EVALUATION_SEQUENCES = 64  # sequences of targets: more would not fit the processor's cache, position after position


@checked
def train_client(
    model: nn.Module, work: Work, task: Task, method: LocalMethod, stop: Callable[[], bool] = lambda: False
) -> Update | None:
    """Train one client from the state it received: E epochs, or `steps` steps, of the method's optimiser.

    Args:
        model: to compute with, from `worker_copy`; its weights are overwritten.
        stop: asked before every step.

    Returns:
        its update; None if it was stopped before its last step.
    """
    settings = work.settings
    set_state(model, task.state)
    model.train()
    if settings.batch_norm == "frozen":
        freeze_statistics(model)
    x, y = client_data(work, task.client)
    shuffle = generator(settings.seed, "batches", work.round, task.client)
    plan = list(batches(len(x), settings, shuffle, method.full_batches))
    context = local_context(model, work, task)
    parameters: dict[str, Any] = trained_parameters(model)
    optimiser = method.optimiser(list(parameters.values()), context)
    if settings.keep_optimiser:
        recall(optimiser, parameters, task.memory)
    method.begin(context)
    draws = forward_draws(work, task.client)
    total, seen = torch.zeros((), device=x.device), 0
    with factored(model, optimiser, method.plain and plain_sgd(settings)):
        for batch in torch.cat(plan).to(x.device).split([len(batch) for batch in plan]):  # one transfer for all steps
            if stop():
                return None
            with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.mixed_precision), draws:
                loss = method.loss(context, x[batch], y[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            if method.corrects:
                correct(method, context, parameters)
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters.values(), settings.clip_norm)
            optimiser.step()
            total, seen = total + loss.detach(), seen + len(batch)
            context.step += 1
    frozen = work.roles.frozen
    end = {name: tensor.detach().clone() for name, tensor in tensors(model).items() if name not in frozen}
    update = handed_back(context, task, method, len(x), seen, end, total.item() / context.step)
    if settings.keep_optimiser:
        update = replace(update, memory=update.memory | moments(optimiser, parameters))
    return update


@checked
def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that ask for a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@checked
def forward_draws(work: Work, client: Client) -> contextlib.AbstractContextManager[Any]:
    """Where the model's own random numbers come from while a client trains in this round."""
    random = work.traits.random
    return AddressedDraws(work.settings.seed, "forward", work.round, client) if random else contextlib.nullcontext()


@checked
def evaluation_draws(work: Work) -> contextlib.AbstractContextManager[Any]:
    """Where the model's own random numbers come from in an evaluation: one stream for every batch of a round."""
    random = work.traits.random
    return AddressedDraws(work.settings.seed, "evaluation", work.round) if random else contextlib.nullcontext()


@checked
def local_context(model: nn.Module, work: Work, task: Task) -> Context:
    """Where a client stands before its first step."""
    settings = work.settings
    return Context(
        client=task.client,
        round=work.round,
        settings=settings,
        dataset=work.dataset,
        model=model,
        start=task.state,
        received=work.received,
        memory=task.memory,
        travelling=work.roles.travelling,
        lr=settings.lr_at(work.round),
    )


@checked
def handed_back(
    context: Context, task: Task, method: LocalMethod, examples: Natural, seen: Natural, end: State, loss: Measured
) -> Update:
    """The update of a client whose local training ended with the tensors `end`."""
    extra, memory = method.finish(context, end)
    state = task.state | method.upload(context, end)
    return Update(task.client, examples, context.step, seen, state, memory, extra, loss)


@checked
def batches(examples: Many, settings: Settings, draws: torch.Generator, full: bool = False) -> Iterator[Tensor]:
    """Positions (B,) of each local step's batch: a fresh shuffle per epoch, the last batch of an epoch may be smaller.

    Args:
        full: leave such smaller batches out, unless a client holds less than one batch.
    """
    size = settings.batch_size or examples
    used = settings.used(examples, full)
    left = settings.local_steps(examples, full)
    while left > 0:
        for batch in torch.randperm(examples, generator=draws)[:used].split(size)[:left]:
            left -= 1
            yield batch


@checked
def client_data(work: Work, client: Natural) -> tuple[Tensor, Tensor]:
    """A client's inputs, seen through its own transform if the partition has one, then normalised; and its targets."""
    x, y = stored_data(work, client)
    return as_input(work, work.dataset.prepare(x)), y


@checked
def stored_data(work: Work, client: Natural) -> tuple[Tensor, Tensor]:
    """A client's inputs and targets on the run's device as they are stored, not yet normalised."""
    device, transform = work.settings.device, work.partition.transform
    data = on_device(work.dataset, device) if transform is None else work.dataset
    indices = work.partition[client].to(data.x.device)
    x = data.x[indices] if transform is None else transform.apply(data.x[indices], client)
    return x.to(device), data.y[indices].to(device)


@checked
def on_device(data: Dataset, device: str) -> Dataset:
    """The data set with its examples on a device, copied there once and not once per round."""
    return data if torch.device(device).type == data.x.device.type else _copied(data, device)


@functools.lru_cache(maxsize=2)
def _copied(data: Dataset, device: str) -> Dataset:
    names = ("x", "y", "test_x", "test_y", "validation_x", "validation_y")
    return replace(data, **{name: getattr(data, name).to(device) for name in names if getattr(data, name) is not None})


@checked
def freeze_statistics(model: nn.Module) -> None:
    """Let every batch norm use its running statistics and keep them (FixBN)."""
    for module in batch_norms(model).values():
        module.eval()


@checked
def plain_sgd(settings: Settings) -> bool:
    """Whether nothing but the step w - lr g reads the gradients, so that they need not be stored."""
    return settings.optimiser == "sgd" and not (settings.momentum or settings.mixed_precision or settings.clip_norm)


@checked
def correct(method: LocalMethod, context: Context, parameters: dict[str, nn.Parameter]) -> None:
    """Let a method change the gradients.

    Raises:
        ValueError: it answered with others, or put others into their place, and nobody would read them.
    """
    grads, hook = own_gradients(parameters), cast(Callable[..., Any], method.correct)
    answer = hook(context, grads, parameters)
    if answer is not None or any(grads.get(n) is not p.grad for n, p in parameters.items()):
        raise ValueError(
            f"method {method.name!r}: `correct` returned or replaced gradients, which nobody reads, accepted: changes "
            "in place, such as grads[name].copy_(mine)"
        )


@checked
def own_gradients(parameters: dict[str, nn.Parameter]) -> State:
    """The gradients by name, each with memory of its own, so that they can be changed in place.

    Autograd may hand out several views of one tensor, for instance to two parameters that are added to a batch of one,
    and sparse gradients of embeddings, which are made dense here.
    """
    for parameter in parameters.values():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
    grads = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if len({grad.untyped_storage().data_ptr() for grad in grads.values()}) < len(grads):
        for name in grads:
            grads[name] = parameters[name].grad = grads[name].clone()
    return grads


@checked
def evaluate(model: nn.Module, work: Work, state: State, split: str = "test") -> dict[str, float]:
    """Mean loss (nats per target, or the data set's own) and metrics of a state, batch by batch, in evaluation mode."""
    set_state(model, state)
    return summary(work.dataset, (batch_sums(model, work, x, y) for x, y in evaluation_batches(work, split)))


@checked
def evaluation_batches(work: Work, split: str) -> list[tuple[Tensor, Tensor]]:
    """The batches (inputs, targets) of a split as they are stored, the same for every engine.

    Sequences come in smaller batches. For a model that says that it is `causal`, they are sorted by length, and the
    positions at the end of a batch where every target is padding are left out: they would change no other output.

    Raises:
        ValueError: an unknown split, or one without examples.
    """
    inputs, targets = on_device(work.dataset, work.settings.device).split(split)
    if work.tested is not None:
        rows = work.evaluated_rows(split).to(inputs.device)
        inputs, targets = inputs[rows], targets[rows]
    if not (targets.ndim == 2 and inputs.shape == targets.shape and work.dataset.loss is None):
        return list(zip(inputs.split(EVALUATION_BATCH), targets.split(EVALUATION_BATCH), strict=True))
    if not getattr(work.model, "causal", False):
        return list(zip(inputs.split(EVALUATION_SEQUENCES), targets.split(EVALUATION_SEQUENCES), strict=True))
    used = ((targets != -100) * torch.arange(1, 1 + targets.shape[1], device=targets.device)).amax(1)
    order = used.argsort(descending=True, stable=True).split(EVALUATION_SEQUENCES)
    ends = [max(1, int(used[rows[0]])) for rows in order]
    return [(inputs[rows, :end], targets[rows, :end]) for rows, end in zip(order, ends, strict=True)]


@checked
@torch.no_grad()
def batch_sums(model: nn.Module, work: Work, x: Tensor, y: Tensor) -> Tensor:
    """(2, 1 + metrics) float64: sums over one batch of the loss and of each metric, and how many values each has.

    The model is put in evaluation mode.

    Raises:
        Stopped: the work was asked to stop.
    """
    if work.stop():
        raise Stopped
    data = work.dataset
    model.eval()
    with evaluation_draws(work):
        outputs = model(as_input(work, data.prepare(x)))
    if data.loss is None:
        sums, counts = [task_loss(outputs, y, "sum")], [(y != -100).sum()]
    else:
        losses = data.loss(outputs, y)
        sums, counts = [losses.sum()], [torch.tensor(losses.numel(), device=losses.device)]
    for metric in data.metrics.values():
        values = metric(outputs, y)
        sums.append(values.sum(dtype=torch.float64))
        counts.append(torch.tensor(values.numel(), device=values.device))
    return torch.stack([torch.stack([value.double() for value in row]) for row in (sums, counts)])


@checked
def summary(dataset: Dataset, sums: Iterable[Tensor]) -> dict[str, float]:
    """Mean loss and metrics from the sums of the batches, added up in their order."""
    total, counts = functools.reduce(torch.add, sums)
    return dict(zip(("loss", *dataset.metrics), (total / counts).tolist(), strict=True))


@checked
def worker_copy(work: Work) -> nn.Module:
    """A copy of the run's model for one worker, in the run's precision and layout and on its device."""
    model = in_precision(copy.deepcopy(work.model).to(work.settings.device), work.settings)
    return model.to(memory_format=work.memory_format)


@checked
def one_example(work: Work) -> tuple[nn.Module, Tensor]:
    """A copy of the model in evaluation mode, and one prepared test example in its precision; not on the device."""
    model, x = in_precision(copy.deepcopy(work.model), work.settings), work.dataset.prepare(work.dataset.test_x[:1])
    return model.eval(), x.to(work.dtype) if x.is_floating_point() else x


@checked
def as_input(work: Work, x: Tensor) -> Tensor:
    """Prepared examples on the run's device and, if they are no symbols, in its precision and layout."""
    if not x.is_floating_point():
        return x.to(work.settings.device)
    layout = work.memory_format if x.ndim == 4 else torch.preserve_format
    return x.to(work.settings.device, work.dtype, memory_format=layout)
