"""The promises of the round loop: exact identities, addressed randomness, time travel."""

import copy
import json
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import equal, gap, plain_sgd, small_data, small_federation, split

from fedlab_core import drift as drift_module
from fedlab_core.checkpoint.manifest import record_from_json
from fedlab_core.federation import Federation
from fedlab_core.local.training import batches
from fedlab_core.local.work import task_loss
from fedlab_core.methods.client import FedProx, Scaffold
from fedlab_core.methods.fedavg import FedAvg, FedSGD, LocalOnly
from fedlab_core.partition import Partition, pooled
from fedlab_core.randomness import generator
from fedlab_core.references import centralised, local_only
from fedlab_core.sampling import aggregation_weights, sample_clients
from fedlab_core.settings import Settings


def test_fedsgd_steps_along_the_gradient_of_the_sampled_clients_union() -> None:
    federation = small_federation(split(7, 20, 13, 20), FedSGD(), fraction=0.5)
    sampled = sample_clients(4, 2, 0, 1)
    union = torch.cat([federation.partition[client] for client in sampled])
    expected = plain_sgd(copy.deepcopy(federation.model), federation.dataset, [union], lr=0.3)
    assert gap(federation.run(1).state, expected) < 1e-12


def test_fedsgd_is_fedavg_with_one_epoch_on_the_whole_data() -> None:
    fedsgd = small_federation(split(7, 20, 13), FedSGD(), epochs=3, batch_size=4).run(4)
    fedavg = small_federation(split(7, 20, 13), FedAvg(), epochs=1, batch_size=None).run(4)
    assert equal(fedsgd.state, fedavg.state)


def test_one_client_is_plain_sgd_with_momentum_and_weight_decay() -> None:
    options = {"momentum": 0.9, "weight_decay": 0.01}
    federation = small_federation(pooled(30), epochs=2, batch_size=8, **options)
    order = list(batches(30, federation.settings, generator(0, "batches", 1, 0)))
    assert [len(batch) for batch in order] == [8, 8, 8, 6] * 2
    expected = plain_sgd(copy.deepcopy(federation.model), federation.dataset, order, 0.3, **options)
    assert gap(federation.run(1).state, expected) < 1e-12


def test_fedprox_without_its_term_is_fedavg_bit_for_bit_and_with_it_stays_closer() -> None:
    run = {mu: small_federation(split(20, 20), FedProx(mu), epochs=5, batch_size=5).run(2) for mu in (0.0, 1.0)}
    plain = small_federation(split(20, 20), FedAvg(), epochs=5, batch_size=5).run(2)
    assert equal(run[0.0].state, plain.state)
    assert run[1.0].history[1].metrics["drift"] < 0.9 * plain.history[1].metrics["drift"]


def test_a_round_under_way_is_not_trained_again_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = small_federation(split(7, 20, 13))
    for record in federation.rounds(2):
        seen = federation.inside(record.round)
        with monkeypatch.context() as patched:
            patched.setattr(federation.engine, "train", None)
            assert federation.inside(record.round) is seen
    states = [update.state for update in seen.updates]
    del seen
    again = federation.inside(2)  # replayed
    assert all(equal(update.state, state) for update, state in zip(again.updates, states, strict=True))
    federation.rewind(1)
    assert federation.inside(1).number == 1


def test_fedprox_follows_the_gradient_of_its_objective() -> None:
    federation = small_federation(pooled(20), FedProx(0.7), epochs=None, steps=3)
    model, data = copy.deepcopy(federation.model).double(), federation.dataset
    start = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        proximal = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True))
        loss = task_loss(model(data.prepare(data.x[:20]).double()), data.y[:20]) + 0.7 / 2 * proximal
        grads = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), grads, strict=True):
                p -= 0.3 * g
    assert gap(federation.run(1).state, model.state_dict()) < 1e-12


