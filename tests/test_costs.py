"""Costs are counted from what is really sent and really computed."""

import pytest
import torch
from small import small_federation, split
from torch import nn

from fedlab_core.costs import Costs, count_flops, kept_for_backward, serialise, serialised_tensor_bytes
from fedlab_core.experiment import Experiment
from fedlab_core.methods import Scaffold
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
