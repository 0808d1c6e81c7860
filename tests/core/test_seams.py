"""Where a reader's own parts meet the core: precision, measures, hooks that write in place, forks and loading."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import equal, small_data, small_federation, split
from torch import Tensor, nn

from fedlab_core import probes
from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.data import Dataset
from fedlab_core.federation import Federation
from fedlab_core.history import rounds_to_target
from fedlab_core.local.work import Context
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import METHODS, build_method
from fedlab_core.settings import Settings
from fedlab_core.state import State

PARTS = split(12, 12, 12)
ALL = Settings(fraction=1.0, epochs=1, batch_size=4, lr=0.1)


def table(measure=None, flat: bool = False) -> Dataset:
    draws = torch.Generator().manual_seed(5)
    x, y = torch.randn(48, 3, generator=draws), torch.randn(48, *(() if flat else (1,)), generator=draws)
    own = {"loss": "mse"} if measure is None else {"loss": measure, "metrics": {"own": measure}}
    return Dataset.from_arrays(x[:36], y[:36], x[36:], y[36:], **own)


def classes(method: FedAvg, engine: str) -> Federation:
    return small_federation(PARTS, method, data=small_data(36), engine=engine, batch_size=4)


def regression(method: FedAvg | None = None, **changes) -> Federation:
    torch.manual_seed(0)
    return Federation(table(), PARTS, nn.Linear(3, 1), ALL.replace(**changes), method)


@pytest.mark.parametrize("engine", ["auto", "stacked", "threads", "loop"])
@pytest.mark.parametrize("cast", [False, True])
def test_double_pictures_train_on_every_engine(engine: str, cast: bool) -> None:
    x, y = np.random.default_rng(0).random((48, 1, 8, 8)), np.arange(48) % 3
    data = Dataset.from_arrays(x[:36], y[:36], x[36:], y[36:])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    run = Federation(data, PARTS, model.double() if cast else model, ALL.replace(engine=engine, double=cast)).run(1)
    assert run.state["0.weight"].dtype == (torch.float64 if cast else torch.float32)
    assert math.isfinite(run.history[1].metrics["test_loss"])


@pytest.mark.parametrize("measure", [lambda o, t: (o.view(-1, 1) - t) ** 2, lambda o, t: o.mean(), lambda o, t: 1.0])
def test_a_measure_that_is_not_one_value_per_example_is_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"^loss: gives .* accepted: a tensor \(2,\), one value per example"):
        Federation(table(measure, flat=True), PARTS, nn.Linear(3, 1), ALL)
    data = replace(table(flat=True), metrics={"own": measure})
    with pytest.raises(ValueError, match=r"^metrics\['own'\]"):
        Federation(data, PARTS, nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), ALL)


@pytest.mark.parametrize("name", ["loss", "examples"])
def test_a_metric_may_not_hide_what_is_measured_anyway(name: str) -> None:
    with pytest.raises(ValueError, match=f"metrics: the name {name!r} is taken"):
        Dataset.from_arrays(
            *(torch.rand(4, 2), torch.rand(4, 1)) * 2, loss="mse", metrics={name: lambda o, t: (o - t)[:, 0]}
        )


@dataclass(frozen=True)
class InPlace(FedAvg):
    """FedAvgM as it is usually written, with the memory changed in place; and hooks that must not write."""

    where: str = "aggregate"
    name = "in place"
    stack_obstacle = None

    def server_memory(self, state: State) -> State:
        return {name: torch.zeros_like(tensor) for name, tensor in state.items()}

    def begin(self, context: Context) -> None:
        if self.where == "begin":
            next(iter(context.start.values())).add_(1.0)

    def finish(self, context: Context, end: State) -> tuple[State, State]:
        if self.where == "finish":
            next(iter(context.start.values())).add_(1.0)
        return {}, {"count": context.memory.get("count", torch.zeros(1)) + 1}

    def aggregate(
        self, start: State, updates: Sequence, weights: Sequence[float], server: State, clients: int
    ) -> tuple[State, State]:
        merged, _ = super().aggregate(start, updates, weights, server, clients)
        for name in merged:
            server[name].mul_(0.9).add_(start[name] - merged[name])
            start[name].sub_(server[name])
        return start, server


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked"])
def test_a_server_may_write_in_place_and_the_past_stays(engine: str) -> None:
    run = classes(InPlace(), engine).run(4)
    straight = [run.state_at(round) for round in range(5)]
    other = run.fork("other", at=1).run(3)
    run.rewind(2)
    assert equal(run.run(2).state, straight[4]) and equal(other.state, straight[4])
    assert all(equal(run.state_at(round), state) for round, state in enumerate(straight))


@pytest.mark.parametrize(
    ("where", "engine"), [(w, e) for w in ("begin", "finish") for e in ("loop", "threads")] + [("finish", "stacked")]
)
def test_a_clients_hook_that_writes_into_what_it_was_given_is_refused(where: str, engine: str) -> None:
    with pytest.raises(ValueError, match="'in place': a hook changed a tensor that it was given .* accepted"):
        classes(InPlace(where), engine).run(1)


def test_a_fork_to_another_optimiser_begins_with_empty_moments() -> None:
    run = regression(keep_optimiser=True, momentum=0.9).run(2)
    other = run.fork("adam", optimiser="adam", momentum=0.0, lr=0.01)
    fresh = replace(run.past.now, clients={client: {} for client in run.past.now.clients})
    by_hand = run.fork("by hand", optimiser="adam", momentum=0.0, lr=0.01)
    assert all(not any("momentum" in key for key in memory) for memory in other.past.now.clients.values())
    by_hand.past = replace(by_hand.past, timeline=by_hand.past.timeline.added(fresh))
    assert equal(other.run(2).state, by_hand.run(2).state)
    assert any("exp_avg" in key for key in other.past.now.clients[0])


@pytest.mark.parametrize("hook", ["begin", "loss", "correct", "finish"])
def test_a_hook_that_fedtan_never_calls_is_refused(hook: str) -> None:
    own = type("Own", (FedTAN,), {hook: lambda self, *_: None})
    with pytest.raises(ValueError, match=f"has its own {hook!r}.*accepted"):
        small_federation(PARTS, own(), data=small_data(36))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x if x.sum() > 0 else -x)


def test_a_model_that_fedtan_cannot_trace_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="cannot trace Branching .* accepted"):
        Federation(table(), PARTS, Branching(), ALL, FedTAN())


def test_rounds_to_a_loss_are_those_until_it_is_as_small() -> None:
    history = regression().run(6).history
    losses = [record.metrics["test_loss"] for record in history]
    target = (losses[2] + losses[3]) / 2
    assert losses[0] > losses[2] > losses[3]
    assert rounds_to_target(history, target, "test_loss") == pytest.approx(2.5)
    assert rounds_to_target(history, target, "test_loss", smaller=False) == 0
    assert rounds_to_target(history, 0.0, "test_loss") == math.inf


def test_probes_work_where_there_is_no_accuracy() -> None:
    run = regression().run(2)
    line = probes.line(run, run.state_at(0), run.state, [0.5])
    assert all(map(math.isnan, line.accuracy)) and all(map(math.isfinite, line.loss))
    assert math.isnan(probes.local_against_global(run, 1)["harm"])
    found = probes.spread(run, 2)
    assert math.isfinite(found["average_loss"]) and math.isnan(found["average_accuracy"])


def test_a_run_whose_answer_is_a_part_is_loaded_with_it(tmp_path: Path) -> None:
    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.layer(x)}

    with pytest.raises(ValueError, match=r"output=lambda answer: answer\['logits'\]"):
        Federation(table(), PARTS, Answer(), ALL)

    def part(answer: dict[str, Tensor]) -> Tensor:
        return answer["logits"]

    run = Federation(table(), PARTS, Answer(), ALL, output=part).run(2)
    run.save(tmp_path / "run")
    again = Federation.load(tmp_path / "run", table(), PARTS, Answer(), output=part)
    assert equal(again.run(1).state, run.run(1).state)


def test_an_option_whose_default_is_a_tuple_stays_one(monkeypatch) -> None:
    @dataclass(frozen=True)
    class Layers(FedAvg):
        layers: tuple[str, ...] = ("head",)
        name = "layers"

    monkeypatch.setitem(METHODS, "layers", Layers)
    assert build_method("layers", layers=["a", "b"]).layers == ("a", "b")


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked"])
@pytest.mark.parametrize("how", ["returned", "replaced"])
def test_gradients_that_nobody_would_read_are_refused(how: str, engine: str) -> None:
    @dataclass(frozen=True)
    class Signs(FedAvg):
        name = "signs"
        stack_obstacle = None

        def correct(self, context: Context, grads: State, weights: State) -> None:
            new = {name: grad.sign() for name, grad in grads.items()}
            if how == "returned":
                return new  # type: ignore[return-value]
            grads.update(new)
            return None

    with pytest.raises(ValueError, match="'signs': `correct` returned or replaced .* accepted: changes in place"):
        classes(Signs(), engine).run(1)
