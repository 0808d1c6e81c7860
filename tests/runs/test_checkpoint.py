"""Saved runs: equal after loading, complete after a kill, clear when damaged."""

import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import equal, small_data, small_federation, split

from fedlab_core.federation import Federation
from fedlab_core.methods.client import FedProx, Scaffold
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import build_method
from fedlab_core.methods.saving import method_from_json, method_to_json
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings

ROUNDS = 12


def fresh() -> Federation:
    """A run with everything that a checkpoint has to hold: sampling, server and client memories, local statistics."""
    options = {"fraction": 0.5, "batch_size": 4, "norm": "batch", "batch_norm": "local"}
    return small_federation(split(15, 15, 15, 15), Scaffold(), **options)


def load(folder: Path) -> Federation:
    federation = fresh()
    return Federation.load(folder, federation.dataset, federation.partition, federation.model)


def run_on(folder: Path) -> None:
    """Begins a run in a folder or takes up what is there, and goes on to the last round."""
    federation = load(folder) if (folder / "run.json").exists() else fresh()
    for record in federation.rounds(ROUNDS - federation.round, checkpoint=folder):
        folder.with_suffix(".saved").write_bytes(bytes(record.round))  # one byte a round: a kill leaves no other number


@pytest.fixture(scope="module")
def straight() -> Federation:
    return fresh().run(ROUNDS)


def test_a_loaded_run_is_the_saved_one_and_goes_on_as_if_never_saved(tmp_path: Path, straight: Federation) -> None:
    half = fresh().run(7)
    half.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.history == half.history and equal(loaded.state, half.state)
    loaded.run(ROUNDS - 7)
    assert loaded.history == straight.history and equal(loaded.state, straight.state)
    assert equal(loaded.state_at(3), straight.state_at(3))
    assert equal(loaded.client_state(2), straight.client_state(2))


def test_a_run_of_another_memory_layout_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    data, partition = small_data(40), split(20, 20)
    model = build_model("small_cnn", data.input_shape, data.num_classes, generator(0, "initial weights"), norm="batch")
    settings = Settings(1.0, batch_size=5, batch_norm="average", channels_last=True)
    straight = Federation(data, partition, model, settings).run(3)
    Federation(data, partition, model, settings).run(2).save(tmp_path)
    loaded = Federation.load(tmp_path, data, partition, model).run(1)
    assert loaded.history == straight.history and equal(loaded.state, straight.state)


def test_a_fork_is_saved_with_its_past(tmp_path: Path) -> None:
    fork = fresh().run(5).fork("fork", at=3, method=FedAvg(), batch_norm="average", lr=0.1).run(2)
    fork.save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.parent == ("run", 3) and loaded.name == "fork" and loaded.segments == fork.segments
    fork.rewind(2)
    loaded.rewind(2)
    assert equal(loaded.run(2).state, fork.run(2).state)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(tmp_path: Path, straight: Federation) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fedlab_core.federation", "pytest", "torch._dynamo"])  # a child starts at once
    draws, kills = random.Random(0), 0
    for attempt in range(20):
        folder = tmp_path / f"run {attempt}"
        child = context.Process(target=run_on, args=(folder,))
        child.start()
        last = draws.randrange(ROUNDS - 3)  # once this round is saved, a random moment of the next ones
        while child.exitcode is None and not list(folder.glob(f"round-{last:06d}-*")):
            time.sleep(0.001)
        time.sleep(draws.uniform(0, 0.03))
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
            child.join()
            kills += 1
            saved = folder.with_suffix(".saved")
            assert load(folder).round >= (saved.stat().st_size if saved.exists() else 0)
        child = context.Process(target=run_on, args=(folder,))
        child.start()
        child.join()
        assert child.exitcode == 0
        resumed = load(folder)
        assert resumed.history == straight.history and equal(resumed.state, straight.state)
        assert all(equal(resumed.state_at(t), straight.state_at(t)) for t in range(ROUNDS + 1))
        assert not list(folder.glob("*.part"))
    assert kills >= 10


def test_thinned_snapshots_leave_no_file_behind(tmp_path: Path) -> None:
    run = small_federation(split(20, 20))
    run.past = replace(run.past, timeline=replace(run.timeline, limit=5000))
    for _ in run.rounds(9, checkpoint=tmp_path):
        pass
    assert len(list(tmp_path.glob("round-*"))) == len(run.timeline.rounds()) < 10


@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "json", "empty", "format"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    fresh().run(2).save(tmp_path)
    file = sorted(tmp_path.glob("round-*"))[-1]
    if damage in ("json", "empty", "format"):
        file = tmp_path / "run.json"
    content = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(content[:-5])
        case "flip":
            file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        case "gone":
            file.unlink()
        case "json":
            file.write_bytes(content[:-5])
        case "empty":
            file.write_text(json.dumps({"format": 1, "snapshots": {}}))
        case "format":
            file.write_text(json.dumps({**json.loads(content), "format": 99}))
    with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
        load(tmp_path)


def test_a_run_of_other_data_model_or_partition_is_refused(tmp_path: Path) -> None:
    run = fresh().run(1)
    run.save(tmp_path)
    with pytest.raises(ValueError, match="dataset: .* is not what the run"):
        Federation.load(tmp_path, small_data(60, seed=1), run.partition, run.model)
    with pytest.raises(ValueError, match="partition: "):
        Federation.load(tmp_path, run.dataset, split(20, 20, 20), run.model)
    with pytest.raises(ValueError, match="model: "):
        Federation.load(tmp_path, run.dataset, run.partition, small_federation(split(60)).model)
    with pytest.raises(FileNotFoundError, match="no run is saved"):
        Federation.load(tmp_path / "elsewhere", run.dataset, run.partition, run.model)


def test_methods_are_saved_with_their_options() -> None:
    data = method_to_json(FedProx(0.25))
    assert data == {"name": "fedprox", "class": "fedlab_core.methods.client:FedProx", "options": {"mu": 0.25}}
    assert method_from_json(data, "here") == build_method(data["name"], **data["options"]) == FedProx(0.25)
    with pytest.raises(ValueError, match="'adamw', accepted"):
        build_method("adamw")
    with pytest.raises(ValueError, match="does not take"):
        build_method("fedavg", mu=1)
    with pytest.raises(ValueError, match="mu=-1"):
        build_method("fedprox", mu=-1)


def test_diverged_runs_can_be_saved(tmp_path: Path) -> None:
    run = small_federation(split(20, 20), lr=1e200, non_finite="keep").run(3)
    assert not torch.tensor(run.history[-1].metrics["test_loss"]).isfinite()
    run.save(tmp_path)
    loaded = Federation.load(tmp_path, run.dataset, run.partition, run.model)
    assert str(loaded.history[-1].metrics["test_loss"]) == str(run.history[-1].metrics["test_loss"])
