"""The loss along a line: exact ends, the right points in between, batch norm re-estimated, the run untouched."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import equal, gap, small_federation, split

from fedlab_core import probes
from fedlab_core.state import State, get_state, set_state


def two_states(norm: str = "none", **changes: object) -> tuple:
    """A federation and its two clients' models after one round."""
    batch_norm = {"batch_norm": "average"} if norm == "batch" else {}
    federation = small_federation(split(30, 30), norm=norm, epochs=3, batch_size=10, **batch_norm, **changes)
    federation.run(1)
    return federation, *(update.state for update in federation.inside(1).updates)


def test_both_ends_are_the_states_themselves() -> None:
    federation, a, b = two_states()
    line = probes.line(federation, a, b)
    assert line.parents == (
        federation.evaluate(a, "train")["train_loss"],
        federation.evaluate(b, "train")["train_loss"],
    )
    assert probes.interpolate(a, b, 1.0) is a and probes.interpolate(a, b, 0.0) is b


def test_the_papers_grid_goes_beyond_the_ends_and_gets_its_middle() -> None:
    federation, a, b = two_states()
    line = probes.line(federation, a, b)
    assert len(line.theta) == 51 and line.theta[0] == -0.2 and line.theta[-1] == pytest.approx(1.2)
    assert {0.0, 0.5, 1.0} <= set(line.theta) and list(line.theta) == sorted(line.theta)
    assert probes.line(federation, a, b, [2.0]).theta == (0.0, 0.5, 1.0, 2.0)


@given(theta=st.floats(-1, 2))
@settings(max_examples=30)
def test_a_point_is_the_weighted_sum(theta: float) -> None:
    a, b = ({"w": torch.tensor([1.0, -2.0], dtype=torch.float64) * k, "count": torch.tensor(10 * k)} for k in (1, 3))
    point = probes.interpolate(a, b, theta)
    assert torch.allclose(point["w"], theta * a["w"] + (1 - theta) * b["w"], rtol=0, atol=1e-12)
    assert point["count"].dtype == torch.int64
    assert abs(point["count"].item() - (theta * 10 + (1 - theta) * 30)) <= 0.5 + 1e-9


def test_points_are_evaluated_one_by_one_or_together_alike() -> None:
    federation, a, b = two_states()
    line = probes.line(federation, a, b, [0.25], split="test")
    alone = federation.evaluate(probes.interpolate(a, b, 0.25))
    assert (line.loss_at(0.25), line.accuracy[1]) == (alone["test_loss"], alone["test_accuracy"])


def test_a_model_has_no_barrier_to_itself_and_a_bump_is_measured() -> None:
    federation, a, _ = two_states()
    assert probes.line(federation, a, a).barrier == pytest.approx(0, abs=1e-12)
    bump = probes.LossLine((-0.5, 0.0, 0.25, 0.5, 1.0), (9.0, 1.0, 3.0, 2.0, 2.0), (0.0,) * 5)
    assert bump.barrier == 1.75 and bump.midpoint == 2.0 and bump.parents == (2.0, 1.0)


def test_the_run_and_the_states_are_left_alone() -> None:
    federation, a, b = two_states("batch")
    before = [dict(state) for state in (a, b, federation.state)]
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in before]
    model = get_state(federation.model)
    probes.line(federation, a, b, [0.3], recalibrate_with=60)
    assert all(equal(x, y) for x, y in zip((a, b, federation.state), copies, strict=True))
    assert equal(model, get_state(federation.model)) and len(federation.history) == 2


def running(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "running" in name}


def test_recalibrated_statistics_are_those_of_the_data() -> None:
    federation, a, b = two_states("batch")
    state = probes.recalibrate(federation, probes.interpolate(a, b, 0.5), 60)
    model = federation.model.double().train()
    set_state(model, state)
    inputs: list[torch.Tensor] = []
    layer = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d))
    layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(federation.dataset.prepare(federation.dataset.x).double())
    expected = [inputs[0].mean(0), inputs[0].var(0)]
    assert all(torch.allclose(x, y, atol=1e-10) for x, y in zip(running(state).values(), expected, strict=True))


def test_recalibration_changes_statistics_only_and_forgets_the_old_ones() -> None:
    federation, a, b = two_states("batch")
    once = probes.recalibrate(federation, a, 60)
    spoilt = a | {name: torch.full_like(tensor, 7.0) for name, tensor in running(a).items()}
    assert equal(once, probes.recalibrate(federation, spoilt, 60))
    assert gap(once, a) > 0 and equal(
        {n: t for n, t in once.items() if "running" not in n}, {n: t for n, t in a.items() if "running" not in n}
    )
    line = probes.line(federation, a, b, [], recalibrate_with=60)
    assert line.parents[0] == federation.evaluate(once, "train")["train_loss"]


def test_a_model_without_batch_norm_is_not_recalibrated() -> None:
    federation, a, _ = two_states()
    assert probes.recalibrate(federation, a, 10) is a


def test_a_variance_does_not_become_negative_beyond_the_ends() -> None:
    federation, a, b = two_states("batch")
    names = [name for name in a if name.endswith("running_var")]
    b = b | {name: a[name] * 20 for name in names}
    line = probes.line(federation, a, b, [1.5])
    assert all(torch.tensor(line.loss).isfinite())


def test_what_does_not_fit_is_named() -> None:
    federation, a, b = two_states()
    with pytest.raises(ValueError, match="differ in names"):
        probes.line(federation, a, {**b, "more": torch.zeros(1)})
    name = next(iter(a))
    with pytest.raises(ValueError, match=name):
        probes.line(federation, a, b | {name: torch.zeros(1)})
    with pytest.raises(ValueError, match="examples=1, accepted: 2 to 60"):
        probes.recalibrate(federation, a, 1)
    with pytest.raises(ValueError, match="split"):
        probes.line(federation, a, b, split="validation")
