"""What a stage costs a client: bytes in memory, floating-point operations, bytes that travel."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fedlab_core.costs import count_flops, kept_for_backward
from fedlab_core.federation import Federation
from fedlab_core.layerwise.method import OPTIMISERS, LayerWise, staged_loss
from fedlab_core.layerwise.network import StagedModel
from fedlab_core.layerwise.stages import Stage, payload
from fedlab_core.state import state_bytes

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes a client needs for one training step.

    Attributes:
        kept: activations that autograd keeps for the backward pass, each storage once.
        weights: of all units it runs, of the stem and the heads, and of a moving-average network.
        gradients: one number per trained weight.
        optimiser: numbers the optimiser keeps per trained weight.
    """

    kept: int
    weights: int
    gradients: int
    optimiser: int

    @property
    def total(self) -> int:
        """All four."""
        return self.kept + self.weights + self.gradients + self.optimiser

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self) | {"total": self.total}


def training_memory(
    model: StagedModel, rule: LayerWise, stage: Stage, batch: Tensor, kept: Sequence[bool] | None = None
) -> Memory:
    """Measures one step's memory with hooks on what autograd saves; weights, gradients and moments are counted.

    What it leaves out: the frozen units' own activations, which live for one unit at a time, the allocator's and the
    framework's overhead, and temporary buffers of kernels.

    Args:
        batch: (n, C, H, W) images as the model reads them; two views of each are run.
        kept: (depth,) units that take part. With the mask "step" the weights of all are held nevertheless.
    """
    kept = tuple(kept or [True] * stage.depth)
    held = (True,) * stage.depth if rule.mask == "step" else kept
    names = payload(model, stage, held)
    parameters = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    gradients = sum(parameters.get(name, 0) for name in names.trained)
    weights = state_bytes({name: tensor for name, tensor in model.state_dict().items() if name in names.fetched})
    if rule.objective in ("byol", "moco_v3"):  # frozen units are shared, the predictor has no target
        weights += sum(parameters.get(n, 0) for n in names.trained if not n.startswith("predictor."))
    saved = kept_for_backward(model, _loss(rule, stage, batch, kept, _target(model, rule)))
    return Memory(saved, weights, gradients, OPTIMISERS[rule.optimiser_name] * gradients)


def peak_memory(model: StagedModel, rule: LayerWise, batch: Tensor) -> Memory:
    """The largest `training_memory` over a run. Of the stages the first, the second and the last are measured: between
    them only the frozen weights grow if all units are equal."""
    units = len(model.units)
    last = rule.schedule.stages(units) - 1
    stages = [rule.schedule.stage(n * rule.rounds_per_stage, units) for n in sorted({0, min(1, last), last})]
    return max((training_memory(model, rule, stage, batch) for stage in stages), key=lambda memory: memory.total)


def deepest(budget: int, make: Callable[[int], StagedModel], rule: LayerWise, batch: Tensor, most: int = 256) -> int:
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


def step_flops(
    model: StagedModel, rule: LayerWise, stage: Stage, batch: Tensor, kept: Sequence[bool] | None = None
) -> int:
    """Floating-point operations of one local step (forward and backward, two views of each image of the batch)."""
    return count_flops(model, _loss(rule, stage, batch, kept, _target(model, rule)))


def relative_flops(rule: LayerWise, units: int) -> float:
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


def flops_by_round(federation: Federation) -> list[int]:
    """FLOPs of all clients in each round of a run, from the masks that they drew; index = round, 0 before training."""
    model, rule = copy.deepcopy(federation.model), federation.method
    known: dict[tuple, int] = {}
    totals = [0]
    for record in federation.history[1:]:
        stage = rule.schedule.stage(record.round - 1, len(model.units))
        total = 0
        for row in record.clients:
            size = min(federation.settings.batch_size or row["examples"], row["examples"])
            for step in range(row["steps"]):
                kept = rule.schedule.kept(stage, federation.settings.seed, record.round, row["client"], step)
                if (stage, kept, size) not in known:
                    batch = torch.zeros(size, *federation.dataset.input_shape)
                    known[stage, kept, size] = step_flops(model, rule, stage, batch, kept)
                total += known[stage, kept, size]
        totals.append(total)
    return totals


def traffic(federation: Federation, stateful: bool) -> Iterator[tuple[int, int]]:
    """(bytes down, bytes up) of each round of a run, had its clients kept frozen units (stateful) or not.

    For the run's own setting these are the bytes in its records.
    """
    model, rule = federation.model, federation.method
    held: dict[int, frozenset[int]] = {}
    for record in federation.history[1:]:
        state = federation.state_at(record.round - 1)
        stage = rule.schedule.stage(record.round - 1, len(model.units))
        down = up = 0
        for client in (row["client"] for row in record.clients):
            kept = rule.schedule.masked_download(stage, federation.settings.seed, record.round, client)
            names = payload(model, stage, kept, held.get(client, frozenset()), state)
            down += state_bytes({n: state[n] for n in names.fetched})
            up += state_bytes({n: state[n] for n in names.sent})
            if stateful:
                held[client] = names.held
        yield down, up


def peak_allocated(model: StagedModel, rule: LayerWise, stage: Stage, batch: Tensor) -> int:
    """Peak bytes of the CUDA allocator during one forward and backward pass, less what was allocated before.

    Raises:
        ValueError: the batch is not on a CUDA device.
    """
    if batch.device.type != "cuda":
        raise ValueError(f"batch is on {batch.device}, accepted: a CUDA device, where there is an allocator to ask")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _loss(rule, stage, batch, None, _target(model, rule))(model).backward()
    peak = torch.cuda.max_memory_allocated() - before
    model.zero_grad(set_to_none=True)
    return peak


def _target(model: StagedModel, rule: LayerWise) -> StagedModel | None:
    return copy.deepcopy(model) if rule.objective in ("byol", "moco_v3") else None


def _loss(
    rule: LayerWise, stage: Stage, batch: Tensor, kept: Sequence[bool] | None, target: StagedModel | None
) -> Callable[[StagedModel], Tensor]:
    views = torch.cat([batch, batch])
    return lambda model: staged_loss(model, views, rule, stage, kept, target)
