"""Layer-wise training trains, freezes, drops, sends and counts what it says."""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import equal, split
from torch import nn

from fedlab_core.costs import count_flops, kept_for_backward
from fedlab_core.data import Dataset
from fedlab_core.engines import get_engine
from fedlab_core.federation import Federation
from fedlab_core.layerwise.accounts import (
    deepest,
    flops_by_round,
    peak_allocated,
    peak_memory,
    relative_flops,
    stage_loss,
    traffic,
    training_memory,
)
from fedlab_core.layerwise.evaluation import Features, features, few_labels, knn_accuracy, linear_probe
from fedlab_core.layerwise.method import (
    AUGMENTATIONS,
    HELD,
    OBJECTIVES,
    LayerWise,
    freeze_statistics,
    staged_loss,
    unit_names,
)
from fedlab_core.layerwise.network import StagedModel, build_staged
from fedlab_core.layerwise.stages import MASKS, SCHEMES, Schedule, Stage, payload
from fedlab_core.local.work import Work
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.selfsupervised import augment
from fedlab_core.settings import Settings
from fedlab_core.state import get_state, mean_state, set_state, state_bytes

UNITS = 3


def images(n: int = 24, channels: int = 1, seed: int = 0) -> Dataset:
    """Random 8x8 images whose brightness tells the class apart."""
    draws = generator(seed, "images")
    y = torch.arange(n) % 3
    x = (torch.randint(0, 100, (n, channels, 8, 8), generator=draws) + 50 * y[:, None, None, None]).to(torch.uint8)
    return Dataset(
        "images", "image", x, y, x[: n // 2], y[: n // 2], ("a", "b", "c"), (0.4,) * channels, (0.2,) * channels
    )


def vit(depth: int = UNITS, seed: int = 0, **changes: int) -> StagedModel:
    options = {"patch": 4, "dim": 8, "heads": 2, "hidden": 12, "out": 6, "layers": 2} | changes
    return build_staged((1, 8, 8), generator(seed, "weights"), depth=depth, **options)


def resnet(norm: str = "batch") -> StagedModel:
    draws = generator(0, "weights")
    return build_staged((1, 8, 8), draws, model="resnet8", norm=norm, channels=(2, 4, 4), hidden=6, out=4, layers=2)


def federation(
    rule: LayerWise, model: StagedModel | None = None, sizes: tuple[int, ...] = (8, 16), **changes
) -> Federation:
    settings = Settings(fraction=1.0, epochs=1, batch_size=8, lr=0.01, evaluate_every=100).replace(**changes)
    return Federation(images(sum(sizes)), split(*sizes), model or vit(), settings, rule)


def views(n: int = 4) -> torch.Tensor:
    return torch.randn(2 * n, 1, 8, 8, generator=generator(0, "views"))


# The network


@pytest.mark.parametrize("model", [vit(), vit(predictor_hidden=5), resnet()])
def test_parts_divide_the_state(model: StagedModel) -> None:
    parts = model.parts()
    names = [name for sets in parts.values() for names in sets for name in names]
    assert sorted(names) == sorted(model.state_dict())
    assert [sorted(unit) for unit in parts["units"]] == [sorted(unit) for unit in unit_names(get_state(model))]


def test_vit_tiny_has_the_published_sizes() -> None:
    model = build_staged((3, 32, 32), generator(0, "w"), patch=4, dim=192, depth=2, heads=3, predictor_hidden=512)
    parts, state = model.parts(), get_state(model)
    size = lambda names: sum(state[name].numel() for name in names)  # noqa: E731
    assert [size(unit) for unit in parts["units"]] == [444_864] * 2
    assert size(parts["stem"][0]) == 22_080
    assert size(parts["heads"][0]) == 384 + 492_800 + 262_912


def test_features_are_those_of_the_encoder() -> None:
    x = views()
    for name, options in (("vit", {"patch": 4, "dim": 8, "depth": 2, "heads": 2}), ("resnet8", {"norm": "group"})):
        encoder = build_model(name, (1, 8, 8), 1, generator(0, "w"), **options)
        model = StagedModel(encoder, nn.Identity(), None, generator(1, "w"))
        assert torch.equal(model(x), encoder.features(x))
        assert torch.equal(model.features(x, len(model.units)), model(x))
        assert not torch.equal(model.features(x, 1)[:, :8], model(x)[:, :8])


def test_a_dropped_block_is_the_identity_and_a_dropped_resnet_stage_its_shortcuts() -> None:
    model, x = vit(), views()
    tokens = model.stem(x)
    assert torch.equal(model.run(tokens, 0, 2, [False, False]), tokens)
    assert torch.equal(model.run(tokens, 0, 3, [False, True, False]), model.units[1](tokens))
    net = resnet("group")
    shape = net.run(net.stem(x), 0, 2, [False, False]).shape
    assert shape == net.run(net.stem(x), 0, 2).shape == (8, 4, 4, 4)


def test_a_stage_of_another_width_gets_a_temporary_linear() -> None:
    model, x = resnet("group"), views()
    assert [isinstance(a, nn.Linear) for a in model.adapters] == [True, False, False]
    for depth in (1, 2, 3):
        assert model.project(model.run(model.stem(x), 0, depth), depth).shape == (8, 4)
    sent = payload(model, Stage(1, 2, 1, 1), (True, True)).sent
    assert not any(name.startswith("adapters.0") for name in sent)
    assert any(name.startswith("adapters.0") for name in payload(model, Stage(0, 1, 0, 0), (True,)).sent)


def test_building_draws_from_the_given_generator_only() -> None:
    before = torch.get_rng_state()
    assert equal(get_state(resnet()), get_state(resnet()))
    federation(LayerWise(drop=0.5)).run(2)
    assert torch.equal(before, torch.get_rng_state())


# The schedule


@given(
    units=st.integers(1, 14),
    per_stage=st.integers(1, 5),
    rounds=st.integers(1, 4),
    scheme=st.sampled_from(list(SCHEMES)),
)
def test_stages_climb_from_the_first_to_the_last_unit(units: int, per_stage: int, rounds: int, scheme: str) -> None:
    schedule = Schedule(scheme, rounds, per_stage)
    count = schedule.stages(units)
    stages = [schedule.stage(r, units) for r in range(count * rounds + 2)]
    assert [s.number for s in stages] == [min(r // rounds, count - 1) if count > 1 else 0 for r in range(len(stages))]
    assert stages[-1].depth == units and stages[0].frozen == stages[0].new == 0
    for a, b in pairwise(stages):
        assert b.new in (a.new, a.depth) and b.depth >= a.depth
    frozen = {"layer_wise": [s.new for s in stages]}.get(scheme, [0] * len(stages))
    assert [s.frozen for s in stages] == frozen
    firsts = [r for r in range(len(stages)) if schedule.first_round(r, units)]
    assert firsts == [n * rounds for n in range(count)]


def test_who_draws_the_mask() -> None:
    stage = Stage(40, 41, 40, 40)

    def masks(policy: str, **changes: int) -> tuple[bool, ...]:
        return Schedule(drop=0.5, mask=policy).kept(stage, **{"seed": 0, "round": 1, "client": 0, "step": 0} | changes)

    for policy in MASKS:
        assert masks(policy) == masks(policy) and masks(policy)[-1] and 8 < sum(masks(policy)) < 32
        assert masks(policy) != masks(policy, round=2) and masks(policy) != masks(policy, seed=1)
        assert (masks(policy) == masks(policy, client=1)) == (policy == "server")
        assert (masks(policy) == masks(policy, step=1)) == (policy != "step")
        whole = Schedule(drop=0.5, mask=policy).masked_download(stage, 0, 1, 0)
        assert whole == ((True,) * 41 if policy == "step" else masks(policy))


@given(drop=st.floats(0, 1), new=st.integers(0, 12))
def test_new_units_are_never_dropped(drop: float, new: int) -> None:
    kept = Schedule(drop=drop).kept(Stage(0, new + 2, new, new), 0, 1, 2, 3)
    assert len(kept) == new + 2 and all(kept[new:])
    assert all(kept) if drop == 0 else (not any(kept[:new]) if drop == 1 else True)


def test_the_learning_rate_warms_up_in_every_stage() -> None:
    rule = LayerWise(rounds_per_stage=3, warm_up=1)
    factors = [rule.warm_up_factor(r, rule.schedule.stage(r, 2)) for r in range(8)]
    assert factors == [0.5, 1, 1, 0.5, 1, 1, 1, 1]


# What is trained and what is not


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_frozen_units_stay_bit_identical(optimiser: str) -> None:
    rule = LayerWise(rounds_per_stage=2, optimiser_name=optimiser, drop=0.3)
    run = federation(rule, momentum=0.9, weight_decay=0.1).run(2 * UNITS)
    parts = run.model.parts()
    for stage in range(UNITS):
        end, names = run.state_at(2 * stage + 2), parts["units"][stage]
        assert all(torch.equal(end[n], run.state[n]) for n in names | parts["stem"][0] if n in names or stage == 0)
        begin = run.state_at(2 * stage)
        assert not any(torch.equal(begin[n], end[n]) for n in names if n.endswith("weight"))
    for update in run.inside(2 * UNITS).updates:
        same = {n for n in update.state if torch.equal(update.state[n], run.state_at(2 * UNITS - 1)[n])}
        assert same >= set().union(*parts["units"][:-1], parts["stem"][0])


def test_frozen_batch_norms_keep_their_statistics() -> None:
    run = federation(LayerWise(), resnet(), batch_norm="average").run(3)
    frozen = [n for n in run.state if "running" in n and n.startswith(("encoder.norm", "encoder.stages.0"))]
    assert frozen and all(torch.equal(run.state_at(1)[n], run.state[n]) for n in frozen)
    active = "encoder.stages.1.0.norm1.running_mean"
    assert not torch.equal(run.state_at(1)[active], run.state_at(2)[active])
    model, stage = resnet(), Stage(1, 2, 1, 1)
    start = get_state(model)
    staged_loss(model, views(), LayerWise(), stage)  # without freezing them they would have moved
    assert any(not torch.equal(start[n], get_state(model)[n]) for n in frozen)
    set_state(model, start)
    freeze_statistics(model, stage)
    staged_loss(model, views(), LayerWise(), stage)
    assert all(torch.equal(start[n], get_state(model)[n]) for n in frozen)


@pytest.mark.parametrize("scheme", list(SCHEMES))
@pytest.mark.parametrize("mask", list(MASKS))
def test_uploaded_names_are_trained_names(scheme: str, mask: str) -> None:
    rule = LayerWise(scheme=scheme, mask=mask, drop=0.0 if scheme == "end_to_end" else 0.5)
    run = federation(rule, weight_decay=0.1).run(UNITS)
    for number in range(1, UNITS + 1):
        inside = run.inside(number)
        for update in inside.updates:
            changed = {n for n in update.state if not torch.equal(update.state[n], inside.start[n])}
            assert changed <= update.sent
            if mask != "step":
                assert {n for n in update.sent if not n.endswith("k.bias")} <= changed  # softmax ignores the keys' bias


def test_heads_are_averaged_and_what_nobody_sent_stays() -> None:
    run = federation(LayerWise()).run(2)
    inside = run.inside(2)
    mean = mean_state([u.state for u in inside.updates], inside.weights)
    parts = run.model.parts()
    for name in parts["heads"][0] | parts["units"][1]:
        assert torch.equal(run.state[name], mean[name]) and not torch.equal(run.state[name], inside.start[name])


def test_a_tensor_is_averaged_over_the_clients_that_sent_it() -> None:
    run = federation(LayerWise(scheme="progressive", drop=0.5, new_units="fresh"), sizes=(8, 8, 8, 8)).run(UNITS)
    inside = run.inside(UNITS)
    counts = []
    for name in ("encoder.blocks.0.fc1.weight", "encoder.blocks.1.fc1.weight"):
        senders = [u for u in inside.updates if name in u.sent]
        counts.append(len(senders))
        mean = sum(u.state[name] for u in senders) / len(senders) if senders else inside.start[name]
        assert torch.allclose(run.state[name], mean, atol=1e-7)
    assert any(0 < count < 4 for count in counts)


@pytest.mark.parametrize("mask", list(MASKS))
@pytest.mark.parametrize("scheme", ["layer_wise", "progressive"])
def test_a_client_needs_nothing_but_what_it_fetched(scheme: str, mask: str) -> None:
    """Whatever did not travel to a stateless client is replaced by nan, and its update does not change."""
    run = federation(LayerWise(scheme=scheme, mask=mask, drop=0.5, stateful=False, new_units="fresh")).run(UNITS)
    inside = run.inside(UNITS)
    engine = get_engine("loop")
    for update in inside.updates:
        fetched = update.fetched
        blank = {n: t if n in fetched else torch.full_like(t, torch.nan) for n, t in inside.start.items()}
        work = Work(run.model, run.dataset, run.partition, run.settings, {}, UNITS)
        task = run.rules(UNITS).task(update.client, run._snapshot(UNITS - 1))
        again = next(iter(run.method.train(engine, work, [replace(task, state=blank)], lambda: False)))
        assert all(torch.equal(again.state[n], update.state[n]) for n in update.sent)
    missing = [n for u in inside.updates for n in run.model.state_dict() if n not in u.fetched]
    assert bool(missing) == (mask != "step")


def test_what_the_weights_lack_falls_to_the_old_model() -> None:
    run = federation(LayerWise(), sizes=(8, 8, 16), fraction=0.4, weighting="printed_v3").run(1)
    inside = run.inside(1)
    assert len(inside.updates) == 1 and sum(inside.weights) < 1
    update, weight = inside.updates[0], inside.weights[0]
    name = "encoder.blocks.0.fc1.weight"
    mixed = weight * update.state[name] + (1 - weight) * inside.start[name]
    assert torch.allclose(run.state[name], mixed, atol=1e-7)


@pytest.mark.parametrize("policy", ["local", "local_statistics", "total_variance"])
def test_batch_norm_policies_that_would_touch_frozen_tensors_are_refused(policy: str) -> None:
    with pytest.raises(ValueError, match=f"batch_norm='{policy}', accepted by layer-wise"):
        federation(LayerWise(), resnet(), batch_norm=policy)


def test_new_units_are_copies_or_fresh() -> None:
    model = vit()
    for choice in ("copy", "fresh"):
        run = federation(LayerWise(rounds_per_stage=2, new_units=choice), copy.deepcopy(model)).run(2)
        first, second, third = unit_names(run.state)
        assert all(torch.equal(run.state[a], run.state[b]) for a, b in zip(first, second, strict=True)) == (
            choice == "copy"
        )
        initial = get_state(model)
        assert all(torch.equal(run.state[n], initial[n]) for n in third)
        if choice == "fresh":
            assert all(torch.equal(run.state[n], initial[n]) for n in second)


def test_units_that_do_not_fit_stay_fresh() -> None:
    model = resnet("group")
    run = federation(LayerWise(), model).run(1)
    initial = get_state(model)
    assert all(torch.equal(run.state[n], initial[n]) for n in unit_names(run.state)[1])


def test_one_stage_with_all_units_is_end_to_end() -> None:
    whole = federation(LayerWise(scheme="end_to_end", rounds_per_stage=3)).run(3)
    for scheme in ("layer_wise", "progressive"):
        assert equal(
            federation(LayerWise(scheme=scheme, units_per_stage=UNITS, rounds_per_stage=3)).run(3).state, whole.state
        )


def test_one_client_end_to_end_is_plain_training() -> None:
    rule = LayerWise(scheme="end_to_end", optimiser_name="sgd", warm_up=0)
    run = federation(rule, sizes=(20,), double=True, momentum=0.9).run(1)
    model, data = vit().double(), run.dataset
    optimiser = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    noise = generator(0, "loss", 1, 0)
    for batch in torch.randperm(20, generator=generator(0, "batches", 1, 0))[:16].split(8):
        x = data.prepare(data.x[batch]).double()
        pair = torch.cat([augment(x, noise, AUGMENTATIONS["characters"], data.mean, data.std) for _ in range(2)])
        optimiser.zero_grad()
        staged_loss(model, pair, rule, Stage(0, UNITS, 0, 0)).backward()
        optimiser.step()
    assert max((run.state[n] - t).abs().max().item() for n, t in model.state_dict().items()) < 1e-12


def test_a_run_resumes_rewinds_and_forks(tmp_path) -> None:
    rule = LayerWise(rounds_per_stage=2, drop=0.5)
    run = federation(rule).run(5)
    part = federation(rule).run(3)
    part.save(tmp_path)
    loaded = Federation.load(tmp_path, part.dataset, part.partition, part.model).run(2)
    assert equal(loaded.state, run.state) and loaded.history[5].costs == run.history[5].costs
    fork = run.fork("other", at=3, method=LayerWise(rounds_per_stage=2, drop=1.0)).run(2)
    assert not equal(fork.state, run.state)
    run.rewind(2)
    assert equal(run.run(3).state, loaded.state)


def test_threads_give_the_same_bits_and_stacking_is_refused() -> None:
    rule = LayerWise(drop=0.5)
    assert equal(federation(rule, engine="threads").run(3).state, federation(rule).run(3).state)
    with pytest.raises(ValueError, match="layer-wise has optimiser and begin and loss of its own"):
        federation(rule, engine="stacked").run(1)


@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_every_objective_trains_the_active_unit_only(objective: str) -> None:
    model = vit(predictor_hidden=5)
    run = federation(LayerWise(objective=objective, optimiser_name="sgd"), model, lr=0.5).run(2)
    parts = run.model.parts()
    moved = {n for n in run.state if not torch.equal(run.state[n], run.state_at(1)[n])}
    head = {n for n in parts["heads"][0] if n.startswith("predictor")}
    assert moved & parts["units"][1] and not moved & (parts["units"][0] | parts["stem"][0])
    assert bool(moved & head) == (objective != "simclr")


def test_the_target_branch_follows_by_its_momentum() -> None:
    stage, batch = Stage(0, 1, 0, 0), views()
    model, rule = vit(predictor_hidden=5), LayerWise(objective="byol", momentum=1.0)
    target = copy.deepcopy(model)
    loss = staged_loss(model, batch, rule, stage, target=target)
    with torch.no_grad():
        for p in model.units[0].parameters():
            p.mul_(3)
    assert not torch.isclose(loss, staged_loss(model, batch, rule, stage, target=target))
    still = federation(rule, vit(predictor_hidden=5), sizes=(32,)).run(1).state
    moving = federation(replace(rule, momentum=0.0), vit(predictor_hidden=5), sizes=(32,)).run(1).state
    assert not equal(still, moving)


def test_batches_are_full_ones() -> None:
    run = federation(LayerWise(), sizes=(8, 21)).run(1)
    assert [u.seen for u in run.inside(1).updates] == [8, 16]  # 21 = 2 * 8 + 5
    alone = federation(LayerWise(), sizes=(8, 5)).run(1)
    assert [u.seen for u in alone.inside(1).updates] == [8, 5]  # a client with less than a batch uses all it has
    three = federation(LayerWise(), sizes=(21,), steps=5).run(1)
    assert [(u.steps, u.seen) for u in three.inside(1).updates] == [(5, 40)]


# Depth dropout and evaluation


def test_with_every_frozen_unit_dropped_the_active_one_stands_on_the_embedding() -> None:
    model, batch, stage = vit(), views(), Stage(2, 3, 2, 2)
    kept = Schedule(drop=1.0).kept(stage, 0, 1, 0, 0)
    z = model.project(model.units[2](model.stem(batch)), 3)
    by_hand = staged_loss(model, batch, LayerWise(), Stage(0, 1, 0, 0))
    assert kept == (False, False, True)
    dropped = staged_loss(model, batch, LayerWise(), stage, kept)
    with torch.no_grad():
        for unit in model.units[:2]:
            for p in unit.parameters():
                p.fill_(torch.nan)
    assert torch.equal(staged_loss(model, batch, LayerWise(), stage, kept), dropped) and dropped.isfinite()
    assert z.shape == (8, 6) and not torch.equal(by_hand, dropped)


def test_evaluation_uses_every_unit_trained_so_far() -> None:
    run = federation(LayerWise(drop=1.0, mask="step"), evaluate_every=1).run(2)
    one, two = (
        knn_accuracy(b.x, run.dataset.y, b.test_x, run.dataset.test_y)
        for b in (features(run.model, run.dataset, run.state_at(r), d) for r, d in ((1, 1), (2, 2)))
    )
    assert [r.metrics["test_accuracy"] for r in run.history[1:]] == [one, two]
    assert run.method.depth(2, UNITS) == 2 and run.method.depth(0, UNITS) == 1
    assert "test_loss" not in run.history[1].metrics
    assert 0 <= run.evaluate(split="train")["train_accuracy"] <= 1
    run.run(1)
    assert run.evaluate(round=1)["test_accuracy"] == one
    assert run.evaluate(run.state_at(2), round=2)["test_accuracy"] == two


def test_clients_are_evaluated_on_the_few_examples_that_are_asked_for():
    run = federation(LayerWise(), evaluate_every=1, evaluate_clients=True, client_examples=5).run(1)
    rows = replace(run.rules(1).work(1, {}), tested=5).evaluated_rows("test")
    data, few = run.dataset, run.dataset.test_x[rows]
    for row, update in zip(run.history[1].clients, run.inside(1).updates, strict=True):
        bank = features(run.model, replace(data, test_x=few, test_y=data.test_y[rows]), update.state, 1)
        assert row["test_accuracy"] == knn_accuracy(bank.x, data.y, bank.test_x, data.test_y[rows])
        assert row["test_examples"] == run.history[1].metrics["clients_test_examples"] == 5


def test_a_fork_goes_on_in_the_stage_of_its_round() -> None:
    whole, plain = federation(LayerWise()).run(UNITS), federation(LayerWise(drop=0.5)).run(1)
    fork = plain.fork("without dropout", method=LayerWise()).run(UNITS - 1)
    assert equal(fork.state, whole.state)  # the first stage has nothing to drop, so both began alike
    units = unit_names(fork.state_at(1))
    assert all(torch.equal(fork.state_at(1)[a], fork.state_at(1)[b]) for a, b in zip(*units[:2], strict=True))


def test_models_without_stages_are_refused_when_the_federation_is_built() -> None:
    data = images()
    model = build_model("mlp", data.input_shape, 3, generator(0, "weights"))
    with pytest.raises(ValueError, match="model is a MLP, accepted: a StagedModel"):
        Federation(data, split(8), model, Settings(1.0, batch_size=4), LayerWise())


def test_frozen_features_can_be_cached_for_fixed_views_only() -> None:
    model, x = vit(), images().prepare(images().x)
    with torch.no_grad():
        a, b, c = (model.features(augment(x, generator(0, "views", i), AUGMENTATIONS["characters"])) for i in (0, 0, 1))
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-2)


def test_nearest_neighbours_by_hand() -> None:
    bank = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1]])
    labels = torch.tensor([0, 0, 1])
    assert knn_accuracy(bank, labels, torch.tensor([[2.0, 0], [0, 5]]), torch.tensor([0, 1]), k=1) == 1
    assert knn_accuracy(bank, labels, torch.tensor([[0.0, 1]]), torch.tensor([1]), k=3, temperature=100) == 0  # 2 : 1
    assert knn_accuracy(bank, labels, torch.tensor([[0.0, 1]]), torch.tensor([1]), k=3) == 1  # the near one counts more
    assert knn_accuracy(bank, labels, bank, labels, k=1, leave_one_out=True) == pytest.approx(2 / 3)


