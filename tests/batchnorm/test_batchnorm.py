"""FedTAN is centralised training, exactly; its neighbours and measures do what they say."""

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from small import equal, gap, small_data, small_federation, split
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.batchnorm.fedtan import FedTAN, UnionSGD
from fedlab_core.batchnorm.lockstep import NOTHING, Batches, Ledger, synchronised_gradients
from fedlab_core.batchnorm.measures import (
    deviation,
    deviation_by_source,
    fixed_batches,
    in_training,
    mean_gradient,
    mismatch,
    running_gap,
    union_gradient,
)
from fedlab_core.batchnorm.neighbours import class_accuracy, fixbn, four_ways, reestimate
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import build_method
from fedlab_core.methods.saving import method_to_json
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, batch_norms, total_variance

EQUAL, UNEQUAL = (6, 6, 6), (3, 5, 10)
LEFT_OUT = {
    "mean": FedTAN(mean=False),
    "variance": FedTAN(variance=False),
    "gradients": FedTAN(gradients=False),
    "variance around own means": FedTAN(around_global_mean=False),
    "statistics as constants": FedTAN(differentiate=False),
    "everything": NOTHING,
}


def make(name: str, **options: Any) -> nn.Module:
    return build_model(name, (1, 8, 8), 10, generator(0, "test weights"), norm="batch", **options).double().train()


def skewed_batches(sizes: tuple[int, ...]) -> Batches:
    draws = generator(0, "test batches", *sizes)
    return [
        (
            torch.randn(n, 1, 8, 8, generator=draws, dtype=torch.float64) + k,
            torch.randint(3 * k, 3 * k + 3, (n,), generator=draws),
        )
        for k, n in enumerate(sizes)
    ]


def error(model: nn.Module, batches: Batches, rule: FedTAN, weights: list[float] | None = None) -> float:
    return deviation(mean_gradient(model, batches, rule, weights), union_gradient(model, batches)).total_size


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet20"])
def test_the_clients_mean_gradient_is_that_of_the_union_batch_and_not_if_an_exchange_is_left_out(
    name: str, sizes: tuple[int, ...]
) -> None:
    model, batches = make(name), skewed_batches(sizes)
    assert error(model, batches, FedTAN()) < 1e-10
    for missing, rule in LEFT_OUT.items():
        assert error(model, batches, rule) > 1e-2, missing
    uniform = error(model, batches, FedTAN(), [1 / 3] * 3)
    assert uniform < 1e-10 if sizes == EQUAL else uniform > 1e-2


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.sampled_from(["mlp", "small_cnn"]), st.integers(0, 9))
@limits(max_examples=25)
def test_the_identity_holds_for_any_clients(sizes: list[int], name: str, seed: int) -> None:
    draws = generator(seed, "any batches")
    if sum(sizes) < 2:
        sizes = [*sizes, 2]
    batches = [
        (torch.randn(n, 1, 8, 8, generator=draws, dtype=torch.float64), torch.randint(10, (n,), generator=draws))
        for n in sizes
    ]
    assert error(make(name), batches, FedTAN()) < 1e-10


def test_the_paths_of_the_gradient_are_right_by_finite_differences() -> None:
    """Without another implementation: nudging a weight changes the mean loss as the gradient says."""
    model, batches = make("mlp", hidden=(5,)), skewed_batches(UNEQUAL)
    gradient = mean_gradient(model, batches, FedTAN())["blocks.0.0.weight"]
    weight, step = model.blocks[0][0].weight, 1e-6

    def objective() -> float:
        models = [copy.deepcopy(model) for _ in batches]
        losses = synchronised_gradients(models, batches, FedTAN())
        return sum(loss.item() * len(x) for loss, (x, _) in zip(losses, batches, strict=True)) / sum(UNEQUAL)

    for i, j in ((0, 3), (4, 17)):
        values = []
        for change in (step, -2 * step):
            weight.data[i, j] += change
            values.append(objective())
        weight.data[i, j] += step
        assert abs((values[0] - values[1]) / (2 * step) - gradient[i, j].item()) < 1e-7


def test_without_any_exchange_it_is_torchs_own_batch_norm() -> None:
    model, batches = make("resnet8"), skewed_batches(UNEQUAL)
    models, ledger = [copy.deepcopy(model) for _ in batches], Ledger()
    losses = synchronised_gradients(models, batches, NOTHING, ledger)
    assert ledger == Ledger(0, 0, 0)
    for ours, loss, (x, y) in zip(models, losses, batches, strict=True):
        torchs = copy.deepcopy(model)
        expected = F.cross_entropy(torchs(x), y)
        expected.backward()
        assert abs(loss - expected) < 1e-12
        for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
            assert (a.grad - b.grad).abs().max() < 1e-10
        assert gap(dict(ours.named_buffers()), dict(torchs.named_buffers())) < 1e-12


