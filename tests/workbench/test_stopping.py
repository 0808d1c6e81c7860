"""Stop is heard in every phase of a round."""

import pytest

from fedlab_core.engines import get_engine
from fedlab_core.experiment import Experiment
from fedlab_core.local.work import Stopped, Work
from fedlab_core.settings import Settings

SMALL = Experiment(
    dataset_options={"examples": 120},
    clients=6,
    settings=Settings(fraction=0.5, epochs=1, lr=0.1),
)


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked", "auto"])
def test_an_evaluation_asks_before_every_batch_whether_to_stop(engine):
    federation = SMALL.build()
    parts = federation.model, federation.dataset, federation.partition, federation.settings, {}, 1
    states = [federation.state] * 3
    assert (
        get_engine(engine).evaluate(Work(*parts), states)
        == [{k.removeprefix("test_"): pytest.approx(v) for k, v in federation.evaluate().items()}] * 3
    )
    with pytest.raises(Stopped):
        get_engine(engine).evaluate(Work(*parts, stop=lambda: True), states)
