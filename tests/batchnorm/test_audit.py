"""Every policy on one run, HBN and FBN with their identities, on networks that the package has never seen."""

import math
from pathlib import Path

import pytest
import torch
from small import gap, small_data, small_federation, split
from torch import nn

from fedlab_core.batchnorm.audit import audit, with_standardised_weights
from fedlab_core.batchnorm.hybrid import FBN, HBN, GlobalNorm, merged, norms, with_global_norms
from fedlab_core.data import Dataset
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.settings import Settings

EXACT = 1e-12


def activations(seed: int = 0, rows: int = 12) -> torch.Tensor:
    return 2 + 3 * torch.randn(rows, 5, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    return [
        y,
        *torch.autograd.grad((y * torch.arange(y.numel()).view_as(y).sin()).sum(), [x, layer.weight, layer.bias]),
    ]


def batch_norm() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(5).double()
    nn.init.uniform_(layer.weight, generator=torch.Generator().manual_seed(1))
    nn.init.uniform_(layer.bias, generator=torch.Generator().manual_seed(2))
    return layer


def test_hbn_with_all_of_the_batch_is_batch_norm_forwards_and_backwards() -> None:
    plain, layer = batch_norm(), GlobalNorm(batch_norm(), mixed=True).double()
    nn.init.constant_(layer.theta, math.inf)
    for mine, torchs in zip(gradients(layer, activations()), gradients(plain, activations()), strict=True):
        assert (mine - torchs).abs().max() < 1e-10


def test_hbn_with_none_of_the_batch_is_fbn() -> None:
    layer, other = (GlobalNorm(batch_norm(), mixed=mixed).double() for mixed in (True, False))
    nn.init.constant_(layer.theta, -math.inf)
    for mine, constant in zip(gradients(layer, activations()), gradients(other, activations()), strict=True):
        assert (mine - constant).abs().max() < EXACT


def test_hbn_starts_half_way_and_learns_its_share() -> None:
    layer, x = GlobalNorm(batch_norm(), mixed=True).double(), activations()
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    expected = nn.functional.batch_norm(x, mean / 2, (1 + var) / 2, layer.weight, layer.bias, eps=layer.eps)
    assert (layer(x) - expected).abs().max() < 1e-10
    layer(x).square().sum().backward()
    assert layer.theta.grad.abs().min() > 0


def test_an_output_of_fbn_ignores_its_batch_mates_and_training_agrees_with_evaluation() -> None:
    layer, x = GlobalNorm(batch_norm(), mixed=False).double(), activations()
    assert torch.equal(layer.train()(x), layer.eval()(x))
    assert (layer.train()(x)[:1] - layer.train()(x[:1])).abs().max() < EXACT


def test_merged_moments_are_those_of_the_union() -> None:
    parts = [activations(seed, rows) + seed for seed, rows in enumerate((3, 8, 13))]
    moments = [(float(len(p)), *reversed(torch.var_mean(p, (0, 2, 3), correction=0))) for p in parts]
    _, mean, variance = merged(moments)
    expected, centre = torch.var_mean(torch.cat(parts), (0, 2, 3), correction=0)
    assert (mean - centre).abs().max() < EXACT and (variance - expected).abs().max() < EXACT


def federation(method: FBN, sizes: tuple[int, ...] = (20, 10), **changes: object) -> Federation:
    base = small_federation(split(*sizes), norm="batch", batch_norm="average", batch_size=None)
    model = with_global_norms(base.trained_model(0), mixed=isinstance(method, HBN))
    return Federation(base.dataset, base.partition, model, base.settings.replace(batch_norm=None, **changes), method)


def test_fbns_server_holds_the_statistics_of_all_clients_batches_of_the_first_layer() -> None:
    run = federation(FBN(step=1.0), lr=1e-12).run(1)
    model, name = run.trained_model(0).train(), next(iter(norms(run.model)))
    seen: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(run.dataset.prepare(run.dataset.x).double())
    var, mean = torch.var_mean(seen[0], 0, correction=0)
    assert (run.past.now.server[f"{name}:mean"] - mean).abs().max() < 1e-10
    assert (run.past.now.server[f"{name}:variance"] - var).abs().max() < 1e-10


def test_the_server_smooths_by_its_step() -> None:
    whole, part = (federation(FBN(step=step), lr=1e-12).run(1).past.now.server for step in (1.0, 0.1))
    for name, fresh in whole.items():
        before = 0.0 if name.endswith("mean") else 1.0
        assert (part[name] - (0.9 * before + 0.1 * fresh)).abs().max() < EXACT


def test_fbn_of_one_client_and_of_its_halves_is_the_same_with_full_batches() -> None:
    """All clients apply one function, so the gradient of the union is the mean of the clients' gradients."""
    one, two = (federation(FBN(), sizes, steps=1).run(3) for sizes in ((30,), (20, 10)))
    assert gap({n: one.state[n] for n in one.trained_names}, {n: two.state[n] for n in two.trained_names}) < EXACT


@pytest.mark.parametrize("method", [FBN(), HBN(examples=8)])
def test_global_statistics_travel_once_each_way_and_replay_gives_the_same_bits(method: FBN) -> None:
    run = federation(method).run(3)
    layer = next(iter(norms(run.model).values()))
    parameters = sum(run.state[name].numel() for name in run.trained_names)
    channels = sum(layer.mean.numel() for layer in norms(run.model).values())
    up, down = parameters + 2 * channels + len(norms(run.model)), parameters + 2 * channels
    assert (run.history[-1].costs.bytes_up, run.history[-1].costs.bytes_down) == (2 * 8 * up, 2 * 8 * down)
    assert isinstance(layer, GlobalNorm)
    history, state = run.history, run.state
    run.rewind(1)
    run.run(2)
    assert run.history == history and gap(run.state, state) == 0


@pytest.mark.parametrize("name", ["hbn", "fbn"])
def test_they_are_methods_of_an_experiment_which_brings_their_layers(name: str, tmp_path: Path) -> None:
    one = Experiment(dataset_options={"examples": 60}, clients=3, model="mlp", norm="batch", method=name).replace(
        method_options={"step": 0.5}, fraction=1.0, batch_norm="average", double=True
    )
    run = one.build().run(2)
    model = one.replace(method="fedavg", method_options={}).build().model
    by_hand = with_global_norms(model, mixed=name == "hbn")
    again = Federation(run.dataset, run.partition, by_hand, run.settings, run.method).run(2)
    assert run.history == again.history and gap(run.state, again.state) == 0
    run.save(tmp_path / "run")
    assert gap(one.load(tmp_path / "run").run(1).state, run.run(1).state) == 0
    with pytest.raises(ValueError, match="no batch normalisation"):
        one.replace(norm="none", batch_norm=None).build()


def test_a_returning_client_of_hbn_finds_its_own_shares() -> None:
    run = federation(HBN(examples=8), lr=0.5).run(2)
    kept = [{n: t for n, t in memory.items() if n.endswith("theta")} for memory in run.past.now.clients.values()]
    assert len(kept) == 2 and all(gap(kept[0], other) > 0 for other in kept[1:])


def skewed(model: nn.Module, size: int, **changes: object) -> Federation:
    base = small_data(48, classes=4)
    order = base.y.argsort(stable=True)

    def large(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(size // 4, -1).repeat_interleave(size // 4, -2).expand(-1, 3, -1, -1).contiguous()

    data = Dataset("small", "image", large(base.x[order]), base.y[order], large(base.test_x), base.test_y, base.classes,
                   (0.4,) * 3, (0.2,) * 3)  # fmt: skip
    settings = Settings(fraction=1.0, epochs=1, batch_size=8, lr=0.05, batch_norm="average")
    return Federation(data, split(24, 24), model, settings.replace(**changes))


class Own(nn.Module):
    """A small network, the batch norms under names of their own, one of them without scale and offset."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.steady = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second, self.calm = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8, affine=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.steady(self.first(x))).mean((2, 3))
        return self.head(torch.relu(self.calm(self.second(x))))


def test_the_audit_of_an_own_model_says_what_each_policy_does() -> None:
    torch.manual_seed(0)
    found = audit(skewed(Own(), 8), rounds=4)
    assert not [row.note for row in found.rows if row.note.startswith("refused")] and len(found.rows) == 12
    table = found.table()
    assert table["accuracy"].between(0, 1).all() and table["loss"].gt(0).all()
    only_statistics = ["average all", "parameters only", "drop", "re-estimate", "total variance", "SiloBN"]
    assert table.index[table["same_weights"]].tolist() == only_statistics  # training never reads running statistics
    assert table["loss"][only_statistics].nunique() >= 5  # but evaluation does
    everything = table["kilobytes"]["average all"]
    statistics = 2 * sum(4 * 2 * width + 8 for width in (6, 8)) / 1e3  # mean, variance, and a count of 8 bytes
    assert table["kilobytes"]["SiloBN"] == pytest.approx(everything - statistics)
    assert table["kilobytes"]["parameters only"] == pytest.approx(table["kilobytes"]["SiloBN"])
    assert table["kilobytes"]["FedBN"] == pytest.approx(everything - statistics - 2 * 4 * 2 * 6 / 1e3)
    assert table["exchanges"]["FedTAN"] == 3 * 2 + 1 and table["exchanges"]["average all"] == 1


def test_averaging_parameters_only_leaves_a_clients_own_statistics_in_the_global_model() -> None:
    """Full batches and no step of any size: these are the running statistics of the first client's data alone."""
    torch.manual_seed(0)
    run = skewed(Own(), 8, lr=1e-12, batch_size=None)
    found = audit(run, rounds=3)
    silo = Federation(run.dataset, run.partition, run.model, run.settings.replace(batch_norm="local_statistics")).run(3)
    seen = run.model.first(run.dataset.prepare(run.dataset.x[run.partition[0]])).mean((0, 2, 3))
    assert torch.allclose(silo.client_state(0)["steady.running_mean"], (1 - 0.9**3) * seen, atol=1e-5)
    assert found["parameters only"].loss == silo.evaluate(silo.client_state(0))["test_loss"]
    assert found["parameters only"].loss != found["average all"].loss


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_the_audit_takes_networks_of_torchvision(name: str) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    found = audit(skewed(getattr(models, name)(num_classes=4), 32, batch_size=12), rounds=1)
    refused = {row.policy: row.note for row in found.rows if row.note.startswith("refused")}
    assert set(refused) <= ({"FedTAN"} if name != "resnet18" else set()), refused
    assert all(row.accuracy is not None for row in found.rows if row.policy not in refused)
    assert len(found.rows) == 11  # FixBN needs two rounds


def test_one_client_makes_the_policies_one() -> None:
    torch.manual_seed(0)
    run = skewed(Own(), 8)
    alone = Federation(run.dataset, split(48), run.model, run.settings)
    found = audit(alone, rounds=2)
    losses = {found[policy].loss for policy in ("average all", "parameters only", "SiloBN", "FedBN", "total variance")}
    assert max(losses) - min(losses) < 1e-6


def test_standardised_weights_ignore_shift_and_scale_of_a_filter() -> None:
    torch.manual_seed(0)
    model, count = with_standardised_weights(Own().double())
    assert count == 2 and not [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        model.first.weight.mul_(3).add_(5)
    assert (model(x) - before).abs().max() < 1e-6  # 1e-8 under the root


def test_what_has_no_batch_norm_is_refused() -> None:
    with pytest.raises(ValueError, match="no batch normalisation"):
        audit(small_federation(split(10, 10)))
    with pytest.raises(ValueError, match="no GlobalNorm"):
        small_federation(split(10, 10), FBN())
