"""Planes through weight space: through three models, or along the path of a run; their loss, coarse grid first."""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlab_core.check import Many, Size, checked
from fedlab_core.federation import Federation
from fedlab_core.probes.lines import recalibrate
from fedlab_core.state import State, flatten

_TOGETHER = 64  # states evaluated, and held in memory, at once


@checked
@dataclass(frozen=True, eq=False)
class Plane:
    """The points origin + x u + y v, where u and v are orthonormal over the measured tensors.

    Attributes:
        origin: the state at (0, 0).
        u, v: directions, floating-point tensors by name; buffers move along with the parameters.
        names: tensors that distances are measured over, usually the trainable parameters.
        corners: states that lie on the plane and come back bit for bit, with their coordinates.
    """

    origin: State
    u: State
    v: State
    names: tuple[str, ...]
    corners: tuple[tuple[tuple[float, float], State], ...] = ()

    def point(self, x: float, y: float) -> State:
        """The state at (x, y); at a corner, the corner itself. Variances of batch norm are cut off at 0."""
        for (a, b), state in self.corners:
            if abs(a - x) < 1e-9 and abs(b - y) < 1e-9:
                return state
        moved = {n: torch.add(self.origin[n], d, alpha=x).add_(self.v[n], alpha=y) for n, d in self.u.items()}
        for name in moved:
            if name.endswith("running_var"):
                moved[name].clamp_min_(0)
        return {name: moved.get(name, tensor) for name, tensor in self.origin.items()}

    def project(self, state: State) -> tuple[float, float, float]:
        """Coordinates (x, y) of the nearest point of the plane, and the distance of the state from it."""
        offset = (flatten(state, self.names) - flatten(self.origin, self.names)).double()
        x, y = (torch.dot(offset, flatten(d, self.names).double()).item() for d in (self.u, self.v))
        return x, y, max(torch.dot(offset, offset).item() - x * x - y * y, 0.0) ** 0.5

    def path(self, states: Iterable[State]) -> NDArray:
        """(states, 3) projections, see `project`."""
        return np.array([self.project(state) for state in states])


@checked
@dataclass(frozen=True, eq=False)
class Landscape:
    """Loss and accuracy on a grid of a plane, possibly not yet everywhere.

    Attributes:
        x, y: (columns,) and (rows,) coordinates of the grid, ascending.
        loss, accuracy: (rows, columns), nan where not evaluated.
        stride: distance between the grid lines that are completely evaluated; 1 is the finished picture.
    """

    x: NDArray
    y: NDArray
    loss: NDArray
    accuracy: NDArray
    stride: int

    @property
    def done(self) -> float:
        """Share of the grid that is evaluated."""
        return float(np.isfinite(self.accuracy).mean())

    def filled(self, values: NDArray | None = None) -> NDArray:
        """(rows, columns) of the loss, or of other values of the grid, gaps filled by the nearest neighbour."""
        values = self.loss if values is None else values
        known = np.argwhere(~np.isnan(self.accuracy))
        every = np.indices(values.shape).reshape(2, -1).T
        nearest = ((every[:, None] - known[None]) ** 2).sum(2).argmin(1)
        return values[tuple(known[nearest].T)].reshape(values.shape)


@checked
def plane_through(a: State, b: State, c: State, names: Iterable[str]) -> Plane:
    """The plane through three states: a at the origin, b on the x axis, c above it (Gram-Schmidt of b - a and c - a).

    Args:
        names: tensors that lengths and angles are measured over.

    Raises:
        ValueError: the states lie on one line.
    """
    names = tuple(names)
    first, second = _difference(b, a), _difference(c, a)
    length = _dot(first, first, names) ** 0.5
    if length == 0:
        raise ValueError("the first two states are equal: three states on one line span no plane")
    u = _scaled(first, 1 / length)
    along = _dot(second, u, names)
    rest = {n: d - along * u[n] for n, d in second.items()}
    height = _dot(rest, rest, names) ** 0.5
    if height < 1e-6 * max(length, abs(along)):
        raise ValueError("the third state lies on the line through the first two: they span no plane")
    corners = (((0.0, 0.0), a), ((length, 0.0), b), ((along, height), c))
    return Plane(a, u, _scaled(rest, 1 / height), names, corners)


