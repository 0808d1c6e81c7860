"""Notebook 06: the active block climbs through the network while it trains."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fedlab_core import plots
from fedlab_core.costs import MIB, Memory
from fedlab_core.layerwise.accounts import flops_by_round, peak_memory, staged_run, training_memory
from fedlab_core.layerwise.evaluation import features, knn_accuracy
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.layerwise.stages import Stage
from fedlab_core.plots import layerwise as plots_layerwise
from fedlab_core.studies.layerwise_runs import DIGITS, changed, federation
from fedlab_core.workbench.plan import Plan, Result, before, say
from fedlab_core.workbench.text import sentence

RATES = {"layer_wise": 2e-3, "progressive": 2e-3, "end_to_end": 1e-3}


@dataclass(frozen=True)
class Climbing:
    """A round: which part was trained, what a step of it keeps in memory, and how good the features are.

    Attributes:
        round: its number; 0 is before any training.
        blocks: of the network.
        stage: of the round; kept: which blocks the mask of client 0 left in.
        memory, whole: of a training step now, and end to end.
        knn: accuracy of nearest neighbours on the features of the network as it is then.
        gflop, megabytes: of all clients so far.
    """

    round: int
    blocks: int
    stage: Stage
    kept: tuple[bool, ...]
    memory: Memory
    whole: Memory
    knn: float
    gflop: float
    megabytes: float


def climb(scheme: str, blocks: int, drop: float, stage_rounds: int) -> Mapping[str, Iterator[Climbing]]:
    """One frame per round."""
    one = changed(DIGITS, RATES[scheme], blocks, scheme=scheme, drop=drop, rounds_per_stage=stage_rounds)

    def frames() -> Iterator[Climbing]:
        run = federation(one)
        (model, rule), data = staged_run(run), run.dataset
        batch = torch.zeros(run.settings.batch_size or 1, *data.input_shape)
        whole = peak_memory(model, LayerWise(scheme="end_to_end"), batch)
        for number in range(stage_rounds * blocks + 1):
            stage = rule.schedule.stage(max(0, number - 1), blocks)
            kept = rule.schedule.kept(stage, 0, max(1, number), 0, 0)
            memory = training_memory(model, rule, stage, batch, kept)
            bank = features(model, data, run.state, stage.depth)
            knn = knn_accuracy(bank.x, data.y, bank.test_x, data.test_y)
            sent = run.history[-1].total.bytes / 1e6 if run.history else 0.0
            yield Climbing(number, blocks, stage, kept, memory, whole, knn, sum(flops_by_round(run)) / 1e9, sent)
            run.run(1)

    return {say(scheme): frames()}


def draw_climb(figure: Any, result: Result) -> None:
    """The network with its active block; memory now and end to end; nearest neighbours over rounds."""
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 0.8, 1.5))
    frames: Sequence[Climbing] = result.frames[next(iter(result.frames))]
    if not frames:
        return
    last = frames[-1]
    plots_layerwise.network(left, last.blocks, last.stage, last.kept)
    left.set_title(f"round {last.round}", fontsize=9)
    plots_layerwise.memory_bars(middle, {"now": last.memory, "end to end": last.whole})
    middle.set(title=f"batch of {DIGITS.settings.batch_size}", ylim=(0, 1.15 * last.whole.total / MIB))
    middle.legend(loc="upper center", bbox_to_anchor=(0.45, -0.1), ncols=2, fontsize=7)
    before(right, result, lambda f: f.round, lambda f: f.knn)
    label, color = next(iter(result.frames)), plots.LINE_COLORS[0]
    right.plot([f.round for f in frames], [f.knn for f in frames], "o-", color=color, markersize=4, label=label)
    right.axhline(frames[0].knn, color="0.5", linestyle=":", linewidth=1, label="random features")
    for one, after in zip(frames, frames[1:], strict=False):
        if after.stage.number != one.stage.number:
            right.axvline(one.round + 0.5, color="0.85", linewidth=1, zorder=0)
    right.legend(loc="upper left")
    right.set(xlabel="round (lines: the next block)", title="accuracy of nearest neighbours", ylim=(0.7, 1.0))


def read_climb(result: Result) -> str:
    """Memory, accuracy and cost."""
    (name, frames), *_ = result.frames.items()
    if not frames:
        return "No round yet."
    last, most = frames[-1], max(f.memory.total for f in frames) / MIB
    now, whole = last.memory.total / MIB, last.whole.total / MIB
    return sentence(
        f"{name}, round {last.round}: a step needs {now:.1f} MiB (peak {most:.1f}), "
        f"end to end {whole:.1f}; nearest neighbours {last.knn:.3f}, random features {frames[0].knn:.3f}; "
        f"{last.gflop:.0f} GFLOP and {last.megabytes:.1f} MB"
    )


CLIMB = Plan(
    "Climb while you train",
    climb,
    {
        "scheme": tuple(RATES),
        "blocks": (2, 4, 6, 8),
        "drop": (0.0, 0.25, 0.5, 0.75),
        "stage_rounds": (1, 2, 4),
    },
    {"blocks": 4, "stage_rounds": 2},
    rounds=lambda blocks, stage_rounds, **_: blocks * stage_rounds + 1,
    draw=draw_climb,
    sentence=read_climb,
    size=(10.5, 3.9),
    about={
        "scheme": "What is trained at a time: one block, all blocks so far, or the whole network",
        "blocks": "Of the network",
        "drop": "Share of the frozen blocks that a client leaves out (depth dropout)",
        "stage_rounds": "Rounds for which a block is trained",
    },
)
