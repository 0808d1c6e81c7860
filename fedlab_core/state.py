"""Model states: parameters and buffers by name, and the vector arithmetic that federated learning does with them."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlab_core.check import checked, choice

State = dict[str, Tensor]
"""Parameters AND buffers by name. A tensor with several names (tied weights, a layer kept under a second attribute) has
the first of them only. Tensors in a State are never modified in place."""

BATCH_NORM_POLICIES = {
    "average": "weights, gamma, beta and running statistics all travel and are averaged (FedAvg with BN)",
    "total_variance": "as average, but the merged running variance includes the spread of the clients' running means",
    "local_statistics": "running mean and variance stay on the client, gamma and beta travel (SiloBN)",
    "local": "the whole layer stays on the client: gamma, beta, running statistics (FedBN)",
    "frozen": "clients normalise with the received running statistics and do not change them (FixBN, second stage)",
}


@checked
def tensors(model: nn.Module) -> State:
    """The model's own parameters and persistent buffers, one name each: the first that `state_dict` gives it."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


@checked
def get_state(model: nn.Module) -> State:
    """A copy of the model's parameters and buffers."""
    return {name: tensor.detach().clone() for name, tensor in tensors(model).items()}


@checked
def set_state(model: nn.Module, state: State) -> None:
    """Copy `state` into the model, in place. Raises ValueError where names or shapes differ."""
    own = tensors(model)
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


@checked
def parameter_names(model: nn.Module) -> list[str]:
    """Names of the trainable parameters, in the order of the state."""
    return [
        name for name, tensor in tensors(model).items() if isinstance(tensor, nn.Parameter) and tensor.requires_grad
    ]


@checked
def frozen_names(model: nn.Module) -> frozenset[str]:
    """Names of the parameters that are not trained. Clients hold them from the start: they never travel or change."""
    return frozenset(n for n, t in tensors(model).items() if isinstance(t, nn.Parameter) and not t.requires_grad)


@checked
def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm layers by name, in the order of the module tree; found by type, whatever they are called."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


@checked
def has_batch_norm(model: nn.Module) -> bool:
    """Whether any module is a batch normalisation (by type, whatever it is called)."""
    return bool(batch_norms(model))


@checked
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
    choice("batch_norm", batch_norm, sorted(BATCH_NORM_POLICIES))
    if batch_norm == "local":
        return _names_in(model, batch_norms(model).values(), buffers_only=False)
    return statistics_names(model) if batch_norm == "local_statistics" else frozenset()


@checked
def statistics_names(model: nn.Module) -> frozenset[str]:
    """Names of the running statistics of the batch-norm layers."""
    return _names_in(model, batch_norms(model).values(), buffers_only=True)


def _names_in(model: nn.Module, modules: Iterable[nn.Module], buffers_only: bool) -> frozenset[str]:
    held = {id(t) for m in modules for t in (*m.buffers(), *(() if buffers_only else m.parameters()))}
    return frozenset(name for name, tensor in tensors(model).items() if id(tensor) in held)


@checked
@dataclass(frozen=True)
class Roles:
    """What happens in a round to each tensor of a model.

    Attributes:
        trained: parameters that ask for a gradient, in the order of the state.
        frozen: parameters that do not; every client holds them from the start.
        statistics: running statistics of batch normalisation.
        buffers: all other buffers; they stay as they are where clients agree.
        local: trained parameters and statistics that never leave a client.
    """

    trained: tuple[str, ...] = ()
    frozen: frozenset[str] = frozenset()
    statistics: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()
    local: frozenset[str] = frozenset()

    @functools.cached_property
    def travelling(self) -> tuple[str, ...]:
        """Trained parameters that are sent: what a method sees."""
        return tuple(name for name in self.trained if name not in self.local)


@checked
def roles(model: nn.Module, batch_norm: str | None, kept: frozenset[str] = frozenset()) -> Roles:
    """Sort the tensors of a model.

    Args:
        batch_norm: see `local_names`.
        kept: what a method leaves with the clients besides; if that is everything, no policy is needed.
    """
    names, frozen = tensors(model).keys(), frozen_names(model)
    trained, statistics = tuple(parameter_names(model)), statistics_names(model)
    local = (kept if kept >= names else kept | local_names(model, batch_norm)) - frozen
    return Roles(trained, frozen, statistics, frozenset(names) - {*trained} - frozen - statistics, local)