def test_a_client_with_a_single_example_can_take_part_but_not_alone() -> None:
    batches = skewed_batches((1, 1, 4))
    assert error(make("mlp"), batches, FedTAN()) < 1e-10
    with pytest.raises(ValueError, match="1 value per channel"):
        error(make("mlp"), batches, NOTHING)


@pytest.mark.parametrize("affine", [True, False])
def test_layers_without_gains_or_with_cumulative_statistics(affine: bool) -> None:
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6, affine=affine, momentum=None), nn.Linear(6, 10)
    )
    draws = generator(0, "layers")
    for parameter in layers.parameters():
        nn.init.normal_(parameter, generator=draws)
    batches = skewed_batches(UNEQUAL)
    assert error(layers.double(), batches, FedTAN()) < 1e-10
    models = [copy.deepcopy(layers) for _ in batches]
    for _ in range(2):
        synchronised_gradients(models, batches, FedTAN())
        layers(torch.cat([x for x, _ in batches]))
    assert gap(dict(models[1].named_buffers()), dict(layers.named_buffers())) < 1e-12


def test_resnet20_makes_58_exchanges_and_sends_2752_more_numbers() -> None:
    data = small_data(12)
    model = build_model("resnet20", data.input_shape, 3, generator(0, "weights"), norm="batch")
    assert len(batch_norms(model)) == 19 and sum(n.num_features for n in batch_norms(model).values()) == 688
    settings = Settings(fraction=1.0, batch_size=None, batch_norm="average")
    plain, tan = (
        Federation(data, split(4, 8), model, settings, method).run(1).history[1] for method in (FedAvg(), FedTAN())
    )
    assert plain.costs.exchanges == 1 and tan.costs.exchanges == 3 * 19 + 1 == 58
    for before, after in ((plain.costs.bytes_up, tan.costs.bytes_up), (plain.costs.bytes_down, tan.costs.bytes_down)):
        assert after - before == 2 * 2752 * 4  # two clients, float32


def test_without_batch_norm_fedtan_is_fedavg() -> None:
    tan, avg = (small_federation(split(7, 13), m, steps=3, batch_size=5).run(2) for m in (FedTAN(), FedAvg()))
    assert gap(tan.state, avg.state) < 1e-14
    assert tan.history[-1].costs.exchanges == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_step_rounds_are_centralised_training_statistics_included(momentum: float) -> None:
    options = {"norm": "batch", "batch_norm": "average", "weight_decay": 0.01, "momentum": momentum}
    tan, union = (small_federation(split(7, 20, 13), m, **options).run(5) for m in (FedTAN(), UnionSGD()))
    assert gap(tan.state, union.state) < 1e-12
    assert abs(tan.history[-1].metrics["train_loss"] - union.history[-1].metrics["train_loss"]) < 1e-12
    avg = small_federation(split(7, 20, 13), FedAvg(), **options).run(5)
    assert gap(avg.state, union.state) > 1e-2


def test_the_reference_takes_the_clients_batches_as_one() -> None:
    run = small_federation(split(4, 10), UnionSGD(), norm="batch", batch_norm="average", epochs=1, batch_size=4).run(1)
    assert [row["steps"] for row in run.history[1].clients] == [1, 3]
    assert [row["examples"] for row in run.history[1].clients] == [4, 10]
    inside = run.inside(1)
    assert equal(inside.updates[0].state, inside.updates[1].state) and equal(run.state, inside.updates[0].state)


def test_later_local_steps_are_ordinary_or_with_frozen_statistics() -> None:
    options = {"norm": "batch", "batch_norm": "average", "steps": 3, "batch_size": 6}
    runs = {m: small_federation(split(12, 12), m, **options).run(1) for m in (FedTAN(), FedTAN(freeze=True), FedAvg())}
    states = [run.state for run in runs.values()]
    assert min(gap(a, b) for a, b in itertools.combinations(states, 2)) > 1e-3
    first = small_federation(split(12, 12), UnionSGD(), **(options | {"steps": 1})).run(1).state
    frozen, free = states[1], states[0]
    assert gap(_running(frozen), _running(first)) < 1e-12 < gap(_running(free), _running(first))
    assert runs[FedTAN()].history[1].costs.steps == 6


