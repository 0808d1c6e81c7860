"""Committed notebooks are as `make notebooks` leaves them, keep to the rules of the house, and twins are in step."""

import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import nbformat
import pytest

from tools import execute_notebooks as tool
from tools.execute_notebooks import as_saved

NOTEBOOKS = tool.notebook_paths()
MAX_LINES = 25
MAX_PRINTED = 120  # characters of a printed line: JupyterLab breaks a longer one within a word
TAGS = {"exercise", "solution", "trained", "nbval-ignore-output", "nbval-skip", "raises-exception"}
# Output that nbval and a reader of the saved file see differently (nbval keeps what clear_output clears).
LIVE_OUTPUT = re.compile(r"\b(interact|interact_manual|interactive|interactive_output|clear_output|Output)\(|\btqdm\b")
ABSOLUTE = re.compile(r"(?<![\w.:/])/(home|Users|root|tmp|private|usr|opt|var|mnt)/|\b[A-Z]:\\")
LINK = re.compile(r"""!?\[[^\]]*\]\(([^)\s]+)|(?:src|href)=["']([^"']+)""")


def named(paths: list[Path]) -> list:
    return [pytest.param(path, id=str(path.relative_to(tool.ROOT / "notebooks"))) for path in paths]


def texts(cell: nbformat.NotebookNode) -> str:
    """Source and textual outputs of a cell."""
    shown = [cell.source]
    for output in cell.get("outputs", []):
        shown += [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]
    return "\n".join(shown)


def dead_links(source: str, folder: Path) -> list[str]:
    """Link targets that are neither addresses nor files of the repository."""
    targets = [(a or b).partition("#")[0] for a, b in LINK.findall(source)]
    files = [target for target in targets if target and not re.match(r"(https?|mailto):", target)]
    inside = [f for f in files if (folder / f).resolve().is_relative_to(tool.ROOT) and (folder / f).exists()]
    return [file for file in files if file not in inside]


def problems(notebook: nbformat.NotebookNode, folder: Path) -> list[str]:
    """What is wrong with a notebook that lies in the folder, cell by cell."""
    found = []
    for number, cell in enumerate(notebook.cells):
        tags, source = set(cell.metadata.get("tags", [])), cell.source

        def wrong(what: str, number: int = number) -> None:
            found.append(f"cell {number}: {what}")

        if tags - TAGS:
            wrong(f"unknown tags {sorted(tags - TAGS)}")
        if ABSOLUTE.search(texts(cell)) or str(tool.ROOT) in texts(cell):
            wrong("an absolute path")
        if cell.cell_type == "markdown":
            for target in dead_links(source, folder):
                wrong(f"link to {target}, which is not there")
            continue
        raised = any(output.output_type == "error" for output in cell.outputs)
        if not source.strip():
            wrong("empty")
        elif cell.execution_count is None:
            wrong("not executed")
        if raised and "raises-exception" not in tags:
            wrong("raises, but is not tagged raises-exception")
        if "raises-exception" in tags and not raised:
            wrong("tagged raises-exception, but does not raise")
        if len(source.splitlines()) > MAX_LINES:
            wrong(f"longer than {MAX_LINES} lines")
        if LIVE_OUTPUT.search(source):
            wrong(f"uses {LIVE_OUTPUT.search(source).group()}")
        printed = [line for output in cell.outputs for line in output.get("text", "").splitlines()]
        if printed and max(map(len, printed)) > MAX_PRINTED:
            wrong(f"prints a line of more than {MAX_PRINTED} characters")
        if any("image/svg+xml" in output.get("data", {}) for output in cell.outputs):
            wrong("an SVG figure: nbval compares its random ids, use PNG")
    return found


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebook_keeps_the_rules(path):
    assert problems(tool.read(path), path.parent) == []


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_notebook_is_saved_the_way_make_notebooks_saves(path):
    notebook = tool.read(path)
    # Of the metadata, JupyterLab fills in the kernel's version as soon as a notebook is opened.
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert tool.clean(notebook).cells == notebook.cells, f"save it with: make notebooks ARGS=notebooks/{path.name}"


READERS = [path for path in NOTEBOOKS if path.parent.name != "solutions"]


