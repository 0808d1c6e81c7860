"""A CLIP (Radford et al. 2021): an image tower and a text tower whose unit-length embeddings are compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Depth, Many, Size, checked
from fedlab_core.models.layers import initialise
from fedlab_core.models.vit import TransformerBlock, ViT

PADDING = 0
HIGHEST_SCALE = math.log(100)  # of logit_scale, as in section 2.5 of the paper
TEMPLATES = ("a photo of a {}.",)


class Tokenizer(Protocol):
    """What turns captions into token ids (B, T) whose highest id is the end token."""

    def encode(self, captions: Sequence[str]) -> Tensor: ...


@checked
@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer for a fixed list of words.

    Ids: 0 is padding, then the words in their order, then the start token, then the end token. As in CLIP's own
    tokenizer, the end token has the highest id.

    Args:
        words: lower case, each once.
        length: tokens of a caption, start and end included; what is shorter is padded.
    """

    words: tuple[str, ...]
    length: int = 16

    def __post_init__(self) -> None:
        if not self.words or len(set(self.words)) < len(self.words):
            raise ValueError(f"words={self.words!r}, accepted: at least one word, each once")
        if self.length < 3:
            raise ValueError(f"length={self.length!r}, accepted: 3 or more tokens")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of each word."""
        return {word: number for number, word in enumerate(self.words, 1)}

    @property
    def start(self) -> int:
        """Id of the start token."""
        return len(self.words) + 1

    @property
    def end(self) -> int:
        """Id of the end token."""
        return len(self.words) + 2

    @property
    def symbols(self) -> int:
        """Number of ids, padding included."""
        return len(self.words) + 3

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Captions to int64 (B, length): start token, words, end token, padding. Case and .,;: are ignored.

        Raises:
            ValueError: a word that is not in the list, or a caption that is too long.
        """
        ids = torch.full((len(captions), self.length), PADDING)
        for row, caption in zip(ids, captions, strict=True):
            words = caption.lower().translate(str.maketrans("", "", ".,;:")).split()
            if unknown := [word for word in words if word not in self.ids]:
                raise ValueError(f"captions: {caption!r} has the unknown word {unknown[0]!r}, accepted: {self.words}")
            if len(words) > self.length - 2:
                raise ValueError(f"captions: {caption!r} has {len(words)} words, accepted: at most {self.length - 2}")
            row[: len(words) + 2] = torch.tensor([self.start, *(self.ids[word] for word in words), self.end])
        return ids


@checked
class TextTower(nn.Module):
    """A causal pre-norm Transformer over token ids, read at the end token, and a projection `head`."""

    def __init__(
        self, symbols: Size, length: Many, embedding: Size, dim: Size = 64, depth: Depth = 4, heads: Size = 4
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads}: expected a divisor of dim={dim}")
        self.token = nn.Parameter(torch.empty(symbols, dim))
        self.position = nn.Parameter(torch.empty(length, dim))
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, 4, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, embedding, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Tokens ~ N(0, 0.02^2), positions ~ N(0, 0.01^2), as CLIP's; the layers are initialised on their own."""
        nn.init.normal_(self.token, std=0.02, generator=generator)
        nn.init.normal_(self.position, std=0.01, generator=generator)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) to their embeddings (B, T, dim), positions not added."""
        return F.embedding(ids, self.token)

    def forward(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Token embeddings (B, T, dim), without positions, to (B, embedding).

        Args:
            lengths: (B,) tokens of each text, the end token included; what stands behind it is not read.
        """
        x = embeddings + self.position[: embeddings.shape[1]]
        for block in self.blocks:
            x = block(x)
        last = x[torch.arange(len(x), device=x.device), lengths - 1]
        return self.head(self.norm(last))


