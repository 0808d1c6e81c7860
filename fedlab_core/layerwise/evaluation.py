"""How good frozen features are: nearest neighbours and a linear classifier on top of them."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core.check import Depth, Many, checked
from fedlab_core.data import Dataset
from fedlab_core.data.statistics import some_of_each
from fedlab_core.layerwise.network import StagedModel
from fedlab_core.local.cores import single_threaded
from fedlab_core.randomness import generator
from fedlab_core.state import State, set_state

BATCH = 512


@checked
@dataclass(frozen=True, eq=False)
class Features:
    """Frozen features of a data set.

    Attributes:
        x, test_x: (n, width) of the training and of the test images.
    """

    x: Tensor
    test_x: Tensor


@checked
def features(model: StagedModel, dataset: Dataset, state: State | None = None, depth: Depth | None = None) -> Features:
    """Features of all images, without augmentation, in evaluation mode, with every unit present.

    Args:
        model: copied if a state is given, else used as it is.
        state: weights to use instead of the model's own.
        depth: number of units, from the input; all by default.
    """
    if state is not None:
        model = copy.deepcopy(model)
        set_state(model, state)
    device = next(model.parameters()).device
    training, parts = model.training, []
    model.eval()
    with torch.no_grad(), single_threaded():
        for images in (dataset.x, dataset.test_x):
            batches = [model.features(dataset.prepare(b).to(device), depth) for b in images.split(BATCH)]
            parts.append(torch.cat(batches).cpu())
    model.train(training)
    return Features(*parts)


@checked
def knn_accuracy(
    bank: Tensor,
    labels: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    k: Many = 20,
    temperature: float = 0.07,
    leave_one_out: bool = False,
) -> float:
    """Accuracy of the weighted k-nearest-neighbour vote of Wu et al. (2018, arXiv 1805.01978, section 3.4).

    Args:
        bank, labels: (n, width) and (n,): features that vote with their classes.
        x, y: (m, width) and (m,): features to classify, and the truth.
        k: neighbours by cosine, at most n.
        temperature: a vote counts exp(cosine / temperature).
        leave_one_out: x is the bank itself, and no image votes for itself.
    """
    similarity = F.normalize(x, dim=1) @ F.normalize(bank, dim=1).T
    if leave_one_out:
        similarity.fill_diagonal_(-torch.inf)
    top, index = similarity.topk(min(k, len(bank) - leave_one_out), dim=1)
    votes = F.one_hot(labels[index], int(labels.max()) + 1) * (top / temperature).exp().unsqueeze(2)
    return (votes.sum(1).argmax(1) == y).double().mean().item()


@checked
def linear_probe(
    bank: Features,
    labels: Tensor,
    test_labels: Tensor,
    *,
    per_class: Many | None = None,
    seed: int = 0,
) -> float:
    """Test accuracy of a logistic regression on frozen, standardised features (L-BFGS to convergence).

    Args:
        labels, test_labels: of both splits.
        per_class: labelled training images of each class, drawn with `seed`; all by default.

    Raises:
        ValueError: a class has fewer images.
    """
    from sklearn.linear_model import LogisticRegression

    chosen = torch.arange(len(labels)) if per_class is None else few_labels(labels, per_class, seed)
    x = bank.x[chosen].double()
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    classifier = LogisticRegression(max_iter=2000)
    with single_threaded():
        classifier.fit(((x - mean) / std).numpy(), labels[chosen].numpy())
        return float(classifier.score(((bank.test_x.double() - mean) / std).numpy(), test_labels.numpy()))


@checked
def few_labels(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Positions of `per_class` random examples of every class, sorted."""
    least = int(torch.bincount(labels).min())
    if not 1 <= per_class <= least:
        raise ValueError(f"per_class={per_class}, accepted: 1 to {least}, the smallest class")
    return some_of_each(labels, per_class, generator(seed, "labelled examples"))
