"""Fine-tuning in the workbench: what of the network is trained, what that costs, and accuracy for the cost."""

from weakref import WeakKeyDictionary

from matplotlib.figure import Figure
from torch import nn

from fedlab_core import plots
from fedlab_core.costs import MIB, count_flops, kept_for_backward
from fedlab_core.federation import Federation
from fedlab_core.finetuning.accounts import anatomy, classification_loss, payload
from fedlab_core.models.vit import ViT
from fedlab_core.plots import finetuning as plots_finetuning
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import SIZE, View, words_only

_COSTS: WeakKeyDictionary[nn.Module, tuple[float, float, float]] = WeakKeyDictionary()


def trained_view(run: Run, round: int) -> Figure:
    """What of the run's network is trained, and what each run of the panel sends, keeps and computes for it."""
    fig, (left, *right) = plots.mosaic("ab;ac;ad", SIZE)
    if not isinstance(run.federation.model, ViT):
        return words_only(fig, "This view draws vision transformers: choose the model vit.")
    plots_finetuning.network(left, anatomy(run.federation.model))
    count = payload(run.federation.model)
    left.set_title(f"{count.trained:,} of {count.trained + count.held:,} parameters trained")
    runs = [one for one in run.overlaid if isinstance(one.federation.model, ViT)]
    labels = ("kB one way, one client", "MiB kept for backward", "GFLOP of a local step")
    for row, (ax, label) in enumerate(zip(right, labels, strict=True)):
        values = [costs(one.federation)[row] for one in runs]
        colors = [one.line.style["color"] for one in runs]
        ax.barh([one.label[:24] for one in runs], values, color=colors)
        ax.set(title=label, xlim=(0, 1.25 * max(values)))
        ax.invert_yaxis()
        for place, value in enumerate(values):
            ax.text(value, place, f" {value:.3g}", va="center", fontsize=7)
    return fig


def budgets_view(run: Run, round: int) -> Figure:
    """Test accuracy of all runs of the panel over rounds, megabytes and operations."""
    fig, axes = plots.figure(1, 3, SIZE)
    for one in run.overlaid:
        flops = costs(one.federation)[2] / 1e3
        seen = [record for record in one.federation.history if "test_accuracy" in record.metrics]
        sent = [r.total.bytes / 1e6 or float("nan") for r in seen]  # round 0 has no place on a logarithmic axis
        spent: tuple[list[float], ...] = ([r.round for r in seen], sent, [r.total.steps * flops for r in seen])
        for ax, x in zip(axes[0], spent, strict=True):
            ax.plot(x, [r.metrics["test_accuracy"] for r in seen], label=one.label, **one.line.style)
            for record, place in zip(seen, x, strict=True):
                if record.round == round:
                    ax.plot(place, record.metrics["test_accuracy"], "o", color="black", markersize=7, fillstyle="none")
    for ax, label in zip(axes[0], ("round", "MB sent, both ways", "TFLOP, all clients"), strict=True):
        ax.set(xlabel=label, ylim=(0, 1.02))
        if "MB" in label:
            plots_finetuning.logarithmic(ax)
        else:
            ax.set_xlim(0, None)
        plots.lines_across(ax)
    axes[0, 0].set_ylabel("test accuracy")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def costs(federation: Federation) -> tuple[float, float, float]:
    """kB that travel one way to one client, MiB kept for backward, and GFLOP of one local step."""
    model, settings = federation.model, federation.settings
    if model not in _COSTS:
        x = federation.dataset.prepare(federation.dataset.x[: settings.batch_size or 32])
        loss = classification_loss(x)
        _COSTS[model] = payload(model).bytes / 1e3, kept_for_backward(model, loss) / MIB, count_flops(model, loss) / 1e9
    return _COSTS[model]


VIEWS = (View("Trained", trained_view), View("Budgets", budgets_view))
