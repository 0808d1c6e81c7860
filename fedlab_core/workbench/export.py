"""What leaves the panel: the report under it, figures with their data, and tables."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython.display import display
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.workbench.panel import png
from fedlab_core.workbench.runs import Run, runs_to_frame, runs_to_json

COLUMNS = ("run", "forked from", "rounds", "test accuracy", "test loss", "MB sent", "gradient steps")


class Report:
    """The runs of a panel as a picture and a table that stay readable where no widget can be shown.

    As the last expression of a cell it shows both. Numbers are rounded and contain no timings.

    Attributes:
        figure: the picture, None without runs.
        rows: one tuple of texts per run, in the order of `COLUMNS`.
    """

    def __init__(self, figure: Figure | None, runs: Sequence[Run]) -> None:
        self.figure = figure
        self.rows = [_row(run) for run in runs]

    def _ipython_display_(self) -> None:
        if self.figure is not None:
            text = f"[picture: {', '.join(row[0] for row in self.rows)}]"
            display({"image/png": png(self.figure, 100), "text/plain": text}, raw=True)
        display({"text/html": self.html, "text/plain": str(self)}, raw=True)

    @property
    def html(self) -> str:
        """The table."""
        if not self.rows:
            return "<p>No runs yet.</p>"
        head = "".join(f"<th>{name}</th>" for name in COLUMNS)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __str__(self) -> str:
        if not self.rows:
            return "No runs yet."
        widths = [max(map(len, column)) for column in zip(COLUMNS, *self.rows, strict=True)]
        lines = ("  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)) for row in (COLUMNS, *self.rows))
        return "\n".join(text.rstrip() for text in lines)


def _row(run: Run) -> tuple[str, ...]:
    record, parent = run.federation.history[-1], run.federation.parent
    return (
        run.name,
        "" if parent is None else f"{parent[0]}, round {parent[1]}",
        str(record.round),
        *(_two(record.metrics.get(key)) for key in ("test_accuracy", "test_loss")),
        f"{record.total.bytes / 1e6:.1f}",
        str(record.total.steps),
    )


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def export_folder() -> Path:
    """`figures/` of the repository when the working directory is inside it, else the working directory."""
    root, here = Path(__file__).resolve().parents[2], Path.cwd()
    inside = (root / "pyproject.toml").is_file() and here.is_relative_to(root)
    return root / "figures" if inside else here


def save_figure(figure: Figure, stem: str, runs: Sequence[Run], shown: dict[str, Any]) -> Path:
    """Writes the figure (PNG) and the runs behind it (JSON) under a new name; returns the picture's path."""
    return plots.save(figure, _free(export_folder() / f"{stem}.png"), {"shown": shown, "runs": runs_to_json(runs)})


def save_csv(stem: str, runs: Sequence[Run]) -> Path:
    """Writes one row per run and round under a new name; returns the path."""
    path = _free(export_folder() / f"{stem}.csv")
    path.parent.mkdir(parents=True, exist_ok=True)
    runs_to_frame(runs).to_csv(path, index=False)
    return path


def _free(path: Path) -> Path:
    candidates = (path if i == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(1, 10_000))
    return next(candidate for candidate in candidates if not candidate.exists())
