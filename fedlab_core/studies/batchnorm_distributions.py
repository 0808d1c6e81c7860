"""Batch normalisation over data distributions on CIFAR-10: damage and remedies beside centralised training.

ResNet-8, 10 clients, 5,000 images, one local step of 32 images a round, cosine-annealed, every arm at its own learning
rate. What the record shows is in the claims below, whose ranges were set before its first unit.
"""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import Any

from fedlab_core.experiment import Experiment
from fedlab_core.settings import Settings
from fedlab_core.studies.arms import Arm, Comparison
from fedlab_core.studies.batchnorm_runs import THEN, VARIANTS
from fedlab_core.studies.claim import ADDED, Claim, Range, headlined
from fedlab_core.studies.record import recorded

ROUNDS = 200
_SETTINGS = Settings(
    1.0,
    None,
    1,
    32,
    lr_schedule="cosine",
    schedule_rounds=ROUNDS,
    batch_norm="average",
    evaluate_every=50,
    engine="loop",
)
CIFAR = Experiment(
    "cifar10", {"download": False, "examples": 5000}, clients=10, model="resnet8", norm="batch", settings=_SETTINGS
)
DISTRIBUTIONS: dict[str, dict[str, Any]] = {
    "2 classes": {"partition": "shards", "partition_options": {"per_client": 2}},
    "1 class": {"partition": "shards", "partition_options": {"per_client": 1}},
    "IID": {"partition": "iid"},
    "Dir(0.1)": {"partition": "dirichlet", "partition_options": {"alpha": 0.1, "min_size": 2}},
    "Dir(0.5)": {"partition": "dirichlet", "partition_options": {"alpha": 0.5, "min_size": 2}},
}
"""Who holds what, in the order in which it is run; shards are cut from the images in order of their labels."""
REMEDIES = ("FedTAN", "FedAvg+BN", "centralised BN", "FixBN", "GroupNorm")
MANY = (0, 1, 2, 3, 4)  # of the headlines; three seeds elsewhere


def _arm(distribution: str, remedy: str) -> Arm:
    claimed = remedy not in ("FixBN", "GroupNorm")
    headline = distribution == "2 classes" or (distribution in ("1 class", "IID") and claimed)
    changes = {**DISTRIBUTIONS[distribution], **VARIANTS[remedy]}
    return Arm(changes, -1, MANY if headline else MANY[:3], THEN.get(remedy, {}))


STUDY = Comparison(
    "batchnorm_distributions",
    "CIFAR-10, 5,000 images, ResNet-8, 10 clients, one local step, 200 rounds",
    CIFAR,
    ROUNDS,
    {f"{d}: {remedy}": _arm(d, remedy) for d in DISTRIBUTIONS for remedy in REMEDIES},
    MANY,
    tests=2000,
)
RECORD = STUDY.record
REGISTERED = "a1f69cd, before the record"
_CLAIMS = {
    "damage": ("2 classes per client: FedAvg with batch normalisation ends below centralised training",
               "2 classes: centralised BN", "2 classes: FedAvg+BN", Range(low=0.05)),
    "repair": ("2 classes per client: FedTAN ends where centralised training does",
               "2 classes: centralised BN", "2 classes: FedTAN", Range(-0.02, 0.02)),
    "one_class": ("1 class per client: FedTAN ends far above FedAvg with batch normalisation",
                  "1 class: FedTAN", "1 class: FedAvg+BN", Range(low=0.1)),
    "iid": ("IID clients: FedAvg with batch normalisation ends where centralised training does",
            "IID: centralised BN", "IID: FedAvg+BN", Range(-0.02, 0.02)),
}  # fmt: skip
"""Rows by the end of their id: text, the two arms of the headline, expected range of their difference."""


def claim(name: str) -> Claim:
    """One row, from the units that are there."""
    text, a, b, expected = _CLAIMS[name]
    data = recorded(STUDY.name)
    values, reached = STUDY.paired(data, a, b), STUDY.finals(data, a)
    found = {arm: STUDY.finals(data, arm) for arm in STUDY.arms}
    return headlined(
        f"batchnorm.cifar_{name}",
        f"{STUDY.title}: {text}",
        expected,
        {f"{a} minus {b}": values} | {arm: accuracies for arm, accuracies in found.items() if accuracies},
        source="Wang, Shi and Chang, arXiv 2301.02982, abstract; set-up is ours",
        size="standard",
        seeds=range(len(values or ())),
        registered=f"{REGISTERED}; {ADDED}" if name == "iid" else REGISTERED,
        test_size=STUDY.tests,
        references={"chance": 0.1, "reached": fmean(reached)} if reached else {},
    )


CLAIMS: Mapping[str, Callable[[], Claim]] = {f"batchnorm.cifar_{name}": partial(claim, name) for name in _CLAIMS}
