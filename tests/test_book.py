"""The book: every snippet of its pages runs, and its sources hold together; tests/browser builds and walks it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools import book

PAGES = sorted(p for p in (book.ROOT / "docs").rglob("*.md") if "```python" in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_snippets_of_a_page_run_in_their_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, page.name, "exec"), scope)


def test_the_line_for_tensorboard_writes_every_number_of_every_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"__name__": __name__}
    blocks = re.findall(r"```python\n(.*?)```", (book.ROOT / "docs/in_and_out.md").read_text(), re.DOTALL)
    for block in (blocks[0], next(block for block in blocks if "SummaryWriter" in block)):
        exec(block, scope)
    written = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    history = scope["federation"].history  # of an equal run
    for name in history[1].row().keys() - {"seconds"}:
        expected = {record.round: record.row()[name] for record in history[1:]}
        assert {event.step: event.value for event in written.Scalars(name)} == pytest.approx(expected, nan_ok=True)


def test_every_page_on_how_to_add_something_is_there() -> None:
    assert {p.stem for p in PAGES if p.parent.name == "add"} == {"method", "model", "data_set", "study", "lab"}


def test_the_readme_tells_the_lines_of_each_page_on_how_to_add_something() -> None:
    said = re.findall(r"\(docs/add/(\w+)\.md\), (\d+) \|", (book.ROOT / "README.md").read_text(encoding="utf-8"))
    counted = {}
    for page in (book.ROOT / "docs" / "add").glob("*.md"):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        counted[page.stem] = sum(bool(line.strip()) for block in blocks for line in block.splitlines())
    assert {name: int(lines) for name, lines in said} == counted and len(counted) == len(said) == 5


def test_the_sources_hold_together(tmp_path: Path) -> None:
    book.assemble(tmp_path)
    listed = re.findall(r"^([\w/]+)$", (tmp_path / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    missing = [page for page in listed if not [*tmp_path.glob(f"{page}.*")]]
    assert len(listed) > 14 and missing == []
    for page in tmp_path.rglob("*.md"):
        for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page}: {target}"
    records = {p.name: json.loads(p.with_suffix(".json").read_text()) for p in (book.ROOT / "figures").glob("*.png")
               if p.with_suffix(".json").exists()}  # fmt: skip
    shown = set(re.findall(r"figures/([\w.]+\.png)", (tmp_path / "gallery.md").read_text(encoding="utf-8")))
    begun = {name for name, record in records.items() if record.get("complete") == []}  # nothing to see yet
    assert shown <= records.keys() <= shown | begun


def test_the_committed_picture_of_the_architecture_shows_the_imports_as_they_are() -> None:
    kept = (book.ROOT / "figures" / "architecture.svg").read_text(encoding="utf-8")
    assert f">{book.described()}<" in kept, "draw it again: python tools/book.py --picture"


def test_the_picture_and_the_reference_know_every_package() -> None:
    there = {p.stem for p in (book.ROOT / "fedlab_core").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert {name for row in book.LAYERS for name in row} == there - {"__init__", "shipped"}
