"""Exact looks at batch normalisation in a federation: the identity, the deviation over skew, training without noise."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure

from fedlab_core import plots
from fedlab_core.batchnorm.fedtan import FedTAN
from fedlab_core.batchnorm.lockstep import NOTHING, Ledger, synchronised_gradients
from fedlab_core.batchnorm.measures import (
    deviation,
    deviation_by_source,
    fixed_batches,
    in_training,
    mean_gradient,
    mismatch,
    union_gradient,
)
from fedlab_core.data.prepared import first_of_each_class
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.models import build_model
from fedlab_core.plots import batchnorm as plots_batchnorm
from fedlab_core.randomness import generator
from fedlab_core.state import batch_norms
from fedlab_core.studies.arms import trained
from fedlab_core.studies.batchnorm_runs import DIGITS, MNIST, VARIANTS
from fedlab_core.studies.units import Record, Results, Stop, Unit

WHOLE = MNIST.replace(dataset_options={"download": False, "pixels": 14})
"""All of MNIST, before 100 examples of each digit are taken."""


def identity(name: str, sizes: Sequence[int]) -> dict[str, float]:
    """Relative error of the clients' mean gradient against the union batch's, in float64, by what is left out.

    The batches are random images, brighter from client to client, with labels of their own: skewed in every respect.

    Args:
        name: of a model, see `build_model`.
        sizes: examples of each client's batch.
    """
    image = (1, 8, 8)
    model = build_model(name, image, 10, generator(0, "identity weights"), norm="batch").double()
    draws = generator(0, "identity batches")
    batches = []
    for k, n in enumerate(sizes):
        x = torch.randn(n, *image, generator=draws, dtype=torch.float64) + k / 2
        batches.append((x, torch.randint(2 * k, 2 * k + 2, (n,), generator=draws)))
    union = union_gradient(model, batches)
    rules = {
        "FedTAN": (FedTAN(), None),
        "without exchange 1 (means)": (FedTAN(mean=False), None),
        "without exchange 2 (variances)": (FedTAN(variance=False), None),
        "without exchange 3 (gradients)": (FedTAN(gradients=False), None),
        "variances around own means": (FedTAN(around_global_mean=False), None),
        "statistics as constants": (FedTAN(differentiate=False), None),
        "without any (FedAvg+BN)": (NOTHING, None),
        "weights 1/K": (FedTAN(), [1 / len(sizes)] * len(sizes)),
    }
    return {
        what: deviation(mean_gradient(model, batches, rule, weights), union).total_size
        for what, (rule, weights) in rules.items()
    }


def count_exchanges(name: str = "resnet20") -> dict[str, int]:
    """What one FedTAN round of a network costs each client besides FedAvg's, counted while two clients do it.

    Returns:
        "layers" of batch norm, "exchanges" of the round with the models' own, "floats_up" and "floats_down" besides the
        model, "parameters" and "statistics" (running means and variances) of the model itself.
    """
    image = (3, 32, 32)
    model = build_model(name, image, 10, generator(0, "initial weights"), norm="batch")
    draws, ledger = generator(0, "images"), Ledger()
    batches = [(torch.randn(2, *image, generator=draws), torch.tensor([k, k])) for k in range(2)]
    models = [build_model(name, image, 10, generator(0, "initial weights"), norm="batch") for _ in batches]
    synchronised_gradients(models, batches, FedTAN(), ledger)
    layers = batch_norms(model).values()
    return {
        "layers": len(layers),
        "exchanges": ledger.exchanges + 1,
        "floats_up": ledger.floats_up,
        "floats_down": ledger.floats_down,
        "parameters": sum(p.numel() for p in model.parameters()),
        "statistics": sum(2 * layer.num_features for layer in layers),
    }


def at_skews(
    experiment: Experiment = DIGITS,
    skews: Sequence[float] = (0, 0.25, 0.5, 0.75, 1),
    rounds: Sequence[int] = (0, 100),
    size: int = 64,
) -> list[dict[str, Any]]:
    """Mismatch and gradient deviation at frozen models over label skew, before and after centralised training.

    The model of a round is the same at every skew: that of centralised training with IID batches.

    Args:
        experiment: with a "label_blocks" partition.
        rounds: when to look.
        size: examples of each client's fixed batch.

    Returns:
        One row per round and skew: `layers`, `mean` and `variance` (layers x clients) mismatch, the `between` share,
        and by source of the deviation (see `deviation_by_source`) `size`, `cosine` over all parameters and `sizes` by
        tensor.
    """
    exact = experiment.replace(double=True)
    pooled = exact.replace(partition_options={"skew": 0.0}, **VARIANTS["centralised BN"]).build().run(max(rounds))
    rows = []
    for skew in skews:
        batches = fixed_batches(exact.replace(partition_options={"skew": skew}).build(), size)
        for number in rounds:
            model = in_training(pooled, pooled.state_at(number))
            found, sources = mismatch(model, batches), deviation_by_source(model, batches)
            deviations = {
                source: {"size": d.total_size, "cosine": d.total_cosine, "sizes": d.size.tolist()}
                for source, d in sources.items()
            }
            rows.append(
                {
                    "skew": skew,
                    "round": number,
                    "layers": list(found.layers),
                    "mean": found.mean.tolist(),
                    "variance": found.variance.tolist(),
                    "between": found.between.tolist(),
                    "tensors": list(sources["local"].names),
                    "deviation": deviations,
                }
            )
    return rows


def full_batch(
    variant: str,
    rounds: int = 3000,
    lr: float = 0.2,
    lr_decay: float = 1.0,
    experiment: Experiment = WHOLE,
    points: int = 60,
    stop: Stop = lambda: False,
) -> dict[str, Any]:
    """Training without any sampling noise: one step on all data per round, L2 0.01, float64, 5 clients with 200
    examples of two classes each.

    Args:
        variant: "FedAvg+BN", "FedTAN" or "centralised BN".
        lr, lr_decay: lr * lr_decay ** round.
        points: how many rounds to look at, evenly spaced.

    Returns:
        Per round looked at, the objective F of centralised training (mean loss of the union batch with its own batch
        statistics, and the L2 term) and the norm of its gradient, at the run's global model.
    """
    decay = {"lr_schedule": "exponential", "lr_decay": lr_decay} if lr_decay < 1 else {}
    one = experiment.replace(model_options={"hidden": (32, 32)}, double=True, weight_decay=0.01, batch_size=None)
    one = one.replace(lr=lr, evaluate_every=rounds, **VARIANTS[variant], **decay)
    data = first_of_each_class(one.load_data(), 100)
    federation = one.begin(one.make_start(data=data), data=data)
    everything = fixed_batches(federation, None)
    result: dict[str, Any] = {"variant": variant, "lr": lr, "lr_decay": lr_decay}
    result |= {"round": [], "objective": [], "gradient": []}
    for number in [round(i * rounds / points) for i in range(points + 1)]:
        trained(federation, number, stop)
        value, norm = objective(federation, everything)
        result["round"].append(number)
        result["objective"].append(round(value, 6))
        result["gradient"].append(round(norm, 6))
    return result


def run(settings: Mapping[str, Any], stop: Stop, device: str) -> dict[str, Any]:
    """A unit: see `full_batch`, which computes in float64 on the CPU."""
    return full_batch(**settings, stop=stop)


def plan(done: Results) -> list[Unit]:
    """The runs without sampling noise."""
    chosen = [(name, 0.2, 1.0) for name in ("FedAvg+BN", "FedTAN", "centralised BN")]
    chosen += [("FedAvg+BN", 0.2, 0.999), ("FedTAN", 0.2, 0.999), ("FedAvg+BN", 0.05, 1.0)]
    return [Unit(v, 0, {"variant": v, "rounds": 3000, "lr": lr, "lr_decay": decay}) for v, lr, decay in chosen]


def draw(data: Mapping[str, Any]) -> Figure:
    """F and the norm of its gradient over rounds."""
    fig, axes = plots.figure(1, 2, (9.5, 4))
    plots_batchnorm.without_noise(axes[0], [unit["result"] for unit in data["units"]])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


NO_NOISE = Record("batchnorm_no_noise", "MNIST, 14 x 14, MLP, no sampling noise", plan, run, draw, (0,))


def objective(federation: Federation, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """F = loss of the union batch + weight_decay / 2 ||w||^2 at the global model, and the norm of its gradient."""
    model, decay = in_training(federation, federation.state), federation.settings.weight_decay
    union = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    loss = synchronised_gradients([model], [union], NOTHING)[0].item()
    squares = sum(p.detach().square().sum().item() for p in model.parameters())
    grads = [(p.grad, p.detach()) for p in model.parameters() if p.grad is not None]
    gradient = sum((grad + decay * p).square().sum().item() for grad, p in grads)
    return loss + decay / 2 * squares, gradient**0.5