@pytest.mark.parametrize("path", named(READERS))
def test_every_notebook_is_generated_from_its_solutions(path):
    assert tool.solutions_path(path).exists()
    assert copy_problems(tool.read(path), tool.read(tool.solutions_path(path))) == []


def test_every_solution_has_its_notebook_and_the_list_holds_the_book_alone():
    solutions = {path.name for path in NOTEBOOKS if path.parent.name == "solutions"}
    assert solutions == {path.name for path in READERS} and len(READERS) >= 8


@pytest.mark.parametrize("path", named(READERS))
def test_every_exercise_has_a_hint_that_unfolds(path):
    cells = tool.read(path).cells
    exercises = [i for i, cell in enumerate(cells) if tool.has_tag(cell, "exercise")]
    assert len(exercises) >= 2
    for i in exercises:
        above = next(cell for cell in reversed(cells[:i]) if cell.cell_type == "markdown")
        assert "**Exercise" in above.source and "<details><summary>Hint</summary>" in above.source, i


def lab_problems(cells: list[nbformat.NotebookNode]) -> list[str]:
    """Labs whose run has no question before it, or no explanation after it."""
    found, asked = [], 0
    labs = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and re.search(r"\bLab\(", cell.source)]
    for lab, after in zip(labs, [*labs[1:], len(cells)], strict=True):
        run = next((i for i in range(lab, after) if cells[i].cell_type == "code" and ".run(" in cells[i].source), after)

        def said(word: str, first: int, last: int) -> list[int]:
            return [
                i for i in range(first, last) if cells[i].cell_type == "markdown" and f"**{word}" in cells[i].source
            ]

        explained = said("Explain", run, after)
        if not said("Predict", asked, run):
            found.append(f"cell {lab}: no prediction before it runs")
        if not explained:
            found.append(f"cell {lab}: nothing explains it")
        asked = explained[0] if explained else run
    return found


@pytest.mark.parametrize("path", named(READERS))
def test_every_lab_is_predicted_before_and_explained_after(path):
    assert lab_problems(tool.read(path).cells) == []


def test_a_lab_without_a_question_or_an_answer_is_found():
    lab = [code("Lab(RACE)"), code("lab.run(block=True)")]
    assert lab_problems([text("**Predict.** A?"), *lab, text("**Explain.** B.")]) == []
    assert lab_problems([*lab, text("**Predict.** A?"), text("**Explain.** B.")]) == [
        "cell 0: no prediction before it runs"
    ]
    assert lab_problems([text("**Predict.** A?"), *lab]) == ["cell 1: nothing explains it"]


