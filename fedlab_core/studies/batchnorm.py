"""The claims about batch normalisation in a federation: what notebook 02 and the recorded runs show."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fedlab_core.data import load_dataset
from fedlab_core.studies import batchnorm_distributions
from fedlab_core.studies.batchnorm_exact import count_exchanges, full_batch, identity
from fedlab_core.studies.batchnorm_runs import VARIANTS, Setup, compare
from fedlab_core.studies.claim import Claim, Measured, Range
from fedlab_core.studies.record import recorded
from fedlab_core.studies.statistics import differences

PAPER = "Wang, Shi and Chang, arXiv 2301.02982"
DIGITS = Setup("digits", rounds=40, evaluate_every=5)
QUICK_LRS, SEEDS = (0.1,), (0, 1, 2)
SET = "cb6b91b, before the record"
CHOSEN = f"{SET}; its one headline was picked with the record known"
Results = Mapping[str, Mapping[str, Any]]


def digits(names: tuple[str, ...], **changes: Any) -> dict[str, dict[str, Any]]:
    """Variants on digits, three seeds, at the one learning rate of the quick runs."""
    return compare(DIGITS.replace(**changes), names, SEEDS, QUICK_LRS)


def identity_claim() -> Claim:
    """Row 1: one synchronised step is a centralised one, and not if anything is left out."""
    exact: list[float] = []
    broken: list[float] = []
    uneven: list[float] = []
    for name in ("mlp", "small_cnn", "resnet20"):
        for sizes in ((6, 6, 6), (3, 5, 10)):
            errors = identity(name, sizes)
            exact.append(errors.pop("FedTAN"))
            uniform = errors.pop("weights 1/K")
            if sizes == (3, 5, 10):
                uneven.append(uniform)
            broken += errors.values()
    return Claim(
        id="batchnorm.identity",
        text="FedTAN's mean gradient is that of the union batch (float64; 3 networks, equal and unequal batches)",
        source=f"{PAPER}; the identity is worked out here",
        size="quick",
        expected={
            "largest relative error": Range(high=1e-10),
            "smallest error with something left out": Range(low=1e-2),
            "smallest error with weights 1/K on unequal batches": Range(low=1e-2),
        },
        measured={
            "largest relative error": max(exact),
            "smallest error with something left out": min(broken),
            "smallest error with weights 1/K on unequal batches": min(uneven),
        },
        registered=SET,
    )


def exchanges_claim(counted: Mapping[str, int] | None = None) -> Claim:
    """Row 2: the price of FedTAN in exchanges and numbers."""
    counted = counted or count_exchanges()
    return Claim(
        id="batchnorm.exchanges",
        text="ResNet-20 under FedTAN: 3 L + 1 exchanges per round, and 4 numbers per channel sent up besides the model",
        source=f"{PAPER}, published code",
        size="quick",
        expected={"exchanges per round": Range(58, 58), "extra numbers up": Range(2752, 2752)},
        measured={"exchanges per round": counted["exchanges"], "extra numbers up": counted["floats_up"]},
        registered=SET,
    )


def _finals(results: Results, name: str, measure: str = "final") -> list[float]:
    """A measure of every run of a variant, seed by seed."""
    return [run[measure] for run in results[name]["runs"]]


def _below(results: Results, name: str, measure: str = "final") -> list[float]:
    """Centralised training's accuracy minus a variant's, seed by seed."""
    return differences(_finals(results, "centralised BN", measure), _finals(results, name, measure))


def _references(results: Results, name: str) -> dict[str, float]:
    """What a variant's accuracy is read against."""
    central = {"centralised BN": results["centralised BN"]["mean"]} if "centralised BN" in results else {}
    return {"chance": 0.1, "reached": results[name]["mean"], **central}


def digits_claim(results: Results | None = None) -> Claim:
    """Row 3 at quick size: the damage on digits, and what repairs it."""
    names = ("FedAvg+BN", "FedTAN", "GroupNorm", "LayerNorm")
    results = results or digits(("centralised BN", *names))
    headline = "FedAvg+BN below centralised"
    return Claim(
        id="batchnorm.digits",
        text="digits, MLP with BN, 2 classes per client, one local step, 40 rounds: the damage and its repair",
        source=f"{PAPER}, abstract; set-up is ours",
        size="quick",
        headline=headline,
        expected={headline: Range(low=0.05)},
        measured={f"{name} below centralised": _below(results, name) for name in names},
        seeds=SEEDS,
        registered=CHOSEN,
        test_size=360,
        references=_references(results, "FedAvg+BN"),
    )


