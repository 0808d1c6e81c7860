"""Clients that fail: each kind does what it says, is in the record, costs what it costs, and replays bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import equal, gap, small_data, small_federation, split

from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.failures import LIES, Failures
from fedlab_core.federation import Federation
from fedlab_core.methods.client import Scaffold
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.fedavg import FedAvg as Plain
from fedlab_core.methods.robust import Median
from fedlab_core.round import with_flipped_labels
from fedlab_core.settings import Settings
from fedlab_core.state import mean_state

SIZES = (10, 10, 20, 10, 10, 20)


def run(rounds: int = 4, method: FedAvg | None = None, *, sizes: tuple[int, ...] = SIZES, **changes: Any) -> Federation:
    failures = {k: changes.pop(k) for k in list(changes) if k in Failures.__dataclass_fields__}
    options = {"batch_size": 4, "failures": Failures(**failures) if failures else None} | changes
    return small_federation(split(*sizes), method, **options).run(rounds)


def test_no_failures_are_the_run_without_them() -> None:
    plain, none = run(), run(unavailable=0.0)
    assert plain.history == none.history and equal(plain.state, none.state)
    assert all(record.failed == {} for record in plain.history)


def test_who_cannot_be_reached_takes_no_part_and_costs_nothing() -> None:
    federation = run(6, unavailable=0.5)
    hit = [record.failed.get("unavailable", []) for record in federation.history[1:]]
    assert 8 < sum(map(len, hit)) < 28
    for record, absent in zip(federation.history[1:], hit, strict=True):
        present = [k for k in range(6) if k not in absent]
        assert [row["client"] for row in record.clients] == present
        inside = federation.inside(record.round)
        model = sum(t.numel() * t.element_size() for t in federation.state.values())
        assert record.costs.bytes_down == record.costs.bytes_up == model * len(present)
        if present:
            sizes = [SIZES[k] for k in present]
            shares = [size / sum(sizes) for size in sizes]
            assert gap(mean_state([u.state for u in inside.updates], shares), federation.state_at(record.round)) < 1e-12


def test_a_round_that_nobody_takes_part_in_leaves_the_model_as_it_was() -> None:
    federation = run(2, unavailable=1.0)
    assert equal(federation.state, federation.state_at(0)) and federation.round == 2
    assert [record.costs.bytes for record in federation.history] == [0, 0, 0]
    assert "test_accuracy" in federation.history[2].metrics and federation.history[2].clients == []


def test_what_is_lost_was_trained_and_sent_down_in_vain() -> None:
    federation, whole = run(6, Scaffold(), lost=0.4), run(6, Scaffold())
    lost = [record.failed.get("lost", []) for record in federation.history[1:]]
    assert 5 < sum(map(len, lost)) < 25
    size = sum(t.numel() * t.element_size() for t in federation.state.values())
    for record, away, other in zip(federation.history[1:], lost, whole.history[1:], strict=True):
        assert record.costs.steps == other.costs.steps and record.costs.bytes_down == other.costs.bytes_down
        assert record.costs.bytes_up == other.costs.bytes_up * (6 - len(away)) / 6
        assert record.metrics.get("bytes_in_vain", 0) == len(away) * 2 * size  # the model and the server's control
        before, after = (federation._snapshot(record.round - k).clients for k in (1, 0))
        assert all(before.get(k) is after.get(k) for k in away)


def test_late_clients_send_the_beginning_of_their_work() -> None:
    federation, on_time = run(1, late=0.5), run(1)
    late = federation.history[1].failed["late"]
    assert 0 < len(late) < 6
    steps = {row["client"]: row["steps"] for row in federation.history[1].clients}
    full = {row["client"]: row["steps"] for row in on_time.history[1].clients}
    assert list(steps) == list(full) == list(range(6))
    assert all(1 <= steps[k] < full[k] if k in late else steps[k] == full[k] for k in full)
    for client in late:  # as many steps as asked for from the beginning
        short = run(1, epochs=None, steps=steps[client]).inside(1).updates[client]
        assert equal(short.state, federation.inside(1).updates[client].state)


def test_stale_clients_train_the_model_they_received_before() -> None:
    federation = run(4, stale=0.5)
    assert federation.history[1].failed.get("stale", []) == federation.history[1].failed.get("stale", [])
    seen = 0
    for round in range(2, 5):
        for client in federation.history[round].failed.get("stale", []):
            task = federation.rules(round).task(client, federation._snapshot(round - 1), True)
            assert equal(task.state, federation.state_at(round - 2))  # everybody takes part in every round
            seen += 1
    assert seen
    first = run(1, stale=1.0)
    assert equal(first.state, run(1).state), "nobody has an old model in the first round"


@pytest.mark.parametrize("lie", LIES)
def test_liars_are_always_the_same_and_their_lies_are_what_they_say(lie: str) -> None:
    federation = run(3, liars=1 / 3, lie=lie, scale=3.0, non_finite="keep")
    (liars,) = {tuple(record.failed["lied"]) for record in federation.history[1:]}
    assert len(liars) == 2
    lying, honest = federation.inside(1), run(1).inside(1)
    for update, truth in zip(lying.updates, honest.updates, strict=True):
        for name, start in lying.start.items():
            said, true = update.state[name], truth.state[name]
            if update.client not in liars:
                assert torch.equal(said, true)
            elif lie in ("nan", "inf"):
                assert not said.isfinite().any()
            elif lie in ("scaled", "sign_flipped"):
                assert torch.allclose(said - start, (3 if lie == "scaled" else -3) * (true - start))
            else:
                assert not torch.allclose(said, true)
    if lie in ("nan", "inf"):
        assert federation.history[1].non_finite == list(liars)


def test_flipped_labels_are_those_of_the_liars_and_of_nobody_else() -> None:
    federation = run(1, liars=1 / 3, lie="labels_flipped")
    liars = federation.history[1].failed["lied"]
    data, partition = federation.dataset, federation.partition
    flipped = torch.cat([data.y[partition[k]] if k not in liars else 2 - data.y[partition[k]] for k in range(6)])
    other = type(data)(**{**{n: getattr(data, n) for n in data.__dataclass_fields__}, "y": flipped})
    by_hand = Federation(other, partition, federation.trained_model(0), federation.settings.replace(failures=None)).run(
        1
    )
    assert equal(by_hand.inside(1).updates[liars[0]].state, federation.inside(1).updates[liars[0]].state)
    assert equal(by_hand.state, federation.state)
    assert federation.dataset is data and torch.equal(data.y, small_data(sum(SIZES)).y)


def test_an_example_without_a_class_has_none_under_flipped_labels_either() -> None:
    data = small_data(sum(SIZES))
    y = data.y.clone()
    y[::5] = -100
    flipped = with_flipped_labels(replace(data, y=y), run(1).partition, frozenset(range(6))).y
    assert torch.equal(flipped[::5], y[::5]) and torch.equal(flipped[y >= 0], 2 - y[y >= 0])


def test_a_nan_client_is_named_and_robust_rules_go_on_without_it() -> None:
    with pytest.raises(ArithmeticError, match=r"round 1: client \d handed back values that are not finite"):
        run(1, liars=0.2, lie="nan")
    skipped = run(3, liars=0.2, lie="nan", non_finite="skip_client")
    kept = run(3, Median(), liars=0.2, lie="nan", non_finite="keep")
    for federation in (skipped, kept):
        assert federation.history[3].non_finite == federation.history[3].failed["lied"]
        assert all(tensor.isfinite().all() for tensor in federation.state.values())


@pytest.mark.parametrize("engine", ["threads", "stacked", "auto"])
@pytest.mark.parametrize("method", [Plain(), Scaffold()])
def test_failures_are_the_same_on_every_engine_and_in_every_replay(engine: str, method: FedAvg, tmp_path: Path) -> None:
    options = {"unavailable": 0.2, "lost": 0.2, "late": 0.3, "stale": 0.3, "liars": 0.2, "fraction": 0.8}
    loop, other = run(6, method, **options), run(6, method, engine=engine, **options)
    assert gap(loop.state, other.state) < 1e-12
    assert [record.failed for record in loop.history] == [record.failed for record in other.history]
    assert {kind for record in loop.history for kind in record.failed} == {*Failures.__dataclass_fields__} - {
        "liars",
        "lie",
        "scale",
    } | {"lied"}
    loop.save(tmp_path)
    again = Federation.load(tmp_path, loop.dataset, loop.partition, loop.model)
    assert again.history == loop.history and again.settings == loop.settings
    again.rewind(3)
    assert equal(again.run(3).state, loop.state)


def test_what_cannot_be_is_refused() -> None:
    for options, said in (
        ({"lost": 1.5}, r"failures\.lost=1\.5, accepted: a number >= 0 and <= 1"),
        ({"lie": "nonsense"}, r"failures\.lie='nonsense', accepted: 'nan', 'inf'"),
        ({"scale": -1}, r"failures\.scale=-1"),
    ):
        with pytest.raises(ValueError, match=said):
            Failures(**options)
    with pytest.raises(ValueError, match="failures='often', accepted: Failures"):
        Settings(failures="often")
    with pytest.raises(ValueError, match=r"failures: \['gone'\] are unknown"):
        Settings(failures={"gone": 0.5})
    with pytest.raises(ValueError, match="the clients of FedTAN train together"):
        run(0, FedTAN(), norm="batch", batch_norm="average", late=0.5)
