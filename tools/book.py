"""`make book`: puts the book's sources together, builds the site with Sphinx and prints where it is.

Sources mirror the repository, so that links between notebooks, docs and figures hold. Gallery, guide and API reference
are made here; notebooks are taken as they are committed and not executed.
"""

import argparse
import ast
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "book"
ORDER = ("shown", "refuted", "undecided", "not run")
TITLES = {
    "attribution_mnist": "Why is there a gap? MNIST, CNN, two shards a client",
    "attribution_cifar10": "Why is there a gap? CIFAR-10, ResNet-8, two shards a client",
    "batchnorm_cifar": "Normalisers on CIFAR-10, two classes a client",
    "batchnorm_distributions": "Batch norm on CIFAR-10, from IID to one class a client",
    "batchnorm_mnist": "Normalisers on MNIST, two digits a client",
    "batchnorm_mnist_cnn": "Normalisers in a CNN on MNIST",
    "batchnorm_mnist_five_steps": "Normalisers with five local steps",
    "batchnorm_mnist_iid": "Normalisers on IID clients",
    "batchnorm_mnist_one_digit": "Normalisers with one digit a client",
    "batchnorm_no_noise": "Batch norm without sampling noise: another optimum",
    "bench": "Time of a round against a plain PyTorch loop",
    "growth": "How the time of a round grows",
    "fedavg_mnist": "FedAvg on MNIST: rounds to 97 %",
    "fedavg_tables": "Tables 1 and 4 of McMahan et al.",
    "fedavg_text": "An LSTM on Shakespeare's roles",
    "finetuning_caltech_cifar": "A Transformer pre-trained on Caltech-101, tuned on CIFAR-10",
    "finetuning_clip": "CLIP against a vision Transformer",
    "finetuning_local": "Federated against local fine-tuning, few shots",
    "finetuning_strength": "What to fine-tune, by the strength of the start",
    "first_run": "From a bare machine to the first round",
    "layerwise_caltech101": "Layer-wise training on Caltech-101",
    "layerwise_cifar10": "Layer-wise training on CIFAR-10",
    "layerwise_digits": "Layer-wise training on digits",
    "layerwise_dropout": "Depth dropout",
    "pretraining": "Starting points on digits",
    "pretraining_standard": "Starting points on MNIST and CIFAR-10",
}
"""Headings of the gallery; a picture that has none here goes by its record's title."""
LAYERS = (
    ("hints", "about", "check", "files", "memory"),
    ("randomness", "settings", "failures", "state", "costs", "drift", "sampling", "intervals", "glossary"),
    ("data", "partition", "models"),
    ("local", "methods", "engines"),
    ("timeline", "history", "checkpoint", "inside", "aggregation", "round", "standing"),
    ("federation",),
    ("batchnorm", "pretraining", "finetuning", "layerwise", "probes", "references", "selfsupervised"),
    ("registry", "experiment"),
    ("plots", "studies", "claims"),
    ("workbench", "cli"),
)
"""Rows of the picture, from the ground up; tests/test_architecture.py holds every single import."""


