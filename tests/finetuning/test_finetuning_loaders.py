"""Checkpoints of torchvision's ViT and of transformers' CLIP, tiny and random; and LoRA against peft's."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from small import equal
from torch import Tensor, nn
from torch.nn import functional as F

from fedlab_core.finetuning.accounts import meta_clip, meta_vit_b_16
from fedlab_core.finetuning.modules import LoRA
from fedlab_core.finetuning.tuning import tune
from fedlab_core.models import build_model
from fedlab_core.models.clip import zero_shot_weights
from fedlab_core.models.vit import ViT
from fedlab_core.models.weights.clip import (
    clip_from_open_clip,
    load_clip,
    load_open_clip,
    load_open_clip_tokenizer,
    load_tokenizer,
)
from fedlab_core.models.weights.torchvision_vit import load_vit_b_16, vit_from_torchvision
from fedlab_core.randomness import generator
from fedlab_core.state import State

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports it


def redrawn(model: nn.Module) -> nn.Module:
    """The model with every tensor of numbers drawn anew, so that none is zero or one."""
    draws = generator(0, "checkpoint")
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=draws) * 0.2)
    return model.eval()


# torchvision


def tiny_vit() -> nn.Module:
    made = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 64, num_classes=5)
    return redrawn(made)


def place(name: str) -> str:
    """Where a tensor of torchvision's goes, by rules of its own; the parts of in_proj are told apart elsewhere."""
    for old, new in (
        ("encoder.layers.encoder_layer_", "blocks."),
        ("encoder.pos_embedding", "position"),
        ("encoder.ln", "norm"),
        ("heads.head", "head"),
        ("conv_proj", "embed"),
        ("ln_", "norm"),
        ("mlp.0", "fc1"),
        ("mlp.3", "fc2"),
        ("self_attention.out_proj", "attention.proj"),
    ):
        name = name.replace(old, new)
    return name


def test_a_torchvision_checkpoint_arrives_tensor_by_tensor_and_computes_the_same(tmp_path: Path) -> None:
    theirs, file = tiny_vit(), tmp_path / "tiny.pth"
    torch.save(theirs.state_dict(), file)
    ours = load_vit_b_16(file, heads=2).eval()
    state, left = ours.state_dict(), set(ours.state_dict())
    for name, tensor in theirs.state_dict().items():
        if "in_proj" in name:
            layer, kind = name.split("_")[2].split(".")[0], name.rsplit("_", 1)[1]
            names = [f"blocks.{layer}.attention.{part}.{kind}" for part in "qkv"]
            assert torch.equal(torch.cat([state[n] for n in names]), tensor), name
        else:
            names = [place(name)]
            assert torch.equal(state[names[0]].view(tensor.shape), tensor), name
        left -= set(names)
    assert left == set()
    x = torch.randn(3, 3, 32, 32, generator=generator(0, "x"))
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)
    assert all(p.requires_grad for p in ours.parameters())


def test_other_files_with_the_same_tensors_give_the_same_network(tmp_path: Path) -> None:
    state = tiny_vit().state_dict()
    first = vit_from_torchvision(state, 2)
    safetensors.torch.save_file(state, tmp_path / "tiny.safetensors")
    assert equal(load_vit_b_16(tmp_path / "tiny.safetensors", heads=2).state_dict(), first.state_dict())
    old = {n.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): t for n, t in state.items()}
    assert len(old.keys() & state.keys()) < len(state)
    assert equal(vit_from_torchvision(old, 2).state_dict(), first.state_dict())


def test_the_real_vit_b_16_has_a_place_for_every_tensor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    with torch.device("meta"):
        shapes = torchvision.models.vit_b_16(weights=None).state_dict()
    asked = []

    def fetch(address: str) -> State:
        asked.append(address)
        return {name: torch.zeros(1).expand(tensor.shape) for name, tensor in shapes.items()}

    ours = load_vit_b_16(fetch=fetch)
    assert asked == [torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1.url]
    expected = {n: t.shape for n, t in meta_vit_b_16(1000).state_dict().items()}
    assert {n: t.shape for n, t in ours.state_dict().items()} == expected
    assert ours.blocks[0].attention.heads == 12 and ours.norm.eps == 1e-6


