"""What the clients' gradients do at one point of weight space, and how curved the loss is there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from fedlab_core.check import Many, Measured, Natural, checked
from fedlab_core.drift import drift
from fedlab_core.federation import Federation
from fedlab_core.local.cores import single_threaded
from fedlab_core.local.work import task_loss
from fedlab_core.probes.lines import inputs_at, model_at
from fedlab_core.randomness import generator
from fedlab_core.state import State

_BATCH = 1024


@checked
@dataclass(frozen=True)
class Gradients:
    """The clients' full gradients g_k at one state, with p_k their shares of the examples and g = sum p_k g_k.

    Attributes:
        norm: ||g||.
        dissimilarity: sum p_k ||g_k - g||^2 (bounded in the analysis of SCAFFOLD, Karimireddy et al. 2020).
        relative: dissimilarity / ||g||^2; large near a solution, where g vanishes and the g_k do not.
        cosine: mean cosine over the pairs of clients; nan for one client.
        diversity: sum ||g_k||^2 / ||sum g_k||^2 (Yin et al. 2018).
    """

    norm: Measured
    dissimilarity: Measured
    relative: Measured
    cosine: Measured
    diversity: Measured

    def to_json(self) -> dict[str, float]:
        """Plain data."""
        return asdict(self)


@checked
@dataclass(frozen=True)
class Curvature:
    """Ends of the spectrum of the Hessian of the training loss.

    Attributes:
        top: its largest eigenvalue.
        bottom: its smallest; negative where the loss is not convex.
        residual: ||H v - top v|| of the unit vector found, an upper bound of the distance from `top` to an eigenvalue.
        steps: Lanczos steps taken.
    """

    top: Measured
    bottom: Measured
    residual: Measured
    steps: Natural


@checked
def client_gradients(federation: Federation, state: State, clients: Sequence[int] | None = None) -> Gradients:
    """How the clients' gradients differ at one state, each over all of a client's data, in evaluation mode.

    Args:
        clients: some of them; all by default.
    """
    partition = federation.partition
    chosen = range(len(partition)) if clients is None else clients
    zero = {name: torch.zeros_like(state[name]) for name in federation.trained_names}
    grads = []
    for client in chosen:
        x, y = _examples(federation, state, partition[client], client)
        grads.append(_Loss(federation, state, x, y).gradient())
    sizes = partition.sizes[list(chosen)].double()
    shares = (sizes / sizes.sum()).tolist()
    found = drift(zero, grads, shares, federation.trained_names)
    p = torch.tensor(shares, dtype=torch.float64)
    mean = {n: sum(s * g[n].double() for s, g in zip(shares, grads, strict=True)) for n in federation.trained_names}
    norm = sum(t.square().sum().item() for t in mean.values())
    dissimilarity = max((p @ found.sizes.square()).item() - norm, 0.0)
    relative = dissimilarity / norm if norm else math.inf
    return Gradients(norm**0.5, dissimilarity, relative, found.cosine, found.diversity)


@checked
def client_loss(federation: Federation, state: State, client: Natural) -> float:
    """Mean loss of a state on all of a client's data, in evaluation mode."""
    x, y = _examples(federation, state, federation.partition[client], client)
    with single_threaded(), torch.no_grad():
        return sum(part.item() for part in _Loss(federation, state, x, y)._parts())


@checked
def local_against_global(federation: Federation, round: Natural, split: str = "test") -> dict[str, float]:
    """Does local training destroy global skill? Clients' models of a round on the whole test set.

    Returns:
        Accuracy of the model they "start" from, of the clients' models ("clients", mean by aggregation weight, and
        "worst"), of the next global model ("next"); "harm" = clients - start, and "gain" = next - clients.
    """
    inside = federation.inside(round)
    states = [inside.start, federation.state_at(round), *(update.state for update in inside.updates)]
    start, after, *own = (
        r.get(f"{split}_accuracy", math.nan) for r in federation.evaluate_states(states, split, round)
    )
    clients = sum(share * value for share, value in zip(inside.shares, own, strict=True))
    return {
        "start": start,
        "clients": clients,
        "worst": min(own),
        "next": after,
        "harm": clients - start,
        "gain": after - clients,
    }