def test_fedtan_needs_a_shared_batch_norm() -> None:
    for policy in ("local", "local_statistics", "frozen"):
        with pytest.raises(ValueError, match="average"):
            small_federation(split(8, 12), FedTAN(), norm="batch", batch_norm=policy)


def test_fedtan_is_known_by_name_and_replays_and_resumes(tmp_path: Path) -> None:
    method = FedTAN(gradients=False, freeze=True)
    assert build_method(**_as_arguments(method_to_json(method))) == method
    options = {"norm": "batch", "batch_norm": "average", "steps": 2, "batch_size": 5}
    run = small_federation(split(8, 12), method, **options).run(2)
    run.save(tmp_path)
    again = type(run).load(tmp_path, run.dataset, run.partition, run.model)
    assert equal(again.run(1).state, run.run(1).state)
    assert equal(run.inside(3).start, run.state_at(2))


def test_silobns_training_is_that_of_fedavg_bit_for_bit() -> None:
    options = {"norm": "batch", "steps": 3, "batch_size": 5, "fraction": 0.5}
    avg, silo = (
        small_federation(split(9, 8, 13, 10), batch_norm=p, **options).run(4) for p in ("average", "local_statistics")
    )
    for name in avg.trained_names:
        assert torch.equal(avg.state[name], silo.state[name])
    assert gap(silo.client_state(0), silo.client_state(1)) > 1e-3
    local = small_federation(split(9, 8, 13, 10), batch_norm="local", **options).run(4)
    assert max((local.state[n] - avg.state[n]).abs().max() for n in avg.trained_names) > 1e-3


def test_total_variance_merges_as_if_the_data_were_together() -> None:
    data = [torch.randn(n, 4, generator=generator(n, "values"), dtype=torch.float64) * n + n for n in (5, 9, 2)]
    states = [{"running_mean": x.mean(0), "running_var": x.var(0, correction=0)} for x in data]
    weights = [len(x) / 16 for x in data]
    merged = {key: sum(w * s[key] for w, s in zip(weights, states, strict=True)) for key in states[0]}
    result = total_variance(nn.BatchNorm1d(4), states, [2 * w for w in weights], merged)
    assert torch.allclose(result["running_var"], torch.cat(data).var(0, correction=0), atol=1e-12)
    assert (merged["running_var"] - result["running_var"]).abs().max() > 1


def test_the_total_variance_policy_changes_the_statistics_and_not_the_training() -> None:
    avg, total = (
        small_federation(split(10, 10), norm="batch", batch_norm=p).run(2) for p in ("average", "total_variance")
    )
    for name, tensor in avg.state.items():
        if name.endswith("running_var"):
            assert (total.state[name] > tensor).all()
        elif name in avg.trained_names:
            assert torch.equal(total.state[name], tensor)


def test_fixbn_freezes_the_statistics_and_goes_on_learning() -> None:
    run = small_federation(split(10, 20), norm="batch", batch_norm="average", steps=2, batch_size=5)
    fixed = fixbn(run, 4, 2, lr=0.05)
    assert (run.round, fixed.round, fixed.parent) == (2, 4, ("run", 2))
    assert gap(_running(fixed.state), _running(run.state)) < 1e-14
    assert gap(fixed.state, run.state) > 1e-4 and fixed.history[-1].lr == 0.05
    with pytest.raises(ValueError, match="switch=4"):
        fixbn(run, 4, 4, lr=0.05)


def test_reestimated_statistics_of_all_data_at_once_are_exact() -> None:
    run = small_federation(split(10, 20), norm="batch", batch_norm="average").run(2)
    x = run.dataset.prepare(run.dataset.x).double()
    before = in_training(run, run.state).blocks[0][0](x.flatten(1))
    state = reestimate(run, batch_size=None)
    assert torch.allclose(state["blocks.0.1.running_mean"], before.mean(0), atol=1e-12)
    assert torch.allclose(state["blocks.0.1.running_var"], before.var(0), atol=1e-12)
    assert all(torch.equal(state[name], run.state[name]) for name in run.trained_names)
    in_parts = reestimate(run, batch_size=10)
    assert torch.allclose(in_parts["blocks.0.1.running_mean"], before.mean(0), atol=1e-12)


