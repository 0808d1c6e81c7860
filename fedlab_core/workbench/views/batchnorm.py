"""The batch-norm microscope: views for the workbench, live at every round."""

import functools

from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.batchnorm.measures import deviation_by_source, fixed_batches, in_training, mismatch, running_gap
from fedlab_core.local.work import batch_loss
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.state import batch_norms
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.tabs import SIZE, View, words_only

MOST_CLIENTS = 20


def mismatch_view(run: Run, round: int) -> Figure:
    """Mean and variance mismatch per layer and client at the round's global model, and its running statistics'
    error."""
    federation = run.heeding
    if not batch_norms(federation.model):
        return _without(run)
    clients = range(min(len(federation.partition), MOST_CLIENTS))
    batches, model = fixed_batches(federation, 64, clients), in_training(federation, federation.state_at(round))
    found = mismatch(model, batches, clients)
    fig, ((mean, variance),) = plots.figure(1, 2, SIZE)
    plots_batchnorm.mismatch_map(mean, found.mean, found.layers, found.clients, most=0.5)
    plots_batchnorm.mismatch_map(variance, found.variance, found.layers, found.clients, most=1.5)
    mean.set_title(f"round {round}: mean mismatch")
    variance.set(title="variance mismatch", ylabel="")
    return fig


def deviation_view(run: Run, round: int) -> Figure:
    """Gradient deviation by depth and source at the round's global model: the first step of the next round."""
    federation = run.heeding
    if not batch_norms(federation.model):
        return _without(run)
    clients = range(min(len(federation.partition), MOST_CLIENTS))
    model = in_training(federation, federation.state_at(round))
    loss = functools.partial(batch_loss, federation.dataset)
    sources = deviation_by_source(model, fixed_batches(federation, 64, clients), loss)
    local = sources.pop("local")
    fig, ((ax,),) = plots.figure(1, 1, SIZE)
    sizes = {"local": local.size} | {source: d.size for source, d in sources.items() if source != "none"}
    plots_batchnorm.deviation_by_depth(ax, local.names, sizes)
    ax.set_title(f"round {round}: gradient deviation {local.total_size:.2f}, cosine {local.total_cosine:.2f}")
    ax.legend()
    return fig


def statistics_view(run: Run, round: int) -> Figure:
    """How far the sampled clients' running statistics are from the global ones after the round's local training."""
    federation = run.heeding
    if not batch_norms(federation.model):
        return _without(run)
    fig, ((mean, variance),) = plots.figure(1, 2, SIZE)
    if round < 1:
        return words_only(fig, "Round 0: before any training,\nall running statistics are equal.")
    inside, reference = federation.inside(round), federation.state_at(round)
    updates = inside.updates[:MOST_CLIENTS]
    gaps = [running_gap(federation.model, update.state, reference) for update in updates]
    layers, clients = list(gaps[0]), [update.client for update in updates]
    if not layers:
        return words_only(fig, "Its batch norms keep no running statistics.")
    values = [[[gap[layer][part] for gap in gaps] for layer in layers] for part in (0, 1)]
    plots_batchnorm.mismatch_map(mean, values[0], layers, clients, most=0.5)
    plots_batchnorm.mismatch_map(variance, values[1], layers, clients, most=1.5)
    mean.set_title(f"round {round}: running means, distance to the global ones")
    variance.set(title="running variances", ylabel="")
    return fig


VIEWS = (
    View("BN mismatch", mismatch_view),
    View("BN gradients", deviation_view, slow=True),
    View("BN statistics", statistics_view, slow=True),
)
"""For `Workbench(views=VIEWS)`."""


def _without(run: Run) -> Figure:
    words = f"{run.label}: the model has no batch normalisation.\nChoose Norm: batch, and a policy for it."
    return words_only(plots.figure(1, 1, SIZE)[0], words)
