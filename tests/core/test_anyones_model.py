"""A plain `nn.Module` that trains in a plain loop trains here, on every engine alike, or is refused with a remedy."""

import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import OWN_LAYERS, equal, gap
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core import probes
from fedlab_core.data import Dataset
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import METHODS, build_method
from fedlab_core.partition import Partition
from fedlab_core.settings import Settings
from fedlab_core.state import get_state, mean_state, tensors

EXACT = ("threads", "auto")


def images(channels: int = 1, side: int = 8, n: int = 40) -> Dataset:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (n + 12,), generator=g)
    x = torch.randint(0, 100, (n + 12, channels, side, side), generator=g) + 50 * y[:, None, None, None]
    parts = x[:n].to(torch.uint8), y[:n], x[n:].to(torch.uint8), y[n:]
    return Dataset("own", "image", *parts, ("a", "b", "c"), (0.4,) * channels, (0.2,) * channels)


def blocks(*sizes: int) -> Partition:
    return Partition(torch.arange(sum(sizes)), torch.tensor([0, *sizes]).cumsum(0), "blocks")


def run(
    model: nn.Module, rounds: int = 2, data: Dataset | None = None, method: FedAvg | None = None, **options
) -> Federation:
    chosen = {"fraction": 1.0, "batch_size": 6, "lr": 0.05, "engine": "loop"} | options
    return Federation(data or images(), blocks(12, 20, 8), model, Settings(**chosen), method).run(rounds)


def mlp(*middle: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *middle, nn.ReLU(), nn.Linear(16, 3))


class Drawing(nn.Module):
    """Draws in its forward pass by every usual way."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lstm = mlp(nn.Dropout(0.4)), nn.LSTM(8, 4, 2, dropout=0.3, batch_first=True)
        self.attention, self.last = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(x[:, 0] + 0.1 * torch.randn_like(x[:, 0]))
        mixed, _ = self.attention(hidden, hidden, hidden)
        keep = torch.empty(len(x), 1).bernoulli_(0.7)
        return self.net(x) + self.last(mixed.mean(1)) * keep


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x.flatten(1)).relu()).relu())


class Aliased(nn.Module):
    """Keeps its batch norm under a second attribute, or not."""

    def __init__(self, alias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
        self.net = nn.Sequential(*layers)
        if alias:
            self.bn = self.net[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.gru, self.head = nn.Parameter(torch.ones(1)), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x[:, 0] * self.scale)[1][-1])


class Viewing(nn.Module):
    """The small CNN of tutorials: flattened with `.view`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(channels, 6, 3, padding=1), nn.MaxPool2d(2), nn.Linear(6 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(F.relu(self.conv(x))).view(-1, 6 * 16))


