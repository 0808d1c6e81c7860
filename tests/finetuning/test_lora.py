"""LoRA in federated learning: the error of averaging factors, and methods that are free of it, in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import equal, gap, small_data, split

from fedlab_core.engines.threads import ThreadsEngine
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.finetuning.classifiers import with_head
from fedlab_core.finetuning.lora import (
    FedSALoRA,
    ResidualLoRA,
    StackedLoRA,
    lora_layers,
    update_error,
)
from fedlab_core.finetuning.tuning import tune
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models.build import build_model
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, mean_state

SIZES, RANK, DIM, BLOCKS = (6, 10, 14), 2, 8, 2
EXACT = {"FLoRA": (StackedLoRA(), {"delta": True}), "FedEx": (ResidualLoRA(), {"delta": True})}
FREE = {**EXACT, "FFA": (FedAvg(), {"freeze_a": True})}
WAYS: dict[str, tuple[dict[str, Any], int, int]] = {
    "averaged": ({}, 2, 2),
    "FFA": ({"tuning_options": {"freeze_a": True}}, 1, 1),
    "FedSA": ({"method": "fedsa_lora"}, 1, 1),
    "FLoRA": ({"method": "flora", "tuning_options": {"delta": True}}, 2, 6),
    "FedEx": ({"method": "fedex_lora", "tuning_options": {"delta": True}}, 2, 8),
}
"""Entries of an experiment; what three clients send up and get, in r m values per layer of one client."""


def federation(method: FedAvg, sizes: tuple[int, ...] = SIZES, lora: dict | None = None, **changes) -> Federation:
    data = small_data(sum(sizes))
    vit = build_model("vit", data.input_shape, 1, generator(0, "weights"), dim=DIM, depth=BLOCKS, heads=2)
    vit = with_head(vit, data.num_classes, generator(0, "head"))
    model = tune(vit, "lora", generator(0, "tuning"), rank=RANK, **(lora or {}))
    settings = Settings(1.0, 2, batch_size=5, lr=0.5, double=True, evaluate_every=100).replace(**changes)
    return Federation(data, split(*sizes), model, settings, method)


def errors(run: Federation, round: int) -> list[float]:
    """By layer, the distance of the global update from the weighted mean of the clients', relative to it."""
    inside = run.inside(round)
    found = list(update_error(run.state_at(round), [u.state for u in inside.updates], inside.weights).values())
    assert len(found) == 2 * BLOCKS
    return found


@given(
    clients=st.integers(1, 5), rank=st.integers(1, 3), m=st.integers(1, 6), n=st.integers(1, 6), seed=st.integers(0, 99)
)
def test_three_forms_of_the_error_of_averaging_factors(clients: int, rank: int, m: int, n: int, seed: int) -> None:
    draws = generator(seed, "factors")
    states: list[State] = [
        {
            "q.a.weight": torch.randn(rank, n, generator=draws, dtype=torch.float64),
            "q.b.weight": torch.randn(m, rank, generator=draws, dtype=torch.float64),
        }
        for _ in range(clients)
    ]
    p = torch.rand(clients, generator=draws, dtype=torch.float64)
    p = (p / p.sum()).tolist()
    a, b = [s["q.a.weight"] for s in states], [s["q.b.weight"] for s in states]
    mean_a, mean_b = (sum(w * t for w, t in zip(p, ts, strict=True)) for ts in (a, b))
    error = sum(w * (y - mean_b) @ (x - mean_a) for w, x, y in zip(p, a, b, strict=True))
    pairs = sum(p[i] * p[j] * (b[i] - b[j]) @ (a[i] - a[j]) / 2 for i in range(clients) for j in range(clients))
    mean = sum(w * y @ x for w, x, y in zip(p, a, b, strict=True))
    assert torch.allclose(error, pairs, atol=1e-12)
    assert update_error(mean_state(states, p), states, p)["q"] == pytest.approx(
        (error.norm() / mean.norm()).item(), abs=1e-12
    )
    assert torch.linalg.matrix_rank(error, atol=1e-10) <= (clients - 1) * rank
    for name in ("q.a.weight", "q.b.weight"):  # equal factors of one kind make no error
        same = [state | {name: states[0][name]} for state in states]
        assert update_error(mean_state(same, p), same, p)["q"] < 1e-12


