"""Parameter counts, initialisation without global randomness, and oracles for every layer that is not torch's own."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlab_core.models import MODELS, NORMS, build_model, initialise, parameter_count
from fedlab_core.models.layers import RELU_GAIN, WSConv2d, WSLinear, standardise
from fedlab_core.models.resnet import BasicBlock
from fedlab_core.models.vit import Attention
from fedlab_core.randomness import generator, torch_draws_from

DIGIT, MNIST, CIFAR = (1, 8, 8), (1, 28, 28), (3, 32, 32)
VARIANTS = [(name, norm) for name, info in MODELS.items() for norm in info.norms]
SMALL = {"lstm": {"hidden": 16}, "vit": {"dim": 16, "depth": 2}}


def draws(seed: int = 0) -> torch.Generator:
    return generator(seed, "test models")


def build(name: str, shape: tuple[int, ...] | None = None, norm: str = "none", seed: int = 0, **options) -> nn.Module:
    shape = shape or {"image": DIGIT, "text": (12,)}[MODELS[name].kind]
    return build_model(name, shape, 10, draws(seed), norm=norm, **options)


def batch(name: str, shape: tuple[int, ...] = DIGIT, n: int = 4) -> Tensor:
    if MODELS[name].kind == "text":
        return torch.randint(10, (n, 12), generator=draws(1))
    return torch.randn(n, *shape, generator=draws(1))


def norm_layers(model: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kinds)]


# --- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "count"),
    [
        ("2nn", MNIST, 10, {}, 199_210),  # McMahan et al. 2017, section 3
        ("2nn", DIGIT, 10, {}, 55_210),
        ("cnn", MNIST, 10, {}, 1_663_370),  # McMahan et al. 2017, section 3
        ("resnet20", CIFAR, 10, {"norm": "batch"}, 269_722),
        ("resnet8", CIFAR, 10, {"norm": "batch"}, 75_290),
        ("mlp", (1, 14, 14), 10, {}, 17_418),
        ("mlp", (1, 14, 14), 10, {"norm": "batch"}, 17_418 + 2 * 64),  # + 2 * 128 for the norms, - 128 biases
        ("small_cnn", MNIST, 10, {}, 80 + 1168 + 2320 + 170),
        ("small_cnn", MNIST, 10, {"norm": "weight"}, 80 + 1168 + 2320 + 170 + 40),
        ("lstm", (80,), 258, {}, 866_578 + 512),  # the paper's count, + 2 x 4 x 256 biases - 2 x 3 x 256 peepholes
        # ViT-Tiny on 32 pixels with patches of 4: embedding 22,080, blocks 444,864 each, final norm 384, head.
        ("vit", CIFAR, 10, {"dim": 192, "depth": 12, "heads": 3}, 22_080 + 12 * 444_864 + 384 + 1_930),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, ...], classes: int, options: dict, count: int) -> None:
    assert parameter_count(build_model(name, shape, classes, draws(), **options)) == count


def test_lstm_count_of_the_paper_has_one_bias_and_peepholes() -> None:
    symbols, embedding, hidden = 258, 8, 256
    layers = sum(4 * hidden * (width + hidden + 1) + 3 * hidden for width in (embedding, hidden))
    assert symbols * embedding + layers + (hidden + 1) * symbols == 866_578


def test_resnet20_has_19_bn_layers_of_688_channels() -> None:
    layers = norm_layers(build("resnet20", CIFAR, "batch"), nn.BatchNorm2d)
    assert len(layers) == 19 and sum(layer.num_features for layer in layers) == 688
    assert len(norm_layers(build("resnet8", CIFAR, "batch"), nn.BatchNorm2d)) == 7


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet8", "resnet20"])
def test_norm_argument_decides_the_layers(name: str) -> None:
    kinds = {
        "none": (),
        "batch": (nn.BatchNorm1d, nn.BatchNorm2d),
        "group": (nn.GroupNorm,),
        "layer": (nn.LayerNorm if name == "mlp" else nn.GroupNorm,),
        "weight": (WSConv2d, WSLinear),
    }
    count = {"mlp": 2, "small_cnn": 3, "resnet8": 7, "resnet20": 19}[name]
    every = {kind for group in kinds.values() for kind in group}
    for norm in NORMS:
        found = norm_layers(build(name, norm=norm), *every)
        assert len(found) == (0 if norm == "none" else count)
        assert all(isinstance(layer, kinds[norm]) for layer in found)
        groups = {layer.num_groups for layer in found if isinstance(layer, nn.GroupNorm)}
        assert groups <= ({2} if norm == "group" else {1})


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_forward_is_head_of_features(name: str, norm: str) -> None:
    for shape in (DIGIT, MNIST, CIFAR) if MODELS[name].kind == "image" else [(12,)]:
        model, x = build(name, shape, norm, **SMALL.get(name, {})), batch(name, shape)
        logits = model(x)
        assert logits.shape == ((4, 10) if MODELS[name].kind == "image" else (4, 12, 10))
        assert bool(logits.isfinite().all())
        features = model.eval().features(x)
        assert isinstance(model.head, nn.Linear) and features.shape[-1] == model.head.in_features
        assert torch.equal(model(x), model.head(features))


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_every_parameter_gets_a_gradient_and_sgd_lowers_the_loss(name: str, norm: str) -> None:
    model, x = build(name, norm=norm, **SMALL.get(name, {})), batch(name, n=8)
    y = torch.arange(8) % 10 if x.is_floating_point() else x.roll(-1, 1)
    optimiser = torch.optim.SGD(model.parameters(), 1e-4 if name == "resnet20" else 0.01)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # The key bias shifts all scores of a query alike, so softmax cancels its gradient; nothing else may be idle.
    idle = {n for n, p in model.named_parameters() if p.grad.abs().max() < 1e-9}
    assert all(n.endswith("attention.k.bias") for n in idle)


# --- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), VARIANTS)
def test_weights_come_from_the_generator_alone(name: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two builds agree although the memory they start in differs; global random state neither moves nor matters."""
    original, junk = nn.Module.to_empty, iter([math.nan, 1e30])

    def to_junk(module: nn.Module, **arguments) -> nn.Module:
        original(module, **arguments)
        value = next(junk)
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.data.fill_(value if tensor.is_floating_point() else 77)
        return module

    monkeypatch.setattr(nn.Module, "to_empty", to_junk)
    before = torch.get_rng_state()
    first = build(name, norm=norm).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.randn(1)
    second = build(name, norm=norm).state_dict()
    torch.set_rng_state(before)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) and bool(value.isfinite().all()) and value.abs().max() < 100
    monkeypatch.undo()
    other = build(name, norm=norm, seed=1).state_dict()
    same = {k for k, v in first.items() if torch.equal(v, other[k])}
    assert same == {k for k, v in first.items() if v.unique().numel() == 1}  # constants only


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet20"])
def test_buffers_start_fresh(name: str) -> None:
    buffers = dict(build(name, norm="batch").named_buffers())
    for key, value in buffers.items():
        assert value.eq(1 if key.endswith("running_var") else 0).all()
    assert sum(key.endswith("num_batches_tracked") for key in buffers) == len(buffers) / 3 > 0


