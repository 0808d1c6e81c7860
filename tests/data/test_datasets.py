"""Data sets: exact content, exact splits, errors that name what is wrong, a cache that survives kills and rivals."""

import gzip
import hashlib
import http.server
import multiprocessing
import os
import pickle
import platform
import signal
import struct
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedlab_core import files
from fedlab_core.data import Dataset, builtin, cache, data_root, dataset_names, folder, load_dataset, missing_data, text
from fedlab_core.data.statistics import channel_statistics, stratified_split
from fedlab_core.randomness import generator

SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def letters() -> Dataset:
    return load_dataset("letters", per_class=20, test_per_class=5)


@pytest.fixture(scope="module")
def docs() -> Dataset:
    return load_dataset("python_docs")


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test writes to the real user's cache folder."""
    path = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "fedlab"


# Dataset


def test_fingerprint_depends_on_every_tensor_and_nothing_else(digits):
    def make(**changes):
        fields = {name: getattr(digits, name) for name in ("x", "y", "test_x", "test_y")} | changes
        return Dataset("other", "image", classes=digits.classes, mean=(0.0,), std=(1.0,), **fields)

    assert make().fingerprint == digits.fingerprint == load_dataset("digits").fingerprint
    others = {
        make(x=digits.x ^ 1).fingerprint,
        make(y=9 - digits.y).fingerprint,
        make(test_x=digits.test_x ^ 1).fingerprint,
        make(test_y=9 - digits.test_y).fingerprint,
        make(x=digits.x.reshape(-1, 1, 4, 16), test_x=digits.test_x.reshape(-1, 1, 4, 16)).fingerprint,
    }
    assert len(others | {digits.fingerprint}) == 6
    assert len(digits.fingerprint) == 16 and int(digits.fingerprint, 16)


def test_prepare_normalises_training_images_and_leaves_its_input(digits, docs):
    before = digits.x.clone()
    z = digits.prepare(digits.x)
    assert z.dtype == torch.float32 and torch.equal(digits.x, before)
    assert abs(float(z.mean())) < 1e-5 and abs(float(z.std(correction=0)) - 1) < 1e-5
    assert torch.allclose(z, (digits.x.float() / 255 - digits.mean[0]) / digits.std[0], atol=1e-6)
    floating = digits.x.float()
    assert torch.equal(digits.prepare(floating), z) and torch.equal(floating, before.float())
    assert docs.prepare(docs.x) is docs.x and docs.mean == docs.std == ()


