"""Optimisers, clipping, whole batches and values that are not finite: the same on every engine."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from small import equal, gap, small_data, small_federation, split

from fedlab_core.federation import Federation
from fedlab_core.local.work import Context
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.round import NonFiniteError
from fedlab_core.settings import Settings
from fedlab_core.state import State

SIZES = split(9, 20, 14)


@pytest.mark.parametrize(
    "options",
    [
        {"optimiser": "adam", "lr": 0.01},
        {"optimiser": "adamw", "lr": 0.01, "weight_decay": 0.1},
        {"optimiser": "adam", "keep_optimiser": True, "lr": 0.01},
        {"momentum": 0.9, "keep_optimiser": True, "lr": 0.05},
        {"clip_norm": 0.1},
        {"drop_last": True},
    ],
    ids=str,
)
def test_every_engine_agrees_and_runs_resume(options: dict, tmp_path) -> None:
    options = {"batch_size": 6, "fraction": 0.7} | options
    loop = small_federation(SIZES, **options).run(3)
    assert equal(small_federation(SIZES, engine="threads", **options).run(3).state, loop.state)
    auto = small_federation(SIZES, engine="auto", **options).run(3)
    assert gap(auto.state, loop.state) < 1e-12
    loop.save(tmp_path)
    loaded = Federation.load(tmp_path, loop.dataset, loop.partition, loop.model)
    assert equal(loaded.run(1).state, loop.run(1).state)


def test_an_optimiser_that_is_kept_goes_on_where_it_was() -> None:
    options = {"optimiser": "adam", "lr": 0.01, "batch_size": None, "epochs": None}
    whole = small_federation(split(20), steps=4, keep_optimiser=True, **options).run(1)
    halves = small_federation(split(20), steps=2, keep_optimiser=True, **options).run(2)
    fresh = small_federation(split(20), steps=2, **options).run(2)
    assert gap(whole.state, halves.state) < 1e-12 < 1e-4 < gap(whole.state, fresh.state)


def test_a_clipped_gradient_is_no_longer_than_asked_for() -> None:
    run = small_federation(split(20, 20), clip_norm=0.01, lr=1.0, batch_size=None).run(1)
    assert all(row["drift"] <= 0.01 * (1 + 1e-9) for row in run.history[1].clients)


def test_whole_batches_leave_the_rest_out_and_costs_say_so() -> None:
    run = small_federation(split(20, 5), batch_size=8, drop_last=True, epochs=3).run(1)
    assert [row["steps"] for row in run.history[1].clients] == [6, 3]
    assert run.history[1].costs.examples == 3 * 16 + 3 * 5


@dataclass(frozen=True)
class Broken(FedAvg):
    """Client 1 sends garbage."""

    value: float = float("nan")

    def upload(self, context: Context, end: State) -> State:
        return {name: tensor * self.value for name, tensor in end.items()} if context.client == 1 else end


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("engine", ["loop", "threads", "stacked", "auto"])
def test_a_client_whose_values_are_not_finite_is_named(engine: str, value: float) -> None:
    run = small_federation(SIZES, Broken(value), engine=engine, batch_size=5)
    with pytest.raises(NonFiniteError, match="round 1: client 1 .* lr=0.3.* stands at round 0") as caught:
        run.run(2)
    assert (caught.value.round, caught.value.client, caught.value.lr, run.round) == (1, 1, 0.3, 0)
    skipping = small_federation(SIZES, Broken(value), engine=engine, batch_size=5, non_finite="skip_client").run(2)
    assert [record.non_finite for record in skipping.history] == [[], [1], [1]]
    assert all(tensor.isfinite().all() for tensor in skipping.state.values())
    inside = skipping.inside(2)
    assert inside.weights == pytest.approx([9 / 23, 0, 14 / 23])
    kept = small_federation(SIZES, Broken(value), engine=engine, batch_size=5, non_finite="keep").run(1)
    assert kept.history[1].non_finite == [1] and not kept.state["head.weight"].isfinite().all()


def test_nobody_finite_leaves_the_model_as_it_was() -> None:
    run = small_federation(split(20, 20), lr=1e200, steps=3, non_finite="skip_client").run(2)
    assert run.history[2].non_finite == [0, 1] and equal(run.state, run.state_at(0))


def test_scalars_of_libraries_become_plain_values_at_once() -> None:
    settings = Settings(
        seed=np.int64(1),
        lr=np.float32(0.05),
        epochs=torch.tensor(2),
        device=torch.device("cpu"),
        fraction=np.array(0.5),
    )
    assert settings == Settings(seed=1, lr=0.05, epochs=2, device="cpu", fraction=0.5)
    assert all(type(v) in (int, float, str, bool, type(None)) for v in settings.to_json().values())
    for wrong in (
        {"lr": "0.1"},
        {"lr": True},
        {"seed": 0.5},
        {"device": "gpu0"},
        {"evaluate_every": None},
        {"double": 1},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*accepted"):
            Settings(**wrong)


@dataclass(frozen=True)
class Interrupted(FedAvg):
    """Is interrupted at chosen moments of round 2."""

    moment: str = "aggregate"

    def aggregate(self, *arguments):
        if self.moment == "aggregate" and MOMENTS:
            raise MOMENTS.pop()
        return super().aggregate(*arguments)

    def evaluate(self, engine, work, states, split):
        if self.moment == "evaluate" and work.round == 3 and MOMENTS:
            raise MOMENTS.pop()
        return super().evaluate(engine, work, states, split)

    def finish(self, context, end):
        if self.moment == "finish" and context.round == 2 and context.client == 1 and MOMENTS:
            raise MOMENTS.pop()
        return super().finish(context, end)


MOMENTS: list[BaseException] = []


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked"])
@pytest.mark.parametrize("moment", ["aggregate", "evaluate", "finish"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("an own metric")], ids=repr)
def test_whatever_is_raised_in_a_round_leaves_whole_rounds(engine: str, moment: str, error: BaseException) -> None:
    MOMENTS.clear()
    run = small_federation(SIZES, Interrupted(moment), engine=engine, batch_size=5).run(1)
    MOMENTS.append(error)
    with pytest.raises(type(error)):
        run.run(1)
    assert run.round == 1 == run.history[-1].round and run.timeline.rounds() == [0, 1]
    assert equal(run.run(2).state, small_federation(SIZES, engine=engine, batch_size=5).run(3).state)
    assert [record.round for record in run.history] == [0, 1, 2, 3]


def test_the_trained_model_is_an_ordinary_module() -> None:
    run = small_federation(SIZES, norm="batch", batch_norm="local", batch_size=5).run(3)
    x = run.dataset.prepare(run.dataset.test_x).double()
    for round, client in ((None, None), (1, None), (3, 2)):
        model = run.trained_model(round, client).double()
        state = (
            run.state_at(run.round if round is None else round) if client is None else run.client_state(client, round)
        )
        accuracy = (model(x).argmax(1) == run.dataset.test_y).double().mean().item()
        assert accuracy == pytest.approx(run.evaluate(state)["test_accuracy"]) and not model.training
    assert not equal(run.state, run.state_at(0)) and run.trained_model() is not run.model
    exported = torch.export.export(run.trained_model().float(), (x[:2].float(),))
    assert torch.allclose(exported.module()(x[:2].float()), run.trained_model().float()(x[:2].float()), atol=1e-6)


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked", "auto"])
def test_clients_may_be_chosen_by_a_method(engine: str) -> None:
    @dataclass(frozen=True)
    class Rotating(FedAvg):
        def sample(self, clients: int, count: int, seed: int, round: int) -> list[int]:
            return sorted((round + k) % clients for k in range(count))

    run = small_federation(SIZES, Rotating(), fraction=0.7, engine=engine).run(3)
    assert [[row["client"] for row in record.clients] for record in run.history[1:]] == [[1, 2], [0, 2], [0, 1]]
    assert small_data(3).classes


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epochs": 0}, "epochs=0, accepted: a whole number >= 1 or None"),
        (
            {"schedule_rounds": 10**30},
            "schedule_rounds=1000.*, accepted: a whole number >= 1 and <= 9223372036854775807",
        ),
        ({"fraction": 2}, "fraction=2, accepted: a number >= 0 and <= 1"),
        ({"lr": 10**400}, r"lr=1000.* \.\.\., accepted: a number > 0, at most 2\*\*63 - 1"),
        ({"weight_decay": 10**30}, "weight_decay=1000.*, accepted: a number >= 0, at most"),
        ({"clip_norm": 10**19}, "clip_norm=1000.*, accepted: a number > 0, at most .* or None"),
        ({"momentum": 1.0}, "momentum=1.0, accepted: a number >= 0 and < 1"),
        ({"momentum": 0.5, "optimiser": "adam"}, "momentum=0.5, accepted: 0 with optimiser='adam'"),
        ({"channels_last": 1}, "channels_last=1, accepted: True or False or None"),
        ({"optimiser": "sgdm"}, "optimiser='sgdm', accepted: 'sgd', 'adam', 'adamw'"),
        ({"batch_norm": 3}, "batch_norm=3, accepted: the name of a policy or None"),
        ({"epochs": 1, "steps": 1}, "epochs=1, steps=1, accepted: exactly one of the two"),
    ],
)
def test_settings_are_refused_in_the_grammar_of_all_arguments(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        Settings(**values)
