"""A small vision transformer whose Linears all have names of their own, so that methods can address each."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.check import Depth, Size, checked


@checked
class Attention(nn.Module):
    """Multi-head self-attention with q, k, v and proj as Linears of their own; `causal` hides later tokens."""

    def __init__(self, dim: Size, heads: Size, causal: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.heads, self.causal = heads, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).flatten(2))


@checked
class TransformerBlock(nn.Module):
    """Pre-norm block: x + attention(norm1(x)), then x + fc2(gelu(fc1(norm2(x)))); `activation` is the gelu."""

    activation = staticmethod(F.gelu)

    def __init__(self, dim: Size, heads: Size, mlp_ratio: Size, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, mlp_ratio * dim), nn.Linear(mlp_ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


@checked
class ViT(nn.Module):
    """A pre-norm vision transformer (Dosovitskiy et al. 2021) with a class token and learnt positions.

    `pre_norm`, on what the first block reads, does nothing here; CLIP's image tower has a LayerNorm there.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: Size,
        patch: Size = 4,
        dim: Size = 64,
        depth: Depth = 4,
        heads: Size = 4,
        mlp_ratio: Size = 4,
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        if height % patch or width % patch:
            raise ValueError(f"patch={patch}: expected a divisor of the image's height and width, {height} and {width}")
        if dim % heads:
            raise ValueError(f"heads={heads}: expected a divisor of dim={dim}")
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position = nn.Parameter(torch.empty(1, 1 + (height // patch) * (width // patch), dim))
        self.pre_norm: nn.Module = nn.Identity()
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def initialise(self, generator: torch.Generator) -> None:
        """Class token and positions ~ N(0, 0.02^2); the layers are initialised on their own."""
        nn.init.normal_(self.class_token, std=0.02, generator=generator)
        nn.init.normal_(self.position, std=0.02, generator=generator)

    def tokens(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> (B, 1 + patches, dim): class token, then the patches row by row, plus positions."""
        p = self.patch
        patches = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.pre_norm(self.with_class_token(self.embed(patches)))

    def with_class_token(self, patches: Tensor) -> Tensor:
        """(B, patches, dim) -> (B, 1 + patches, dim), positions added."""
        return torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1) + self.position

    def features(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
