"""FedTAN and its reference with a loss of one's own, with random forward passes and every setting; the measures too."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import equal, gap, split
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.batchnorm.fedtan import FedTAN, UnionSGD
from fedlab_core.batchnorm.hybrid import HBN, with_global_norms
from fedlab_core.batchnorm.lockstep import Sharing
from fedlab_core.batchnorm.measures import (
    deviation,
    fixed_batches,
    in_training,
    mean_gradient,
    mismatch,
    running_gap,
    union_gradient,
)
from fedlab_core.data import Dataset
from fedlab_core.failures import Failures
from fedlab_core.federation import Federation
from fedlab_core.partition import Partition
from fedlab_core.settings import Settings


def halved(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * F.cross_entropy(outputs, targets, reduction="none")


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


def table(loss: Callable[[Tensor, Tensor], Tensor] | None, double: bool = False) -> Dataset:
    draws = torch.Generator().manual_seed(3)
    x = torch.randn(48, 6, generator=draws, dtype=torch.float64 if double else torch.float32)
    y = torch.rand(48, 2, generator=draws, dtype=x.dtype) if loss is squares else (x[:, 0] > 0).long()
    more = {} if loss is None else {"loss": loss, "metrics": {"own": loss}}
    return Dataset.from_arrays(x[:36], y[:36], x[36:], y[36:], **more)


def network(*between: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *(between or (nn.BatchNorm1d(8),)), nn.Tanh(), nn.Linear(8, 2))


def union(method: FedTAN | UnionSGD, data: Dataset, partition: Partition, model: nn.Module, **changes) -> Federation:
    settings = Settings(fraction=1.0, epochs=None, steps=1, batch_size=4, lr=0.3, batch_norm="average")
    return Federation(data, partition, model, settings.replace(**changes), method).run(2)


@pytest.mark.parametrize("loss", [None, halved, squares])
def test_fedtan_is_centralised_training_under_any_loss(loss) -> None:
    runs = [union(method, table(loss), split(12, 12, 12), network(), double=True) for method in (FedTAN(), UnionSGD())]
    assert gap(runs[0].state, runs[1].state) < 1e-12
    assert runs[0].history[2].metrics["train_loss"] == pytest.approx(runs[1].history[2].metrics["train_loss"], rel=1e-9)


@given(st.integers(0, 10**6))
def test_the_reference_draws_nothing_from_the_global_generator(seed: int) -> None:
    model, data = network(nn.Dropout(0.5)), table(None)
    runs = []
    for other in (seed, seed + 1):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        runs.append(union(UnionSGD(), data, split(12, 12, 12), model, batch_norm=None))
        assert torch.equal(before, torch.get_rng_state())
    assert equal(runs[0].state, runs[1].state)
    dry = union(UnionSGD(), data, split(12, 12, 12), network(nn.Dropout(0.0)), batch_norm=None)
    assert gap(runs[0].state, dry.state) > 0


def test_the_reference_clips_its_gradient_and_freezes_statistics() -> None:
    run = union(UnionSGD(), table(None), split(12, 12, 12), network(), clip_norm=0.01, double=True)
    names = run.trained_names
    steps = [{n: run.state_at(t + 1)[n] - run.state_at(t)[n] for n in names} for t in (0, 1)]
    for step in steps:
        assert torch.stack([t.norm() for t in step.values()]).norm().item() == pytest.approx(0.3 * 0.01, rel=1e-4)
    frozen = union(UnionSGD(), table(None), split(12, 12, 12), network(), batch_norm="frozen")
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(frozen.state[name], frozen.state_at(0)[name])


@pytest.mark.parametrize(
    "changes", [{"keep_optimiser": True}, {"mixed_precision": True}, {"batch_norm": "local"}], ids=lambda c: [*c][0]
)
def test_what_the_reference_cannot_follow_is_refused(changes) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}.*accepted"):
        union(UnionSGD(), table(None), split(12, 12, 12), network(), **changes)


@pytest.mark.parametrize("loss", [halved, squares])
def test_gradients_are_measured_under_the_data_sets_own_loss(loss) -> None:
    run = union(FedTAN(), table(loss), split(12, 12, 12), network(), double=True)
    model, batches = in_training(run, run.state), fixed_batches(run)

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs, targets).mean()

    whole = union_gradient(model, batches, mean)
    by_hand = in_training(run, run.state)
    mean(by_hand(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])).backward()
    assert all(torch.allclose(whole[n], p.grad, rtol=1e-9) for n, p in by_hand.named_parameters())
    assert deviation(mean_gradient(model, batches, Sharing(), loss=mean), whole).total_size < 1e-12


def test_a_model_in_double_precision_is_measured_in_it() -> None:
    data = table(None, double=True)
    settings = Settings(fraction=1.0, batch_size=4, batch_norm="average")
    run = Federation(data, split(12, 12, 12), network().double(), settings).run(1)
    model = in_training(run, run.state)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert 0 <= mismatch(model, fixed_batches(run)).between.min() <= 1


def test_a_layer_that_keeps_no_statistics_has_no_running_gap() -> None:
    model = network(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 8), nn.BatchNorm1d(8))
    settings = Settings(fraction=1.0, batch_size=4, batch_norm="average")
    run = Federation(table(None), split(12, 12, 12), model, settings).run(1)
    assert list(running_gap(run.model, run.state, run.state_at(0))) == ["3"]


def test_hbn_looks_at_the_clients_that_took_part_and_at_no_other(monkeypatch) -> None:
    settings = Settings(fraction=1.0, batch_size=4, failures=Failures(unavailable=0.4, lost=0.3))
    run = Federation(
        table(None), split(12, 12, 12), with_global_norms(network(), mixed=True), settings, HBN(examples=4)
    )
    looked: list[tuple[int, int]] = []
    look = HBN.look
    monkeypatch.setattr(HBN, "look", lambda self, w, s, k: looked.append((w.round, k)) or look(self, w, s, k))
    for record in run.rounds(4):
        failed = record.failed.get("unavailable", []) + record.failed.get("lost", [])
        took = {k for k in range(3) if k not in failed} or {0, 1, 2}
        assert {k for round, k in looked if round == record.round + 1} == took
        looked.clear()
    assert any(record.failed for record in run.history)
