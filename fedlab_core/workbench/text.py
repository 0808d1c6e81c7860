"""The panel's lines of text."""

import html
import math
from collections.abc import Sequence
from typing import Any

from fedlab_core.experiment import Experiment
from fedlab_core.glossary import define
from fedlab_core.history import Record
from fedlab_core.workbench.runs import Run, changes, method_label
from fedlab_core.workbench.style import line

NAMED = 5  # clients of one kind that a line names


def sentence(words: str) -> str:
    """Words with a large first letter, the others as they are, and a full stop."""
    return f"{words[:1].upper()}{words[1:]}."


def term(words: str, name: str = "") -> str:
    """Words whose definition is one hover away."""
    meaning = define(name or words)
    return f"<abbr title='{html.escape(meaning, quote=True)}'>{words}</abbr>" if meaning else words


def numbers(record: Record | None) -> str:
    """One round in one line."""
    if record is None:
        return line("Nothing measured yet.", 2)
    metrics = record.metrics
    parts = [f"<b>Round {record.round}</b>"]
    for key, label in (("test_accuracy", "accuracy"), ("test_loss", "loss")):
        if key in metrics:
            parts.append(f"{term(label)} <b>{metrics[key]:.3f}</b>")
    scores = [row["test_accuracy"] for row in record.clients if "test_accuracy" in row]
    if scores:
        some = metrics.get("clients_test_examples")
        on = "" if some is None else f" on {some:,.0f} examples"
        parts.append(f"{term('clients', 'client spread')} {min(scores):.2f} to {max(scores):.2f}{on}")
    for key, name in (("drift", "drift"), ("relative_drift", "relative drift"), ("cosine", "cosine")):
        if key in metrics and not math.isnan(metrics[key]):
            parts.append(f"{term(name)} {metrics[key]:.2f}")
    parts += [html.escape(words) for words in trouble(record)]
    parts.append(f"{term(f'{record.total.bytes / 1e6:,.1f} MB sent', 'communication')}")
    parts.append(f"{term(f'{record.total.steps:,} steps', 'gradient steps')}")
    if record.round:
        parts.append(html.escape(record.engine))
    return line(" · ".join(f"<span>{part}</span>" for part in parts), 2)


def trouble(record: Record) -> list[str]:
    """Who failed in a round and how, whose values were not finite, and what was sent in vain; [] where nothing was."""
    words = [f"{kind}: {_clients(clients)}" for kind, clients in record.failed.items() if clients]
    if record.non_finite:
        words.append(f"not finite: {_clients(record.non_finite)}")
    if vain := record.metrics.get("bytes_in_vain"):
        words.append(f"{vain / 1e6:,.3f} MB in vain")
    return words


def in_words(error: BaseException) -> str:
    """What an error says, in the words of the panel's fields where it speaks of a setting that they have."""
    if str(error).startswith("batch_norm=None"):
        return "The model has batch normalisation: choose in Batch norm what happens to it."
    return str(error)


def _clients(numbers: Sequence[int]) -> str:
    """Some clients by their numbers, which begin at 0."""
    more = len(numbers) - NAMED
    return f"client{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:NAMED]))}{f' and {more} more' * (more > 0)}"


def settings_line(run: Run) -> str:
    """What the result shown was made with."""
    e, s = run.experiment, run.experiment.settings
    norm = "" if e.norm == "none" else f" with {e.norm} norm"
    policy = "" if s.batch_norm is None else f" ({s.batch_norm.replace('_', ' ')})"
    work = f"E {s.epochs}" if s.steps is None else f"{s.steps} steps"
    options, tuned = (
        ", ".join(f"{name} {_short(value)}" for name, value in given.items())
        for given in (e.method_options, e.tuning_options)
    )
    words = [
        f"{method_label(e.method)}{f' ({options})' if options else ''}",
        e.dataset,
        run.federation.partition.description,
        f"{e.model}{norm}{policy}",
        f"start: {e.start}{_spent(run)}",
        *([f"trained: {e.tuning}{f' ({tuned})' if tuned else ''}"] if e.tuning != "full" else []),
        f"C {s.fraction:g}, {work}, B {s.batch_size or 'all'}, lr {s.lr:g}",
        f"seed {s.seed}",
        f"settings {e.key}",
    ]
    text = html.escape(" · ".join(words))
    return f"<div class='fedlab-shown'>Result of <b>{html.escape(run.name)}</b>: {text}</div>"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spent(run: Run) -> str:
    """What the run's start cost in communication, before the first round."""
    start = run.origin
    return "" if start is None or not start.rounds else f" (+{start.rounds} rounds, {start.bytes / 1e6:,.1f} MB)"


def stale_line(run: Run, experiment: Experiment, round: int) -> str:
    """Which controls no longer match the result shown, and what Run and Fork (from `round`) would do; empty if none."""
    differing = list(changes(run.experiment, experiment).values())
    if not differing:
        return ""
    listed = html.escape("; ".join(differing))
    return (
        f"<div class='fedlab-shown stale'>⚠ <b>{term('Stale')}:</b> {html.escape(run.name)} was made with other "
        f"settings: <b>{listed}</b>. Run starts anew with these, Fork goes on with them from round {round}.</div>"
    )


def hint_line() -> str:
    """What stands there before the first run."""
    return "<div class='fedlab-shown'>Choose settings, then press <b>Run</b>.</div>"


def timing(done: float, count: int, elapsed: float = 0.0, doing: str = "") -> str:
    """Rounds done, elapsed time, and the time left if the rest goes on as before.

    Args:
        done: rounds done, with the fraction of the one under way.
        count: rounds asked for; 0 where the work has none.
        elapsed: seconds.
        doing: what is being done.
    """
    if not count:
        return line(f"{html.escape(doing)} · {_clock(elapsed)} elapsed" if doing else "&nbsp;")
    left = f" · about {_clock(elapsed / done * (count - done))} left" if 0 < done < count else ""
    shown = f" · {html.escape(doing)}" if doing else ""
    return line(f"{int(done)} of {count} rounds{shown} · {_clock(elapsed)} elapsed{left}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