class Front(nn.Module):
    """A convolution whose output is flattened with `.view`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).view(len(x), -1)


class Renamed(nn.Module):
    """A network whose layers have a second name each."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net, self.layers = net, nn.ModuleList(net)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Counting(nn.Module):
    """Keeps state outside its state dict: an attribute, and a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = mlp(), 0
        self.register_buffer("drift", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        self.drift += 0.1 * self.training
        return self.net(x) * (1 + 0.01 * self.calls) + self.drift


def viewing(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return Viewing(channels)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: mlp(nn.Dropout(0.5)),
    "draws": Drawing,
    "tied": Tied,
    "recurrent": Recurrent,
    "view": viewing,
    "counting": Counting,
    "bfloat16 buffer": lambda: _with_buffer(torch.arange(5, dtype=torch.bfloat16)),
    "softmax over the batch": lambda: mlp(nn.Softmax(0)),
    "softmax over the batch, counted from the end": lambda: mlp(nn.Softmax(-2)),
    "the batch as one row": lambda: mlp(nn.Flatten(0), nn.Softmax(0), nn.Unflatten(0, (-1, 16))),
    "weight norm": lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(64, 3))),
}


def _with_buffer(tensor: Tensor) -> nn.Module:
    model = mlp()
    model.register_buffer("constant", tensor)
    return model


@functools.cache
def made(name: str) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name]()


@pytest.mark.parametrize("name", MODELS)
def test_every_engine_gives_the_bits_of_loop_and_runs_replay_and_resume(name: str, tmp_path) -> None:
    before = torch.get_rng_state()
    loop = run(made(name))
    assert all(equal(run(made(name), engine=engine).state, loop.state) for engine in EXACT)
    torch.manual_seed(99)
    assert equal(run(made(name)).state, loop.state), "torch's global seed plays no part"
    torch.set_rng_state(before)
    inside = loop.inside(2)
    names = loop.roles.travelling
    merged = mean_state([{n: u.state[n] for n in names} for u in inside.updates], inside.weights)
    assert all(torch.equal(merged[n], loop.state[n]) for n in names)
    loop.save(tmp_path)
    again = Federation.load(tmp_path, loop.dataset, loop.partition, made(name))
    end = loop.run(1).state
    assert equal(again.run(1).state, end)
    loop.rewind(1)
    assert equal(loop.run(2).state, end)
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator is never moved"


def test_the_view_after_a_convolution_is_never_broken_by_a_layout_nobody_asked_for() -> None:
    for channels in (1, 3):
        data = images(channels)
        runs = [
            run(viewing(channels), data=data, **options)
            for options in ({}, {"engine": "auto"}, {"channels_last": False})
        ]
        assert all(equal(one.state, runs[0].state) for one in runs)
    with pytest.raises(ValueError, match="model: Viewing fails on two training examples"):
        run(viewing(), channels_last=True)


def test_one_tensor_has_one_name() -> None:
    model = Tied()
    names = set(tensors(model))
    assert "b.weight" not in names and "a.weight" in names
    federation = run(model, rounds=1)
    held = 4 * sum(p.numel() for p in model.parameters())
    assert federation.history[-1].costs.bytes_up == federation.history[-1].costs.bytes_down == 3 * held
    trained = federation.trained_model()
    assert trained.a.weight is trained.b.weight and equal(get_state(trained), federation.state)
    held = federation.model.double(), federation.dataset.prepare(federation.dataset.x).double()
    loss = F.cross_entropy(held[0](held[1]), federation.dataset.y)
    by_hand = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(held[0].parameters()))])
    found = probes.client_gradients(federation, federation.state_at(0))
    assert found.norm == pytest.approx(by_hand.norm().item())
    assert probes.curvature(federation, federation.state, examples=20, steps=4).top > 0
    model.a.weight.requires_grad_(False)
    frozen = run(model, rounds=1)
    assert frozen.history[-1].costs.bytes_up == 3 * 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert frozen.state["a.weight"] is frozen.state_at(0)["a.weight"]


@pytest.mark.parametrize("policy", ["average", "local", "local_statistics", "frozen", "total_variance"])
def test_a_second_name_of_a_batch_norm_changes_nothing(policy: str) -> None:
    plain, aliased = (run(Aliased(alias), batch_norm=policy) for alias in (False, True))
    assert plain.state.keys() == aliased.state.keys() and equal(plain.state, aliased.state)
    for client in range(3):
        assert equal(plain.client_state(client), aliased.client_state(client))
    assert plain.history[-1].costs == aliased.history[-1].costs


@pytest.mark.parametrize(
    "name", [n for n in METHODS if n not in ("fedtan", "union_sgd", "layer_wise", "moon", *OWN_LAYERS)]
)
def test_no_method_touches_a_buffer_on_which_clients_agree(name: str) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.register_buffer("mask", torch.triu(torch.full((4, 4), -torch.inf), 1))
            self.register_buffer("position", torch.arange(100.0) / 3)
            self.register_buffer("key", torch.tensor(2**62 + 12345))
            self.register_buffer("flag", torch.tensor(True))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * torch.softmax(self.mask, -1).sum() / 4

    model = Masked()
    federation = run(model, method=build_method(name))
    for key in ("mask", "position", "key", "flag"):
        assert torch.equal(federation.state[key], model.get_buffer(key)), key
    sent = sum(p.numel() for p in model.parameters()) * 4
    assert federation.history[-1].costs.bytes_up in (0, 3 * sent, 6 * sent)  # 6: SCAFFOLD's controls travel too


def test_buffers_on_which_clients_disagree_are_averaged_by_weight() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("count", torch.zeros((), dtype=torch.long))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen += len(x)
                self.count += len(x)
            return self.net(x)

    federation = run(Seen(), rounds=1)
    mean = sum(n * n / 40 for n in (12, 20, 8))
    assert federation.state["seen"].item() == pytest.approx(mean) and federation.state["count"].item() == round(mean)


def test_models_keep_their_own_precision() -> None:
    wide = run(mlp().double())
    assert all(t.dtype == torch.float64 for t in wide.state.values())
    assert gap(wide.state, run(mlp(), double=True).state) < 1e-12
    narrow = run(mlp().bfloat16(), rounds=1)
    inside = narrow.inside(1)
    for name, tensor in narrow.state.items():
        mean = sum(w * u.state[name].float() for w, u in zip(inside.weights, inside.updates, strict=True))
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, mean.bfloat16()), "added up in float32"


def test_what_cannot_be_averaged_is_refused_with_a_remedy() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.phase = mlp(), nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) * self.phase.abs()

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x), x

    for model, message in (
        (Complex(), "'phase' is torch.complex64, accepted: real"),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), "lazy layer .* call model"),
        (Pair(), "answers with a tuple, accepted: a tensor .* output=lambda"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "has 2 outputs, accepted: at least 3"),
        (nn.Sequential(nn.Flatten(), nn.Linear(60, 3)), "fails on two training examples"),
    ):
        with pytest.raises(ValueError, match=message):
            run(model)
    federation = Federation(images(), blocks(20, 20), Pair(), Settings(1.0), output=lambda answer: answer[0]).run(1)
    assert equal(federation.state, Federation(images(), blocks(20, 20), Nested(), Settings(1.0)).run(1).state)
    assert isinstance(federation.trained_model()(torch.zeros(2, 1, 8, 8)), tuple), "as the caller's module answers"


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_extra_state_stays_with_the_module() -> None:
    class Extra(Nested):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.version = state["version"]

    assert equal(run(Extra()).state, run(Nested()).state)


def test_sparse_gradients_train_with_every_correction() -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.randint(0, 5, (40, 6), generator=g)
    data = Dataset("t", "text", t, t, t, t, tuple("abcde"))
    for name in ("fedavg", "fedprox", "scaffold", "feddyn"):
        states = []
        for sparse in (True, False):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Embedding(5, 8, sparse=sparse), nn.Linear(8, 5))
            states.append(run(model, data=data, method=build_method(name)).state)
        assert gap(*states) < 1e-6


def test_a_batch_of_one_is_found_before_the_first_round() -> None:
    model = mlp(nn.BatchNorm1d(16))
    data, options = images(n=41), {"batch_norm": "average", "batch_size": 10, "fraction": 1.0}
    with pytest.raises(
        ValueError, match="client 1 would train on a batch of one .* drop_last=True and another batch_size"
    ):
        Federation(data, blocks(20, 21), model, Settings(**options))
    with pytest.raises(ValueError, match="client 0 would .* a partition with min_size >= 2, another norm"):
        Federation(data, blocks(1, 40), model, Settings(**options))
    for remedy in ({"drop_last": True}, {"batch_size": 7}, {"batch_norm": "frozen"}, {"epochs": None, "steps": 2}):
        Federation(data, blocks(20, 21), model, Settings(**(options | remedy))).run(1)
    Federation(data, blocks(20, 21), Aliased(False), Settings(**options)).run(1)  # a convolution has more values


@given(sizes=st.lists(st.integers(1, 23), min_size=1, max_size=4), batch=st.integers(1, 9), drop=st.booleans())
@settings(max_examples=25)
def test_what_is_built_with_batch_norm_also_trains(sizes: list[int], batch: int, drop: bool) -> None:
    options = {"fraction": 1.0, "batch_size": batch, "drop_last": drop, "batch_norm": "average", "lr": 0.01}
    data, model = images(n=sum(sizes)), mlp(nn.BatchNorm1d(16))
    try:
        federation = Federation(data, blocks(*sizes), model, Settings(**options))
    except ValueError as error:
        lonely = [n for n in sizes if n == 1 or (n % batch == 1 and not drop) or batch == 1]
        assert lonely and "batch of one" in str(error)
    else:
        federation.run(1)


@given(seed=st.integers(0, 2**31), data=st.data())
@settings(max_examples=20)
def test_random_modules_agree_on_all_engines(seed: int, data) -> None:
    layers: list[nn.Module] = [nn.Flatten()]
    width = 64
    torch.manual_seed(seed)
    for _ in range(data.draw(st.integers(1, 3))):
        out = data.draw(st.integers(2, 12))
        layers.append(nn.Linear(width, out))
        extra = data.draw(st.sampled_from(["none", "dropout", "batch", "layer", "buffer", "softmax", "folded", "norm"]))
        layers += {
            "dropout": [nn.Dropout(0.3)],
            "batch": [nn.BatchNorm1d(out)],
            "layer": [nn.LayerNorm(out)],
            "softmax": [
                data.draw(st.sampled_from([nn.Softmax, nn.LogSoftmax]))(data.draw(st.sampled_from([0, 1, -1, -2])))
            ],
            "folded": [nn.Flatten(data.draw(st.sampled_from([0, -2]))), nn.Unflatten(-1, (-1, out)), nn.Softmax(-1)],
        }.get(extra, [])
        if extra == "norm":
            nn.utils.parametrizations.weight_norm(layers[-1])
        if extra == "buffer":
            layers[-1].register_buffer("constant", torch.rand(3))
        layers.append(data.draw(st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU]))())
        width = out
    form = data.draw(st.sampled_from(["plain", "tied", "second name", "view"]))
    if form == "tied":
        layers += [nn.Linear(width, width), nn.Linear(width, width)]
        layers[-1].weight = layers[-2].weight
    if form == "view":
        layers[0] = Front()
    model = nn.Sequential(*layers, nn.Linear(width, 3))
    model = Renamed(model) if form == "second name" else model
    batched = any(isinstance(layer, nn.BatchNorm1d) for layer in layers)
    options = {"double": True, "batch_norm": "average" if batched else None, "batch_size": 4}
    loop = run(model, **options)
    assert equal(run(model, engine="threads", **options).state, loop.state)
    assert gap(run(model, engine="auto", **options).state, loop.state) < 1e-9
