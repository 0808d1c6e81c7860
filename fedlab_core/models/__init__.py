"""The networks of the studies, built from an explicit generator.

Every model maps a batch to logits, has `features(x)`, the representation before the last layer, and that last layer as
`head` (a Linear), so logits = head(features(x)). Image models take float (B, C, H, W); "lstm" takes int64 (B, T) and
answers per position, (B, T, V).
"""

from fedlab_core.models.build import MODELS, ModelInfo, build_model, parameter_count
from fedlab_core.models.layers import NORMS, initialise

__all__ = ["MODELS", "NORMS", "ModelInfo", "build_model", "initialise", "parameter_count"]