@pytest.mark.parametrize("name", ["2nn", "cnn", "lstm", "mlp"])
def test_distributions_are_torch_defaults(name: str) -> None:
    """The standard deviation of every drawn tensor is that of a freshly constructed module of the same type."""
    model = build(name, MNIST if MODELS[name].kind == "image" else (12,))
    checked = 0
    for module in model.modules():
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.LSTM | nn.Embedding):
            continue
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
        elif isinstance(module, nn.Embedding):
            assert abs(module.weight.std() - 1) < 0.3
            continue
        else:
            bound = module.weight[0].numel() ** -0.5
        for p in module.parameters():
            assert p.abs().max() <= bound
            assert p.numel() < 1000 or abs(p.std() / (bound / math.sqrt(3)) - 1) < 0.05
            checked += p.numel() >= 1000
    assert checked >= 2


def test_resnet_is_kaiming_normal() -> None:
    model = build("resnet20", CIFAR, "batch")
    for module in norm_layers(model, nn.Conv2d, nn.Linear):
        scaled = module.weight.flatten(1) / math.sqrt(2 / module.weight[0].numel())
        assert abs(scaled.std() - 1) < 0.1 and abs(scaled.mean()) < 0.1
        assert scaled.abs().max() > 1.9  # not uniform: U with unit variance ends at 1.73


