"""The claims about batch normalisation in a federation: what notebook 02 and the recorded runs show."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import mean, median
from typing import Any

import torch

from fedlab_core.studies import batchnorm_distributions
from fedlab_core.studies.arms import Comparison, Runs, by_arm, finals
from fedlab_core.studies.batchnorm_exact import count_exchanges, full_batch, identity
from fedlab_core.studies.batchnorm_runs import DIGITS, QUICK, SEEDS, VARIANTS
from fedlab_core.studies.claim import ADDED, Claim, Measured, Range, exact, headlined
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences

PAPER = "Wang, Shi and Chang, arXiv 2301.02982"
SET = "cb6b91b, before the record"
CHOSEN = f"{SET}; its one headline was picked with the record known"
_QUICK: dict[str, Any] = {"size": "quick", "seeds": SEEDS[:3], "registered": CHOSEN, "test_size": 360}


def identity_claim() -> Claim:
    """Row 1: one synchronised step is a centralised one, and not if anything is left out."""
    errs: list[float] = []
    broken: list[float] = []
    uneven: list[float] = []
    for name in ("mlp", "small_cnn", "resnet20"):
        for sizes in ((6, 6, 6), (3, 5, 10)):
            errors = identity(name, sizes)
            errs.append(errors.pop("FedTAN"))
            uniform = errors.pop("weights 1/K")
            if sizes == (3, 5, 10):
                uneven.append(uniform)
            broken += errors.values()
    return exact(
        "batchnorm.identity",
        "FedTAN's mean gradient is that of the union batch (float64; 3 networks, equal and unequal batches)",
        {
            "largest relative error": (max(errs), Range(high=1e-10)),
            "smallest error with something left out": (min(broken), Range(low=1e-2)),
            "smallest error with weights 1/K on unequal batches": (min(uneven), Range(low=1e-2)),
        },
        source=f"{PAPER}; the identity is worked out here",
        size="quick",
        registered=SET,
    )


def exchanges_claim() -> Claim:
    """Row 2: the price of FedTAN in exchanges and values."""
    counted = count_exchanges()
    return exact(
        "batchnorm.exchanges",
        "ResNet-20 under FedTAN: 3 L + 1 exchanges per round, and 4 numbers per channel sent up besides the model",
        {
            "exchanges per round": (counted["exchanges"], Range(58, 58)),
            "extra numbers up": (counted["floats_up"], Range(2752, 2752)),
        },
        source=f"{PAPER}, published code",
        size="quick",
        registered=SET,
    )


def _below(runs: Runs, name: str, measure: str = "test") -> list[float]:
    """Centralised training's accuracy minus a variant's, seed by seed."""
    return differences(finals(runs, "centralised BN", measure), finals(runs, name, measure))


def _seeds(runs: Runs | None) -> tuple[int, ...]:
    """The seeds that a record has so far."""
    return SEEDS[: min(map(len, runs.values()))] if runs else ()


def _references(runs: Runs, name: str) -> dict[str, float]:
    """What a variant's accuracy is read against."""
    names = {"reached": name, "centralised BN": "centralised BN"}
    return {"chance": 0.1} | {key: mean(finals(runs, arm)) for key, arm in names.items() if arm in runs}


def _record(name: str) -> Runs:
    """The recorded runs by variant; empty without a record."""
    return by_arm(recorded(f"batchnorm_{name}"))


def digits_claim() -> Claim:
    """Row 3 at quick size: the damage on digits, and what repairs it."""
    names = ("FedAvg+BN", "FedTAN", "GroupNorm", "LayerNorm")
    runs = QUICK.here("centralised BN", *names)
    return headlined(
        "batchnorm.digits",
        "digits, MLP with BN, 2 classes per client, one local step, 40 rounds: the damage and its repair",
        Range(low=0.05),
        {f"{name} below centralised": _below(runs, name) for name in names},
        source=f"{PAPER}, abstract; set-up is ours",
        references=_references(runs, "FedAvg+BN"),
        **_QUICK,
    )


