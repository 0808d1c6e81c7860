"""Notebook 01: a character LSTM on text, one client per topic or speaking role."""

import math
from typing import Any

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.studies.fedavg_text import TEXT
from fedlab_core.workbench.plan import Plan, Result, before, looks_of


def text_experiment(text: str, hidden: int, E: int) -> Experiment:
    """A character LSTM on lines of text, one client per topic or speaking role."""
    return TEXT.replace(
        dataset=text, model_options={"hidden": hidden, "layers": 1}, epochs=E, lr=4.64, engine="stacked"
    )


def draw_bits(figure: Any, result: Result) -> None:
    """Bits per character over rounds."""
    ax = figure.subplots()
    before(ax, result, lambda r: r.round, lambda r: plots.measured(r, "test_loss") / math.log(2))
    looks = looks_of(result)
    for name, frames in result.frames.items():
        known = [(r.round, r.metrics["test_loss"] / math.log(2)) for r in frames if "test_loss" in r.metrics]
        if known:
            ax.plot(*zip(*known, strict=True), label=name, **looks[name])
    ax.set(xlabel="round", ylabel="bits per character (test)")
    ax.legend()


def read_bits(result: Result) -> str:
    """The best bits per character of each, and when FedAvg passed FedSGD's."""
    losses = {n: [plots.measured(r, "test_loss") / math.log(2) for r in f] for n, f in result.frames.items() if f}
    if len(losses) < 2:
        return "No round yet."
    (fast, ours), (slow, theirs) = losses.items()
    passed = next((i for i, bits in enumerate(ours) if bits <= min(theirs)), None)
    when = f"{fast} is below that after {passed} rounds" if passed else f"{fast} is not below that yet"
    reached = f"{slow} comes down to {min(theirs):.2f} bits per character in {len(theirs) - 1} rounds"
    return f"{reached}; {when}, at best {min(ours):.2f}."


LSTM = Plan(
    "A character LSTM, one client per topic or role",
    lambda text, hidden, E: {
        f"FedAvg, E={E}": text_experiment(text, hidden, E),
        "FedSGD": text_experiment(text, hidden, E).replace(method="fedsgd", lr=10.0, engine="loop"),
    },
    {"text": ("python_docs", "shakespeare"), "hidden": (32, 64, 128), "E": (1, 5)},
    {"hidden": 32, "E": 5},
    rounds=8,
    draw=draw_bits,
    sentence=read_bits,
    experiment=text_experiment,
    size=(7.5, 3.4),
    about={"hidden": "Units of the LSTM"},
)