def test_linear_probe_separates_what_is_separable_and_nothing_else() -> None:
    labels = torch.arange(60) % 3
    x = nn.functional.one_hot(labels).float() + 0.05 * torch.randn(60, 3, generator=generator(0, "x"))
    bank = Features(x, x)
    assert linear_probe(bank, labels, labels) == linear_probe(bank, labels, labels, per_class=2) == 1
    noise = torch.randn(60, 3, generator=generator(0, "noise"))
    assert linear_probe(Features(noise, x), labels, labels) < 0.8
    chosen = few_labels(labels, 4, 0)
    assert torch.bincount(labels[chosen]).tolist() == [4, 4, 4] and len(chosen.unique()) == 12
    with pytest.raises(ValueError, match="per_class=21"):
        few_labels(labels, 21, 0)


# Accounts


def flops(*args: Any) -> int:
    return count_flops(args[0], stage_loss(*args))


@given(drop=st.floats(0, 1), units=st.integers(1, 30))
def test_closed_forms_of_the_flops(drop: float, units: int) -> None:
    assert relative_flops(LayerWise(drop=drop), units) == pytest.approx(
        ((units - 1) / 2 * (1 - drop) + 3) / (3 * units)
    )
    assert relative_flops(LayerWise(scheme="progressive"), units) == pytest.approx((units + 1) / (2 * units))
    assert relative_flops(LayerWise(scheme="end_to_end"), units) == 1


