"""Exact looks at batch normalisation in a federation: the identity, the deviation over skew, training without noise."""

import time
from collections.abc import Sequence
from typing import Any

import torch

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
from fedlab_core.data import Dataset, load_dataset
from fedlab_core.federation import Federation
from fedlab_core.models import build_model
from fedlab_core.randomness import generator
from fedlab_core.state import batch_norms
from fedlab_core.studies.batchnorm_runs import VARIANTS, Setup, first_of_each_class, halved


def identity(name: str, sizes: Sequence[int], image: tuple[int, int, int] = (1, 8, 8)) -> dict[str, float]:
    """Relative error of the clients' mean gradient against the union batch's, in float64, by what is left out.

    The batches are random images, brighter from client to client, with labels of their own: skewed in every respect.

    Args:
        name: of a model, see `build_model`.
        sizes: examples of each client's batch.
    """
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


def count_exchanges(name: str = "resnet20", image: tuple[int, int, int] = (3, 32, 32)) -> dict[str, int]:
    """What one FedTAN round of a network costs each client besides FedAvg's, counted while two clients do it.

    Returns:
        "layers" of batch norm, "exchanges" of the round with the models' own, "floats_up" and "floats_down" besides the
        model, "parameters" and "statistics" (running means and variances) of the model itself.
    """
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
    setup: Setup, skews: Sequence[float] = (0, 0.25, 0.5, 0.75, 1), rounds: Sequence[int] = (0, 100), size: int = 64
) -> list[dict[str, Any]]:
    """Mismatch and gradient deviation at frozen models over label skew, before and after centralised training.

    The model of a round is the same at every skew: that of centralised training with IID batches.

    Args:
        rounds: when to look.
        size: examples of each client's fixed batch.

    Returns:
        One row per round and skew: `layers`, `mean` and `variance` (layers x clients) mismatch, the `between` share,
        and by source of the deviation (see `deviation_by_source`) `size`, `cosine` over all parameters and `sizes` by
        tensor.
    """
    data = setup.load()
    trained = setup.replace(skew=0.0).build(VARIANTS["centralised BN"], data=data, double=True)
    trained.run(max(rounds))
    rows = []
    for skew in skews:
        holders = setup.replace(skew=skew).build(VARIANTS["FedAvg+BN"], data=data, double=True)
        batches = fixed_batches(holders, size)
        for number in rounds:
            model = in_training(trained, trained.state_at(number))
            found, sources = mismatch(model, batches), deviation_by_source(model, batches)
            rows.append(
                {
                    "skew": skew,
                    "round": number,
                    "layers": list(found.layers),
                    "mean": found.mean.tolist(),
                    "variance": found.variance.tolist(),
                    "between": found.between.tolist(),
                    "tensors": list(sources["local"].names),
                    "deviation": {
                        source: {"size": d.total_size, "cosine": d.total_cosine, "sizes": d.size.tolist()}
                        for source, d in sources.items()
                    },
                }
            )
    return rows


def full_batch(
    name: str,
    rounds: int = 3000,
    lr: float = 0.2,
    lr_decay: float = 1.0,
    data: Dataset | None = None,
    per_client: int = 200,
    points: int = 60,
) -> dict[str, Any]:
    """Training without any sampling noise: one step on all data per round, L2 0.01, float64, two classes per client.

    Args:
        name: "FedAvg+BN", "FedTAN" or "centralised BN".
        lr, lr_decay: lr * lr_decay ** round.
        data: halved MNIST by default.
        per_client: examples of each of the 5 clients.
        points: how many rounds to look at, evenly spaced.

    Returns:
        Per round looked at, the objective F of centralised training (mean loss of the union batch with its own batch
        statistics, and the L2 term) and the norm of its gradient, at the run's global model.
    """
    data = data or halved(load_dataset("mnist", download=False))
    data = first_of_each_class(data, per_client // 2)
    setup = Setup(data.name, options={"hidden": (32, 32)}, batch=None, rounds=rounds, evaluate_every=rounds)
    decay = {"lr_schedule": "exponential", "lr_decay": lr_decay} if lr_decay < 1 else {}
    federation = setup.build(VARIANTS[name], 0, lr, data, double=True, weight_decay=0.01, **decay)
    everything, began = fixed_batches(federation, None), time.perf_counter()
    result: dict[str, Any] = {
        "variant": name,
        "lr": lr,
        "lr_decay": lr_decay,
        "round": [],
        "objective": [],
        "gradient": [],
    }
    for number in [round(i * rounds / points) for i in range(points + 1)]:
        federation.run(number - federation.round)
        value, norm = objective(federation, everything)
        result["round"].append(number)
        result["objective"].append(round(value, 6))
        result["gradient"].append(round(norm, 6))
    return result | {"seconds": round(time.perf_counter() - began, 1)}


def objective(federation: Federation, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """F = loss of the union batch + weight_decay / 2 ||w||^2 at the global model, and the norm of its gradient."""
    model, decay = in_training(federation, federation.state), federation.settings.weight_decay
    union = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    loss = synchronised_gradients([model], [union], NOTHING)[0].item()
    squares = sum(p.detach().square().sum().item() for p in model.parameters())
    grads = [(p.grad, p.detach()) for p in model.parameters() if p.grad is not None]
    gradient = sum((grad + decay * p).square().sum().item() for grad, p in grads)
    return loss + decay / 2 * squares, gradient**0.5
