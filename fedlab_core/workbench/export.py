"""What leaves the panel: the report under it, figures with their data, tables, a page, and code."""

import base64
import html
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from IPython.display import display
from matplotlib.figure import Figure

from fedlab_core import files
from fedlab_core.about import versions
from fedlab_core.check import Many, checked, choice
from fedlab_core.data import dataset_names
from fedlab_core.experiment import Experiment
from fedlab_core.glossary import GLOSSARY
from fedlab_core.models.build import MODELS
from fedlab_core.registry import METHODS
from fedlab_core.workbench.catalog import GIVEN, TYPED
from fedlab_core.workbench.pictures import has_colours, png
from fedlab_core.workbench.plan import experiment_code
from fedlab_core.workbench.replay import page_part, run_replay
from fedlab_core.workbench.runs import Run, runs_to_frame, runs_to_json
from fedlab_core.workbench.tabs import COSTS, CURVES, View, costs_view, curves_view
from fedlab_core.workbench.text import trouble

COLUMNS = ("run", "forked from", "rounds", "test accuracy", "test loss", "MB sent", "gradient steps")
FIGURES = {"png": "image/png", "svg": "image/svg+xml", "pdf": "application/pdf"}
TYPES = {**FIGURES, "csv": "text/csv", "html": "text/html"}
PRINT_DPI = 300
REPLAYED = 6  # rounds that are trained once more for the replay in a saved page
EXPLAINED = ("accuracy", "loss", "drift", "relative drift", "cosine", "gradient diversity", "communication", "fork")
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 980px; margin: 2em auto; padding: 0 1em; color: #222; }}
table {{ border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto; }}
td, th {{ border-bottom: 1px solid #8885; padding: 3px 9px; text-align: left; vertical-align: top; }}
img, svg {{ max-width: 100%; height: auto; }} dt {{ font-weight: 600; }}
pre {{ background: #8882; padding: 10px; overflow: auto; font-size: 12px; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #17191c; color: #e6e6e6; }}
img {{ filter: brightness(0.75); }} body > :is(svg, .lines) {{ filter: invert(0.91) hue-rotate(180deg); }} }}
</style></head><body><h1>{title}</h1>{body}
<script type="application/json" id="data">{data}</script></body></html>
"""


@checked
class Report:
    """The runs of a panel as a picture and a table that stay readable where no widget can be shown.

    As the last expression of a cell it shows both. Numbers are rounded and contain no timings.

    Attributes:
        figure: the picture, None without runs.
        rows: one tuple of texts per run, in the order of `COLUMNS`.
    """

    def __init__(self, figure: Figure | None, runs: Sequence[Run]) -> None:
        self.figure = figure
        self.rows = [_row(run) for run in runs if run.federation.past.records]

    def _ipython_display_(self) -> None:
        if self.figure is not None:
            text = f"[picture: {', '.join(row[0] for row in self.rows)}]"
            display({"image/png": png(self.figure, 100), "text/plain": text}, raw=True)
        display({"text/html": self.html, "text/plain": str(self)}, raw=True)

    @property
    def html(self) -> str:
        """The table."""
        return _table(COLUMNS, self.rows) if self.rows else "<p>No runs yet.</p>"

    def __str__(self) -> str:
        if not self.rows:
            return "No runs yet."
        widths = [max(map(len, column)) for column in zip(COLUMNS, *self.rows, strict=True)]
        lines = ("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)) for row in (COLUMNS, *self.rows))
        return "\n".join(text.rstrip() for text in lines)


@checked
def save(
    kind: str,
    view: View,
    run: Run,
    runs: Sequence[Run],
    round: int,
    draw: Callable[[], Figure | None],
    replayed: Many = 0,
    shown: bytes | None = None,
    colours: bool = False,
) -> Path:
    """Writes a file of that kind into the working directory under a new name; figures with their data (JSON) beside.

    Args:
        kind: a key of `TYPES`.
        view: the one shown.
        draw: draws it; of a slow view reports hold `shown` instead.
        replayed: see `page`.
        shown: PNG that is shown of the view, if it is.
        colours: whether it holds a photograph or a scale of colours.

    Returns:
        The path.

    Raises:
        ValueError: an unknown kind.
    """
    choice("kind", kind, [*TYPES, "code"])
    stem = f"workbench-{view.name.lower().replace(' ', '-')}-{run.experiment.key}-round-{round}"
    path = _free(Path.cwd() / f"{stem}.{kind}")
    if kind in FIGURES:
        meta = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
        figure: Any = draw()
        with files.published(path) as part:
            figure.savefig(part, format=kind, dpi=PRINT_DPI, metadata=meta)
        about = {"view": view.name, "run": run.name, "round": round, "seed": run.experiment.settings.seed}
        data = {"shown": about, "runs": runs_to_json(runs), "versions": versions()}
        files.write(path.with_suffix(".json"), f"{json.dumps(data, indent=1, allow_nan=False)}\n".encode())
    elif kind == "csv":
        files.write(path, runs_to_frame(runs).to_csv(index=False).encode())
    else:
        picture = None if view in (CURVES, COSTS) else shown if view.slow else draw()  # these two every page has
        files.write(path, page(run, runs, picture, replayed, colours).encode())
    return path


@checked
def download(path: Path) -> str:
    """HTML of a link that downloads a file from wherever the page is."""
    data = base64.b64encode(path.read_bytes()).decode()
    kind = TYPES[path.suffix.removeprefix(".")]
    return f"<a download='{html.escape(path.name, quote=True)}' href='data:{kind};base64,{data}'>Download</a>"


@checked
def code(run: Run) -> str:
    """Python that rebuilds the run without a panel, forks and all; a comment says what of one's own to put in."""
    first, rest = run.plan[0][1], run.plan[1:]
    ends = [after for after, _ in rest] + [run.round]
    own = {name: words for _, experiment in run.plan for name, words in _own(experiment).items()}
    by_hand = _by_hand(first) if _own(first) else []
    lines = ["from fedlab_core.experiment import Experiment"]
    if by_hand:
        lines.append("from fedlab_core.federation import Federation")
    if rest or by_hand:
        lines.append("from fedlab_core.methods.named import build_method")
    if "own_method" in own:
        lines.insert(0, "from dataclasses import replace\n")
    lines += ["", *(f"# {name} = ...  # put in here {words}" for name, words in own.items())]
    lines.append(f"experiment = {experiment_code(first)}")
    built = "federation" if by_hand else "experiment.build()"
    lines += [*by_hand, f"federation = {built}.run({ends[0]})"]
    before = first
    for (after, experiment), end in zip(rest, ends[1:], strict=True):
        old, new = before.settings.to_json(), experiment.settings.to_json()
        changed = {name: value for name, value in new.items() if old[name] != value}
        words = [repr(run.name), f"at={after}", f"method={_method(experiment)}"]
        words += [f"{name}={value!r}" for name, value in changed.items()]
        lines.append(f"federation = federation.fork({', '.join(words)}).run({end - after})")
        before = experiment
    return "\n".join([*lines, "federation.history[-1].metrics"])


def _own(experiment: Experiment) -> dict[str, str]:
    """What of an experiment has no name outside of the panel: how code calls it, and what it is in words."""
    named = experiment.dataset in dataset_names() or experiment.dataset.startswith(tuple(TYPED))
    parts = {
        "own_data": "" if named else f"your data set {experiment.dataset!r}",
        "own_partition": "its partition" if experiment.partition == GIVEN else "",
        "own_model": "" if experiment.model in MODELS else f"your model {experiment.model!r} before the first round",
        "own_method": "" if experiment.method in METHODS else f"your method {experiment.method!r}",
    }
    return {name: words for name, words in parts.items() if words}


def _by_hand(experiment: Experiment) -> list[str]:
    """Lines that put the experiment's federation together from what is one's own and what has a name."""
    own = _own(experiment)
    plain = "experiment.replace(method='fedavg', method_options={}, partition='pooled', partition_options={})"
    model = f"{plain}.begin(experiment.make_start(data=data), data=data).model"
    return [
        f"data = {'own_data' if 'own_data' in own else 'experiment.load_data()'}",
        f"partition = {'own_partition' if 'own_partition' in own else 'experiment.make_partition(data)'}",
        f"model = {'own_model' if 'own_model' in own else model}",
        f"method = {_method(experiment)}",
        "federation = Federation(data, partition, method.fitted(model), experiment.settings, method)",
    ]


def _method(experiment: Experiment) -> str:
    """Code of an experiment's method."""
    options = [f"{name}={value!r}" for name, value in experiment.method_options.items()]
    if "own_method" in _own(experiment):
        return f"replace({', '.join(['own_method', *options])})"
    return f"build_method({', '.join([repr(experiment.method), *options])})"


@checked
def page(
    run: Run, runs: Sequence[Run], figure: Figure | bytes | None, replayed: Many = REPLAYED, colours: bool = False
) -> str:
    """A page that opens without Jupyter and needs nothing from elsewhere: replay, settings, curves, costs, data.

    Args:
        figure: the view shown, or its PNG.
        replayed: at most so many rounds are trained once more, for a replay with the clients' updates; 0 for none.
        colours: of a PNG, whether it keeps its colours where the reader's page is dark; a figure tells itself.
    """
    record = run.at(run.round)
    settings = [(str(after), name, str(value)) for after, e in run.plan for name, value in _flat(e).items()]
    measured = [] if record is None else [(name, f"{value:.4g}") for name, value in record.metrics.items()]
    hit = [(str(one.round), "; ".join(words)) for one in run.federation.history if (words := trouble(one))]
    parts = [
        f"<p>{run.round} rounds. {html.escape(run.federation.dataset.notes)}</p>",
        "" if run.diverged is None else f"<p><b>Diverged in round {run.diverged}.</b></p>",
        f"<h2>Replay</h2>{page_part([run_replay(run, replayed)])}" if run.round else "",
        f"<h2>Curves</h2>{_svg(curves_view(run))}<h2>Costs</h2>{_svg(costs_view(run, run.round))}",
        f"<h2>All runs of the panel</h2>{Report(None, runs).html}",
        f"<h2>Last round</h2>{_table(('measure', 'value'), measured)}",
        f"<h2>Failures</h2>{_table(('round', 'what'), hit)}" if hit else "",
        f"<h2>Settings</h2>{_table(('after round', 'setting', 'value'), settings)}",
        f"<h2>The same without a panel</h2><pre>{html.escape(code(run))}</pre>",
    ]
    if figure is not None:
        drawn, kept = (figure, colours) if isinstance(figure, bytes) else (png(figure), has_colours(figure))
        source = f"data:image/png;base64,{base64.b64encode(drawn).decode()}"
        kind = "colours" if kept else "lines"
        parts.insert(3, f"<h2>Picture</h2><img class='{kind}' alt='the view shown' src='{source}'>")
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    terms = "".join(f"<dt>{term}</dt><dd>{html.escape(GLOSSARY[term])}</dd>" for term in EXPLAINED)
    parts.append(f"<h2>Terms</h2><dl>{terms}</dl><p>Made with {html.escape(made_with)}.</p>")
    data = json.dumps(runs_to_json(runs), allow_nan=False).replace("</", "<\\/")
    return PAGE.format(title=html.escape(run.name), body="".join(parts), data=data)


def _flat(experiment: Experiment) -> dict[str, Any]:
    plain = experiment.to_json()
    return {**{k: v for k, v in plain.items() if k != "settings"}, **plain["settings"]}


def _svg(figure: Figure) -> str:
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()[content.getvalue().index("<svg") :]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{name}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _row(run: Run) -> tuple[str, ...]:
    record, parent = run.federation.history[-1], run.federation.parent
    return (
        run.name,
        "" if parent is None else f"{parent[0]}, round {parent[1]}",
        str(record.round) if run.diverged is None else f"{record.round}, diverged in {run.diverged}",
        *(_two(record.metrics.get(key)) for key in ("test_accuracy", "test_loss")),
        f"{record.total.bytes / 1e6:.1f}",
        str(record.total.steps),
    )


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}" if math.isfinite(value) else "diverged"


def _free(path: Path) -> Path:
    candidates = (path if i == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, 10_000))
    return next(candidate for candidate in candidates if not candidate.exists())
