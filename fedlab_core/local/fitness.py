"""Whether a model, a data set and a partition go together: asked once, when a federation is built."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.local.draws import AddressedDraws
from fedlab_core.partition import Partition
from fedlab_core.settings import Settings
from fedlab_core.state import has_batch_norm

# Modules that keep nothing between two calls but their parameters and buffers.
STATELESS = ("torch.nn.modules.", "torchvision.", "fedlab_core.")


@checked
@dataclass(frozen=True)
class Traits:
    """What engines have to know about a model.

    Attributes:
        channels_last: whether it computes in that layout; False where its forward pass does not allow it.
        random: whether its forward pass draws random numbers.
        fresh: whether every client gets a copy of the model as it was given, because its modules may keep more than
            parameters and buffers between two calls.
    """

    channels_last: bool = True
    random: bool = False
    fresh: bool = False


@checked
def adapt_output(model: nn.Module, output: Callable[[Any], Tensor] | None) -> None:
    """Let a model answer with a tensor: with `output(answer)`, or with the `logits` of a transformers model."""
    if output is not None:
        model.register_forward_hook(lambda module, inputs, answer: output(answer))
    elif hasattr(model, "config") and type(model).__module__.startswith("transformers."):
        model.register_forward_hook(lambda module, inputs, answer: getattr(answer, "logits", answer))


@checked
def check_tensors(model: nn.Module) -> None:
    """Refuse parameters that cannot be averaged.

    Raises:
        ValueError: a lazy or a complex parameter.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"model: {name!r} of a lazy layer has no shape yet, accepted: a model that has seen a batch; "
                "call model(dataset.prepare(dataset.x[:2])) once before"
            )
        if tensor.is_complex():
            raise ValueError(f"model: {name!r} is {tensor.dtype}, accepted: real tensors")
        if tensor.layout != torch.strided:
            raise ValueError(f"model: {name!r} is laid out as {tensor.layout}, accepted: dense tensors")


@checked
def check_partition(dataset: Dataset, partition: Partition) -> None:
    """Refuse labels outside of the classes, indices that the data do not have, and clients without data.

    Raises:
        ValueError: says which.
    """
    dataset.check()
    if int(partition.sizes.min()) < 1:
        empty = int((partition.sizes < 1).nonzero()[0])
        raise ValueError(f"partition: client {empty} holds no example; make it with min_size >= 1")
    partition.check(len(dataset.x))


@checked
def examine(model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings, plain: bool) -> Traits:
    """Try one forward and backward pass on two training examples, in a copy, and say what does not fit.

    Args:
        plain: whether clients minimise the task's own loss on the model's answer, one after the other. Otherwise the
            method decides what the model is asked, and only its layout and its draws are looked at.

    Raises:
        ValueError: the model's answer does not fit the data, or a client's batch of one example has no variance.
    """
    fresh = any(not type(module).__module__.startswith(STATELESS) for module in model.modules())
    layouts = [settings.memory_format]
    if settings.channels_last is None and layouts[0] != torch.contiguous_format:
        layouts.append(torch.contiguous_format)  # a `view` after a convolution needs it
    stream, answer, failure = AddressedDraws(settings.seed, "examination"), None, None
    for layout in layouts:
        try:
            answer = _answer(model, dataset, settings, layout, stream, 2)
            fitting = layout
            break
        except Exception as error:
            failure = failure or error
    else:
        if plain:
            shape = (2, *dataset.input_shape)
            raise ValueError(
                f"model: {type(model).__name__} fails on two training examples {shape}: {failure}"
            ) from failure
        fitting = layouts[0]
    if plain:
        _check_answer(answer, dataset, model)
        check_single_examples(model, dataset, partition, settings)
    return Traits(fitting == torch.channels_last, stream.used, fresh)


