"""What SCAFFOLD and FedTAN converge to, in float64: the objective whose weights the server uses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import gap, small_data, small_federation, split
from torch import nn

from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.federation import Federation
from fedlab_core.local.training import batches
from fedlab_core.local.work import task_loss
from fedlab_core.methods.client import Scaffold
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.partition import Partition
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, batch_norms


def objective_gradient(federation: Federation, weighting: str) -> float:
    """Norm of the gradient of sum_k p_k F_k at the global model."""
    sizes = federation.partition.sizes.double()
    shares = sizes / sizes.sum() if weighting == "examples" else torch.full_like(sizes, 1 / len(sizes))
    model = federation.trained_model()
    data, partition = federation.dataset, federation.partition
    total = 0.0
    for client, share in enumerate(shares.tolist()):
        x = data.prepare(data.x[partition[client]]).double()
        total = total + share * (task_loss(model.double()(x), data.y[partition[client]]) + _decay(model))
    grads = torch.autograd.grad(total, list(model.parameters()))
    return torch.cat([g.flatten() for g in grads]).norm().item()


def _decay(model: nn.Module) -> torch.Tensor:
    return sum(0.05 * parameter.square().sum() for parameter in model.parameters())


class Convex(nn.Module):
    """Multinomial regression; its ridge penalty is part of the loss that clients minimise, see `Ridge`."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


class Ridge(Scaffold):
    def loss(self, context, x, y):
        return task_loss(context.model(x), y) + _decay(context.model)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_scaffold_minimises_the_objective_with_the_servers_weights(weighting: str) -> None:
    options = {"fraction": 1.0, "epochs": None, "steps": 5, "batch_size": None, "lr": 0.2, "double": True}
    chosen = Settings(weighting=weighting, evaluate_every=1000, **options)
    federation = Federation(small_data(60), split(4, 16, 40), Convex(), chosen, Ridge()).run(600)
    other = {"examples": "uniform", "uniform": "examples"}[weighting]
    assert objective_gradient(federation, weighting) < 1e-10
    assert objective_gradient(federation, other) > 1e-3


def test_scaffolds_controls_are_those_of_parameters_that_travel() -> None:
    run = small_federation(split(20, 20), Scaffold(), norm="batch", batch_norm="local", batch_size=5).run(2)
    controls = {name.removeprefix("control.") for name in run.past.now.server}
    assert controls == set(run.roles.travelling) and not controls & (run.roles.local | run.roles.statistics)


def weighted_gradient(federation: Federation, shared: list[torch.Tensor]) -> State:
    """The gradient of sum_k p_k L_k at the start, with statistics mu = sum_k p_k mu_k and v = sum_k p_k v_k, by
    autograd."""
    sizes = federation.partition.sizes.double()
    shares = (sizes / sizes.sum()).tolist()
    model, data = federation.trained_model(0).double().train(), federation.dataset
    values = [data.prepare(data.x[federation.partition[k]][batch]).double() for k, batch in enumerate(shared)]
    for module in model.children():
        for layer in module if isinstance(module, nn.ModuleList) else [module]:
            for part in layer if isinstance(layer, nn.Sequential) else [layer]:
                if isinstance(part, nn.BatchNorm1d):
                    mean = sum(p * v.mean(0) for p, v in zip(shares, values, strict=True))
                    variance = sum(p * (v - mean).square().mean(0) for p, v in zip(shares, values, strict=True))
                    values = [(v - mean) / (variance + part.eps).sqrt() * part.weight + part.bias for v in values]
                else:
                    values = [part(v.flatten(1)) for v in values]
    targets = [data.y[federation.partition[k]][batch] for k, batch in enumerate(shared)]
    loss = sum(p * task_loss(v, y) for p, v, y in zip(shares, values, targets, strict=True))
    names = [name for name, _ in model.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))


@given(sizes=st.lists(st.integers(6, 20), min_size=2, max_size=4), batch=st.integers(3, 6))
@settings(max_examples=15)
def test_fedtans_step_is_the_gradient_of_the_weighted_objective(sizes: list[int], batch: int) -> None:
    options = {"norm": "batch", "batch_norm": "average", "steps": 1, "batch_size": batch, "lr": 0.3}
    run = small_federation(split(*sizes), FedTAN(), **options).run(1)
    shared = [next(batches(n, run.settings, generator(0, "batches", 1, k))) for k, n in enumerate(sizes)]
    expected, start = weighted_gradient(run, shared), run.state_at(0)
    for name, gradient in expected.items():
        step = (start[name] - run.state[name]) / 0.3
        assert (step - gradient).abs().max() <= 1e-12 * max(1.0, gradient.abs().max().item())


def test_fedtan_begins_its_later_steps_with_a_new_optimiser() -> None:
    options = {"norm": "batch", "batch_norm": "average", "batch_size": None, "epochs": None}
    both = small_federation(split(12, 12), FedTAN(), steps=2, momentum=0.9, **options).run(1)
    plain = small_federation(split(12, 12), FedTAN(), steps=2, **options).run(1)
    assert gap(both.state, plain.state) == 0, "one step of momentum is a step without"


def test_a_batch_norm_may_be_called_by_keyword() -> None:
    class Keyword(nn.Module):
        def __init__(self, keyword: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.norm, self.head = nn.Linear(16, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
            self.keyword = keyword

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x.flatten(1))
            return self.head(torch.relu(self.norm(input=x) if self.keyword else self.norm(x)))

    parts = small_data(24), split(12, 12)
    runs = [Federation(*parts, Keyword(k), Settings(1.0, batch_norm="average"), FedTAN()).run(2) for k in (True, False)]
    assert gap(runs[0].state, runs[1].state) == 0 and len(batch_norms(runs[0].model)) == 1


def test_unequal_clients_count_by_their_examples_among_all_that_exist() -> None:
    partition = Partition(torch.arange(30), torch.tensor([0, 5, 15, 30]), "blocks")
    run = small_federation(partition, FedAvg(), fraction=0.7).run(1)
    inside = run.inside(1)
    assert [u.share for u in inside.updates] == [(5, 10, 15)[u.client] / 30 for u in inside.updates]
