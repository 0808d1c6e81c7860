"""The command `fedlab-core`: run experiments without a notebook, and get the notebooks without a clone.

    fedlab-core run experiment.json --rounds 50 --out runs/x    start it, or go on where it was
    fedlab-core resume runs/x --rounds 100                      go on, here to a later round
    fedlab-core report runs/x                                   one HTML file: curves, costs, settings, data
    fedlab-core check                                           OK or FAIL per package, device and data set
    fedlab-core lab [DEST]                                      copy the notebooks and open them in JupyterLab
    fedlab-core bench                                           time rounds against a plain PyTorch loop

An experiment's file holds what differs from `Experiment()`: `{"dataset": "digits", "settings": {"lr": 0.1}}`.

Exit codes: 0 done, 1 failed, 2 a wrong argument, 130 stopped by Ctrl-C; what was finished is kept.
"""

import argparse
import filecmp
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fedlab_core import files
from fedlab_core.about import INSTALLED, ROOT, version, versions
from fedlab_core.check import refuse, whole
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.round import NonFiniteError
from fedlab_core.settings import Settings

JOB, RUN, REPORT = "job.json", "run", "report.html"
PLACES = ("engine", "device")
"""Settings that say where a run is computed: going on elsewhere is still the run."""


@dataclass(frozen=True)
class Job:
    """What a folder made by `run` is working on: `job.json` in it; the run itself is in `run/`.

    Attributes:
        experiment: what is run.
        rounds: where it ends.
    """

    experiment: Experiment
    rounds: int

    def write(self, folder: Path) -> None:
        """Write it into a folder, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        data = {"experiment": self.experiment.to_json(), "rounds": self.rounds, "versions": versions()}
        files.write(folder / JOB, files.seal(data, indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """Read it back.

        Raises:
            ValueError: the folder holds none, or a damaged one.
        """
        try:
            data = files.parse(files.read(folder / JOB), folder / JOB)
        except FileNotFoundError:
            raise refuse("RUN", str(folder), f"a folder that `fedlab-core run` made, which has a {JOB}") from None
        experiment = experiment_from(data.get("experiment"), folder / JOB)
        return cls(experiment, whole(f"{folder / JOB}: rounds", data.get("rounds"), 0))


def experiment_from(data: Any, path: Path) -> Experiment:
    """An experiment from what differs from `Experiment()`.

    Raises:
        ValueError: an unknown name or a value that is not accepted; the message names the file.
    """
    plain = _known(data, Experiment, f"{path}: ")
    inner = _known(plain.pop("settings", {}), Settings, f"{path}: settings.")
    try:
        return Experiment(**plain, settings=Settings(**inner))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def run(options: argparse.Namespace) -> int:
    """Start the experiment of a file, or go on with it if the folder holds it already."""
    experiment = placed(experiment_from(files.parse(files.read(options.experiment), options.experiment),
                                        options.experiment), options)  # fmt: skip
    out = options.out or Path("runs") / f"{options.experiment.stem}-{experiment.key}"
    if (out / JOB).exists():
        there = Job.read(out).experiment
        if differing := _differing(there, experiment):
            raise refuse("--out", str(out), f"a new folder; this one holds another experiment: {differing}")
    elif out.is_dir() and any(out.iterdir()):
        raise refuse("--out", str(out), "a new or empty folder, or one that `fedlab-core run` made")
    return work(Job(experiment, options.rounds), out)


def resume(options: argparse.Namespace) -> int:
    """Go on with a run."""
    job = Job.read(options.run)
    rounds = job.rounds if options.rounds is None else options.rounds
    return work(Job(placed(job.experiment, options), rounds), options.run)


def report(options: argparse.Namespace) -> int:
    """Write one HTML file about a run that opens anywhere."""
    from fedlab_core.workbench.export import page  # widgets and figures take a second to import
    from fedlab_core.workbench.runs import Run

    job, path = Job.read(options.run), options.out or options.run / REPORT
    shown = Run(loaded(job, options.run), [(0, job.experiment)], goal=job.rounds)
    if not shown.federation.history:
        raise refuse("RUN", str(options.run), "a run that has begun")
    shown.overlaid.append(shown)
    files.write(path, page(shown, [shown], None, whole("--replayed", options.replayed, 0)).encode())
    print(path)
    return 0


def check(options: argparse.Namespace) -> int:
    """Say OK or FAIL for each package, device and data set."""
    return runpy.run_path(str(ROOT / "tools" / "check.py"))["main"](tests=not INSTALLED)


def lab(options: argparse.Namespace) -> int:
    """Copy the notebooks to a folder of the reader's and open them; what the reader has changed is kept."""
    if options.port is not None:
        whole("--port", options.port, 1, 65535)
    kept = copy_notebooks(options.dest)
    print(
        f"notebooks in {options.dest / 'notebooks'}" + (f"; kept as you changed them: {', '.join(kept)}" * bool(kept))
    )
    if options.copy_only:
        return 0
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={options.dest.resolve()}"]
    words.append("--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb")
    words += ["--no-browser"] * options.no_browser + [f"--port={options.port}"] * (options.port is not None)
    words += ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    if os.name != "posix":
        return subprocess.call(words)
    sys.stdout.flush()
    os.execv(sys.executable, words)  # this process becomes the server: what ends one ends the other


