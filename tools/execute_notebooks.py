"""`make notebooks`: execute the notebooks and save them the way they are committed (ARGS="--check": save nothing).

What is saved is the same every time the outputs are: outputs without stderr, without widget models (their ids are
random, and dead for a reader) and without tracebacks; cells with their tags only; the kernel called python3. A notebook
that raises is not saved. `notebooks/solutions/X.ipynb` is written by hand; `notebooks/X.ipynb` is generated from it:
code cells tagged `solution` give way to their stub, text cells tagged `solution` are left out.
"""

import argparse
import contextlib
import copy
import functools
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
SANITISE = ROOT / "tests" / "nbval_sanitise.cfg"
CELL_TIMEOUT = 120  # seconds, the same as --nbval-cell-timeout in pyproject.toml
FRACTION = re.compile(r"[-+]?\d+\.\d+")
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook_paths(folder: Path = ROOT / "notebooks") -> list[Path]:
    """Every notebook under the folder, solutions first, JupyterLab's checkpoints left out."""
    found = (p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    return sorted(found, key=lambda p: (p.parent.name != "solutions", p))


@functools.cache
def empty_folder() -> tempfile.TemporaryDirectory:
    """A folder that lasts as long as this process: kernels started in a reader's environment outlive it."""
    return tempfile.TemporaryDirectory(prefix="fedlab-no-data-")


@contextlib.contextmanager
def reader_environment() -> Iterator[None]:
    """The environment notebooks are executed and checked in: quick size, one thread, an empty data root, no network.

    The network is cut for whatever obeys the proxy variables (urllib, and so torchvision's downloads; requests, httpx):
    they name a closed port.
    """
    closed = "http://127.0.0.1:9"
    proxies = {name: closed for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy")}
    values = {"FEDLAB_SIZE": "quick", "FEDLAB_DATA": empty_folder().name, "OMP_NUM_THREADS": "1"}
    values |= proxies | {name.upper(): closed for name in proxies} | {"no_proxy": "", "NO_PROXY": ""}
    with mock.patch.dict(os.environ, values):
        yield


def replacements() -> list[tuple[str, str]]:
    """The (regex, replacement) pairs under which nbval compares, from `tests/nbval_sanitise.cfg`."""
    return re.findall(r"^regex: (.*)$\n^replace: (.*)$", SANITISE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def clean_outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell as they are committed; compares equal with the originals under nbval's strict mode."""
    cleaned: list[NotebookNode] = []
    for original in outputs:
        output = copy.deepcopy(original)
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            if cleaned and cleaned[-1].output_type == "stream":  # how stdout is cut into messages depends on timing
                cleaned[-1].text += output.text
                continue
        if output.output_type == "error":
            output.traceback = [f"{output.ename}: {output.evalue}"]
        if WIDGET_VIEW in output.get("data", {}):
            del output.data[WIDGET_VIEW]
            for regex, replacement in replacements():
                output.data["text/plain"] = re.sub(regex, replacement, output.data["text/plain"])
        cleaned.append(output)
    return cleaned


def clean(notebook: NotebookNode) -> NotebookNode:
    """A copy of an executed notebook as it is committed."""
    cleaned = copy.deepcopy(notebook)
    cleaned.metadata = nbformat.from_dict(METADATA)
    for cell in cleaned.cells:
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in ("tags", "stub") if cell.metadata.get(k)})
        if cell.cell_type == "code":
            cell.outputs = clean_outputs(cell.outputs)
    return cleaned


@dataclass(frozen=True)
class Timing:
    """Seconds of one execution, and the slowest cell by its index among all cells."""

    total: float
    slowest: int
    slowest_seconds: float


def execute(notebook: NotebookNode, folder: Path, timeout: float = CELL_TIMEOUT) -> tuple[NotebookNode, Timing]:
    """Execute a copy of a notebook with `folder` as working directory.

    Returns:
        The executed copy as it is committed, and its timing.

    Raises:
        CellExecutionError, CellTimeoutError, DeadKernelError: a cell raised (and is not tagged raises-exception), ran
            longer than `timeout` seconds, or killed the kernel.
    """
    executed = copy.deepcopy(notebook)
    started: dict[int, float] = {}
    seconds: dict[int, float] = {}
    client = NotebookClient(
        executed,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        on_cell_execute=lambda cell, cell_index: started.update({cell_index: time.perf_counter()}),
        on_cell_executed=lambda cell, cell_index, execute_reply: seconds.update(
            {cell_index: time.perf_counter() - started[cell_index]}
        ),
    )
    begin = time.perf_counter()
    with reader_environment():
        client.execute()
    slowest = max(seconds, key=lambda index: seconds[index], default=0)
    return clean(executed), Timing(time.perf_counter() - begin, slowest, seconds.get(slowest, 0.0))


def as_saved(saved: str, printed: str) -> str:
    """What a cell printed, in the saved words where only fractions differ, each by at most 0.1 or a quarter.

    Training amplifies a last bit, and that is another on another processor. Whole numbers and words have to agree.
    """
    words = [" ".join(FRACTION.sub("?", text).split()) for text in (saved, printed)]
    pairs = zip(FRACTION.findall(saved), FRACTION.findall(printed), strict=False)
    near = all(math.isclose(float(one), float(two), rel_tol=0.25, abs_tol=0.1) for one, two in pairs)
    return saved if words[0] == words[1] and near else printed


def has_tag(cell: NotebookNode, tag: str) -> bool:
    """Whether a cell carries the tag."""
    return tag in cell.metadata.get("tags", [])


def solutions_path(path: Path) -> Path:
    """Where the solutions of a notebook are: the notebook that is written by hand."""
    return path.parent / "solutions" / path.name


def student_copy(solutions: NotebookNode) -> NotebookNode:
    """The notebook for readers: a stub in place of each solution, without reasons, and with links from one folder up.

    Raises:
        KeyError: a code cell tagged `solution` without a stub in its metadata.
    """
    result = copy.deepcopy(solutions)
    result.cells = [c for c in result.cells if c.cell_type == "code" or not has_tag(c, "solution")]
    for cell in result.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"""(\]\(|(?:src|href)=["'])\.\./""", r"\1", cell.source)
        elif has_tag(cell, "solution"):
            cell.source = cell.metadata.pop("stub")
            cell.metadata.tags = ["exercise" if tag == "solution" else tag for tag in cell.metadata.tags]
            cell.outputs, cell.execution_count = [], None
    return result


