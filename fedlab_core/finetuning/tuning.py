"""Which parameters of a pre-trained Transformer are trained: three families of methods on one interface."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fedlab_core.check import checked, choice
from fedlab_core.finetuning.classifiers import CosineClassifier, TextPrompted
from fedlab_core.finetuning.modules import Adapted, Bottleneck, Gated, LoRA, Prompted
from fedlab_core.models.clip import CLIP
from fedlab_core.models.vit import ViT

FAMILIES = {
    "baseline": "everything, or the classifier alone",
    "backbone": "a few of the parameters that are there",
    "input": "learnt tokens beside the image's patches or the text's words",
    "modules": "small layers added to frozen ones",
}


@checked
@dataclass(frozen=True)
class Tuning:
    """A way to fine-tune.

    Attributes:
        family: a key of `FAMILIES`.
        title: what it trains besides the classifier, in a few words.
        options: arguments of `tune` that it takes, with their defaults.
        of_clip: whether it needs a CLIP, be it its text tower or its embedding.
        own: of a registered way: make(model, generator, **options) gets a copy of the model, any `nn.Module`, and
            returns it as it is to be trained.
    """

    family: str
    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    of_clip: bool = False
    own: Callable[..., nn.Module] | None = None


TUNINGS: dict[str, Tuning] = {
    "full": Tuning("baseline", "everything"),
    "head": Tuning("baseline", "nothing"),
    "bias": Tuning("backbone", "every bias (BitFit)"),
    "layer_norm": Tuning("backbone", "gains and biases of the LayerNorms"),
    "vpt_shallow": Tuning("input", "tokens before the first block", {"tokens": 10}),
    "vpt_deep": Tuning("input", "tokens before every block", {"tokens": 10}),
    "coop": Tuning("input", "tokens before the class names; no classifier", {"tokens": 16}, of_clip=True),
    "adapter": Tuning("modules", "a bottleneck in every block", {"reduction": 8, "shared": False}),
    "lora": Tuning(
        "modules", "low-rank updates of q and v", {"rank": 8, "alpha": 8.0, "freeze_a": False, "delta": False}
    ),
    "fedclip": Tuning("modules", "a gate on CLIP's image embedding", of_clip=True),
}
"""Every way to fine-tune, by name."""


@checked
def tune(model: nn.Module, method: str, generator: torch.Generator, **options: Any) -> nn.Module:
    """A copy of a model in which exactly what a method trains asks for gradients.

    In a `Federation`, exactly these parameters travel: clients hold the others from the start (`state.frozen_names`).

    Args:
        model: a `ViT` or a `CosineClassifier`, with the classifier that it is to have; for "coop" a `CLIP`. A frozen
            classifier, such as that of "text_frozen", stays frozen; all methods train any other.
        method: a key of `TUNINGS`.
        generator: source of what is added.
        options: tokens (of prompts), reduction (bottlenecks are dim // reduction wide), shared (one bottleneck for all
            blocks, as FedPEFT's code has it), rank, alpha, freeze_a (A stays as drawn, FFA-LoRA: Sun et al. 2024)
            and delta (see `LoRA`), see `Tuning.options`; "coop" needs `tokenizer` and `classes` too, see
            `TextPrompted`.

    Raises:
        ValueError: an unknown method, options that it does not take or that are out of range, or a model that it does
            not fit.
    """
    choice("method", method, sorted(TUNINGS))
    needed = {"tokenizer", "classes"} if method == "coop" else set()
    known = TUNINGS[method].options.keys() | needed
    if unknown := options.keys() - known:
        raise ValueError(f"{sorted(unknown)[0]}={options[sorted(unknown)[0]]!r}: {method!r} takes {sorted(known)}")
    chosen = {**TUNINGS[method].options, **options}
    for name in ("tokens", "reduction", "rank"):
        if name in chosen and (not isinstance(chosen[name], int) or chosen[name] < 1):
            raise ValueError(f"{name}={chosen[name]!r}, accepted: a whole number >= 1")
    for name in ("shared", "freeze_a", "delta"):
        if not isinstance(chosen.get(name, False), bool):
            raise ValueError(f"{name}={chosen[name]!r}, accepted: True or False")
    if (own := TUNINGS[method].own) is not None:
        return own(copy.deepcopy(model), generator, **chosen)
    if method == "coop":
        if not isinstance(model, CLIP) or not needed <= options.keys():
            raise ValueError(f"model is a {type(model).__name__}, accepted by 'coop': a CLIP, tokenizer and classes")
        return TextPrompted(model, generator=generator, **chosen)
    if not isinstance(model, ViT | CosineClassifier) or (method == "fedclip" and isinstance(model, ViT)):
        accepted = "a CosineClassifier" if method == "fedclip" else "a ViT or a CosineClassifier"
        raise ValueError(f"model is a {type(model).__name__}, accepted by {method!r}: {accepted}")
    tuned = copy.deepcopy(model)
    if method == "full":
        return tuned
    trained_head = [p.requires_grad for p in model.head.parameters()]
    tuned.requires_grad_(False)
    body: Any = tuned if isinstance(tuned, ViT) else tuned.image
    if method in ("bias", "layer_norm"):
        _unfreeze(body, method)
    elif method in ("vpt_shallow", "vpt_deep"):
        _prompt(body, method == "vpt_deep", generator, **chosen)
    elif method == "adapter":
        _adapt(body, generator, **chosen)
    elif method == "lora":
        _update(body, generator, **chosen)
    elif method == "fedclip":
        body.head = Gated(body.head, generator)
    for parameter, trained in zip(tuned.head.parameters(), trained_head, strict=True):
        parameter.requires_grad_(trained)
    return tuned


def _unfreeze(vit: ViT, method: str) -> None:
    """Names end with "bias", not with ".bias": `nn.MultiheadAttention` has an `in_proj_bias`."""
    if method == "bias":
        for name, parameter in vit.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
    else:
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


def _prompt(vit: ViT, deep: bool, generator: torch.Generator, tokens: int) -> None:
    """Uniform in +-sqrt(6 / (values of a patch + dim)), as in the code of Jia et al. (2022)."""
    width, patch = vit.embed.weight.shape
    bound = math.sqrt(6 / (patch + width))
    for number in range(len(vit.blocks) if deep else 1):
        prompt = vit.embed.weight.new_empty(tokens, width)
        nn.init.uniform_(prompt, -bound, bound, generator=generator)
        vit.blocks[number] = Prompted(vit.blocks[number], prompt, replace=number > 0)


def _adapt(vit: Any, generator: torch.Generator, reduction: int, shared: bool) -> None:
    width = vit.norm.normalized_shape[0]
    if reduction > width:
        raise ValueError(f"reduction={reduction}, accepted: at most the model's width, {width}")
    first: Bottleneck | None = None
    for block in vit.blocks:
        if first is not None and shared:
            block.fc2 = Adapted(block.fc2, borrowed=first)
        else:
            first = Bottleneck(width, width // reduction, generator, block.fc2.weight)
            block.fc2 = Adapted(block.fc2, first)


def _update(vit: Any, generator: torch.Generator, rank: int, alpha: float, freeze_a: bool, delta: bool) -> None:
    for block in vit.blocks:
        attention = block.attention
        attention.q, attention.v = (LoRA(layer, rank, alpha, generator, delta) for layer in (attention.q, attention.v))
        if freeze_a:
            for layer in (attention.q, attention.v):
                layer.a.requires_grad_(False)
