"""What the panel draws: a view is a name and a function from a run and a round to a figure."""

import math
import textwrap
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from fedlab_core import plots
from fedlab_core.check import checked
from fedlab_core.data import Dataset
from fedlab_core.partition import Partition, label_counts
from fedlab_core.plots import Line
from fedlab_core.plots.clients import client_dots, holdings_bars, holdings_heatmap
from fedlab_core.workbench.runs import Run

SIZE = (7.4, 3.9)  # inches; the same for every view, so that nothing jumps


@checked
@dataclass(frozen=True)
class View:
    """A tab of the panel.

    Attributes:
        name: on the tab.
        draw: figure of a run at a round; `run.overlaid` are all runs of the panel. Draw without pyplot, for instance
            into `plots.figure`: it is also called from the thread that trains.
        slow: drawn in the thread that trains only, between rounds, since it replays or evaluates. It raises
            `InterruptedError` or `Stopped` once `run.stop` is set, as `run.heeding` does by itself.
        against: whether it compares the run with another one, `run.other`.
    """

    name: str
    draw: Callable[[Run, int], Figure]
    slow: bool = False
    against: bool = False


@checked
def curves_view(run: Run, round: int | None = None) -> Figure:
    """Test accuracy and loss of all runs over rounds, the chosen run's clients as a band, the centralised reference."""
    fig, ((left, right),) = plots.figure(1, 2, SIZE)
    for ax, key in ((left, "test_accuracy"), (right, "test_loss")):
        plots.curves(ax, lines_of(run), key, at=round, spread=run.line)
        rounds_axis(ax, run)
        mark_divergence(ax, run, key)
    legend(fig, left)
    return fig


@checked
def clients_view(run: Run, round: int) -> Figure:
    """Who holds what, and the sampled clients of the round: their own models' accuracy (or loss), and their drift."""
    fig, ((held, score, moved),) = plots.figure(1, 3, SIZE)
    record = run.at(round)
    sampled = {int(row["client"]) for row in record.clients} if record else set()
    draw_holdings(held, run.federation.dataset, run.federation.partition, sampled)
    held.set_title("who holds what")
    if record is None or not sampled:
        for ax in (score, moved):
            ax.set_axis_off()
        score.text(0, 0.5, "Round 0: before any training,\nno client has taken part yet.", fontsize=9)
    else:
        measured = "test_accuracy" in record.clients[0]
        key, title = ("test_accuracy", "own models") if measured else ("loss", "local loss")
        client_dots(score, record, key, run.line, record.metrics.get("test_accuracy") if measured else None)
        if measured:
            some = record.metrics.get("clients_test_examples")
            score.set(xlim=(0, 1.02), xlabel=f"test accuracy{'' if some is None else f' on {some:,.0f} examples'}")
        score.set_title(f"round {record.round}: {title}")
        client_dots(moved, record, "drift", run.line)
        moved.set(title=r"drift $\Vert w_k - w_t \Vert$", ylabel="", xlim=(0, None), xlabel="drift")
    legend(fig, *([held] if run.federation.dataset.num_classes <= 16 else []), score)
    return fig


@checked
def costs_view(run: Run, round: int) -> Figure:
    """Bytes over rounds, and accuracy for the bytes sent and for the gradient steps taken."""
    fig, ((sent, per_byte, per_step),) = plots.figure(1, 3, SIZE)
    lines = lines_of(run, reference=False)
    plots.curves(sent, lines, "megabytes", at=round)
    rounds_axis(sent, run)
    sent.set(title="megabytes sent, both ways", ylabel="", ylim=(0, None))
    plots.curves(per_byte, lines, "test_accuracy", "megabytes", at=round)
    per_byte.set(title="accuracy for the bytes", ylabel="", xlabel="megabytes sent", xlim=(0, None))
    plots.curves(per_step, lines_of(run), "test_accuracy", "steps", at=round)
    per_step.set(title="accuracy for the work", ylabel="", xlabel="gradient steps, all clients", xlim=(0, None))
    legend(fig, per_step)
    return fig


@checked
def waiting_view(dataset: Dataset, partition: Partition) -> Figure:
    """What is shown before the first run: who will hold what."""
    fig, ((ax,),) = plots.figure(1, 1, SIZE)
    if dataset.kind == "image" and dataset.num_classes <= 40:
        holdings_heatmap(ax, label_counts(partition, dataset.y, dataset.num_classes), dataset.classes)
    else:
        draw_holdings(ax, dataset, partition)
    title = f"Who holds what: {dataset.name}, {partition.description}. Press Run to train."
    ax.set_title(textwrap.fill(title, 80))
    return fig