def controls_claim(one_class: Results | None = None, iid: Results | None = None) -> Claim:
    """Row 3 at quick size: one class per client, and the IID control."""
    names = ("centralised BN", "FedTAN", "FedAvg+BN")
    one_class, iid = one_class or digits(names, clients=10), iid or digits(names, skew=0.0)
    headline = "FedAvg+BN, one class per client"
    return Claim(
        id="batchnorm.controls",
        text="digits: with one class per client FedAvg+BN collapses and FedTAN does not; IID clients show no gap",
        source="ours",
        size="quick",
        headline=headline,
        expected={headline: Range(high=0.4)},
        measured={
            headline: _finals(one_class, "FedAvg+BN"),
            "FedTAN, one class per client": _finals(one_class, "FedTAN"),
            "FedAvg+BN below centralised, IID": _below(iid, "FedAvg+BN"),
        },
        seeds=SEEDS,
        registered=CHOSEN,
        test_size=360,
        references=_references(one_class, "FedAvg+BN"),
    )


def mnist_claim() -> Claim:
    """Row 3 at standard size, from the recorded runs."""
    measured: dict[str, Measured] = {}
    headline, references = "FedTAN below centralised", {}
    if record := recorded("batchnorm_mnist"):
        results = record["results"]
        measured[headline] = _below(results, "FedTAN")
        measured["FedTAN minus FedAvg+BN"] = differences(_finals(results, "FedTAN"), _finals(results, "FedAvg+BN"))
        names = ("centralised BN", "FedTAN", "FedAvg+BN", "GroupNorm", "LayerNorm", "no normalisation", "FixBN")
        measured |= {name: _finals(results, name) for name in names}
        references = _references(results, "FedTAN")
    if record := recorded("batchnorm_mnist_one_digit"):
        for name in ("FedAvg+BN", "FedTAN"):
            measured[f"{name}, one digit per client"] = _finals(record["results"], name)
    if record := recorded("batchnorm_mnist_iid"):
        measured["FedAvg+BN below centralised, IID"] = _below(record["results"], "FedAvg+BN")
    return Claim(
        id="batchnorm.mnist",
        text="MNIST (14x14), MLP 196-64-64-10, 2 digits per client, one local step, 200 rounds, lr tuned per variant: "
        "FedAvg+BN is damaged, FedTAN is not",
        source=f"{PAPER}, abstract; set-up is ours",
        size="standard",
        headline=headline,
        expected={headline: Range(-0.003, 0.003)},
        measured=measured,
        seeds=SEEDS,
        registered=CHOSEN,
        test_size=10_000,
        references=references,
    )


def no_noise_claim(runs: list[dict[str, Any]] | None = None) -> Claim:
    """Row 4 at quick size: the bias is there without any sampling noise."""
    if runs is None:
        data = load_dataset("digits")
        runs = [full_batch(name, 100, 0.2, 1.0, data, points=5) for name in ("FedAvg+BN", "FedTAN", "centralised BN")]
    return _no_noise("batchnorm.no_noise", "digits", 100, "quick", {run["variant"]: run for run in runs})


def no_noise_mnist_claim() -> Claim:
    """Row 4 at standard size, from the recorded runs at constant learning rate 0.2."""
    record = recorded("batchnorm_no_noise")
    runs = [run for run in record["runs"] if (run["lr"], run["lr_decay"]) == (0.2, 1.0)] if record else []
    return _no_noise("batchnorm.no_noise_mnist", "MNIST (14x14)", 3000, "standard", {r["variant"]: r for r in runs})


AGREE = "FedTAN's F - centralised F, largest in the first 1,000 rounds"
"""Later the constant rate makes both oscillate, which magnifies rounding until they part (MNIST: round 1,600)."""


