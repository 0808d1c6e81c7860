"""The command line: every command with a small run, what it says of wrong arguments, and its exit codes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedlab_core
from benchmarks import tasks
from fedlab_core import about, cli
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.settings import Settings
from tools.check import project

SMALL = {"dataset_options": {"examples": 200}, "clients": 4, "settings": {"fraction": 0.5, "batch_size": 20}}


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a small experiment, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


def command(*words: Any) -> int:
    return cli.main([str(word) for word in words])


def run_of(folder: Path) -> Federation:
    return cli.loaded(cli.Job.read(folder), folder)


def test_a_file_holds_what_differs_and_stands_for_the_experiment(experiment: Path) -> None:
    made = cli.experiment_from(SMALL, experiment)
    assert made == Experiment(**{**SMALL, "settings": Settings(fraction=0.5, batch_size=20)})
    assert cli.experiment_from(made.to_json(), experiment) == made


def test_run_resume_and_the_command_given_twice_equal_one_run(experiment: Path) -> None:
    assert command("run", experiment, "--rounds", 1, "--out", "a", "--engine", "loop") == 0
    assert command("run", experiment, "--rounds", 2, "--out", "a", "--engine", "loop") == 0
    assert command("resume", "a", "--rounds", 3, "--engine", "threads") == 0
    assert command("resume", "a") == 0  # is there already
    straight = cli.experiment_from(SMALL, experiment).replace(engine="loop").build().run(3)
    assert run_of(Path("a")).history == straight.history and run_of(Path("a")).round == 3
    assert cli.Job.read(Path("a")).experiment.settings.engine == "threads"


def test_what_was_finished_is_kept_when_it_is_stopped(
    experiment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    advance = Federation.rounds

    def stopped(self: Federation, count: int, **options: Any) -> Iterator[Any]:
        for record in advance(self, count, **options):
            yield record
            if record.round == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(Federation, "rounds", stopped)
    assert command("run", experiment, "--rounds", 4, "--out", "a") == 130
    assert "stopped after round 2; fedlab-core resume a goes on" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(experiment.parent)
    assert command("resume", "a") == 0 and run_of(Path("a")).round == 4


def test_the_report_is_one_file_with_everything_in_it(experiment: Path) -> None:
    command("run", experiment, "--rounds", 2, "--out", "a")
    assert command("report", "a") == 0
    page = Path("a/report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and 'src="http' not in page and "<svg" in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert [record["round"] for record in data[0]["records"]] == [0, 1, 2]


def test_things_of_ones_own_are_registered_by_a_file(experiment: Path) -> None:
    own = experiment.parent / "own.py"
    own.write_text(
        "from dataclasses import dataclass\nfrom fedlab_core import register\n"
        "from fedlab_core.methods.fedavg import FedAvg\n\n"
        "@register('method', 'command_line_twin')\n@dataclass(frozen=True)\nclass Twin(FedAvg):\n    name = 'twin'\n"
    )
    experiment.write_text(json.dumps({**SMALL, "method": "command_line_twin"}))
    assert command("run", experiment, "--rounds", 1, "--out", "a", "--with", own) == 0
    assert command("resume", "a", "--rounds", 2, "--with", own) == 0
    assert run_of(Path("a")).method.name == "twin"


@pytest.mark.parametrize(
    ("content", "rounds", "said"),
    [
        ({"modle": "2nn"}, 1, "small.json: modle='2nn', accepted: ['dataset', "),
        ({"settings": {"rate": 1}}, 1, "small.json: settings.rate=1, accepted: ['fraction', "),
        ({"settings": {"epochs": 0}}, 1, "small.json: epochs=0, accepted: "),
        ({"settings": 3}, 1, "small.json: settings: 3, accepted: an object"),
        ([], 1, "small.json: damaged, holds a list, accepted: an object"),
        ({"method": "nobody"}, 1, "'nobody'"),
        (SMALL, -1, "--rounds=-1, accepted: a whole number >= 0"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_accepted(
    experiment: Path, capsys: pytest.CaptureFixture[str], content: Any, rounds: int, said: str
) -> None:
    experiment.write_text(json.dumps(content))
    assert command("run", experiment, "--rounds", rounds, "--out", "a") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("fedlab-core run: ValueError: ") and said in shown and "Traceback" not in shown
    assert not Path("a").exists()


def test_nothing_of_anybody_else_is_written_over(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("")
    assert command("run", experiment, "--rounds", 1, "--out", "mine") == 2
    assert "accepted: a new or empty folder" in capsys.readouterr().err
    command("run", experiment, "--rounds", 2, "--out", "a")
    assert command("resume", "a", "--rounds", 1) == 2
    assert "--rounds=1, accepted: >= 2, which a has already" in capsys.readouterr().err
    experiment.write_text(json.dumps({**SMALL, "settings": {**SMALL["settings"], "lr": 0.5}}))
    assert command("run", experiment, "--rounds", 3, "--out", "a") == 2
    assert "holds another experiment: lr=0.1 there, 0.5 here" in capsys.readouterr().err


def test_missing_files_and_diverging_runs_are_failures(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("run", "nowhere.json", "--rounds", 1) == 1
    assert command("resume", "nowhere") == 2
    experiment.write_text(json.dumps({**SMALL, "settings": {**SMALL["settings"], "lr": 1e30}}))
    assert command("run", experiment, "--rounds", 3, "--out", "a") == 1
    said = capsys.readouterr().err
    assert "nowhere.json" in said and "which has a job.json" in said and "NonFiniteError" in said


def test_a_cluster_is_an_engine(experiment: Path) -> None:
    options = cli.parser().parse_args(["run", "x.json", "--rounds", "1", "--cluster", "10.0.0.1:6379"])
    assert cli.placed(Experiment(), options).settings.engine == "ray:10.0.0.1:6379"
    options.engine = "stacked"
    with pytest.raises(ValueError, match="--engine='stacked', accepted: 'ray' where --cluster is given"):
        cli.placed(Experiment(), options)


def test_the_notebooks_are_copied_and_a_readers_changes_kept(tmp_path: Path) -> None:
    assert command("lab", tmp_path / "mine", "--copy-only") == 0
    first = tmp_path / "mine" / "notebooks" / "00_start_here.ipynb"
    assert first.read_bytes() == (about.ROOT / "notebooks" / first.name).read_bytes()
    assert (tmp_path / "mine" / "figures" / "claims.json").exists()
    assert (tmp_path / "mine" / "notebooks" / "solutions" / first.name).exists()
    first.write_text("{}")
    assert cli.copy_notebooks(tmp_path / "mine") == ["notebooks/00_start_here.ipynb"]
    assert first.read_text() == "{}"


def test_the_smallest_benchmark_times_every_engine(capfd: pytest.CaptureFixture[str]) -> None:
    assert command("bench", "--models", "2nn") == 0
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("2nn ")]
    assert [row[10:42].strip() for row in rows] == list(tasks.ways(tasks.TASKS["2nn"]))
    assert all(float(number) > 0 for row in rows for number in row[42:].split())


def test_check_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("check") in (0, 1)
    assert "torch on cpu" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command("--version")
    assert capsys.readouterr().out == f"fedlab_core {fedlab_core.__version__}\n"
    assert about.versions()["fedlab_core"] == fedlab_core.__version__
    assert about.version("no-such-package-here") == "not installed"


def test_a_saved_run_says_which_version_wrote_it(experiment: Path) -> None:
    command("run", experiment, "--rounds", 1, "--out", "a")
    assert json.loads(Path("a/run/run.json").read_text())["fedlab_core"] == fedlab_core.__version__


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "fedlab_core.cli"], capture_output=True, text=True)
    assert done.returncode == 2 and "COMMAND" in done.stderr
    assert project()["scripts"] == {"fedlab-core": "fedlab_core.cli:main"}