@checked
def plane_of_path(states: Sequence[State], names: Iterable[str]) -> Plane:
    """The plane through the last of the states that the path leaves least: the first two principal directions of the
    differences to the last state (Li et al. 2018, section 7).

    A path that is curved at random also looks like an arc in such a plane, so its shape alone says little; see
    `Plane.path` for how far it leaves the plane.

    Args:
        states: at least three, such as `state_at(t)` of a run.
        names: tensors that lengths and angles are measured over.

    Raises:
        ValueError: fewer than three states, or they lie on one line.
    """
    names = tuple(names)
    if len(states) < 3:
        raise ValueError(f"{len(states)} states, accepted: at least 3")
    last = states[-1]
    offsets = torch.stack([flatten(s, names) - flatten(last, names) for s in states[:-1]]).double()
    values, vectors = torch.linalg.eigh(offsets @ offsets.T)
    if values[-2] <= 1e-10 * values[-1]:
        raise ValueError("the states lie on one line: they span no plane")
    directions = []
    for i in (-1, -2):
        weights = vectors[:, i] / values[i].sqrt()
        if weights.sum() < 0:  # the path begins on the positive side
            weights = -weights
        parts = [_difference(state, last) for state in states[:-1]]
        shares, zero = weights.tolist(), torch.zeros(())
        directions.append(
            {n: sum((w * part[n] for w, part in zip(shares, parts, strict=True)), zero) for n in parts[0]}
        )
    return Plane(last, directions[0], directions[1], names, (((0.0, 0.0), last),))


@checked
def scan(
    federation: Federation,
    plane: Plane,
    around: Iterable[Sequence[float]] = (),
    *,
    size: Size = 25,
    margin: float = 0.2,
    split: str = "test",
    recalibrate_with: Many | None = None,
    stop: threading.Event | None = None,
) -> Iterator[Landscape]:
    """The loss on a grid of the plane, coarse grid first: every landscape has all points of the one before and more.

    The run's engine evaluates up to 64 points at a time: "stacked" and "auto" take dense networks' points together, 8
    in one product per layer, and networks with convolutions, whose products are large already, one per core.

    Args:
        federation: gives data, model and engine; it is not changed.
        around: coordinates (x, y, ...) that the grid has to hold, besides the corners of the plane.
        size: grid points along each axis.
        margin: room around what has to be held, as a share of its extent.
        split: "test" or "train".
        recalibrate_with: see `lines.line`.
        stop: once set, the scan ends after the states under way. Leaving the loop ends it as well.

    Yields:
        A landscape after every 64 points, at the latest.

    Raises:
        ValueError: a grid of fewer than 2 points, or nothing to hold.
    """
    if size < 2:
        raise ValueError(f"size={size}, accepted: at least 2")
    held = np.array([tuple(at)[:2] for at in (*around, *(at for at, _ in plane.corners))], float)
    if len(held) < 2:
        raise ValueError("around=(): at least two points to hold are needed")
    low, high = held.min(0), held.max(0)
    extent = high - low
    room = np.maximum(extent * margin, (0.6 * (1 + 2 * margin) * extent.max() - extent) / 2)  # no narrow strips
    x, y = (np.linspace(low[i] - room[i], high[i] + room[i], size) for i in (0, 1))
    loss, accuracy = np.full((size, size), np.nan), np.full((size, size), np.nan)
    stride = 1
    while 4 * stride < size:
        stride *= 2
    coarser = 2 * stride
    while stride:
        lines = {*range(0, size, stride), size - 1}
        todo = [(i, j) for i in sorted(lines) for j in sorted(lines) if np.isnan(accuracy[i, j])]
        for first in range(0, len(todo), _TOGETHER):
            chosen = todo[first : first + _TOGETHER]
            states = [recalibrate(federation, plane.point(x[j], y[i]), recalibrate_with) for i, j in chosen]
            for (i, j), result in zip(chosen, federation.evaluate_states(states, split), strict=True):
                loss[i, j], accuracy[i, j] = result[f"{split}_loss"], result.get(f"{split}_accuracy", math.nan)
            complete = first + _TOGETHER >= len(todo)
            yield Landscape(x, y, loss.copy(), accuracy.copy(), stride if complete else coarser)
            if stop is not None and stop.is_set():
                return
        coarser, stride = stride, stride // 2


def _difference(a: State, b: State) -> State:
    return {name: t - b[name] for name, t in a.items() if t.is_floating_point()}


def _dot(a: State, b: State, names: Sequence[str]) -> float:
    return sum(torch.dot(a[n].flatten().double(), b[n].flatten().double()).item() for n in names)


def _scaled(a: dict[str, Tensor], factor: float) -> State:
    return {name: tensor * factor for name, tensor in a.items()}