def test_scaffold_on_identical_clients_is_sgd() -> None:
    data = small_data(20)
    same = Partition(torch.arange(20).repeat(3), torch.tensor([0, 20, 40, 60]), "three copies of one client")
    federation = small_federation(same, Scaffold(), data=data, epochs=None, steps=2)
    expected = plain_sgd(copy.deepcopy(federation.model), data, [torch.arange(20)] * 8, lr=0.3)
    assert gap(federation.run(4).state, expected) < 1e-12


def test_scaffold_controls_are_the_clients_mean_gradients() -> None:
    federation = small_federation(split(10, 30), Scaffold(), epochs=None, steps=1)
    start = federation.state
    federation.run(1)
    memory = federation.timeline.at_or_before(1).clients[1]
    alone = plain_sgd(copy.deepcopy(federation.model), federation.dataset, [torch.arange(10, 40)], lr=0.3)
    for name in federation.trained_names:
        assert (memory[f"control.{name}"] - (start[name] - alone[name]) / 0.3).abs().max() < 1e-12


def test_scaffold_refuses_momentum() -> None:
    with pytest.raises(ValueError, match="momentum=0.9"):
        small_federation(split(10, 10), Scaffold(), momentum=0.9)


def test_weights_are_by_examples_of_the_sampled_clients() -> None:
    sizes = torch.tensor([10, 20, 30, 40])
    assert aggregation_weights(sizes, [0, 2], "examples") == [0.25, 0.75]
    assert aggregation_weights(sizes, [0, 2], "uniform") == [0.5, 0.5]
    assert aggregation_weights(sizes, [0, 2], "printed_v3") == [0.1, 0.3]
    federation = small_federation(split(7, 20, 13, 20), fraction=0.5, epochs=2).run(1)
    inside = federation.inside(1)
    total = sum(u.examples for u in inside.updates)
    for name, tensor in federation.state.items():
        assert torch.allclose(tensor, sum(u.state[name] * (u.examples / total) for u in inside.updates), atol=1e-14)


def test_printed_weights_leave_the_rest_to_the_old_model() -> None:
    federation = small_federation(split(10, 10, 20), fraction=0.4, weighting="printed_v3").run(1)
    inside = federation.inside(1)
    assert sum(inside.weights) < 1
    name = federation.trained_names[0]
    expected = (1 - sum(inside.weights)) * inside.start[name]
    expected = expected + sum(w * u.state[name] for w, u in zip(inside.weights, inside.updates, strict=True))
    assert torch.allclose(federation.state[name], expected, atol=1e-14)


def test_the_order_of_clients_changes_nothing() -> None:
    sizes, order = [7, 20, 13], [2, 0, 1]
    blocks = torch.arange(40).split(sizes)
    shuffled = Partition(
        torch.cat([blocks[k] for k in order]), torch.tensor([0, *(sizes[k] for k in order)]).cumsum(0), "shuffled"
    )
    straight = small_federation(split(*sizes), epochs=3).run(3)
    assert gap(straight.state, small_federation(shuffled, epochs=3).run(3).state) < 1e-12


def test_no_global_seed_and_no_model_of_the_caller_is_touched() -> None:
    data = small_data()
    before = torch.get_rng_state(), torch.get_num_threads()
    federation = small_federation(split(30, 30), data=data, batch_size=4)
    mine = copy.deepcopy(federation.model)
    again = Federation(data, split(30, 30), mine, Settings(fraction=1.0))
    weights = {name: tensor.clone() for name, tensor in mine.state_dict().items()}
    federation.run(2)
    again.run(2)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == torch.get_num_threads()
    assert equal(weights, mine.state_dict()) and mine.training


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 5), st.data())
def test_sampling_is_a_subset_that_depends_on_seed_and_round_alone(
    clients: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, clients))
    first, second = (sample_clients(clients, count, seed, 3) for _ in range(2))
    assert first == second == sorted(set(first)) and len(first) == count
    assert set(first) <= set(range(clients))