@pytest.mark.parametrize("name", FREE)
def test_the_global_update_is_the_mean_of_the_clients_updates(name: str) -> None:
    method, lora = FREE[name]
    run = federation(method, lora=lora).run(3)
    assert max(max(errors(run, number)) for number in (1, 2, 3)) < 1e-12


def test_averaging_factors_is_not() -> None:
    run = federation(FedAvg()).run(2)
    assert min(errors(run, 2)) > 1e-4


def test_averaging_factors_is_exact_with_one_client_and_after_one_step() -> None:
    alone = federation(FedAvg(), sizes=(20,)).run(2)
    assert max(errors(alone, 1) + errors(alone, 2)) < 1e-12
    step = federation(FedAvg(), epochs=None, steps=1, batch_size=None).run(2)
    assert max(errors(step, 1)) < 1e-12 < max(errors(step, 2))  # B is no longer zero in the second round


@pytest.mark.parametrize("name", EXACT)
def test_clients_hold_what_the_server_holds(name: str) -> None:
    method, lora = EXACT[name]
    run = federation(method, lora=lora).run(3)
    kept = [name for name in run.state if name.endswith(".delta")]
    assert len(kept) == 2 * BLOCKS and all(bool(run.state_at(2)[n].any()) for n in kept)
    for memory in run.past.now.clients.values():
        assert all(torch.allclose(memory[n], run.state_at(2)[n], atol=1e-12) for n in kept)
    threads = federation(method, lora=lora)
    threads.engine = ThreadsEngine(2)
    assert equal(threads.run(3).state, run.state)


def test_a_stack_begins_every_round_with_fresh_factors_and_the_same_model() -> None:
    run = federation(StackedLoRA(), lora={"delta": True}).run(2)
    layers = lora_layers(run.state)
    for layer in layers:
        a = [run.state_at(r)[layer + ".a.weight"] for r in (0, 1, 2)]
        assert not torch.equal(a[0], a[1]) and not torch.equal(a[1], a[2])
        assert a[2].abs().max() <= DIM**-0.5 and not run.state[layer + ".b.weight"].any()
    assert not torch.equal(run.state[layers[0] + ".a.weight"], run.state[layers[1] + ".a.weight"])


@pytest.mark.parametrize(
    ("method", "lora", "up", "down"),
    [
        (FedAvg(), {}, 2, lambda clients: 2),
        (FedAvg(), {"freeze_a": True}, 1, lambda clients: 1),
        (FedSALoRA(), {}, 1, lambda clients: 1),
        (StackedLoRA(), {"delta": True}, 2, lambda clients: 2 * clients),
        (ResidualLoRA(), {"delta": True}, 2, lambda clients: 2 * (clients + 1)),
    ],
    ids=["FedAvg", "FFA", "FedSA", "FLoRA", "FedEx"],
)
def test_payloads_are_exact(method: FedAvg, lora: dict, up: int, down) -> None:
    """In units of r m values per layer, with m = n: queries and values of every block."""
    run = federation(method, lora=lora).run(2)
    costs, clients = run.history[2].costs, len(SIZES)
    head = 8 * run.dataset.num_classes * (DIM + 1)
    unit = 8 * RANK * DIM * 2 * BLOCKS
    assert costs.bytes_up == clients * (head + up * unit)
    assert costs.bytes_down == clients * (head + down(clients) * unit)


def test_every_client_keeps_its_own_b() -> None:
    run = federation(FedSALoRA(), evaluate_clients=True).run(2)
    inside = run.inside(2)
    assert not any(name.endswith(".b.weight") for name in inside.sent)
    for layer in lora_layers(run.state):
        mean = sum(w * u.state[layer + ".a.weight"] for w, u in zip(inside.weights, inside.updates, strict=True))
        assert torch.allclose(run.state[layer + ".a.weight"], mean, atol=1e-12)
        for update in inside.updates:
            own = run.client_state(update.client)
            assert torch.equal(own[layer + ".b.weight"], update.state[layer + ".b.weight"])
            assert torch.equal(own[layer + ".a.weight"], run.state[layer + ".a.weight"])
    assert gap(run.client_state(0), run.client_state(1)) > 1e-4


