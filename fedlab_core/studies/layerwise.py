"""The claims about layer-wise federated learning and depth dropout: what notebook 06 and the recorded runs show."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean
from typing import Any

import torch

from fedlab_core.costs import count_flops
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.layerwise.accounts import peak_memory, relative_flops, stage_loss, staged_run, traffic, training_memory
from fedlab_core.layerwise.method import LayerWise
from fedlab_core.layerwise.network import StagedModel, build_staged
from fedlab_core.layerwise.stages import MASKS, SCHEMES
from fedlab_core.partition import pooled
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.studies.arms import Runs, by_arm
from fedlab_core.studies.claim import Claim, Measured, Range, exact, headlined, two_digits
from fedlab_core.studies.layerwise_runs import (
    DIGITS,
    NO_EVALUATION,
    RATES,
    SEEDS,
    at_budget,
    changed,
    federation,
    network,
)
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences

PAPER = "Guo et al., arXiv 2309.05213"
PROXY = "Tun et al., arXiv 2401.11647"
TINY = {"patch": 4, "dim": 192, "heads": 3, "hidden": 512, "out": 256, "layers": 3}
"""ViT-Tiny on 32x32 pictures with the heads of LW-FedSSL, which also have a predictor."""
NO_HEADS = {"hidden": 1, "out": 1, "layers": 1}
BLOCKS, ROUNDS, GIB = 12, 180, 2**30
COMPARABLE = 0.02
SET = "7a2ca3e, before the record"
CHOSEN = f"{SET}; its one headline was picked, and two of its seeds added, with three seeds known"


def tiny(depth: int = BLOCKS, **changes: Any) -> StagedModel:
    """ViT-Tiny with that many blocks."""
    return build_staged((3, 32, 32), generator(0, "initial weights"), depth=depth, **{**TINY, **changes})


def counted_flops(model: StagedModel, batch: torch.Tensor) -> dict[str, float]:
    """FLOPs of a step, averaged over the stages and relative to end-to-end training, from the operations counted.

    Returns:
        By scheme, and for layer-wise training "drop RATE": the mean over what each mask costs, which is exact because
        every dropped unit saves the same.
    """
    units = len(model.units)
    steps: dict[str, float] = {}
    for scheme in SCHEMES:
        rule = LayerWise(scheme=scheme)
        stages = [rule.schedule.stage(n, units) for n in range(rule.schedule.stages(units))]
        steps[scheme] = mean(count_flops(model, stage_loss(model, rule, stage, batch)) for stage in stages)
    rule = LayerWise()
    last = rule.schedule.stage(units - 1, units)
    masks = [True] * units, [False] + [True] * (units - 1)
    every, without_first = (count_flops(model, stage_loss(model, rule, last, batch, kept)) for kept in masks)
    for rate in RATES:
        steps[f"drop {rate:g}"] = steps["layer_wise"] - rate * (every - without_first) * (units - 1) / 2
    return {name: value / steps["end_to_end"] for name, value in steps.items()}


def counted_traffic(model: StagedModel) -> dict[str, float]:
    """GiB of one client over a run of `ROUNDS`, both ways, from the bytes of real rounds.

    One client takes two rounds of every stage, of one step with two pictures; a stage's later rounds move the same
    bytes as its second.
    """
    x = torch.randint(0, 256, (2, 3, 32, 32), generator=generator(0, "random images")).to(torch.uint8)
    y = torch.arange(2)
    data = Dataset("random images", "image", x, y, x, y, ("a", "b"), (0.5,) * 3, (0.3,) * 3)
    settings = Settings(1.0, None, steps=1, batch_size=2, lr=1e-4, evaluate_every=NO_EVALUATION, engine="loop")
    units, found = len(model.units), {}
    for scheme in SCHEMES:
        rule = LayerWise(scheme=scheme, rounds_per_stage=2)
        stages = rule.schedule.stages(units)
        run = Federation(data, pooled(2), model, settings, rule, memory_mib=4096).run(2 * stages)
        for stateful in (True, False) if scheme == "layer_wise" else (True,):
            moved = [down + up for down, up in traffic(run, stateful)]
            if stateful:
                assert moved == [record.costs.bytes for record in run.history[1:]]
            total = sum(a + (ROUNDS // stages - 1) * b for a, b in zip(moved[::2], moved[1::2], strict=True))
            found[scheme if stateful else f"{scheme}, stateless"] = total / GIB
    return found


def oracles_claim() -> Claim:
    """Row 1: compute and traffic of ViT-Tiny, counted, against the arithmetic."""
    model, picture = tiny(predictor_hidden=512), torch.zeros(1, 3, 32, 32)
    ratios = counted_flops(tiny(**NO_HEADS), picture)  # the arithmetic leaves them out
    sent = counted_traffic(model)
    forms = {name: relative_flops(LayerWise(scheme=name), BLOCKS) for name in ("layer_wise", "progressive")}
    forms |= {f"drop {rate:g}": relative_flops(LayerWise(drop=rate), BLOCKS) for rate in RATES}
    parts = {f"FLOPs, {name}": (ratios[name], Range(0.99 * value, 1.01 * value)) for name, value in forms.items()}
    published = {"end_to_end": 8.20, "layer_wise": 1.61, "progressive": 4.92, "layer_wise, stateless": 3.27}
    parts |= {f"GiB, {name}": (sent[name], Range(0.99 * value, 1.01 * value)) for name, value in published.items()}
    return exact(
        "layerwise.oracles",
        "ViT-Tiny, 12 blocks, 180 rounds: FLOPs (without heads) relative to end-to-end, and bytes of one client, "
        "follow the arithmetic",
        parts,
        source=f"{PROXY}, tables 2, 5, 6 (0.24, 0.54; 8.40, 1.66, 5.04, 3.35 GB); their arithmetic worked out here",
        size="quick",
        seeds=(0,),
        registered=SET,
    )


def memory_claim() -> Claim:
    """Row 2: training memory of twelve blocks, with large and with small heads."""
    batch, parts = torch.zeros(32, 3, 32, 32), dict[str, tuple[Measured, Range | None]]()
    for heads, changes in (("heads of LW-FedSSL", {}), ("small heads", {"hidden": 256, "out": 64, "layers": 2})):
        model = tiny(**changes)
        layered, whole = (peak_memory(model, LayerWise(scheme=s), batch) for s in ("layer_wise", "end_to_end"))
        parts[f"times less, {heads}"] = two_digits(whole.total / layered.total), Range(low=5)
        parts[f"times less kept for backward, {heads}"] = two_digits(whole.kept / layered.kept), None
    return exact(
        "layerwise.memory",
        "ViT-Tiny, 12 blocks, batch 32, SimCLR: layer-wise training needs several times less memory (kept for "
        "backward, weights, gradients, Adam)",
        parts,
        source=f'{PAPER}, abstract: "5x or more"; {PROXY}, table 2: 3.3 with MoCo v3, 1.7 with SimCLR (GPU, measured)',
        size="quick",
        seeds=(0,),
        registered=SET,
    )


def dropout_claim() -> Claim:
    """Row 3: what depth dropout saves, and where."""
    one = changed(DIGITS.replace(steps=1, batch_size=16), rounds_per_stage=1, stateful=False)
    data, units = one.load_data(), 6
    model, rule = network(one, data), LayerWise(drop=0.5)
    last = rule.schedule.stage(units - 1, units)
    batch, mask = torch.zeros(16, *data.input_shape), [False, True, False, True, False, True]
    plain, dropped = (training_memory(model, rule, last, batch, kept) for kept in (None, mask))
    ratios = counted_flops(network(one, data, **NO_HEADS), torch.zeros(8, *data.input_shape))
    parts: dict[str, tuple[Measured, Range | None]] = {}
    for rate in RATES:
        closed = relative_flops(LayerWise(drop=rate), units)
        name = f"FLOPs at rate {rate:g}, relative to the closed form"
        parts[name] = ratios[f"drop {rate:g}"] / closed, Range(0.97, 1.03)
    parts["kept for backward, relative to no dropout"] = dropped.kept / plain.kept, Range(1, 1)
    down = {}
    for name in ("none", *MASKS):
        drop: dict[str, Any] = {} if name == "none" else {"drop": 0.5, "mask": name}
        down[name] = federation(changed(one, **drop)).run(units).history[-1].total.bytes_down
    for name, limits in zip(MASKS, (Range(1, 1), Range(high=0.95), Range(high=0.95)), strict=True):
        part = f"download of a stateless client, mask by {name}, relative to no dropout"
        parts[part] = down[name] / down["none"], limits
    return exact(
        "layerwise.dropout",
        "Digits, ViT with 6 blocks: depth dropout cuts FLOPs by the closed form (without heads), nothing of what is "
        "kept for backward, and downloads only if the mask is drawn before them",
        parts,
        source=f"{PROXY}, table 6: FLOPs 0.80, memory 0.95, traffic 1.00 of plain layer-wise training",
        size="quick",
        seeds=(0,),
        registered=SET,
    )


def frozen_claim(experiment: Experiment = DIGITS) -> Claim:
    """Row 5: frozen blocks are bit-identical from the end of their stage on."""
    one, rounds = experiment.replace(steps=2), 2 * experiment.model_options["depth"]
    equal = moved = count = 0
    for optimiser in ("adamw", "sgd"):
        run = federation(changed(one, rounds_per_stage=2, optimiser_name=optimiser, drop=0.3))
        run = run.fork("with decay and momentum", weight_decay=0.1, momentum=0.9).run(rounds)
        for unit, names in enumerate(staged_run(run)[0].parts()["units"]):
            for later in range(2 * unit + 3, rounds + 1):
                states = [run.state_at(2 * unit + 2), run.state_at(later)]
                equal += all(torch.equal(states[0][n], states[1][n]) for n in names)
                count += 1
            before = run.state_at(2 * unit)
            moved += any(not torch.equal(before[n], run.state_at(2 * unit + 2)[n]) for n in names)
    return exact(
        "layerwise.frozen",
        "Digits, 6 stages, AdamW and SGD with momentum, both with weight decay 0.1: frozen blocks keep their bits",
        {
            "equal, of all block-rounds": (equal, Range(count, count)),
            "blocks that their own stage changed": (moved, Range(12, 12)),
        },
        source="ours",
        size="quick",
        seeds=(0,),
        registered=SET,
    )


def gaps(runs: Runs, measure: str) -> dict[str, list[float]]:
    """Layer-wise minus end-to-end training at equal rounds, FLOPs and bytes, seed by seed, when the smaller of the two
    budgets is spent. At equal rounds it is the run of equal length, else the three times longer one."""
    longer = "layer-wise, 3 x longer"
    compared = {"round": "layer-wise", "flops": longer, "bytes": longer, "bytes_stateless": longer}
    found: dict[str, list[float]] = {}
    for axis, layered in compared.items():
        found[axis] = []
        for a, b in zip(runs[layered], runs["end-to-end"], strict=True):
            budget = min(a[axis][-1], b[axis][-1])
            x, y = (at_budget(one, axis, budget, measure) for one in (a, b))
            if x is not None and y is not None:
                found[axis].append(x - y)
    return found


def _ends(runs: Runs, measure: str = "knn") -> dict[str, list[float]]:
    """A measure at the end of every run, by arm."""
    return {name: [one[measure][-1] for one in found] for name, found in runs.items() if name != "supervised"}


def accuracy_claim(data: Mapping[str, Any] | None = None, chance: float = 0.1, test_size: int = 360) -> Claim:
    """Row 4: accuracy of the frozen features on three budgets, from the recorded runs."""
    names = {"round": "rounds", "flops": "FLOPs", "bytes": "bytes", "bytes_stateless": "bytes, stateless"}
    measured: dict[str, Measured] = {"minus end-to-end at equal rounds": None}
    references: dict[str, float] = {}
    if runs := by_arm(recorded("layerwise_digits") if data is None else data):
        found, last = gaps(runs, "knn"), _ends(runs)
        untrained, small = [one["knn"][0] for one in runs["end-to-end"]], last["end-to-end, small"]
        measured = {f"minus end-to-end at equal {label}": found[axis] for axis, label in names.items()}
        measured["minus random frozen features"] = differences(last["layer-wise"], untrained)
        measured["minus end-to-end of equal memory"] = differences(last["layer-wise"], small)
        longer = differences(last["layer-wise, 3 x longer"], small)
        measured["3 x longer, minus end-to-end of equal memory"] = longer
        for label, kind in (("few-label probe", "few"), ("linear probe", "probe")):
            measured |= {f"{label}: at equal {names[a]}": gap for a, gap in gaps(runs, kind).items()}
        measured |= {f"nearest neighbours: {name}": values for name, values in last.items()}
        references = {"chance": chance, "random frozen features": mean(untrained), "reached": mean(last["layer-wise"])}
        references["supervised"] = mean(one["accuracy"] for one in runs["supervised"])
    return headlined(
        "layerwise.accuracy",
        "Digits, ViT with 6 blocks, 4 clients, SimCLR: nearest-neighbour accuracy of layer-wise training is "
        f"comparable (within {COMPARABLE:g} or better) to end-to-end training",
        Range(low=-COMPARABLE),
        measured,
        source=f'{PAPER}, abstract: "comparable"; {PROXY}, table 2: -0.5 points on CIFAR-10, -6.3 on Caltech-101',
        size="standard",
        seeds=SEEDS if runs else (),
        registered=CHOSEN,
        test_size=test_size,
        references=references,
    )


def dropout_accuracy_claim() -> Claim:
    """Row 3, second half: accuracy over dropout rates, from the recorded runs."""
    measured: dict[str, Measured] = {"rate 0.5 minus none": None}
    if runs := by_arm(recorded("layerwise_dropout")):
        last, few = _ends(runs), _ends(runs, "few")
        measured = {f"rate {rate:g} minus none": differences(last[f"{rate:g}"], last["0"]) for rate in RATES}
        first = {name: values[0] - last["0"][0] for name, values in last.items() if "mask" in name}
        measured |= {f"rate {name}, seed 0, minus none": gap for name, gap in first.items()}
        for rate in RATES:
            measured[f"few-label probe: rate {rate:g} minus none"] = differences(few[f"{rate:g}"], few["0"])
    return headlined(
        "layerwise.dropout_accuracy",
        "Digits, ViT with 6 blocks, mask per client and round: depth dropout costs at most 0.02 of nearest-neighbour "
        "accuracy",
        Range(low=-COMPARABLE),
        measured,
        "rate 0.5 minus none",
        source=f"{PROXY}, table 6: +0.1 points on the mean of four data sets, rate not given",
        size="standard",
        seeds=SEEDS if runs else (),
        registered=CHOSEN,
        test_size=360,
        references={"chance": 0.1, "reached": mean(last["0.5"])} if runs else {},
    )


def photographs_claim(name: str) -> Claim:
    """Row 4 on photographs, from a recorded run if there is one."""
    chance = 0.1 if name == "cifar10" else 1 / 101
    claim = accuracy_claim(recorded(f"layerwise_{name}") or {}, chance, 1_000)
    text = f"{name}: nearest-neighbour accuracy of layer-wise training is comparable to end-to-end training"
    return replace(claim, id=f"layerwise.{name}", text=text)


CLAIMS: dict[str, Callable[[], Claim]] = {
    "layerwise.oracles": oracles_claim,
    "layerwise.memory": memory_claim,
    "layerwise.dropout": dropout_claim,
    "layerwise.dropout_accuracy": dropout_accuracy_claim,
    "layerwise.accuracy": accuracy_claim,
    "layerwise.cifar10": lambda: photographs_claim("cifar10"),
    "layerwise.caltech101": lambda: photographs_claim("caltech101"),
    "layerwise.frozen": frozen_claim,
}