@pytest.mark.parametrize("clients, count", [(1000, 4), (20, 5)])
def test_sampling_is_uniform_in_both_of_its_ways(clients: int, count: int) -> None:
    hits, rounds = torch.zeros(clients), 4000
    for round in range(rounds):
        hits[sample_clients(clients, count, 0, round)] += 1
    halves = hits.view(2, -1).sum(1) / (rounds * count)
    assert (halves - 0.5).abs().max() < 0.02  # five standard deviations
    assert hits.max() < 6 * rounds * count / clients + 30


def test_running_in_pieces_stopping_and_replaying_give_the_same_bits() -> None:
    straight = small_federation(split(20, 20, 20), Scaffold(), fraction=0.7, batch_size=4).run(6)
    pieces = small_federation(split(20, 20, 20), Scaffold(), fraction=0.7, batch_size=4)
    for _ in pieces.rounds(100):
        if pieces.round == 2:
            break
    stop = threading.Event()

    def stop_in_round_4(done: int, sampled: int) -> None:
        if pieces.round == 3:
            stop.set()

    assert [r.round for r in pieces.rounds(3, stop=stop, progress=stop_in_round_4)] == [3]
    assert pieces.round == 3
    pieces.run(3)
    assert pieces.history == straight.history and equal(pieces.state, straight.state)
    assert equal(straight.inside(5).updates[0].state, pieces.inside(5).updates[0].state)


@pytest.mark.parametrize("memory_mib", [512.0, 0.001])
def test_rewinding_and_running_on_equals_never_having_left(memory_mib: float) -> None:
    data = small_data()
    model = small_federation(split(60), data=data).model
    options = Settings(fraction=0.5, batch_size=4, double=True)

    def fresh() -> Federation:
        return Federation(data, split(20, 20, 20), model, options, Scaffold(), memory_mib=memory_mib)

    straight, other = fresh().run(9), fresh().run(9)
    assert (len(other.timeline.rounds()) < 10) == (memory_mib < 1)
    other.rewind(5)
    assert (other.round, len(other.history)) == (5, 6)
    other.run(4)
    assert other.history == straight.history and equal(other.state, straight.state)
    assert all(equal(other.state_at(t), straight.state_at(t)) for t in range(10))
    other.rewind(0)
    assert equal(other.run(9).state, straight.state)


def test_a_fork_shares_the_past_and_leaves_its_parent_alone() -> None:
    parent = small_federation(split(20, 20, 20), batch_size=4).run(6)
    history, state = list(parent.history), parent.state
    fork = parent.fork("slower", at=3, lr=0.01)
    assert fork.parent == ("run", 3) and fork.history == history[:4] and equal(fork.state, parent.state_at(3))
    fork.run(3)
    assert parent.history == history and equal(parent.state, state)
    assert fork.history[4] != history[4] and fork.history[4].lr == 0.01
    same = parent.fork("same", at=3).run(3)
    assert same.history == history and equal(same.state, state)
    fork.rewind(2)
    assert fork.settings.lr == 0.3
    assert equal(fork.run(4).state, state)


def test_a_fork_may_change_the_method_and_forgets_the_old_memories() -> None:
    parent = small_federation(split(20, 20), Scaffold()).run(3)
    plain = parent.fork("plain", at=2, method=FedAvg()).run(1)
    assert plain.timeline.at_or_before(3).clients == {}
    assert equal(plain.inside(3).start, parent.state_at(2))
    assert plain.history[3].costs.bytes_up < parent.history[3].costs.bytes_up


def test_batch_norm_needs_a_named_policy() -> None:
    with pytest.raises(ValueError, match="batch_norm=None.*'average'"):
        small_federation(split(20, 20), norm="batch")
    with pytest.raises(ValueError, match="batch_norm='avg', accepted"):
        small_federation(split(20, 20), norm="batch", batch_norm="avg")