@checked
def curvature(
    federation: Federation, state: State, *, examples: Many = 1000, steps: Natural = 20, seed: int = 0
) -> Curvature:
    """Largest and smallest eigenvalue of the Hessian of the training loss at a state, by Lanczos' method.

    Exact Hessian-vector products (reverse over reverse), evaluation mode, all Lanczos vectors kept orthogonal.

    Args:
        examples: how many training examples the loss is taken over, from the first.
        steps: Lanczos steps, each about two backward passes; fewer where the space is exhausted.
        seed: of the first vector.

    Raises:
        ValueError: not at least one step and one example.
    """
    if steps < 1 or examples < 1:
        raise ValueError(f"steps={steps}, examples={examples}, accepted: at least 1")
    x, y = _examples(federation, state, torch.arange(min(examples, len(federation.dataset.x))))
    with single_threaded():
        product, size = _Loss(federation, state, x, y).hessian()
        v = torch.randn(size, generator=generator(seed, "lanczos"), dtype=torch.float64).to(x.device)
        basis, diagonal, off = [v / v.norm()], [], []
        for _ in range(min(steps, size)):
            w = product(basis[-1])
            diagonal.append(torch.dot(w, basis[-1]).item())
            for _ in range(2):  # twice is enough
                for q in basis:
                    w = w - torch.dot(w, q) * q
            off.append(w.norm().item())
            if off[-1] < 1e-9 * max(1.0, abs(diagonal[0])):
                break
            basis.append(w / off[-1])
    k = len(diagonal)
    inner = torch.tensor(off[: k - 1], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(
        torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(inner, 1) + torch.diag(inner, -1)
    )
    return Curvature(values[-1].item(), values[0].item(), abs(off[-1] * vectors[-1, -1].item()), k)


class _Loss:
    """The mean loss over some examples as a function of the trainable parameters."""

    def __init__(self, federation: Federation, state: State, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y, self.own = model_at(federation, state), x, y, federation.dataset.loss
        self.count = max((y != -100).sum().item(), 1)
        self.weights = {n: state[n].detach().clone().requires_grad_() for n in federation.trained_names}

    def _parts(self) -> Iterator[Tensor]:
        """Losses of batches that add up to the mean loss, one graph each."""
        for x, y in zip(self.x.split(_BATCH), self.y.split(_BATCH), strict=True):
            outputs = functional_call(self.model, self.weights, (x,))
            if self.own is None:
                yield task_loss(outputs, y, "sum") / self.count
            else:
                yield self.own(outputs, y).mean() * len(x) / len(self.x)

    def gradient(self) -> State:
        with single_threaded():
            total: list[Tensor] = []
            for part in self._parts():
                grads = torch.autograd.grad(part, list(self.weights.values()))
                total = [a + b for a, b in zip(total, grads, strict=True)] if total else list(grads)
        return dict(zip(self.weights, total, strict=True))

    def hessian(self) -> tuple:
        """Function from a float64 vector to the Hessian's product with it, and the vector's length."""
        weights = list(self.weights.values())
        sizes = [w.numel() for w in weights]
        grads = [torch.autograd.grad(part, weights, create_graph=True) for part in self._parts()]

        def product(vector: Tensor) -> Tensor:
            parts = [p.view_as(w).to(w.dtype) for p, w in zip(vector.split(sizes), weights, strict=True)]
            total = torch.zeros_like(vector)
            for each in grads:
                found = torch.autograd.grad(each, weights, parts, retain_graph=True, materialize_grads=True)
                total += torch.cat([f.flatten().double() for f in found])
            return total

        return product, sum(sizes)


def _examples(
    federation: Federation, state: State, indices: Tensor, client: int | None = None
) -> tuple[Tensor, Tensor]:
    """Prepared inputs, through a client's transform if it has one, and targets, where and in the precision the state
    has."""
    data, partition = federation.dataset, federation.partition
    x = data.x[indices]
    if client is not None and partition.transform is not None:
        x = partition.transform.apply(x, client)
    x = inputs_at(state, data.prepare(x))
    return x, data.y[indices].to(x.device)
