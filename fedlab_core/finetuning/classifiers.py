"""Classifiers on a pre-trained tower: a fresh Linear, or one whose rows are texts (CLIP's zero-shot head)."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Size, checked, choice
from fedlab_core.finetuning.modules import linear_like, uniform
from fedlab_core.models.clip import CLIP, HIGHEST_SCALE, Tokenizer
from fedlab_core.models.vit import ViT

HEADS = {
    "text_frozen": "the classes' text embeddings, which stay as they are: the zero-shot classifier",
    "text_init": "a Linear that starts as the classes' text embeddings and is trained",
    "random_init": "a Linear that starts from random weights and is trained",
}
"""What a `CosineClassifier` may begin with; in the same network, so that only this differs."""


@checked
class CosineClassifier(nn.Module):
    """logits = head(scale * f / |f|), with f = image(x) an embedding.

    With unit-length rows in `head` and no bias these are CLIP's scaled cosines. The scale is not trained.

    Args:
        image: the tower; its `head` is the projection to the embedding.
        scale: the logarithm of the factor, a number; at most ln 100 counts.
        head: (embedding -> classes).
    """

    def __init__(self, image: ViT, scale: Tensor, head: nn.Linear) -> None:
        super().__init__()
        self.image, self.head = image, head
        self.logit_scale = nn.Parameter(scale.detach().clone(), requires_grad=False)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to scaled embeddings (B, embedding)."""
        return self.logit_scale.clamp(max=HIGHEST_SCALE).exp() * F.normalize(self.image(x), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@checked
def with_head(vit: ViT, num_classes: Size, generator: torch.Generator) -> ViT:
    """A copy of a ViT with a freshly drawn classifier (dim -> num_classes)."""
    vit = copy.deepcopy(vit)
    vit.head = uniform(linear_like(vit.norm.normalized_shape[0], num_classes, vit.norm.weight), generator)
    return vit


@checked
def class_means(embeddings: Tensor, labels: Tensor, num_classes: Size) -> Tensor:
    """W_c = normalise(mean of the normalised embeddings of class c): a head made of images, as the zero-shot head is
    made of texts.

    Args:
        embeddings: (n, embedding).
        labels: (n,); a class without an example gets zeros.

    Returns:
        (num_classes, embedding).
    """
    one_hot = F.one_hot(labels, num_classes).to(embeddings.dtype)
    return F.normalize(one_hot.T @ F.normalize(embeddings, dim=-1), dim=-1)


@checked
def cosine_classifier(
    image: ViT, scale: Tensor, weights: Tensor, head: str, generator: torch.Generator
) -> CosineClassifier:
    """A tower with a classifier of one of the `HEADS`.

    Args:
        image: copied. CLIP's image tower, or any ViT; `head` of the latter may be an `nn.Identity`.
        scale: CLIP's `logit_scale`, or any number ().
        weights: (classes, embedding), such as `zero_shot_weights` or `class_means` gives; of "random_init" only the
            shape is used.
        head: a key of `HEADS`.
        generator: of "random_init"; its bias is drawn as well, the others start with zeros.

    Raises:
        ValueError: another head.
    """
    choice("head", head, sorted(HEADS))
    layer = uniform(linear_like(weights.shape[1], len(weights), weights), generator)
    if head != "random_init":
        layer.weight = nn.Parameter(weights.detach().clone())
        nn.init.zeros_(layer.bias)
    return CosineClassifier(copy.deepcopy(image), scale, layer.requires_grad_(head != "text_frozen"))


@checked
class TextPrompted(nn.Module):
    """CoOp (Zhou et al. 2022): the classifier's rows are texts that begin with learnt tokens, the same for all classes.

    logits = scale * cosine(image(x), text([start] + prompt + class name + [end])). Nothing but the prompt is trained.

    Args:
        clip: copied; both towers stay as they are.
        tokenizer: made for its texts.
        classes: names as they stand in a caption.
        tokens: learnt ones, M.
        generator: of the prompt ~ N(0, 0.02^2).

    Raises:
        ValueError: the texts with the prompt are longer than the tower takes.
    """

    ids: Tensor

    def __init__(
        self, clip: CLIP, tokenizer: Tokenizer, classes: Sequence[str], tokens: Size, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.clip = copy.deepcopy(clip).requires_grad_(False)
        ids = tokenizer.encode(list(classes))
        self.lengths = tuple((ids.argmax(1) + 1 + tokens).tolist())
        ids = ids[:, : max(self.lengths) - tokens].to(clip.text.token.device)
        self.register_buffer("ids", ids, persistent=False)
        longest = len(clip.text.position)
        if max(self.lengths) > longest:
            raise ValueError(f"tokens={tokens}: texts of {max(self.lengths)} tokens, accepted: at most {longest}")
        self.prompt = nn.Parameter(clip.text.token.new_empty(tokens, clip.text.token.shape[1]))
        nn.init.normal_(self.prompt, std=0.02, generator=generator)

    def texts(self) -> Tensor:
        """The classifier's rows (classes, embedding), of unit length."""
        table = self.clip.text.embed(self.ids)
        prompt = self.prompt.expand(len(table), -1, -1)
        texts = torch.cat([table[:, :1], prompt, table[:, 1:]], 1)
        lengths = torch.tensor(self.lengths, device=table.device)
        return F.normalize(self.clip.encode_embeddings(texts, lengths), dim=-1)

    def features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to scaled embeddings (B, embedding)."""
        return self.clip.scale * F.normalize(self.clip.encode_image(x), dim=-1)

    def head(self, features: Tensor) -> Tensor:
        """Logits (B, classes) of what `features` gives."""
        return features @ self.texts().T

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
