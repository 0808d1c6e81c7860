"""The runs of the fine-tuning study that take longer: `python -m fedlab_core.studies finetuning_NAME ...`.

Each name writes a picture and its data, figures/finetuning_NAME.png and .json.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedlab_core import plots
from fedlab_core.plots import finetuning as plots_finetuning
from fedlab_core.studies.finetuning_runs import GRIDS, OPTIONS, Setup, Way, compared, shots_of
from fedlab_core.studies.record import FIGURES, RUNS

SEEDS = (0, 1, 2)
STARTS = {"random": "random", "weak": "vit_weak", "strong": "vit_strong"}
METHODS = ("full", "head", "bias", "layer_norm", "vpt_shallow", "vpt_deep", "adapter", "lora")
SHOTS = (1, 2, 4, 8, 16)
TUNED_AT = 4  # shots at which the learning rates of federated and local-only training are searched
SETUP = Setup()
PHOTOGRAPHS = Setup("cifar10", 200, 50, shots=None, steps=8, batch_size=32, rounds=8, every=4)
FAMILIES = {
    "CLIP, text head": Way("clip_tiny", "bias", "text_frozen"),
    "CLIP, text head, trained": Way("clip_tiny", "bias", "text_init"),
    "CLIP, random head": Way("clip_tiny", "bias", "random_init"),
    "CLIP, learnt prompt": Way("clip_tiny", "coop", "text_frozen"),
    "ViT, linear head": Way("vit_strong", "bias"),
    "ViT, prototype head": Way("vit_strong", "bias", "prototypes"),
}
"""CLIP-tiny and ViT-strong by classifier; the same network, the same pictures before, biases tuned."""


def strength(folder: Path | None) -> dict[str, Any]:
    """Every method from every start."""
    starts = {
        name: compared(folder, SETUP, {method: Way(start, method) for method in METHODS}, SEEDS)
        for name, start in STARTS.items()
    }
    return {"setup": asdict(SETUP), "starts": starts}


def clip(folder: Path | None) -> dict[str, Any]:
    """CLIP-tiny and ViT-strong over shots."""
    found = {str(shots): compared(folder, shots_of(SETUP, shots), FAMILIES, SEEDS) for shots in SHOTS}
    return {"setup": asdict(SETUP), "shots": found}


def local(folder: Path | None) -> dict[str, Any]:
    """Federated and local-only training of ViT-strong over shots."""
    ways = {
        f"{method}, {where}": Way("vit_strong", method, local=where == "alone")
        for method in ("bias", "full")
        for where in ("federated", "alone")
    }
    found = {
        str(shots): compared(folder, shots_of(SETUP, shots), ways, SEEDS, shots_of(SETUP, TUNED_AT)) for shots in SHOTS
    }
    return {"setup": asdict(SETUP), "tuned_at": TUNED_AT, "shots": found}


def caltech_cifar(folder: Path | None) -> dict[str, Any]:
    """CIFAR-10 in a federation, from random weights and from photographs of other objects."""
    starts = {
        name: compared(folder, PHOTOGRAPHS, {method: Way(start, method) for method in ("full", "bias", "head")}, SEEDS)
        for name, start in {"random": "random", "Caltech-101": "vit_caltech"}.items()
    }
    return {"setup": asdict(PHOTOGRAPHS), "starts": starts}


STUDIES: dict[str, tuple[Callable[[Path | None], dict[str, Any]], Callable[[Any], Any]]] = {
    "strength": (strength, plots_finetuning.strength),
    "clip": (clip, plots_finetuning.over_shots),
    "local": (local, plots_finetuning.federated_or_alone),
    "caltech_cifar": (caltech_cifar, plots_finetuning.strength),
}
"""What is computed and drawn, by name."""


def record(name: str, folder: Path | None = RUNS, out: Path = FIGURES) -> dict[str, Any]:
    """Runs one study and writes its picture and its data.

    Raises:
        ValueError: an unknown name.
    """
    if name not in STUDIES:
        raise ValueError(f"name={name!r} is unknown, accepted: {list(STUDIES)}")
    make, draw = STUDIES[name]
    data = {**make(folder), "seeds": SEEDS, "grids": GRIDS, "options": OPTIONS}
    plots.save(draw(data), out / f"finetuning_{name}", data)
    return data
