"""Planes, mixtures, gradients and curvature: exact corners, known losses and Hessians, the run untouched."""

import itertools
import threading

import numpy as np
import pytest
import torch
from small import equal, small_data, small_federation, split

from fedlab_core import probes
from fedlab_core.data import Dataset
from fedlab_core.federation import Federation
from fedlab_core.local.work import task_loss
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import flatten, get_state, mean_state, unflatten


def run(norm: str = "none", rounds: int = 3) -> Federation:
    batch_norm = {"batch_norm": "average"} if norm == "batch" else {}
    return small_federation(split(20, 20, 10, 10), norm=norm, epochs=2, batch_size=10, **batch_norm).run(rounds)


def linear() -> Federation:
    """A softmax regression: its loss is known everywhere."""
    data, parts = small_data(60), split(20, 40)
    model = build_model("mlp", data.input_shape, 3, generator(0, "initial weights"), hidden=())
    return Federation(data, parts, model, Settings(1.0, batch_size=None, lr=0.3, double=True)).run(2)


def test_a_plane_goes_through_its_three_models_exactly() -> None:
    federation = run()
    states = [u.state for u in federation.inside(3).updates[:3]]
    plane = probes.plane_through(*states, federation.trained_names)
    for (x, y), state in plane.corners:
        assert plane.point(x, y) is state
        assert plane.project(state) == pytest.approx((x, y, 0), abs=1e-6)
        near = plane.point(x + 1e-5, y)
        assert (flatten(near) - flatten(state)).norm().item() == pytest.approx(1e-5, rel=1e-4)
    u, v = (flatten(d, plane.names) for d in (plane.u, plane.v))
    assert u.norm().item() == pytest.approx(1) and v.norm().item() == pytest.approx(1)
    assert torch.dot(u, v).item() == pytest.approx(0, abs=1e-12)


def test_a_point_of_the_plane_is_the_affine_combination_of_the_models() -> None:
    federation = run()
    a, b, c = (u.state for u in federation.inside(3).updates[:3])
    plane = probes.plane_through(a, b, c, federation.trained_names)
    (_, _), (length, _), (along, height) = (at for at, _ in plane.corners)
    middle = plane.point((length + along) / 3, height / 3)
    expected = mean_state([a, b, c], [1 / 3] * 3)
    assert torch.allclose(flatten(middle), flatten(expected), atol=1e-12)


def test_three_models_on_a_line_span_no_plane() -> None:
    federation = run()
    a, b = (u.state for u in federation.inside(3).updates[:2])
    with pytest.raises(ValueError, match="on the line"):
        probes.plane_through(a, b, mean_state([a, b], [0.5, 0.5]), federation.trained_names)
    with pytest.raises(ValueError, match="equal"):
        probes.plane_through(a, a, b, federation.trained_names)


def test_the_plane_of_a_path_is_that_of_the_principal_components() -> None:
    federation = run(rounds=6)
    states = [federation.state_at(t) for t in range(7)]
    plane = probes.plane_of_path(states, federation.trained_names)
    path = plane.path(states)
    offsets = np.stack([(flatten(s) - flatten(states[-1])).numpy() for s in states])
    values = np.linalg.svd(offsets, compute_uv=False) ** 2  # the oracle
    assert (path[:, 0] ** 2).sum() == pytest.approx(values[0]) and (path[:, 1] ** 2).sum() == pytest.approx(values[1])
    assert (path[:, 2] ** 2).sum() == pytest.approx(values[2:].sum(), abs=1e-9)
    assert path[-1] == pytest.approx([0, 0, 0], abs=1e-9) and plane.point(0, 0) is states[-1]
    with pytest.raises(ValueError, match="2 states"):
        probes.plane_of_path(states[:2], federation.trained_names)


def test_a_scan_begins_coarse_only_adds_and_ends_with_every_point() -> None:
    federation = run()
    plane = probes.plane_through(*(u.state for u in federation.inside(3).updates[:3]), federation.trained_names)
    seen = list(probes.scan(federation, plane, size=11))
    assert [s.stride for s in seen][-1] == 1 and seen[-1].done == 1 and seen[0].done < 0.2
    for before, after in itertools.pairwise(seen):
        known = ~np.isnan(before.loss)
        assert np.array_equal(before.loss[known], after.loss[known]) and after.done > before.done
        assert not np.isnan(before.filled()).any()
    last = seen[-1]
    i, j = 7, 2
    alone = federation.evaluate(plane.point(last.x[j], last.y[i]))
    assert last.loss[i, j] == pytest.approx(alone["test_loss"], rel=1e-9)
    corners = np.array([at for at, _ in plane.corners])
    assert last.x[0] < corners[:, 0].min() and last.y[-1] > corners[:, 1].max()