def test_weights_are_looked_for_in_the_data_root_and_a_missing_network_says_where_they_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=f"Put its file at {tmp_path}/vit_b_16-c867db91.pth"):
        load_vit_b_16()
    torch.save(tiny_vit().state_dict(), tmp_path / "vit_b_16-c867db91.pth")
    assert equal(load_vit_b_16(heads=2).state_dict(), vit_from_torchvision(tiny_vit().state_dict(), 2).state_dict())


def test_what_is_no_such_checkpoint_is_named(tmp_path: Path) -> None:
    missing, bad, other, part = (tmp_path / f"{name}.pth" for name in ("missing", "bad", "other", "part"))
    with pytest.raises(FileNotFoundError, match="missing.pth is not there"):
        load_vit_b_16(missing)
    with pytest.raises(ValueError, match="IMAGENET1K_V2.*accepted.*IMAGENET1K_V1"):
        load_vit_b_16("IMAGENET1K_V2")
    bad.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="bad.pth holds no weights that can be read"):
        load_vit_b_16(bad)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), other)
    with pytest.raises(ValueError, match="other.pth lacks 'conv_proj.weight': no weights of a torchvision Vision"):
        load_vit_b_16(other)
    state = tiny_vit().state_dict()
    for change, match in (
        ({"encoder.ln.bias": None}, "lacks tensor: 'norm.bias', and 0 more"),
        ({"extra": torch.zeros(1)}, "has an unknown tensor: 'extra'"),
        ({"encoder.ln.bias": torch.zeros(3)}, r"part.pth: 'norm.bias' has shape \(3,\), not \(16,\)"),
    ):
        torch.save({n: t for n, t in {**state, **change}.items() if t is not None}, part)
        with pytest.raises(ValueError, match=match):
            load_vit_b_16(part, heads=2)


# transformers


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="pip install 'fedlab_core[clip]'")


def tiny_config(transformers: Any, act: str = "quick_gelu", eos: int = 49) -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**vision, "hidden_size": 12, "intermediate_size": 48, "vocab_size": 50, "max_position_embeddings": 9}
    return transformers.CLIPConfig(
        text_config={**text, "eos_token_id": eos, "hidden_act": act},
        vision_config={**vision, "image_size": 32, "patch_size": 8, "hidden_act": act, "layer_norm_eps": 1e-3},
        projection_dim=10,
    )


IDS = torch.tensor([[48, 3, 4, 49, 49, 49, 49, 49, 49], [48, 7, 1, 2, 0, 9, 11, 5, 49]])


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_a_clip_from_transformers_arrives_tensor_by_tensor_and_computes_the_same(
    transformers: Any, tmp_path: Path, act: str
) -> None:
    theirs = redrawn(transformers.CLIPModel(tiny_config(transformers, act)))
    theirs.save_pretrained(tmp_path)
    ours = load_clip(tmp_path, local_only=True).eval()
    left, found = dict(ours.state_dict()), 0
    for name, tensor in theirs.state_dict().items():
        if "position_ids" in name:
            continue
        same = [
            n for n, t in left.items() if t.numel() == tensor.numel() and torch.equal(t.flatten(), tensor.flatten())
        ]
        assert len(same) == 1, name  # every tensor is another, see `redrawn`
        assert same[0].split(".")[-1] == name.split(".")[-1] or "embedding" in name or "_projection" in name
        del left[same[0]]
        found += 1
    assert left == {} and found > 60
    x = torch.randn(3, 3, 32, 32, generator=generator(0, "x"))
    with torch.no_grad():
        output = theirs(pixel_values=x, input_ids=IDS)
        assert torch.allclose(ours(x, IDS), output.logits_per_image, atol=1e-5)
        texts = F.normalize(ours.encode_text(IDS), dim=-1)
        assert torch.allclose(texts, output.text_embeds, atol=1e-5)


def test_the_real_clips_of_transformers_fit(transformers: Any) -> None:
    for patch in (16, 32):
        vision = {"patch_size": patch, "projection_dim": 512}
        with torch.device("meta"):
            theirs = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision))
        ours = meta_clip(patch)
        sizes = [sorted(p.numel() for p in model.parameters()) for model in (theirs, ours)]
        assert sizes[0] == sizes[1]
        biases = [sum(p.numel() for n, p in m.named_parameters() if n.endswith("bias")) for m in (theirs, ours)]
        assert biases == [171_008, 171_008]


