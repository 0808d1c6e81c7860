"""Probes through weight space: lines, planes, mixtures of the clients' models, gradients and curvature at one point.

Pure functions on states. They evaluate through `Federation.evaluate_states` and leave the run and its model alone.
"""

from fedlab_core.probes.gradients import Curvature, Gradients, client_gradients, curvature, local_against_global
from fedlab_core.probes.lines import FIGURE_ONE_THETAS, LossLine, interpolate, line, recalibrate
from fedlab_core.probes.mixtures import (
    Mixtures,
    dirichlet_weights,
    leave_one_out,
    mix,
    mixtures,
    random_halves,
    spread,
    stability,
    triangle_weights,
)
from fedlab_core.probes.planes import Landscape, Plane, plane_of_path, plane_through, scan

__all__ = [
    "FIGURE_ONE_THETAS",
    "Curvature",
    "Gradients",
    "Landscape",
    "LossLine",
    "Mixtures",
    "Plane",
    "client_gradients",
    "curvature",
    "dirichlet_weights",
    "interpolate",
    "leave_one_out",
    "line",
    "local_against_global",
    "mix",
    "mixtures",
    "plane_of_path",
    "plane_through",
    "random_halves",
    "recalibrate",
    "scan",
    "spread",
    "stability",
    "triangle_weights",
]
