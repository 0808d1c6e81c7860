"""The small pre-trained networks: what the files are, that their checksums are looked at, and that they can be made."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fedlab_core.data import missing_data
from fedlab_core.data.scenes import PRETRAINING, class_names, split_scenes
from fedlab_core.models.clip import CLIP, zero_shot_weights
from fedlab_core.models.vit import ViT
from fedlab_core.models.weights import shipped as backbones
from fedlab_core.models.weights.shipped import CAPTIONS, FOLDER, LIKE_CIFAR10, RECIPES, VOCABULARY, load_backbone
from fedlab_core.randomness import generator

MADE = [name for name in RECIPES if (FOLDER / f"{name}.safetensors").exists()]
FEW = 200  # test pictures of the pre-training split


def pictures(split: str, n: int, part: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    drawn, y = split_scenes(split, n, generator(0, f"scenes {split}", part))
    return drawn.x, y


def test_the_package_has_every_backbone_and_they_are_small() -> None:
    assert {"vit_weak", "vit_strong", "clip_tiny"} <= set(MADE)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 10e6


@pytest.mark.parametrize("name", MADE)
def test_a_backbone_is_what_its_json_says(name: str) -> None:
    known = load_backbone(name)
    assert isinstance(known.model, CLIP if RECIPES[name].kind == "clip" else ViT)
    assert known.about["recipe"] == dataclasses.asdict(RECIPES[name]), "the recipe has changed: make it again"
    assert len(known.about["classes"]) == len(set(known.about["classes"]))
    assert not set(known.about["classes"]) & set(known.about["left_out"])
    sizes = {n: tuple(t.shape) for n, t in known.model.state_dict().items()}
    blank = backbones.blank(name, len(known.about["classes"]), 0)
    assert sizes == {n: tuple(t.shape) for n, t in blank.state_dict().items()}
    assert not torch.equal(next(known.model.parameters()), next(blank.parameters()))


def test_backbones_of_scenes_have_not_seen_the_clients_classes() -> None:
    for name in ("vit_weak", "vit_strong", "clip_tiny"):
        about = load_backbone(name).about
        assert tuple(about["classes"]) == class_names("pretraining") and len(PRETRAINING) == 16
        assert tuple(about["left_out"]) == class_names("task")


def test_the_stronger_is_better_on_its_own_classes_by_the_accuracy_on_record() -> None:
    x, y = pictures("pretraining", 60 * 16)
    found = {}
    for name in ("vit_weak", "vit_strong", "clip_tiny"):
        known = load_backbone(name)
        mean, std = (torch.tensor(known.about[key]).view(-1, 1, 1) for key in ("mean", "std"))
        with torch.no_grad():
            images = (x / 255 - mean) / std
            if isinstance(known.model, CLIP):
                weights = zero_shot_weights(known.model, VOCABULARY, class_names("pretraining"), CAPTIONS)
                logits = known.model.encode_image(images) @ weights.T
            else:
                logits = known.model(images)
        found[name] = float((logits.argmax(1) == y).float().mean())
        assert found[name] == pytest.approx(known.about["test_accuracy"], abs=0.004)
    assert found["vit_weak"] < found["vit_strong"] - 0.3


def test_clip_tiny_knows_combinations_that_it_has_not_seen() -> None:
    known, (x, y) = load_backbone("clip_tiny"), pictures("task", 320)
    mean, std = (torch.tensor(known.about[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        weights = zero_shot_weights(known.model, VOCABULARY, class_names("task"), CAPTIONS)
        guesses = (known.model.encode_image((x / 255 - mean) / std) @ weights.T).argmax(1)
    assert float((guesses == y).float().mean()) > 3 / 16


def test_a_model_is_the_callers_own() -> None:
    first, second = load_backbone("vit_weak"), load_backbone("vit_weak")
    first.model.head.weight.data.zero_()
    assert second.model.head.weight.abs().sum() > 0 < load_backbone("vit_weak").model.head.weight.abs().sum()


def small(kind: str) -> tuple[backbones.Recipe, str]:
    recipe = backbones.Recipe(kind, epochs=2, per_class=2, batch_size=16)
    return recipe, "clip_tiny" if kind == "clip" else "vit_weak"


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_backbone_can_be_made_again_and_comes_back_bit_by_bit(kind: str, tmp_path: Path) -> None:
    recipe, name = small(kind)
    data = backbones.source(recipe)
    (model, about), (again, _) = (backbones.pretrain(name, recipe, data) for _ in range(2))
    state = model.state_dict()
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in state.items())
    before = backbones.blank(name, data.num_classes, recipe.seed).state_dict()
    assert sum(not torch.equal(t, before[n]) for n, t in state.items()) > len(state) - 3
    backbones.write(name, model, about, tmp_path)
    back = load_backbone(name, tmp_path)
    assert all(torch.equal(t, state[n]) for n, t in back.model.state_dict().items())
    assert back.about["pictures"] == 32 and back.about["recipe"]["epochs"] == 2
    assert back.reads(data).mean == data.mean


def test_what_is_wrong_with_a_backbone_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name='vit_huge', accepted: .*'vit_weak'"):
        load_backbone("vit_huge")
    with pytest.raises(
        FileNotFoundError, match="make them with: python -m fedlab_core.models.weights.shipped vit_weak"
    ):
        load_backbone("vit_weak", tmp_path)
    content = bytearray((FOLDER / "vit_weak.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "vit_weak.safetensors").write_bytes(content)
    (tmp_path / "vit_weak.json").write_text((FOLDER / "vit_weak.json").read_text())
    with pytest.raises(ValueError, match="vit_weak.safetensors has the checksum .*, its JSON says"):
        load_backbone("vit_weak", tmp_path)


def test_the_command_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "vit_weak", small("vit")[0])
    assert backbones.main(["vit_weak", "--folder", str(tmp_path)]) == 0
    said = json.loads((tmp_path / "vit_weak.json").read_text())
    assert said["bytes"] == (tmp_path / "vit_weak.safetensors").stat().st_size and said["seconds"] > 0


def test_the_rate_rises_and_falls() -> None:
    rates = [backbones._rate(step, 100) for step in range(100)]
    assert rates[0] == 0.2 and max(rates) == 1 and rates[-1] < 0.001
    assert rates[5:] == sorted(rates[5:], reverse=True)


@pytest.mark.skipif(bool(missing_data("caltech101")), reason="Caltech-101 is not in the data root")
def test_photographs_leave_out_what_is_in_cifar10() -> None:
    data = backbones.source(RECIPES["vit_caltech"])
    kept = {name.lower() for name in data.classes}
    assert not kept & {name.lower() for name in LIKE_CIFAR10} and len(kept) == data.num_classes
    assert data.num_classes + len(LIKE_CIFAR10) in (101, 102)  # with or without the two kinds of faces
    assert int(data.y.max()) == int(data.test_y.max()) == data.num_classes - 1
    assert int(data.y.min()) == 0
