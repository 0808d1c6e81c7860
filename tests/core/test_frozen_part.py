"""A frozen first part is computed once per example: everything comes out as without that, within rounding."""

import pytest
import torch
from small import gap, small_data, split
from torch import nn

from fedlab_core.engines.frozen import FrozenEngine
from fedlab_core.federation import Federation
from fedlab_core.methods.client import FedProx, Moon, Scaffold
from fedlab_core.methods.fedavg import FedAvg, LocalOnly
from fedlab_core.settings import Settings


class WithHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(16, 3)
        self.calls = 0

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def head_only() -> nn.Module:
    torch.manual_seed(0)
    model = WithHead()
    model.body.requires_grad_(False)
    return model


def sequential() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Linear(16, 8).requires_grad_(False)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def federation(model: nn.Module, method: FedAvg | None = None, **changes: object) -> Federation:
    settings = Settings(1.0, epochs=2, batch_size=4, lr=0.2, double=True, batch_norm="frozen", evaluate_clients=True)
    return Federation(small_data(69), split(10, 4, 19, 30, 6), model, settings.replace(**changes), method)


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked", "auto"])
@pytest.mark.parametrize("make", [head_only, sequential])
@pytest.mark.parametrize(
    "method, few", [(FedAvg(), None), (FedAvg(), 5), (FedProx(0.1), 5), (Scaffold(), None), (LocalOnly(), 5)]
)
def test_rounds_are_those_of_the_whole_model(engine: str, make: object, method: FedAvg, few: int | None) -> None:
    if engine == "stacked" and make is sequential:
        engine = "auto"  # dropout cannot be stacked
    plain = federation(make(), method, client_examples=few).run(3)
    once = federation(make(), method, engine=engine, cache_frozen=True, client_examples=few).run(3)
    assert isinstance(once.engine, FrozenEngine)
    assert gap(plain.state, once.state) < 1e-12 and list(plain.state) == list(once.state)
    for ours, theirs in zip(once.history, plain.history, strict=True):
        assert ours.costs == theirs.costs
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-9, abs=1e-9)
    assert once.evaluate(split="train") == pytest.approx(plain.evaluate(split="train"), rel=1e-12)
    assert once.evaluate(once.state_at(1)) == pytest.approx(plain.evaluate(plain.state_at(1)), rel=1e-12)


def test_another_frozen_part_is_computed_anew() -> None:
    once = federation(head_only(), cache_frozen=True).run(1)
    other = {name: tensor * 1.5 if name == "body.0.weight" else tensor for name, tensor in once.state.items()}
    plain = federation(head_only())
    for state in (once.state, other, once.state):
        assert once.evaluate(state) == pytest.approx(plain.evaluate(state), rel=1e-12)


@pytest.mark.parametrize(
    ("make", "changes", "method", "said"),
    [
        (WithHead, {}, None, "no module before"),
        (head_only, {"batch_norm": "average"}, None, "otherwise in training"),
        (head_only, {"mixed_precision": True, "double": False}, None, "mixed precision"),
        (head_only, {}, Moon(), "asks the model for more"),
    ],
)
def test_what_cannot_be_kept_is_refused(make: object, changes: dict, method: FedAvg | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        federation(make(), method, cache_frozen=True, **changes)
