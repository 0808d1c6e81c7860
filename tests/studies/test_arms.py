"""Comparisons as data: searches end at a best rate, runs keep their examples apart, claims follow from pairs."""

import json
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedlab_core.experiment import Experiment
from fedlab_core.local.work import Stopped
from fedlab_core.settings import Settings
from fedlab_core.studies import arms, batchnorm_distributions
from fedlab_core.studies.arms import SEARCHED, Arm, Comparison, hold_out
from fedlab_core.studies.tuning import climb
from fedlab_core.studies.units import Unit

SMALL = Experiment(
    "digits", {"examples": 80}, clients=4, model="small_cnn", norm="batch", model_options={"channels": [4]},
    settings=Settings(1.0, epochs=1, batch_size=10, batch_norm="average"),
)  # fmt: skip
TINY = Comparison(
    "tiny", "a title", SMALL, 2,
    {
        "IID: BN": Arm(),
        "2 classes: BN": Arm({"partition": "shards"}, 0),
        "IID: fixed": Arm({}, -1, (0,), {"batch_norm": "frozen", "lr": 0.5}),
        "IID: GN": Arm({"norm": "group", "batch_norm": None}),
    },
    (0, 1), tests=50,
)  # fmt: skip


@given(st.integers(0, 2**20), st.integers(-8, 8))
def test_a_search_ends_where_no_neighbour_is_better(seed: int, start: int) -> None:
    heights = {i: int(v) for i, v in zip(range(-40, 41), np.random.default_rng(seed).integers(0, 6, 81), strict=True)}
    asked: list[int] = []

    def unit(exponent: int, best: float) -> Unit:
        return Unit("a", 0, {"i": exponent})

    done: dict[str, Any] = {}
    while True:
        units, best = climb(start, unit, lambda result: result["height"], done)
        if best is not None:
            break
        last = units[-1]
        assert last.key not in done, "asks for one run after the other, none twice"
        asked.append(last.settings["i"])
        done[last.key] = {"height": heights.get(asked[-1], -1)}
    assert len(asked) == len(set(asked)) == len(units)
    assert {best - 1, best, best + 1} <= set(asked)
    assert all(heights.get(best, -1) >= heights.get(best + step, -1) for step in (-1, 1))
    assert heights.get(best, -1) == max(done[u.key]["height"] for u in units)


def finished(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Every unit of a comparison, by made-up results: 10^-1 is the best rate everywhere."""
    found: dict[str, dict[str, Any]] = {}
    while True:
        todo = [u for u in comparison.plan({k: v["result"] for k, v in found.items()}) if u.key not in found]
        if not todo:
            return found
        for u in todo:
            lr = u.settings["experiment"]["settings"].get("lr", 0.1)
            score = -abs(np.log10(lr) + 1) + 0.01 * u.seed + 0.1 * ("2 classes" in u.arm)
            plain = {"arm": u.arm, "seed": u.seed, "settings": u.settings, "key": u.key}
            found[u.key] = plain | {"result": {"held_out": score, "test": score}}


def test_a_comparison_is_searched_with_a_seed_of_its_own_and_drawn() -> None:
    found = finished(TINY)
    data = {"title": "a title", "note": "all", "units": list(found.values())}
    assert TINY.finals(data, "IID: BN") == pytest.approx([0, 0.01]) and len(TINY.finals(data, "IID: fixed")) == 1
    assert TINY.paired(data, "2 classes: BN", "IID: BN") == pytest.approx([0.1, 0.1])
    assert TINY.paired(data, "IID: fixed", "IID: BN") == pytest.approx([0]) and TINY.paired(None, "a", "b") is None
    searches = [u for u in data["units"] if u["arm"] == "IID: BN" and u["seed"] == SEARCHED]
    assert len(searches) == 3
    (ax,) = TINY.draw(data).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["IID", "2 classes"]
    assert TINY.draw({"title": "", "note": "", "units": []}).axes


def test_held_out_examples_are_gone_from_the_training_data() -> None:
    data = SMALL.load_data()
    rest, chooser = hold_out(data, 0.2)
    assert len(rest.x) + len(chooser.test_x) == len(data.x) and torch.equal(rest.test_x, data.test_x)
    assert torch.equal(rest.x, chooser.x)
    both = torch.cat((rest.x, chooser.test_x)).flatten(1).double() @ torch.rand(64, dtype=torch.float64)
    every = data.x.flatten(1).double()
    assert len(both) == len(every)


@pytest.mark.parametrize("name", list(TINY.arms))
def test_a_unit_is_plain_data_and_stops_when_asked(name: str) -> None:
    unit = TINY.unit(name, -2, 0)
    settings = json.loads(json.dumps(unit.settings))
    found = arms.run(settings, lambda: False, "cpu")
    json.dumps(found, allow_nan=False)
    assert found["done"] == 2 and found["round"] == [0, 1, 2] and 0 <= found["test"] <= 1
    assert found["test"] * 50 == pytest.approx(round(found["test"] * 50)), "50 test examples"
    assert ("reestimated" in found) == (not name.endswith("GN"))
    assert found == arms.run(settings, lambda: False, "cpu")
    with pytest.raises(Stopped, match="after round 1"):
        arms.run(settings, lambda: True, "cpu")


def test_the_claims_about_distributions_follow_from_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = batchnorm_distributions.CLAIMS
    monkeypatch.setattr(batchnorm_distributions, "recorded", lambda name: None)
    assert {make().verdict for make in claims.values()} == {"not run"}
    found = finished(batchnorm_distributions.STUDY)
    monkeypatch.setattr(batchnorm_distributions, "recorded", lambda name: {"units": list(found.values())})
    made = {name: make() for name, make in claims.items()}
    assert made["batchnorm.cifar_repair"].verdict == "shown" == made["batchnorm.cifar_iid"].verdict
    assert made["batchnorm.cifar_damage"].verdict == "refuted" == made["batchnorm.cifar_one_class"].verdict
    assert [len(made[f"batchnorm.cifar_{n}"].seeds) for n in ("damage", "iid")] == [5, 5]
    measured = made["batchnorm.cifar_iid"].measured  # of arms that no claim speaks of there are fewer seeds
    assert [fmean(measured[arm]) for arm in ("IID: FedTAN", "IID: FixBN")] == pytest.approx([0.02, 0.01])
