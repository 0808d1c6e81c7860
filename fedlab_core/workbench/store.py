"""Runs on disk, kept as they go, so that a dead kernel takes nothing along.

runs/                       beside the notebook, or $FEDLAB_RUNS; git ignores it
  20261125-081749-4711/     one panel
    panel.json              its runs: settings by segment, parents, names
    run-0/ run-1/ ...       each as `Federation.save` writes it
"""

import contextlib
import json
import os
import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedlab_core import files
from fedlab_core.check import checked
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.pretraining.kept import Start
from fedlab_core.workbench.catalog import Catalog
from fedlab_core.workbench.runs import Run

MARK = "fedlab_core.workbench"
PANEL = "panel.json"
REST = 19  # that many times the seconds which the last saving took pass before the next: a twentieth of the time


def runs_home() -> Path:
    """Where panels keep their runs: $FEDLAB_RUNS, else `runs` in the working directory, which is the notebook's."""
    return files.expanded("FEDLAB_RUNS", os.environ.get("FEDLAB_RUNS") or "runs").absolute()


@checked
class Store:
    """One panel's folder.

    Args:
        folder: where; made when the first run is kept.
        limit_mib: all panels beside this one may take that much disk together; the oldest are deleted beyond it, but
            for those that are in use.
    """

    def __init__(self, folder: Path, limit_mib: float = 2048.0) -> None:
        self.folder, self.limit_mib = folder, limit_mib
        self._due = 0.0
        self._made = False
        _in_use.add(self)

    def leave(self) -> None:
        """The panel is closed: what it kept may be deleted when there is too much."""
        _in_use.discard(self)

    def keep(self, runs: Sequence[Run], current: Run, *, last: bool) -> None:
        """Saves the run under way if it is time, and always if `last`.

        Raises:
            OSError: the disk is full, or not writable.
            ValueError: something of the run cannot be written, such as a method that has no name.
        """
        if not last and time.perf_counter() < self._due:
            return
        began = time.perf_counter()
        if not self._made:
            self._make()
        current.federation.save(self.folder / f"run-{runs.index(current)}")
        rows = [self._row(run, runs) for run in runs if (self.folder / f"run-{runs.index(run)}").is_dir()]
        _write(self.folder / PANEL, {"made_by": MARK, "saved": time.time(), "process": os.getpid(), "runs": rows})
        now = time.perf_counter()
        self._due = now + REST * (now - began)

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder.parent
        if not (home / ".gitignore").exists() and home.name == "runs":
            files.write(home / ".gitignore", b"*\n")
        others = [folder for folder in earlier(home) if folder != self.folder]
        used = sum(map(_size, others))
        for folder in reversed(others):  # the oldest first
            if used <= self.limit_mib * 2**20:
                break
            if _is_used(folder):
                continue
            used -= _size(folder)
            shutil.rmtree(folder, ignore_errors=True)
        self._made = True

    def _row(self, run: Run, runs: Sequence[Run]) -> dict[str, Any]:
        start = run.origin
        origin = None if start is None else {"name": start.name, "rounds": start.rounds, "bytes": start.bytes}
        return {
            "folder": f"run-{runs.index(run)}",
            "name": run.name,
            "round": run.round,
            "parent": f"run-{runs.index(run.parent)}" if run.parent in runs else None,
            "goal": run.goal,
            "start": origin,
            "plan": [[after, experiment.to_json()] for after, experiment in run.plan],
        }


_in_use: "weakref.WeakSet[Store]" = weakref.WeakSet()


@checked
def new_folder(home: Path | None = None) -> Path:
    """A name for a panel's folder that is not taken."""
    name = time.strftime("%Y%m%d-%H%M%S-") + str(os.getpid())
    home = home or runs_home()
    names = (name if i == 1 else f"{name}-{i}" for i in range(1, 10_000))
    return next(home / n for n in names if not (home / n).exists())


@checked
def earlier(home: Path | None = None) -> list[Path]:
    """Folders of panels, the newest first."""
    found = {file.parent: _content(file.parent) for file in (home or runs_home()).glob(f"*/{PANEL}")}
    written = {folder: content["written"] for folder, content in found.items() if content}
    return sorted(written, key=lambda folder: written[folder], reverse=True)


@checked
def title(folder: Path) -> str:
    """What a menu calls a panel's folder: when, and which runs; its name where it is gone or damaged."""
    if (content := _content(folder)) is None:
        return folder.name
    names = [f"{row['name']} ({row['round']})" for row in content["runs"]]
    when = time.strftime("%d %b %H:%M", time.localtime(content["saved"]))
    return f"{when}: {', '.join(names)}"[:70]


@checked
def bring_back(folder: Path, catalog: Catalog, stop: threading.Event) -> list[Run]:
    """The runs of a panel's folder, forks and all.

    Args:
        catalog: what their names stand for.
        stop: of the panel that they come back to.

    Raises:
        FileNotFoundError: it is no panel's folder.
        ValueError: a damaged file, which is named; or data, partition or model are not those of the run.
    """
    if (content := _content(folder)) is None:
        raise FileNotFoundError(f"folder={str(folder)!r} holds no panel's runs; accepted: one of {earlier()[:5]}")
    runs: list[Run] = []
    by_folder: dict[str | None, Run] = {}
    for row in content["runs"]:
        plan = [(after, Experiment.from_json(data)) for after, data in row["plan"]]
        parts = catalog.build(plan[0][1].replace(start="random"))
        federation = Federation.load(folder / row["folder"], parts.dataset, parts.partition, parts.model)
        run = Run(federation, plan, _start(row["start"]), goal=federation.round, overlaid=runs, stop=stop)
        run.parent = by_folder.get(row["parent"])
        by_folder[row["folder"]] = run
        runs.append(run)
    return runs


def _start(data: dict[str, Any] | None) -> Start | None:
    return None if data is None else Start(data["name"], {}, {}, data["rounds"], data["bytes"])


def _content(folder: Path) -> dict[str, Any] | None:
    """What a panel wrote of its runs, and when; None where no panel did, or where it is damaged or gone meanwhile."""
    try:
        content = json.loads((folder / PANEL).read_text(encoding="utf-8"))
        whole = all({"name", "round"} <= row.keys() for row in content["runs"]) and content["saved"] >= 0
        if whole and content["made_by"] == MARK:
            return {**content, "written": (folder / PANEL).stat().st_mtime}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _is_used(folder: Path) -> bool:
    """Whether a panel of this process or of another one that lives keeps its runs there."""
    import psutil  # comes with ipykernel

    content = _content(folder) or {}
    process = content.get("process")
    if process == os.getpid():
        return any(store.folder == folder for store in list(_in_use))
    try:  # a process that began later has only the same number
        return process is not None and psutil.Process(process).create_time() <= content["written"]
    except psutil.Error:
        return False


def _size(folder: Path) -> int:
    """Bytes of a folder's files; those that another panel deletes meanwhile count nothing."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _write(file: Path, content: dict[str, Any]) -> None:
    files.write(file, json.dumps(content).encode())