def controls_claim() -> Claim:
    """Row 3 at quick size: one class per client, and the IID control."""
    names = ("centralised BN", "FedTAN", "FedAvg+BN")
    one_class = _changed(clients=10).here(*names)
    iid = _changed(partition_options={"skew": 0.0}).here(*names)
    measured = {
        "FedAvg+BN, one class per client": finals(one_class, "FedAvg+BN"),
        "FedTAN, one class per client": finals(one_class, "FedTAN"),
        "FedAvg+BN below centralised, IID": _below(iid, "FedAvg+BN"),
    }
    return headlined(
        "batchnorm.controls",
        "digits: with one class per client FedAvg+BN collapses and FedTAN does not; IID clients show no gap",
        Range(high=0.4),
        measured,
        source="ours",
        references=_references(one_class, "FedAvg+BN"),
        **_QUICK,
    )


def _changed(**changes: Any) -> Comparison:
    return replace(QUICK, experiment=QUICK.experiment.replace(**changes))


def mnist_claim() -> Claim:
    """Row 3 at standard size, from the recorded runs."""
    measured: dict[str, Measured] = {"FedTAN below centralised": None}
    if runs := _record("mnist"):
        measured["FedTAN below centralised"] = _below(runs, "FedTAN")
        measured["FedTAN minus FedAvg+BN"] = differences(finals(runs, "FedTAN"), finals(runs, "FedAvg+BN"))
        names = ["centralised BN", "FedTAN", "FedAvg+BN", "GroupNorm", "LayerNorm", "no normalisation", "FixBN"]
        names += ["HBN", "HBN, faster statistics", "FBN"]
        measured |= {name: finals(runs, name) for name in names}
    if one_digit := _record("mnist_one_digit"):
        for name in ("FedAvg+BN", "FedTAN"):
            measured[f"{name}, one digit per client"] = finals(one_digit, name)
    if iid := _record("mnist_iid"):
        measured["FedAvg+BN below centralised, IID"] = _below(iid, "FedAvg+BN")
    return headlined(
        "batchnorm.mnist",
        "MNIST (14x14), MLP 196-64-64-10, 2 digits per client, one local step, 200 rounds, lr tuned per variant: "
        "FedAvg+BN is damaged, FedTAN is not",
        Range(-0.003, 0.003),
        measured,
        source=f"{PAPER}, abstract; set-up is ours",
        references=_references(runs, "FedTAN") if runs else {},
        **_QUICK | {"size": "standard", "test_size": 10_000, "seeds": _seeds(runs), "registered": f"{CHOSEN}; {ADDED}"},
    )


def no_noise_claim() -> Claim:
    """Row 4 at quick size: the bias is there without any sampling noise."""
    names = ("FedAvg+BN", "FedTAN", "centralised BN")
    runs = {name: full_batch(name, 100, experiment=DIGITS, points=5) for name in names}
    return _no_noise("batchnorm.no_noise", "digits", 100, "quick", runs)


def no_noise_mnist_claim() -> Claim:
    """Row 4 at standard size, from the recorded runs at constant learning rate 0.2."""
    units = (recorded("batchnorm_no_noise") or {"units": []})["units"]
    runs = [run for run in (one["result"] for one in units) if (run["lr"], run["lr_decay"]) == (0.2, 1.0)]
    return _no_noise("batchnorm.no_noise_mnist", "MNIST (14x14)", 3000, "standard", {r["variant"]: r for r in runs})


AGREE = "FedTAN's F - centralised F, largest in the first 1,000 rounds"
"""Later the constant rate makes both oscillate, which magnifies rounding until they part (MNIST: round 1,600)."""