def assemble(target: Path) -> None:
    """Write the book's sources into a new folder."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target / "docs", ignore=shutil.ignore_patterns("_static", "conf.py", "index.md"))
    shutil.copytree(ROOT / "docs" / "_static", target / "_static")
    for name in ("conf.py", "index.md"):
        shutil.copy(ROOT / "docs" / name, target / name)
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, target / name)
    for pattern in (
        "notebooks/*.ipynb",
        "notebooks/solutions/*.ipynb",
        "figures/*.png",
        "figures/*.svg",
        "figures/*.json",
    ):
        for file in ROOT.glob(pattern):
            (target / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / file.relative_to(ROOT))
    replays(target)
    claims = json.loads((ROOT / "figures" / "claims.json").read_text(encoding="utf-8"))
    (target / "gallery.md").write_text(gallery(claims, sorted((ROOT / "figures").glob("*.png"))), encoding="utf-8")
    (target / "docs" / "guide.md").write_text(guide_page(), encoding="utf-8")
    (target / "api").mkdir()
    for name, text in api_pages():
        (target / "api" / f"{name}.rst").write_text(text, encoding="utf-8")
    for file in sorted([*target.rglob("*.md"), *target.rglob("*.ipynb")]):
        text = file.read_text(encoding="utf-8")
        file.write_text(re.sub(r"(?<!!)\[([^]\[]*)\]\(([^)\s#:]+)\)", partial(unlinked, file), text), encoding="utf-8")


def replays(target: Path) -> None:
    """Put the player and what it plays beside the pages, a page of all replays, and each below its lab in a chapter."""
    folder = target / "_static" / "replays"
    folder.mkdir()
    shutil.copy(ROOT / "fedlab_core" / "workbench" / "player.js", target / "_static")
    page = target / "docs" / "replays.md"
    parts = [page.read_text(encoding="utf-8")]
    for file in sorted((ROOT / "docs" / "replays").glob("*.json")):
        content = file.read_text(encoding="utf-8")
        script = f"fedlabReplay({json.dumps(file.stem)}, {content});\n"
        (folder / f"{file.stem}.js").write_text(script, encoding="utf-8")
        parts.append(f"## {json.loads(content)['title']}\n\n{player(file.stem)}\n")
    page.write_text("\n".join(parts), encoding="utf-8")
    for file in target.glob("notebooks/**/*.ipynb"):
        notebook = json.loads(file.read_text(encoding="utf-8"))
        cells = []
        for cell in notebook["cells"]:
            cells.append(cell)
            for name in re.findall(r"\bLab\((\w+)\)", "".join(cell["source"]) if cell["cell_type"] == "code" else ""):
                if (folder / f"{name.lower()}.js").exists():
                    said = f"Recorded at the first settings, to play without a kernel:\n\n{player(name.lower())}"
                    cells.append(
                        {"cell_type": "markdown", "id": f"replay-{len(cells)}", "metadata": {}, "source": said}
                    )
        file.write_text(json.dumps({**notebook, "cells": cells}, indent=1), encoding="utf-8")


def player(name: str) -> str:
    """HTML at whose place a replay is played."""
    return f'<div class="fedlab-player" data-replay="{name}"></div>'


def unlinked(file: Path, link: re.Match[str]) -> str:
    """A link as it stands; where the book does not hold its target, as a folder of the repository, its text alone."""
    words, target = link.groups()
    there = file.parent / target
    page = (there.with_suffix(".rst") if there.suffix == ".md" else there).is_file()
    if there.is_file() or page or "." not in Path(target).name and not target.startswith(".."):
        return link.group()
    print(f"{file.name}: no page for {target}, shown as text")
    return words


def gallery(claims: list[dict[str, Any]], pictures: list[Path]) -> str:
    """A page of every recorded picture, with the claims of its study: measured headline, interval, seeds, verdict."""
    from fedlab_core.studies.coverage import PAPERS  # which claim is drawn in which picture

    drawn: dict[str, set[str]] = {}
    for statement in (one for paper in PAPERS.values() for one in paper):
        for claim in {c["id"] for c in claims for pattern in statement.claims if fnmatch(c["id"], pattern)}:
            alike = {name: len({*re.split(r"[._]", claim)} & {*name.split("_")}) for name in statement.pictures}
            for name in [name for name in alike if alike[name] == max(alike.values())]:
                drawn.setdefault(name, set()).add(claim)
    parts = [
        "# Gallery of records\n\nEvery recorded picture, and the claims that its study decides, from "
        "[claims.json](figures/claims.json). The number is the headline's mean over the seeds, with its 95 % interval "
        "(Student's t). A claim is *shown* if the interval lies inside the expected range, *refuted* if it lies "
        "outside, *undecided* otherwise. A click on a picture opens it in full size.\n"
    ]
    for picture in pictures:
        if not picture.with_suffix(".json").exists():
            continue
        record = json.loads(picture.with_suffix(".json").read_text(encoding="utf-8"))
        ids = drawn.get(picture.stem, set())
        rows = [claim for claim in claims if claim["id"] in ids and claim["verdict"] != "not run"]
        if record.get("complete") == [] and not rows:
            continue  # its recording has begun, and there is nothing to see yet
        title = TITLES.get(picture.stem) or record.get("title") or picture.stem.replace("_", " ")
        parts.append(f"## {title}\n\n[![{title}](figures/{picture.name})](figures/{picture.name})\n")
        so_far = f" ({record['note']})" if "complete" in record else ""
        parts.append(f"[The numbers behind it](figures/{picture.stem}.json){so_far}\n")
        if rows:
            parts.append("| verdict | claim | measured | expected |\n|---|---|---|---|")
            parts += [claim_row(row) for row in sorted(rows, key=lambda row: ORDER.index(row["verdict"]))]
            parts.append("")
    return "\n".join(parts)


def claim_row(claim: Mapping[str, Any]) -> str:
    """A line of the gallery's tables."""
    part = claim["headline"] or next(iter(claim["expected"]))
    value, ends = claim["measured"].get(part), claim["interval"]
    number = "–" if value is None else f"{value:,.4g}"
    spread = f" [{ends[0]:,.4g}, {ends[1]:,.4g}], n = {claim['n']}" if ends else ""
    cells = (f"**{claim['verdict']}**", claim["claim"], f"{part}: {number}{spread}", claim["expected"][part])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def guide_page() -> str:
    """The decision guide as a page."""
    from fedlab_core.studies.guide import guide

    rows = [" | ".join(str(row[key]) for key in ("situation", "advice", "because", "verdict")) for row in guide().rows]
    head = "# Which method should I use?\n\nEach line is decided by a recorded claim.\n\n"
    return (
        head + "| if | then | because | verdict |\n|---|---|---|---|\n" + "\n".join(f"| {row} |" for row in rows) + "\n"
    )


