"""What a stage costs a client: bytes in memory, floating-point operations, bytes that travel."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedlab_core.check import Depth, Natural, Size, checked
from fedlab_core.costs import Memory, count_flops, step_memory
from fedlab_core.federation import Federation
from fedlab_core.layerwise.method import OPTIMISERS, LayerWise, staged_loss
from fedlab_core.layerwise.network import StagedModel
from fedlab_core.layerwise.stages import Stage, payload
from fedlab_core.state import State, state_bytes


@checked
def stage_loss(
    model: StagedModel, rule: LayerWise, stage: Stage, batch: Tensor, kept: Sequence[bool] | None = None
) -> Callable[[Any], Tensor]:
    """The loss of one local step of a stage as a function of the model, for `costs.count_flops` and its neighbours.

    Args:
        batch: (n, C, H, W) images as the model reads them; both views of an image are the image itself.
        kept: (depth,) units that take part; all by default.
    """
    views = torch.cat([batch, batch])
    target = copy.deepcopy(model) if rule.objective in ("byol", "moco_v3") else None
    return lambda model: staged_loss(model, views, rule, stage, kept, target)


@checked
def training_memory(
    model: StagedModel, rule: LayerWise, stage: Stage, batch: Tensor, kept: Sequence[bool] | None = None
) -> Memory:
    """What one local step of a stage needs, see `costs.step_memory`; the activations of frozen units are not kept.

    Args:
        batch: (n, C, H, W) images as the model reads them; two views of each are run.
        kept: (depth,) units that take part. With the mask "step" the weights of all are held nevertheless.
    """
    kept = tuple(kept or [True] * stage.depth)
    held = (True,) * stage.depth if rule.mask == "step" else kept
    names = payload(model, stage, held)
    loss = stage_loss(model, rule, stage, batch, kept)
    memory = step_memory(model, loss, OPTIMISERS[rule.optimiser_name], trained=names.trained, held=names.fetched)
    if rule.objective not in ("byol", "moco_v3"):
        return memory
    own: State = {n: p for n, p in model.named_parameters() if n in names.trained and not n.startswith("predictor.")}
    return replace(memory, weights=memory.weights + state_bytes(own))  # their target; it shares the frozen units


@checked
def peak_memory(model: StagedModel, rule: LayerWise, batch: Tensor) -> Memory:
    """The largest `training_memory` over a run. Of the stages the first, the second and the last are measured: between
    them only the frozen weights grow if all units are equal."""
    units = len(model.units)
    last = rule.schedule.stages(units) - 1
    stages = [rule.schedule.stage(n * rule.rounds_per_stage, units) for n in sorted({0, min(1, last), last})]
    return max((training_memory(model, rule, stage, batch) for stage in stages), key=lambda memory: memory.total)


@checked
def deepest(
    budget: Natural, make: Callable[[int], StagedModel], rule: LayerWise, batch: Tensor, most: Size = 256
) -> int:
    """The largest number of units whose `peak_memory` fits into a budget, by doubling and bisection.

    Args:
        budget: in bytes.
        make: a model with that many units.
        most: where to stop looking.

    Returns:
        0 if not even one unit fits.
    """

    def fits(units: int) -> bool:
        return peak_memory(make(units), rule, batch).total <= budget

    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@checked
def relative_flops(rule: LayerWise, units: Depth) -> float:
    """Expected FLOPs of a run with equal stages, relative to end-to-end training of as many rounds, in closed form.

    Forward 1 and backward 2 per trained unit, forward 1 per frozen one; stem, heads and target branch left out. For
    layer-wise training of S units with dropout rate p this is ((S - 1) / 2 * (1 - p) + 3) / (3 S).
    """
    stages = [rule.schedule.stage(n * rule.rounds_per_stage, units) for n in range(rule.schedule.stages(units))]
    per_stage = []
    for stage in stages:
        below = (1 if rule.scheme == "layer_wise" else 3) * stage.new * (1 - rule.drop)
        per_stage.append(below + 3 * (stage.depth - stage.new))
    return sum(per_stage) / len(per_stage) / (3 * units)


@checked
def flops_by_round(federation: Federation) -> list[int]:
    """FLOPs of all clients in each round of a run, from the masks that they drew; index = round, 0 before training."""
    model, rule = staged_run(federation)
    model = copy.deepcopy(model)
    known: dict[tuple, int] = {}
    totals = [0]
    for record in federation.history[1:]:
        stage = rule.schedule.stage(record.round - 1, len(model.units))
        total = 0
        for row in record.clients:
            client, examples = int(row["client"]), int(row["examples"])
            size = min(federation.settings.batch_size or examples, examples)
            for step in range(int(row["steps"])):
                kept = rule.schedule.kept(stage, federation.settings.seed, record.round, client, step)
                if (stage, kept, size) not in known:
                    batch = torch.zeros(size, *federation.dataset.input_shape)
                    known[stage, kept, size] = count_flops(model, stage_loss(model, rule, stage, batch, kept))
                total += known[stage, kept, size]
        totals.append(total)
    return totals


@checked
def traffic(federation: Federation, stateful: bool) -> Iterator[tuple[int, int]]:
    """(bytes down, bytes up) of each round of a run, had its clients kept frozen units (stateful) or not.

    For the run's own setting these are the bytes in its records.
    """
    model, rule = staged_run(federation)
    held: dict[int, frozenset[int]] = {}
    for record in federation.history[1:]:
        state = federation.state_at(record.round - 1)
        stage = rule.schedule.stage(record.round - 1, len(model.units))
        down = up = 0
        for client in (int(row["client"]) for row in record.clients):
            kept = rule.schedule.masked_download(stage, federation.settings.seed, record.round, client)
            names = payload(model, stage, kept, held.get(client, frozenset()), state)
            down += state_bytes({n: state[n] for n in names.fetched})
            up += state_bytes({n: state[n] for n in names.sent})
            if stateful:
                held[client] = names.held
        yield down, up


@checked
def peak_allocated(model: StagedModel, rule: LayerWise, stage: Stage, batch: Tensor) -> int:
    """Peak bytes of the CUDA allocator during one forward and backward pass, less what was allocated before.

    Raises:
        ValueError: the batch is not on a CUDA device.
    """
    if batch.device.type != "cuda":
        raise ValueError(f"batch is on {batch.device}, accepted: a CUDA device, where there is an allocator to ask")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    stage_loss(model, rule, stage, batch)(model).backward()
    peak = torch.cuda.max_memory_allocated() - before
    model.zero_grad(set_to_none=True)
    return peak


@checked
def staged_run(federation: Federation) -> tuple[StagedModel, LayerWise]:
    """Model and method of a layer-wise run.

    Raises:
        ValueError: another model or method.
    """
    model, rule = federation.model, federation.method
    if not isinstance(model, StagedModel) or not isinstance(rule, LayerWise):
        raise ValueError(
            f"federation trains a {type(model).__name__} by {rule.name}, accepted: a StagedModel layer-wise"
        )
    return model, rule
