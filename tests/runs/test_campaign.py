"""A short slice of `make faults`: what can go wrong is tried, and nothing of it is silent."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tools.faults.calls import calls
from tools.faults.commands import commands
from tools.faults.corruptions import corruptions
from tools.faults.disk import disk
from tools.faults.growth import growth
from tools.faults.kills import ENGINES, _outcome, interrupts, kills
from tools.faults.small import noted, run_on
from tools.faults.table import Table


def check(table: Table) -> None:
    assert table.bad == 0, f"\n{table}\n" + "\n".join(table.examples)


def test_damaged_files_are_never_read_silently() -> None:
    table = corruptions(160, seed=1)
    check(table)
    assert sum(counts.total() for counts in table.counts.values()) == 160
    assert table.counts["saved run"]["clear"] > 30 and table.counts["kept result"]["clear"] > 20


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_runs_stand_at_a_whole_round() -> None:
    table = kills(4, seed=1)
    check(table)
    assert sum(counts["sound"] for name, counts in table.counts.items() if name.startswith("kill of")) == 4


@pytest.mark.skipif(not hasattr(signal, "SIGKILL") or "ray" not in ENGINES, reason="needs SIGKILL and Ray")
def test_a_killed_run_of_ray_stands_at_a_whole_round_and_leaves_no_process() -> None:
    table = kills(1, seed=1, engines=("ray",))
    check(table)
    assert table.counts["kill of ray"]["sound"] == table.counts["processes of a killed Ray"]["sound"] == 1


def test_a_run_that_lost_a_saved_round_counts_as_silent(tmp_path: Path) -> None:
    folder, note = tmp_path / "run", tmp_path / "saved"
    run_on(folder, 2, note=note)
    assert noted(note) == 2 and _outcome(folder, note) == ("sound", "")
    note.write_text("1\n2\n3\n4")  # round 3 was saved; the 4 may have been cut off
    assert _outcome(folder, note) == ("silent", "stands at round 2, round 3 was saved")
    shutil.rmtree(folder)
    assert _outcome(folder, note) == ("silent", "nothing is left, round 3 was saved")
    note.unlink()
    assert _outcome(folder, note) == ("sound", "")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_runs_stand_at_a_whole_round() -> None:
    check(interrupts(8, seed=1, engines=("loop", "threads", "stacked", "auto")))


def test_a_full_disk_loses_nothing() -> None:
    table = disk(6, seed=1)
    check(table)
    assert table.counts["save on a full disk"]["clear"] >= 1


def test_a_checkpoint_writes_as_much_late_as_early() -> None:
    table = growth(60, seed=1)
    assert table.counts["files a round"]["sound"] == table.counts["bytes a round"]["sound"] == 1, table


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory and time of Linux")
def test_calls_with_nonsense_are_refused_by_name() -> None:
    table = calls(600, seed=1)
    check(table)
    assert sum(counts.total() for counts in table.counts.values()) == 600
    assert sum(counts["clear"] for counts in table.counts.values()) > 500


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory and time of Linux")
def test_commands_with_nonsense_are_refused_by_name() -> None:
    table = commands(60, seed=1)
    check(table)
    assert sum(counts["clear"] for counts in table.counts.values()) == 60