def api_pages() -> Iterator[tuple[str, str]]:
    """Names and texts of the pages of the API reference: one per package or module at the top."""
    package = ROOT / "fedlab_core"
    tops = [name for row in LAYERS for name in row]
    for top in tops:
        place = package / top
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        modules = [".".join(("fedlab_core", *f.relative_to(package).with_suffix("").parts)) for f in files]
        modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
        text = f"{top}\n{'=' * len(top)}\n"
        for name in modules:
            if place.is_dir() and name.count(".") > 1:
                text += f"\n{name}\n{'-' * len(name)}\n"
            text += f"\n.. automodule:: {name}\n"
        yield top, text
    lines = ["API reference", "=============", "", "From the ground up.", "", ".. list-table::", "   :widths: 1 4", ""]
    for top in tops:
        place = package / top
        source = (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")
        said = " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())
        lines += [f"   * - :doc:`{top}`", f"     - {said}"]
    lines += ["", ".. toctree::", "   :hidden:", "   :maxdepth: 1", "", *(f"   {top}" for top in tops)]
    yield "index", "\n".join([*lines, ""])


def imported(top: str) -> set[str]:
    """The packages and modules at the top that one of them imports."""
    place = ROOT / "fedlab_core" / top
    found = set()
    for file in place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                if node.module == "fedlab_core":
                    found |= {alias.name for alias in node.names}
                elif node.module.startswith("fedlab_core."):
                    found.add(node.module.split(".")[1])
    return found - {top}


def lines() -> list[tuple[str, str]]:
    """The imports between two layers of the picture, from above to below."""
    height = {name: y for y, row in enumerate(LAYERS) for name in row}
    return sorted((a, b) for a in height for b in imported(a) & height.keys() if height[b] < height[a])


def draw(path: Path = ROOT / "figures" / "architecture.svg") -> None:
    """Draw the packages in layers, with a line for every import between two layers."""
    figure = Figure((10, 7.2), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 1), ylim=(-0.6, len(LAYERS) - 0.4))
    ax.axis("off")
    place = {n: ((i + 0.5) / len(row), y) for y, row in enumerate(LAYERS) for i, n in enumerate(row)}
    for (x, y), (x2, y2) in ((place[a], place[b]) for a, b in lines()):
        ax.plot([x, x2], [y - 0.2, y2 + 0.2], color="#0072B2", alpha=0.16, linewidth=0.9, zorder=1)
    for name, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#eef4fa", "edgecolor": "#0072B2"}
        ax.text(x, y, name, ha="center", va="center", fontsize=11, bbox=box, zorder=2)
    with matplotlib.rc_context({"svg.hashsalt": "fedlab_core", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Description": described()})


def described() -> str:
    """What the picture shows, in words that are kept in its file."""
    return "; ".join(f"{a} imports {b}" for a, b in lines())


def main(arguments: list[str] | None = None) -> int:
    """Build the site; warnings are errors."""
    from sphinx.cmd.build import main as sphinx

    parser = argparse.ArgumentParser(prog="tools/book.py", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=BUILD, help="where sources and site are made")
    parser.add_argument("--picture", action="store_true", help="only draw figures/architecture.svg from the imports")
    options = parser.parse_args(arguments)
    if options.picture:
        draw()
        return 0
    folder = options.folder
    assemble(folder / "source")
    code = sphinx(["-W", "--keep-going", "-q", "-b", "html", str(folder / "source"), str(folder / "html")])
    if code == 0:
        print(f"the book: {folder / 'html' / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
