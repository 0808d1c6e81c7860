"""Twin rounds in the panel: what is drawn is what the probe computes."""

import pytest

from fedlab_core.probes.cells import CAUSES
from fedlab_core.probes.twins import twin_round
from fedlab_core.workbench.bench import Workbench
from tests.workbench.panels import PATIENCE, SMALL

EQUAL = SMALL.replace(partition="shards", partition_options={}, epochs=None, steps=3, weighting="uniform")


def test_the_panel_draws_the_twins_of_the_round_chosen(pictures):
    bench = Workbench(EQUAL, keep=False)
    bench.run(3, block=True)
    before = bench.result.history
    bench.panel.tabs.value = "Twins"
    bench.wait(PATIENCE)
    bench.panel.round.value = 2
    bench.wait(PATIENCE)
    far, loss, accuracy = bench._display.figure().axes
    expected = [twin_round(bench.result, 2, cause) for cause in CAUSES]
    for ax, values in (
        (far, [twin.share for twin in expected]),
        (loss, [twin.gained("test_loss") for twin in expected]),
        (accuracy, [100 * twin.gained() for twin in expected]),
    ):
        assert [bar.get_width() for bar in ax.patches] == pytest.approx(values)
    assert [label.get_text().removeprefix("without\n") for label in far.get_yticklabels()] == list(CAUSES)
    assert bench.result.history == before and bench.panel.text.value == ""


@pytest.mark.parametrize(("values", "words"), [({"method": "scaffold"}, "SCAFFOLD"), ({"weighting": "examples"}, "")])
def test_what_cannot_be_played_in_twins_says_why(values, words):
    bench = Workbench(EQUAL.replace(partition="dirichlet", **values), keep=False)
    bench.run(1, block=True)
    bench.panel.tabs.value = "Twins"
    bench.wait(PATIENCE)
    (said,) = bench._display.figure().texts
    assert "cannot be played in twins" in said.get_text() and words in said.get_text()
    assert bench.panel.text.value == ""


def test_stop_ends_twins(gate):
    bench = Workbench(EQUAL, keep=False)
    for _ in range(3):
        gate.go.release()
    bench.run(1, block=True)
    bench.runs[0].stop.set()
    with pytest.raises(InterruptedError):
        twin_round(bench.result, 1, CAUSES[0], bench.runs[0].stop)