@checked
class CLIP(nn.Module):
    """Two towers with embeddings of one width.

    Args:
        image: a `ViT` whose number of classes is the width of the embeddings, and whose `head` is the projection.
        text: its `head` gives embeddings of the same width.

    Raises:
        ValueError: the widths differ.
    """

    def __init__(self, image: ViT, text: TextTower) -> None:
        super().__init__()
        if image.head.out_features != text.head.out_features:
            raise ValueError(
                f"image: its embeddings have {image.head.out_features} numbers, those of text {text.head.out_features}"
            )
        self.image, self.text = image, text
        self.logit_scale = nn.Parameter(torch.empty(()))

    def initialise(self, generator: torch.Generator) -> None:
        """A temperature of 0.07; the towers are initialised on their own."""
        nn.init.constant_(self.logit_scale, math.log(1 / 0.07))

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), at most 100."""
        return self.logit_scale.clamp(max=HIGHEST_SCALE).exp()

    def encode_image(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) to embeddings (B, embedding), not normalised."""
        return self.image(images)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) to embeddings (B, embedding), not normalised; a text ends at its highest id."""
        return self.text(self.text.embed(ids), ids.argmax(1) + 1)

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Features of token embeddings (B, T, dim), positions not added, and lengths (B,), see `TextTower`."""
        return self.text(embeddings, lengths)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """Logits (images, texts): scaled cosines. The logits per text are the transpose."""
        image, text = F.normalize(self.encode_image(images), dim=-1), F.normalize(self.encode_text(ids), dim=-1)
        return self.scale * image @ text.T


@checked
@torch.no_grad()
def zero_shot_weights(
    clip: CLIP, tokenizer: Tokenizer, classes: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> Tensor:
    """The zero-shot classifier (Radford et al. 2021, section 3.1.4), (classes, embedding).

    W_c = normalise(mean over the templates of normalise(text(template with c))).

    Args:
        classes: names as they stand in a caption.
        templates: each with one {}.

    Raises:
        ValueError: no class, no template, or one without {}.
    """
    if not classes or not templates or not all("{}" in template for template in templates):
        raise ValueError(f"classes={classes!r}, templates={templates!r}, accepted: at least one of each, with {{}}")
    device = clip.logit_scale.device
    rows = []
    for name in classes:
        ids = tokenizer.encode([template.format(name) for template in templates]).to(device)
        rows.append(F.normalize(clip.encode_text(ids), dim=-1).mean(0))
    return F.normalize(torch.stack(rows), dim=-1)


@checked
def clip_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The symmetric contrastive loss (Radford et al. 2021, figure 3) of a batch of pairs.

    Images with the same caption are positives of each other's captions, with equal shares: duplicates are no false
    negatives. Without duplicates this is CLIP's own loss.

    Args:
        logits: (B, B), as `CLIP` makes them.
        ids: (B, T), the captions.
    """
    same = (ids[:, None] == ids).all(-1).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@checked
def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), which OpenAI's CLIP has for a GELU."""
    return x * torch.sigmoid(1.702 * x)


@checked
def openai_clip(
    patch: Size = 16,
    image_size: Size = 224,
    embedding: Size = 512,
    *,
    dim: Size = 768,
    depth: Depth = 12,
    heads: Size = 12,
    symbols: Size = 49408,
    length: Many = 77,
    text_dim: Size = 512,
    text_depth: Depth = 12,
    text_heads: Size = 8,
) -> CLIP:
    """A CLIP as OpenAI built it, B/16 by default, not initialised: a norm on what the image tower's first block reads,
    no bias in its patch embedding and projection, and `quick_gelu` in both towers."""
    image = ViT((3, image_size, image_size), embedding, patch, dim, depth, heads)
    image.embed = nn.Linear(3 * patch**2, dim, bias=False)
    image.head = nn.Linear(dim, embedding, bias=False)
    image.pre_norm = nn.LayerNorm(dim)
    text = TextTower(symbols, length, embedding, text_dim, text_depth, text_heads)
    for block in (*image.blocks, *text.blocks):
        block.activation = quick_gelu
    return CLIP(image, text)


@checked
def small_clip(
    input_shape: tuple[int, ...],
    vocabulary: Vocabulary,
    generator: torch.Generator,
    embedding: Size = 64,
    *,
    patch: Size = 8,
    dim: Size = 64,
    depth: Depth = 4,
    heads: Size = 4,
    text_dim: Size = 64,
    text_depth: Depth = 2,
) -> CLIP:
    """A freshly initialised small CLIP on the CPU; its image tower is the ViT of `build_model("vit", ...)`.

    Args:
        input_shape: (channels, height, width).
        vocabulary: gives the number of symbols and the length of the texts. To leave room for learnt prompts of m
            tokens, choose its length m longer than the captions need.
        generator: source of every draw.
    """
    with torch.device("meta"):
        image = ViT(input_shape, embedding, patch, dim, depth, heads)
        image.head = nn.Linear(dim, embedding, bias=False)
        model = CLIP(image, TextTower(vocabulary.symbols, vocabulary.length, embedding, text_dim, text_depth, heads))
    model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype))
    initialise(model, generator)
    return model
