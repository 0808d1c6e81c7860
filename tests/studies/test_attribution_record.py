"""The records of the gap: their units make whole attributions, seed by seed."""

from functools import partial

import numpy as np
import pytest

from fedlab_core.probes.attribution import attribute
from fedlab_core.probes.cells import CAUSES, subsets
from fedlab_core.studies import attribution
from fedlab_core.studies.queue import gathered, missing
from fedlab_core.studies.record import recorded
from fedlab_core.studies.units import full
from fedlab_core.workbench.labs.why import DIGITS


def test_units_name_each_cell_once_and_restore_their_experiment() -> None:
    for record, experiment in zip(attribution.RECORDS, (attribution.MNIST, attribution.CIFAR10), strict=True):
        units = record.plan({})
        assert len({unit.key for unit in units}) == len(units) == 16 * 5
        assert full(units[17].settings["experiment"]) == experiment.replace(seed=1)
        assert [unit.seed for unit in units[:16]] == [0] * 16


def test_finished_units_are_the_attribution_that_one_call_makes() -> None:
    plan = partial(attribution.plan, experiment=DIGITS.replace(evaluate_every=1), rounds=1)
    record = attribution.Record("small", "small", plan, attribution.run, attribution.draw)
    found = {}
    for unit in missing(record, found)[:20]:  # one seed whole, and some of the next
        result = record.run(unit.settings, lambda: False, "cpu")
        found[unit.key] = {"arm": unit.arm, "seed": unit.seed, "settings": unit.settings, "result": result}
    whole = attribution.attribution(gathered(record, found))
    assert whole is not None and whole.seeds == (0,)
    direct = attribute(DIGITS.replace(evaluate_every=1), 1, seeds=(0,))
    assert all(whole.values[measure].equal(direct.values[measure]) for measure in direct.values)
    assert whole.cells == subsets(CAUSES) and len(attribution.draw(gathered(record, found)).axes) == 4
    assert attribution.attribution({"units": []}) is None


def test_the_rows_measure_what_the_seeds_say(monkeypatch: pytest.MonkeyPatch) -> None:
    data = recorded("attribution_mnist")
    found = attribution.attribution(data)
    rows = {name: make() for name, make in attribution.CLAIMS.items() if "mnist" in name}
    assert found is not None and all(row.seeds == found.seeds for row in rows.values())
    none, skew, everything = (found.cell(on)[:, -1] for on in ((), ("skew",), CAUSES))
    assert rows["attribution.mnist_gap"].measured["the gap"] == (everything - none).tolist()
    assert rows["attribution.mnist_gate"].measured["skew alone"] == (skew - none).tolist()
    parts = [rows["attribution.mnist_gap"].measured[f"part of {cause}"] for cause in CAUSES]
    assert np.allclose(np.sum(parts, 0), everything - none, rtol=0, atol=1e-12)
    ahead = [one[0] - min(one[1:]) for one in zip(*parts, strict=True)]
    assert np.allclose(rows["attribution.mnist_skew"].measured["skew minus the next part"], ahead, rtol=0, atol=1e-12)
    monkeypatch.setattr(attribution, "recorded", lambda name: None)
    assert {make().verdict for make in attribution.CLAIMS.values()} == {"not run"}
