"""The claims about batch normalisation in a federation: what notebook 02 and the recorded runs show."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.batchnorm.lockstep import Ledger, synchronised_gradients
from fedlab_core.data import load_dataset
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.state import batch_norms
from fedlab_core.studies.batchnorm_exact import full_batch, identity
from fedlab_core.studies.batchnorm_runs import VARIANTS, Setup, compare
from fedlab_core.studies.claim import Claim, Range
from fedlab_core.studies.record import recorded

PAPER = "Wang, Shi and Chang, arXiv 2301.02982"
DIGITS = Setup("digits", rounds=40, evaluate_every=5)
QUICK_LRS, SEEDS = (0.1,), (0, 1, 2)
Results = Mapping[str, Mapping[str, Any]]


def digits(names: tuple[str, ...], **changes: Any) -> dict[str, dict[str, Any]]:
    """Variants on digits, three seeds, at the one learning rate of the quick runs."""
    return compare(DIGITS.replace(**changes), names, SEEDS, QUICK_LRS)


def identity_claim() -> Claim:
    """Row 1: one synchronised step is a centralised one, and not if anything is left out."""
    exact, broken, uneven = [], [], []
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
    )


def count_exchanges(name: str = "resnet20", image: tuple[int, int, int] = (3, 32, 32)) -> dict[str, int]:
    """What one FedTAN round of a network costs each client besides FedAvg's, counted while two clients do it.

    Returns:
        "layers" of batch norm, "exchanges" of the round with the models' own, "floats_up" and "floats_down" besides the
        model, "parameters" and "statistics" (running means and variances) of the model itself.
    """
    model = build_model(name, image, 10, generator(0, "initial weights"), norm="batch")
    draws, ledger = generator(0, "images"), Ledger()
    batches = [(torch.randn(2, *image, generator=draws), torch.tensor([k, k])) for k in range(2)]
    models = [build_model(name, image, 10, generator(0, "initial weights"), norm="batch") for _ in batches]
    synchronised_gradients(models, batches, FedTAN(), ledger)
    layers = batch_norms(model).values()
    return {
        "layers": len(layers),
        "exchanges": ledger.exchanges + 1,
        "floats_up": ledger.floats_up,
        "floats_down": ledger.floats_down,
        "parameters": sum(p.numel() for p in model.parameters()),
        "statistics": sum(2 * layer.num_features for layer in layers),
    }


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
    )


def _gaps(results: Results) -> dict[str, float]:
    central = results["centralised BN"]["mean"]
    gaps = {f"{name} below centralised": central - result["mean"] for name, result in results.items()}
    del gaps["centralised BN below centralised"]
    return gaps


def digits_claim(results: Results | None = None) -> Claim:
    """Row 3 at quick size: the order of the methods on digits."""
    names = ("centralised BN", "FedTAN", "FedAvg+BN", "GroupNorm", "LayerNorm")
    results = results or digits(names)
    return Claim(
        id="batchnorm.digits",
        text="digits, MLP with BN, 2 classes per client, one local step, 40 rounds: the damage and its repair",
        source=f"{PAPER}, abstract; set-up is ours",
        size="quick",
        expected={
            "FedAvg+BN below centralised": Range(low=0.05),
            "FedTAN below centralised": Range(-0.01, 0.01),
            "GroupNorm below centralised": Range(-0.03, 0.03),
            "LayerNorm below centralised": Range(-0.03, 0.03),
        },
        measured=_gaps({name: results[name] for name in names}),
        seeds=SEEDS,
    )


def controls_claim(one_class: Results | None = None, iid: Results | None = None) -> Claim:
    """Row 3 at quick size: one class per client, and the IID control."""
    names = ("centralised BN", "FedTAN", "FedAvg+BN")
    one_class, iid = one_class or digits(names, clients=10), iid or digits(names, skew=0.0)
    return Claim(
        id="batchnorm.controls",
        text="digits: with one class per client FedAvg+BN collapses and FedTAN does not; IID clients show no gap",
        source="ours",
        size="quick",
        expected={
            "FedAvg+BN, one class per client": Range(high=0.4),
            "FedTAN, one class per client": Range(low=0.9),
            "FedAvg+BN below centralised, IID": Range(-0.02, 0.02),
        },
        measured={
            "FedAvg+BN, one class per client": one_class["FedAvg+BN"]["mean"],
            "FedTAN, one class per client": one_class["FedTAN"]["mean"],
            "FedAvg+BN below centralised, IID": _gaps(iid)["FedAvg+BN below centralised"],
        },
        seeds=SEEDS,
    )


def mnist_claim() -> Claim:
    """Row 3 at standard size, from the recorded runs."""
    measured: dict[str, float | None] = {}
    if record := recorded("batchnorm_mnist"):
        results = record["results"]
        names = ("centralised BN", "FedAvg+BN", "GroupNorm", "LayerNorm", "no normalisation", "FixBN")
        measured |= {name: results[name]["mean"] for name in names}
        measured["FedTAN below centralised"] = _gaps(results)["FedTAN below centralised"]
    if record := recorded("batchnorm_mnist_one_digit"):
        for name in ("FedAvg+BN", "FedTAN"):
            measured[f"{name}, one digit per client"] = record["results"][name]["mean"]
    if record := recorded("batchnorm_mnist_iid"):
        measured["FedAvg+BN below centralised, IID"] = _gaps(record["results"])["FedAvg+BN below centralised"]
    return Claim(
        id="batchnorm.mnist",
        text="MNIST (14x14), MLP 196-64-64-10, 2 digits per client, one local step, 200 rounds, lr tuned per variant",
        source=f"{PAPER}, abstract; set-up is ours",
        size="standard",
        expected={
            "centralised BN": Range(low=0.92),
            "FedTAN below centralised": Range(-0.003, 0.003),
            "FedAvg+BN": Range(0.75, 0.88),
            "FedAvg+BN, one digit per client": Range(high=0.25),
            "FedTAN, one digit per client": Range(low=0.92),
            "FedAvg+BN below centralised, IID": Range(-0.01, 0.01),
        },
        measured=measured,
        seeds=SEEDS,
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
    )


def gradients_claim(results: Results | None = None) -> Claim:
    """Row 5: it is the gradients, not the test-time statistics."""
    results = results or digits(("centralised BN", "FedAvg+BN"))
    gain = [run["reestimated"] - run["final"] for run in results["FedAvg+BN"]["runs"]]
    measured: dict[str, float | None] = {"digits: regained": sum(gain) / len(gain)}
    if record := recorded("batchnorm_mnist"):
        gain = [run["reestimated"] - run["final"] for run in record["results"]["FedAvg+BN"]["runs"]]
        measured["MNIST (recorded): regained"] = sum(gain) / len(gain)
    return Claim(
        id="batchnorm.gradients",
        text="MLP: new running statistics from the pooled data after FedAvg+BN regain less than 2 points",
        source="ours",
        size="quick",
        expected={"digits: regained": Range(high=0.02)},
        measured=measured,
        seeds=SEEDS,
    )


def gradients_cnn_claim() -> Claim:
    """Row 5 for a CNN, from the recorded runs: there it is the statistics as well."""
    measured: dict[str, float | None] = {}
    if record := recorded("batchnorm_mnist_cnn"):
        results = record["results"]
        for name in ("FedAvg+BN", "centralised BN"):
            gain = [run["reestimated"] - run["final"] for run in results[name]["runs"]]
            measured[f"{name}: regained"] = sum(gain) / len(gain)
        measured["FedAvg+BN below centralised"] = _gaps(results)["FedAvg+BN below centralised"]
        new = [[run["reestimated"] for run in results[name]["runs"]] for name in ("centralised BN", "FedAvg+BN")]
        lost = [central - plain for central, plain in zip(*new, strict=True)]
        measured["the same with new statistics for both"] = sum(lost) / len(lost)
    return Claim(
        id="batchnorm.gradients_cnn",
        text="the same for a small CNN on MNIST (14x14): new statistics regain less than 2 points",
        source="ours",
        size="standard",
        expected={"FedAvg+BN: regained": Range(high=0.02)},
        measured=measured,
        seeds=SEEDS if measured else (),
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
    )


def cifar_claim() -> Claim:
    """Row 7, from the recorded runs."""
    measured: dict[str, float | None] = {}
    seeds: tuple[int, ...] = ()
    if record := recorded("batchnorm_cifar"):
        results, seeds = record["results"], tuple(record["seeds"])
        measured = {name: result["mean"] for name, result in results.items()}
        measured["FedTAN above FedAvg+BN"] = results["FedTAN"]["mean"] - results["FedAvg+BN"]["mean"]
    return Claim(
        id="batchnorm.cifar",
        text="CIFAR-10 (JPEG), 5,000 images, ResNet-8, 2 classes per client, one local step: FedTAN ahead of FedAvg+BN",
        source=f"{PAPER}, abstract; set-up is ours",
        size="standard",
        expected={"FedTAN above FedAvg+BN": Range(low=0.02)},
        measured=measured,
        seeds=seeds,
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
}
