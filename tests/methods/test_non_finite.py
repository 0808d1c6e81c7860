"""Every method on every engine: a client that hands back what is not finite is named in the record of its round."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import pytest
from small import OWN_LAYERS, small_data, small_federation, split

from fedlab_core.batchnorm.hybrid import with_global_norms
from fedlab_core.engines.ray import disconnect
from fedlab_core.failures import Failures
from fedlab_core.federation import Federation
from fedlab_core.finetuning.classifiers import with_head
from fedlab_core.finetuning.tuning import tune
from fedlab_core.layerwise.network import build_staged
from fedlab_core.models.build import build_model
from fedlab_core.randomness import generator
from fedlab_core.registry import METHODS
from fedlab_core.round import NonFiniteError
from fedlab_core.settings import Settings

SIZES = split(9, 6, 14, 8, 11)
NEEDS_RAY = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs Ray")
ENGINES = ["loop", "threads", "stacked", "auto", pytest.param("ray", marks=NEEDS_RAY)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Whatever cluster was started for these tests ends with them."""
    yield
    disconnect()


def run(name: str, **changes: Any) -> Federation:
    settings = {"batch_size": None if name == "fedsgd" else 5, **changes}
    if name not in ("layer_wise", *OWN_LAYERS):
        return small_federation(SIZES, METHODS[name](), **settings)
    data, draws = small_data(48), generator(0, "weights")
    if name in ("hbn", "fbn"):
        model = with_global_norms(build_model("mlp", (1, 4, 4), 3, draws, norm="batch"), mixed=name == "hbn")
        settings |= {"batch_norm": "average"}
    elif name == "layer_wise":
        model = build_staged((1, 4, 4), draws, depth=2, patch=2, dim=8, heads=2, hidden=12, out=6, layers=2)
    else:
        vit = with_head(build_model("vit", (1, 4, 4), 1, draws, dim=8, depth=2, heads=2), 3, draws)
        model = tune(vit, "lora", draws, rank=2, delta=name != "fedsa_lora")
    return Federation(data, SIZES, model, Settings(fraction=1.0, lr=0.01, **settings), METHODS[name]())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"local_only"}))
def test_a_nan_client_is_named_in_the_record_of_its_round(name: str, engine: str) -> None:
    failures = Failures(liars=0.2, lie="nan")
    (liar,) = failures.lying(5, seed=0)
    try:
        kept = run(name, engine=engine, failures=failures, non_finite="keep").run(1)
    except ValueError as error:
        if engine != "stacked":
            raise
        pytest.skip(f"not stacked: {error}")
    assert kept.history[1].non_finite == [liar]
    if name in ("flora", "fedex_lora"):  # what they send back rests on every client's factors
        with pytest.raises(ValueError, match="non_finite='skip_client'"):
            run(name, engine=engine, failures=failures, non_finite="skip_client")
    else:
        skipping = run(name, engine=engine, failures=failures, non_finite="skip_client").run(2)
        assert [record.non_finite for record in skipping.history] == [[], [liar], [liar]]
        assert all(tensor.isfinite().all() for tensor in skipping.state.values())
    stopping = run(name, engine=engine, failures=failures)
    with pytest.raises(NonFiniteError, match=f"round 1: client {liar} "):
        stopping.run(2)
    assert stopping.round == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_clients_that_hand_nothing_back_are_named_by_their_loss(engine: str) -> None:
    run_away = run("local_only", engine=engine, lr=1e200, steps=3, non_finite="keep").run(1)
    assert run_away.history[1].non_finite == [0, 1, 2, 3, 4]
