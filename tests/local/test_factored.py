"""Factored gradients give the steps of `torch.optim.SGD`, and are left alone where something else reads them."""

import pytest
import torch
from small import equal, gap, small_federation, split
from torch import Tensor, nn

from fedlab_core.engines.threads import ThreadsEngine
from fedlab_core.federation import Federation
from fedlab_core.local import factored as module
from fedlab_core.local.factored import FactoredLinear, factored
from fedlab_core.methods.client import FedProx, Scaffold
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models import build_model
from fedlab_core.randomness import generator


def run(wide: float, monkeypatch: pytest.MonkeyPatch, method: FedAvg | None = None, **options: object) -> Federation:
    monkeypatch.setattr(module, "WIDE", wide)
    federation = small_federation(split(10, 4, 19), method, **{"batch_size": 4, "lr": 0.1, "norm": "batch"} | options)
    return federation.run(2)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"norm": "none", "batch_size": None, "epochs": 3}])
def test_factored_training_differs_from_unfactored_by_rounding(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    options = {"batch_norm": None if options.get("norm") == "none" else "average"} | options
    plain, wide = (run(least, monkeypatch, **options) for least in (float("inf"), 1))
    assert gap(wide.state, plain.state) < 1e-13 and not equal(wide.state, wide.state_at(0))
    losses = [[row["loss"] for row in federation.history[-1].clients] for federation in (wide, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    threads = wide.fork("threads", at=0)
    threads.engine = ThreadsEngine(2)
    assert equal(threads.run(2).state, wide.state)


@pytest.mark.parametrize(("method", "momentum"), [(FedAvg(), 0.9), (FedProx(0.1), 0.0), (Scaffold(), 0.0)])
def test_nothing_is_factored_where_gradients_are_read(
    monkeypatch: pytest.MonkeyPatch, method: FedAvg, momentum: float
) -> None:
    options = {"method": method, "momentum": momentum, "batch_norm": "average"}
    plain, wide = (run(least, monkeypatch, **options) for least in (float("inf"), 1))
    assert equal(wide.state, plain.state)


class Twice(nn.Module):
    """A layer used twice, on rows and on sequences of rows, one without bias, and one that is frozen."""

    def __init__(self, parts: tuple[bool, bool]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        self.c.requires_grad_(False)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(torch.tanh(self.a(x))) if self.parts[0] else x
        x = self.a(x[:, None])[:, 0] if self.parts[1] else x
        return self.c(self.b(x)).square().sum()


@pytest.mark.parametrize("parts", [(True, False), (False, True), (True, True)])
def test_a_layer_may_be_used_twice_and_on_more_dimensions(
    monkeypatch: pytest.MonkeyPatch, parts: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(module, "WIDE", 1)
    x, states = torch.randn(5, 3, dtype=torch.float64, generator=generator(0, "x")), []
    for plain in (False, True):
        torch.manual_seed(0)
        model = Twice(parts).double()
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, weight_decay=0.1)
        with factored(model, optimiser, plain) as layers:
            assert layers == ([model.a, model.b] if plain else []) and type(model.c) is nn.Linear
            for _ in range(3):
                optimiser.zero_grad()
                model(x).backward()
                assert (model.b.weight.grad is None) == plain
                optimiser.step()
                assert not any(layer.factors for layer in layers)
        states.append(model.state_dict())
        assert not any(isinstance(layer, FactoredLinear) or hasattr(layer, "factors") for layer in model.modules())
    assert gap(*states) < 1e-14


def test_shared_weights_are_not_factored_and_mcmahans_cnn_has_one_wide_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    cnn = build_model("cnn", (1, 28, 28), 10, generator(0, "initial weights"))
    with factored(cnn, torch.optim.SGD(cnn.parameters()), True) as layers:
        assert layers == [cnn.dense]
    monkeypatch.setattr(module, "WIDE", 1)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with factored(model, torch.optim.SGD(model.parameters()), True) as layers:
        assert layers == []
