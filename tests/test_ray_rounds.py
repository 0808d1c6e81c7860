"""The measurement of what Ray adds to a round: its parts are found again, and it measures what it says."""

import math

import pytest

from benchmarks import page, ray_rounds
from benchmarks.tasks import TASKS


def test_the_parts_of_a_round_are_found_again() -> None:
    a, b, c, step = 0.03, 0.002, 0.01, 0.005
    rounds = [(m, w, a + b * m + (c + step) * math.ceil(m / w)) for m in (1, 4, 8, 16) for w in (1, 2)]
    assert ray_rounds.fit(rounds, step) == pytest.approx((a, b, c))


def test_ray_is_measured_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized()
    monkeypatch.setattr(ray_rounds, "SAMPLED", (1, 2, 4))
    monkeypatch.setattr(ray_rounds, "WHOLE", ("2nn",))
    monkeypatch.setitem(TASKS, "2nn", TASKS["2nn"].quick())
    found = ray_rounds.measure(2, 1)
    task = found["tasks"]["2nn"]
    a, b, c = (found[f"seconds_a_{part}"] for part in ("round", "client_led", "client_trained"))
    assert task["predicted"] == pytest.approx(a + 10 * b + 5 * (c + task["loop_a_client"]))
    assert task["predicted_16"] == pytest.approx(a + 16 * b + c + task["loop_a_client"])
    assert task["loop_16"] == pytest.approx(16 * task["loop_a_client"]) and task["measured"] > 0
    assert not ray.is_initialized()
    assert page.ray_rows(found)[-1].startswith("| 2NN |")


def test_a_cluster_has_as_many_workers_as_asked_for() -> None:
    ray = pytest.importorskip("ray")
    for workers in ray_rounds.clusters():
        assert ray.cluster_resources()["CPU"] == workers
        assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