def test_every_method_takes_a_loaded_clip(transformers: Any, tmp_path: Path) -> None:
    redrawn(transformers.CLIPModel(tiny_config(transformers))).save_pretrained(tmp_path)
    clip = load_clip(tmp_path, local_only=True)
    x = torch.randn(2, 3, 32, 32, generator=generator(0, "x"))
    for method in ("bias", "layer_norm", "vpt_shallow", "vpt_deep", "adapter", "lora"):
        tuned = tune(clip.image, method, generator(0, "tuning"))
        assert tuned(x).shape == (2, 10)
        if method in ("bias", "layer_norm", "adapter", "lora"):
            assert torch.equal(tuned(x), clip.image(x))


def test_a_clip_that_cannot_be_had_is_named(transformers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    with pytest.raises(FileNotFoundError, match="missing is not there"):
        load_clip(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="openai/clip-vit-base-patch16: no CLIPModel there"):
        load_clip("openai/clip-vit-base-patch16")
    with pytest.raises(FileNotFoundError, match="no CLIPTokenizer there"):
        load_tokenizer("openai/clip-vit-base-patch16", local_only=True)
    redrawn(transformers.CLIPModel(tiny_config(transformers))).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tmp_path}: hidden_act='relu', accepted: .'quick_gelu', 'gelu'"):
        load_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=f"{tmp_path}: holds no CLIPModel that can be read"):
        load_clip(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'fedlab_core\[clip\]'"):
        load_clip(tmp_path)


def test_a_tokenizer_ends_texts_where_clip_reads_them(transformers: Any, tmp_path: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz."
    symbols = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9}))
    tokenizer = load_tokenizer(tmp_path, local_only=True)
    ids = tokenizer.encode(["a red.", "red"])
    assert ids[0].tolist() == [56, 27, 55, 53, 57] and ids.argmax(1).tolist() == [4, 2]
    with pytest.raises(ValueError, match="11 tokens, accepted: 9"):
        tokenizer.encode(["red " * 9])
    config = tiny_config(transformers, eos=57)
    config.text_config.vocab_size = 58
    redrawn(transformers.CLIPModel(config)).save_pretrained(tmp_path)
    clip = load_clip(tmp_path, local_only=True)
    weights = zero_shot_weights(clip, tokenizer, ["red", "a"], ["{}", "a {}"])
    assert torch.allclose(weights.norm(dim=1), torch.ones(2))
    coop = tune(clip, "coop", generator(0, "t"), tokens=4, tokenizer=tokenizer, classes=["red", "a"])
    assert coop(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    symbols[-2:] = reversed(symbols[-2:])
    (tmp_path / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(symbols)}))
    with pytest.raises(ValueError, match="the end token is 56, accepted: the highest id"):
        load_tokenizer(tmp_path, local_only=True)


# open_clip


@pytest.fixture(scope="module")
def open_clip() -> Any:
    return pytest.importorskip("open_clip", reason="pip install 'fedlab_core[clip]'")


TINY = {
    "embed_dim": 10,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 9, "vocab_size": 49408, "width": 12, "heads": 2, "layers": 2},
}


def saved(open_clip: Any, folder: Path, **changes: Any) -> nn.Module:
    """A folder as open_clip keeps a model, and the model."""
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY | changes}))
    theirs = redrawn(open_clip.CLIP(**TINY, **changes))
    safetensors.torch.save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    return theirs


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_a_clip_of_open_clip_arrives_tensor_by_tensor_and_computes_the_same(
    open_clip: Any, tmp_path: Path, quick_gelu: bool
) -> None:
    theirs = saved(open_clip, tmp_path, quick_gelu=quick_gelu)
    ours = load_open_clip(f"local-dir:{tmp_path}").eval()
    left = dict(ours.state_dict())
    for name, tensor in theirs.state_dict().items():
        pieces = tensor.chunk(3) if "in_proj" in name else [tensor.T if "proj" in name.split(".")[-1] else tensor]
        for piece in pieces:
            (same,) = [n for n, t in left.items() if torch.equal(t.flatten(), piece.flatten())]
            del left[same]
    assert left == {}
    x = torch.randn(3, 3, 32, 32, generator=generator(0, "x"))
    ids = load_open_clip_tokenizer(f"local-dir:{tmp_path}").encode(["a red circle", "two blue squares and a dog on it"])
    assert ids.shape == (2, 9) and ids.max(1).values.tolist() == [49407, 49407]
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(x), theirs.encode_image(x), atol=1e-5)
        assert torch.allclose(ours.encode_text(ids), theirs.encode_text(ids), atol=1e-5)


