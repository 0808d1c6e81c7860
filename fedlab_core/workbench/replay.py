"""Replays: runs and labs as plain data that a page plays without Python, by `player.js`."""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.check import Many, checked, whole
from fedlab_core.federation import Federation
from fedlab_core.workbench.plan import Plan
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.scene import replay
from fedlab_core.workbench.tabs import draw_holdings, lines_of, mark_divergence
from fedlab_core.workbench.views.drift import arrows, draw_arrows

PLAYER = Path(__file__).with_name("player.js")


@checked
def clients_figure(federation: Federation, round: int, updates: bool = True) -> Figure:
    """The updates of a round beside their mean, and who holds what, with the sampled clients marked.

    Args:
        updates: whether the updates are drawn; it replays the round.
    """
    whole("round", round, 0, federation.round)
    fig, axes = plots.figure(1, 1 + updates)
    sampled = {int(row["client"]) for row in federation.history[round].clients} if round else set()
    if updates:
        if sampled:
            draw_arrows(axes[0, 0], arrows(federation, round), plots.LINE_COLORS[0])
        axes[0, 0].set(title="updates of the clients, and their mean (thick)", aspect="equal", xlabel="", ylabel="")
    draw_holdings(axes[0, -1], federation.dataset, federation.partition, sampled)
    axes[0, -1].set_title("who holds what")
    return fig


@checked
def lab_replay(plan: Plan, frames: Many = 40) -> dict[str, Any]:
    """The run of a lab at its first settings, frame by frame.

    Args:
        frames: at most so many.

    Returns:
        Title, settings, a name and a sentence for each frame, and the panels as `scene.replay` makes them.
    """
    settings = {name: plan.start.get(name, values[0]) for name, values in plan.knobs.items()}
    result, pictures, clients, said = plan.begin(settings), [], [], []
    main, federation = next(iter(result.sources.values())), None
    for _ in range(min(frames, plan.length(settings))):
        more = False
        for name, source in result.sources.items():
            if isinstance(source, Federation):
                source.run(1)
                result.frames[name] = source.history
                more = True
            elif (frame := next(source, None)) is not None:
                result.frames[name].append(frame)
                more = True
        if not more:
            break
        federation = federation or inside(main)
        plots.style()
        picture = Figure(figsize=plan.size)
        plan.picture(picture, result)
        pictures.append(picture)
        said.append(plan.sentence(result))
        if federation is not None and len(federation.partition) > 1:
            drawn = hasattr(result.last(), "arrows")  # by the lab itself
            clients.append(clients_figure(federation, federation.round, updates=not drawn))
    rows = [pictures, *([clients] if len(clients) == len(pictures) else [])]
    steps = [f"{number + 1} of {len(pictures)}" for number in range(len(pictures))]
    panels = [panel for row in rows for panel in replay(row)]
    return {"title": plan.title, "settings": result.label, "steps": steps, "said": said, "panels": panels}


@checked
def inside(source: Federation | Iterable[Any]) -> Federation | None:
    """The federation that a source runs: itself, or the first among the variables of a generator."""
    if isinstance(source, Federation):
        return source
    scope = getattr(getattr(source, "gi_frame", None), "f_locals", {})
    return next((value for value in scope.values() if isinstance(value, Federation)), None)


@checked
def run_replay(run: Run, replayed: Many = 12) -> dict[str, Any]:
    """A run, round by round: curves of all runs of its panel, the clients' updates, and who holds what.

    Args:
        replayed: at most so many rounds, evenly spaced, are frames; each is trained once more to see its updates. 0
            trains nothing: 40 rounds without updates.
    """
    federation = run.federation
    rounds = sorted({int(r) for r in np.linspace(1, max(1, run.round), replayed or 40)} & {*range(1, run.round + 1)})
    curves, clients, said = [], [], []
    for round in rounds:
        record = federation.history[round]
        fig, axes = plots.figure(1, 3)
        for ax, key in zip(axes[0], ("test_accuracy", "test_loss", "drift"), strict=True):
            plots.curves(ax, lines_of(run), key, at=round)
            mark_divergence(ax, run, key)
            ax.set_title(plots.AXES[key])
            ax.set_ylabel("")
        curves.append(fig)
        clients.append(clients_figure(federation, round, updates=replayed > 0))
        sizes = ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in record.metrics.items())
        said.append(f"Round {round}: {sizes}; {record.total.bytes / 1e6:.1f} MB sent so far.")
    panels = [panel for row in (curves, clients) for panel in replay(row)] if rounds else []
    steps = [f"round {round}" for round in rounds]
    return {"title": f"{run.name}, round by round", "settings": "", "steps": steps, "said": said, "panels": panels}


@checked
def written(data: dict[str, Any]) -> str:
    """A replay as compact JSON that can stand in a page."""
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("</", "<\\/")


@checked
def page_part(replays: Sequence[dict[str, Any]]) -> str:
    """HTML that plays replays and needs nothing from elsewhere."""
    parts = []
    for data in replays:
        title = html.escape(data["title"], quote=True)
        script = f'<script type="application/json">{written(data)}</script>'
        parts.append(f'<div class="fedlab-player" aria-label="{title}">{script}</div>')
    return "".join(parts) + f"<script>{PLAYER.read_text(encoding='utf-8')}</script>"
