"""Group connectivity: no barrier among equal models, none under a convex loss, and the numbers of a plain loop."""

import pytest
import torch
from small import small_data, small_federation, split
from torch import nn

from fedlab_core.federation import Federation
from fedlab_core.probes.groups import ALPHAS, connectivity
from fedlab_core.settings import Settings
from fedlab_core.state import mean_state

EXACT = 1e-12


def test_equal_models_have_no_barrier() -> None:
    data = small_data(20)
    both = split(20, 20)
    twice = type(both)(both.indices % 20, both.offsets, "twice the same")
    run = small_federation(twice, data=data, lr=0.5).run(2)
    found = connectivity(run, 2)
    assert abs(found.barrier) < EXACT and found.pairs < EXACT and found.worst < EXACT and abs(found.own) < EXACT


def test_a_convex_loss_has_none() -> None:
    data = small_data(60)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    order = torch.argsort(data.y)
    skewed = type(split(20, 20, 20))(order, split(20, 20, 20).offsets, "sorted")
    settings = Settings(fraction=1.0, epochs=5, batch_size=5, lr=1.0, double=True)
    run = Federation(data, skewed, model, settings).run(3)
    for number in (1, 2, 3):
        found = connectivity(run, number)
        assert found.barrier < -1e-3 < 1e-3 < found.own and found.pairs < EXACT  # averaging gains, but not at home


def test_the_numbers_are_those_of_a_plain_loop() -> None:
    run = small_federation(split(8, 16, 12), lr=2.0, epochs=8).run(2)
    inside = run.inside(2)
    own = [update.state for update in inside.updates]

    data = run.dataset

    def loss(state: dict, x: torch.Tensor = data.test_x, y: torch.Tensor = data.test_y) -> float:
        model = run.trained_model()
        model.load_state_dict(state)
        return nn.functional.cross_entropy(model(data.prepare(x).double()), y).item()

    p = [8 / 36, 16 / 36, 12 / 36]
    clients = sum(share * loss(state) for share, state in zip(p, own, strict=True))
    rises = []
    for i, j in ((0, 1), (0, 2), (1, 2)):
        middle = [
            loss(mean_state([own[i], own[j]], [a, 1 - a])) - a * loss(own[i]) - (1 - a) * loss(own[j]) for a in ALPHAS
        ]
        rises.append(max(0.0, *middle))
    held = [(data.x[run.partition[k]], data.y[run.partition[k]]) for k in range(3)]
    home = sum(share * (loss(run.state, *d) - loss(s, *d)) for share, d, s in zip(p, held, own, strict=True))
    found = connectivity(run, 2)
    assert found.own == pytest.approx(home, abs=EXACT)
    assert found.clients == pytest.approx(clients, abs=EXACT)
    assert found.barrier == pytest.approx(loss(run.state) - clients, abs=EXACT)
    assert (found.pairs, found.worst) == pytest.approx((sum(rises) / 3, max(rises)), abs=EXACT)
    assert connectivity(run, 1, split="train") != connectivity(run, 1)


def test_statistics_are_estimated_anew_where_asked_for_and_one_client_has_no_pair() -> None:
    run = small_federation(split(10, 14), norm="batch", batch_norm="average", lr=0.5).run(1)
    assert connectivity(run, 1, recalibrate_with=24).mean != connectivity(run, 1).mean
    alone = connectivity(small_federation(split(12)).run(1), 1)
    assert (alone.barrier, alone.pairs, alone.worst, alone.own) == (0, 0, 0, 0)
