"""Costs are counted from what is really sent and really computed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import small_federation, split
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fedlab_core.costs import Costs, count_flops, kept_for_backward, serialise, serialised_tensor_bytes
from fedlab_core.experiment import Experiment
from fedlab_core.methods.client import Scaffold
from fedlab_core.models.build import build_model
from fedlab_core.randomness import generator
from fedlab_core.state import state_bytes


def test_bytes_of_the_2nn_are_four_per_parameter_each_way_and_the_same_in_the_serialised_payload() -> None:
    experiment = Experiment(dataset="letters", dataset_options={"per_class": 5, "test_per_class": 2})
    data = experiment.load_data()
    model = experiment.make_model(data)
    assert data.input_shape == (1, 28, 28)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 784 * 200 + 200 + 200 * 200 + 200 + 200 * data.num_classes + data.num_classes
    run = experiment.replace(fraction=0.25).build().run(2)
    assert run.history[1].costs.bytes == 2 * 4 * parameters * 5
    assert run.history[2].total.bytes == 2 * 2 * 4 * parameters * 5
    message = serialise(run.inside(1).updates[0].state)
    assert serialised_tensor_bytes(message) == 4 * parameters < len(message)


def test_every_method_counts_what_it_sends() -> None:
    run = small_federation(split(20, 20), Scaffold()).run(1)
    inside, costs = run.inside(1), run.history[1].costs
    assert costs.bytes_down == 2 * serialised_tensor_bytes(serialise(inside.sent)) == 2 * 2 * state_bytes(run.state)
    assert costs.bytes_up == 2 * 2 * state_bytes(run.state)


def test_steps_and_examples_are_those_taken() -> None:
    by_epochs = small_federation(split(7, 20), epochs=3, batch_size=5).run(1).history[1]
    assert (by_epochs.costs.steps, by_epochs.costs.examples) == (3 * 2 + 3 * 4, 3 * 27)
    assert [row["steps"] for row in by_epochs.clients] == [6, 12]
    by_steps = small_federation(split(7, 20), epochs=None, steps=3, batch_size=5).run(1).history[1]
    assert (by_steps.costs.steps, by_steps.costs.examples) == (6, (5 + 2 + 5) + (5 + 5 + 5))
    assert by_steps.costs.exchanges == 1


def test_costs_add_up() -> None:
    total = Costs(1, 2, 3, 4, 5) + Costs(10, 20, 30, 40, 50)
    assert total == Costs(11, 22, 33, 44, 55) and total.bytes == 33


def test_flops_of_a_linear_layer_are_two_per_multiply_add() -> None:
    layer, x = nn.Linear(30, 20), torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    forward = 2 * 8 * 30 * 20
    assert count_flops(layer, lambda m: m(x).sum()) == 2 * forward  # forward and the weights' gradient, none for x
    assert count_flops(layer, lambda m: m(x.clone().requires_grad_()).sum()) == 3 * forward
    assert layer.weight.grad is None


@pytest.mark.parametrize("batch", [4, 8])
def test_kept_for_backward_counts_each_activation_once(batch: int) -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    x = torch.zeros(batch, 30)
    with torch.no_grad():
        frozen = kept_for_backward(model, lambda m: m(x).sum())
    assert frozen == 0
    # the input, and the ReLU's output, which the ReLU and the second layer share
    assert kept_for_backward(model, lambda m: m(x).sum()) == 4 * batch * (30 + 20)


@pytest.mark.parametrize(
    ("name", "shape", "norm"),
    [
        ("2nn", (1, 8, 8), "none"),
        ("cnn", (1, 28, 28), "none"),
        ("small_cnn", (3, 16, 16), "batch"),
        ("resnet8", (3, 16, 16), "weight"),
        ("vit", (3, 16, 16), "none"),
    ],
)
def test_flops_agree_with_those_that_pytorch_dispatches_in_plain_products(
    name: str, shape: tuple[int, ...], norm: str
) -> None:
    model = build_model(name, shape, 10, generator(0, "weights"), norm=norm)
    x = torch.zeros(2, *shape)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    counted = count_flops(model, lambda m: m(x).sum())
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)
    with torch.no_grad():
        assert (
            2 * counted / 3 < 2 * count_flops(model, lambda m: m(x).sum()) < counted
        )  # forward: a third or a bit more


@given(
    channels=st.integers(1, 3),
    units=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    size=st.integers(3, 6),
)
def test_flops_of_convolutions_by_their_formula(
    channels: int, units: int, groups: int, kernel: int, stride: int, size: int
) -> None:
    layer = nn.Conv2d(channels * groups, units * groups, kernel, stride, groups=groups)
    x = torch.zeros(2, channels * groups, size, size)
    out = (size - kernel) // stride + 1
    forward = 2 * 2 * out * out * units * groups * channels * kernel * kernel
    assert count_flops(layer, lambda m: m(x).sum()) == 2 * forward
    back = nn.ConvTranspose2d(units * groups, channels * groups, kernel, stride, groups=groups)
    y = torch.zeros(2, units * groups, out, out, requires_grad=True)
    assert count_flops(back, lambda m: m(y).sum()) == 3 * forward


@given(width=st.integers(1, 5), hidden=st.integers(1, 5), layers=st.integers(1, 3), both=st.booleans())
def test_flops_of_recurrent_layers_by_their_formula(width: int, hidden: int, layers: int, both: bool) -> None:
    x, directions = torch.zeros(7, 3, width), 1 + both
    packed = nn.utils.rnn.pack_padded_sequence(x, [7, 7, 7])
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        layer = kind(width, hidden, layers, bidirectional=both)
        first = 2 * 21 * gates * hidden * directions * width
        rest = 2 * 21 * gates * hidden * directions * (layers * hidden + (layers - 1) * hidden * directions)
        assert count_flops(layer, lambda m: m(x)[0].sum()) == 2 * first + 3 * rest
        assert count_flops(layer, lambda m: m(packed)[0].data.sum()) == 2 * first + 3 * rest
    cell = nn.LSTMCell(width, hidden)
    assert count_flops(cell, lambda m: m(x[0])[0].sum()) == 2 * 2 * 3 * 4 * hidden * (width + hidden)


@pytest.mark.parametrize("attention", [nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 4, kdim=6, vdim=6)])
def test_flops_of_attention_by_their_formula(attention: nn.MultiheadAttention) -> None:
    (queries, keys), width = (5, 7), attention.kdim
    q, k = torch.zeros(queries, 3, 8, requires_grad=True), torch.zeros(keys, 3, width, requires_grad=True)
    projections = 2 * 3 * (2 * queries * 8 * 8 + 2 * keys * width * 8)
    products = 2 * 2 * 3 * queries * keys * 8
    count = count_flops(attention, lambda m: m(q, k, k, need_weights=False)[0].sum())
    assert count == 3 * (projections + products)
    assert count == count_flops(attention, lambda m: m(q, k, k)[0].sum())  # another kernel, the same formula
    frozen = attention.requires_grad_(False)
    q, k = q.detach(), k.detach()
    assert count_flops(frozen, lambda m: m(q, k, k)[0].sum()) == projections + products
    attention.requires_grad_(True)


@pytest.mark.parametrize(
    ("equation", "shapes", "multiply_adds"),
    [
        ("bij,jk->bik", ((2, 3, 4), (4, 5)), 2 * 3 * 4 * 5),
        ("...j,jk", ((2, 3, 4), (4, 5)), 2 * 3 * 4 * 5),
        ("i,i->", ((4,), (4,)), 4),
        ("nij,njhw->nihw", ((2, 3, 3), (2, 3, 4, 4)), 2 * 3 * 3 * 4 * 4),
    ],
)
def test_flops_of_products_by_their_formula(
    equation: str, shapes: tuple[tuple[int, ...], ...], multiply_adds: int
) -> None:
    factors = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])
    assert count_flops(factors, lambda m: torch.einsum(equation, *m).sum()) == 3 * 2 * multiply_adds
    a, b = factors
    if equation == "bij,jk->bik":
        for product in (
            torch.matmul,
            lambda a, b: a @ b,
            lambda a, b: torch.addmm(torch.zeros(6, 5), a.flatten(0, 1), b),
        ):
            assert count_flops(factors, lambda m, product=product: product(a, b).sum()) == 3 * 2 * multiply_adds
