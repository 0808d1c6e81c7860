"""What the panel draws: a view is a name and a function from a run and a round to a figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.data import Dataset
from fedlab_core.partition import Partition, label_counts
from fedlab_core.plots import Line
from fedlab_core.workbench.runs import Run

SIZE = (6.8, 4.1)  # inches; the same for every view, so that nothing jumps


@dataclass(frozen=True)
class View:
    """A tab of the panel.

    Attributes:
        name: on the tab.
        draw: figure of a run at a round; `run.overlaid` are all runs of the panel. Draw without pyplot, for instance
            into `plots.figure`: it is also called from the thread that trains.
        slow: draw in the thread once rounds are done, instead of live and while the round is being dragged.
    """

    name: str
    draw: Callable[[Run, int], Figure]
    slow: bool = False


def curves_view(run: Run, round: int | None = None) -> Figure:
    """Test accuracy and loss of all runs over rounds, the chosen run's clients as a band, the centralised reference."""
    fig, ((left, right),) = plots.figure(1, 2, SIZE)
    for ax, key in ((left, "test_accuracy"), (right, "test_loss")):
        plots.curves(ax, _lines(run), key, at=round, spread=run.line)
        _rounds_axis(ax, run)
    _legend(fig, left)
    return fig


def clients_view(run: Run, round: int) -> Figure:
    """Who holds what, and the sampled clients of the round: their own models' accuracy (or loss), and their drift."""
    fig, ((held, score, moved),) = plots.figure(1, 3, SIZE)
    record = run.at(round)
    sampled = {int(row["client"]) for row in record.clients} if record else set()
    draw_holdings(held, run.federation.dataset, run.federation.partition, sampled)
    held.set_title("who holds what")
    if not sampled:
        for ax in (score, moved):
            ax.set_axis_off()
        score.text(0, 0.5, "Round 0: before any training,\nno client has taken part yet.", fontsize=9)
    else:
        measured = "test_accuracy" in record.clients[0]
        key, title = ("test_accuracy", "own models") if measured else ("loss", "local loss")
        plots.client_dots(score, record, key, run.line, record.metrics.get("test_accuracy") if measured else None)
        if measured:
            score.set_xlim(0, 1.02)
        score.set_title(f"round {record.round}: {title}")
        plots.client_dots(moved, record, "drift", run.line)
        moved.set(title=r"drift $\Vert w_k - w_t \Vert$", ylabel="", xlim=(0, None), xlabel="drift")
    _legend(fig, held, score)
    return fig


def drift_view(run: Run, round: int) -> Figure:
    """How the clients' updates differ, over rounds: their size, and whether they agree."""
    fig, ((size, cosine, diversity),) = plots.figure(1, 3, SIZE)
    for ax, key in ((size, "relative_drift"), (cosine, "cosine"), (diversity, "diversity")):
        plots.curves(ax, _lines(run, reference=False), key, at=round)
        _rounds_axis(ax, run)
        ax.set_ylabel("")
    size.set(title=r"relative drift $\Vert w_k - w_t \Vert \,/\, \Vert w_t \Vert$", ylim=(0, None))
    cosine.set(title="cosine between updates", ylim=(-1.02, 1.02))
    cosine.axhline(0, color="0.75", linewidth=1, zorder=0)
    diversity.set(title="gradient diversity", ylim=(0, None))
    _legend(fig, size)
    return fig


def costs_view(run: Run, round: int) -> Figure:
    """Bytes over rounds, and accuracy for the bytes sent and for the gradient steps taken."""
    fig, ((sent, per_byte, per_step),) = plots.figure(1, 3, SIZE)
    lines = _lines(run, reference=False)
    plots.curves(sent, lines, "megabytes", at=round)
    _rounds_axis(sent, run)
    sent.set(title="megabytes sent, both ways", ylabel="", ylim=(0, None))
    plots.curves(per_byte, lines, "test_accuracy", "megabytes", at=round)
    per_byte.set(title="accuracy for the bytes", ylabel="", xlabel="megabytes sent", xlim=(0, None))
    plots.curves(per_step, _lines(run), "test_accuracy", "steps", at=round)
    per_step.set(title="accuracy for the work", ylabel="", xlabel="gradient steps, all clients", xlim=(0, None))
    _legend(fig, per_step)
    return fig


def waiting_view(dataset: Dataset, partition: Partition) -> Figure:
    """What is shown before the first run: who will hold what."""
    fig, ((ax,),) = plots.figure(1, 1, SIZE)
    if dataset.kind == "image" and dataset.num_classes <= 32:
        plots.holdings_heatmap(ax, label_counts(partition, dataset.y, dataset.num_classes), dataset.classes)
    else:
        draw_holdings(ax, dataset, partition)
    ax.set_title(f"Who holds what: {dataset.name}, {partition.description}. Press Run to train.")
    return fig


def holdings_figure(dataset: Dataset, partition: Partition) -> Figure:
    """The small live picture beside the controls."""
    fig, ((ax,),) = plots.figure(1, 1, (3.1, 1.55))
    draw_holdings(ax, dataset, partition)
    ax.set_xlabel("examples per client, by class" if dataset.kind == "image" else "texts per client", fontsize=7)
    ax.set_ylabel("client", fontsize=7)
    ax.tick_params(labelsize=6, length=2)
    ticks = ax.get_yticks()
    ax.set_yticks(ticks[:: -(-len(ticks) // 6)], ax.get_yticklabels()[:: -(-len(ticks) // 6)])
    return fig


def draw_holdings(ax: Axes, dataset: Dataset, partition: Partition, sampled: set[int] = frozenset()) -> Axes:
    """Bars of who holds what, without a legend; the sampled clients' numbers are bold with a mark."""
    image = dataset.kind == "image"
    counts = label_counts(partition, dataset.y, dataset.num_classes) if image else partition.sizes[:, None]
    plots.holdings_bars(ax, counts, dataset.classes if image else ("texts",))
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    if sampled and len(partition) <= 50:
        ax.set_yticks(sorted(sampled), [f"▸ {client}" for client in sorted(sampled)], fontweight="bold")
        ax.set_ylabel("client (▸ sampled)")
    return ax


BUILT_IN: Sequence[View] = (
    View("Curves", curves_view),
    View("Clients", clients_view),
    View("Drift", drift_view),
    View("Costs", costs_view),
)


def _lines(run: Run, reference: bool = True) -> list[Line]:
    """The chosen run's reference, the other runs, and the chosen one last and so on top."""
    root = run.root
    lines = []
    if reference and root.reference is not None and root.reference_shown:
        longest = max(other.round for other in run.overlaid)
        lines = [Line("centralised", root.reference.history[: longest + 1], index=None)]
    others = [other.line for other in run.overlaid if other is not run]
    return [*lines, *others, run.line]


def _rounds_axis(ax: Axes, run: Run) -> None:
    """A width for the rounds to come, so that the axis stands still while they arrive."""
    ax.set_xlim(0, max(1, *(max(other.goal, other.round) for other in run.overlaid)) * 1.02)
    ax.xaxis.get_major_locator().set_params(integer=True)


def _legend(fig: Figure, *axes: Axes) -> None:
    """One legend under the axes, in as many columns as fit; more than 16 entries would need an atlas."""
    found = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    if 0 < len(found) <= 16:
        short = [label if len(label) <= 46 else f"{label[:45]}…" for _, label in found]
        columns = max(1, min(len(short), int(100 / (6 + max(map(len, short)))))) if len(axes) == 1 else 11
        fig.legend([h for h, _ in found], short, loc="outside lower center", ncols=columns, columnspacing=1.2)