def test_closed_forms_give_the_published_ratios() -> None:
    assert round(relative_flops(LayerWise(), 12), 3) == 0.236
    assert round(relative_flops(LayerWise(scheme="progressive"), 12), 3) == 0.542
    assert [round(relative_flops(LayerWise(drop=p), 12), 3) for p in (0.25, 0.5, 0.75)] == [0.198, 0.160, 0.122]


def test_counted_flops_follow_the_closed_forms() -> None:
    model, batch = vit(12, dim=64, heads=1, hidden=1, out=2), torch.zeros(2, 1, 8, 8)

    def per_round(rule: LayerWise, kept: int | None = None) -> float:
        stages = [rule.schedule.stage(n, 12) for n in range(rule.schedule.stages(12))]
        return sum(flops(model, rule, s, batch) for s in stages) / len(stages)

    whole = per_round(LayerWise(scheme="end_to_end"))
    for scheme in ("layer_wise", "progressive"):
        rule = LayerWise(scheme=scheme)
        assert per_round(rule) / whole == pytest.approx(relative_flops(rule, 12), rel=0.01)
    stage = Stage(11, 12, 11, 11)
    costs = [flops(model, LayerWise(), stage, batch, [True] * k + [False] * (11 - k) + [True]) for k in (11, 10, 4)]
    assert (costs[0] - costs[2]) == 7 * (costs[0] - costs[1])  # each frozen unit dropped saves its forward pass
    assert costs[0] - costs[1] == pytest.approx(whole / 36, rel=0.02)