def test_gamma_init() -> None:
    gains = torch.cat([m.weight for m in norm_layers(build("resnet20", CIFAR, "batch"), nn.BatchNorm2d)])
    assert gains.eq(1).all()
    uniform = build("resnet20", CIFAR, "batch", gamma_init="uniform")
    gains = torch.cat([m.weight for m in norm_layers(uniform, nn.BatchNorm2d)])
    assert gains.numel() == 688 and gains.min() >= 0 and gains.max() < 1
    assert abs(gains.mean() - 0.5) < 0.05 and abs(gains.var() - 1 / 12) < 0.01


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))


class OwnLinear(nn.Linear):
    pass


@pytest.mark.parametrize("make", [lambda: nn.GRU(3, 4), lambda: OwnLinear(3, 4), lambda: nn.Bilinear(2, 3, 4)])
def test_layers_of_other_types_are_drawn_by_their_own_code_under_the_generators_seed(make) -> None:
    first, second, other, expected = (nn.Sequential(make()) for _ in range(4))
    before = torch.get_rng_state()
    for module, seed in ((first, 1), (second, 1), (other, 2)):
        initialise(module, draws(seed))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in pairs)
    with torch_draws_from(draws(1)):
        expected[0].reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), expected.parameters(), strict=True))


def test_a_module_without_any_initialisation_is_an_error() -> None:
    with pytest.raises(ValueError, match="'0' of type Bare: no initialisation known.*reset_parameters"):
        initialise(nn.Sequential(Bare()), draws())


# --- oracles ---------------------------------------------------------------------------------------------------------


def test_standardised_filters() -> None:
    weight = torch.randn(5, 3, 3, 3, generator=draws(), dtype=torch.float64) * 7 + 2
    gain = torch.tensor([1.0, 2.0, 0.5, 0.0, -1.0], dtype=torch.float64)
    rows = standardise(weight, gain).flatten(1)
    assert torch.allclose(rows.mean(1), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rows.var(1, unbiased=False) * 27, (gain * RELU_GAIN) ** 2)
    assert abs(RELU_GAIN - 1.714) < 2e-3
    for out, original, g in zip(rows, weight.flatten(1), gain, strict=True):
        by_hand = g * RELU_GAIN * (original - original.mean()) / (27 * original.var(unbiased=False)).sqrt()
        assert torch.allclose(out, by_hand)
    assert standardise(torch.ones(2, 4), torch.ones(2)).eq(0).all()  # a constant filter, without division by zero


def test_standardised_layers_use_the_standardised_weights() -> None:
    x = torch.randn(4, 3, 6, 6, generator=draws(1))
    conv = WSConv2d(3, 5, 3, 2, 1)
    linear = WSLinear(12, 5)
    for layer in (conv, linear):
        layer.initialise(draws())
        layer.gain.data.mul_(torch.arange(1.0, 6.0))
    expected = F.conv2d(x, standardise(conv.weight, conv.gain), conv.bias, 2, 1)
    assert torch.equal(conv(x), expected) and expected.shape == (4, 5, 3, 3)
    scaled = WSLinear(12, 5)
    scaled.load_state_dict(linear.state_dict())
    scaled.weight.data.mul_(10).add_(3)  # standardisation undoes both
    z = torch.randn(4, 12, generator=draws(2))
    assert torch.allclose(linear(z), scaled(z), atol=1e-5)


def test_weight_standardisation_keeps_the_variance_through_relu() -> None:
    """The purpose of the constant: ten standardised layers with ReLUs neither explode nor fade."""
    x = torch.randn(500, 256, generator=draws(1))
    for i in range(10):
        layer = WSLinear(256, 256)
        layer.initialise(draws(i))
        x = F.relu(layer(x))
    variance = x.var(0).mean().item()
    assert 0.25 < variance < 4


