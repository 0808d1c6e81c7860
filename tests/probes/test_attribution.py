"""The gap and its causes: every cell is what it is said to be, and the parts add up."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
from small import equal, gap, small_data, small_federation, split
from torch import nn

from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.local.work import task_loss
from fedlab_core.methods.client import FedProx
from fedlab_core.models import build_model
from fedlab_core.probes import attribution, cells, games
from fedlab_core.probes.attribution import attribute, cell_of, cells_of
from fedlab_core.probes.cells import CAUSES, Cell
from fedlab_core.probes.twins import twin_round
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import distance

SKEW, STEPS, PART, STAT = CAUSES
EXACT = 1e-12


def sorted_federation(seed: int = 0, **changes: object) -> Federation:
    """Four clients with examples in the order of their labels, float64."""
    data = small_data(48, classes=4, seed=5)
    order = data.y.argsort(stable=True)
    data = type(data)("small", "image", data.x[order], data.y[order], data.test_x, data.test_y, data.classes,
                      data.mean, data.std)  # fmt: skip
    draws = generator(seed, "initial weights")
    built = build_model("mlp", data.input_shape, 4, draws, norm="batch", hidden=(6, 5))
    base = dict(fraction=0.5, epochs=None, steps=3, batch_size=4, lr=0.2, batch_norm="average", double=True, seed=seed)
    return Federation(data, split(12, 12, 12, 12), built, Settings(**(base | changes)))


HELD_OUT = Experiment(
    dataset_options={"examples": 160, "validation": 40}, partition="shards", partition_options={"per_client": 2},
    clients=4, model="mlp", norm="batch", settings=Settings(fraction=0.5, epochs=None, steps=3, batch_size=8,
    batch_norm="average", double=True, weighting="uniform"))  # fmt: skip


def parameters(run: Federation) -> dict[str, torch.Tensor]:
    return {name: run.state[name] for name in run.trained_names}


def centralised(run: Federation, rounds: int) -> dict[str, torch.Tensor]:
    """The oracle: plain PyTorch on the union of the batches that the clients draw."""
    model, data, settings = run.trained_model(0).train(), run.dataset, run.settings
    optimiser = torch.optim.SGD(model.parameters(), settings.lr)
    for number in range(1, rounds + 1):
        draws = [generator(settings.seed, "batches", number, client) for client in range(len(run.partition))]
        orders = [torch.cat([torch.randperm(12, generator=g) for _ in range(2)]) for g in draws]
        for step in range(settings.local_steps(12)):
            batch = torch.cat([own[o[4 * step : 4 * step + 4]] for own, o in zip(run.partition, orders, strict=True)])
            optimiser.zero_grad()
            task_loss(model(data.prepare(data.x[batch]).double()), data.y[batch]).backward()
            optimiser.step()
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("engine", ["loop", "stacked"])
@pytest.mark.parametrize("on", [(), (SKEW,), (PART,)])
def test_without_causes_or_with_skew_or_participation_alone_it_is_centralised_training(engine, on) -> None:
    federation = sorted_federation(engine=engine)
    run = Federation(federation.dataset, federation.partition, federation.model, federation.settings, Cell(on)).run(3)
    assert gap(parameters(run), centralised(federation, 3)) < EXACT


@pytest.mark.parametrize("model", ["mlp", "small_cnn"])
def test_the_stacked_cells_are_the_plain_ones(model: str) -> None:
    federation = sorted_federation() if model == "mlp" else digits_cnn()
    for on in cells.subsets(CAUSES):
        parts = federation.dataset, federation.partition, federation.model
        runs = [Federation(*parts, federation.settings.replace(engine=e), Cell(on)).run(2) for e in ("loop", "stacked")]
        assert gap(*map(parameters, runs)) < EXACT, on
        for name, value in runs[0].history[-1].metrics.items():
            assert runs[1].history[-1].metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-9), (on, name)


def digits_cnn() -> Federation:
    experiment = Experiment(
        dataset_options={"examples": 200}, partition="shards", partition_options={"per_client": 2}, clients=4,
        model="small_cnn", norm="batch", settings=Settings(fraction=0.5, epochs=None, steps=2, batch_size=8,
        batch_norm="average", double=True, weighting="uniform"))  # fmt: skip
    return experiment.build()


def test_all_cells_differ_but_those_that_theory_makes_equal() -> None:
    federation = sorted_federation()
    ends = {on: parameters(cell_of(federation, on).run(2)) for on in cells.subsets(CAUSES)}
    alike = [{(), (SKEW,), (PART,)}, {(STAT,), (PART, STAT)}]  # whoever owns what was dealt, and averages every step
    for one, other in combinations(ends, 2):
        same = any(one in kin and other in kin for kin in alike)
        assert (gap(ends[one], ends[other]) < EXACT) == same, (one, other)


def test_with_one_local_step_the_cause_local_steps_vanishes_exactly() -> None:
    found = attribute(partial(sorted_federation, steps=1), 3, seeds=(0, 1))
    assert found.parts("test_loss")[:, CAUSES.index(STEPS)].abs().max() < EXACT
    assert found.gap("test_loss").abs().max() > 1e-3


def test_everything_on_and_everybody_there_is_federated_averaging() -> None:
    federation = sorted_federation(fraction=1.0)
    assert gap(parameters(cell_of(federation, CAUSES).run(3)), parameters(federation.run(3))) < EXACT


def test_cells_that_share_their_beginning_are_those_that_begin_alone():
    federation = sorted_federation()
    for on, run in zip(cells.subsets(CAUSES), cells_of(federation), strict=True):
        alone = cell_of(federation, on)
        assert run.run(2).history == alone.run(2).history and equal(run.state, alone.state)
        assert run.name == alone.name


def test_the_parts_add_up_to_the_gap_in_every_round_and_measure() -> None:
    found = attribute(sorted_federation, 3, seeds=(0, 1))
    assert found.rounds == (0, 1, 2, 3)
    for measure in ("test_loss", "test_accuracy"):
        assert (found.parts(measure).sum(1) - found.gap(measure)).abs().max() < 1e-9
        assert found.parts(measure)[..., 0].abs().max() < EXACT  # before the first round there is no gap
        total = found.interactions(measure).sum(1)
        assert (total - found.values[measure][:, -1]).abs().max() < 1e-9


def test_shapley_values_of_known_games() -> None:
    causes = ("a", "b", "c")
    sets = cells.subsets(causes)
    worth = {"a": 1.0, "b": -2.0, "c": 0.5}
    additive = torch.tensor([sum(worth[c] for c in s) for s in sets], dtype=torch.float64)
    assert (games.shapley(causes) @ additive - torch.tensor([1.0, -2.0, 0.5])).abs().max() < EXACT
    gloves = torch.tensor([float("a" in s and ("b" in s or "c" in s)) for s in sets], dtype=torch.float64)
    assert (games.shapley(causes) @ gloves - torch.tensor([4.0, 1.0, 1.0]) / 6).abs().max() < 1e-7


def test_parts_are_the_interactions_shared_equally() -> None:
    draws = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d, sets = games.moebius(CAUSES) @ draws, cells.subsets(CAUSES)
    shared = torch.stack([sum(x / len(t) for x, t in zip(d, sets, strict=True) if c in t) for c in CAUSES])
    assert (games.shapley(CAUSES) @ draws - shared).abs().max() < EXACT


def test_fewer_causes_make_fewer_cells_and_the_others_stay_off() -> None:
    found = attribute(sorted_federation, 1, causes=(STAT, SKEW), seeds=(0,))
    assert found.causes == (SKEW, STAT) and found.values["test_loss"].shape == (1, 4, 2)
    run = cell_of(sorted_federation(), (SKEW, STAT)).run(1)
    assert found.cell((SKEW, STAT), "test_loss")[0, -1] == run.history[-1].metrics["test_loss"]


def test_every_cell_takes_the_same_steps_and_sees_the_same_number_of_examples() -> None:
    federation = sorted_federation()
    seen = {on: cell_of(federation, on).run(2).history[-1].total.examples for on in cells.subsets(CAUSES)}
    assert set(seen.values()) == {2 * 3 * 4 * 4}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"momentum": 0.9}, "momentum=0.9"),
        ({"optimiser": "adam"}, "optimiser='adam'"),
        ({"clip_norm": 1.0}, "clip_norm=1.0"),
        ({"batch_norm": "local"}, "batch_norm='local'"),
        ({"fraction": 0.75}, "fraction=0.75: 3 of 4 clients"),
    ],
)
def test_what_cells_cannot_express_is_refused_by_name(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        cell_of(sorted_federation(**changes), CAUSES)


def test_other_methods_unequal_clients_and_unknown_causes_are_refused() -> None:
    uneven = small_federation(split(10, 20), norm="batch", batch_norm="average", batch_size=5, epochs=None, steps=1)
    with pytest.raises(ValueError, match="10 to 20 examples"):
        cell_of(uneven, CAUSES)
    with pytest.raises(ValueError, match="batch_size=16: a client holds 10"):
        cell_of(uneven.fork("x", batch_size=16, weighting="uniform"), CAUSES).run(1)
    with pytest.raises(ValueError, match="method='FedProx'"):
        cell_of(small_federation(split(10, 10), FedProx(0.1)), CAUSES)
    with pytest.raises(ValueError, match="causes="):
        attribute(sorted_federation, 1, causes=("drift",))


def test_a_model_that_draws_is_refused() -> None:
    data = small_data(40)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    federation = Federation(data, split(20, 20), model, Settings(fraction=1.0, epochs=None, steps=1))
    with pytest.raises(ValueError, match="dropout"):
        cell_of(federation, CAUSES)


def test_twin_rounds_part_where_a_cause_acts_and_only_there() -> None:
    federation = sorted_federation(fraction=1.0).run(2)
    history, state = federation.history, federation.state
    off = {cause: twin_round(federation, 2, cause) for cause in CAUSES}
    assert off[PART].apart < EXACT and off[PART].gained("test_loss") == pytest.approx(0, abs=1e-9)
    assert all(off[cause].share > 1e-3 for cause in (SKEW, STEPS, STAT))
    assert off[SKEW].step == pytest.approx(distance_of_round(federation, 2), rel=1e-12)
    assert federation.history == history and gap(federation.state, state) == 0


def distance_of_round(federation: Federation, round: int) -> float:
    return distance(federation.state_at(round - 1), federation.state_at(round), federation.trained_names)


def test_a_rate_per_cell_takes_each_cells_best() -> None:
    rates = (0.02, 0.2, 2.0)
    tried = [attribute(HELD_OUT, 3, seeds=(0, 1), lr=lr) for lr in rates]
    best = attribution.best_rates(tried)
    held, test = (torch.stack([one.values[name] for one in tried]) for name in ("validation_loss", "test_loss"))
    chosen = held[..., -1].mean(1).argmin(0)
    assert best.lrs == tuple(rates[k] for k in chosen.tolist()) and len(set(best.lrs)) > 1
    assert all(torch.equal(best.values["test_loss"][:, c], test[k, :, c]) for c, k in enumerate(chosen.tolist()))
    other_way = [replace(one, values={**one.values, "test_loss": -one.values["test_loss"]}) for one in tried]
    assert attribution.best_rates(other_way).lrs == best.lrs  # whatever the test set says


def test_a_choice_by_the_test_set_is_refused() -> None:
    tried = [attribute(HELD_OUT, 1, causes=(SKEW,), seeds=(0,))]
    with pytest.raises(ValueError, match=r"measure='test_loss', accepted: \['validation_loss'"):
        attribution.best_rates(tried, "test_loss")
    with pytest.raises(ValueError, match="no validation examples, see Dataset.with_validation"):
        attribution.best_rates([attribute(sorted_federation, 1, causes=(SKEW,), seeds=(0,))])


def test_what_is_held_out_is_measured_in_every_evaluated_round_and_trained_on_by_nobody() -> None:
    run = HELD_OUT.build()
    assert len(run.dataset.validation_x) == 40 and sum(run.partition.sizes) == len(run.dataset.x) == 120
    found = attribution.run_cell(run, CAUSES, 2)
    again = cell_of(run, CAUSES).run(2)
    for number in (0, 1, 2):
        assert found["validation_loss"][number] == again.evaluate(split="validation", round=number)["validation_loss"]


def test_the_table_shows_gap_parts_cells_and_interactions() -> None:
    table = attribute(sorted_federation, 1, seeds=(0, 1, 2)).table("test_loss")
    assert table["kind"].value_counts().to_dict() == {"gap": 1, "part": 4, "cell": 16, "interaction": 15}
    assert (table["low"] <= table["mean"] + 1e-12).all() and (table["mean"] <= table["high"] + 1e-12).all()
