"""Real backbones as networks of this package: torchvision's ViT weights, and CLIP through Hugging Face's transformers.

Every tensor of a checkpoint gets a place, so that the network computes what the library's own computes.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.data import data_root
from fedlab_core.models.clip import CLIP, openai_clip, quick_gelu
from fedlab_core.models.vit import ViT
from fedlab_core.pretraining.imagenet import read_state
from fedlab_core.state import State

STATISTICS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""(mean, std) of the images that ViT-B/16 and CLIP were trained on, as a `Dataset` takes them."""

_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.0": "fc1",
    "mlp.3": "fc2",
    "mlp.linear_1": "fc1",  # as the released files still call them
    "mlp.linear_2": "fc2",
    "self_attention.out_proj": "attention.proj",
}
_CLIP_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.out_proj": "attention.proj",
}
_CLIP = {
    "vision_model.embeddings.class_embedding": "image.class_token",
    "vision_model.embeddings.patch_embedding.weight": "image.embed.weight",
    "vision_model.embeddings.position_embedding.weight": "image.position",
    "vision_model.pre_layrnorm": "image.pre_norm",
    "vision_model.post_layernorm": "image.norm",
    "visual_projection.weight": "image.head.weight",
    "text_model.embeddings.token_embedding.weight": "text.token",
    "text_model.embeddings.position_embedding.weight": "text.position",
    "text_model.final_layer_norm": "text.norm",
    "text_projection.weight": "text.head.weight",
    "logit_scale": "logit_scale",
}


