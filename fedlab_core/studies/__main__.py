"""`python -m fedlab_core.studies NAME --size quick|standard`: run a study; standard ones are recorded in `figures/`.

A standard study keeps every finished run in `runs/`, so that a killed one goes on where it was.
"""

import argparse
import importlib
import sys
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from fedlab_core import claims, plots
from fedlab_core.studies.record import FIGURES, RUNS
from fedlab_core.studies.tuning import curve


def draw(data: Mapping[str, Any]) -> Figure:
    """The recorded curves: a panel per partition, a line per run at the best learning rate."""
    metric = data["metric"]
    panels = list(dict.fromkeys(run["partition"] for run in data["runs"]))
    fig, axes = plots.figure(1, len(panels), (4.2 * len(panels), 3.2))
    for ax, panel in zip(axes[0], panels, strict=True):
        for index, run in enumerate(one for one in data["runs"] if one["partition"] == panel):
            settings = run["experiment"]["settings"]
            name = f"{run['work']}, lr {settings['lr']:g}, seed {settings['seed']}"
            plots.curves(ax, [plots.Line(name, curve(run, metric), index=index)], metric)
        if "target" in data:
            ax.axhline(data["target"], color="0.35", linewidth=1, linestyle=":", label=f"target {data['target']:g}")
        if metric == "test_accuracy":
            ax.set_ylim(0.8 if data["target"] > 0.9 else 0, 1)
        ax.set_title(panel)
        ax.legend()
    fig.suptitle(data["title"], fontsize=10)
    return fig


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=claims.STUDIES)
    parser.add_argument("--size", choices=("quick", "standard"), default="quick")
    parser.add_argument("--only", default="", help="of a standard study: records whose name begins so")
    parser.add_argument("--engine", default="loop", help="where clients run, see fedlab_core.engines")
    options = parser.parse_args(arguments)
    if options.size == "quick":
        return claims.main(["--only", f"{options.study}."])
    for name, make in importlib.import_module(f"fedlab_core.studies.{options.study}").STANDARD.items():
        if name.startswith(options.only):
            data = make(options.engine, RUNS / options.study)
            print(plots.save(draw(data), FIGURES / name, data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