@checked
def empty_view(name: str) -> Figure:
    """What is shown of a run before its first round: words only, since they are drawn in no time."""
    fig = Figure(SIZE)
    fig.text(0.5, 0.5, f"{name}: no round yet.", ha="center", color="0.4")
    return fig


@checked
def words_only(fig: Figure, text: str) -> Figure:
    """The figure with a text in the place of its axes."""
    for ax in fig.axes:
        ax.set_axis_off()
    fig.axes[0].text(0, 0.5, text, fontsize=9)
    return fig


@checked
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


@checked
def draw_holdings(ax: Axes, dataset: Dataset, partition: Partition, sampled: Set[int] = frozenset()) -> Axes:
    """Bars of who holds what, without a legend; the sampled clients' numbers are bold with a mark."""
    image = dataset.kind == "image"
    counts = label_counts(partition, dataset.y, dataset.num_classes) if image else partition.sizes[:, None]
    holdings_bars(ax, counts, dataset.classes if image else ("texts",), legend=False)
    if image and dataset.num_classes > 16:
        _class_bar(ax, dataset.classes)
    if sampled and len(partition) <= 50:
        ax.yaxis.set_major_locator(FixedLocator(sorted(sampled)))
        ax.yaxis.set_major_formatter(FixedFormatter([f"▸ {client}" for client in sorted(sampled)]))
        ax.yaxis.majorTicks[0].label1.set_fontweight("bold")  # the others are made in its likeness
        ax.set_ylabel("client (▸ sampled)")
    return ax


def _class_bar(ax: Axes, classes: Sequence[str]) -> None:
    """Which colour is which class, where there are too many for a legend."""
    many, count = len(classes) > 32, len(classes)
    shades = [
        matplotlib.colormaps[plots.COLORMAP](c / (count - 1)) if many else plots.OKABE_ITO[c % 8] for c in range(count)
    ]
    scale = ScalarMappable(BoundaryNorm(range(count + 1), count), ListedColormap(shades))
    names = [str(name)[:6] for name in classes]
    step = -(-count // max(2, 26 // (1 + max(map(len, names)))))  # room for 26 characters
    bar = ax.figure.colorbar(scale, ax=ax, location="top", pad=0.02, aspect=40)
    bar.set_ticks([c + 0.5 for c in range(0, count, step)], labels=names[::step])
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=6, length=0)


@checked
def mark_divergence(ax: Axes, run: Run, key: str) -> None:
    """A cross where a run left the finite numbers, at the last value that it had before."""
    for one in run.overlaid:
        if (round := one.diverged) is not None:
            finite = [
                r for r in one.federation.history if math.isfinite(r.metrics.get(key, math.nan)) and r.round < round
            ]
            if finite:
                ax.plot(round, finite[-1].metrics[key], "X", color=one.line.style["color"], markersize=11, zorder=6)
                ax.annotate(
                    f"diverged in round {round}", (round, finite[-1].metrics[key]), (0, 9), textcoords="offset points",
                    ha="center" if round > 1 else "left", fontsize=8,
                )  # fmt: skip


@checked
def lines_of(run: Run, reference: bool = True) -> list[Line]:
    """The chosen run's reference, the other runs, and the chosen one last and so on top."""
    root = run.root
    lines = []
    if reference and root.reference is not None and root.reference_shown:
        longest = max(other.round for other in run.overlaid)
        lines = [Line("centralised", root.reference.history[: longest + 1], index=None)]
    others = [other.line for other in run.overlaid if other is not run]
    return [*lines, *others, run.line]


@checked
def rounds_axis(ax: Axes, run: Run) -> None:
    """A width for the rounds to come, so that the axis stands still while they arrive."""
    most = max(1, *(max(other.goal, other.round) for other in run.overlaid))
    ax.set_xlim(-0.02 * most, 1.02 * most)
    ax.xaxis.get_major_locator().set_params(integer=True)


@checked
def legend(fig: Figure, *axes: Axes) -> None:
    """One legend under the axes, in as many columns as fit; more than 16 entries would need an atlas."""
    found = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    if 0 < len(found) <= 16:
        short = [label if len(label) <= 46 else f"{label[:45]}…" for _, label in found]
        columns = max(1, min(len(short), int(100 / (6 + max(map(len, short)))))) if len(axes) == 1 else 11
        fig.legend([h for h, _ in found], short, loc="outside lower center", ncols=columns, columnspacing=1.2)


CURVES = View("Curves", curves_view)
CLIENTS = View("Clients", clients_view)
COSTS = View("Costs", costs_view)