def test_flops_of_a_run_are_those_of_its_steps() -> None:
    rule = LayerWise(drop=0.5, mask="step")
    run = federation(rule, sizes=(16, 8)).run(UNITS)
    totals = flops_by_round(run)
    batch = torch.zeros(8, 1, 8, 8)
    assert totals[0] == 0 and totals[1] == 3 * flops(run.model, rule, Stage(0, 1, 0, 0), batch)
    stage = Stage(2, 3, 2, 2)
    masks = [rule.schedule.kept(stage, 0, 3, client, step) for client, step in ((0, 0), (0, 1), (1, 0))]
    assert totals[3] == sum(flops(run.model, rule, stage, batch, mask) for mask in masks)


DROPS = [{}, {"new_units": "fresh"}, {"drop": 0.5}, {"drop": 0.5, "mask": "step"}]


@pytest.mark.parametrize(
    ("scheme", "options"), [(s, o) for s in SCHEMES for o in DROPS if s != "end_to_end" or "drop" not in o]
)
def test_traffic_is_counted_from_what_travels_in_both_columns(scheme: str, options: dict) -> None:
    model = vit()
    runs = [
        federation(LayerWise(scheme, 2, stateful=s, **options), model, fraction=0.5, sizes=(8, 8, 8)).run(6)
        for s in (True, False)
    ]
    assert equal(runs[0].state, runs[1].state)
    columns = [[(r.costs.bytes_down, r.costs.bytes_up) for r in run.history[1:]] for run in runs]
    for run in runs:
        assert [list(traffic(run, stateful)) for stateful in (True, False)] == columns
    down = [sum(d for d, _ in column) for column in columns]
    assert down[0] < down[1] if scheme == "layer_wise" else down[0] == down[1]


