"""One data set in memory: tensors, names and where they came from."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fedlab_core.randomness import generator

IGNORE = -100  # target of padded positions: the default ignore_index of torch's cross-entropy


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training and test examples with everything needed to read them.

    Args:
        name: what `load_dataset` was asked for.
        kind: "image" or "text".
        x: images, uint8 (n, channels, height, width); text, int64 (n, T) character ids.
        y: images, int64 (n,) class indices; text, int64 (n, T), the next character, -100 where padded.
        test_x: as `x`.
        test_y: as `y`.
        classes: class names; for text the vocabulary, index = id.
        mean: per channel, of the training images / 255; empty for text.
        std: as `mean`; a constant channel has 1.
        groups: int64 (n,), the natural client of each training example, or None.
        group_names: one name per natural client.
        notes: one line: the source, and what to say beside a number.
        test_groups: int64 (test n,), the natural client of each test example, or None.

    Raises:
        ValueError: a field has the wrong type, shape or length.
    """

    name: str
    kind: Literal["image", "text"]
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    notes: str = ""
    test_groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("image", "text"):
            raise ValueError(f"kind must be 'image' or 'text', got {self.kind!r}")
        dtype, ndim = (torch.uint8, 4) if self.kind == "image" else (torch.int64, 2)
        for part, x, y, groups in (
            ("training", self.x, self.y, self.groups),
            ("test", self.test_x, self.test_y, self.test_groups),
        ):
            if x.dtype != dtype or x.ndim != ndim or x.shape[1:] != self.x.shape[1:]:
                raise ValueError(f"{part} x must be {dtype} with {ndim} dimensions, got {x.dtype} {tuple(x.shape)}")
            shape = x.shape[:1] if self.kind == "image" else x.shape
            if y.dtype != torch.int64 or y.shape != shape:
                raise ValueError(f"{part} y must be int64 of shape {tuple(shape)}, got {y.dtype} {tuple(y.shape)}")
            if groups is not None and (groups.dtype != torch.int64 or groups.shape != x.shape[:1]):
                raise ValueError(f"{part} groups must be int64 of shape ({len(x)},), got {tuple(groups.shape)}")
        channels = self.x.shape[1] if self.kind == "image" else 0
        if len(self.mean) != channels or len(self.std) != channels or not all(s > 0 for s in self.std):
            raise ValueError(f"mean and std must have {channels} entries, std > 0, got {self.mean} and {self.std}")

    @property
    def num_classes(self) -> int:
        """Number of classes; for text the size of the vocabulary."""
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (channels, height, width), or (T,) for text."""
        return tuple(self.x.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of the shapes and bytes of x, y, test_x and test_y."""
        digest = hashlib.sha256()
        for tensor in (self.x, self.y, self.test_x, self.test_y):
            digest.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
            for chunk in tensor.split(4096):
                digest.update(chunk.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def prepare(self, x: Tensor) -> Tensor:
        """What a model reads: (x / 255 - mean) / std in float32 for images (n, channels, height, width); text as is.

        Works on the device of `x` and makes a new tensor.
        """
        if self.kind == "text":
            return x
        x = x.to(torch.float32, copy=True).div_(255)
        return x.sub_(x.new_tensor(self.mean).view(-1, 1, 1)).div_(x.new_tensor(self.std).view(-1, 1, 1))

    def subset(self, n: int, test_n: int | None = None, seed: int = 0) -> Dataset:
        """A seeded random subset in the original order; classes, mean, std and group names are kept.

        Args:
            n: training examples, 1 to all.
            test_n: test examples, None for all.
            seed: of the draw.

        Raises:
            ValueError: more examples asked for than there are, or fewer than one.
        """
        chosen = []
        for part, (argument, want, have) in enumerate((("n", n, len(self.x)), ("test_n", test_n, len(self.test_x)))):
            want = have if want is None else want
            if not 1 <= want <= have:
                raise ValueError(f"{argument} must be between 1 and {have}, got {want}")
            chosen.append(torch.randperm(have, generator=generator(seed, "subset", part))[:want].sort().values)
        train, test = chosen
        return dataclasses.replace(
            self,
            x=self.x[train],
            y=self.y[train],
            test_x=self.test_x[test],
            test_y=self.test_y[test],
            groups=None if self.groups is None else self.groups[train],
            test_groups=None if self.test_groups is None else self.test_groups[test],
            notes=f"{self.notes}; {len(train)} of {len(self.x)} training examples (seed {seed})",
        )

    def summary(self) -> dict[str, object]:
        """One row of a table of data sets: plain values, ready for a pandas frame."""
        return {
            "name": self.name,
            "train": len(self.x),
            "test": len(self.test_x),
            "input": "x".join(map(str, self.input_shape)),
            "classes": self.num_classes,
            "natural clients": len(self.group_names) or None,
            "fingerprint": self.fingerprint,
            "notes": self.notes,
        }

    def __repr__(self) -> str:
        what = "x".join(map(str, self.input_shape)) + (" pixels" if self.kind == "image" else " characters")
        clients = f", {len(self.group_names)} natural clients" if self.group_names else ""
        counts = f"{len(self.x)} train / {len(self.test_x)} test"
        return f"Dataset({self.name}: {counts}, {what}, {self.num_classes} classes{clients}; {self.notes})"


def channel_statistics(x: Tensor, chunk: int = 1024) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 per channel, exact integer sums, no float copy of all images.

    Args:
        x: uint8 (n, channels, height, width).
        chunk: images looked at together.

    Returns:
        mean and std, one entry per channel; the std of a constant channel is given as 1.
    """
    total = torch.zeros(x.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in x.split(chunk):
        values = part.cpu().to(torch.int32)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    count = x.shape[0] * x.shape[2] * x.shape[3]
    mean = [t / count / 255 for t in total.tolist()]
    variance = [(s * count - t * t) / count**2 / 255**2 for s, t in zip(squares.tolist(), total.tolist(), strict=True)]
    return tuple(mean), tuple(v**0.5 if v > 0 else 1.0 for v in variance)


def stratified_split(y: Tensor, per_class: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training and test indices with a given number of test examples of every class.

    Args:
        y: int64 (n,) labels.
        per_class: int64 (classes,) test examples of each class.
        draw: generator of the choice.

    Returns:
        sorted indices of the training and of the test examples.
    """
    order = torch.randperm(len(y), generator=draw)
    order = order[y[order].argsort(stable=True)]
    counts = torch.bincount(y, minlength=len(per_class))
    rank = torch.arange(len(y)) - (counts.cumsum(0) - counts)[y[order]]
    test = rank < per_class[y[order]]
    return order[~test].sort().values, order[test].sort().values
