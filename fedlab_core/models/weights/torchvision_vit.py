"""Torchvision's ViT weights as a network of this package.

Every tensor of a checkpoint gets a place, so that the network computes what the library's own computes.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedlab_core.check import Size, checked
from fedlab_core.data import data_root
from fedlab_core.models.vit import ViT
from fedlab_core.models.weights.torchvision_resnet import downloaded, read_state
from fedlab_core.state import State

_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.0": "fc1",
    "mlp.3": "fc2",
    "mlp.linear_1": "fc1",  # as the released files still call them
    "mlp.linear_2": "fc2",
    "self_attention.out_proj": "attention.proj",
}


@checked
def load_vit_b_16(
    weights: str | Path = "IMAGENET1K_V1", *, heads: Size | None = None, fetch: Callable[[str], State] | None = None
) -> ViT:
    """A `ViT` with the weights of torchvision's, classifier included; its sizes are read off the tensors.

    Args:
        weights: a `.safetensors` or `.pth` file with a state dict of torchvision's `VisionTransformer` (nothing in it
            is run); or a name of `torchvision.models.ViT_B_16_Weights`, whose file is looked for in the data root and
            then downloaded.
        heads: of the attention; by default one per 64 of the width, as in all ViTs of torchvision.
        fetch: downloads a state dict, given its address; torch.hub's by default.

    Raises:
        FileNotFoundError: no such file, or no network to get one from.
        ValueError: neither a file nor a name, or a file without such weights; it is named.
    """
    import torchvision  # it takes a second, and most runs need none of it

    names = torchvision.models.ViT_B_16_Weights.__members__
    if str(weights) in names:
        address = names[str(weights)].url
        path = data_root() / Path(address).name
        if not path.is_file():
            return vit_from_torchvision(downloaded(address, path, fetch), heads, address)
    else:
        path = Path(weights)
        if path.suffix not in (".safetensors", ".pth"):
            raise ValueError(
                f"weights={str(weights)!r}, accepted: a .safetensors or .pth file, or one of {list(names)}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there")
    return vit_from_torchvision(read_state(path), heads, str(path))


@checked
def vit_from_torchvision(weights: State, heads: Size | None = None, source: str = "the state dict") -> ViT:
    """A `ViT` from the state dict of a torchvision `VisionTransformer`.

    Raises:
        ValueError: a tensor that is missing, unknown or of another shape; `source` is named.
    """
    for name in ("conv_proj.weight", "encoder.pos_embedding", "heads.head.weight"):
        if name not in weights:
            raise ValueError(f"{source} lacks {name!r}: no weights of a torchvision VisionTransformer")
    dim, channels, patch, _ = weights["conv_proj.weight"].shape
    side = patch * round((weights["encoder.pos_embedding"].shape[1] - 1) ** 0.5)
    depth = len({name.split(".")[2] for name in weights if name.startswith("encoder.layers.")})
    with torch.device("meta"):
        vit = ViT((channels, side, side), len(weights["heads.head.weight"]), patch, dim, depth, heads or dim // 64)
    set_eps(vit, 1e-6)
    return filled(vit, dict(_from_torchvision(weights)), source)


def _from_torchvision(weights: State) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a `ViT`; unknown names are passed on as they are."""
    top = {"encoder.pos_embedding": "position", "encoder.ln": "norm", "heads.head": "head", "conv_proj": "embed"}
    for name, tensor in weights.items():
        if name == "conv_proj.weight":
            tensor = tensor.flatten(1)
        if name.startswith("encoder.layers.encoder_layer_"):
            number, _, rest = name.removeprefix("encoder.layers.encoder_layer_").partition(".")
            for new, piece in block_tensors(rest, tensor, _BLOCK):
                yield f"blocks.{number}.{new}", piece
        else:
            yield renamed(name, top), tensor


@checked
def block_tensors(name: str, tensor: Tensor, table: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a `TransformerBlock`; fused "in_proj_weight" and "in_proj_bias" are cut into q, k and v."""
    _, fused, kind = name.partition(".in_proj_")
    if not fused:
        yield renamed(name, table), tensor
        return
    for part, piece in zip("qkv", tensor.chunk(3), strict=True):
        yield f"attention.{part}.{kind}", piece


@checked
def set_eps(tower: nn.Module, eps: float) -> None:
    """Set the epsilon of all LayerNorms."""
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


@checked
def renamed(name: str, table: dict[str, str]) -> str:
    """The name with a prefix of the table replaced; as it is if it has none."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


@checked
def filled(model: Any, found: State, source: str) -> Any:
    """The model, laid out on the meta device, with the tensors found; none is missing, unknown or of another shape."""
    own = model.state_dict()
    for what, names in (("lacks", own.keys() - found.keys()), ("has an unknown", found.keys() - own.keys())):
        if names:
            raise ValueError(f"{source} {what} tensor: {sorted(names)[0]!r}, and {len(names) - 1} more")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{source}: {name!r} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
    values = {n: t.detach().to("cpu", torch.float32, copy=True).contiguous() for n, t in found.items()}
    model.load_state_dict(values, assign=True)
    return model
