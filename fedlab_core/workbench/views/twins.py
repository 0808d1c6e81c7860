"""Twin rounds: the round shown, played again from the same model with one cause of loss switched off."""

import textwrap
from weakref import WeakKeyDictionary

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.probes.cells import CAUSES
from fedlab_core.probes.twins import Twin, twin_round
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import SIZE, View

ROUND_0 = (
    "Round 0: choose a later round with the slider below, to play it again with one cause of loss healed: label skew, "
    "local steps, partial participation, batch-norm statistics."
)
_KNOWN: WeakKeyDictionary[Run, dict[int, list[Twin]]] = WeakKeyDictionary()


def twins_of(run: Run, round: int) -> list[Twin]:
    """The twins of a round, one per cause of `cells.CAUSES`, computed once.

    Raises:
        ValueError: a run that cannot be played in this way, such as one of another method than FedAvg.
        InterruptedError, Stopped: stopped.
    """
    known = _KNOWN.setdefault(run, {})
    if round not in known:
        known[round] = [twin_round(run.heeding, round, cause, run.stop) for cause in CAUSES]
    return known[round]


def twins_view(run: Run, round: int) -> Figure:
    """How far the next global model moves, and how loss and accuracy change, if one cause is healed in the round."""
    fig, ((far, loss, accuracy),) = plots.figure(1, 3, SIZE)
    try:
        found = twins_of(run, round) if round else []
        words = ROUND_0
    except ValueError as error:
        found, words = (
            [],
            f"This round cannot be played in twins with these settings (see More settings). {error}.",
        )
    if not found:
        for ax in (far, loss, accuracy):
            ax.set_axis_off()
        fig.text(0.04, 0.5, textwrap.fill(words, 96), va="center", fontsize=9)
        return fig
    rows = [
        (far, [twin.share for twin in found], "distance of the twins,\nin lengths of the step", "{:.2f}"),
        (loss, [twin.gained("test_loss") for twin in found], "change of test loss (nats)", "{:+.3f}"),
        (accuracy, [100 * twin.gained() for twin in found], "change of test accuracy (points)", "{:+.1f}"),
    ]
    names = [f"without\n{twin.cause}" for twin in found]
    for ax, values, label, digits in rows:
        bars = ax.barh(names, values, color=[plots.LINE_COLORS[i] for i in range(len(found))], height=0.6)
        ax.bar_label(bars, [digits.format(value) for value in values], padding=3, fontsize=8)
        ax.axvline(0, color="0.4", linewidth=0.8)
        ax.margins(x=0.28)
        ax.invert_yaxis()
        ax.set_xlabel(label, fontsize=8)
        ax.tick_params(labelsize=8)
        if ax is not far:
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
    far.set_xlim(0, None)
    once = found[0].federated
    fig.suptitle(
        f"{run.label}, round {round}, played again with one cause healed\n"
        f"(all causes on: loss {once['test_loss']:.3f}, accuracy {once['test_accuracy']:.3f})",
        fontsize=9,
    )
    return fig


VIEW = View("Twins", twins_view, slow=True)
