"""Probes through weight space: the loss along the line between two models."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlab_core.batchnorm.neighbours import estimate_anew
from fedlab_core.check import Many, Measured, checked
from fedlab_core.federation import Federation
from fedlab_core.local.training import EVALUATION_BATCH
from fedlab_core.state import State, get_state, mean_state, set_state, statistics_names

FIGURE_ONE_THETAS = tuple(-0.2 + 1.4 * i / 49 for i in range(50))
"""50 evenly spaced values in [-0.2, 1.2] (McMahan et al. 2017, figure 1)."""

_TOGETHER = 16  # states held in memory at once


@checked
@dataclass(frozen=True)
class LossLine:
    """Loss and accuracy at theta * a + (1 - theta) * b: 1 is state a, 0 is state b.

    Attributes:
        theta: ascending; 0, 1/2 and 1 are always among them, exactly.
        loss: mean loss at each theta, nats per target.
        accuracy: at each theta; nan where the data have no such metric.
    """

    theta: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[Measured, ...]

    def loss_at(self, theta: float) -> float:
        """The loss at one of the probed values of theta."""
        return self.loss[self.theta.index(theta)]

    @property
    def parents(self) -> tuple[float, float]:
        """Loss of state a and of state b."""
        return self.loss_at(1.0), self.loss_at(0.0)

    @property
    def midpoint(self) -> float:
        """Loss of the average of the two."""
        return self.loss_at(0.5)

    @property
    def barrier(self) -> float:
        """Largest rise of the loss between the ends above the straight line from one to the other; at least 0."""
        one, zero = self.parents
        inside = [(t, loss) for t, loss in zip(self.theta, self.loss, strict=True) if 0 <= t <= 1]
        return max(loss - (t * one + (1 - t) * zero) for t, loss in inside)


@checked
def interpolate(a: State, b: State, theta: float) -> State:
    """theta * a + (1 - theta) * b, parameters and buffers alike; theta = 1 gives a itself, theta = 0 b itself.

    Raises:
        ValueError: the states differ in names or shapes.
    """
    if a.keys() != b.keys():
        raise ValueError(f"states differ in names: {sorted(a.keys() ^ b.keys())}")
    for name in a:
        if a[name].shape != b[name].shape:
            raise ValueError(f"states differ at {name!r}: shapes {tuple(a[name].shape)} and {tuple(b[name].shape)}")
    if theta in (0, 1):
        return a if theta == 1 else b
    return mean_state([a, b], [theta, 1 - theta])


@checked
def line(
    federation: Federation,
    a: State,
    b: State,
    thetas: Sequence[float] = FIGURE_ONE_THETAS,
    *,
    split: str = "train",
    recalibrate_with: Many | None = None,
) -> LossLine:
    """Loss and accuracy along the straight line through two states, also beyond them (McMahan et al. 2017, figure 1).

    Both ends are evaluated as they are, bit for bit. Beyond the ends a running variance of batch normalisation could
    become negative; it is cut off at 0.

    Args:
        federation: gives data, model and engine; it is not changed.
        a, b: the states at theta = 1 and theta = 0.
        thetas: values to probe; 0, 1/2 and 1 are added where missing.
        split: "train" (the figure's) or "test".
        recalibrate_with: re-estimate the statistics of batch normalisation at every point, the ends included, with
            this many training examples, see `recalibrate`; None leaves them as interpolated.

    Raises:
        ValueError: the states do not fit each other, or no examples to recalibrate with.
    """
    values = sorted({_exact(theta) for theta in (*thetas, 0.0, 0.5, 1.0)})
    variances = [name for name in statistics_names(federation.model) if name.endswith("running_var")]

    def points(chosen: Sequence[float]) -> Iterator[State]:
        for theta in chosen:
            point = interpolate(a, b, theta)
            if not 0 <= theta <= 1:
                point = point | {name: point[name].clamp_min(0) for name in variances}
            yield recalibrate(federation, point, recalibrate_with)

    results = []
    for first in range(0, len(values), _TOGETHER):
        results += federation.evaluate_states(list(points(values[first : first + _TOGETHER])), split)
    loss, accuracy = (
        tuple(result.get(f"{split}_{name}", math.nan) for result in results) for name in ("loss", "accuracy")
    )
    return LossLine(tuple(values), loss, accuracy)


@checked
def recalibrate(federation: Federation, state: State, examples: int | None) -> State:
    """The state with the running statistics of its batch-norm layers re-estimated from training data.

    The mean over batches of their means and (unbiased) variances, with the weights held fixed and every other layer in
    evaluation mode (Izmailov et al. 2018, section 3.2; torch's `update_bn`). A model without batch normalisation
    comes back as it is.

    Args:
        federation: gives data and model; the client transforms of its partition are not applied.
        state: parameters and buffers.
        examples: use the first so many training examples, in batches of at most 512 of nearly equal size; None leaves
            the state as it is.

    Raises:
        ValueError: `examples` is not between 2 and the number of training examples.
    """
    if examples is None:
        return state
    data = federation.dataset
    if not 2 <= examples <= len(data.x):
        raise ValueError(f"examples={examples}, accepted: 2 to {len(data.x)}")
    model = model_at(federation, state)
    names = {name for name in statistics_names(model) if name.endswith(("running_mean", "running_var"))}
    if not names:
        return state
    parts = torch.arange(examples).tensor_split(-(-examples // EVALUATION_BATCH))
    estimate_anew(model, (inputs_at(state, data.prepare(data.x[part])) for part in parts))
    estimated = get_state(model)
    return {name: estimated[name] if name in names else tensor for name, tensor in state.items()}


@checked
def model_at(federation: Federation, state: State) -> nn.Module:
    """A copy of the run's model with a state, on its device and in its precision, in evaluation mode."""
    like = _floating(state)
    model = copy.deepcopy(federation.model).to(like.device, like.dtype).eval()
    set_state(model, state)
    return model


@checked
def inputs_at(state: State, x: Tensor) -> Tensor:
    """Prepared examples on a state's device and, if they are no symbols, in its precision."""
    like = _floating(state)
    return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)


def _floating(state: State) -> Tensor:
    return next(tensor for tensor in state.values() if tensor.is_floating_point())


def _exact(theta: float) -> float:
    """0, 1/2 or 1 where theta is one of them up to rounding, else theta."""
    return next((exact for exact in (0.0, 0.5, 1.0) if abs(theta - exact) < 1e-9), float(theta))
