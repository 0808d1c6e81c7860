"""Texts are evaluated in short batches without the padding at their end; nothing but rounding may come of it."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from fedlab_core.data import Dataset
from fedlab_core.engines.stacked.engine import StackedEngine
from fedlab_core.engines.threads import ThreadsEngine
from fedlab_core.federation import Federation
from fedlab_core.local.training import evaluation_batches
from fedlab_core.models import build_model
from fedlab_core.partition import iid
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings


def texts(n: int, length: int = 9) -> Dataset:
    """Random texts of 0 to `length` characters, padded at their end."""
    draws = generator(1, "texts")
    x = torch.randint(1, 5, (n, length), generator=draws)
    y = torch.randint(0, 5, (n, length), generator=draws)
    padded = torch.arange(length) >= torch.randint(0, length + 1, (n, 1), generator=draws)
    x, y = x.masked_fill(padded, 0), y.masked_fill(padded, -100)
    x[0], y[0] = 1, 2  # one that is whole
    return Dataset("texts", "text", x, y, x, y, tuple("abcde"))


class Backwards(nn.Module):
    """Reads texts from their end, so that padding counts; it says nothing about that."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(5, 4), nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(x.flip(1)))[0].flip(1))


def federation(model: nn.Module | None = None, n: int = 150, data: Dataset | None = None) -> Federation:
    data = data or texts(n)
    model = model or build_model("lstm", data.input_shape, 5, generator(0, "weights"), embedding=3, hidden=6)
    settings = Settings(1.0, batch_size=20, lr=0.5, double=True, evaluate_clients=True)
    return Federation(data, iid(n, 5, generator(0, "partition")), model, settings)


def plainly(model: nn.Module, data: Dataset) -> dict[str, float]:
    """The oracle: all texts at once, with their padding."""
    with torch.no_grad():
        outputs = model(data.test_x)
    counted = data.test_y != -100
    loss = nn.functional.cross_entropy(outputs.flatten(0, 1), data.test_y.flatten(), ignore_index=-100)
    right = (outputs.argmax(-1) == data.test_y)[counted].double().mean()
    return {"test_loss": loss.item(), "test_accuracy": right.item()}


@pytest.mark.parametrize("model", [None, Backwards()])
def test_measures_are_those_of_all_texts_at_once(model: nn.Module | None) -> None:
    run = federation(model).run(1)
    assert run.evaluate() == pytest.approx(plainly(run.trained_model(), run.dataset), rel=1e-12)


def test_engines_agree_on_texts() -> None:
    loop = federation().run(1)
    states = [loop.state_at(0), loop.state, loop.state_at(0), loop.state, loop.state]
    expected = loop.evaluate_states(states)
    for engine in (ThreadsEngine(2), ThreadsEngine(3), StackedEngine(2)):
        other = loop.fork("other")
        other.engine = engine
        assert other.evaluate_states(states) == expected
        assert other.evaluate(states[0]) == expected[0]


def test_padding_is_left_out_for_causal_models_only() -> None:
    run = federation()
    batches = evaluation_batches(run.rules(1).work(1, {}), "test")
    lengths = [x.shape[1] for x, _ in batches]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == 9 > lengths[-1]
    assert all((y != -100).any(0).all() and x.shape == y.shape for x, y in batches)
    assert sum(int((y != -100).sum()) for _, y in batches) == int((run.dataset.test_y != -100).sum())
    other = evaluation_batches(federation(Backwards()).rules(1).work(1, {}), "test")
    assert torch.equal(torch.cat([x for x, _ in other]), run.dataset.test_x)


def test_a_loss_of_its_own_sees_every_position() -> None:
    data = dataclasses.replace(texts(150), loss=lambda outputs, y: outputs.square().mean((1, 2)), metrics={})
    batches = evaluation_batches(federation(data=data).rules(1).work(1, {}), "test")
    assert torch.equal(torch.cat([x for x, _ in batches]), data.test_x)
