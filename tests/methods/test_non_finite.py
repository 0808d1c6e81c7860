"""Every method on every engine: a client that hands back what is not finite is named in the record of its round."""

from typing import Any

import pytest

from fedlab_core.failures import Failures
from fedlab_core.federation import Federation
from fedlab_core.layerwise.network import build_staged
from fedlab_core.randomness import generator
from fedlab_core.registry import METHODS
from fedlab_core.round import NonFiniteError
from fedlab_core.settings import Settings
from tests.small import small_data, small_federation, split

SIZES = split(9, 6, 14, 8, 11)


def run(name: str, **changes: Any) -> Federation:
    settings = {"batch_size": None if name == "fedsgd" else 5, **changes}
    if name != "layer_wise":
        return small_federation(SIZES, METHODS[name](), **settings)
    model = build_staged(
        (1, 4, 4), generator(0, "weights"), depth=2, patch=2, dim=8, heads=2, hidden=12, out=6, layers=2
    )
    return Federation(small_data(48), SIZES, model, Settings(fraction=1.0, lr=0.01, **settings), METHODS[name]())


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked", "auto"])
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
    skipping = run(name, engine=engine, failures=failures, non_finite="skip_client").run(2)
    assert [record.non_finite for record in skipping.history] == [[], [liar], [liar]]
    assert all(tensor.isfinite().all() for tensor in skipping.state.values())
    stopping = run(name, engine=engine, failures=failures)
    with pytest.raises(NonFiniteError, match=f"round 1: client {liar} "):
        stopping.run(2)
    assert stopping.round == 0


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked", "auto"])
def test_clients_that_hand_nothing_back_are_named_by_their_loss(engine: str) -> None:
    run_away = run("local_only", engine=engine, lr=1e200, steps=3, non_finite="keep").run(1)
    assert run_away.history[1].non_finite == [0, 1, 2, 3, 4]