def test_bytes_by_hand() -> None:
    model = vit()
    parts, state = model.parts(), get_state(model)
    size = lambda names: state_bytes({n: state[n] for n in names})  # noqa: E731
    block, stem, heads = size(parts["units"][0]), size(parts["stem"][0]), size(parts["heads"][0])
    kept, worst = (
        federation(LayerWise(rounds_per_stage=2, stateful=s), model, sizes=(8,)).run(4).history for s in (True, False)
    )
    up = [stem + block + heads] * 2 + [block + heads] * 2
    assert [r.costs.bytes_up for r in kept[1:]] == [r.costs.bytes_up for r in worst[1:]] == up
    # the second stage begins with the final stem and first block; its own block is a copy of that one
    assert [r.costs.bytes_down for r in kept[1:]] == [stem + block + heads] * 3 + [block + heads]
    assert [r.costs.bytes_down for r in worst[1:]] == [stem + block + heads] * 3 + [stem + 2 * block + heads]
    assert all(
        t.numel() == 0 or t.dtype == torch.int64
        for t in federation(LayerWise(), model).run(2).past.now.clients[0].values()
    )
    assert federation(LayerWise(), model).run(2).past.now.clients[0][HELD].tolist() == [-1, 0]


def test_masks_drawn_before_the_download_save_it_and_later_ones_do_not() -> None:
    down = {}
    for mask in MASKS:
        run = federation(LayerWise(drop=0.75, mask=mask, stateful=False, new_units="fresh"), sizes=(8,) * 4).run(UNITS)
        down[mask] = sum(r.costs.bytes_down for r in run.history)
    plain = sum(
        r.costs.bytes_down
        for r in federation(LayerWise(stateful=False, new_units="fresh"), sizes=(8,) * 4).run(UNITS).history
    )
    assert down["step"] == plain > max(down["client"], down["server"])