def test_option_a_shortcut() -> None:
    """Every second pixel; new channels are zeros, half of them before and half after the old ones."""
    x = torch.randn(2, 4, 6, 6, generator=draws())
    block = BasicBlock(4, 10, 2, "none", 2)
    expected = torch.zeros(2, 10, 3, 3)
    for row, column in product(range(3), range(3)):
        expected[:, 3:7, row, column] = x[:, :, 2 * row, 2 * column]
    assert torch.equal(block.shortcut(x), expected)
    assert torch.equal(BasicBlock(4, 4, 1, "none", 2).shortcut(x), x)
    for convolution in (block.conv1, block.conv2):
        nn.init.zeros_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    assert torch.equal(block(x), F.relu(expected))


def test_resnet_halves_the_image_at_stages_two_and_three() -> None:
    model, seen = build("resnet20", CIFAR, "batch"), []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[1:])))
    model(batch("resnet20", CIFAR))
    assert seen == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_attention_against_torch() -> None:
    layer = Attention(12, 3)
    initialise(layer, draws())
    x = torch.randn(2, 7, 12, generator=draws(1))
    swapped = x.transpose(0, 1)
    expected, _ = F.multi_head_attention_forward(
        swapped,
        swapped,
        swapped,
        12,
        3,
        torch.cat([layer.q.weight, layer.k.weight, layer.v.weight]),
        torch.cat([layer.q.bias, layer.k.bias, layer.v.bias]),
        None,
        None,
        False,
        0.0,
        layer.proj.weight,
        layer.proj.bias,
    )
    assert torch.allclose(layer(x), expected.transpose(0, 1), atol=1e-6)