@checked
def model_dtype(model: nn.Module, settings: Settings) -> torch.dtype:
    """The type that the model computes in: float64 if the settings say so, else that of its parameters."""
    if settings.double:
        return torch.float64
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@checked
def check_single_examples(model: nn.Module, dataset: Dataset, partition: Partition, settings: Settings) -> None:
    """Refuse clients whose batches come down to one example where a batch norm then has no variance.

    Raises:
        ValueError: names the clients and the ways out.
    """
    if settings.batch_norm == "frozen" or not has_batch_norm(model):
        return
    sizes, batch = partition.sizes, settings.batch_size
    lonely = sizes == 1
    if batch is not None:
        per_epoch = (sizes + batch - 1) // batch
        reached = per_epoch <= (math.inf if settings.steps is None else settings.steps)
        lonely = lonely | ((sizes % batch == min(1, batch - 1)) & reached & (batch == 1 or not settings.drop_last))
    clients = lonely.nonzero().flatten().tolist()
    if not clients:
        return
    try:
        _answer(model, dataset, settings, torch.contiguous_format, AddressedDraws(0, "examination"), 1)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        listed = ", ".join(map(str, clients[:5])) + (f" and {len(clients) - 5} more" if len(clients) > 5 else "")
        alone = (sizes[clients] == 1).tolist()
        remedies = ["a partition with min_size >= 2"] if any(alone) else []
        remedies += [] if all(alone) else ["drop_last=True", "another batch_size"]
        raise ValueError(
            f"batch_size={batch}: client{'s' * (len(clients) > 1)} {listed} would train on a batch of one example, "
            f"which has no variance for batch normalisation, accepted: "
            f"{' and '.join(remedies[:2])}, another norm, or batch_norm='frozen'"
        ) from None


def _answer(
    model: nn.Module, dataset: Dataset, settings: Settings, layout: torch.memory_format, draws: AddressedDraws, n: int
) -> Any:
    """What a copy of the model answers to the first `n` training examples in training mode; its gradient is taken."""
    dtype = model_dtype(model, settings)
    attempt = in_precision(copy.deepcopy(model), settings).to(memory_format=layout).train()
    x = dataset.x[torch.arange(n) % len(dataset.x)]
    inputs = dataset.prepare(x)
    if inputs.is_floating_point():
        inputs = inputs.to(dtype, memory_format=layout if inputs.ndim == 4 else torch.preserve_format)
    with draws:
        answer = attempt(inputs)
        if isinstance(answer, Tensor) and answer.requires_grad:
            answer.sum().backward()
    return answer


@checked
def in_precision(model: nn.Module, settings: Settings) -> nn.Module:
    """The model, changed in place to float64 if the settings say so."""
    return model.double() if settings.double else model


def _check_measures(answer: Tensor, dataset: Dataset) -> None:
    """Refuse a loss or metric of one's own that does not give one value per example: of a broadcast of outputs (n, 1)
    and targets (n,) the mean would be another number."""
    targets = dataset.y[torch.arange(2) % len(dataset.y)]
    own = {} if dataset.loss is None else {"loss": dataset.loss}
    for what, measure in (own | {f"metrics[{name!r}]": metric for name, metric in dataset.metrics.items()}).items():
        values = measure(answer, targets)
        if not isinstance(values, Tensor) or tuple(values.shape) != (2,):
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{what}: gives {given} for outputs {tuple(answer.shape)} and targets {tuple(targets.shape)}, "
                "accepted: a tensor (2,), one value per example"
            )


def _check_answer(answer: Any, dataset: Dataset, model: nn.Module) -> None:
    kind = type(model).__name__
    if not isinstance(answer, Tensor):
        key = next(iter(answer), 0) if isinstance(answer, Mapping) else 0
        raise ValueError(
            f"model: {kind} answers with a {type(answer).__name__}, accepted: a tensor of logits; or name the part "
            f"that is one: Federation(..., output=lambda answer: answer[{key!r}])"
        )
    if dataset.kind != "text":
        _check_measures(answer.detach(), dataset)
    if dataset.loss is not None:
        return
    targets = tuple(dataset.y.shape[1:])
    if tuple(answer.shape[:-1]) != (2, *targets):
        raise ValueError(
            f"model: {kind} answers two examples with shape {tuple(answer.shape)}, accepted: {(2, *targets)} + "
            f"({len(dataset.classes)} classes,), one row of logits for each target"
        )
    if answer.shape[-1] < len(dataset.classes):
        raise ValueError(
            f"model: {kind} has {answer.shape[-1]} outputs, accepted: at least {len(dataset.classes)}, one for each "
            f"class of {dataset.name!r}"
        )