def load_vit_b_16(
    weights: str | Path = "IMAGENET1K_V1", *, heads: int | None = None, fetch: Callable[[str], State] | None = None
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
    names = torchvision.models.ViT_B_16_Weights.__members__
    if str(weights) in names:
        address = names[str(weights)].url
        path = data_root() / Path(address).name
        if not path.is_file():
            fetch = fetch or (
                lambda url: torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
            )
            try:
                return vit_from_torchvision(fetch(address), heads, address)
            except OSError as error:
                raise FileNotFoundError(
                    f"weights={weights!r} could not be downloaded ({error}). Put {path.name} into {path.parent}"
                ) from error
    else:
        path = Path(weights)
        if path.suffix not in (".safetensors", ".pth"):
            raise ValueError(
                f"weights={str(weights)!r}, accepted: a .safetensors or .pth file, or one of {list(names)}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there")
    return vit_from_torchvision(read_state(path), heads, str(path))


def vit_from_torchvision(weights: State, heads: int | None = None, source: str = "the state dict") -> ViT:
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
    _set_eps(vit, 1e-6)
    return _filled(vit, dict(_from_torchvision(weights)), source)


def _from_torchvision(weights: State) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a `ViT`; unknown names are passed on as they are."""
    top = {"encoder.pos_embedding": "position", "encoder.ln": "norm", "heads.head": "head", "conv_proj": "embed"}
    for name, tensor in weights.items():
        if name == "conv_proj.weight":
            tensor = tensor.flatten(1)
        if name.startswith("encoder.layers.encoder_layer_"):
            number, _, rest = name.removeprefix("encoder.layers.encoder_layer_").partition(".")
            if rest.startswith("self_attention.in_proj_"):
                for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                    yield f"blocks.{number}.attention.{part}.{rest.removeprefix('self_attention.in_proj_')}", piece
            else:
                yield f"blocks.{number}.{_renamed(rest, _BLOCK)}", tensor
        else:
            yield _renamed(name, top), tensor


def load_clip(source: str | Path, *, local_only: bool = False) -> CLIP:
    """A `CLIP` with the weights of a `transformers.CLIPModel`.

    Args:
        source: a folder that `save_pretrained` wrote, or a name on the Hugging Face hub, such as
            "openai/clip-vit-base-patch16".
        local_only: never use the network; what was downloaded before is found.

    Raises:
        FileNotFoundError: nothing there, and no network to get it from.
        ValueError: transformers is not installed, or the folder holds no CLIP that can be read; it is named.
    """
    model = _pretrained("CLIPModel", source, local_only)
    return clip_from_transformers(model.state_dict(), model.config, str(source))


def load_tokenizer(source: str | Path, *, local_only: bool = False) -> "ClipTokenizer":
    """The tokenizer that stands beside the weights; arguments and errors are those of `load_clip`."""
    tokenizer = _pretrained("CLIPTokenizer", source, local_only)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= 3:  # transformers makes an empty one where it finds none
        raise FileNotFoundError(f"{source}: no CLIPTokenizer there (vocab.json, merges.txt), and none downloaded")
    if tokenizer.eos_token_id != max(vocabulary.values()):
        raise ValueError(f"{source}: the end token is {tokenizer.eos_token_id}, accepted: the highest id")
    return ClipTokenizer(tokenizer)


class ClipTokenizer:
    """transformers' tokenizer with the face of a `Vocabulary`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions to int64 (B, T), as long as the longest; their ends have the highest id.

        Raises:
            ValueError: a caption is too long.
        """
        ids = self.tokenizer(list(captions), padding=True, return_tensors="pt").input_ids
        if ids.shape[1] > self.tokenizer.model_max_length:
            raise ValueError(f"captions: {ids.shape[1]} tokens, accepted: {self.tokenizer.model_max_length}")
        return ids


def clip_from_transformers(weights: State, config: Any, source: str = "the state dict") -> CLIP:
    """A `CLIP` from the state dict and the configuration of a `transformers.CLIPModel`.

    Raises:
        ValueError: a layout that OpenAI's CLIPs do not have, or a tensor that is missing, unknown or of another shape;
            `source` is named.
    """
    vision, text = config.vision_config, config.text_config
    activations = {"quick_gelu": quick_gelu, "gelu": F.gelu}
    for part in (vision, text):
        if part.hidden_act not in activations:
            raise ValueError(f"{source}: hidden_act={part.hidden_act!r}, accepted: {list(activations)}")
        if part.intermediate_size != 4 * part.hidden_size:
            raise ValueError(f"{source}: intermediate_size={part.intermediate_size}, accepted: 4 * hidden_size")
    with torch.device("meta"):
        clip = openai_clip(
            vision.patch_size,
            vision.image_size,
            config.projection_dim,
            dim=vision.hidden_size,
            depth=vision.num_hidden_layers,
            heads=vision.num_attention_heads,
            symbols=text.vocab_size,
            length=text.max_position_embeddings,
            text_dim=text.hidden_size,
            text_depth=text.num_hidden_layers,
            text_heads=text.num_attention_heads,
        )
    for tower, part in ((clip.image, vision), (clip.text, text)):
        for block in tower.blocks:
            block.activation = activations[part.hidden_act]
        _set_eps(tower, part.layer_norm_eps)
    found = {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):  # 0, 1, 2, ..., which older checkpoints keep
            continue
        tower, _, rest = name.partition("_model.encoder.layers.")
        if rest:
            number, _, rest = rest.partition(".")
            new = f"{'image' if tower == 'vision' else tower}.blocks.{number}.{_renamed(rest, _CLIP_BLOCK)}"
        else:
            new = _renamed(name, _CLIP)
        if new == "image.embed.weight":
            tensor = tensor.flatten(1)
        found[new] = tensor[None, None] if new == "image.class_token" else tensor
    if "image.position" in found:
        found["image.position"] = found["image.position"][None]
    return _filled(clip, found, source)


def _pretrained(kind: str, source: str | Path, local_only: bool) -> Any:
    try:
        import transformers
    except ImportError:
        raise ValueError("CLIP's weights need transformers: pip install 'fedlab_core[clip]'") from None
    folder = Path(source)
    if folder.is_absolute() and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there, accepted: a folder, or a name on the Hugging Face hub")
    options = {"dtype": torch.float32} if kind == "CLIPModel" else {}
    try:
        return getattr(transformers, kind).from_pretrained(str(source), local_files_only=local_only, **options)
    except OSError as error:
        raise FileNotFoundError(f"{source}: no {kind} there, and none could be downloaded ({error})") from error
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(f"{source}: holds no {kind} that can be read ({type(error).__name__}: {error})") from error


def _set_eps(tower: nn.Module, eps: float) -> None:
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps


def _renamed(name: str, table: dict[str, str]) -> str:
    """The name with a prefix of the table replaced; as it is if it has none."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _filled(model: Any, found: State, source: str) -> Any:
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
