"""One data set in memory: tensors, names and where they came from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fedlab_core.check import checked, choice, whole
from fedlab_core.data import checks
from fedlab_core.data.arguments import part_of
from fedlab_core.data.arrays import fields
from fedlab_core.data.examples import read_examples
from fedlab_core.data.measures import LOSSES, Measure, absolute_error, accuracy, constants
from fedlab_core.randomness import generator

ACCURACY: dict[str, Measure] = {"accuracy": accuracy}
PARTS = {"train": ("", "training"), "validation": ("validation_", "validation"), "test": ("test_", "test")}
"""What a split's fields begin with, and what it is called in messages."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training, validation and test examples with everything needed to read them.

    Args:
        name: what `load_dataset` was asked for.
        kind: "image", "text" or "table".
        x: images, uint8 (0..255) or floating (n, channels, height, width); text, int64 (n, T) character ids; tables,
            floating (n, features) or (n, ..., features).
        y: int64 (n,) class indices; for text also int64 (n, T), the next character, -100 where padded; with a loss of
            one's own also floating (n,) or (n, ...).
        test_x, test_y: as `x` and `y`.
        classes: class names; for text the vocabulary, index = id; empty for regression.
        mean: per channel, of the training images / 255, or per feature; floating data may have none and are then read
            as they are; empty for text.
        std: as `mean`; a constant channel has 1.
        groups: int64 (n,), the natural client of each training example, or None.
        group_names: one name per natural client.
        notes: one line: the source, and what to say beside a number.
        test_groups: int64 (test n,), the natural client of each test example, or None.
        validation_x, validation_y: likewise, or None: examples to choose settings by, see `with_validation`.
        loss: None for cross-entropy over `classes` with -100 as padding; or a function `(outputs, targets) -> losses
            (n,)`, one per example, whose mean is minimised; or "mse", which becomes `measures.squared_error`.
        metrics: by name, functions `(outputs, targets) -> values (n,)` whose mean over a split is reported; by default
            "accuracy", or "absolute_error" where there are no classes.

    Raises:
        ValueError: a field has the wrong type, shape or length; wrong values are found by `check`.
    """

    name: str
    kind: Literal["image", "text", "table"]
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    notes: str = ""
    test_groups: Tensor | None = None
    validation_x: Tensor | None = None
    validation_y: Tensor | None = None
    loss: Measure | None = None
    metrics: Mapping[str, Measure] = field(default_factory=lambda: ACCURACY)

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss in LOSSES:
            object.__setattr__(self, "loss", LOSSES[self.loss])
        if not self.classes and self.metrics == ACCURACY:
            object.__setattr__(self, "metrics", {"absolute_error": absolute_error})
        checks.check_kind(self.kind)
        checks.check_names(self)
        checks.check_measures(self.loss, self.metrics)
        for part in self._parts():
            checks.check_part(self, *part)
        entries = {"image": self.x.shape[1], "text": 0, "table": self.x.shape[-1]}[self.kind]
        checks.check_statistics(self.mean, self.std, entries, optional=self.x.is_floating_point())

    def _parts(self) -> Iterator[tuple[str, str, Any, Any, Any]]:
        """What a part's arguments begin with, its name, its inputs, targets and groups."""
        for before, part in PARTS.values():
            x, y, groups = (getattr(self, f"{before}{name}", None) for name in ("x", "y", "groups"))
            if part != "validation" or x is not None or y is not None:
                yield before, part, x, y, groups

    def check(self) -> None:
        """Compare the values with what the class promises: labels within the classes, floats finite.

        Types, shapes and lengths are compared when a data set is made; its values when it is read from arrays or files
        and when a federation is built.

        Raises:
            ValueError: the first value that does not fit, with its place and what is accepted.
        """
        for before, part, x, y, groups in self._parts():
            checks.check_values(self, before, part, x, y, groups)

    @classmethod
    @checked
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        test_x: Any,
        test_y: Any,
        classes: Sequence[str] | None = None,
        *,
        validation: Any = None,
        loss: Measure | Literal["mse"] | None = None,
        metrics: Mapping[str, Measure] | None = None,
        kind: Literal["image", "text", "table"] | None = None,
        standardise: bool | None = None,
        groups: Any = None,
        test_groups: Any = None,
        name: str = "own",
        notes: str = "own arrays",
    ) -> Dataset:
        """A data set from tensors, numpy arrays, lists or data frames.

        Args:
            x: images (n, channels, height, width), (n, height, width, channels) or (n, height, width), bytes or floats;
                tables (n, features); next-character text (n, T) whole numbers.
            y: class indices from 0 or class names (n,); (n, T) for text; any numbers with a loss of one's own. Floating
                targets become float32.
            test_x, test_y: as `x` and `y`.
            classes: names of the classes; by default "0", "1", ... or the words found in `y`.
            validation: inputs and targets, or what `with_validation` takes: a share or a number of training examples.
            loss, metrics: see the class.
            kind: needed where type and shape leave it open, such as whole numbers in a table.
            standardise: bring channels or features to mean 0 and standard deviation 1 of the training part. Default:
                images of bytes only; floats are read as they are.
            groups, test_groups: the natural client of each example, whole numbers or names.

        Raises:
            ValueError: an argument that cannot be read so, named with its value and what is accepted.
        """
        parts, pair = {"": (x, y), "test_": (test_x, test_y)}, isinstance(validation, (tuple, list))
        if pair:
            parts["validation_"] = validation
        clients = {"groups": groups, "test_groups": test_groups}
        known: dict[str, Any] = fields(parts, classes, kind, standardise, clients, loss is not None)
        own: dict[str, Any] = {"loss": loss} if metrics is None else {"loss": loss, "metrics": metrics}
        dataset = cls(name=name, notes=notes, **known, **own)
        dataset.check()
        return dataset if validation is None or pair else dataset.with_validation(validation)

    @classmethod
    def from_torch(
        cls,
        train: Any,
        test: Any,
        classes: Sequence[str] | None = None,
        *,
        validation: Any = None,
        columns: tuple[str | Sequence[str], str] | None = None,
        **options: Any,
    ) -> Dataset:
        """A data set from map-style data sets of torch, torchvision or Hugging Face, each read through once.

        Args:
            train, test: with a length and items (input, target): tensors, arrays, numbers or Pillow images of one size;
                or dictionaries, as Hugging Face's `datasets` give. Random transforms are drawn once.
            classes: names of the classes; by default those the data set knows.
            validation: a third data set, or what `with_validation` takes.
            columns: names of the input and of the target in dictionaries; several inputs make a table. Default: the
                only two there are, or one of a common name.
            options: `loss`, `metrics`, `kind`, `standardise`, `name`, `notes`, as in `from_arrays`.

        Raises:
            ValueError: a data set that cannot be read so; the message names it and the item.
        """
        x, y, names = read_examples("train", train, columns)
        test_x, test_y, _ = read_examples("test", test, columns)
        if hasattr(validation, "__getitem__"):
            validation = read_examples("validation", validation, columns)[:2]
        options = {"name": type(train).__name__, "notes": f"read from {type(train).__qualname__}"} | options
        classes = names if classes is None else classes
        return cls.from_arrays(x, y, test_x, test_y, classes, validation=validation, **options)

    @checked
    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Inputs and targets of "train", "validation" or "test".

        Raises:
            ValueError: an unknown name, or a split without examples.
        """
        choice("split", name, PARTS)
        x, y = (getattr(self, f"{PARTS[name][0]}{field}") for field in "xy")
        if x is None or not len(x):
            remedy = "; make one with dataset.with_validation(0.1)" if name == "validation" else ""
            raise ValueError(f"split={name!r}: {self.name} has no {name} examples{remedy}")
        return x, y

    def with_validation(self, size: float, seed: int = 0) -> Dataset:
        """A copy that keeps some of the training examples for validation, drawn at random, in the original order.

        Args:
            size: a share, 0 < size < 1, or a number of examples, 1 to all but one.
            seed: of the draw.

        Raises:
            ValueError: `size` out of range, or a data set that has validation examples already.
        """
        n, seed = len(self.x), whole("seed", seed)
        if self.validation_x is not None and len(self.validation_x):
            raise ValueError(f"{self.name} has {len(self.validation_x)} validation examples already")
        count = part_of("size", size, n)
        order = torch.randperm(n, generator=generator(seed, "validation")).to(self.x.device)
        held, kept = order[:count].sort().values, order[count:].sort().values
        notes = f"{self.notes}; {len(held)} of {n} training examples for validation (seed {seed})"
        return self._keeping(kept, validation_x=self.x[held], validation_y=self.y[held], notes=notes)

    def _keeping(self, train: Tensor, **changes: Any) -> Dataset:
        """A copy with some of the training examples, by their positions, and other changes."""
        groups = None if self.groups is None else self.groups[train]
        return dataclasses.replace(self, x=self.x[train], y=self.y[train], groups=groups, **changes)

    @property
    def num_classes(self) -> int:
        """Number of classes; for text the size of the vocabulary; 0 for regression."""
        return len(self.classes)

    @property
    def outputs(self) -> int:
        """How many values a model gives per target: the number of classes, or of an example's target values."""
        return len(self.classes) or self.y[0].numel()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (channels, height, width), (T,) for text, (features,) for a table."""
        return tuple(self.x.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the SHA-256 of shapes and bytes of x, y, test_x, test_y and any validation part."""
        digest = hashlib.sha256()
        tensors = [self.x, self.y, self.test_x, self.test_y]
        if self.validation_x is not None and self.validation_y is not None and len(self.validation_x):
            tensors += [self.validation_x, self.validation_y]
        for tensor in tensors:
            digest.update(repr((str(tensor.dtype), tuple(tensor.shape))).encode())
            for chunk in tensor.split(4096):
                digest.update(chunk.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @checked
    def prepare(self, x: Tensor) -> Tensor:
        """What a model reads, a new tensor on the device of `x`.

        Images of bytes: (x / 255 - mean) / std in float32. Floating images and tables: (x - mean) / std per channel or
        feature in their own precision, or `x` itself if there is no mean. Text: `x` itself.
        """
        if not self.mean:
            return x
        if self.x.dtype == torch.uint8:
            x = x.to(torch.float32, copy=True).div_(255)
        shape = (-1, 1, 1) if self.kind == "image" else (-1,)
        mean, std = (constants(values, x.dtype, x.device).view(shape) for values in (self.mean, self.std))
        return x.sub_(mean).div_(std) if self.x.dtype == torch.uint8 else x.sub(mean).div_(std)

    @checked
    def subset(self, n: int, test_n: int | None = None, seed: int = 0) -> Dataset:
        """A seeded random subset in the original order; classes, mean, std and group names are kept.

        Args:
            n: training examples, 1 to all.
            test_n: test examples, None for all.
            seed: of the draw.

        Raises:
            ValueError: more examples asked for than there are, or fewer than one.
        """
        chosen, seed = [], whole("seed", seed)
        for part, (argument, want, have) in enumerate((("n", n, len(self.x)), ("test_n", test_n, len(self.test_x)))):
            want = have if want is None else whole(argument, want, 1, have)
            chosen.append(torch.randperm(have, generator=generator(seed, "subset", part))[:want].sort().values)
        train, test = chosen
        own = {name: getattr(self, name) for name in ("test_x", "test_y", "test_groups")}
        own = {name: None if tensor is None else tensor[test] for name, tensor in own.items()}
        notes = f"{self.notes}; {len(train)} of {len(self.x)} training examples (seed {seed})"
        return self._keeping(train, notes=notes, **own)

    def __repr__(self) -> str:
        unit = {"image": "pixels", "text": "characters", "table": "features"}[self.kind]
        what = f"{'x'.join(map(str, self.input_shape))} {unit}"
        clients = f", {len(self.group_names)} natural clients" if self.group_names else ""
        held = "" if self.validation_x is None else f" / {len(self.validation_x)} validation"
        targets = f"{self.num_classes} classes" if self.classes else f"{self.outputs} target values"
        parts = f"{len(self.x)} train{held} / {len(self.test_x)} test, {what}, {targets}{clients}"
        return f"Dataset({self.name}: {parts}; {self.notes})"
