"""A short slice of `make faults`: what can go wrong is tried, and nothing of it is silent."""

import json
import os
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlab_core.about import ROOT
from fedlab_core.pretraining import kept
from tools.faults import corruptions as corruption
from tools.faults.calls import Late, calls
from tools.faults.commands import commands
from tools.faults.corruptions import corruptions
from tools.faults.disk import disk
from tools.faults.growth import growth
from tools.faults.kills import ENGINES, _outcome, interrupts, kills
from tools.faults.small import noted, run_on, small_run
from tools.faults.table import Table


def check(table: Table) -> None:
    assert table.bad == 0, f"\n{table}\n" + "\n".join(table.examples)


def test_damaged_files_are_never_read_silently() -> None:
    table = corruptions(160, seed=1)
    check(table)
    assert sum(counts.total() for counts in table.counts.values()) == 160
    assert table.counts["saved run"]["clear"] > 30 and table.counts["kept result"]["clear"] > 20

    assert table.counts["start"]["clear"] > 20


def test_an_error_has_to_name_the_damaged_file_and_a_hang_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def readers(read: Callable[[Path], str]) -> None:
        monkeypatch.setitem(corruption.KINDS, "kept result", (corruption._record, read))

    def other(folder: Path) -> str:
        raise ValueError("run.json is damaged")

    def late(folder: Path) -> str:
        raise Late("no answer")

    for read, outcome in ((other, "unclear"), (late, "crash"), (lambda folder: "something else", "silent")):
        readers(read)
        assert corruption._outcome("kept result", Path(), "whole", "bit", ["accuracy.json"])[0] == outcome


def test_damage_that_changes_nothing_is_not_counted(tmp_path: Path) -> None:
    file = tmp_path / "one"
    for seed in range(50):
        file.write_bytes(b"content")
        how, changed = corruption._damage(tmp_path, random.Random(seed))
        assert changed == ([] if file.is_file() and file.read_bytes() == b"content" else ["one"])
        assert how != "swapped" or not changed


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_damaged_start_is_learnt_again_with_a_warning_that_names_it(suffix: str, tmp_path: Path) -> None:
    kept.write([tmp_path], "key", kept.Start("mine", small_run().state, {"kind": "test"}, 3, 100))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kept.read(tmp_path / "key", "mine") is not None
        assert kept.read(tmp_path / "other", "mine") is None, "what was never there is not damaged"
    file = (tmp_path / "key").with_suffix(suffix)
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.warns(RuntimeWarning, match=rf"key\{suffix}: damaged .*; the start 'mine' is learnt again"):
        assert kept.read(tmp_path / "key", "mine") is None


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


def test_the_page_on_security_says_how_much_the_recorded_calls_reach() -> None:
    recorded = json.loads((ROOT / "figures" / "faults.json").read_text(encoding="utf-8"))["calls"]
    reached = recorded["notes"][0].partition(";")[0]
    words = f"Its {recorded['asked']:,} calls reach {reached};"
    assert words in (ROOT / "SECURITY.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory and time of Linux")
def test_commands_with_nonsense_are_refused_by_name() -> None:
    table = commands(60, seed=1)
    check(table)
    assert sum(counts["clear"] for counts in table.counts.values()) == 60