def _late(values: list[float]) -> float:
    """Median over the last third: a constant learning rate makes single rounds jump."""
    return statistics.median(values[-(-2 * len(values) // 3) :])


def _no_noise(id: str, data: str, rounds: int, size: str, runs: Mapping[str, Mapping[str, Any]]) -> Claim:
    measured: dict[str, float | None] = {}
    if runs:
        plain, tan, central = (runs[name] for name in ("FedAvg+BN", "FedTAN", "centralised BN"))
        early = [i for i, number in enumerate(tan["round"]) if number <= 1000]
        measured = {
            "F of FedAvg+BN / F of FedTAN": _late(plain["objective"]) / _late(tan["objective"]),
            "gradient norm of FedAvg+BN / of FedTAN": _late(plain["gradient"]) / _late(tan["gradient"]),
            AGREE: max(abs(tan["objective"][i] - central["objective"][i]) for i in early),
        }
    return Claim(
        id=id,
        text=f"{data}, all data in every step, no sampling noise, {rounds} rounds: FedAvg+BN goes somewhere else",
        source=f"{PAPER}, abstract (bias of the limit); set-up is ours",
        size=size,
        expected={
            "F of FedAvg+BN / F of FedTAN": Range(low=1.5),
            "gradient norm of FedAvg+BN / of FedTAN": Range(low=5),
            AGREE: Range(high=1e-5),
        },
        measured=measured,
        seeds=(0,) if runs else (),
        registered=f"{SET}; {AGREE[:6]}: 0ade865, together with the record",
    )


def gradients_claim(results: Results | None = None) -> Claim:
    """Row 5: it is the gradients, not the test-time statistics."""
    results = results or digits(("centralised BN", "FedAvg+BN"))
    headline = "digits: regained"
    measured: dict[str, Measured] = {headline: _regained(results, "FedAvg+BN")}
    if record := recorded("batchnorm_mnist"):
        measured["MNIST (recorded): regained"] = _regained(record["results"], "FedAvg+BN")
    return Claim(
        id="batchnorm.gradients",
        text="MLP: new running statistics from the pooled data after FedAvg+BN regain less than 2 points",
        source="ours",
        size="quick",
        headline=headline,
        expected={headline: Range(high=0.02)},
        measured=measured,
        seeds=SEEDS,
        registered=SET,
        test_size=360,
        references=_references(results, "FedAvg+BN"),
    )


def _regained(results: Results, name: str) -> list[float]:
    """Accuracy that re-estimated statistics give back, seed by seed."""
    return differences(_finals(results, name, "reestimated"), _finals(results, name))


def gradients_cnn_claim() -> Claim:
    """Row 5 for a CNN, from the recorded runs: there it is the statistics as well."""
    measured: dict[str, Measured] = {}
    headline, references = "FedAvg+BN: regained", {}
    if record := recorded("batchnorm_mnist_cnn"):
        results = record["results"]
        measured = {f"{name}: regained": _regained(results, name) for name in ("FedAvg+BN", "centralised BN")}
        measured["FedAvg+BN below centralised"] = _below(results, "FedAvg+BN")
        measured["the same with new statistics for both"] = _below(results, "FedAvg+BN", "reestimated")
        references = _references(results, "FedAvg+BN")
    return Claim(
        id="batchnorm.gradients_cnn",
        text="the same for a small CNN on MNIST (14x14): new statistics regain less than 2 points",
        source="ours",
        size="standard",
        headline=headline,
        expected={headline: Range(high=0.02)},
        measured=measured,
        seeds=SEEDS if measured else (),
        registered="bfd69b3, together with the record",
        test_size=10_000,
        references=references,
    )


def silobn_claim() -> Claim:
    """Row 6: SiloBN trains as FedAvg+BN does."""
    data = DIGITS.load()
    avg, silo = (DIGITS.build(VARIANTS[name], 0, 0.1, data).run(10) for name in ("FedAvg+BN", "SiloBN"))
    different = sum(not torch.equal(avg.state[name], silo.state[name]) for name in avg.trained_names)
    return Claim(
        id="batchnorm.silobn",
        text="SiloBN's trained parameters equal FedAvg+BN's bit for bit (digits, 10 rounds)",
        source="ours; SiloBN: Andreux et al., arXiv 2008.07424",
        size="quick",
        expected={"parameters that differ": Range(0, 0)},
        measured={"parameters that differ": different},
        seeds=(0,),
        registered=SET,
    )


def cifar_claim() -> Claim:
    """Row 7, from the recorded runs."""
    measured: dict[str, Measured] = {}
    headline, seeds, references = "FedTAN minus FedAvg+BN", (), {}
    if record := recorded("batchnorm_cifar"):
        results, seeds = record["results"], tuple(record["seeds"])
        measured[headline] = differences(_finals(results, "FedTAN"), _finals(results, "FedAvg+BN"))
        measured |= {name: _finals(results, name) for name in results}
        references = _references(results, "FedTAN")
    return Claim(
        id="batchnorm.cifar",
        text="CIFAR-10 (JPEG), 5,000 images, ResNet-8, 2 classes per client, one local step: FedTAN ahead of FedAvg+BN",
        source=f"{PAPER}, abstract; set-up is ours",
        size="standard",
        headline=headline,
        expected={headline: Range(low=0.02)},
        measured=measured,
        seeds=seeds,
        registered=SET,
        test_size=2_000,
        references=references,
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