def read(path: Path) -> NotebookNode:
    """A notebook from its file, in the current format."""
    return nbformat.read(path, as_version=4)


def refresh(path: Path, save: bool = True) -> Timing:
    """Execute the notebook at `path` and, if asked to, save it; one with solutions is first generated from them.

    Raises:
        as `execute`; nothing is saved then.
    """
    written = solutions_path(path)
    notebook = student_copy(read(written)) if written.exists() else read(path)
    executed, timing = execute(notebook, path.parent)
    if save:
        nbformat.validate(executed)
        text = nbformat.writes(executed)
        path.write_text(text if text.endswith("\n") else text + "\n", encoding="utf-8")
    return timing


def main(arguments: list[str] | None = None) -> int:
    """Command line: the number of notebooks that failed, as the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to execute (default: all)")
    parser.add_argument("--check", action="store_true", help="execute only, save nothing")
    options = parser.parse_args(arguments)
    failed = 0
    for path in options.notebooks or notebook_paths():
        print(f"{path.relative_to(path.parents[1])!s:44} ", end="", flush=True)
        try:
            timing = refresh(path, save=not options.check)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            failed += 1
            print(f"FAIL, not saved\n{error}")
        else:
            print(f"{timing.total:6.1f} s   slowest cell {timing.slowest}: {timing.slowest_seconds:.1f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