@pytest.mark.parametrize("name", WAYS)
def test_every_way_is_plain_data_of_an_experiment(name: str, tmp_path: Path) -> None:
    changes, up, down = WAYS[name]
    options = {"rank": RANK, **changes.get("tuning_options", {})}
    vit = {"dim": DIM, "depth": BLOCKS, "heads": 2, "patch": 4}
    one = Experiment(
        dataset_options={"examples": 60}, clients=3, model="vit", model_options=vit, tuning="lora"
    ).replace(**(changes | {"tuning_options": options}), fraction=1.0, batch_size=10, double=True)
    assert Experiment.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert len({one.key, one.replace(tuning_options={}).key, one.replace(method="fedprox").key}) == 3
    run = one.build().run(2)
    units = 8 * RANK * DIM * 2 * BLOCKS
    head = 8 * run.dataset.num_classes * (DIM + 1)
    costs = run.history[2].costs
    assert (costs.bytes_up, costs.bytes_down) == (3 * (head + up * units), 3 * (head + down * units))
    if name not in ("averaged", "FedSA"):
        assert max(errors(run, 1) + errors(run, 2)) < 1e-12
    run.save(tmp_path / "run")
    again = one.load(tmp_path / "run")
    assert again.method == run.method and equal(again.run(1).state, run.run(1).state)


def test_options_of_tuning_are_checked() -> None:
    one = Experiment(model="vit", tuning="lora")
    for options, said in (
        ({"freeze_a": 1}, "freeze_a=1, accepted: True or False"),
        ({"rank": 0}, "rank=0, accepted: a whole number >= 1"),
        ({"tokens": 3}, "tokens=3: 'lora' takes"),
    ):
        with pytest.raises(ValueError, match=said):
            one.replace(tuning_options=options).build()
    with pytest.raises(ValueError, match="rank=2: 'full' takes"):
        one.replace(tuning="full", tuning_options={"rank": 2}).build()


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    "changes",
    [{"non_finite": "skip_client"}, *({"failures": {kind: 0.1}} for kind in ("unavailable", "lost", "stale"))],
)
def test_clients_that_would_miss_what_was_added_are_refused(name: str, changes: dict[str, Any]) -> None:
    method, lora = EXACT[name]
    with pytest.raises(ValueError, match=f"would miss a round, accepted by {method.name}"):
        federation(method, lora=lora, **changes)


def test_what_does_not_fit_is_refused_when_the_federation_is_built() -> None:
    with pytest.raises(ValueError, match="accepted by FedEx-LoRA: LoRA tuned with delta=True"):
        federation(ResidualLoRA())
    with pytest.raises(ValueError, match="freeze_a=False"):
        federation(StackedLoRA(), lora={"delta": True, "freeze_a": True})
    with pytest.raises(ValueError, match=r"fraction=0.5, accepted by FLoRA: 1"):
        federation(StackedLoRA(), lora={"delta": True}, fraction=0.5)
    data = small_data(10)
    model = build_model("mlp", data.input_shape, data.num_classes, generator(0, "weights"))
    with pytest.raises(ValueError, match="model is a MLP without LoRA, accepted by FedSA-LoRA"):
        Federation(data, split(10), model, Settings(1.0), FedSALoRA())


@pytest.mark.parametrize("name", EXACT)
def test_a_saved_run_goes_on_with_the_same_bits(name: str, tmp_path: Path) -> None:
    method, lora = EXACT[name]
    run = federation(method, lora=lora).run(2)
    run.save(tmp_path / "run")
    again = Federation.load(
        tmp_path / "run", run.dataset, run.partition, run.model, methods={type(method).__name__: type(method)}
    )
    assert equal(again.state, run.state) and equal(again.run(2).state, run.run(2).state)
    run.rewind(1)
    assert equal(run.run(3).state, again.state)
