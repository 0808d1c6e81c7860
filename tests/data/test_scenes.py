"""Generated scenes: what is in them, what is held out of pre-training, and that draws are addressed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlab_core.data import load_dataset
from fedlab_core.data.scenes import (
    COLOURS,
    COMBINATIONS,
    PRETRAINING,
    SHAPES,
    TASK,
    TEXTURES,
    class_names,
    draw_scenes,
    split_scenes,
)
from fedlab_core.models.weights.shipped import VOCABULARY
from fedlab_core.randomness import generator


def test_the_clients_classes_are_not_among_those_of_pre_training() -> None:
    assert set(TASK) | set(PRETRAINING) == set(COMBINATIONS) and not set(TASK) & set(PRETRAINING)
    assert not set(class_names("task")) & set(class_names("pretraining"))
    for split in (TASK, PRETRAINING):  # every shape and every texture is in both, as often as any other
        assert [sum(s == k for s, _ in split) for k in range(len(SHAPES))] == [2] * 8
        assert [sum(t == k for _, t in split) for k in range(len(TEXTURES))] == [4] * 4
    assert class_names("task")[:4] == ("solid circle", "striped circle", "striped ring", "checkered ring")
    assert "striped triangle" in class_names("pretraining")


@settings(max_examples=20)
@given(st.sampled_from(["task", "pretraining"]), st.integers(1, 60), st.integers(0, 9))
def test_captions_and_labels_say_what_is_drawn(split: str, n: int, seed: int) -> None:
    drawn, y = split_scenes(split, n, generator(seed, "a"))
    names = class_names(split)
    for caption, label, shape, texture in zip(drawn.captions(), y, drawn.shape, drawn.texture, strict=True):
        assert caption.endswith(names[label]) and names[label] == f"{TEXTURES[texture]} {SHAPES[shape]}"
    assert VOCABULARY.encode(drawn.captions()).shape == (n, VOCABULARY.length)
    again, _ = split_scenes(split, n, generator(seed, "a"))
    assert torch.equal(drawn.x, again.x) and drawn.captions() == again.captions()
    other, _ = split_scenes(split, n, generator(seed, "b"))
    assert not torch.equal(drawn.x, other.x)


def test_a_colour_shows_in_the_picture() -> None:
    """Where a picture differs most from its ground it has its caption's colour: checked on large solid squares."""
    n = 300
    drawn = draw_scenes(torch.full((n,), SHAPES.index("square")), torch.zeros(n).long(), generator(0, "squares"))
    paints = torch.tensor(list(COLOURS.values()))
    pixels = drawn.x.float().div(255).flatten(2)
    near = ((pixels[:, None] - paints[None, :, :, None]) ** 2).sum(2)  # (n, colours, pixels)
    votes = (near < 0.06).sum(2)
    assert float((votes.argmax(1) == drawn.colour).float().mean()) > 0.9


def test_textures_and_shapes_differ_in_the_picture() -> None:
    """The share of the dark marks in the shape tells solid from textured; a bar covers less than a square."""
    n, texture = 400, torch.arange(400) % 4
    squares = draw_scenes(torch.full((n,), SHAPES.index("square")), texture, generator(0, "marks"))
    bars = draw_scenes(torch.full((n,), SHAPES.index("bar")), texture, generator(0, "marks"))
    assert torch.equal(squares.colour, bars.colour), "only the shape differs"
    darkness = (squares.x.amax(1) < 90).float().flatten(1).mean(1)
    assert (darkness[texture == 0].mean() < darkness[texture == 3].mean() < darkness[texture == 1].mean()).item()
    changed = (squares.x.int() - bars.x.int()).abs().amax(1).flatten(1) > 60
    assert float(changed.float().mean()) > 0.05


def test_the_data_set_is_balanced_seeded_and_draws_from_no_global_generator() -> None:
    before = torch.get_rng_state()
    data = load_dataset("scenes", per_class=3, test_per_class=2)
    assert torch.equal(before, torch.get_rng_state())
    assert data.input_shape == (3, 32, 32) and data.classes == class_names("task")
    assert torch.bincount(data.y).tolist() == [3] * 16 and torch.bincount(data.test_y).tolist() == [2] * 16
    assert data.fingerprint == load_dataset("scenes", per_class=3, test_per_class=2).fingerprint
    other = load_dataset("scenes", per_class=3, test_per_class=2, seed=1)
    assert not (data.x == other.x).flatten(1).all(1).any()
    assert not torch.equal(data.x[:32], data.test_x)
    assert load_dataset("scenes", split="pretraining", per_class=1, test_per_class=1).classes == class_names(
        "pretraining"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "both"}, "split='both', accepted: .*task.*pretraining"),
        ({"per_class": 0}, "per_class=0"),
        ({"test_per_class": -1}, "test_per_class=-1"),
    ],
)
def test_what_is_out_of_range_is_said(options: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_dataset("scenes", **options)


def test_shapes_and_textures_have_numbers() -> None:
    with pytest.raises(ValueError, match="texture: 4 to 4, accepted: 0 to 3"):
        draw_scenes(torch.tensor([0]), torch.tensor([4]), generator(0, "a"))
    with pytest.raises(ValueError, match="two vectors"):
        draw_scenes(torch.tensor([0]), torch.tensor([1, 2]), generator(0, "a"))
    empty = draw_scenes(torch.tensor([]).long(), torch.tensor([]).long(), generator(0, "a"))
    assert empty.x.shape == (0, 3, 32, 32) and empty.captions() == []