def test_memory_of_twelve_blocks_is_more_than_five_times_smaller() -> None:
    model, batch = vit(12, dim=32, heads=2, hidden=64, out=32), torch.zeros(32, 1, 8, 8)
    layered, whole = (peak_memory(model, LayerWise(scheme=s), batch) for s in ("layer_wise", "end_to_end"))
    assert whole.total / layered.total > 5 and whole.kept / layered.kept > 8
    assert whole.weights == layered.weights == state_bytes({n: t for n, t in get_state(model).items()})
    assert whole.optimiser == 2 * whole.gradients == 2 * whole.weights
    progressive = peak_memory(model, LayerWise(scheme="progressive"), batch)
    assert progressive == whole


def test_dropping_frozen_units_leaves_what_is_kept_for_backward_unchanged() -> None:
    model, batch, stage = vit(6), torch.zeros(4, 1, 8, 8), Stage(5, 6, 5, 5)
    mask = [False, True, False, False, True, True]
    plain = training_memory(model, LayerWise(), stage, batch)
    for policy in MASKS:
        dropped = training_memory(model, LayerWise(mask=policy), stage, batch, mask)
        assert (dropped.kept, dropped.gradients, dropped.optimiser) == (plain.kept, plain.gradients, plain.optimiser)
        assert (dropped.weights < plain.weights) == (policy != "step")
    trained = training_memory(model, LayerWise(scheme="progressive"), Stage(5, 6, 5, 0), batch, mask)
    assert trained.kept < training_memory(model, LayerWise(scheme="progressive"), Stage(5, 6, 5, 0), batch).kept


