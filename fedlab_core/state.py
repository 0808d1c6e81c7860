"""Model states: parameters and buffers by name, and the vector arithmetic that federated learning does with them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

State = dict[str, Tensor]
"""Parameters AND buffers by name, as `nn.Module.state_dict()` lists them. Tensors in a State are never modified in
place."""

BATCH_NORM_POLICIES = {
    "average": "weights, gamma, beta and running statistics all travel and are averaged (FedAvg with BN)",
    "total_variance": "as average, but the merged running variance includes the spread of the clients' running means",
    "local_statistics": "running mean and variance stay on the client, gamma and beta travel (SiloBN)",
    "local": "the whole layer stays on the client: gamma, beta, running statistics (FedBN)",
    "frozen": "clients normalise with the received running statistics and do not change them (FixBN, second stage)",
}


def get_state(model: nn.Module) -> State:
    """A copy of the model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def set_state(model: nn.Module, state: State) -> None:
    """Copies `state` into the model, in place. Raises ValueError where names or shapes differ."""
    own = model.state_dict()
    if own.keys() != state.keys():
        missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        raise ValueError(f"state does not fit the model: missing {missing}, unexpected {extra}")
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != state[name].shape:
                raise ValueError(
                    f"state[{name!r}] has shape {tuple(state[name].shape)}, the model's is {tuple(tensor.shape)}"
                )
            tensor.copy_(state[name])


def parameter_names(model: nn.Module) -> list[str]:
    """Names of the trainable parameters, in the order of the state."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are not trained. Clients hold them from the start: they never travel or change."""
    return frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether any module is a batch normalisation (by type, whatever it is called)."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def local_names(model: nn.Module, batch_norm: str | None) -> frozenset[str]:
    """Names that never leave a client under a batch-norm policy, selected by module type, not by name.

    Args:
        batch_norm: a key of `BATCH_NORM_POLICIES`; None only for a model without batch normalisation.

    Raises:
        ValueError: the model has batch normalisation and no policy was named, or the policy is unknown.
    """
    if batch_norm is None:
        if has_batch_norm(model):
            accepted = "; ".join(f"{key!r}: {text}" for key, text in BATCH_NORM_POLICIES.items())
            raise ValueError(
                f"batch_norm=None, but the model has batch normalisation: say what happens to it. {accepted}"
            )
        return frozenset()
    if batch_norm not in BATCH_NORM_POLICIES:
        raise ValueError(f"batch_norm={batch_norm!r} is unknown, accepted: {sorted(BATCH_NORM_POLICIES)}")
    names = set()
    for prefix, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or batch_norm not in ("local", "local_statistics"):
            continue
        tensors = module.state_dict() if batch_norm == "local" else dict(module.named_buffers())
        names.update(f"{prefix}.{name}" if prefix else name for name in tensors)
    return frozenset(names)


def mean_state(states: Sequence[State], weights: Sequence[float]) -> State:
    """Weighted sum of states, tensor by tensor; whole-number buffers are rounded.

    Args:
        states: at least one, with equal names and shapes.
        weights: one per state; FedAvg's sum to 1 (McMahan et al. 2017, algorithm 1, in the erratum's form).
    """
    if len(states) != len(weights) or not states:
        raise ValueError(
            f"weights: {len(weights)} values for {len(states)} states, one for each of at least one is needed"
        )
    result = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = first * weights[0]
            for state, weight in zip(states[1:], weights[1:], strict=True):
                total.add_(state[name], alpha=weight)
        else:
            mean = sum(state[name].double() * weight for state, weight in zip(states, weights, strict=True))
            total = mean.round().to(first.dtype)
        result[name] = total
    return result


def total_variance(model: nn.Module, states: Sequence[State], weights: Sequence[float], merged: State) -> State:
    """`merged` with each running variance replaced by sum_k p_k (v_k + (mu_k - mu)^2), the law of total variance.

    Args:
        model: says by module type which tensors are running statistics.
        states: the clients' models.
        weights: one per state; scaled to add up to 1.
        merged: the clients' mean; its running means are mu.
    """
    result = dict(merged)
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            mean, variance = (f"{prefix}.{name}" if prefix else name for name in ("running_mean", "running_var"))
            spread = [s[variance] + (s[mean] - merged[mean]).square() for s in states]
            result[variance] = sum(w / sum(weights) * v for w, v in zip(weights, spread, strict=True))
    return result


def flatten(state: State, names: Iterable[str] | None = None) -> Tensor:
    """The named tensors (all floating-point ones by default) as one vector (P,)."""
    chosen = [name for name, t in state.items() if t.is_floating_point()] if names is None else list(names)
    return torch.cat([state[name].reshape(-1) for name in chosen])


def unflatten(vector: Tensor, like: State, names: Iterable[str] | None = None) -> State:
    """The inverse of `flatten`: a state like `like` with the named tensors taken from `vector` (P,), the others
    shared."""
    chosen = [name for name, t in like.items() if t.is_floating_point()] if names is None else list(names)
    sizes = [like[name].numel() for name in chosen]
    if sum(sizes) != vector.numel():
        raise ValueError(f"vector has {vector.numel()} numbers, the named tensors need {sum(sizes)}")
    parts = dict(zip(chosen, vector.split(sizes), strict=True))
    return {name: parts[name].reshape(t.shape).to(t.dtype) if name in parts else t for name, t in like.items()}


def distance(a: State, b: State, names: Iterable[str] | None = None) -> float:
    """Euclidean distance between two states over the named tensors."""
    return (flatten(a, names) - flatten(b, names)).norm().item()


def state_bytes(state: State) -> int:
    """Bytes of the tensors as they are: what a payload of them holds, without any header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