def test_batch_norm_policies_decide_what_travels() -> None:
    runs = {
        policy: small_federation(split(20, 20), norm="batch", batch_norm=policy, batch_size=5).run(3)
        for policy in ("average", "local_statistics", "local", "frozen")
    }
    layers = 6 * 8  # six units in float64
    up = {policy: run.history[1].costs.bytes_up / 2 for policy, run in runs.items()}
    assert up["average"] - up["local_statistics"] == 2 * layers + 8  # mean, variance, and the counter of batches
    assert up["local_statistics"] - up["local"] == 2 * layers
    assert up["frozen"] == up["average"]
    for name in runs["average"].trained_names:  # in training, batch normalisation never reads its running statistics
        assert torch.equal(runs["average"].state[name], runs["local_statistics"].state[name])
    frozen = runs["frozen"].state
    assert torch.equal(frozen[next(n for n in frozen if "running_mean" in n)], torch.zeros(6, dtype=torch.float64))


def test_local_tensors_stay_with_their_client() -> None:
    run = small_federation(split(20, 20), norm="batch", batch_norm="local", batch_size=5).run(2)
    inside = run.inside(2)
    own = [run.client_state(client) for client in (0, 1)]
    for name in run.roles.local:
        for client in (0, 1):
            assert torch.equal(own[client][name], inside.updates[client].state[name])
    assert any(not torch.equal(own[0][name], own[1][name]) for name in run.roles.local)
    assert all(torch.equal(own[0][name], run.state[name]) for name in run.state if name not in run.roles.local)
    first = small_federation(split(20, 20), norm="batch", batch_norm="local", batch_size=5).run(1)
    task = first.rules(1).task(0, first.past.now)
    assert all(torch.equal(task.state[n], first.inside(1).updates[0].state[n]) for n in first.roles.local)


def test_local_only_is_each_client_alone_and_costs_no_byte() -> None:
    run = small_federation(split(20, 40), LocalOnly(), batch_size=None).run(3)
    alone = plain_sgd(copy.deepcopy(run.model), run.dataset, [torch.arange(20)] * 3, lr=0.3)
    assert gap(run.client_state(0), alone) < 1e-12
    assert run.history[-1].total.bytes == run.history[-1].total.exchanges == 0
    results = run.evaluate_states([run.client_state(client) for client in (0, 1)])
    mean = (20 * results[0]["test_accuracy"] + 40 * results[1]["test_accuracy"]) / 60
    assert run.history[-1].metrics["test_accuracy"] == pytest.approx(mean)


def test_references_have_the_same_budget_of_gradient_steps() -> None:
    run = small_federation(split(20, 20, 20, 20), fraction=0.5, epochs=3, batch_size=5).run(4)
    for reference in (centralised(run), local_only(run)):
        reference.run(4)
        assert reference.history[-1].total.steps == run.history[-1].total.steps == 4 * 2 * 3 * 4
        assert equal(reference.state_at(0), run.state_at(0))
    assert len(centralised(run).partition) == 1


def test_records_are_plain_data() -> None:
    run = small_federation(split(20, 20), evaluate_clients=True, evaluate_every=2).run(3)
    for record in run.history:
        assert record_from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)), "here") == record
    assert "test_accuracy" not in run.history[1].metrics
    assert {"test_accuracy", "clients_test_accuracy", "drift", "cosine"} <= run.history[2].metrics.keys()
    assert run.history[2].clients[1]["client"] == 1