def test_an_open_clip_that_cannot_be_had_is_named(
    open_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    with pytest.raises(FileNotFoundError, match="local-dir:.*missing is not there"):
        load_open_clip(f"local-dir:{tmp_path / 'missing'}")
    with pytest.raises(FileNotFoundError, match="ViT-B-32, .*missing.pt is not there"):
        load_open_clip("ViT-B-32", tmp_path / "missing.pt")
    with pytest.raises(FileNotFoundError, match="ViT-B-32-quickgelu, openai: not there, and could not be downloaded"):
        load_open_clip("ViT-B-32-quickgelu", "openai")
    for name, tag in (("ViT-Z", None), ("ViT-B-32", "unknown")):
        with pytest.raises(ValueError, match=f"{name}.*: no model that can be read"):
            load_open_clip(name, tag)
    saved(open_clip, tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=f"local-dir:{tmp_path}: no model that can be read"):
        load_open_clip(f"local-dir:{tmp_path}")
    vision = TINY["vision_cfg"] | {"pool_type": "avg"}
    with pytest.raises(ValueError, match="a CLIP read at .'avg', 'argmax'., accepted: a CLIP of OpenAI's layout"):
        clip_from_open_clip(open_clip.CLIP(**{**TINY, "vision_cfg": vision}))
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ValueError, match=r"pip install 'fedlab_core\[clip\]'"):
        load_open_clip("ViT-B-32", "openai")


# peft


def small_vit() -> ViT:
    return build_model("vit", (3, 16, 16), 3, generator(0, "weights"), patch=8, dim=16, depth=3, heads=2)


def test_our_lora_is_that_of_peft_in_its_outputs_and_gradients() -> None:
    peft = pytest.importorskip("peft", reason="pip install peft")
    ours = tune(small_vit(), "lora", generator(0, "tuning"), rank=4, alpha=8.0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"], modules_to_save=["head"])
    theirs = peft.get_peft_model(small_vit(), config).base_model.model
    draws = generator(0, "factors")
    for one, two in zip(ours.blocks, theirs.blocks, strict=True):
        for name in "qv":
            mine, other = getattr(one.attention, name), getattr(two.attention, name)
            assert isinstance(mine, LoRA)
            nn.init.normal_(mine.b.weight, generator=draws)
            for factor, pair in ((mine.a, other.lora_A), (mine.b, other.lora_B)):
                pair["default"].weight.data.copy_(factor.weight)
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == sum(
        p.numel() for p in theirs.parameters() if p.requires_grad
    )
    x = torch.randn(4, 3, 16, 16, generator=generator(0, "x"))
    grads: list[list[Tensor]] = []
    for model in (ours, theirs):
        F.cross_entropy(model(x), torch.tensor([0, 1, 2, 0])).backward()
        own = []
        for block in model.blocks:
            for layer in (block.attention.q, block.attention.v):
                factors = (layer.a, layer.b) if model is ours else (layer.lora_A["default"], layer.lora_B["default"])
                own += [factor.weight.grad for factor in factors]
        grads.append(own)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) and bool(a.abs().max() > 0) for a, b in zip(*grads, strict=True))


def test_trap_4_peft_with_every_bias_misses_none_but_those_of_fused_attention() -> None:
    """Releases differ in whether it misses them; with separate Linears it never does."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    config = {"r": 2, "bias": "all"}
    fused = peft.get_peft_model(tiny_vit(), peft.LoraConfig(target_modules=["self_attention"], **config))
    separate = peft.get_peft_model(small_vit(), peft.LoraConfig(target_modules=["q", "v"], **config))
    missed = {}
    for model in (fused, separate):
        biases = {n: p for n, p in model.named_parameters() if n.endswith("bias")}
        missed[model] = {n for n, p in biases.items() if not p.requires_grad}
    assert all("in_proj_bias" in name for name in missed[fused]) and len(missed[fused]) in (0, 3)
    assert missed[separate] == set()