@pytest.mark.parametrize("path", named([path for path in NOTEBOOKS if path not in READERS]))
def test_every_solution_has_its_reason(path):
    cells = tool.read(path).cells
    solved = [cell.cell_type for cell in cells if tool.has_tag(cell, "solution")]
    assert solved == ["code", "markdown"] * (len(solved) // 2)
    reasons = [cell.source for cell in cells if cell.cell_type == "markdown" and tool.has_tag(cell, "solution")]
    assert all(source.startswith("**Why") for source in reasons)


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_long_tables_unfold(path):
    for number, cell in enumerate(tool.read(path).cells):
        for output in cell.get("outputs", []):
            page = output.get("data", {}).get("text/html", "")
            shown = re.sub(r"<details.*?</details>", "", page, flags=re.DOTALL)
            rows = [row for row in re.findall(r"<tr.*?</tr>", shown, flags=re.DOTALL) if "<td" in row]
            assert len(rows) <= 12, number


@pytest.mark.parametrize("path", named(READERS))
def test_every_notebook_ends_with_what_it_cannot_show_and_the_next_question(path):
    last = "\n".join(cell.source for cell in tool.read(path).cells[-2:])
    assert "**What this cannot show.**" in last
    assert "**The next question" in last or "## Where next?" in last


@pytest.mark.parametrize("path", named(NOTEBOOKS))
def test_a_claim_that_the_text_names_has_its_row(path):
    cells = nbformat.read(path, as_version=4).cells
    claims = {row["id"] for row in json.loads((tool.ROOT / "figures/claims.json").read_text(encoding="utf-8"))}
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    rows = "\n".join(texts(cell) for cell in cells if cell.cell_type == "code")
    assert [name for name in re.findall(r"`(\w+\.\w+)`", prose) if name in claims and name not in rows] == []


def test_no_notebook_leaves_a_report_behind():
    cells = [cell for path in NOTEBOOKS for cell in tool.read(path).cells if "bench.save(" in cell.source]
    assert len(cells) == 2 and all("shutil.move(report, place.name)" in cell.source for cell in cells)
    assert all(re.fullmatch(r"workbench-[\w-]+-round-5\.html\n", cell.outputs[0].text) for cell in cells)
    assert not list((tool.ROOT / "notebooks").rglob("workbench-*"))


def copy_problems(student: nbformat.NotebookNode, solutions: nbformat.NotebookNode) -> list[str]:
    """Where a reader's copy differs from what its solutions generate, and solutions that are none."""

    def content(notebook):
        return [(cell.id, cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]

    found = [] if content(tool.student_copy(solutions)) == content(student) else ["out of step: run make notebooks"]
    solved = [c for c in solutions.cells if c.cell_type == "code" and tool.has_tag(c, "solution")]
    return found + [f"{cell.id} is not solved" for cell in solved if cell.source == cell.metadata.stub]


def notebook_of(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A notebook of cells whose ids are their places."""
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    return nbformat.v4.new_notebook(cells=list(cells), metadata=tool.METADATA)


def code(source: str, *tags: str, count: int | None = 1, outputs: tuple = ()) -> nbformat.NotebookNode:
    """An executed code cell."""
    metadata = {"tags": list(tags)} if tags else {}
    return nbformat.v4.new_code_cell(source, execution_count=count, outputs=list(outputs), metadata=metadata)


def text(source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["in a file"])
SVG = nbformat.v4.new_output("display_data", data={"image/svg+xml": "<svg/>", "text/plain": "<Figure>"})
LONG = nbformat.v4.new_output("stream", name="stdout", text="short\n" + "word " * 30)
PRINTED_PATH = nbformat.v4.new_output("stream", name="stdout", text="saved in /home/me/figures")


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (code("x = 1"), None),
        (code("raise ValueError('no')", "raises-exception", outputs=(ERROR,)), None),
        (text("[Makefile](../Makefile), [a site](https://example.org/x), [below](#below), 1/2 and and/or"), None),
        (code("x = 1", count=None), "not executed"),
        (code("", count=None), "empty"),
        (code("x = 1", outputs=(ERROR,)), "not tagged raises-exception"),
        (code("x = 1", "raises-exception"), "does not raise"),
        (code("x = 1", "hide"), "unknown tags ['hide']"),
        (code("x = 1\n" * 26), "longer than 25 lines"),
        (code("# an interactive panel: its Output is below"), None),
        (code("for i in tqdm(range(3)): pass"), "uses tqdm"),
        (code("out = widgets.Output()"), "uses Output("),
        (code("interact(f, x=3)"), "uses interact("),
        (code("plot()", outputs=(SVG,)), "SVG"),
        (code("print(found)", outputs=(LONG,)), "a line of more than 120 characters"),
        (code("load('/home/me/data')"), "absolute path"),
        (code("save()", outputs=(PRINTED_PATH,)), "absolute path"),
        (text("see [this](missing.png)"), "missing.png"),
        (text("<img src='missing.png'>"), "missing.png"),
        (text("![outside](../../../../etc/passwd)"), "passwd"),
    ],
)
def test_the_rules_find_what_they_forbid_and_nothing_else(cell, problem):
    found = problems(notebook_of(cell), tool.ROOT / "notebooks")
    if problem is None:
        assert found == []
    else:
        assert len(found) == 1 and problem in found[0]


def solution(source: str, stub: str) -> nbformat.NotebookNode:
    """An executed solution with the stub that readers get."""
    cell = code(source, "solution")
    cell.metadata["stub"] = stub
    return cell


def test_a_readers_copy_has_stubs_no_reasons_and_links_from_one_folder_up():
    reason = text("**Why.** Because.")
    reason.metadata["tags"] = ["solution"]
    words = text(
        "[next](../01.ipynb), ![p](../../figures/p.png), <img src='../../figures/q.png'>, [site](https://a.b/../c)"
    )
    written = notebook_of(words, solution("answer = 42", "answer = ..."), reason, code("check(answer)"))
    student = tool.student_copy(written)
    expected = "[next](01.ipynb), ![p](../figures/p.png), <img src='../figures/q.png'>, [site](https://a.b/../c)"
    assert [cell.source for cell in student.cells] == [expected, "answer = ...", "check(answer)"]
    assert student.cells[1].metadata == {"tags": ["exercise"]} and student.cells[1].execution_count is None
    assert copy_problems(student, written) == []
    student.cells[0].source = "other words"
    assert copy_problems(student, written) == ["out of step: run make notebooks"]


def test_an_exercise_without_a_solution_is_found():
    written = notebook_of(solution("answer = ...", "answer = ..."))
    assert copy_problems(tool.student_copy(written), written) == ["cell-0 is not solved"]


def test_refresh_generates_the_readers_copy(tmp_path):
    (tmp_path / "solutions").mkdir()
    written = notebook_of(solution("answer = 42", "answer = ..."), code("print(answer is ...)"))
    nbformat.write(written, tmp_path / "solutions" / "n.ipynb")
    for path in (tmp_path / "solutions" / "n.ipynb", tmp_path / "n.ipynb"):
        assert tool.main([str(path)]) == 0
    kept, student = tool.read(tmp_path / "solutions" / "n.ipynb"), tool.read(tmp_path / "n.ipynb")
    assert kept.cells[0].metadata.stub == "answer = ..."
    assert [n.cells[1].outputs[0].text for n in (kept, student)] == ["False\n", "True\n"]


def test_nbval_overlooks_the_state_of_every_widget_and_of_nothing_else():
    (widget, said), _ = tool.replacements()
    bases = {"DOMWidget", "Output", "interactive"}  # the last two are forbidden in notebooks
    classes = [c for c in vars(ipywidgets).values() if isinstance(c, type) and issubclass(c, ipywidgets.DOMWidget)]
    missed = {c.__name__ for c in classes if re.sub(widget, said, f"{c.__name__}(value=3,\nmax=5)") != said} - bases
    assert len(classes) > 30 and missed == set()
    for kept in ("Settings(lr=0.1)", "Image", "a Text(value=1) b", "HTML"):
        assert re.sub(widget, said, kept) == kept


# Executed once with the tool, then compared by nbval.
CELLS = (
    "import sys, warnings\nprint(round(1 / 3, 2))",
    "warnings.warn('for stderr')\nprint('one')\nprint('to stderr', file=sys.stderr)\nprint('two')",
    "import random\nimport ipywidgets as widgets\nwidgets.HBox([widgets.IntSlider(random.randrange(100))])",
    "import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])",
    "raise ValueError('on purpose')",
    "import http.server, os, threading, urllib.request\n"
    "server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
    "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
    "try:\n    urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}', timeout=5)\n"
    "except urllib.error.URLError:\n    print('no network')\n"
    "print(os.environ['FEDLAB_SIZE'], os.listdir(os.environ['FEDLAB_DATA']))",
)


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook saved by the tool, and what the tool printed."""
    path = tmp_path_factory.mktemp("notebooks") / "sample.ipynb"
    notebook = notebook_of(*(code(source, count=None) for source in CELLS))
    notebook.cells[4].metadata["tags"] = ["raises-exception"]
    notebook.metadata = {"kernelspec": {"name": "mine", "display_name": "Mine"}, "widgets": {}}
    nbformat.write(notebook, path)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        # Notebooks that this process has tested may have left caches in the usual one.
        patch.setattr(tool, "empty_folder", lambda: SimpleNamespace(name=folder))
        assert tool.main([str(path)]) == 0
        yield path


def test_what_is_saved_reads_well_without_a_kernel(executed):
    notebook = tool.read(executed)
    assert notebook.metadata == tool.METADATA
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4, 5, 6]
    outputs = [cell.outputs for cell in notebook.cells]
    assert [output.text for output in outputs[1]] == ["one\ntwo\n"]
    assert outputs[2][0].data == {"text/plain": "[interactive: run this cell in JupyterLab to use it]"}
    assert set(outputs[3][0].data) == {"image/png", "text/plain"}
    assert outputs[4][0].traceback == ["ValueError: on purpose"]
    assert outputs[5][0].text == "no network\nquick []\n"
    assert tool.clean(notebook) == notebook and problems(notebook, executed.parent) == []


def test_saving_again_changes_no_byte(executed):
    before = executed.read_bytes()
    assert tool.main([str(executed)]) == 0
    assert executed.read_bytes() == before


def test_nbval_passes_what_the_tool_saved_and_nothing_else(executed):
    changed = tool.read(executed)
    changed.cells = [copy.deepcopy(changed.cells[i]) for i in (0, 2, 0, 0)]
    for place, (cell, saved) in enumerate(zip(changed.cells, ("0.34", None, "0.34", "0.60"), strict=True)):
        cell.id = f"changed-{place}"
        if saved:
            cell.outputs[0].text = f"{saved}\n"
    for cell in changed.cells[2:]:
        cell.metadata.tags = ["trained"]
    nbformat.write(changed, executed.with_name("changed.ipynb"))
    command = [sys.executable, "-m", "pytest", "-c", "pyproject.toml", "-p", "conftest", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, "-rf", executed.parent], cwd=tool.ROOT, capture_output=True, text=True)
    found = re.findall(r"^FAILED (\S+ \S+)", run.stdout, flags=re.MULTILINE)
    assert found == ["changed.ipynb::Cell 0", "changed.ipynb::Cell 3"], run.stdout
    assert "2 failed, 8 passed" in run.stdout


def test_of_trained_numbers_the_fractions_alone_are_compared_with_a_tolerance():
    saved = "IID  30.3 rounds; 3 of 5 (best 0.84)\n"
    assert as_saved(saved, "IID  24.0 rounds; 3 of 5 (best 0.80)\n") == as_saved(saved, saved) == saved
    assert as_saved("at  9.8", "at 10.2") == "at  9.8"
    for other in (
        "IID  30.3 rounds; 4 of 5 (best 0.84)\n",
        "IID  30.3 rounds; 3 of 5 (best 0.60)\n",
        "IID\n",
        saved[:-2],
    ):
        assert as_saved(saved, other) == other


def test_a_notebook_that_raises_is_not_saved(tmp_path, capsys):
    path = tmp_path / "raises.ipynb"
    nbformat.write(notebook_of(code("1 / 0", count=None)), path)
    before = path.read_bytes()
    assert tool.main([str(path)]) == 1
    assert path.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_check_saves_nothing(tmp_path):
    path = tmp_path / "plain.ipynb"
    nbformat.write(notebook_of(code("print(1)", count=None)), path)
    before = path.read_bytes()
    assert tool.main(["--check", str(path)]) == 0
    assert path.read_bytes() == before


def test_the_slowest_cell_is_found(tmp_path):
    notebook = notebook_of(
        code("1", count=None), code("import time\ntime.sleep(0.5)", count=None), code("2", count=None)
    )
    _, timing = tool.execute(notebook, tmp_path)
    assert timing.slowest == 1 and 0.5 <= timing.slowest_seconds <= timing.total


STUDY = ("07-01", "07-04", "07-08", "07-09", "07-10", "07-11", "07-17", "07-30")
"""Of notebook 07: the study, and the cells that define what it needs."""


def test_the_study_of_a_notebook_runs_as_a_file_of_its_own(tmp_path):
    cells = {cell.id: cell.source for cell in tool.read(tool.ROOT / "notebooks/solutions/07_your_own.ipynb").cells}
    source = re.sub(r"\.run\(\d+\)", ".run(1)", "\n".join(cells[name] for name in STUDY))
    (tmp_path / "my_study.py").write_text(source, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(tool.ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "my_study.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^(shown|refuted|undecided) - median minus mean, 3 of 10 lie: [-+]\d", run.stdout, re.MULTILINE)
    assert [path.name for path in tmp_path.iterdir()] == ["my_study.py"]