def test_switching_off_gradients_of_frozen_units_alone_would_not_save_their_activations() -> None:
    model, batch, rule = vit(6), views(), LayerWise()
    for p in [p for unit in model.units[:5] for p in unit.parameters()]:
        p.requires_grad_(False)
    half_way = kept_for_backward(model, lambda m: staged_loss(m, batch, rule, Stage(0, 6, 0, 0)))
    properly = kept_for_backward(model, lambda m: staged_loss(m, batch, rule, Stage(5, 6, 5, 5)))
    assert half_way > 2.5 * properly
    below = model.run(model.stem(batch), 0, 5).detach()
    alone = kept_for_backward(model, lambda m: staged_loss_of(m, below, rule))
    assert properly == alone


def staged_loss_of(model: StagedModel, below: torch.Tensor, rule: LayerWise) -> torch.Tensor:
    """The loss of the last unit alone, on given activations."""
    top = copy.copy(model)
    top.stem = lambda x: x
    return staged_loss(top, below, rule, Stage(5, 6, 5, 5), [False] * 5 + [True])


def test_a_moving_average_network_weighs_what_is_trained() -> None:
    model, batch = vit(predictor_hidden=5), torch.zeros(4, 1, 8, 8)
    stage = Stage(2, 3, 2, 2)
    byol, simsiam = (training_memory(model, LayerWise(objective=o), stage, batch) for o in ("byol", "simsiam"))
    size = sum(
        p.numel() * 4
        for n, p in model.named_parameters()
        if n.startswith(("encoder.blocks.2", "encoder.norm", "projector"))
    )
    assert byol.weights - simsiam.weights == size