def test_a_scan_can_be_stopped_and_knows_what_is_missing() -> None:
    federation = run()
    plane = probes.plane_through(*(u.state for u in federation.inside(3).updates[:3]), federation.trained_names)
    stop = threading.Event()
    stop.set()
    (only,) = probes.scan(federation, plane, size=11, stop=stop)
    assert 0 < only.done < 1
    filled = only.filled()
    known = ~np.isnan(only.loss)
    assert np.array_equal(filled[known], only.loss[known]) and set(filled.ravel()) == set(only.loss[known])


def test_a_scan_leaves_run_and_states_alone_and_knows_batch_norm() -> None:
    federation = run("batch")
    states = [u.state for u in federation.inside(3).updates[:3]]
    copies = [{n: t.clone() for n, t in s.items()} for s in (*states, federation.state, get_state(federation.model))]
    plane = probes.plane_through(*states, federation.trained_names)
    plain = list(probes.scan(federation, plane, size=3))[-1]
    estimated = list(probes.scan(federation, plane, size=3, recalibrate_with=60))[-1]
    assert np.isfinite(plain.loss).all() and not np.allclose(plain.loss, estimated.loss)
    alone = federation.evaluate(probes.recalibrate(federation, plane.point(plain.x[1], plain.y[1]), 60))
    assert estimated.loss[1, 1] == pytest.approx(alone["test_loss"])
    now = (*states, federation.state, get_state(federation.model))
    assert all(equal(x, y) for x, y in zip(now, copies, strict=True))


def test_weights_of_mixtures_are_what_they_are_called() -> None:
    rows = probes.dirichlet_weights(4, 4000, 5.0, generator(0, "w"))
    assert torch.allclose(rows.sum(1), torch.ones(4000, dtype=rows.dtype))
    assert torch.allclose(rows.var(0), torch.full((4,), 0.25 * 0.75 / 21, dtype=rows.dtype), rtol=0.1)
    left = probes.leave_one_out([0.5, 0.25, 0.25])
    assert left.tolist() == [[0, 0.5, 0.5], [2 / 3, 0, 1 / 3], [2 / 3, 1 / 3, 0]]
    halves = probes.random_halves([0.1, 0.2, 0.3, 0.4], 50, generator(0, "w"))
    assert ((halves > 0).sum(1) == 2).all() and torch.allclose(halves.sum(1), torch.ones(50, dtype=halves.dtype))
    triangle = probes.triangle_weights(4)
    assert len(triangle) == 15 and torch.allclose(triangle.sum(1), torch.ones(15, dtype=triangle.dtype))
    assert sorted(triangle.max(1).values.tolist())[-3:] == [1, 1, 1]


def test_mixtures_have_the_clients_at_the_corners_and_the_global_model_inside() -> None:
    federation = run()
    inside = federation.inside(3)
    states = [u.state for u in inside.updates]
    weights = torch.cat((torch.eye(4, dtype=torch.float64), torch.tensor([inside.weights], dtype=torch.float64)))
    found = probes.mixtures(federation, states, weights)
    assert found.loss[:4] == tuple(r["test_loss"] for r in federation.evaluate_states(states))
    assert found.loss[4] == pytest.approx(federation.evaluate()["test_loss"], rel=1e-12)
    assert probes.mix(states, [0, 1, 0, 0]) is states[1]
    with pytest.raises(ValueError, match="add up to 0.5"):
        probes.mix(states, [0.5, 0, 0, 0])


def test_a_summary_is_the_textbooks() -> None:
    summary = probes.Mixtures((1.0, 2.0, 6.0), (0.5, 0.7, 0.9)).summary()
    assert summary["loss_mean"] == 3 and summary["loss_sd"] == pytest.approx(7**0.5) and summary["loss_worst"] == 6
    assert summary["accuracy_worst"] == 0.5 and summary["accuracy_sd"] == pytest.approx(0.2)


def test_stability_reports_every_family_and_is_nil_for_equal_clients() -> None:
    found = probes.stability(run(), 3, count=5)
    assert found["gain"] == pytest.approx(found["average"]["accuracy"] - found["clients"])
    assert found["dirichlet"]["loss_sd"] > 0 and found["size"] > 0
    data = small_data(20)
    same = type(split(20))(torch.arange(20).repeat(3), torch.tensor([0, 20, 40, 60]), "three times the same")
    still = small_federation(same, data=data).run(1)
    assert probes.stability(still, 1, count=5)["dirichlet"]["loss_sd"] == pytest.approx(0, abs=1e-12)


def test_the_gain_of_an_average_is_the_same_in_every_probe_with_unequal_clients() -> None:
    federation = small_federation(split(4, 16, 40), batch_size=4).run(2)
    for round in (1, 2):
        gain = probes.local_against_global(federation, round)["gain"]
        assert probes.stability(federation, round, count=3)["gain"] == pytest.approx(gain, abs=1e-12)


