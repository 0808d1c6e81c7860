"""Why batch normalisation damages federated learning on skewed labels, and what repairs it: variants and their records.

Learning rates are tuned per variant: the best of 0.03 (MNIST only), 0.1 and 0.3 by the mean final accuracy over the
seeds. What else was tried stands in the records.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.settings import Settings
from fedlab_core.studies.arms import Arm, Comparison, by_arm

SEEDS = (0, 1, 2, 3, 4)
VARIANTS: dict[str, dict[str, Any]] = {
    "centralised BN": {"method": "union_sgd"},
    "FedTAN": {"method": "fedtan"},
    "FedTAN, frozen later": {"method": "fedtan", "method_options": {"freeze": True}},
    "FedAvg+BN": {},
    "FedAvg+BN, total variance": {"batch_norm": "total_variance"},
    "SiloBN": {"batch_norm": "local_statistics"},
    "FedBN": {"batch_norm": "local"},
    "FixBN": {},
    "HBN": {"method": "hbn", "batch_norm": None},
    "HBN, faster statistics": {"method": "hbn", "method_options": {"step": 0.1}, "batch_norm": None},
    "FBN": {"method": "fbn", "batch_norm": None},
    "GroupNorm": {"norm": "group", "batch_norm": None},
    "LayerNorm": {"norm": "layer", "batch_norm": None},
    "weight standardised": {"norm": "weight", "batch_norm": None},
    "no normalisation": {"norm": "none", "batch_norm": None},
}
"""What should happen to normalisation: changes of an experiment with averaged batch norm."""
THEN: dict[str, dict[str, Any]] = {"FixBN": {"batch_norm": "frozen", "lr": 0.3}}
"""Changes at half of the rounds, see `Arm`."""
_SETTINGS = Settings(1.0, None, 1, 32, 0.1, batch_norm="average", evaluate_every=10, engine="loop")
DIGITS = Experiment(
    partition="label_blocks", clients=5, model="mlp", norm="batch", settings=_SETTINGS.replace(evaluate_every=5)
)
"""One local step a round, and at skew 1 two digits a client."""
MNIST = DIGITS.replace(
    dataset="mnist", dataset_options={"download": False, "first": 1000, "pixels": 14}, settings=_SETTINGS
)
CIFAR = DIGITS.replace(
    dataset="cifar10", dataset_options={"download": False, "first": 500, "tests": 2000}, model="resnet8",
    settings=_SETTINGS.replace(evaluate_every=20, lr_schedule="cosine", schedule_rounds=100, channels_last=True),
)  # fmt: skip


def draw(data: Mapping[str, Any]) -> Figure:
    """Final accuracy of every variant, and curves over rounds and exchanges; some variants have no curve, so that the
    others can be told apart."""
    runs = by_arm(data)
    fig, (bars, over_rounds, over_exchanges) = plots.mosaic("ab;ac", (9.6, 6.4))
    plots_batchnorm.finals(bars, runs)
    undrawn = ("FedAvg+BN, total variance", "SiloBN", "LayerNorm", "weight standardised", "HBN")
    shown = {name: found for name, found in runs.items() if name not in undrawn}
    plots_batchnorm.accuracy_against(over_rounds, shown)
    plots_batchnorm.accuracy_against(over_exchanges, shown, "exchanges")
    fig.legend(*over_rounds.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    return fig


def study(name: str, title: str, experiment: Experiment, rounds: int, rates: Mapping[str, float]) -> Comparison:
    """Variants side by side, each at its own learning rate."""
    arms = {arm: Arm(VARIANTS[arm], then=THEN.get(arm, {}), lr=lr) for arm, lr in rates.items()}
    return Comparison(f"batchnorm_{name}", title, experiment, rounds, arms, SEEDS, held_out=0, picture=draw)


QUICK = replace(study("digits", "digits, MLP", DIGITS, 40, dict.fromkeys(VARIANTS, 0.1)), seeds=SEEDS[:3])
_MNIST = "MNIST, 14 x 14, MLP, 5 clients"
_TWICE = dict.fromkeys(("centralised BN", "FedTAN"), 0.3)
COMPARISONS = (
    study("mnist", _MNIST, MNIST, 200, {
        **_TWICE, "FedAvg+BN": 0.1, "FedAvg+BN, total variance": 0.1, "SiloBN": 0.1, "FedBN": 0.03, "FixBN": 0.3,
        "HBN": 0.03, "HBN, faster statistics": 0.03, "FBN": 0.3,
        "GroupNorm": 0.3, "LayerNorm": 0.3, "weight standardised": 0.1, "no normalisation": 0.3,
    }),
    study("mnist_one_digit", "MNIST, 14 x 14, MLP, 10 clients", MNIST.replace(clients=10), 120, {
        **_TWICE, "FedAvg+BN": 0.3, "GroupNorm": 0.1, "LayerNorm": 0.1, "no normalisation": 0.3,
    }),
    study("mnist_iid", f"{_MNIST}, IID", MNIST.replace(partition_options={"skew": 0.0}), 200, {
        **_TWICE, "FedAvg+BN": 0.3, "GroupNorm": 0.3,
    }),
    study("mnist_cnn", _MNIST.replace("MLP", "CNN"), MNIST.replace(model="small_cnn"), 200, {
        **_TWICE, "FedAvg+BN": 0.3, "GroupNorm": 0.3, "LayerNorm": 0.3, "weight standardised": 0.1,
    }),
    study("mnist_five_steps", f"{_MNIST}, five local steps", MNIST.replace(steps=5), 80, {
        **_TWICE, "FedTAN, frozen later": 0.1, "FedAvg+BN": 0.1, "FixBN": 0.3, "GroupNorm": 0.3, "LayerNorm": 0.3,
        "no normalisation": 0.3,
    }),
    study("cifar", "CIFAR-10, 5,000 images, ResNet-8, 5 clients", CIFAR, 100, {
        "FedTAN": 0.3, "FedAvg+BN": 0.3, "GroupNorm": 0.1, "FixBN": 0.3, "FedBN": 0.3,
    }),
)  # fmt: skip
