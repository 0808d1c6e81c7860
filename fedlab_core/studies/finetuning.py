"""The claims about federated fine-tuning of Transformers: what notebook 05 and the recorded runs show."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

import torch

from fedlab_core.finetuning.accounts import cost_table, meta_vit_b_16, payload_table
from fedlab_core.studies.arms import grouped, rates
from fedlab_core.studies.claim import Claim, Measured, Range, exact, extended, headlined, two_digits
from fedlab_core.studies.finetuning_runs import SEEDS, SHOTS, until
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences, ratios

PAPER = "Chen et al., FedTune, arXiv 2211.08025, abstract (no number was available to us)"
PAYLOADS = {
    "full": 85_875_556,
    "head only": 76_900,
    "bias + head": 179_812,
    "LayerNorm + head": 115_300,
    "VPT shallow k=10 + head": 84_580,
    "VPT deep k=10 + head": 169_060,
    "adapter /8, one per block, + head": 1_856_740,
    "adapter /8, one shared, + head": 225_220,
    "LoRA r=8 on q,v + head": 371_812,
    "FFA-LoRA r=8 on q,v + head": 224_356,
    "CoOp M=16, no head": 8_192,
    "FedCLIP feature adapter": 525_312,
}
"""Numbers that travel, worked out by hand from the sizes of ViT-B/16 and CLIP B/16 with 100 classes."""
SMALL = ("bias", "layer_norm", "vpt_deep", "lora")
"""Methods that send more than a hundred times less than everything, besides the head alone."""
SET = "17c669c, before the record"
CHOSEN = f"{SET}; its one headline was picked with the record known"
Data = Mapping[str, Any]
Measures = dict[str, Measured]
TARGET = 0.95  # of what full fine-tuning reaches at the end


def payload_claim() -> Claim:
    """Row 1: parameters and bytes of every method, counted on networks without values."""
    rows = {row["method"]: row for row in payload_table(100)}
    bias = rows["bias + head"]
    measured = {name: rows[name]["trained"] for name in PAYLOADS}
    measured |= {
        "bias + head, MB": round(bias["MB"], 3),
        "bias + head, times less": round(bias["times less"]),
        "full, MB": round(rows["full"]["MB"], 1),
        "bias + head, share of the head": bias["head"] / bias["trained"],
    }
    expected = {name: Range(count, count) for name, count in PAYLOADS.items()}
    expected |= {"bias + head, MB": Range(0.719, 0.719), "bias + head, times less": Range(478, 478)}
    expected |= {"full, MB": Range(343.5, 343.5)}
    return Claim(
        id="finetuning.payload",
        text="ViT-B/16 and CLIP B/16, 100 classes: numbers that travel one way, of each method",
        source="ours, by arithmetic; that tuning a part is light to send is the abstract's",
        size="quick",
        registered=SET,
        expected=expected,
        measured=measured,
        seeds=(0,),
    )


def ends(runs: Sequence[Mapping[str, Any]], measure: str = "test") -> list[float]:
    """A measure at the end of the runs, one per seed."""
    return [one["clients"][measure] for one in runs]


def levels(data: Data) -> Measures:
    """What every run of a record reaches, best first in each group, and its learning rate."""
    found: Measures = {}
    for group, runs in grouped(data).items():
        for name in sorted(runs, key=lambda name: -mean(ends(runs[name]))):
            arm = f"{group}: {name}"
            found |= {arm: ends(runs[name]), f"{arm}, lr": rates(data)[arm]}
    return found


def strength(data: Data) -> tuple[Measures, list[float]]:
    """The order of the methods over pre-training strength."""
    starts = grouped(data)
    gap = {name: differences(ends(runs["bias"]), ends(runs["full"])) for name, runs in starts.items()}
    strong, reached = starts["strong"], ends(starts["strong"]["bias"])
    best = max((name for name in strong if name != "bias"), key=lambda name: mean(ends(strong[name])))
    return {
        "strong: bias minus the best other": differences(reached, ends(strong[best])),
        "strong: bias minus full": gap["strong"],
        "random: bias minus full": gap["random"],
        "bias minus full, strong minus random": differences(gap["strong"], gap["random"]),
    } | levels(data), reached


def clip(data: Data) -> tuple[Measures, list[float]]:
    """CLIP-tiny against a ViT of the same size and pictures over shots, with controls."""
    few, many = (grouped(data)[count] for count in ("1", "16"))
    text, vit, prototypes, drawn = "CLIP, text head", "ViT, linear head", "ViT, prototype head", "CLIP, random head"
    lost = [differences(ends(many[name]), ends(few[name])) for name in (vit, text)]
    return {
        "1 shot: CLIP minus ViT": differences(ends(few[text]), ends(few[vit])),
        "16 shots: CLIP minus ViT": differences(ends(many[text]), ends(many[vit])),
        "lost from 16 shots to 1: ViT minus CLIP": differences(*lost),
        "head: 1 shot, CLIP with a random head minus ViT": differences(ends(few[drawn]), ends(few[vit])),
        "head: 1 shot, CLIP minus ViT with prototypes": differences(ends(few[text]), ends(few[prototypes])),
        "zero-shot": [one["test"][0] for one in few[text]],
        "prototypes before training, 1 shot": [one["test"][0] for one in few[prototypes]],
    } | levels(data), ends(few[text])


def local(data: Data) -> tuple[Measures, list[float]]:
    """Federated against local-only training over shots."""
    found, measured = grouped(data), Measures()
    for method, prefix in (("bias", ""), ("full", "full, ")):
        for count in map(str, SHOTS):
            both = [found[count][f"{method}, {where}"] for where in ("federated", "alone")]
            for name, measure in (("all classes", "test"), ("own distribution", "own")):
                values = differences(*(ends(runs, measure) for runs in both))
                measured[f"{prefix}{count}: {name}, FL minus alone"] = values
            over = [differences(ends(runs, "train"), ends(runs, "own")) for runs in both]
            measured[f"{prefix}{count}: train minus own, alone minus FL"] = differences(*reversed(over))
    return measured, ends(found["4"]["bias, federated"])


def targets(data: Data) -> tuple[Measures, list[float]]:
    """Rounds and bytes to a target, per method, from the runs with the strong start."""
    runs = grouped(data)["strong"]
    target = TARGET * mean(ends(runs["full"]))
    rounds, sent = (
        {name: [until(one, axis, target) for one in seeds] for name, seeds in runs.items()}
        for axis in ("round", "bytes")
    )
    measured: Measures = {
        "bias: times fewer bytes than full": ratios(sent["full"], sent["bias"]),
        "bias: rounds, relative to full": ratios(rounds["bias"], rounds["full"]),
        "target": target,
    }
    for name in runs:
        measured |= {f"{name}: rounds": rounds[name], f"{name}: MB": [value / 1e6 for value in sent[name]]}
    return measured, []


def caltech_cifar(data: Data) -> tuple[Measures, list[float]]:
    """CIFAR-10 from random weights and from Caltech-101: what the start gives, and biases against the head alone."""
    random, learnt = (grouped(data)[name] for name in ("random", "Caltech-101"))
    return {
        "bias: pre-trained minus random": differences(ends(learnt["bias"]), ends(random["bias"])),
        "full: pre-trained minus random": differences(ends(learnt["full"]), ends(random["full"])),
        "pre-trained: bias minus head only": differences(ends(learnt["bias"]), ends(learnt["head"])),
    } | levels(data), ends(learnt["bias"])


_ROWS: dict[str, tuple[Callable[[Data], tuple[Measures, list[float]]], str, str, Range]] = {
    "strength": (
        strength,
        "Scenes, 8 clients, small ViT: biases alone are best if the pre-trained network is strong",
        "strong: bias minus the best other",
        Range(low=0),
    ),
    "clip": (
        clip,
        "Scenes, biases tuned: CLIP-tiny is above a ViT of its size and pictures, and loses less with few shots",
        "1 shot: CLIP minus ViT",
        Range(low=0.05),
    ),
    "local": (
        local,
        "Scenes, strong ViT, biases tuned, Dirichlet 0.5, 1 to 16 pictures per class and client: training together "
        "beats training alone, also on a client's own classes, and over-fits less",
        "4: all classes, FL minus alone",
        Range(low=0.05),
    ),
    "targets": (
        targets,
        f"Scenes, strong ViT: to {TARGET:g} of what full fine-tuning reaches, biases take few more rounds and far "
        "fewer bytes",
        "bias: times fewer bytes than full",
        Range(low=10),
    ),
    "caltech_cifar": (
        caltech_cifar,
        "CIFAR-10, 2,000 pictures, 8 clients: a small ViT that has seen photographs of other objects is above one that "
        "has not, and biases are above the head alone",
        "bias: pre-trained minus random",
        Range(low=0.03),
    ),
}
"""Rows by the end of their id: how the record is measured (with the accuracies that the test set's error is computed
at), what is claimed, the headline and its range."""


def claim(name: str, data: Data | None = None) -> Claim:
    """A row from recorded runs; not run without them."""
    measure, text, headline, expected = _ROWS[name]
    data = recorded(f"finetuning_{'strength' if name == 'targets' else name}") if data is None else data
    measured, reached = measure(data) if data else ({headline: None}, [])
    chance, tests = (0.1, 500) if name == "caltech_cifar" else (1 / 16, 400)
    return headlined(
        f"finetuning.{name}",
        text,
        expected,
        measured,
        headline,
        source=PAPER,
        size="standard",
        seeds=SEEDS if data else (),
        registered=extended(CHOSEN, data),
        test_size=tests,
        references={"chance": chance, "reached": mean(reached)} if reached else {},
    )


def memory_claim() -> Claim:
    """Row 6: bytes kept for the backward pass fall far less than bytes that travel."""
    with torch.device("meta"):
        images = torch.zeros(8, 3, 224, 224)
    rows = {row["method"]: row for row in cost_table(meta_vit_b_16(100), images, ("full", "adapter", "head", *SMALL))}
    full = rows.pop("full")
    parts: dict[str, tuple[Measured, Range | None]] = {}
    for name, row in rows.items():
        sent, kept = (Range(low=100), Range(1, 2)) if name in SMALL else (None, None)
        parts[f"{name}: payload, times less"] = full["bytes"] / row["bytes"], sent
        parts[f"{name}: kept for backward, times less"] = two_digits(full["kept"] / row["kept"]), kept
        parts[f"{name}: FLOPs, times less"] = full["flops"] / row["flops"], None
    return exact(
        "finetuning.memory",
        "ViT-B/16, 100 classes, batch 8: what travels falls more than 100 times, what is kept for the backward pass "
        "less than 2 times",
        parts,
        source="ours",
        size="quick",
        registered=SET,
        seeds=(0,),
    )


def paper_claim() -> Claim:
    """The paper's own networks: they need weights and a GPU, and were not run."""
    return Claim(
        id="finetuning.paper",
        text="Real ViT-B/16 and CLIP: bias tuning is best, CLIP is above ViT",
        source=PAPER,
        size="paper",
        expected={"ViT-B/16: bias minus full": Range(low=0), "few shots: CLIP minus ViT": Range(low=0)},
        registered=SET,
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "finetuning.payload": payload_claim,
    "finetuning.strength": partial(claim, "strength"),
    "finetuning.clip": partial(claim, "clip"),
    "finetuning.local": partial(claim, "local"),
    "finetuning.targets": partial(claim, "targets"),
    "finetuning.memory": memory_claim,
    "finetuning.caltech_cifar": partial(claim, "caltech_cifar"),
    "finetuning.paper": paper_claim,
}
