"""CLIPs of Hugging Face's transformers and of open_clip as networks of this package (extra "clip").

Every tensor of a checkpoint gets a place, so that the network computes what the library's own computes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlab_core.check import checked
from fedlab_core.models.clip import CLIP, openai_clip, quick_gelu
from fedlab_core.models.weights.torchvision_vit import block_tensors, filled, renamed, set_eps
from fedlab_core.state import State

_HF_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.out_proj": "attention.proj",
}
_HF = {
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


_OPEN_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm2",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
    "attn.out_proj": "attention.proj",
}
_OPEN = {
    "visual.class_embedding": "image.class_token",
    "visual.conv1.weight": "image.embed.weight",
    "visual.positional_embedding": "image.position",
    "visual.ln_pre": "image.pre_norm",
    "visual.ln_post": "image.norm",
    "visual.proj": "image.head.weight",
    "token_embedding.weight": "text.token",
    "positional_embedding": "text.position",
    "ln_final": "text.norm",
    "text_projection": "text.head.weight",
}


@checked
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


@checked
def load_tokenizer(source: str | Path, *, local_only: bool = False) -> "ClipTokenizer":
    """The tokenizer that stands beside the weights; arguments and errors are those of `load_clip`."""
    tokenizer = _pretrained("CLIPTokenizer", source, local_only)
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= 3:  # transformers makes an empty one where it finds none
        raise FileNotFoundError(f"{source}: no CLIPTokenizer there (vocab.json, merges.txt), and none downloaded")
    if tokenizer.eos_token_id != max(vocabulary.values()):
        raise ValueError(f"{source}: the end token is {tokenizer.eos_token_id}, accepted: the highest id")
    return ClipTokenizer(tokenizer)


@checked
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


@checked
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
    towers: list[tuple[Any, Any]] = [(clip.image, vision), (clip.text, text)]
    for tower, part in towers:
        for block in tower.blocks:
            block.activation = activations[part.hidden_act]
        set_eps(tower, part.layer_norm_eps)
    found: State = {}
    for name, tensor in weights.items():
        if name.endswith("position_ids"):  # 0, 1, 2, ..., which older checkpoints keep
            continue
        side, _, rest = name.partition("_model.encoder.layers.")
        if rest:
            number, _, rest = rest.partition(".")
            found[f"{'image' if side == 'vision' else side}.blocks.{number}.{renamed(rest, _HF_BLOCK)}"] = tensor
        else:
            found[renamed(name, _HF)] = tensor
    return filled(clip, _shaped(found), source)


@checked
def load_open_clip(name: str, pretrained: str | Path | None = None) -> CLIP:
    """A `CLIP` with the weights of an `open_clip.CLIP`.

    Args:
        name: as open_clip calls it, such as "ViT-B-16-quickgelu" (the one for OpenAI's weights) or "ViT-B-16"; or
            "local-dir:" and a folder that holds `open_clip_config.json` and the weights, or "hf-hub:" and a name there.
        pretrained: a tag of open_clip's, such as "openai" or "laion2b_s34b_b88k", or a file; not with a folder or hub.

    Raises:
        FileNotFoundError: nothing there, and no network to get it from.
        ValueError: open_clip is not installed, no such model or tag, or no CLIP of this layout; it is named.
    """
    library, source = _open_clip(), f"{name}, {pretrained}" if pretrained else name
    local = name.removeprefix("local-dir:")
    if (local != name and not Path(local).is_dir()) or (isinstance(pretrained, Path) and not pretrained.is_file()):
        raise FileNotFoundError(f"{source} is not there")
    try:
        model = library.create_model(name, str(pretrained) if pretrained else None, require_pretrained=True)
    except Exception as error:  # whatever a missing network, an unknown name or a damaged file makes open_clip raise
        causes: list[BaseException | None] = [error]
        while causes[-1] is not None:
            causes.append(causes[-1].__cause__ or causes[-1].__context__)
        if any(isinstance(cause, OSError) for cause in causes):
            raise FileNotFoundError(f"{source}: not there, and could not be downloaded ({error})") from error
        raise ValueError(f"{source}: no model that can be read ({type(error).__name__}: {error})") from error
    return clip_from_open_clip(model, source)


@checked
def load_open_clip_tokenizer(name: str) -> "OpenClipTokenizer":
    """The tokenizer of a model of open_clip's; CLIP's own comes with the package."""
    return OpenClipTokenizer(_open_clip().get_tokenizer(name))


@checked
class OpenClipTokenizer:
    """open_clip's tokenizer with the face of a `Vocabulary`."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions to int64 (B, T); what is too long is cut off before the end token, which has the highest id."""
        return self.tokenizer(list(captions))


@checked
def clip_from_open_clip(model: Any, source: str = "the model") -> CLIP:
    """A `CLIP` from an `open_clip.CLIP`.

    Raises:
        ValueError: another layout than OpenAI's: other towers, or read elsewhere than at class and end token.
    """
    visual: Any = getattr(model, "visual", None)
    layout = [getattr(visual, "pool_type", None), getattr(model, "text_pool_type", None)]
    if layout != ["tok", "argmax"] or model.attn_mask is None:
        raise ValueError(f"{source}: a {type(model).__name__} read at {layout}, accepted: a CLIP of OpenAI's layout")
    blocks, weights = (visual.transformer.resblocks, model.transformer.resblocks), model.state_dict()
    dim, channels, patch, _ = weights["visual.conv1.weight"].shape
    symbols, text_dim = weights["token_embedding.weight"].shape
    with torch.device("meta"):
        clip = openai_clip(
            patch,
            patch * round((len(weights["visual.positional_embedding"]) - 1) ** 0.5),
            weights["text_projection"].shape[1],
            dim=dim,
            depth=len(blocks[0]),
            heads=blocks[0][0].attn.num_heads,
            symbols=symbols,
            length=len(weights["positional_embedding"]),
            text_dim=text_dim,
            text_depth=len(blocks[1]),
            text_heads=blocks[1][0].attn.num_heads,
        )
    towers: list[Any] = [clip.image, clip.text]
    for tower, theirs in zip(towers, blocks, strict=True):
        for block, other in zip(tower.blocks, theirs, strict=True):
            if type(other.mlp.gelu).__name__ == "GELU":
                block.activation = F.gelu
    found = {}
    for name, tensor in weights.items():
        tower, _, rest = name.partition("transformer.resblocks.")
        if rest:
            number, _, rest = rest.partition(".")
            for new, piece in block_tensors(rest, tensor, _OPEN_BLOCK):
                found[f"{'image' if tower else 'text'}.blocks.{number}.{new}"] = piece
        else:
            found[renamed(name, _OPEN)] = tensor.T if name in ("visual.proj", "text_projection") else tensor
    return filled(clip, _shaped(found), source)


def _shaped(found: State) -> State:
    """Tensors by the names of a `CLIP`, in its shapes: a convolution becomes a product with patches."""
    changes = {
        "image.embed.weight": lambda t: t.flatten(1),
        "image.class_token": lambda t: t[None, None],
        "image.position": lambda t: t[None],
    }
    return {name: changes[name](t) if name in changes else t for name, t in found.items()}


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise ValueError("CLIPs of open_clip need it: pip install 'fedlab_core[clip]'") from None
    return open_clip


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