def test_mismatch_is_the_share_of_the_variance_between_clients() -> None:
    model, batches = make("mlp"), skewed_batches(UNEQUAL)
    found = mismatch(model, batches)
    assert found.layers == ("blocks.0.1", "blocks.1.1") and found.clients == (0, 1, 2)
    x = model.blocks[0][0](torch.cat([x for x, _ in batches]).flatten(1)).detach()
    within = sum(part.var(0, correction=0) * len(part) for part in x.split(list(UNEQUAL))) / len(x)
    total = x.var(0, correction=0)
    assert abs(found.between[0] - (1 - within.sum() / total.sum())) < 1e-12
    parts = [part.var(0, correction=0) for part in x.split(list(UNEQUAL))]
    expected = ((parts[1] + 1e-5) / (total + 1e-5)).log().abs().mean()
    assert abs(found.variance[0, 1] - expected) < 1e-12
    assert len(found.rows()) == 6


def test_equal_clients_have_no_mismatch_and_no_deviation() -> None:
    batch = skewed_batches((6,))[0]
    model = make("small_cnn")
    found = mismatch(model, [batch] * 3)
    assert found.mean.max() < 1e-25 and found.variance.max() < 1e-12
    assert all(d.total_size < 1e-10 for d in deviation_by_source(model, [batch] * 3).values())


def test_the_deviation_has_two_sources_and_fedtan_neither() -> None:
    model, batches = make("small_cnn"), skewed_batches(EQUAL)
    before = copy.deepcopy(model.state_dict())
    by_source = deviation_by_source(model, batches)
    assert (
        by_source["none"].total_size
        < 1e-10
        < 1e-2
        < min(by_source[s].total_size for s in ("local", "forward", "backward"))
    )
    assert by_source["none"].total_cosine > 1 - 1e-12 > by_source["local"].total_cosine
    last = by_source["local"].names.index("head.weight")
    assert len(by_source["local"].names) == len(by_source["local"].size) == last + 2
    assert equal(before, model.state_dict())


def test_measures_refuse_a_model_without_batch_norm() -> None:
    model = build_model("mlp", (1, 8, 8), 10, generator(0, "w"), norm="group").double()
    with pytest.raises(ValueError, match="no batch normalisation"):
        mismatch(model, skewed_batches(EQUAL))


def test_fixed_batches_are_the_clients_own_and_always_the_same() -> None:
    run = small_federation(split(10, 20), norm="batch", batch_norm="average")
    once, again = fixed_batches(run, 8), fixed_batches(run, 8)
    assert [len(x) for x, _ in once] == [8, 8]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(once, again, strict=True))
    (x, y), *rest = fixed_batches(run, None, clients=[1])
    assert not rest and sorted(y.tolist()) == sorted(run.dataset.y[10:30].tolist()) and x.dtype == torch.float64


def test_the_running_gap_is_zero_for_itself() -> None:
    run = small_federation(split(10, 20), norm="batch", batch_norm="local_statistics", steps=5, batch_size=5).run(1)
    own, other = run.client_state(0), run.client_state(1)
    assert running_gap(run.model, own, own) == {"blocks.0.1": (0.0, 0.0)}
    mean, variance = running_gap(run.model, own, other)["blocks.0.1"]
    a, b = (s["blocks.0.1.running_mean"] for s in (own, other))
    assert mean == pytest.approx(((a - b).square().sum() / other["blocks.0.1.running_var"].sum()).item())
    assert variance > 0


def test_four_ways_of_one_client_are_one() -> None:
    run = small_federation(split(30), norm="batch", batch_norm="local", steps=3, batch_size=10).run(3)
    ways = four_ways(run)
    assert ways.global_data == ways.averaged == run.evaluate()["test_accuracy"]
    counts = torch.bincount(run.dataset.test_y, minlength=3).double()
    assert class_accuracy(run, run.state) @ counts / counts.sum() == pytest.approx(ways.averaged)


def test_own_data_means_the_labels_a_client_holds() -> None:
    data = small_data(60)
    data = dataclasses.replace(data, x=data.x[data.y.argsort()], y=data.y.sort().values)
    sizes = torch.bincount(data.y).tolist()
    run = small_federation(split(*sizes), norm="batch", batch_norm="local", data=data, steps=5).run(2)
    expected = 0.0
    for client, size in enumerate(sizes):  # client k holds class k and nothing else
        own = data.test_y == client
        only = dataclasses.replace(data, test_x=data.test_x[own], test_y=data.test_y[own])
        alone = Federation(only, run.partition, run.model, run.settings)
        expected += size / 60 * alone.evaluate(run.client_state(client))["test_accuracy"]
    ways = four_ways(run)
    assert ways.own_data == pytest.approx(expected) and ways.own_data > ways.global_data
    assert set(ways.to_json()) == {"own_data", "global_data", "averaged", "reestimated"}


def _running(state: State) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if "running" in name}


def _as_arguments(method: dict) -> dict:
    return {"name": method["name"], **method["options"]}