def test_vit_block_against_torch() -> None:
    """One whole block equals torch's pre-norm encoder layer with the same weights."""
    model = build("vit", dim=12, heads=3, depth=1)
    block = model.blocks[0]
    other = nn.TransformerEncoderLayer(12, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
    pairs = {"norm1": block.norm1, "norm2": block.norm2, "linear1": block.fc1, "linear2": block.fc2}
    state = {f"{name}.{k}": v for name, module in pairs.items() for k, v in module.state_dict().items()}
    attention = block.attention
    for kind in ("weight", "bias"):
        parts = [getattr(getattr(attention, n), kind) for n in "qkv"]
        state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
        state[f"self_attn.out_proj.{kind}"] = getattr(attention.proj, kind)
    other.load_state_dict(state)
    x = torch.randn(2, 5, 12, generator=draws(1))
    assert torch.allclose(block(x), other(x), atol=1e-5)


def test_vit_tokens_are_patches_row_by_row() -> None:
    model = build("vit", CIFAR, dim=16, patch=8)
    x = batch("vit", CIFAR)
    tokens = model.tokens(x) - model.position
    assert tokens.shape == (4, 17, 16)
    assert torch.allclose(tokens[:, 0], model.class_token[0].expand(4, -1), atol=1e-6)
    for row, column in product(range(4), range(4)):
        patch = x[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten(1)
        assert torch.allclose(tokens[:, 1 + 4 * row + column], model.embed(patch), atol=1e-5)


def test_vit_linears_have_names_of_their_own() -> None:
    model = build("vit", depth=1, dim=16)
    linears = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linears == {"embed", "q", "k", "v", "proj", "fc1", "fc2", "head"}
    assert isinstance(model.blocks, nn.ModuleList)


def test_unfused_lstm_is_the_same_function() -> None:
    x = batch("lstm")
    fused, plain = build("lstm", hidden=16), build("lstm", hidden=16, fused=False)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(fused(x), plain(x), atol=1e-6)


def test_lstm_reads_only_the_past() -> None:
    model, x = build("lstm", hidden=16), batch("lstm")
    changed = x.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 10
    same = (model(x) == model(changed)).all(2).all(0)
    assert same.tolist() == [True] * 6 + [False] * 6


# --- stateless use ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), [variant for variant in VARIANTS if MODELS[variant[0]].built_in])
def test_stacked_clients_equal_clients_one_by_one(name: str, norm: str) -> None:
    """Outputs, gradients and running statistics of three models at once, through functional_call and vmap."""
    options = SMALL.get(name, {}) | ({"fused": False} if name == "lstm" else {})  # vmap knows no fused LSTM ...
    models = [build(name, norm=norm, seed=seed, **options) for seed in range(3)]
    x = torch.stack([batch(name, n=4).roll(k, 0) for k in range(3)])
    parameters, buffers = stack_module_state(models)
    template = models[0]

    def loss(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        b = {key: value.clone() for key, value in b.items()}
        return functional_call(template, (p, b), (x,)).square().mean(), b

    with sdpa_kernel(SDPBackend.MATH):  # ... and no fused attention on the CPU
        gradients, after = vmap(grad(loss, has_aux=True))(parameters, buffers, x)
    for k, model in enumerate(models):
        model.zero_grad()
        model(x[k]).square().mean().backward()
        for key, p in model.named_parameters():
            tolerance = 1e-4 * max(1.0, p.grad.abs().max().item())
            assert torch.allclose(gradients[key][k], p.grad, rtol=1e-3, atol=tolerance), key
        for key, value in model.named_buffers():
            assert torch.allclose(after[key][k], value, rtol=1e-4, atol=1e-5), key


# --- bad arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape", "options", "says"),
    [
        ("alexnet", MNIST, {}, "model='alexnet', accepted: '2nn', 'cnn'"),
        ("2nn", MNIST, {"norm": "batch"}, "norm='batch': 2nn accepts 'none'"),
        ("lstm", (80,), {"norm": "layer"}, "norm='layer': lstm accepts 'none'"),
        (
            "mlp",
            MNIST,
            {"norm": "instance"},
            "norm='instance': mlp accepts 'none', 'batch', 'group', 'layer', 'weight'",
        ),
        ("2nn", MNIST, {"hidden": (9,)}, r"hidden=\(9,\): 2nn accepts no options"),
        ("vit", MNIST, {"depht": 2}, "depht=2: vit accepts patch, dim, depth, heads, mlp_ratio"),
        ("mlp", (28, 28), {}, r"input_shape=\(28, 28\): mlp expects \(channels, height, width\)"),
        ("lstm", MNIST, {}, r"lstm expects \(T,\)"),
        ("mlp", (1, 0, 28), {}, "all positive"),
        ("cnn", (1, 3, 8), {}, "height and width of at least 4, for two 2x2 poolings"),
        ("small_cnn", (1, 3, 3), {}, "at least 4, for 2 2x2 poolings"),
        ("small_cnn", DIGIT, {"channels": (4,) * 5}, "at least 16"),
        ("resnet8", (3, 3, 3), {}, "at least 4, for 2 strides of 2"),
        ("vit", MNIST, {"patch": 5}, "patch=5: expected a divisor of the image's height and width, 28 and 28"),
        ("vit", MNIST, {"heads": 3}, "heads=3: expected a divisor of dim=64"),
        ("vit", MNIST, {"depth": 0}, "depth=0: expected a positive integer"),
        ("small_cnn", MNIST, {"channels": ()}, r"channels=\(\): expected positive integers"),
        ("mlp", MNIST, {"hidden": (64, -1)}, r"hidden=\(64, -1\): expected positive integers"),
        ("mlp", MNIST, {"hidden": "64"}, "hidden='64': expected"),
        ("small_cnn", MNIST, {"norm": "group", "groups": 3}, "groups=3: expected a divisor of every layer's width"),
        ("resnet8", CIFAR, {"gamma_init": "zeros"}, "gamma_init='zeros': expected 'ones' or 'uniform'"),
        ("resnet8", CIFAR, {"gamma_init": "uniform"}, "gamma_init='uniform': norm='none' has no gains"),
        ("lstm", (80,), {"fused": 1}, "fused=1: expected True or False"),
    ],
)
def test_bad_arguments(name: str, shape: tuple[int, ...], options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_model(name, shape, 10, draws(), **options)


def test_no_classes() -> None:
    with pytest.raises(ValueError, match="num_classes=0"):
        build_model("mlp", MNIST, 0, draws())


@pytest.mark.parametrize("name", list(MODELS))
def test_options_listed_are_options_accepted(name: str) -> None:
    """A menu may pass every listed default back, and gets the same model."""
    info = MODELS[name]
    listed = info.options
    norm = "batch" if "batch" in info.norms else "none"
    given = build(name, norm=norm, **listed).state_dict()
    assert all(torch.equal(value, given[key]) for key, value in build(name, norm=norm).state_dict().items())
