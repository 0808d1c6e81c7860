"""Image folders and text files of one's own: what is used as what, what is refused, and that changes are seen."""

import dataclasses
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedlab_core.data import cache, folder, load_dataset, missing_data
from fedlab_core.data.vision import BATCHES, IDX
from fedlab_core.experiment import Experiment

NUMBERS = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch) -> Path:
    """No test writes to the real user's cache folder."""
    path = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "fedlab"


def grey() -> Image.Image:
    return Image.fromarray(NUMBERS.integers(0, 256, (8, 8), dtype=np.uint8))


def make(place: Path, n: int, picture=lambda label: grey(), classes: str = "ab") -> Path:
    for label, name in enumerate(classes):
        (place / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            picture(label).save(place / name / f"{i}.png")
    return place


def stored(place: Path) -> set[bytes]:
    return {np.array(Image.open(file)).tobytes() for file in place.rglob("*.png")}


def content(x: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in x[:, 0]}


# Parts


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_three_parts_are_used_as_they_are_called(tmp_path, name):
    for part, n in (("train", 5), (name, 3), ("test", 2)):
        make(tmp_path / "p" / part, n)
    data = load_dataset("folder:p", tmp_path)
    assert content(data.x) == stored(tmp_path / "p" / "train")
    assert content(data.split("validation")[0]) == stored(tmp_path / "p" / name)
    assert content(data.test_x) == stored(tmp_path / "p" / "test")
    assert data.validation_y.tolist() == [0] * 3 + [1] * 3 and f"{name}/ for validation" in data.notes
    assert "without test/" not in data.notes


def test_val_without_test_stays_validation_and_the_notes_say_where_tests_come_from(tmp_path):
    make(tmp_path / "p" / "train", 10)
    make(tmp_path / "p" / "val", 4)
    data = load_dataset("folder:p", tmp_path)
    assert content(data.validation_x) == stored(tmp_path / "p" / "val")
    assert content(data.x) | content(data.test_x) == stored(tmp_path / "p" / "train")
    assert (len(data.x), len(data.validation_x), len(data.test_x)) == (16, 8, 4)
    assert "val/ for validation, without test/: 4 of the training images for testing, split by seed 0" in data.notes


def test_parts_that_do_not_fit_are_named(tmp_path):
    make(tmp_path / "p" / "val", 2)
    with pytest.raises(ValueError, match="p has val/ but no train/"):
        load_dataset("folder:p", tmp_path)
    make(tmp_path / "p" / "train", 2, classes="a")
    with pytest.raises(ValueError, match="class 'b' is in .*p/val but not in train/"):
        load_dataset("folder:p", tmp_path)
    make(tmp_path / "p" / "train", 2)
    make(tmp_path / "p" / "validation", 2)
    with pytest.raises(ValueError, match="p has validation/ and val/: keep one of them"):
        load_dataset("folder:p", tmp_path)


def test_whatever_is_ignored_is_counted_and_named(tmp_path):
    make(tmp_path / "p" / "train", 5)
    (tmp_path / "p" / "train" / "a" / "more").mkdir()
    (tmp_path / "p" / "train" / "a" / "more" / "x.png").write_bytes(b"")
    (tmp_path / "p" / "train" / "list.csv").write_text("")
    (tmp_path / "p" / "old").mkdir()
    assert "3 other files ignored (list.csv, more, old)" in load_dataset("folder:p", tmp_path).notes


def test_home_and_absolute_paths(tmp_path, monkeypatch):
    make(tmp_path / "home" / "p", 5)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    there = load_dataset("folder:~/p", tmp_path / "elsewhere")
    assert there.fingerprint == load_dataset(f"folder:{tmp_path}/home/p", tmp_path).fingerprint
    assert missing_data("folder:~/p", tmp_path) == "" and "q" in missing_data("folder:~/q", tmp_path)
    assert Experiment(dataset="folder:~/p").load_data(tmp_path).fingerprint == there.fingerprint


# Pictures


def drawing(label: int) -> Image.Image:
    """Black on transparent ground: the upper or the left half is drawn."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    (pixels[:4] if label else pixels[:, :4])[..., 3] = 255
    return Image.fromarray(pixels)


def test_drawings_in_the_alpha_channel_appear_on_white(tmp_path):
    data = load_dataset(f"folder:{make(tmp_path / 'q', 5, drawing)}", tmp_path)
    expected = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    expected[0, :, :, :4], expected[1, :, :4] = 0, 0
    assert torch.equal(data.x, expected[data.y]) and torch.equal(data.test_x, expected[data.test_y])


@pytest.mark.parametrize("mode", ["LA", "P", "half", "L"])
def test_every_kind_of_transparency_is_drawn_on_white(tmp_path, mode):
    def picture(label):
        if mode == "LA":
            return Image.merge("LA", (Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 0)))
        if mode == "half":
            return Image.new("RGBA", (4, 4), (0, 0, 0, 51))
        image = Image.new("P" if mode == "P" else "L", (4, 4), 0)
        image.info["transparency"] = 0
        return image

    data = load_dataset(f"folder:{make(tmp_path / 'q', 2, picture)}", tmp_path)
    assert data.x.unique().tolist() == [204 if mode == "half" else 255]
    assert data.input_shape[0] == (1 if mode in ("LA", "L") else 3)


# What is refused


def bomb(path: Path) -> None:
    """A small file that says it has 20,000 x 20,000 pixels."""
    Image.new("1", (20_000, 20_000)).save(path)


def link_outside(path: Path) -> None:
    path.unlink()
    grey().save(path.parents[2] / "secret.png")
    path.symlink_to(path.parents[2] / "secret.png")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:40]), "a/1.png cannot be decoded"),
        (bomb, "a/1.png cannot be decoded"),
        (link_outside, "a/1.png is a link to .*secret.png, outside of .*q: put the images themselves there"),
        (lambda p: (p.unlink(), p.symlink_to("nowhere.png")), "a/1.png is no ordinary file"),
        (lambda p: (p.unlink(), p.symlink_to(p.name)), "a/1.png is no ordinary file"),
        (pipe, "a/1.png is no ordinary file"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"size": 8, "channels": 1}])
def test_harmful_files_are_named(tmp_path, harm, says, options):
    make(tmp_path / "q", 3)
    harm(tmp_path / "q" / "a" / "1.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, OSError), match=says):
            load_dataset("folder:q", tmp_path, **options)


def test_links_within_the_folder_and_a_linked_folder_are_fine(tmp_path):
    make(tmp_path / "q", 3)
    (tmp_path / "q" / "a" / "again.png").symlink_to(tmp_path / "q" / "a" / "1.png")
    (tmp_path / "linked").symlink_to(tmp_path / "q")
    assert load_dataset("folder:linked", tmp_path).fingerprint == load_dataset("folder:q", tmp_path).fingerprint
    (tmp_path / "q" / "c").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="q/c is a link to .*, outside of"):
        load_dataset("folder:q", tmp_path)


@pytest.mark.parametrize("size", [0, 2049, 10**6, 3.5, True, "8"])
def test_sizes_are_bounded(tmp_path, size):
    make(tmp_path / "q", 2)
    with pytest.raises(ValueError, match=f"size={size!r}, accepted: a whole number >= 1 and <= 2048"):
        load_dataset("folder:q", tmp_path, size=size)


def test_large_images_of_one_size_ask_for_a_size(tmp_path):
    make(tmp_path / "q", 2, lambda label: Image.new("L", (2049, 4)))
    with pytest.raises(ValueError, match="size=None: the images have 4 x 2049 pixels, accepted: up to 2048; give size"):
        load_dataset("folder:q", tmp_path)
    assert load_dataset("folder:q", tmp_path, size=4).input_shape == (1, 4, 4)


# Changes within one process


def test_a_changed_folder_and_another_root_are_seen_at_once(tmp_path, monkeypatch):
    a, b, experiment = tmp_path / "a", tmp_path / "b", Experiment(dataset="folder:p")
    make(a / "p", 5)
    assert len(experiment.load_data(a).x) == 8
    make(a / "p", 20)
    assert len(experiment.load_data(a).x) == len(load_dataset("folder:p", a).x) == 32
    make(b / "p", 50)
    for root, n in ((a, 32), (b, 80), (a, 32)):
        monkeypatch.setenv("FEDLAB_DATA", str(root))
        assert len(experiment.load_data().x) == n


def test_cutting_a_cache_off_harms_no_reader(tmp_path):
    make(tmp_path / "q", 30)
    data = load_dataset("folder:q", tmp_path)
    again = load_dataset("folder:q", tmp_path)  # read from the cache
    (path,) = (tmp_path / ".cache").glob("*.safetensors")
    os.truncate(path, 10)
    assert torch.equal(again.x, data.x) and len(again.x.unique()) > 2  # with a mapped file: SIGBUS
    assert load_dataset("folder:q", tmp_path).fingerprint == data.fingerprint


def test_any_changed_byte_of_a_cache_is_noticed(tmp_path):
    images = torch.arange(2 * 12, dtype=torch.uint8).view(2, 3, 2, 2), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0)
    cache.write_images([tmp_path], "key", images)
    path = tmp_path / "key.safetensors"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        found = cache.read_images([tmp_path], "key")
        assert found is None or (torch.equal(found[0], images[0]) and found[1:] == images[1:])
    path.write_bytes(whole)
    assert torch.equal(cache.read_images([tmp_path], "key")[0], images[0])


def test_no_home_and_no_space_cost_only_time(tmp_path, monkeypatch):
    make(tmp_path / "q", 3)
    (tmp_path / ".cache").write_text("no folder")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.warns(UserWarning, match="decoded images are not kept"):
        assert len(load_dataset("folder:q", tmp_path).x) == 4


def test_images_of_old_formats_of_the_cache_are_left_alone(tmp_path):
    make(tmp_path / "q", 3)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "0.images").write_bytes(b"old")
    load_dataset("folder:q", tmp_path)
    assert (tmp_path / ".cache" / "0.images").read_bytes() == b"old"


# Text files

BOOK = """A title

# One
It was dark. Nobody came.
Then somebody came.

The end of one.

# Two
Only one line. But two sentences.

# Three
word
"""


def test_chapters_are_clients(tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    data = load_dataset("text:book.txt", tmp_path, length=20)
    assert data.group_names == ("One", "Two") and data.kind == "text" and data.input_shape == (20,)
    assert "book.txt, 2 chapters, 1 with fewer than two lines left out" in data.notes
    targets = ["".join(data.classes[i] for i in row if i >= 0) for row in data.y[data.groups == 1].tolist()]
    assert "".join(targets) == "Only one line.\n"


def test_paragraphs_are_clients_where_there_are_no_chapters(tmp_path):
    (tmp_path / "notes.txt").write_text("a one\na two\n\nb one. b two!\n\nalone\n\n\nc one\nc two\n")
    data = load_dataset(f"text:{tmp_path}/notes.txt", tmp_path)
    assert data.group_names == ("paragraph 1", "paragraph 2", "paragraph 4") and "3 paragraphs" in data.notes
    (tmp_path / "book.txt").write_text(BOOK)
    assert len(load_dataset("text:book.txt", tmp_path, clients="paragraphs").group_names) == 3
    with pytest.raises(ValueError, match="clients='chapters': .*notes.txt has 0, accepted: 2 or more"):
        load_dataset("text:notes.txt", tmp_path, clients="chapters")


@pytest.mark.parametrize("line", ["CHAPTER I. Down the Rabbit-Hole", "Chapter 12", "Part IV", "## 2", "Kapitel 3"])
def test_headings(tmp_path, line):
    (tmp_path / "b.txt").write_text(f"{line}\none\ntwo\n\n{line}\nthree\nfour\n")
    names = load_dataset("text:b.txt", tmp_path).group_names
    assert names == (line.strip("# "), f"{line.strip('# ')} (2)")


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", {}, "b.txt is empty"),
        (b"\xff\xfe\x00", {}, "b.txt is not UTF-8 text"),
        (b"one line", {}, "b.txt has no chapter or paragraph with two lines or sentences"),
        (b"one\ntwo", {"clients": "roles"}, "clients='roles', accepted: None, 'chapters' or 'paragraphs'"),
        (b"one\ntwo", {"length": 0}, "length=0, accepted: a whole number >= 1"),
        (b"one\ntwo", {"length": 10**9}, "length=1000000000, accepted"),
    ],
)
def test_bad_text_files_are_named(tmp_path, content, options, says):
    (tmp_path / "b.txt").write_bytes(content)
    with pytest.raises(ValueError, match=says):
        load_dataset("text:b.txt", tmp_path, **options)


def test_missing_text_files_say_where_they_go(tmp_path):
    sentence = missing_data("text:b.txt", tmp_path)
    assert f"put it at {tmp_path}/b.txt" in sentence
    with pytest.raises(FileNotFoundError, match="needs a text file, as in text:book.txt"):
        load_dataset("text:b.txt", tmp_path)
    (tmp_path / "b.txt").mkdir()
    with pytest.raises(ValueError, match="b.txt: a folder, accepted: a regular file"):
        load_dataset("text:b.txt", tmp_path)


def test_a_folder_may_be_held_to_its_validation(tmp_path):
    data = load_dataset(f"folder:{make(tmp_path / 'q', 10)}", tmp_path).with_validation(0.25)
    assert len(data.validation_x) == 4 and dataclasses.replace(data).fingerprint == data.fingerprint
    assert folder.PARTS["validation"][0] == "validation"


def linked_mnist(root: Path, outside: Path) -> Path:
    (root / "MNIST").mkdir()
    (outside / "raw").mkdir()
    for name in IDX:
        (outside / "raw" / name).write_bytes(b"anything")
    return root / "MNIST" / "raw"


def linked_cifar(root: Path, outside: Path) -> Path:
    for name in BATCHES:
        (outside / name).write_bytes(b"anything")
    return root / "cifar-10-batches-py"


def linked_text(root: Path, outside: Path) -> Path:
    (outside / "book.txt").write_text("One line.\nTwo lines.\n\nThree lines.\nFour lines.\n")
    return root / "texts"


def linked_photos(root: Path, outside: Path) -> Path:
    make(outside, 3)
    return root / "photos"


@pytest.mark.parametrize(
    ("name", "linked", "below"),
    [
        ("mnist", linked_mnist, "raw"),
        ("cifar10", linked_cifar, ""),
        ("text:texts/book.txt", linked_text, ""),
        ("folder:photos", linked_photos, ""),
    ],
)
def test_links_out_of_the_data_root_are_refused_by_name(
    name: str, linked: Callable[[Path, Path], Path], below: str, tmp_path: Path
) -> None:
    root, outside = tmp_path / "data", tmp_path / "big disk"
    root.mkdir()
    outside.mkdir()
    link = linked(root, outside)
    link.symlink_to(outside / below)
    words = rf"{re.escape(str(link))} is a link to {re.escape(str(outside / below))}, outside of .*\$FEDLAB_DATA"
    with pytest.raises(ValueError, match=words):
        load_dataset(name, root)


def test_a_data_root_that_is_a_link_links_within_it_and_absolute_paths_are_fine(tmp_path: Path) -> None:
    real, root = tmp_path / "big disk", tmp_path / "data"
    real.mkdir()
    root.symlink_to(real)
    linked_text(real, real)
    (real / "again.txt").symlink_to(real / "book.txt")
    (real / "broken.txt").symlink_to(real / "nowhere.txt")
    assert load_dataset("text:again.txt", root).fingerprint == load_dataset("text:book.txt", root).fingerprint
    (tmp_path / "elsewhere.txt").symlink_to(real / "book.txt")
    for path in (tmp_path / "elsewhere.txt", "../elsewhere.txt"):  # named by whoever asks for it
        assert load_dataset(f"text:{path}", real).x.shape == load_dataset("text:book.txt", root).x.shape
    with pytest.raises(FileNotFoundError):
        load_dataset("text:broken.txt", root)
