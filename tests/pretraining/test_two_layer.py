"""The two-layer setting in float64: its step against autograd and its formula, and misaligned filters."""

import pytest
import torch
from torch.nn import functional as F

from fedlab_core.pretraining.two_layer import STARTS, TwoLayer, margins, two_layer

EXACT = 1e-12
SIGNS = torch.tensor([1.0, -1.0], dtype=torch.float64)[:, None]


def small(one_class: bool = True, seed: int = 0) -> tuple[TwoLayer, torch.Tensor]:
    data = two_layer(one_class, clients=4, n=6, d=20, tests=50, seed=seed)
    return data, data.begin("random", filters=5, scale=0.5, seed=seed)


def towards(data: TwoLayer, w: torch.Tensor) -> torch.Tensor:
    return SIGNS * (w @ data.mu)


def test_the_noise_is_orthogonal_to_the_signal_and_clients_hold_what_is_said() -> None:
    for one_class in (True, False):
        data = two_layer(one_class, clients=4, n=6, d=20)
        assert (data.xi @ data.mu).abs().max() < EXACT and data.mu.norm().item() == pytest.approx(0.3)
        assert data.y.sum(1).abs().tolist() == ([6.0] * 4 if one_class else [0.0] * 4)
    apart, together = (two_layer(one).xi.flatten(0, 1) for one in (True, False))
    assert torch.equal(apart.sort(0).values, together.sort(0).values)


@pytest.mark.parametrize("one_class", [True, False])
def test_a_step_is_that_of_autograd(one_class: bool) -> None:
    data, w = small(one_class)
    own = w.clone().requires_grad_()
    F.softplus(-data.y[1] * margins(own, data.mu, data.y[1], data.xi[1])).mean().backward()
    stepped = data.step(w.expand(4, *w.shape), 0.7)
    assert (stepped[1] - (w - 0.7 * own.grad)).abs().max() < EXACT
    assert not torch.equal(stepped[0], stepped[1])


def test_a_step_adds_to_the_signal_what_the_formula_says() -> None:
    data, w = small()
    y, m = data.y[2], w.shape[1]
    slope = -1 / (1 + torch.exp(y * margins(w, data.mu, y, data.xi[2])))
    seen = (y * (w @ data.mu)[..., None] > 0).double()
    expected = -0.7 / (len(y) * m) * data.mu.square().sum() * (slope * seen).sum(-1)
    change = towards(data, data.step(w.expand(4, *w.shape), 0.7)[2]) - towards(data, w)
    assert (change - expected).abs().max() < EXACT and (expected >= 0).all() and (expected > 0).any()


def test_equal_clients_do_what_their_union_does() -> None:
    data, w = small()
    alike = TwoLayer(data.mu, data.y[:1].expand(3, -1), data.xi[:1].expand(3, -1, -1), data.test_y, data.test_xi)
    alone = w
    for _ in range(5):
        alone = alike.step(alone, 0.5)
    assert (alike.local(w, 0.5, 5) - alone).abs().max() < EXACT


@pytest.mark.parametrize("one_class", [True, False])
def test_no_filter_ever_turns_away_and_a_misaligned_one_learns_from_the_other_class_alone(one_class: bool) -> None:
    data, w = small(one_class, seed=3)
    for _ in range(4):
        after = data.local(w, 0.5, 10)
        assert (towards(data, after) >= towards(data, w) - EXACT).all()
        assert data.misaligned(after) <= data.misaligned(w)
        w = after
    data, w = small(seed=3)
    wrong = towards(data, w) < 0
    assert wrong.any(1).all()
    for client, label in ((0, 1.0), (3, -1.0)):  # of one class each
        assert (data.y[client] == label).all()
        moved = (towards(data, data.step(w.expand(4, *w.shape), 0.5)[client]) - towards(data, w)).abs()
        lacking = wrong & (SIGNS == label)  # of its own class, whose examples they do not see
        assert lacking.any() and moved[lacking].max() < EXACT and moved[wrong & (SIGNS != label)].min() > 1e-6


@pytest.mark.parametrize("start", STARTS)
def test_starts_are_aligned_as_they_say(start: str) -> None:
    data = two_layer(True, d=50)
    w, drawn = data.begin(start), data.begin("random")
    expected = {"all aligned": 0, "all misaligned": 20, "random": data.misaligned(drawn)}
    assert data.misaligned(w) == expected.get(start, 0) and 0 < data.misaligned(drawn) < 20
    if start.startswith("all"):
        across = (w - drawn) - ((w - drawn) @ data.mu)[..., None] * data.mu / data.mu.square().sum()
        assert across.abs().max() < EXACT and (towards(data, w).abs() - towards(data, drawn).abs()).abs().max() < EXACT


def test_misaligned_filters_hurt_clients_of_one_class_and_nobody_else() -> None:
    errors = {}
    for one_class in (True, False):
        data = two_layer(one_class)
        for start in ("all aligned", "all misaligned"):
            w = data.begin(start)
            for _ in range(12):
                w = data.local(w, 0.1, 50)
            errors[one_class, start] = data.error(w)
    harm = {
        one_class: errors[one_class, "all misaligned"] - errors[one_class, "all aligned"] for one_class in (True, False)
    }
    assert harm[True] > 0.02 and abs(harm[False]) < harm[True] / 4
    with pytest.raises(ValueError, match="start='warm', accepted"):
        two_layer(True).begin("warm")