@pytest.mark.parametrize("scheme", ["layer_wise", "end_to_end"])
def test_the_deepest_network_fits_and_the_next_does_not(scheme: str) -> None:
    rule, batch, budget = LayerWise(scheme=scheme), torch.zeros(4, 1, 8, 8), 200_000
    depth = deepest(budget, vit, rule, batch)
    assert peak_memory(vit(depth), rule, batch).total <= budget < peak_memory(vit(depth + 1), rule, batch).total
    assert deepest(10, vit, rule, batch) == 0
    assert deepest(10**9, vit, rule, batch, most=5) == 5


def test_layer_wise_training_fits_deeper_networks() -> None:
    batch = torch.zeros(16, 1, 8, 8)
    found = [deepest(300_000, vit, LayerWise(scheme=s), batch, 64) for s in ("layer_wise", "end_to_end")]
    assert found[0] > 3 * found[1] > 0


def test_the_allocator_is_asked_on_a_gpu_only() -> None:
    rule, stage = LayerWise(), Stage(2, 3, 2, 2)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="accepted: a CUDA device"):
            peak_allocated(vit(), rule, stage, torch.zeros(2, 1, 8, 8))
        return
    batch = torch.zeros(64, 1, 8, 8, device="cuda")
    peaks = [
        peak_allocated(vit(12).cuda(), LayerWise(scheme=s), LayerWise(scheme=s).schedule.stage(11, 12), batch)
        for s in ("layer_wise", "end_to_end")
    ]
    assert peaks[1] > 2 * peaks[0]


# Bad input


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "upwards"},
        {"mask": "nobody"},
        {"drop": 1.5},
        {"drop": 0.5, "scheme": "end_to_end"},
        {"rounds_per_stage": 0},
        {"units_per_stage": 0},
        {"objective": "guess"},
        {"optimiser_name": "adam"},
        {"new_units": "old"},
        {"views": "none"},
        {"temperature": 0.0},
        {"momentum": 2.0},
        {"warm_up": -1},
    ],
)
def test_bad_options_are_named(options: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(options))}=.*accepted"):
        LayerWise(**options)


def test_other_models_are_refused() -> None:
    encoder = build_model("2nn", (1, 8, 8), 3, generator(0, "w"))
    with pytest.raises(ValueError, match="MLP, accepted: a ViT or a ResNet"):
        StagedModel(encoder, nn.Identity(), None, generator(0, "w"))
    with pytest.raises(ValueError, match="accepted: a StagedModel"):
        Federation(images(), split(24), encoder, Settings(evaluate_every=100), LayerWise())
