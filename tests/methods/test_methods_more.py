"""Server optimisers, FedNova, FedDyn, MOON: the identities that tie them to FedAvg, and their own formulas."""

import math
from typing import Any

import pytest
import torch
from small import equal, gap, small_data, small_federation, split

from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.local.training import local_context
from fedlab_core.local.work import Task
from fedlab_core.methods.client import FedDyn, Moon
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import METHODS, build_method
from fedlab_core.methods.server import FedAdam, FedAvgM, FedNova, FedYogi
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State

NEW = {"fednova": FedNova, "fedavgm": FedAvgM, "fedadam": FedAdam, "fedyogi": FedYogi, "feddyn": FedDyn, "moon": Moon}


def run(method: FedAvg | None, sizes: tuple[int, ...] = (20, 20, 20), rounds: int = 3, **changes: Any) -> Federation:
    return small_federation(split(*sizes), method, **{"epochs": 2, "batch_size": 5, **changes}).run(rounds)


def test_the_methods_are_known_by_name_and_say_what_they_take() -> None:
    for name, kind in NEW.items():
        assert METHODS[name] is kind and type(build_method(name)) is kind
    for name, options in (
        ("fedavgm", {"beta": 1.0}),
        ("fedadam", {"tau": 0.0}),
        ("fedyogi", {"beta2": -0.1}),
        ("feddyn", {"alpha": 0.0}),
        ("moon", {"tau": 0.0}),
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            build_method(name, **options)


def test_fednova_with_equal_steps_is_fedavg() -> None:
    assert gap(run(FedNova()).state, run(None).state) < 1e-13
    assert gap(run(FedNova(), (40, 10, 10)).state, run(None, (40, 10, 10)).state) > 1e-4


def test_fednova_is_its_formula_where_steps_differ() -> None:
    federation = run(FedNova(), (40, 10, 10), rounds=1)
    start, updates, weights = (getattr(federation.inside(1), n) for n in ("start", "updates", "weights"))
    assert [u.steps for u in updates] == [16, 4, 4]
    tau = 16 * 40 / 60 + 4 * 20 / 60
    for name in start:
        direction = sum(p * (u.state[name] - start[name]) / u.steps for p, u in zip(weights, updates, strict=True))
        assert torch.allclose(federation.state[name], start[name] + tau * direction, atol=1e-14)


def test_fednova_refuses_momentum() -> None:
    with pytest.raises(ValueError, match="momentum=0.9"):
        run(FedNova(), momentum=0.9)


def test_server_momentum_nil_is_fedavg_and_otherwise_a_geometric_sum() -> None:
    assert gap(run(FedAvgM(beta=0)).state, run(None).state) < 1e-13
    federation = run(FedAvgM(beta=0.5, server_lr=0.7))
    name = federation.trained_names[0]
    momentum = 0.0
    for t in (1, 2, 3):
        inside = federation.inside(t)
        mean = sum(p * u.state[name] for p, u in zip(inside.weights, inside.updates, strict=True))
        momentum = 0.5 * momentum + mean - inside.start[name]
        assert torch.allclose(federation.state_at(t)[name], inside.start[name] + 0.7 * momentum, atol=1e-13)


def test_fedadam_and_fedyogi_follow_algorithm_2() -> None:
    for kind in (FedAdam, FedYogi):
        method = kind(server_lr=0.02, beta1=0.8, beta2=0.9, tau=0.01)
        federation = run(method)
        name = federation.trained_names[0]
        first, second = 0.0, 0.01**2
        for t in (1, 2, 3):
            inside = federation.inside(t)
            mean = sum(p * u.state[name] for p, u in zip(inside.weights, inside.updates, strict=True))
            delta = mean - inside.start[name]
            first = 0.8 * first + 0.2 * delta
            if kind is FedAdam:
                second = 0.9 * second + 0.1 * delta**2
            else:
                second = second - 0.1 * delta**2 * torch.sign(second - delta**2)
            expected = inside.start[name] + 0.02 * first / (second**0.5 + 0.01)
            assert torch.allclose(federation.state_at(t)[name], expected, atol=1e-13)


def test_fedadam_without_memory_and_with_a_huge_tau_is_fedavg() -> None:
    huge = FedAdam(server_lr=2e9, beta1=0, beta2=0.5, tau=1e9)  # v starts at tau^2: the denominator is 2 tau at first
    federation, plain = run(huge, rounds=1), run(None, rounds=1)
    start, mean = plain.state_at(0), plain.state
    for name in start:
        denominator = math.sqrt(0.5) + 1
        expected = start[name] + 2 / denominator * (mean[name] - start[name])
        assert torch.allclose(federation.state[name], expected, atol=1e-9)


def test_server_optimisers_leave_running_statistics_to_the_mean() -> None:
    federations = [
        small_federation(split(20, 20), method, "batch", batch_norm="average").run(1)
        for method in (None, FedAdam(), FedAvgM(server_lr=3.0))
    ]
    names = [n for n in federations[0].state if "running" in n or "tracked" in n]
    assert names
    plain, *others = ({n: f.state[n] for n in names} for f in federations)
    assert all(equal(plain, other) for other in others)
    kept = federations[2].past.now.server
    assert {name.removeprefix("momentum.") for name in kept} == set(federations[2].trained_names)


def test_feddyns_server_keeps_the_mean_of_what_the_clients_keep() -> None:
    federation = run(FedDyn(alpha=0.5))
    snapshot = federation.past.now
    for name in federation.trained_names:
        mean = sum(memory[f"h.{name}"] for memory in snapshot.clients.values()) / 3
        assert torch.allclose(snapshot.server[f"h.{name}"], mean, atol=1e-13)


def test_feddyns_local_models_tend_to_fedavgs_as_alpha_vanishes() -> None:
    found = [run(method, rounds=1).inside(1).updates[0].state for method in (FedDyn(alpha=1e-9), None, FedDyn(0.5))]
    assert gap(found[0], found[1]) < 1e-7 < gap(found[2], found[1])


def test_feddyn_finds_the_common_solution_where_fedavg_does_not() -> None:
    # two clients that disagree, local problems solved well: the point where the sum of the gradients vanishes
    data = small_data(40, classes=2)

    def gradient(method: FedAvg | None) -> float:
        model = build_model("mlp", data.input_shape, 2, generator(0, "initial weights"), hidden=())
        settings = Settings(
            1.0, epochs=None, steps=60, batch_size=None, lr=0.2, weight_decay=0.1, double=True, evaluate_every=1000
        )
        federation = Federation(data, split(20, 20), model, settings, method).run(60)
        weights = {n: t.clone().requires_grad_() for n, t in federation.state.items()}
        x = data.prepare(data.x).double()
        logits = torch.func.functional_call(federation.model.double(), weights, (x,))
        loss = torch.nn.functional.cross_entropy(logits, data.y)
        loss = loss + 0.05 * sum(w.square().sum() for w in weights.values())
        grads = torch.autograd.grad(loss, list(weights.values()))
        return sum(g.square().sum().item() for g in grads) ** 0.5

    assert gradient(FedDyn(alpha=0.3)) < 0.1 * gradient(None)


def test_moon_without_its_term_is_fedavg_and_its_first_round_is_too() -> None:
    assert equal(run(Moon(mu=0)).state, run(None).state)
    assert gap(run(Moon(mu=5), rounds=1).state, run(None, rounds=1).state) < 1e-12
    assert gap(run(Moon(mu=5), rounds=2).state, run(None, rounds=2).state) > 1e-4


def test_moons_loss_is_its_formula() -> None:
    federation = run(Moon(), rounds=2)
    model, state = federation.model.double(), federation.state
    memory = federation.past.now.clients[0]
    x, y = federation.dataset.prepare(federation.dataset.x[:7]).double(), federation.dataset.y[:7]
    method = Moon(mu=2.0, tau=0.3)
    work = federation.rules(3).work(3, {})
    context = local_context(model, work, Task(0, state, memory))
    method.begin(context)
    loss = method.loss(context, x, y)

    def features(weights: State) -> torch.Tensor:
        hidden = torch.relu(x.flatten(1) @ weights["blocks.0.0.weight"].T + weights["blocks.0.0.bias"])
        return hidden / hidden.norm(dim=1, keepdim=True)

    own = {n: t.detach() for n, t in model.state_dict().items()}
    previous = {n: memory[f"previous.{n}"] for n in own}
    to_global, to_last = ((features(own) * features(s)).sum(1) / 0.3 for s in (state, previous))
    contrast = -torch.log(to_global.exp() / (to_global.exp() + to_last.exp())).mean()
    expected = torch.nn.functional.cross_entropy(model(x), y) + 2 * contrast
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", NEW)
def test_every_method_runs_resumes_and_replays_bit_for_bit(name, tmp_path) -> None:
    experiment = Experiment(
        "digits",
        {"examples": 60},
        clients=3,
        model="mlp",
        model_options={"hidden": [8]},
        method=name,
        settings=Settings(1.0, steps=2, epochs=None, batch_size=10),
    )
    whole = experiment.build().run(3)
    part = experiment.build().run(2)
    part.save(tmp_path)
    again = Federation.load(tmp_path, part.dataset, part.partition, part.model).run(1)
    assert equal(whole.state, again.state)
    whole.rewind(1)
    assert equal(whole.run(2).state, again.state)