@given(seed=SEEDS, n=st.integers(1, 9), channels=st.sampled_from([1, 3]), chunk=st.integers(1, 4))
def test_channel_statistics_are_those_of_float64(seed, n, channels, chunk):
    x = torch.randint(0, 256, (n, channels, 5, 4), dtype=torch.uint8, generator=generator(seed, "test"))
    mean, std = channel_statistics(x, chunk)
    values = x.double().div(255).movedim(1, 0).flatten(1).numpy()
    np.testing.assert_allclose(mean, values.mean(1), atol=1e-12)
    np.testing.assert_allclose(std, values.std(1), atol=1e-12)
    assert channel_statistics(torch.full((n, 1, 2, 2), 7, dtype=torch.uint8)) == ((7 / 255,), (1.0,))


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=SEEDS)
def test_stratified_split_is_exact(labels, seed):
    y = torch.tensor(labels)
    counts = torch.bincount(y, minlength=5)
    train, test = stratified_split(y, counts // 3, generator(seed, "test"))
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(y)))
    assert torch.bincount(y[test], minlength=5).tolist() == (counts // 3).tolist()
    assert train.tolist() == sorted(train.tolist()) and test.tolist() == sorted(test.tolist())


def test_subset_is_seeded_and_keeps_examples_with_their_labels(digits, docs):
    part = digits.subset(50, 20, seed=3)
    place = {(x.numpy().tobytes(), y): i for i, (x, y) in enumerate(zip(digits.x, digits.y.tolist(), strict=True))}
    rows = [place[x.numpy().tobytes(), y] for x, y in zip(part.x, part.y.tolist(), strict=True)]
    assert len(place) == len(digits.x) and rows == sorted(set(rows)) and len(rows) == 50 and len(part.test_x) == 20
    assert (part.classes, part.mean, part.std) == (
        digits.classes,
        digits.mean,
        digits.std,
    ) and "50 of 1437" in part.notes
    assert part.fingerprint == digits.subset(50, 20, seed=3).fingerprint != digits.subset(50, 20, seed=4).fingerprint
    assert torch.equal(digits.subset(50).test_x, digits.test_x)
    texts = docs.subset(300, 100)
    assert texts.group_names == docs.group_names and len(texts.test_groups) == 100
    lines = set(map(tuple, torch.cat((docs.groups[:, None], docs.x, docs.y), 1).tolist()))
    assert all(tuple(line) in lines for line in torch.cat((texts.groups[:, None], texts.x, texts.y), 1).tolist())


@pytest.mark.parametrize("sizes", [(0,), (1438,), (10, 0), (10, 361)])
def test_impossible_subset_says_the_largest(digits, sizes):
    with pytest.raises(ValueError, match="accepted: a whole number >= 1 and <= (1437|360)"):
        digits.subset(*sizes)


def test_malformed_data_set_is_refused(digits):
    good = {name: getattr(digits, name) for name in ("x", "y", "test_x", "test_y", "classes", "mean", "std")}
    for wrong, message in (
        ({"x": digits.x.float()}, "training x must be"),
        ({"test_x": digits.test_x[..., :7]}, "test x must be"),
        ({"y": digits.y[:-1]}, "training y must be"),
        ({"test_y": digits.test_y.int()}, "test y must be"),
        ({"groups": digits.y[:-1]}, "training groups"),
        ({"std": (0.0,)}, "mean and std"),
        ({"mean": ()}, "mean and std"),
        ({"kind": "sound"}, "kind must be"),
    ):
        with pytest.raises(ValueError, match=message):
            Dataset(**({"name": "wrong", "kind": "image"} | good | wrong))


def test_representations_fit_a_line(digits, docs):
    assert repr(digits).startswith("Dataset(digits: 1437 train / 360 test, 1x8x8 pixels, 10 classes; scikit-learn's")
    assert f"{len(docs.group_names)} natural clients" in repr(docs) and "\n" not in repr(docs)


# Names and the data root


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.delenv("FEDLAB_DATA", raising=False)
    assert data_root() == Path(__file__).parents[2] / "data" and (data_root() / "README.md").is_file()
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    assert data_root() == tmp_path and data_root("/else") == Path("/else") and data_root("here").is_absolute()


def test_unknown_name_and_option_say_what_is_known():
    with pytest.raises(ValueError, match="dataset='minst', accepted: digits, letters"):
        load_dataset("minst")
    with pytest.raises(ValueError, match="letters has no option 'sise'; it takes size, per_class"):
        load_dataset("letters", sise=8)
    with pytest.raises(ValueError, match="digits has no option 'download'; it takes none"):
        load_dataset("digits", download=False)


def test_missing_data_agrees_with_loading(tmp_path):
    for name in dataset_names():
        sentence = missing_data(name, tmp_path)
        if name in ("digits", "letters", "scenes", "python_docs"):
            assert sentence == ""
            continue
        assert str(tmp_path) in sentence and "FEDLAB_DATA" in sentence
        options = {"download": False} if name in ("mnist", "fashion_mnist", "cifar10", "cifar100") else {}
        with pytest.raises(FileNotFoundError, match=str(tmp_path)):
            load_dataset(name, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


# Digits and letters


def test_digits_are_scikit_learns_pixel_by_pixel(digits):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.cat((digits.x, digits.test_x)), torch.cat((digits.y, digits.test_y))
    grey = (x.float() * 16 / 255).round().int().flatten(1)
    ours = sorted(map(tuple, torch.cat((grey, y[:, None].int()), 1).tolist()))
    assert ours == sorted(map(tuple, np.column_stack((pixels, labels)).astype(int).tolist()))
    assert (len(digits.x), len(digits.test_x), int(x.max())) == (1437, 360, 255)
    share = np.bincount(digits.test_y) / np.bincount(labels)
    assert np.abs(share - 360 / 1797).max() < 1 / 174  # less than one example of the smallest class


def test_letters_are_seeded_balanced_and_no_digits(letters):
    assert len(letters.classes) == len(set(letters.classes)) == 37 and all(c.isalpha() for c in letters.classes)
    assert sum(c.isupper() for c in letters.classes) == 26
    assert torch.bincount(letters.y).tolist() == [20] * 37 and torch.bincount(letters.test_y).tolist() == [5] * 37
    assert letters.input_shape == (1, 28, 28)
    again = load_dataset("letters", per_class=20, test_per_class=5)
    other = load_dataset("letters", per_class=20, test_per_class=5, seed=1)
    assert torch.equal(letters.x, again.x) and torch.equal(letters.test_x, again.test_x)
    assert not (letters.x == other.x).flatten(1).all(1).any()
    assert not torch.equal(letters.x[: len(letters.test_x)], letters.test_x)


def test_letters_draw_from_no_global_generator():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    load_dataset("letters", size=8, per_class=1, test_per_class=1)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("size", [8, 28, 64])
def test_every_letter_is_bright_and_inside(size):
    data = load_dataset("letters", size=size, per_class=6, test_per_class=1)
    assert data.input_shape == (1, size, size)
    x = data.x.float()
    assert float(x.flatten(1).amax(1).min()) > 90 and float((x > 64).float().mean((1, 2, 3)).max()) < 0.7
    if size == 64:  # a glyph drawn up to the border and not beyond leaves at most a trace on the outermost pixels
        border = torch.cat((x[..., 0, :], x[..., -1, :], x[..., 0], x[..., -1]), 2)
        assert float(border.mean()) < 0.5 and float((border.amax((1, 2)) > 250).float().mean()) < 0.02


def test_glyphs_are_drawn_not_missing_and_differ():
    glyphs, halves = builtin._glyphs()
    ink = glyphs.sum((2, 3, 4))
    assert float(ink.min()) > 100 and float(ink.max()) < 0.9 * builtin.GLYPH**2
    distance = torch.stack([torch.cdist(font, font, p=1) for font in glyphs.flatten(2)])
    assert float((distance + 1e9 * torch.eye(37)).min()) > 50  # a font without letters draws one box for all of them
    assert float(halves.max()) == pytest.approx((builtin.GLYPH + 1) / builtin.CANVAS)


@pytest.mark.parametrize(
    "options",
    [{"size": 3}, {"size": 65}, {"per_class": 0}, {"test_per_class": 0}, {"per_class": 10**9}, {"size": "8"}],
)
def test_letters_options_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}, accepted: a whole number >= [14] and <= "):
        load_dataset("letters", **options)


# Text


def decode(data: Dataset, row: torch.Tensor) -> str:
    return "".join(data.classes[i] for i in row.tolist() if i >= 0)


@given(lines=st.lists(st.text("abc ", max_size=23), min_size=1, max_size=9), length=st.integers(1, 9))
def test_encoding_holds_every_character_once(lines, length):
    vocabulary = {c: i for i, c in enumerate("\n abc")}
    x, y, line = text.encode_lines(lines, vocabulary, length)
    width = (y >= 0).sum(1)
    assert torch.equal(y >= 0, torch.arange(length) < width[:, None]) and int(width.min()) >= 1  # padding only behind
    assert not x[y < 0].any() and torch.all(y[y < 0] == -100)
    for i, expected in enumerate(lines):
        mask = y[line == i] >= 0
        inputs, targets = x[line == i][mask], y[line == i][mask]
        assert "".join("\n abc"[c] for c in targets) == expected + "\n"
        assert inputs[0] == 0 and torch.equal(inputs[1:], targets[:-1])
        assert len(mask) == -(-len(expected + "\n") // length)


def clients(data: Dataset, part: str = "") -> dict[str, str]:
    """Text of every client, decoded from the targets."""
    y = data.test_y if part else data.y
    groups = data.test_groups if part else data.groups
    return {name: "".join(decode(data, row) for row in y[groups == k]) for k, name in enumerate(data.group_names)}


def test_python_docs_are_the_topics_in_order_and_split_80_20(docs):
    topics = text._topics()
    train, test = clients(docs), clients(docs, "test")
    for name in docs.group_names:
        lines = [line.rstrip() for line in topics[name].splitlines() if line.strip()]
        cut = len(lines) * 4 // 5
        assert train[name] == "".join(line + "\n" for line in lines[:cut])
        assert test[name] == "".join(line + "\n" for line in lines[cut:]) != ""
    assert docs.input_shape == (80,) and docs.classes[0] == "\n" and int(docs.y.max()) < docs.num_classes
    assert platform.python_version() in docs.notes and "SHA-256" in docs.notes
    assert load_dataset("python_docs", length=20).input_shape == (20,)


def test_python_docs_share_no_text_between_clients(docs):
    def long(block):
        return [line for raw in block.split("\n") if len(line := raw.strip()) >= 40]

    train = {name: set(long(block)) for name, block in clients(docs).items()}
    tested = [(name, line) for name, block in clients(docs, "test").items() for line in long(block)]
    leaked = [line for name, line in tested if any(line in train[other] for other in train if other != name)]
    assert len(leaked) < 0.03 * len(tested)
    topics = text._topics()
    for name in set(topics) - set(docs.group_names):  # what was left out is a copy
        seen = {line for other in docs.group_names for line in long(topics[other])}
        assert sum(line in seen for line in long(topics[name])) >= 0.3 * len(long(topics[name]))


@pytest.mark.skipif(platform.python_version() != "3.11.7", reason="the text differs between Python versions")
def test_python_docs_of_one_version(docs):
    topics = text._topics()
    assert (len(topics), len(docs.group_names), sum(len(topics[name]) for name in docs.group_names)) == (79, 57, 373223)


def test_copies_are_found_by_long_lines_only():
    lines = [f"a line of its own that is long enough to count, number {i}\n" for i in range(20)]
    topics = {
        "large": "".join(lines[:10]) + "short\n" * 9,
        "copy": "".join(lines[:3] + lines[10:17]),  # 30 % seen
        "fresh": "".join(lines[:2] + lines[10:15]),  # 2 of 7 seen: the copy was dropped, its own lines are not seen
        "short": "short\n" * 8,
    }
    assert text._without_copies(topics) == ["large", "fresh", "short"]


PLAY = (
    "ROMEO:\nAy me!\nWhat is it?\n\nNURSE:\n\nROMEO:\nI say:\n\nmore\n\n"
    "NURSE:\nPeace.\n\nTYBALT:\nOne\r\ntwo\n\n\nROMEO:\nlast\n"
)


def test_shakespeare_roles_speak_in_order(tmp_path):
    (tmp_path / "shakespeare.txt").write_text(PLAY, newline="")
    data = load_dataset("shakespeare", tmp_path, length=12)
    assert data.group_names == ("ROMEO", "TYBALT")  # the nurse has one line
    assert clients(data) == {"ROMEO": "Ay me!\nWhat is it?\nI say:\nmore\n", "TYBALT": "One\n"}
    assert clients(data, "test") == {"ROMEO": "last\n", "TYBALT": "two\n"}
    (tmp_path / "tinyshakespeare.txt").write_text(PLAY.replace("TYBALT", "PARIS"))
    assert load_dataset("shakespeare", tmp_path).group_names == ("ROMEO", "PARIS")


@pytest.mark.parametrize(
    "content", [b"", b" \n\n", b"prose\nwithout roles\n", b"A:\none line\n", b"\xff\xfe\x00broken"]
)
def test_bad_shakespeare_is_named(tmp_path, content):
    (tmp_path / "tinyshakespeare.txt").write_bytes(content)
    with pytest.raises(ValueError, match="tinyshakespeare.txt (is|has) "):
        load_dataset("shakespeare", tmp_path)
    with pytest.raises(ValueError, match="length=0, accepted: a whole number >= 1"):
        load_dataset("python_docs", length=0)


# Image folders


def picture(seed: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    values = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed, "picture"))
    return Image.fromarray(values.numpy())


def make_folder(path: Path, counts: dict[str, int], **options) -> Path:
    for c, (name, count) in enumerate(counts.items()):
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture(100 * c + i, **options).save(path / name / f"{i:02}.png")
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    make_folder(tmp_path / "photos" / "train", {"cat": 4, "dog": 3})
    make_folder(tmp_path / "photos" / "test", {"cat": 1, "dog": 2})
    return tmp_path / "photos"


def test_folder_with_test_part_is_exact(photos, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset("folder:photos", tmp_path)
    expected = torch.stack([torch.from_numpy(np.array(picture(s))).movedim(2, 0) for s in (0, 1, 2, 3, 100, 101, 102)])
    assert torch.equal(data.x, expected) and data.y.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert data.test_y.tolist() == [0, 1, 1] and torch.equal(data.test_x[0], expected[0])
    assert data.classes == ("cat", "dog") and (data.mean, data.std) == channel_statistics(expected)
    assert load_dataset(f"folder:{photos}", tmp_path / "elsewhere").fingerprint == data.fingerprint


def test_folder_without_test_part_is_split_by_seed(tmp_path):
    make_folder(tmp_path / "flat", {"a": 10, "b": 5, "c": 2, "d": 1})
    make_folder(tmp_path / "deep" / "train", {"a": 10, "b": 5, "c": 2, "d": 1})
    data, deep = (load_dataset(f"folder:{name}", tmp_path) for name in ("flat", "deep"))
    assert torch.bincount(data.test_y, minlength=4).tolist() == [2, 1, 1, 0] and len(data.x) == 14
    assert data.fingerprint == deep.fingerprint and "seed 0" in data.notes
    both = [*data.x, *data.test_x]
    assert len({image.numpy().tobytes() for image in both}) == 18  # every image once
    others = {load_dataset("folder:flat", tmp_path, seed=seed).fingerprint for seed in range(4)}
    assert len(others) > 1 and data.fingerprint in others


def test_folder_size_and_channels(tmp_path):
    make_folder(tmp_path / "mixed", {"a": 2, "b": 2}, size=(10, 8))
    assert load_dataset("folder:mixed", tmp_path).input_shape == (3, 8, 10)
    assert load_dataset("folder:mixed", tmp_path, size=4, channels=1).input_shape == (1, 4, 4)
    picture(1, (12, 4), "L").save(tmp_path / "mixed" / "a" / "x.jpg")
    assert load_dataset("folder:mixed", tmp_path).input_shape == (3, 64, 64)
    make_folder(tmp_path / "grey", {"a": 2, "b": 2}, mode="L")
    grey = load_dataset("folder:grey", tmp_path)
    assert grey.input_shape == (1, 6, 6) and len(grey.mean) == 1
    assert load_dataset("folder:grey", tmp_path, channels=3).input_shape == (3, 6, 6)
    half = np.zeros((4, 12), np.uint8)
    half[:, 4:8] = 200  # the middle third is what a centre cut keeps
    for name in ("a", "b"):
        (tmp_path / "cut" / name).mkdir(parents=True)
        Image.fromarray(half).save(tmp_path / "cut" / name / "0.png")
        Image.fromarray(half).save(tmp_path / "cut" / name / "1.png")
    assert torch.all(load_dataset("folder:cut", tmp_path, size=4).x == 200)


def test_photo_on_its_side_is_turned(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "turned" / name).mkdir(parents=True)
        for i in range(2):
            exif = Image.Exif()
            exif[0x0112] = 6  # turn by 90 degrees clockwise to view
            picture(i, (8, 5)).save(tmp_path / "turned" / name / f"{i}.png", exif=exif)
    data = load_dataset("folder:turned", tmp_path)
    expected = torch.from_numpy(np.array(picture(0, (8, 5)).rotate(-90, expand=True))).movedim(2, 0)
    assert data.input_shape == (3, 8, 5) and any(torch.equal(image, expected) for image in [*data.x, *data.test_x])


def test_other_files_are_ignored_and_counted(photos, tmp_path):
    (photos / "train" / "cat" / "Thumbs.db").write_bytes(b"x")
    (photos / "train" / "cat" / ".DS_Store").write_bytes(b"x")
    (photos / "train" / ".ipynb_checkpoints").mkdir()
    data = load_dataset("folder:photos", tmp_path)
    assert len(data.x) == 7 and "1 other files ignored" in data.notes


def broken_png(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda p: (p / "train/cat/01.png").write_bytes(b""), "train/cat/01.png is empty"),
        (lambda p: (p / "train/cat/01.png").write_bytes(b"no image"), "train/cat/01.png cannot be decoded"),
        (lambda p: broken_png(p / "test/dog/00.png"), "test/dog/00.png cannot be decoded"),
        (lambda p: Image.new("I;16", (6, 6)).save(p / "train/cat/01.png"), "train/cat/01.png .*more than 8 bits"),
        (lambda p: (p / "train/emu").mkdir(), "class 'emu' has no image: put some in .*train/emu"),
        (lambda p: (p / "test/emu").mkdir(), "class 'emu' has no image: put some in .*test/emu"),
        (lambda p: make_folder(p / "test", {"emu": 1}), "class 'emu' is in .*test but not in train/"),
        (lambda p: (p / "train").rename(p / "training"), "test/ but no train/"),
    ],
)
def test_folder_errors_name_what_is_wrong(photos, tmp_path, harm, named):
    harm(photos)
    for options in ({}, {"size": 6, "channels": 3}):
        with pytest.raises(ValueError, match=named):
            load_dataset("folder:photos", tmp_path, **options)
    assert not list(tmp_path.glob(".cache/*.safetensors")) and not list(tmp_path.glob(".cache/*.tmp"))


