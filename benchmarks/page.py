"""The tables of docs/speed.md, written from figures/bench.json and figures/panel.json."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlab_core import files
from fedlab_core.studies.engines import NAMES, PLAIN, bound, fastest

FILE = Path(__file__).parent.parent / "docs" / "speed.md"
BEGIN, END = "<!-- written by `make bench` -->", "<!-- end -->"
PANEL = "<!-- written by `python -m benchmarks.panel` -->"
MODELS = NAMES | {"2nn_1": "2NN, 1 client", "2nn_100": "2NN, 100 clients"}


def table(bench: Mapping[str, Any]) -> list[str]:
    """Markdown: a line per model with the seconds of a round, and what its operations spend their time on."""
    seconds = {(row["model"], row["engine"]): row["seconds_per_round"] for row in bench["rows"]}
    chosen = {row["model"]: row for row in bench["rows"] if row["engine"] == "auto"}
    peers = sorted(bench.get("peers", ()))
    columns = ["plain loop", "loop", "`auto`", "`auto`, 1 core", "`auto`, a core taken", *peers]
    lines = [
        f"| seconds a round | {' | '.join(columns)} | x plain | products alone, x plain | % of the matmul peak |",
        "|---|" + "---|" * (len(columns) + 3),
    ]
    for model, name in MODELS.items():
        if model not in chosen:
            continue

        own = [seconds.get((model, way)) for way in ("loop", "auto", "auto, 1 core", "auto, a core taken")]
        found = [fastest(bench, model, PLAIN), *own, *(fastest(bench, model, peer) for peer in peers)]
        cells = [name, *("" if value is None else f"{value:#.3g}" for value in found)]
        cells.append(f"{chosen[model]['ratio_to_plain']:.2f}")
        cells.append(f"{bound(bench, model):.2f}" if model in bench.get("products_seconds", {}) else "")
        lines.append(f"| {' | '.join(cells)} | {chosen[model]['percent_of_peak']:.0f} |")
    lines += ["", "| share of the operations' time, one core | the largest kinds |", "|---|---|"]
    for model, shares in bench.get("shares", {}).items():
        kinds = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in list(shares.items())[:5])
        lines.append(f"| {MODELS[model]} | {kinds} |")
    lines += ["", *ray_rows(bench["ray"])] if "ray" in bench else []
    own = {MODELS[model]: row["matmul_gflops"] for model, row in chosen.items() if "matmul_gflops" in row}
    apart = "".join(
        f" ({name}: {peak:.0f})" for name, peak in own.items() if abs(peak / bench["matmul_gflops"] - 1) > 0.1
    )
    versions = "".join(f"; {peer}: {packages}" for peer, packages in sorted(bench.get("peers", {}).items()))
    lines += [
        "",
        f"*{bench['machine']}, PyTorch {bench['torch']}, matmul peak {bench['matmul_gflops']:.0f} GFLOP/s{apart}, "
        f"load before {bench['load_before']:.1f}{versions}.*",
    ]
    return lines


def ray_rows(ray: Mapping[str, Any]) -> list[str]:
    """What Ray adds to a round, and rounds by that."""
    parts = "seconds_a_round", "seconds_a_client_led", "seconds_a_client_trained"
    a_round, led, trained = (1000 * ray[part] for part in parts)
    lines = [
        f"Ray adds {a_round:.0f} ms to a round, {led:.1f} ms for each of its clients, and {trained:.1f} ms for each "
        f"client that one worker trains; its first round, in which the data are placed, takes "
        f"{1000 * ray['first_round_more']:.0f} ms more (`python -m benchmarks.ray_rounds`, which says how that is "
        "found). By that:",
        "",
        f"| seconds a round | 10 clients, {ray['workers']} workers, predicted | measured | 16 clients, `loop` | 16 "
        "clients, 16 workers, predicted |",
        "|---|---|---|---|---|",
    ]
    for model, found in ray["tasks"].items():
        cells = found["predicted"], found["measured"], found["loop_16"], found["predicted_16"]
        lines.append(f"| {MODELS[model]} | {' | '.join(f'{value:#.3g}' for value in cells)} |")
    return lines


def panel_rows(panel: Mapping[str, Any]) -> list[str]:
    """How soon the workbench answers, and what its live pictures cost."""
    presses = [times for name, times in panel["presses"].items() if name.endswith(", ms")]
    stops = {name: times for name, times in panel["stop"].items() if isinstance(times, dict) and "median" in times}
    sets = {re.split("[:,]", name)[0] for name in stops if ": " in name}
    lines = ["| | median | worst |", "|---|---|---|"]
    for what, digits, times in (
        (f"press to visible effect, {len(presses)} controls, ms", 0, presses),
        ("Run to the first curve, ms", 0, [panel["curve"]["Run to first curve, ms"]]),
        (f"Stop to a free panel, {len(stops)} phases of {len(sets)} data sets, s", 2, list(stops.values())),
        ("a run in the panel, in times of the bare loop", 2, [panel["cost"]["wall-clock, panel / bare"]]),
    ):
        low, high = (pick(one["median"] for one in times) for pick in (min, max))
        median = f"{low:.{digits}f} to {high:.{digits}f}" if len(times) > 1 else f"{low:.{digits}f}"
        lines.append(f"| {what} | {median} | {max(one['worst'] for one in times):.{digits}f} |")
    lines += [
        "",
        "| live pictures a second | one run | eight runs | share of the time, eight runs |",
        "|---|---|---|---|",
    ]
    cost = panel["cost"]
    for view in (name.split(",")[0] for name in cost if name.endswith("one run: pictures a second")):
        one, eight = (cost[f"{view}, {runs}: pictures a second"] for runs in ("one run", "eight runs"))
        share = cost[f"{view}, eight runs: drawing, share of the time"]
        lines.append(f"| {view} | {one:.1f} | {eight:.1f} | {100 * share:.0f} % |")
    return [*lines, "", f"*{panel['machine']}.*"]


def write(begin: str, lines: Sequence[str]) -> None:
    """Writes them into the page."""
    FILE.write_text(files.between(FILE.read_text(encoding="utf-8"), begin, END, lines), encoding="utf-8")
