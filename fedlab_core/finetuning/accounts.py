"""What a way to fine-tune costs a client: parameters that travel, operations, bytes in memory.

All of it works on the meta device, where tensors have shapes and no values, so that the real ViT-B/16 and CLIP are
counted without their weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedlab_core.check import Natural, Size, checked
from fedlab_core.costs import count_flops, step_memory
from fedlab_core.finetuning.classifiers import cosine_classifier
from fedlab_core.finetuning.tuning import tune
from fedlab_core.local.work import task_loss
from fedlab_core.models.clip import CLIP, Vocabulary, openai_clip
from fedlab_core.models.vit import ViT
from fedlab_core.randomness import generator
from fedlab_core.state import parameter_names

TABLE: dict[str, tuple[str, Mapping[str, Any]]] = {
    "full": ("full", {}),
    "head only": ("head", {}),
    "bias + head": ("bias", {}),
    "LayerNorm + head": ("layer_norm", {}),
    "VPT shallow k=10 + head": ("vpt_shallow", {"tokens": 10}),
    "VPT deep k=10 + head": ("vpt_deep", {"tokens": 10}),
    "adapter /8, one per block, + head": ("adapter", {"reduction": 8}),
    "adapter /8, one shared, + head": ("adapter", {"reduction": 8, "shared": True}),
    "LoRA r=8 on q,v + head": ("lora", {"rank": 8}),
    "FFA-LoRA r=8 on q,v + head": ("lora", {"rank": 8, "freeze_a": True}),
    "CoOp M=16, no head": ("coop", {"tokens": 16}),
    "FedCLIP feature adapter": ("fedclip", {}),
}
"""Rows of the table of payloads: method and options of `tune`."""


KINDS = {
    "prompt": "prompt",
    "bottleneck": "adapter",
    "a": "LoRA",
    "b": "LoRA",
    "first": "gate",
    "second": "gate",
    "attention": "attention",
    "fc1": "MLP",
    "fc2": "MLP",
    **dict.fromkeys(("norm1", "norm2", "norm", "pre_norm"), "norms"),
    **dict.fromkeys(("embed", "class_token", "position", "token"), "embedding"),
    "head": "head",
}
"""Kinds of parts, by a part of their names; the first that is found counts."""


@checked
@dataclass(frozen=True)
class Payload:
    """Parameters of a model by what happens to them.

    Attributes:
        body: trained, of the tower or added to it: they travel in every round, both ways.
        head: trained, of the classifier: they travel as well.
        held: frozen: every client gets them once, before the first round.
        element: bytes of a parameter.
    """

    body: Natural
    head: Natural
    held: Natural
    element: Natural = 4

    @property
    def trained(self) -> int:
        """Parameters that travel."""
        return self.body + self.head

    @property
    def bytes(self) -> int:
        """Bytes that travel in one direction, to or from one client, in one round."""
        return self.element * self.trained

    def to_json(self) -> dict[str, int]:
        """Plain data."""
        return asdict(self) | {"trained": self.trained, "bytes": self.bytes}


@checked
def payload(model: nn.Module) -> Payload:
    """What of a tuned model travels; the classifier is what is called `head`."""
    sizes, trained = {n: p.numel() for n, p in model.named_parameters()}, parameter_names(model)
    head = sum(sizes[name] for name in trained if name.startswith("head."))
    total = sum(sizes[name] for name in trained)
    element = next(model.parameters()).element_size()
    return Payload(total - head, head, sum(sizes.values()) - total, element)


@checked
def anatomy(model: nn.Module) -> list[dict[str, Any]]:
    """What a network is made of and what of it is trained, from the input up, for a drawing of it.

    Returns:
        one row per tower ("image" or "text"), block (None outside of them) and kind (a value of `KINDS`, "projection"
        or "scale"), with the number of its parameters and of those that are trained.
    """
    rows: dict[tuple[str, int | None, str], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        kind = next((kind for part, kind in KINDS.items() if part in parts), "scale")
        if kind == "head" and parts[0] != "head":  # CLIP's towers end in a projection
            kind = "projection"
        block = int(parts[parts.index("blocks") + 1]) if "blocks" in parts else None
        tower = "text" if "text" in parts or name == "prompt" else "image"
        key = tower, block, kind
        row = rows.setdefault(key, {"tower": tower, "block": block, "kind": kind, "parameters": 0, "trained": 0})
        row["parameters"] += parameter.numel()
        row["trained"] += parameter.numel() * parameter.requires_grad
    return list(rows.values())


@checked
def meta_vit_b_16(num_classes: Size = 100) -> ViT:
    """ViT-B/16 (Dosovitskiy et al. 2021, table 1; torchvision's `vit_b_16`) without values."""
    with torch.device("meta"):
        return ViT((3, 224, 224), num_classes, patch=16, dim=768, depth=12, heads=12)


@checked
def meta_clip(patch: Size = 16) -> CLIP:
    """CLIP B/16 or B/32 without values."""
    with torch.device("meta"):
        return openai_clip(patch)


@checked
def payload_table(num_classes: Size = 100) -> list[dict[str, Any]]:
    """Parameters and bytes of every method for ViT-B/16, and for CLIP B/16 where a method needs its text tower.

    Returns:
        one row each: method, trained parameters, those of the head, MB (10^6 bytes) in one direction, and how many
        times that is less than "full".
    """
    vit, clip, draws = meta_vit_b_16(num_classes), meta_clip(), generator(0, "accounts")
    weights = clip.logit_scale.new_empty(num_classes, clip.image.head.out_features)
    rows: list[dict[str, Any]] = []
    for title, (method, options) in TABLE.items():
        if method == "coop":
            words = {"tokenizer": Vocabulary(("thing",), 8), "classes": ["thing"] * num_classes}
            count = payload(tune(clip, method, draws, **words, **options))
        elif method == "fedclip":
            frozen = cosine_classifier(clip.image, clip.logit_scale, weights, "text_frozen", draws)
            count = payload(tune(frozen, method, draws, **options))
        else:
            count = payload(tune(vit, method, draws, **options))
        full = rows[0]["trained"] if rows else count.trained
        rows.append(
            {
                "method": title,
                "trained": count.trained,
                "head": count.head,
                "MB": count.bytes / 1e6,
                "times less": full / count.trained,
            }
        )
    return rows


@checked
def classification_loss(images: Tensor) -> Callable[[nn.Module], Tensor]:
    """The loss of one local step on images (B, C, H, W) of class 0 as a function of the model, for
    `costs.count_flops` and `costs.step_memory`."""
    targets = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return lambda model: task_loss(model(images), targets)


@checked
def cost_table(model: nn.Module, images: Tensor, methods: Sequence[str], moments: Natural = 0) -> list[dict[str, Any]]:
    """What each method costs a client with this model.

    Args:
        model: as `tune` takes it.
        images: (B, C, H, W), one step's batch.
        methods: keys of `TUNINGS` with their default options, but "coop".

    Returns:
        one row each: its "method", and what `client_costs` returns.
    """
    ways = ((method, tune(model, method, generator(0, "accounts"))) for method in methods)
    return [{"method": method} | client_costs(tuned, images, moments) for method, tuned in ways]


@checked
def client_costs(tuned: nn.Module, images: Tensor, moments: Natural = 0) -> dict[str, int]:
    """What a tuned model costs a client.

    Args:
        images: (B, C, H, W), one step's batch.

    Returns:
        "trained" parameters, those of the "head", "bytes" that travel one way, bytes "kept" for the backward pass and
        "memory" in all, and "flops" of a step.
    """
    loss, count = classification_loss(images), payload(tuned)
    memory = step_memory(tuned, loss, moments)
    return {
        "trained": count.trained,
        "head": count.head,
        "bytes": count.bytes,
        "kept": memory.kept,
        "memory": memory.total,
        "flops": count_flops(tuned, loss),
    }