def test_folder_errors_about_the_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/photos: put there one directory of images per class"):
        load_dataset("folder:photos", tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="photos has no class"):
        load_dataset("folder:photos", tmp_path)
    make_folder(tmp_path / "photos", {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="none to test on"):
        load_dataset("folder:photos", tmp_path)
    for name, options, message in (
        ("folder:", {}, "needs a path"),
        ("folder:photos", {"size": 0}, "size=0, accepted: a whole number >= 1"),
        ("folder:photos", {"channels": 2}, "channels=2, accepted: 1 .grey., 3 .colour. or None"),
    ):
        with pytest.raises(ValueError, match=message):
            load_dataset(name, tmp_path, **options)


# The cache of decoded images


def the_cache(root: Path) -> Path:
    (path,) = root.glob(".cache/*.safetensors")
    return path


@pytest.fixture
def settled(monkeypatch):
    """The clock runs ten seconds ahead, so that files just written count as settled."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)


def test_second_load_reads_no_image(photos, tmp_path, settled, monkeypatch):
    first = load_dataset("folder:photos", tmp_path)
    monkeypatch.setattr(folder, "_hash", None)
    monkeypatch.setattr(folder, "_decode", None)
    second = load_dataset("folder:photos", tmp_path)
    assert second.fingerprint == first.fingerprint and second.mean == first.mean


def test_files_just_written_are_read_again(photos, tmp_path, monkeypatch):
    load_dataset("folder:photos", tmp_path)
    assert not list(tmp_path.glob(".cache/*.json"))
    monkeypatch.setattr(folder, "_decode", None)  # the same content is not decoded again
    load_dataset("folder:photos", tmp_path)


def test_changed_content_is_decoded_again_and_moved_content_is_not(photos, tmp_path, settled, monkeypatch):
    first = load_dataset("folder:photos", tmp_path)
    path = photos / "train" / "cat" / "01.png"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    Image.fromarray(255 - np.array(picture(1))).save(path)
    assert path.stat().st_size != len(data) or path.read_bytes() != data
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the change tries to hide
    second = load_dataset("folder:photos", tmp_path)
    assert torch.equal(second.x[1], 255 - first.x[1]) and torch.equal(second.x[0], first.x[0])
    (tmp_path / "photos").rename(tmp_path / "moved")
    monkeypatch.setattr(folder, "_decode", None)
    assert load_dataset("folder:moved", tmp_path).fingerprint == second.fingerprint


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm",
    [
        cut_off,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: flip(path, 100),
        lambda path: flip(path, -1),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
    ],
)
def test_damaged_cache_is_made_anew(photos, tmp_path, settled, harm):
    first = load_dataset("folder:photos", tmp_path)
    content, expected = the_cache(tmp_path).read_bytes(), first.fingerprint
    first = None  # unmap before cutting the file
    harm(the_cache(tmp_path))
    assert load_dataset("folder:photos", tmp_path).fingerprint == expected
    assert the_cache(tmp_path).read_bytes() == content


def test_damaged_index_costs_only_time(photos, tmp_path, settled):
    first = load_dataset("folder:photos", tmp_path)
    (index,) = tmp_path.glob(".cache/*.json")
    for content in ("{", "[]", '{"content": "00"}', files.seal({"content": "00"}).decode()):
        index.write_text(content)
        assert load_dataset("folder:photos", tmp_path).fingerprint == first.fingerprint


def test_writing_to_the_tensors_changes_no_file(photos, tmp_path):
    data = load_dataset("folder:photos", tmp_path)
    content = the_cache(tmp_path).read_bytes()
    data.x.fill_(7)
    assert the_cache(tmp_path).read_bytes() == content and content.count(7) < len(data.x) * 3 * 6 * 6


def test_unwritable_root_uses_the_users_cache(photos, tmp_path, user_cache):
    (tmp_path / ".cache").write_text("a file where the folder would be")
    data = load_dataset("folder:photos", tmp_path)
    assert len(list(user_cache.glob("*.safetensors"))) == 1 and len(data.x) == 7
    user_cache.rename(user_cache.with_name("gone"))
    user_cache.write_text("here too")
    with pytest.warns(UserWarning, match=r"not kept.*\.cache.*fedlab"):  # it costs time, nothing else
        assert load_dataset("folder:photos", tmp_path).fingerprint == data.fingerprint


def test_abandoned_files_are_cleared_and_young_ones_left(photos, tmp_path):
    (tmp_path / ".cache").mkdir()
    old, young = tmp_path / ".cache" / "old.tmp", tmp_path / ".cache" / "young.tmp"
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * cache.STALE,) * 2)
    load_dataset("folder:photos", tmp_path)
    assert not old.exists() and young.exists()


def killed_half_way(root: str, where: str) -> None:
    def die(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "decoding":
        folder._decode = die
    else:  # the file is written, but has not taken its place
        os.replace = die
    load_dataset("folder:photos", root)


def load_together(root: str, barrier, answers) -> None:
    barrier.wait()
    answers.put(load_dataset("folder:photos", root).fingerprint)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize(("where", "left"), [("decoding", 0), ("writing", 1)])
def test_killed_half_way_then_two_processes_at_once(photos, tmp_path, where, left):
    context = multiprocessing.get_context("spawn")
    victim = context.Process(target=killed_half_way, args=(str(tmp_path), where))
    victim.start()
    victim.join(120)
    assert victim.exitcode == -signal.SIGKILL
    assert not list(tmp_path.glob(".cache/*.safetensors")) and len(list(tmp_path.glob(".cache/.*.part"))) == left
    barrier, answers = context.Barrier(2), context.Queue()
    pair = [context.Process(target=load_together, args=(str(tmp_path), barrier, answers)) for _ in range(2)]
    for process in pair:
        process.start()
    found = {answers.get(timeout=120) for _ in pair}
    for process in pair:
        process.join(120)
        assert process.exitcode == 0
    assert found == {load_dataset("folder:photos", tmp_path).fingerprint}
    assert the_cache(tmp_path).stat().st_size > 10 * 3 * 6 * 6


# torchvision's data sets, from tiny files in their layout


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def make_idx(raw: Path, train: int = 5, test: int = 3) -> dict[str, np.ndarray]:
    raw.mkdir(parents=True)
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        images = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8, generator=generator(n, "idx")).numpy()
        arrays |= {f"{part}-images-idx3-ubyte": images, f"{part}-labels-idx1-ubyte": np.arange(n, dtype=np.uint8)}
    for name, array in arrays.items():
        (raw / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize(("name", "directory"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read_exactly(tmp_path, name, directory):
    arrays = make_idx(tmp_path / directory / "raw")
    data = load_dataset(name, tmp_path, download=False)
    assert (data.x[:, 0].numpy() == arrays["train-images-idx3-ubyte"]).all() and data.y.tolist() == [0, 1, 2, 3, 4]
    assert (data.test_x[:, 0].numpy() == arrays["t10k-images-idx3-ubyte"]).all() and data.test_y.tolist() == [0, 1, 2]
    assert data.num_classes == 10 and "not the full set: 5 / 3" in data.notes and not missing_data(name, tmp_path)


def test_bad_idx_files_are_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    arrays = make_idx(raw)
    images, labels = raw / "train-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"
    for path, content, message in (
        (images, idx(arrays[images.name])[:-1], "train-images-idx3-ubyte has 3,935 bytes instead of 3,936"),
        (images, b"", "train-images-idx3-ubyte is no IDX file"),
        (images, b"<html>sorry, not here</html>", "train-images-idx3-ubyte is no IDX file"),
        (labels, idx(np.arange(2, dtype=np.uint8)), "differ in their number of examples"),
        (labels, idx(np.full(3, 10, dtype=np.uint8)), "labels outside 0..9"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_dataset("mnist", tmp_path)
        path.write_bytes(idx(arrays[path.name]))
    load_dataset("mnist", tmp_path)


def sized_idx(raw: Path) -> None:
    """Files with as many examples as the originals, of other content."""
    raw.mkdir(parents=True)
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(np.zeros((n, 28, 28), np.uint8)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.zeros(n, np.uint8)))


@pytest.mark.parametrize(("name", "directory"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_full_idx_files_must_be_the_originals(tmp_path, name, directory):
    sized_idx(tmp_path / directory / "raw")
    with pytest.raises(
        ValueError, match=f"{directory}/raw/train-images-idx3-ubyte is corrupt .its MD5 is not [0-9a-f]{{32}}"
    ):
        load_dataset(name, tmp_path, download=False)


def test_one_changed_byte_of_the_real_mnist_is_named(real_data, tmp_path):
    raw = real_data / "MNIST" / "raw"
    if not raw.is_dir():
        pytest.skip("MNIST is not in the data root")
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for file in raw.iterdir():
        (tmp_path / "MNIST" / "raw" / file.name).write_bytes(file.read_bytes())
    assert load_dataset("mnist", tmp_path).notes == "MNIST"
    flip(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte", 5000)
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte is corrupt"):
        load_dataset("mnist", tmp_path)


def test_legacy_files_never_replace_the_raw_ones(tmp_path):
    arrays = make_idx(tmp_path / "MNIST" / "raw")
    legacy = tmp_path / "MNIST" / "processed"
    legacy.mkdir()
    for name in ("training.pt", "test.pt"):  # torchvision would take these first
        torch.save((torch.full((7, 28, 28), 9, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64)), legacy / name)
    data = load_dataset("mnist", tmp_path, download=False)
    assert (data.x[:, 0].numpy() == arrays["train-images-idx3-ubyte"]).all() and len(data.test_x) == 3


def test_without_network_the_error_says_where_to_put_what(tmp_path):
    for name, file in (("mnist", "MNIST/raw/train-images-idx3-ubyte"), ("cifar100", "cifar-100-python/train")):
        with pytest.raises(
            FileNotFoundError, match=f"{tmp_path}/{file} is missing.*FEDLAB_DATA.*failed: (?s:.)*network"
        ):
            load_dataset(name, tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_download_is_checked_and_unpacked(tmp_path, monkeypatch):
    from torchvision import datasets

    arrays = make_idx(tmp_path / "origin")
    md5 = {}
    for name in arrays:
        packed = gzip.compress((tmp_path / "origin" / name).read_bytes())
        (tmp_path / "origin" / f"{name}.gz").write_bytes(packed)
        md5[f"{name}.gz"] = hashlib.md5(packed).hexdigest()
    handler = type(
        "Handler", (Quiet,), {"__init__": lambda self, *a: Quiet.__init__(self, *a, directory=tmp_path / "origin")}
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr(datasets.MNIST, "resources", [(name, "0" * 32) for name in md5])
        with pytest.raises(FileNotFoundError, match="(?s)Downloading it failed: .*corrupted"):
            load_dataset("mnist", tmp_path / "root")
        monkeypatch.setattr(datasets.MNIST, "resources", list(md5.items()))
        data = load_dataset("mnist", tmp_path / "root")
        server.shutdown()
    assert (data.x[:, 0].numpy() == arrays["train-images-idx3-ubyte"]).all()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    assert load_dataset("mnist", tmp_path / "root").fingerprint == data.fingerprint  # no second download


def make_cifar(root: Path, hundred: bool, monkeypatch) -> np.ndarray:
    """Tiny batches in the layout of the originals, their MD5 made known to torchvision; pixels of the training part."""
    from torchvision import datasets

    source = datasets.CIFAR100 if hundred else datasets.CIFAR10
    base = root / source.base_folder
    base.mkdir(parents=True)
    known, pixels = {}, []
    for k, (name, _) in enumerate((*source.train_list, *source.test_list)):
        data = torch.randint(0, 256, (2, 3072), dtype=torch.uint8, generator=generator(k, "cifar")).numpy()
        pixels.append(data.reshape(2, 3, 32, 32))
        (base / name).write_bytes(pickle.dumps({"data": data, "fine_labels" if hundred else "labels": [k, k + 1]}))
    labels = {source.meta["key"]: [f"class {i}" for i in range(100 if hundred else 10)]}
    (base / source.meta["filename"]).write_bytes(pickle.dumps(labels))
    for path in base.iterdir():
        known[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    for attribute in ("train_list", "test_list"):
        monkeypatch.setattr(source, attribute, [[name, known[name]] for name, _ in getattr(source, attribute)])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": known[source.meta["filename"]]})
    return np.concatenate(pixels[:-1])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_read_exactly_and_only_if_intact(tmp_path, monkeypatch, name):
    with monkeypatch.context() as patch:
        pixels = make_cifar(tmp_path, name == "cifar100", patch)
        make_folder(tmp_path / "cifar10" / "train", {"a": 2, "b": 2})  # the originals come first
        data = load_dataset(name, tmp_path, download=False)
        assert (data.x.numpy() == pixels).all() and data.input_shape == (3, 32, 32) and len(data.test_x) == 2
        assert data.y[:2].tolist() == [0, 1] and data.classes[1] == "class 1" and data.notes == f"CIFAR-{name[5:]}"
    with pytest.raises(ValueError, match="is corrupt .its MD5 is not"):  # against the MD5 of the real files
        load_dataset(name, tmp_path)


def test_cifar10_falls_back_to_the_image_folder(tmp_path):
    make_folder(tmp_path / "cifar10" / "train", {"airplane": 2, "automobile": 2}, size=(32, 32))
    make_folder(tmp_path / "cifar10" / "test", {"airplane": 1, "automobile": 1}, size=(32, 32))
    data = load_dataset("cifar10", tmp_path)
    assert data.notes.startswith("CIFAR-10 (JPEG)") and data.name == "cifar10" and data.input_shape == (3, 32, 32)
    assert data.fingerprint == load_dataset("folder:cifar10", tmp_path).fingerprint


# Real data


def test_real_mnist(load_real):
    data = load_real("mnist", download=False)
    assert (data.x.shape, data.test_x.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28)) and data.notes == "MNIST"
    assert torch.bincount(data.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert round(data.mean[0], 4) == 0.1307 and round(data.std[0], 4) == 0.3081


def test_real_cifar10(load_real):
    data = load_real("cifar10", download=False)
    assert (data.x.shape, data.test_x.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert torch.bincount(data.y).tolist() == [5000] * 10 and torch.bincount(data.test_y).tolist() == [1000] * 10
    assert data.classes[:3] == ("airplane", "automobile", "bird") and data.notes.startswith("CIFAR-10")
    assert torch.allclose(torch.tensor(data.mean), torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3)


def test_real_caltech101(load_real):
    data = load_real("caltech101")
    assert (len(data.x) + len(data.test_x), data.num_classes, data.input_shape) == (8677, 101, (3, 64, 64))
    assert load_real("caltech101", size=32).input_shape == (3, 32, 32)


def test_real_shakespeare(load_real):
    data = load_real("shakespeare")
    assert "First Citizen" in data.group_names and "GLOUCESTER" in data.group_names
    assert clients(data)["First Citizen"].startswith("Before we proceed any further, hear me speak.\n")
    lines = torch.bincount(data.groups) + torch.bincount(data.test_groups)
    assert int(lines.min()) >= 2 and (
        data.notes[:4] != "tiny" or (len(data.group_names), data.num_classes) == (268, 65)
    )