def bench(options: argparse.Namespace) -> int:
    """Time rounds against a plain PyTorch loop."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "benchmarks", "--quick", *(["--models", options.models] if options.models else [])]
    return subprocess.call(words, env={**os.environ, "PYTHONPATH": path})


def work(job: Job, out: Path) -> int:
    """Run what is missing of a job, and keep every round."""
    whole("--rounds", job.rounds, 0, 10**9)
    begun = (out / RUN / "run.json").exists()
    federation = loaded(job, out) if begun else job.experiment.build()
    if federation.round > job.rounds:
        raise refuse("--rounds", job.rounds, f">= {federation.round}, which {out} has already")
    job.write(out)
    label = f"{job.experiment.dataset}, {federation.method.name}, {federation.engine.name}"
    try:
        with tqdm(total=job.rounds, initial=federation.round, desc=label, unit="round", disable=None) as line:
            for record in federation.rounds(job.rounds - federation.round, checkpoint=out / RUN):
                line.set_postfix_str(said(record.metrics))
                line.update()
    except KeyboardInterrupt:
        print(f"stopped after round {federation.round}; fedlab-core resume {out} goes on", file=sys.stderr)
        return 130
    print(f"{out}: round {federation.round}, {said(federation.history[-1].metrics)}")
    return 0


def loaded(job: Job, folder: Path) -> Federation:
    """The run of a folder, ready to go on where the job says."""
    settings = job.experiment.settings
    return job.experiment.load(folder / RUN, engine=settings.engine, device=settings.device)


def placed(experiment: Experiment, options: argparse.Namespace) -> Experiment:
    """The experiment, computed where the options say."""
    if options.cluster is not None and options.engine not in (None, "ray"):
        raise refuse("--engine", options.engine, "'ray' where --cluster is given")
    engine = options.engine if options.cluster is None else f"ray:{options.cluster}"
    given = {"engine": engine, "device": options.device}
    return experiment.replace(**{name: value for name, value in given.items() if value is not None})


def said(metrics: Mapping[str, float]) -> str:
    """What a line says of a round."""
    names = [name for name in ("test_accuracy", "test_loss", "train_loss") if name in metrics]
    return ", ".join(f"{name.replace('_', ' ')} {metrics[name]:.3f}" for name in names)


def copy_notebooks(dest: Path) -> list[str]:
    """Copy notebooks, and the records and pictures they show, to `dest`; names of those that were changed there."""
    kept = []
    for source in sorted(p for kind in ("ipynb", "json", "png") for p in ROOT.glob(f"[nf]*/**/*.{kind}")):
        inside = source.relative_to(ROOT)
        if inside.parts[0] not in ("notebooks", "figures") or ".ipynb_checkpoints" in inside.parts:
            continue
        target = dest / inside
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            kept.append(str(inside))
        elif not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return kept


def parser() -> argparse.ArgumentParser:
    """The options of every command."""
    top = argparse.ArgumentParser(
        prog="fedlab-core", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"fedlab_core {version()}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(act: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(act.__name__, help=act.__doc__, description=act.__doc__)
        made.set_defaults(act=act, own=None)
        return made

    made = command(run)
    made.add_argument("experiment", type=Path, metavar="experiment.json")
    made.add_argument("--rounds", type=int, required=True, help="the round to end at")
    made.add_argument("--out", type=Path, help="the run's folder, by default runs/NAME-KEY")
    _add_places(made)
    made = command(resume)
    made.add_argument("run", type=Path, metavar="RUN", help="a folder that `run` made")
    made.add_argument("--rounds", type=int, help="the round to end at, by default that of `run`")
    _add_places(made)
    made = command(report)
    made.add_argument("run", type=Path, metavar="RUN", help="a folder that `run` made")
    made.add_argument("--out", type=Path, help=f"the file to write, by default {REPORT} in the folder")
    made.add_argument(
        "--replayed", type=int, default=12, help="rounds trained once more to show updates, 12; 0 for none"
    )
    _add_own(made)
    command(check)
    made = command(lab)
    made.add_argument("dest", type=Path, nargs="?", default=Path("fedlab-lab"), metavar="DEST")
    made.add_argument("--copy-only", action="store_true", help="copy, and open nothing")
    made.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")
    made.add_argument("--port", type=int)
    made = command(bench)
    made.add_argument("--models", help="2nn,cnn,resnet20,lstm,vit or some of them")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        if options.own is not None:
            if not options.own.is_file():
                raise refuse("--with", str(options.own), "a Python file")
            runpy.run_path(str(options.own))
        return options.act(options)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, NonFiniteError) as error:
        print(f"fedlab-core {options.act.__name__}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) and not isinstance(error, NonFiniteError) else 1


def _add_places(to: argparse.ArgumentParser) -> None:
    to.add_argument("--engine", help="loop, threads, stacked, ray or auto; by default the experiment's")
    to.add_argument("--cluster", help="address of a Ray cluster, such as 10.0.0.1:6379")
    to.add_argument("--device", help="a torch device such as cuda")
    _add_own(to)


def _add_own(to: argparse.ArgumentParser) -> None:
    to.add_argument("--with", dest="own", type=Path, metavar="FILE.py", help="runs a file that registers names first")


def _known(data: Any, kind: type, where: str) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    if not isinstance(data, dict):
        raise ValueError(f"{where.rstrip(': .')}: {data!r}, accepted: an object with some of {names}")
    if unknown := [name for name in data if name not in names]:
        raise ValueError(f"{where}{unknown[0]}={data[unknown[0]]!r}, accepted: {names}")
    return dict(data)


def _differing(one: Experiment, other: Experiment) -> str:
    """What differs between two experiments, where they are computed left out; "" for nothing."""
    plain = [{**e.to_json(), **e.to_json()["settings"]} for e in (one, other)]
    names = [name for name in plain[0] if name not in (*PLACES, "settings") and plain[0][name] != plain[1][name]]
    return ", ".join(f"{name}={plain[0][name]!r} there, {plain[1][name]!r} here" for name in names)


if __name__ == "__main__":
    sys.exit(main())