@checked
def mean_state(states: Sequence[State], weights: Sequence[float]) -> State:
    """Weighted sum of states, tensor by tensor.

    Floats of fewer than 32 bits are added up in float32; means of whole numbers are rounded.

    Args:
        states: at least one, with equal names and shapes.
        weights: one per state; FedAvg's sum to 1 (McMahan et al. 2017, algorithm 1, in the erratum's form).
    """
    if len(states) != len(weights) or not states:
        raise ValueError(
            f"weights: {len(weights)} values for {len(states)} states, one for each of at least one is needed"
        )
    return {name: _mean([state[name] for state in states], weights) for name in states[0]}


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    first = values[0]
    if first.dtype == torch.bool:
        return _weighted_sum([value.double() for value in values], weights) > 0.5
    if not (first.is_floating_point() or first.is_complex()):  # relative to the first, so that large ones stay exact
        moved = _weighted_sum([(value - first).double() for value in values], weights)
        rest = first.double() * (sum(weights) - 1) if abs(sum(weights) - 1) > 1e-9 else 0.0
        return first + (moved + rest).round().to(first.dtype)
    wide = torch.float32 if first.dtype in (torch.float16, torch.bfloat16) else first.dtype
    total = first.to(wide) * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value.to(wide), alpha=weight)
    return total.to(first.dtype)


@checked
def agreed_or_mean(states: Sequence[State], weights: Sequence[float], names: Iterable[str]) -> State:
    """The named tensors as they are where all states agree bit for bit, else their weighted mean."""
    result = {}
    for name in names:
        values = [state[name] for state in states]
        agree = all(value is values[0] or torch.equal(value, values[0]) for value in values[1:])
        result[name] = values[0] if agree else _mean(values, weights)
    return result


@checked
def total_variance(model: nn.Module, states: Sequence[State], weights: Sequence[float], merged: State) -> State:
    """`merged` with each running variance replaced by sum_k p_k (v_k + (mu_k - mu)^2), the law of total variance.

    Args:
        model: says by module type which tensors are running statistics.
        states: the clients' models.
        weights: one per state; scaled to add up to 1.
        merged: the clients' mean; its running means are mu.
    """
    result, names = dict(merged), {id(tensor): name for name, tensor in tensors(model).items()}
    for module in batch_norms(model).values():
        if module.track_running_stats:
            mean, variance = names[id(module.running_mean)], names[id(module.running_var)]
            spread = [s[variance] + (s[mean] - merged[mean]).square() for s in states]
            result[variance] = _weighted_sum(spread, [weight / sum(weights) for weight in weights])
    return result


def _weighted_sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = values[0] * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total = total + value * weight
    return total


@checked
def is_finite(states: Sequence[State], names: Iterable[str]) -> bool:
    """Whether every value of the named tensors of all states is finite."""
    chosen = [state[name] for name in names for state in states if state[name].is_floating_point()]
    if not chosen:
        return True
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(chosen)])  # one pass, one transfer
    return bool(norms.isfinite().all()) or all(bool(tensor.isfinite().all()) for tensor in chosen)


@checked
def flatten(state: State, names: Iterable[str] | None = None) -> Tensor:
    """The named tensors (all floating-point ones by default) as one vector (P,)."""
    chosen = [name for name, t in state.items() if t.is_floating_point()] if names is None else list(names)
    return torch.cat([state[name].reshape(-1) for name in chosen])


@checked
def unflatten(vector: Tensor, like: State, names: Iterable[str] | None = None) -> State:
    """The inverse of `flatten`: a state like `like` with the named tensors taken from `vector` (P,), the others
    shared."""
    chosen = [name for name, t in like.items() if t.is_floating_point()] if names is None else list(names)
    sizes = [like[name].numel() for name in chosen]
    if sum(sizes) != vector.numel():
        raise ValueError(f"vector has {vector.numel()} numbers, the named tensors need {sum(sizes)}")
    parts = dict(zip(chosen, vector.split(sizes), strict=True))
    return {name: parts[name].reshape(t.shape).to(t.dtype) if name in parts else t for name, t in like.items()}


@checked
def distance(a: State, b: State, names: Iterable[str] | None = None) -> float:
    """Euclidean distance between two states over the named tensors."""
    return (flatten(a, names) - flatten(b, names)).norm().item()


@checked
def state_bytes(state: State) -> int:
    """Bytes of the tensors as they are: what a payload of them holds, without any header."""
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