@pytest.mark.parametrize("engine", ["loop", "threads", "stacked"])
def test_clients_are_evaluated_on_the_same_few_examples_and_the_global_model_on_all(engine: str) -> None:
    options = {"evaluate_clients": True, "engine": engine}
    every, few = (small_federation(split(20, 20, 20), client_examples=n, **options).run(2) for n in (None, 7))
    again = small_federation(split(20, 20, 20), client_examples=7, seed=1, **options).run(1)
    rows = again.rules(1).work(1, {}).evaluated_rows("test")
    assert len(rows) == len(few.dataset.split("test")[0])  # nothing is left out unless a client is evaluated
    rows = replace(again.rules(1).work(1, {}), tested=7).evaluated_rows("test")
    assert len(set(rows.tolist())) == 7
    for run, number in ((few, 1), (few, 2), (again, 1)):
        record, inside = run.history[number], run.inside(number)
        assert record.metrics["clients_test_examples"] == 7
        x, y = run.dataset.prepare(run.dataset.test_x[rows]).double(), run.dataset.test_y[rows]
        for row, update in zip(record.clients, inside.updates, strict=True):
            model = run.trained_model()
            model.load_state_dict(update.state)
            assert row["test_accuracy"] == pytest.approx((model(x).argmax(1) == y).double().mean().item())
            assert row["test_loss"] == pytest.approx(task_loss(model(x), y).item())
            assert row["test_examples"] == 7
    assert all("test_examples" not in row for row in every.history[2].clients)
    for ours, theirs in zip(few.history, every.history, strict=True):
        assert ours.metrics["test_loss"] == theirs.metrics["test_loss"] and ours.costs == theirs.costs
    assert small_federation(split(20, 20, 20), client_examples=20, **options).run(2).history == every.history
    alone = (small_federation(split(20, 20), LocalOnly(), client_examples=n, **options).run(1) for n in (None, 3))
    assert next(alone).history == next(alone).history  # its clients' models are the result


def test_drift_measures_are_those_of_their_definition() -> None:
    run = small_federation(split(10, 30, 20)).run(1)
    inside = run.inside(1)
    flat = [torch.cat([(u.state[n] - inside.start[n]).flatten() for n in run.trained_names]) for u in inside.updates]
    metrics = run.history[1].metrics
    assert metrics["drift"] == pytest.approx(
        sum(w * f.norm().item() for w, f in zip(inside.weights, flat, strict=True))
    )
    cosines = [torch.cosine_similarity(flat[i], flat[j], dim=0).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert metrics["cosine"] == pytest.approx(sum(cosines) / 3)
    assert metrics["diversity"] == pytest.approx(
        sum(f.norm() ** 2 for f in flat).item() / (sum(flat).norm() ** 2).item()
    )


@given(st.integers(1, 7), st.integers(0, 2**31), st.booleans())
def test_drift_of_many_clients_is_that_of_all_pairs(m: int, seed: int, still: bool) -> None:
    draws = generator(seed, "updates")
    start = {"a": torch.randn(3, 5, generator=draws), "b": torch.randn(4, generator=draws)}
    states = [{n: t + torch.randn(t.shape, generator=draws) for n, t in start.items()} for _ in range(m)]
    states[0] = start if still else states[0]  # a client that did not move has no direction
    weights = torch.rand(m, generator=draws).softmax(0).tolist()
    found = []
    for pairs in (m, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drift_module, "PAIRS", pairs)
            found.append(drift_module.drift(start, states, weights, start))
    for name in ("sizes", "cosine_to_mean", "size", "relative_size", "cosine", "diversity"):
        both = [torch.as_tensor(getattr(each, name)) for each in found]
        torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("count", [1, 2])
def test_diversity_of_identical_updates_is_one_over_their_number(count: int) -> None:
    same = Partition(torch.arange(20).repeat(count), torch.arange(count + 1) * 20, "copies")
    run = small_federation(same, data=small_data(20)).run(1)
    assert run.history[1].metrics["diversity"] == pytest.approx(1 / count)


def test_bad_requests_name_what_is_wrong() -> None:
    run = small_federation(split(20, 20)).run(1)
    with pytest.raises(ValueError, match="round=2, accepted: a whole number >= 0 and <= 1"):
        run.rewind(2)
    with pytest.raises(ValueError, match="round=0, accepted: 1 to 1"):
        run.inside(0)
    with pytest.raises(ValueError, match="count=-1"):
        next(run.rounds(-1))
    with pytest.raises(ValueError, match="client 1 holds no example"):
        small_federation(split(40, 0))
    with pytest.raises(ValueError, match="split='valid'"):
        run.evaluate(split="valid")
    with pytest.raises(ValueError, match="unknown settings"):
        run.fork("x", learning_rate=1)
    with pytest.raises(ValueError, match="engine='warp', accepted"):
        small_federation(split(20, 20), engine="warp")
