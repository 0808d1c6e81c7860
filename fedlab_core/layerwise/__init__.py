"""Federated layer-wise learning and depth dropout (Guo et al., arXiv 2309.05213), and what they save."""

from fedlab_core.layerwise.accounts import (
    MIB,
    Memory,
    deepest,
    flops_by_round,
    peak_allocated,
    peak_memory,
    relative_flops,
    step_flops,
    traffic,
    training_memory,
)
from fedlab_core.layerwise.evaluation import Features, features, few_labels, knn_accuracy, linear_probe
from fedlab_core.layerwise.method import NEW_UNITS, OBJECTIVES, LayerWise, LocalStage, staged_loss
from fedlab_core.layerwise.network import StagedModel, build_staged
from fedlab_core.layerwise.stages import MASKS, SCHEMES, Schedule, Stage, payload
from fedlab_core.methods import METHODS

METHODS["layer_wise"] = LayerWise  # so that a run can be saved and loaded

__all__ = [
    "MASKS",
    "MIB",
    "NEW_UNITS",
    "OBJECTIVES",
    "SCHEMES",
    "Features",
    "LayerWise",
    "LocalStage",
    "Memory",
    "Schedule",
    "Stage",
    "StagedModel",
    "build_staged",
    "deepest",
    "features",
    "few_labels",
    "flops_by_round",
    "knn_accuracy",
    "linear_probe",
    "payload",
    "peak_allocated",
    "peak_memory",
    "relative_flops",
    "staged_loss",
    "step_flops",
    "traffic",
    "training_memory",
]