def _late(values: list[float]) -> float:
    """Median over the last third: a constant learning rate makes single rounds jump."""
    return median(values[-(-2 * len(values) // 3) :])


def _no_noise(id: str, data: str, rounds: int, size: str, runs: Mapping[str, Mapping[str, Any]]) -> Claim:
    bias = norm = gap = None
    if runs:
        plain, tan, central = (runs[name] for name in ("FedAvg+BN", "FedTAN", "centralised BN"))
        early = [i for i, number in enumerate(tan["round"]) if number <= 1000]
        bias = _late(plain["objective"]) / _late(tan["objective"])
        norm = _late(plain["gradient"]) / _late(tan["gradient"])
        gap = max(abs(tan["objective"][i] - central["objective"][i]) for i in early)
    return exact(
        id,
        f"{data}, all data in every step, no sampling noise, {rounds} rounds: FedAvg+BN goes somewhere else",
        {
            "F of FedAvg+BN / F of FedTAN": (bias, Range(low=1.5)),
            "gradient norm of FedAvg+BN / of FedTAN": (norm, Range(low=5)),
            AGREE: (gap, Range(high=1e-5)),
        },
        source=f"{PAPER}, abstract (bias of the limit); set-up is ours",
        size=size,
        seeds=(0,) if runs else (),
        registered=f"{SET}; {AGREE[:6]}: 0ade865, together with the record",
    )


def gradients_claim() -> Claim:
    """Row 5: it is the gradients, not the test-time statistics."""
    runs = QUICK.here("centralised BN", "FedAvg+BN")
    measured: dict[str, Measured] = {"digits: regained": _regained(runs, "FedAvg+BN")}
    if mnist := _record("mnist"):
        measured["MNIST (recorded): regained"] = _regained(mnist, "FedAvg+BN")
    return headlined(
        "batchnorm.gradients",
        "MLP: new running statistics from the pooled data after FedAvg+BN regain less than 2 points",
        Range(high=0.02),
        measured,
        source="ours",
        references=_references(runs, "FedAvg+BN"),
        **_QUICK | {"registered": SET},
    )


def _regained(runs: Runs, name: str) -> list[float]:
    """Accuracy that re-estimated statistics give back, seed by seed."""
    return differences(finals(runs, name, "reestimated"), finals(runs, name))


def gradients_cnn_claim() -> Claim:
    """Row 5 for a CNN, from the recorded runs: there it is the statistics as well."""
    measured: dict[str, Measured] = {"FedAvg+BN: regained": None}
    if runs := _record("mnist_cnn"):
        measured |= {f"{name}: regained": _regained(runs, name) for name in ("FedAvg+BN", "centralised BN")}
        measured["FedAvg+BN below centralised"] = _below(runs, "FedAvg+BN")
        measured["the same with new statistics for both"] = _below(runs, "FedAvg+BN", "reestimated")
    return headlined(
        "batchnorm.gradients_cnn",
        "the same for a small CNN on MNIST (14x14): new statistics regain less than 2 points",
        Range(high=0.02),
        measured,
        source="ours",
        size="standard",
        seeds=_seeds(runs),
        registered=f"bfd69b3, together with the record; {ADDED}",
        test_size=10_000,
        references=_references(runs, "FedAvg+BN") if runs else {},
    )


def silobn_claim() -> Claim:
    """Row 6: SiloBN trains as FedAvg+BN does."""
    avg, silo = (DIGITS.replace(**VARIANTS[name]).build().run(10) for name in ("FedAvg+BN", "SiloBN"))
    different = sum(not torch.equal(avg.state[name], silo.state[name]) for name in avg.trained_names)
    return exact(
        "batchnorm.silobn",
        "SiloBN's trained parameters equal FedAvg+BN's bit for bit (digits, 10 rounds)",
        {"parameters that differ": (different, Range(0, 0))},
        source="ours; SiloBN: Andreux et al., arXiv 2008.07424",
        size="quick",
        seeds=(0,),
        registered=SET,
    )


def cifar_claim() -> Claim:
    """Row 7, from the recorded runs."""
    measured: dict[str, Measured] = {"FedTAN minus FedAvg+BN": None}
    if runs := _record("cifar"):
        measured["FedTAN minus FedAvg+BN"] = differences(finals(runs, "FedTAN"), finals(runs, "FedAvg+BN"))
        measured |= {name: finals(runs, name) for name in runs}
    return headlined(
        "batchnorm.cifar",
        "CIFAR-10 (JPEG), 5,000 images, ResNet-8, 2 classes per client, one local step: FedTAN ahead of FedAvg+BN",
        Range(low=0.02),
        measured,
        source=f"{PAPER}, abstract; set-up is ours",
        size="standard",
        seeds=_seeds(runs),
        registered=f"{SET}; {ADDED}",
        test_size=2_000,
        references=_references(runs, "FedTAN") if runs else {},
    )


CLAIMS: dict[str, Callable[[], Claim]] = {
    "batchnorm.identity": identity_claim,
    "batchnorm.exchanges": exchanges_claim,
    "batchnorm.digits": digits_claim,
    "batchnorm.controls": controls_claim,
    "batchnorm.mnist": mnist_claim,
    "batchnorm.no_noise": no_noise_claim,
    "batchnorm.no_noise_mnist": no_noise_mnist_claim,
    "batchnorm.gradients": gradients_claim,
    "batchnorm.gradients_cnn": gradients_cnn_claim,
    "batchnorm.silobn": silobn_claim,
    "batchnorm.cifar": cifar_claim,
    **batchnorm_distributions.CLAIMS,
}
