"""The study of FedAvg: exact races, tuned rates, figure 1's pairs, and claims that follow from their numbers."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedlab_core import claims
from fedlab_core.experiment import Experiment
from fedlab_core.history import rounds_to_target
from fedlab_core.settings import Settings
from fedlab_core.studies import fedavg, fedavg_text, resume
from fedlab_core.studies import fedavg_rounds as rounds
from fedlab_core.studies.arms import Arm
from fedlab_core.studies.queue import known, missing
from fedlab_core.studies.tuning import Tuned, run, tune
from fedlab_core.studies.units import Record

SMALL = Experiment("digits", {"examples": 200}, clients=5, model_options={}, settings=Settings(0.6, epochs=2, lr=0.1))
TARGET, MOST = 0.6, 12


def exhaustive(grid: tuple[float, ...], seeds: tuple[int, ...]) -> dict[float, float]:
    """Mean rounds of every rate, each run to the end: what the race must agree with."""
    means = {}
    for lr in grid:
        runs = [SMALL.replace(lr=lr, seed=seed, non_finite="keep").build().run(MOST) for seed in seeds]
        means[lr] = sum(rounds_to_target(one.history, TARGET) for one in runs) / len(seeds)
    return means


def test_the_race_finds_what_an_exhaustive_search_finds() -> None:
    grid, seeds = (0.01, 0.05, 0.2, 20.0), (0, 1)
    means = exhaustive(grid, seeds)
    found, runs = tune(SMALL, TARGET, MOST, grid=grid, seeds=seeds)
    assert found.rounds == pytest.approx(min(means.values())) and means[found.lr] == min(means.values())
    assert len(runs) == 2
    assert found.per_seed == tuple(one["reached"] for one in runs) and found.rounds == sum(found.per_seed) / 2
    assert not found.at_edge and math.isinf(means[20.0])


def test_the_best_rate_at_the_edge_is_marked() -> None:
    found, _ = tune(SMALL, TARGET, MOST, grid=(0.01, 0.05, 0.2), seeds=(0,))
    assert found.lr == 0.2 and found.at_edge


def test_a_target_out_of_reach_is_said_to_be() -> None:
    found, runs = tune(SMALL, 1.01, 2, grid=(0.1,), seeds=(0, 1))
    assert (found.lr, found.rounds, found.per_seed, runs) == (None, math.inf, (), [])


def test_a_run_stops_at_its_target_or_when_it_diverges() -> None:
    done = run(SMALL.replace(lr=0.2), TARGET, MOST)
    assert done["done"] == math.ceil(done["reached"]) < MOST and done["test_accuracy"][-1] >= TARGET
    lower = run(SMALL.replace(lr=0.2), 1.5, MOST, "test_loss")
    assert lower["test_loss"][-1] <= 1.5 < min(lower["test_loss"][:-1])
    assert run(SMALL.replace(lr=1e6), TARGET, MOST)["done"] < MOST


@pytest.mark.parametrize(("grid", "seeds"), [((), (0,)), ((0.2, 0.1), (0,)), ((0.1,), ())])
def test_a_race_without_rates_or_seeds_is_refused(grid: tuple, seeds: tuple) -> None:
    with pytest.raises(ValueError, match="grid|seeds"):
        tune(SMALL, TARGET, MOST, grid=grid, seeds=seeds)


def cell(mean: float, lr: float | None = 0.1) -> Tuned:
    return Tuned(mean, lr, (mean, mean), False, (0.01, 0.1, 1.0), (0, 1), 100)


def cells(*means: float) -> rounds.Rounds:
    keys = [("FedSGD", "iid"), ("E=5, B=10", "iid"), ("FedSGD", "shards"), ("E=5, B=10", "shards")]
    return dict(zip(keys, map(cell, means), strict=True))


@pytest.mark.parametrize(
    ("means", "verdict"), [((80, 10, 50, 20), "shown"), ((80, 10, 40, 20), "shown"), ((70, 10, 40, 20), "refuted")]
)
def test_the_verdict_on_rounds_follows_from_the_cells(means: tuple, verdict: str) -> None:
    made = fedavg.rounds_claim(cells(*means))
    assert made.verdict == verdict and made.measured["IID: times fewer rounds"] == [means[0] / means[1]] * 2


def test_a_baseline_that_never_arrives_counts_with_the_rounds_it_was_given() -> None:
    table = cells(80, 10, 50, 20) | {("FedSGD", "iid"): cell(math.inf, None)}
    table["E=5, B=10", "shards"] = replace(cell(math.inf, None), per_seed=())
    table["FedSGD", "iid"] = replace(table["FedSGD", "iid"], per_seed=())
    assert rounds.speed_ups(table, "E=5, B=10", "iid") == [10, 10]
    assert not rounds.speed_ups(table, "E=5, B=10", "shards")


def test_the_table_of_rounds_has_a_cell_per_work_and_partition() -> None:
    work = {"FedSGD": rounds.WORK["FedSGD"], "E=5, B=10": rounds.WORK["E=5, B=10"]}
    options = {"experiment": SMALL, "target": TARGET, "most": 8, "grid": (0.2,), "seeds": (0,)}
    table = rounds.rounds_table(work, ("iid", "quantity"), **options)
    assert list(table) == [(w, p) for p in ("iid", "quantity") for w in work]


def test_recorded_races_are_drawn_by_partition() -> None:
    arms = {
        f"{p}: a": Arm({"partition": p}, lr=0.2, more=rounds.STUDY.arms["iid: E=1, B=10"].more)
        for p in ("iid", "shards")
    }
    tiny = replace(rounds.STUDY, experiment=SMALL, rounds=3, arms=arms, seeds=(0, 1))
    units = [
        {"arm": name, "seed": seed, "settings": tiny.unit(name, None, seed).settings, "result": result}
        for name, found in tiny.here().items()
        for seed, result in enumerate(found)
    ]
    axes = tiny.record.draw({"title": "a", "units": units}).axes
    assert [ax.get_title() for ax in axes] == ["IID clients", "label shards, two a client"]
    for ax in axes:  # seeds in one colour, named once
        assert len({line.get_color() for line in ax.lines[:2]}) == 1
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a, lr 0.2 (2 seeds)", "target 0.97"]


@pytest.mark.parametrize("record", [rounds.STUDY.record, fedavg_text.RECORD], ids=lambda record: record.name)
def test_recorded_runs_are_those_of_the_plan(record: Record) -> None:
    assert missing(record, known(record, Path("nowhere"))) == []


def test_figure_one_on_a_few_examples() -> None:
    lines = fedavg.figure_one(2, examples=40, epochs=3, batch_size=20)
    assert [len(group) for group in lines.values()] == [2, 2]
    for independent, shared in zip(*lines.values(), strict=True):
        assert independent.loss_at(1.0) == shared.loss_at(1.0)  # the model that both have in common
        assert independent.loss_at(0.0) != shared.loss_at(0.0)
        assert shared.barrier <= independent.barrier
    assert json.dumps([asdict(line) for line in lines["shared"]])
    assert fedavg.figure_one_claim(lines).expected


def test_bytes_counted_are_bytes_sent() -> None:
    assert fedavg.count_bytes(3) == {"parameters": 199_210, "counted": 4_781_040, "serialised": 4_781_040}
    assert fedavg.bytes_claim().verdict == "shown"


@pytest.mark.parametrize(
    ("record", "verdict"),
    [
        (None, "not run"),
        ({"iid": 90.0, "shards": 700.0}, "shown"),
        ({"iid": 30.0, "shards": 700.0}, "refuted"),
        ({"iid": 90.0, "shards": 100.0}, "shown"),
    ],
)
def test_the_verdict_on_mnist_comes_from_the_record(
    record: dict | None, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"experiment": {"settings": {}}}
    units = [
        {"arm": f"{part}: E=1, B=10", "seed": seed, "settings": settings, "result": {"reached": reached}}
        for part, reached in (record or {}).items()
        for seed in (0, 1)
    ]
    found = {"units": units} if record else None
    monkeypatch.setattr(fedavg, "recorded", lambda name: found)
    assert fedavg.mnist_claim().verdict == verdict
    assert claims.table(fedavg.mnist_claim()).rows[0]["size"] == "standard"


def test_without_a_record_the_first_run_was_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedavg, "recorded", lambda name: None)
    assert fedavg.first_run_claim().verdict == "not run"
    monkeypatch.setattr(fedavg, "recorded", lambda name: {"minutes": 3.5, "actions": 4})
    assert fedavg.first_run_claim().verdict == "shown"


def test_the_race_on_text_compares_rounds_to_the_same_bits() -> None:
    tiny = fedavg_text.TEXT.replace(
        dataset_options={"examples": 200, "length": 20}, model_options={"hidden": 8, "layers": 1}
    )
    result = fedavg_text.race(tiny, 4, fedsgd_grid=(1.0, 4.64), fedavg_grid=(4.64,), seeds=(0,), every=2)
    slow = run(tiny.replace(method="fedsgd", lr=result.fedsgd_lr, evaluate_every=2), 0.0, 4, "test_loss")
    assert min(slow["test_loss"]) / math.log(2) == pytest.approx(result.bits[0])
    assert result.fedsgd[0] == slow["round"][slow["test_loss"].index(min(slow["test_loss"]))]
    fast = run(tiny.replace(lr=4.64), min(slow["test_loss"]), 4, "test_loss")
    assert fast["test_loss"][-1] <= min(slow["test_loss"]) and result.fedavg == (fast["reached"],)
    claim = fedavg_text.claim(result)
    assert claim.verdict == "undecided" and claim.measured["times fewer rounds"] == result.ratios  # one seed


def test_killed_and_rewound_runs_end_in_the_same_bits() -> None:
    assert resume.killed(1) == 1 and resume.rewound(2) == 2