def test_gradients_of_a_federation_agree_with_its_updates() -> None:
    federation = linear()  # one full-batch step: update = -lr * gradient
    found = probes.client_gradients(federation, federation.state)
    federation.run(1)
    record, lr = federation.history[-1].metrics, federation.settings.lr
    assert found.cosine == pytest.approx(record["cosine"]) and found.diversity == pytest.approx(record["diversity"])
    moved = flatten(federation.state_at(3)) - flatten(federation.state_at(2))
    assert found.norm == pytest.approx(moved.norm().item() / lr)
    updates = [flatten(u.state) - flatten(federation.state_at(2)) for u in federation.inside(3).updates]
    expected = sum(p * (u - moved).norm().item() ** 2 for p, u in zip((1 / 3, 2 / 3), updates, strict=True)) / lr**2
    assert found.dissimilarity == pytest.approx(expected)
    assert found.relative == pytest.approx(expected / found.norm**2)


def test_local_against_global_is_read_off_the_models() -> None:
    federation = run()
    found = probes.local_against_global(federation, 3)
    own = [federation.evaluate(u.state)["test_accuracy"] for u in federation.inside(3).updates]
    assert found["worst"] == min(own)
    assert found["clients"] == pytest.approx(np.average(own, weights=[20, 20, 10, 10]))
    assert found["next"] == federation.history[3].metrics["test_accuracy"]
    assert found["harm"] == found["clients"] - federation.history[2].metrics["test_accuracy"]


@pytest.mark.parametrize("make", [linear, run])
def test_curvature_is_the_spectrum_of_the_hessian(make) -> None:
    federation = make()
    state, data, names = federation.state, federation.dataset, federation.trained_names
    x = data.prepare(data.x).double()

    def loss(vector: torch.Tensor) -> torch.Tensor:
        weights = unflatten(vector, state, names)
        return task_loss(torch.func.functional_call(federation.model.double(), weights, (x,)), data.y)

    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flatten(state, names)))
    federation.model.float()
    found = probes.curvature(federation, state, steps=30)
    assert found.top == pytest.approx(values[-1].item(), rel=1e-6)
    assert found.bottom == pytest.approx(values[0].item(), abs=1e-3 * values[-1].item())
    assert found.residual < 1e-3 * found.top
    one = probes.curvature(federation, state, steps=1)
    assert values[0] <= one.top == one.bottom <= values[-1] and one.residual > 0


def test_curvature_is_that_of_the_data_sets_own_loss() -> None:
    draws = generator(0, "table")
    x, y = torch.randn(40, 3, generator=draws), torch.randn(40, 1, generator=draws)

    def squares(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).square().flatten()

    data = Dataset.from_arrays(x, y, x[:8], y[:8], loss=squares, metrics={"squares": squares})
    federation = Federation(data, split(20, 20), torch.nn.Linear(3, 1), Settings(fraction=1.0, lr=0.01))
    rows = torch.cat([x, torch.ones(40, 1)], 1).double()  # its Hessian is that of least squares
    expected = torch.linalg.eigvalsh(2 * rows.T @ rows / 40)
    found = probes.curvature(federation, federation.state)
    assert (found.bottom, found.top) == pytest.approx((expected[0].item(), expected[-1].item()), rel=1e-4)


def test_the_loss_of_a_linear_model_on_a_line_is_that_of_the_mixed_logits() -> None:
    federation = linear()
    a, b = federation.state_at(0), federation.state_at(2)
    line = probes.line(federation, a, b, [0.3])
    x = federation.dataset.prepare(federation.dataset.x).double()
    logits = [torch.func.functional_call(federation.model.double(), s, (x,)) for s in (a, b)]
    federation.model.float()
    expected = task_loss(0.3 * logits[0] + 0.7 * logits[1], federation.dataset.y).item()
    assert line.loss_at(0.3) == pytest.approx(expected, rel=1e-9)
    assert line.barrier == pytest.approx(0, abs=1e-9)  # the loss is convex


def test_what_does_not_fit_is_named() -> None:
    federation = run(rounds=1)
    with pytest.raises(ValueError, match="count=0"):
        probes.dirichlet_weights(3, 0, 1.0, generator(0, "w"))
    with pytest.raises(ValueError, match="at least 2"):
        probes.leave_one_out([1.0])
    with pytest.raises(ValueError, match="intervals=0"):
        probes.triangle_weights(0)
    with pytest.raises(ValueError, match="steps=0"):
        probes.curvature(federation, federation.state, steps=0)
    plane = probes.Plane(federation.state, {}, {}, ())
    with pytest.raises(ValueError, match="around"):
        next(probes.scan(federation, plane))
