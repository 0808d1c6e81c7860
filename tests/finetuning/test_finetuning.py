"""Fine-tuning of Transformers: what is trained, what travels, what it costs."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from small import equal, gap, plain_sgd, small_data, split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlab_core.costs import count_flops, step_memory
from fedlab_core.data import Dataset
from fedlab_core.data.statistics import some_of_each
from fedlab_core.federation import Federation
from fedlab_core.finetuning.accounts import (
    TABLE,
    anatomy,
    classification_loss,
    cost_table,
    meta_clip,
    meta_vit_b_16,
    payload,
    payload_table,
)
from fedlab_core.finetuning.classifiers import HEADS, class_means, cosine_classifier, with_head
from fedlab_core.finetuning.modules import Bottleneck, LoRA
from fedlab_core.finetuning.shots import few_shot_clients
from fedlab_core.finetuning.tuning import TUNINGS, tune
from fedlab_core.local.work import task_loss
from fedlab_core.methods.client import FedDyn, FedProx, Moon, Scaffold
from fedlab_core.methods.fedavg import LocalOnly
from fedlab_core.methods.server import FedAdam
from fedlab_core.models import build_model
from fedlab_core.models.clip import CLIP, Vocabulary, clip_loss, small_clip, zero_shot_weights
from fedlab_core.models.vit import ViT
from fedlab_core.partition import dirichlet
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State, frozen_names, get_state, mean_state, state_bytes

CLASSES = ("red circle", "blue circle", "red square")
WORDS = Vocabulary(("a", "photo", "of", "red", "blue", "circle", "square"), 12)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("full", "head", "bias", "layer_norm")},
    "vpt_shallow": ("vpt_shallow", {"tokens": 2}),
    "vpt_deep": ("vpt_deep", {"tokens": 2}),
    "adapter": ("adapter", {"reduction": 4}),
    "shared adapter": ("adapter", {"reduction": 4, "shared": True}),
    "lora": ("lora", {"rank": 2}),
    "ffa_lora": ("lora", {"rank": 2, "freeze_a": True}),
    "fedclip": ("fedclip", {}),
    "coop": ("coop", {"tokens": 4, "tokenizer": WORDS, "classes": CLASSES}),
}
ON_VIT = [name for name in VARIANTS if name not in ("fedclip", "coop")]


def small_vit(classes: int = 3, **options: int) -> ViT:
    options = {"patch": 8, "dim": 16, "depth": 3, "heads": 2, **options}
    return build_model("vit", (3, 16, 16), classes, generator(0, "weights"), **options)


def tiny_clip() -> CLIP:
    return small_clip((3, 16, 16), WORDS, generator(0, "clip"), 10, dim=16, depth=2, heads=2, text_dim=12)


def tuned(name: str, model: nn.Module | None = None) -> nn.Module:
    method, options = VARIANTS[name]
    if model is None and method == "coop":
        model = tiny_clip()
    elif model is None and method == "fedclip":
        clip = tiny_clip()
        weights = zero_shot_weights(clip, WORDS, CLASSES)
        model = cosine_classifier(clip.image, clip.logit_scale, weights, "text_frozen", generator(0, "head"))
    return tune(model or small_vit(), method, generator(0, "tuning"), **options)


def coloured(n: int = 24, classes: int = 3) -> Dataset:
    """Random 3x16x16 images whose colour tells the class apart."""
    draws = generator(0, "coloured")
    y = torch.arange(n) % classes
    x = torch.randint(0, 120, (n, 3, 16, 16), generator=draws)
    x[torch.arange(n), y % 3] += 100
    x = x.to(torch.uint8)
    return Dataset("coloured", "image", x, y, x[:9], y[:9], CLASSES[:classes], (0.4,) * 3, (0.3,) * 3)


def federate(model: nn.Module, method: Any = None, **changes: Any) -> Federation:
    base = Settings(fraction=1.0, batch_size=4, lr=0.05)
    return Federation(coloured(), split(9, 7, 8), model, base.replace(**changes), method)


def images(n: int = 5) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=generator(1, "images"))


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


# What is trained


@settings(max_examples=25)
@given(st.sampled_from(ON_VIT), st.integers(1, 3), st.sampled_from([8, 12]), st.integers(1, 4), st.integers(1, 5))
def test_every_method_trains_as_many_numbers_as_its_formula(
    name: str, depth: int, dim: int, classes: int, size: int
) -> None:
    model = small_vit(classes, dim=dim, depth=depth)
    before, head = get_state(model), (dim + 1) * classes
    method, options = VARIANTS[name]
    options = {k: size if k in ("tokens", "rank", "reduction") else v for k, v in options.items()}
    width = dim // size
    bottleneck = 2 * dim * width + width + dim
    expected = {
        "full": sum(p.numel() for p in model.parameters()) - head,
        "head": 0,
        "bias": dim + depth * (4 * dim + 4 * dim + dim + 2 * dim) + dim,  # patches; q, k, v, proj, fc1, fc2, norms
        "layer_norm": (2 * depth + 1) * 2 * dim,
        "vpt_shallow": size * dim,
        "vpt_deep": depth * size * dim,
        "adapter": depth * bottleneck,
        "shared adapter": bottleneck,
        "lora": depth * 2 * 2 * size * dim,
        "ffa_lora": depth * 2 * size * dim,
    }[name]
    made = tune(model, method, generator(0, "tuning"), **options)
    assert (payload(made).body, payload(made).head) == (expected, head)
    assert equal(before, get_state(model)) and not frozen_names(model), "the caller's model is left alone"
    assert made(images()).shape == (5, classes)


@pytest.mark.parametrize("name", ["head", "bias", "layer_norm", "adapter", "shared adapter", "lora", "ffa_lora"])
def test_what_is_added_changes_nothing_at_first(name: str) -> None:
    assert torch.equal(tuned(name)(images()), small_vit()(images()))


@pytest.mark.parametrize("name", VARIANTS)
def test_draws_are_addressed_and_no_global_seed_is_touched(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again = tuned(name), tuned(name)
    assert equal(get_state(first), get_state(again))
    assert torch.equal(before, torch.random.get_rng_state())
    method, options = VARIANTS[name]
    if method in ("vpt_shallow", "vpt_deep", "adapter", "lora", "fedclip", "coop"):
        model = tiny_clip() if name == "coop" else small_vit()
        if name != "fedclip":
            other = tune(model, method, generator(1, "tuning"), **options)
            assert not equal(get_state(first), get_state(other))


@pytest.mark.parametrize("name", VARIANTS)
def test_only_what_is_trained_gets_a_gradient_and_all_of_it_does(name: str) -> None:
    model = tuned(name)
    if "adapter" in name or "lora" in name:  # whose second factor starts at zero, so that the first has none at first
        for module in model.modules():
            if isinstance(module, Bottleneck | LoRA):
                nn.init.ones_((module.up if isinstance(module, Bottleneck) else module.b).weight)
    task_loss(model(images()), torch.arange(5) % 3).backward()
    found = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 1e-12)}
    keys = {n for n in trained_names(model) if n.endswith("attention.k.bias")}  # softmax does not see it
    assert found - keys == trained_names(model) - keys
    assert frozen_names(model) == {n for n, _ in model.named_parameters()} - trained_names(model)


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_in_a_tuned_model_depends_on_its_mode(name: str) -> None:
    model = tuned(name)
    assert torch.equal(model.train()(images()), model.eval()(images()))


def test_trap_1_an_adapter_of_zeros_never_learns_and_ours_does() -> None:
    y = torch.arange(5) % 3
    for zeros in (True, False):
        model = tuned("adapter")
        if zeros:
            for module in model.modules():
                if isinstance(module, Bottleneck):
                    nn.init.zeros_(module.down.weight)
        before = get_state(model)
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for _ in range(5):
            optimiser.zero_grad()
            task_loss(model(images()), y).backward()
            optimiser.step()
        moved = {n for n, t in model.state_dict().items() if "bottleneck" in n and not torch.equal(t, before[n])}
        kinds = {name.split("bottleneck.")[1] for name in moved}
        assert kinds == ({"up.bias"} if zeros else {"down.weight", "down.bias", "up.weight", "up.bias"})


def test_trap_2_one_adapter_for_all_blocks_is_counted_sent_and_stepped_once() -> None:
    model = tuned("shared adapter")
    bottleneck = [n for n in model.state_dict() if "bottleneck" in n]
    assert len(bottleneck) == 4 and all(n.startswith("blocks.0.") for n in bottleneck)
    other = copy.deepcopy(model)
    own = other.blocks[0].fc2.bottleneck
    assert all(block.fc2.borrowed[0] is own for block in other.blocks[1:])
    nn.init.ones_(own.up.weight)
    assert not torch.equal(other(images()), model(images()))
    separate = tuned("adapter")  # the gradient of the one is the sum over the blocks of those of the many
    for module in (*model.modules(), *separate.modules()):
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.down.weight, 0.01)
            nn.init.constant_(module.up.weight, 0.02)
    for m in (model, separate):
        task_loss(m(images()), torch.arange(5) % 3).backward()
    total = sum(block.fc2.bottleneck.up.weight.grad for block in separate.blocks)
    assert torch.allclose(model.blocks[0].fc2.bottleneck.up.weight.grad, total, atol=1e-6)


def test_trap_3_a_filter_with_a_dot_misses_the_biases_of_fused_attention() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16(weights=None)
    sizes = {n: p.numel() for n, p in theirs.named_parameters() if not n.startswith("heads.")}
    found = sum(size for n, size in sizes.items() if n.endswith("bias"))
    dotted = sum(size for n, size in sizes.items() if n.endswith(".bias"))
    assert (found, found - dotted) == (102_912, 27_648)
    ours = tune(meta_vit_b_16(), "bias", generator(0, "tuning"))
    assert payload(ours).body == 102_912
    clip = {n: p.numel() for n, p in meta_clip().named_parameters() if n.endswith("bias")}
    fused = sum(size for n, size in clip.items() if n.split(".")[-2] in ("q", "k", "v"))
    assert (sum(clip.values()), fused) == (171_008, 46_080)
    assert sum(size for n, size in clip.items() if n.startswith("image.")) == 102_912


# Prompts


def test_deep_prompts_are_fresh_in_every_block_and_the_old_ones_are_thrown_away() -> None:
    model, x = tuned("vpt_deep"), images()
    seen, left = [], []
    for block in model.blocks:
        block.block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        block.block.register_forward_hook(lambda _, inputs, output: left.append(output))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    logits = model(x)
    for number, (read, block) in enumerate(zip(seen, model.blocks, strict=True)):
        assert read.shape == (5, 1 + 2 + 4, 16)
        assert torch.equal(read[:, 1:3], block.prompt.expand(5, -1, -1))
        if number:
            assert torch.equal(read[:, 3:], left[number - 1][:, 3:]) and torch.equal(
                read[:, :1], left[number - 1][:, :1]
            )
    grads = torch.autograd.grad(logits.sum(), left[:-1])
    assert all(bool((grad[:, 1:3] == 0).all()) and bool((grad[:, 3:] != 0).any()) for grad in grads)


def test_shallow_prompts_go_through_all_blocks() -> None:
    model, plain, x = tuned("vpt_shallow"), small_vit(), images()
    tokens = plain.tokens(x)
    y = torch.cat([tokens[:, :1], model.blocks[0].prompt.expand(5, -1, -1), tokens[:, 1:]], 1)
    for block in plain.blocks:
        y = block(y)
    assert torch.equal(model(x), plain.head(plain.norm(y)[:, 0]))
    bound = (6 / (3 * 8 * 8 + 16)) ** 0.5
    assert 0.5 * bound < model.blocks[0].prompt.abs().max() <= bound


# CLIP


def test_the_loss_without_duplicates_is_the_symmetric_cross_entropy() -> None:
    logits = torch.randn(3, 3, generator=generator(0, "logits"))
    ids, target = torch.arange(3)[:, None], torch.arange(3)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert torch.allclose(clip_loss(logits, ids), expected)


def test_equal_captions_are_no_negatives_of_each_other() -> None:
    clip, x = tiny_clip(), images(4)
    ids = WORDS.encode(["red circle", "red circle", "blue circle", "red circle"])
    same = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]).float()
    logits = 20 * same  # a perfect model
    assert clip_loss(logits, ids).item() == pytest.approx(3 * math.log(3) / 4, abs=1e-6)
    order = [2, 0, 3, 1]
    assert torch.allclose(clip_loss(clip(x, ids), ids), clip_loss(clip(x[order], ids[order]), ids[order]), atol=1e-6)


def test_texts_are_read_at_their_end_and_what_follows_is_not_seen() -> None:
    clip, ids = tiny_clip(), WORDS.encode(["a red circle"])
    other = ids.clone()
    other[0, 5:] = WORDS.ids["blue"]  # behind the end token
    assert torch.equal(clip.encode_text(ids), clip.encode_text(other))
    assert torch.equal(clip.encode_text(ids), clip.encode_embeddings(clip.text.embed(ids), torch.tensor([5])))
    assert torch.allclose(clip.encode_text(ids), clip.encode_text(ids[:, :5]), atol=1e-6)
    with torch.no_grad():
        clip.logit_scale.fill_(10.0)
    assert clip.scale.item() == pytest.approx(100.0)


def test_a_vocabulary_encodes_words_and_names_what_it_does_not_know() -> None:
    assert WORDS.encode(["A red circle."])[0].tolist() == [WORDS.start, 1, 4, 6, WORDS.end, *[0] * 7]
    assert WORDS.end == WORDS.symbols - 1 == 9
    with pytest.raises(ValueError, match="'green'"):
        WORDS.encode(["a green circle"])
    with pytest.raises(ValueError, match="at most 10"):
        WORDS.encode(["red " * 11])
    with pytest.raises(ValueError, match="each once"):
        Vocabulary(("red", "red"))
    with pytest.raises(ValueError, match="3 or more"):
        Vocabulary(("red",), 2)


def test_the_zero_shot_head_is_its_formula_and_the_classifier_is_clip() -> None:
    clip, templates = tiny_clip(), ("a photo of a {}.", "a {}")
    weights = zero_shot_weights(clip, WORDS, CLASSES, templates)
    for row, name in zip(weights, CLASSES, strict=True):
        texts = [F.normalize(clip.encode_text(WORDS.encode([t.format(name)]))[0], dim=0) for t in templates]
        assert torch.allclose(row, F.normalize((texts[0] + texts[1]) / 2, dim=0), atol=1e-6)
    single = zero_shot_weights(clip, WORDS, CLASSES, ["a {}"])
    model = cosine_classifier(clip.image, clip.logit_scale, single, "text_frozen", generator(0, "head"))
    expected = clip(images(), WORDS.encode([f"a {name}" for name in CLASSES]))
    assert torch.allclose(model(images()), expected, atol=1e-5)
    with pytest.raises(ValueError, match="with {}"):
        zero_shot_weights(clip, WORDS, CLASSES, ["a photo"])


def test_heads_differ_in_their_start_and_in_whether_they_are_trained() -> None:
    clip = tiny_clip()
    weights = zero_shot_weights(clip, WORDS, CLASSES)
    made = {h: cosine_classifier(clip.image, clip.logit_scale, weights, h, generator(0, "head")) for h in HEADS}
    logits = {head: model(images()) for head, model in made.items()}
    assert torch.equal(logits["text_frozen"], logits["text_init"])
    assert not torch.allclose(logits["text_init"], logits["random_init"], atol=0.1)
    assert len({tuple(model.state_dict()) for model in made.values()}) == 1
    for method in ("full", "bias", "lora"):
        counts = {head: payload(tune(model, method, generator(0, "t"))) for head, model in made.items()}
        assert counts["text_frozen"].head == 0 and counts["text_init"].head == counts["random_init"].head == 33
        assert len({count.body for count in counts.values()}) == 1
    assert not any("logit_scale" in n for n in trained_names(tune(made["text_init"], "full", generator(0, "t"))))
    with pytest.raises(ValueError, match="accepted.*random_init"):
        cosine_classifier(clip.image, clip.logit_scale, weights, "linear", generator(0, "head"))


def test_class_means_are_a_head_made_of_images() -> None:
    f = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, -1.0]])
    means = class_means(f, torch.tensor([0, 0, 1, 2]), 4)
    half = 0.5**0.5
    assert torch.allclose(means, torch.tensor([[half, half], [1.0, 0.0], [0.0, -1.0], [0.0, 0.0]]))
    vit = small_vit()
    vit.head = nn.Identity()
    weights = class_means(vit(images()), torch.arange(5) % 3, 3)
    model = cosine_classifier(vit, torch.tensor(0.0), weights, "text_init", generator(0, "head"))
    assert payload(tune(model, "head", generator(0, "t"))).trained == 17 * 3


def test_coop_with_the_words_of_a_template_is_that_template() -> None:
    clip, model = tiny_clip(), tuned("coop")
    assert trained_names(model) == {"prompt"} and numbers(model) == 4 * 12
    with torch.no_grad():
        model.prompt.copy_(clip.text.embed(torch.tensor([WORDS.ids[w] for w in ("a", "photo", "of", "a")])))
    weights = zero_shot_weights(clip, WORDS, CLASSES, ["a photo of a {}"])
    classifier = cosine_classifier(clip.image, clip.logit_scale, weights, "text_frozen", generator(0, "head"))
    assert torch.allclose(model(images()), classifier(images()), atol=1e-5)
    assert torch.equal(model(images()), model.head(model.features(images())))
    with pytest.raises(ValueError, match="tokens=9: texts of 13 tokens, accepted: at most 12"):
        tune(clip, "coop", generator(0, "t"), tokens=9, tokenizer=WORDS, classes=CLASSES)


# What travels


@pytest.mark.parametrize("name", VARIANTS)
def test_only_what_is_trained_travels_and_the_rest_stays_the_same_memory(name: str) -> None:
    model = tuned(name)
    run = federate(model, momentum=0.9, weight_decay=0.01).run(3)
    frozen, trained = frozen_names(model), trained_names(model)
    first, original = run.state_at(0), get_state(model)
    for number in (1, 2, 3):
        inside = run.inside(number)
        assert set(inside.sent) == trained, "uploaded names are the trained names"
        for state in (run.state_at(number), *(update.state for update in inside.updates)):
            assert all(state[n].data_ptr() == first[n].data_ptr() for n in frozen)
        costs = run.history[number].costs
        assert costs.bytes_up == costs.bytes_down == 3 * payload(model).bytes
    assert all(torch.equal(run.state[n], original[n]) for n in frozen)
    assert all(not torch.equal(run.state[n], original[n]) for n in trained if not n.endswith("attention.k.bias"))
    kept = {t.data_ptr(): t.numel() * 4 for snapshot in run.timeline for t in snapshot.tensors()}
    assert sum(kept.values()) == 4 * (payload(model).held + 4 * payload(model).trained)
    assert sum(run.timeline._bytes.values()) == sum(kept.values())


@pytest.mark.parametrize("name", VARIANTS)
def test_threads_give_the_bits_of_loop(name: str) -> None:
    runs = [federate(tuned(name), engine=engine, momentum=0.5).run(2) for engine in ("loop", "threads")]
    assert equal(runs[0].state, runs[1].state)
    assert [r.metrics for r in runs[0].history] == [r.metrics for r in runs[1].history]


@pytest.mark.parametrize("name", VARIANTS)
def test_stacked_agrees_or_says_why_not_and_auto_takes_what_works(name: str) -> None:
    model = tuned(name)
    loop, auto = federate(model).run(2), federate(model, engine="auto").run(2)
    assert gap(loop.state, auto.state) < 1e-5
    if name in ("vpt_shallow", "vpt_deep", "coop", "fedclip", "shared adapter"):
        reason = "shares its weights" if name == "shared adapter" else "holds weights of an unknown kind"
        assert auto.history[-1].engine.startswith("auto: threads (") and reason in auto.history[-1].engine
        with pytest.raises(ValueError, match=reason):
            federate(model, engine="stacked").run(1)
    else:
        stacked = federate(model, engine="stacked").run(2)
        assert gap(loop.state, stacked.state) < 1e-5
        assert all(stacked.state[n].data_ptr() == stacked.state_at(0)[n].data_ptr() for n in stacked.roles.frozen)
        for method in (Scaffold(), FedDyn(0.5)):
            runs = [federate(model, method, engine=engine).run(2) for engine in ("loop", "stacked")]
            assert gap(runs[0].state, runs[1].state) < 1e-4
            memories = [run.past.now.clients[0] for run in runs]
            assert {n.split(".", 1)[1] for n in memories[1]} == {n.split(".", 1)[1] for n in memories[0]}
            assert {n.split(".", 1)[1] for n in memories[1]} == trained_names(model)


@pytest.mark.parametrize("method", [FedProx(0.1), Scaffold(), FedDyn(0.5), FedAdam(), Moon(), LocalOnly()])
def test_every_federated_method_leaves_frozen_tensors_alone_and_sends_none(method: Any) -> None:
    model = tuned("bias")
    run = federate(model, method).run(2)
    first, trained = run.state_at(0), trained_names(model)
    assert all(run.state[n].data_ptr() == first[n].data_ptr() for n in run.roles.frozen)
    assert {name.split(".", 1)[1] for name in run.past.now.server} <= trained
    own = [memory for memory in run.past.now.clients.values()]
    assert all(name in trained or name.split(".", 1)[1] in trained for memory in own for name in memory)
    factor = {"SCAFFOLD": 2, "local only": 0}.get(method.name, 1)
    assert run.history[1].costs.bytes_up == factor * 3 * payload(model).bytes
    if method.name == "local only":
        states = [run.client_state(client) for client in range(3)]
        assert len({state["head.weight"][0, 0].item() for state in states}) == 3
        assert all(state[n].data_ptr() == first[n].data_ptr() for state in states for n in run.roles.frozen)


MLP = ("blocks.0.0.weight", "blocks.0.0.bias", "head.weight", "head.bias")


@settings(max_examples=20)
@given(st.sets(st.sampled_from(MLP), max_size=3), st.sampled_from([0.0, 0.9]))
def test_any_parameters_may_be_frozen_and_one_client_is_plain_sgd(frozen: set[str], momentum: float) -> None:
    data = small_data(20)
    model = build_model("mlp", data.input_shape, 3, generator(0, "weights"), hidden=(6,))
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    base = Settings(fraction=1.0, batch_size=None, steps=3, epochs=None, lr=0.1, double=True, weight_decay=0.01)
    run = Federation(data, split(20), model, base.replace(momentum=momentum)).run(1)
    options = {"momentum": momentum, "weight_decay": 0.01}
    alone = plain_sgd(copy.deepcopy(model), data, [torch.arange(20)] * 3, 0.1, **options)
    assert gap(run.state, alone) < 1e-12
    assert {n for n in MLP if run.state[n] is run.state_at(0)[n]} == frozen == run.roles.frozen
    sent = {n: t for n, t in run.state.items() if n not in frozen}
    assert run.history[1].costs.bytes_up == run.history[1].costs.bytes_down == state_bytes(sent)


def test_full_tuning_is_what_it_was_without_this_package() -> None:
    plain, full = federate(small_vit()).run(2), federate(tuned("full")).run(2)
    assert equal(plain.state, full.state) and plain.history[-1].costs == full.history[-1].costs
    assert plain.history[-1].costs.bytes_up == 3 * state_bytes(plain.state)


def test_a_saved_run_holds_the_body_once_and_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    model = tuned("bias")
    run = federate(model).run(3)
    run.save(tmp_path)
    sizes = [file.stat().st_size for file in sorted(tmp_path.glob("round-*"))]
    assert sizes[0] > 4 * payload(model).held and all(size < 0.5 * sizes[0] for size in sizes[1:])
    data, partition = run.dataset, run.partition
    loaded = Federation.load(tmp_path, data, partition, model)
    assert all(equal(loaded.state_at(n), run.state_at(n)) for n in range(4))
    assert equal(loaded.run(1).state, run.run(1).state)
    assert all(loaded.state[n] is loaded.state_at(0)[n] for n in loaded.roles.frozen)
    loaded.save(tmp_path / "again")
    assert equal(Federation.load(tmp_path / "again", data, partition, model).state, run.state)
    fork = run.fork("double", at=2, double=True).run(1)
    fork.save(tmp_path / "fork")
    assert equal(Federation.load(tmp_path / "fork", data, partition, model).state, fork.state)
    with pytest.raises(ValueError, match="model"):  # the same tensors, others of them frozen
        Federation.load(tmp_path, data, partition, tuned("layer_norm"))


def test_a_model_without_anything_to_train_can_be_evaluated_and_says_so_when_run() -> None:
    model = build_model("mlp", (1, 4, 4), 3, generator(0, "initial weights")).requires_grad_(False)
    run = Federation(small_data(20), split(10, 10), model, Settings(1.0))
    assert 0 <= run.evaluate()["test_accuracy"] <= 1
    with pytest.raises(ValueError, match="model: none of its parameters asks for a gradient"):
        run.run(1)


def test_averaging_is_exact_where_a_is_frozen_and_biased_where_both_factors_are_averaged() -> None:
    draws = generator(0, "factors")
    b = [torch.randn(6, 2, generator=draws, dtype=torch.float64) for _ in range(4)]
    a = [torch.randn(2, 5, generator=draws, dtype=torch.float64) for _ in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    mean = mean_state([{"a": x, "b": y, "first": y @ a[0], "own": y @ x} for x, y in zip(a, b, strict=True)], weights)
    assert (mean["b"] @ a[0] - mean["first"]).abs().max() < 1e-12
    assert (mean["b"] @ mean["a"] - mean["own"]).abs().max() > 0.1

    def bias(name: str) -> float:
        run = federate(tuned(name), lr=0.5, double=True).run(2)
        inside, worst = run.inside(2), 0.0
        for block in range(3):

            def update(state: State, at: str = f"blocks.{block}.attention.q") -> Tensor:
                return state[f"{at}.b.weight"] @ state[f"{at}.a.weight"]

            exact = sum(w * update(u.state) for u, w in zip(inside.updates, inside.weights, strict=True))
            worst = max(worst, (update(run.state) - exact).abs().max().item() / exact.abs().max().item())
        return worst

    assert bias("ffa_lora") < 1e-12 < 1e-6 < bias("lora")


# Few shots


@settings(max_examples=30)
@given(st.integers(1, 16), st.integers(2, 5), st.integers(0, 3))
def test_shots_are_counted_per_class_and_nested(shots: int, classes: int, seed: int) -> None:
    data = shapes(16 * classes + 7, classes)
    few, more = (some_of_each(data.y, count, generator(seed, "shots")) for count in (shots, 16))
    assert torch.bincount(data.y[few]).tolist() == [shots] * classes and set(few.tolist()) <= set(more.tolist())
    parts = dirichlet(data.y, 3, 0.5, generator(seed, "partition"))
    kept = few_shot_clients(parts, data.y, shots, seed)
    for client in range(3):
        before = torch.bincount(data.y[parts[client]], minlength=classes)
        after = torch.bincount(data.y[kept[client]], minlength=classes)
        assert torch.equal(after, before.clamp(max=shots))
        assert set(kept[client].tolist()) <= set(parts[client].tolist())


def shapes(n: int, classes: int) -> Dataset:
    x = torch.arange(n, dtype=torch.int64)[:, None, None, None].expand(n, 1, 2, 2)
    x = (x + torch.arange(4).view(1, 1, 2, 2) * 50).to(torch.uint8)
    y = torch.arange(n) % classes
    return Dataset("shapes", "image", x, y, x[:3], y[:3], tuple("abcde"[:classes]), (0.5,), (0.5,))


def test_no_shots_are_refused() -> None:
    with pytest.raises(ValueError, match="shots=0"):
        few_shot_clients(split(9, 15), coloured().y, 0)


# What it costs


def test_the_table_of_payloads_of_vit_b_16_and_clip() -> None:
    expected = {  # numbers, MB, times less than full: computed against torchvision, timm, open_clip and transformers
        "full": (85_875_556, 343.5, 1),
        "head only": (76_900, 0.308, 1117),
        "bias + head": (179_812, 0.719, 478),
        "LayerNorm + head": (115_300, 0.461, 745),
        "VPT shallow k=10 + head": (84_580, 0.338, 1015),
        "VPT deep k=10 + head": (169_060, 0.676, 508),
        "adapter /8, one per block, + head": (1_856_740, 7.43, 46),
        "adapter /8, one shared, + head": (225_220, 0.901, 381),
        "LoRA r=8 on q,v + head": (371_812, 1.49, 231),
        "FFA-LoRA r=8 on q,v + head": (224_356, 0.897, 383),
        "CoOp M=16, no head": (8_192, 0.033, 10_483),
        "FedCLIP feature adapter": (525_312, 2.10, 163),
    }
    rows = payload_table()
    assert list(expected) == [row["method"] for row in rows] == list(TABLE)
    for row in rows:
        trained, megabytes, times = expected[row["method"]]
        assert row["trained"] == trained
        assert row["MB"] == pytest.approx(megabytes, rel=0.01) and int(row["times less"] + 0.5) == times
    head = next(row for row in rows if row["method"] == "bias + head")["head"]
    assert round(100 * head / 179_812) == 43  # always to be told apart


def test_totals_are_those_of_the_real_networks() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vit_b_16(weights=None)
    body = sum(p.numel() for n, p in theirs.named_parameters() if not n.startswith("heads."))
    assert body == sum(p.numel() for p in meta_vit_b_16().parameters()) - 769 * 100 == 85_798_656
    for patch, total, tower in ((16, 149_620_737, 86_192_640), (32, 151_277_313, 87_849_216)):
        clip = meta_clip(patch)
        assert sum(p.numel() for p in clip.parameters()) == total
        assert sum(p.numel() for p in clip.image.parameters()) == tower
        assert total - tower == 63_428_097
    assert payload(tune(meta_vit_b_16(), "full", generator(0, "t"))).held == 0


def test_few_trained_numbers_do_not_mean_little_memory() -> None:
    """A ViT of 12 blocks of width 192, whose step on 32 images was measured with other code; here on 2 of them."""
    model = build_model("vit", (3, 32, 32), 10, generator(0, "weights"), patch=4, dim=192, depth=12, heads=3)
    known = {"full": 296.2, "bias": 186.5, "layer_norm": 186.5, "adapter": 194.1, "lora": 204.0, "head": 1.5}  # MiB
    loss = classification_loss(torch.zeros(2, 3, 32, 32))
    found = {m: step_memory(tune(model, m, generator(0, "t")), loss, moments=2) for m in known}
    kept = {method: 16 * memory.kept / 2**20 for method, memory in found.items()}
    assert kept == pytest.approx(known, rel=0.02)
    with_adam = kept["full"] + (found["full"].total - found["full"].kept) / 2**20
    assert with_adam == pytest.approx(378, rel=0.01)
    assert payload(model).bytes > 60 * found["bias"].gradients and kept["full"] < 2 * kept["bias"]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_anatomy_is_every_number_once_and_knows_what_is_trained(name: str) -> None:
    model = tuned(name)
    rows = anatomy(model)
    count = payload(model)
    assert sum(row["parameters"] for row in rows) == count.trained + count.held
    assert sum(row["trained"] for row in rows) == count.trained
    expected = {
        "head": {"head"},
        "bias": {"embedding", "attention", "MLP", "norms", "head"},
        "layer_norm": {"norms", "head"},
        "vpt_shallow": {"prompt", "head"},
        "adapter": {"adapter", "head"},
        "lora": {"LoRA", "head"},
        "fedclip": {"gate"},
        "coop": {"prompt"},
    }
    if name in expected:
        assert {row["kind"] for row in rows if row["trained"]} == expected[name]
    blocks = [row["block"] for row in rows if row["trained"] and row["kind"] == "prompt"]
    assert blocks == {"vpt_shallow": [0], "vpt_deep": [0, 1, 2], "coop": [None]}.get(name, [])
    assert {row["tower"] for row in rows} == ({"image", "text"} if name == "coop" else {"image"})


def test_a_table_of_costs_has_a_row_per_method() -> None:
    rows = cost_table(small_vit(), images(), ["full", "bias"], moments=1)
    memory = step_memory(tuned("bias"), classification_loss(images()), moments=1)
    assert [row["method"] for row in rows] == ["full", "bias"]
    assert rows[1] == {
        "method": "bias",
        "trained": numbers(tuned("bias")),
        "head": 51,
        "bytes": 4 * numbers(tuned("bias")),
        "kept": memory.kept,
        "memory": memory.total,
        "flops": count_flops(tuned("bias"), classification_loss(images())),
    }
    assert rows[0]["memory"] - rows[0]["kept"] == 3 * rows[0]["bytes"]


def test_the_meta_device_counts_what_a_real_one_does() -> None:
    with torch.device("meta"):
        empty = ViT((3, 16, 16), 3, 8, 16, 3, 2)
    for name in ON_VIT:
        method, options = VARIANTS[name]
        real, meta = (tune(m, method, generator(0, "t"), **options) for m in (small_vit(), empty))
        assert payload(real) == payload(meta)
        losses = classification_loss(images()), classification_loss(images().to("meta"))
        assert count_flops(real, losses[0]) == count_flops(meta, losses[1])
        with sdpa_kernel(SDPBackend.MATH):  # plain products, as on the meta device
            memory = step_memory(real, losses[0]), step_memory(meta, losses[1])
        assert memory[1].kept == pytest.approx(memory[0].kept, rel=0.05)
        assert (memory[1].weights, memory[1].gradients) == (memory[0].weights, memory[0].gradients)
    full, head = (count_flops(tune(empty, m, generator(0, "t")), losses[1]) for m in ("full", "head"))
    assert 2.7 < full / head < 3.0


# Errors


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("prefix", {}, "method='prefix', accepted.*adapter"),
        ("bias", {"tokens": 3}, "tokens=3: 'bias' takes"),
        ("vpt_deep", {"tokens": 0}, "tokens=0, accepted"),
        ("lora", {"rank": 1.5}, "rank=1.5, accepted"),
        ("adapter", {"reduction": 17}, "reduction=17, accepted: at most"),
        ("coop", {"tokenizer": WORDS, "classes": CLASSES}, "ViT, accepted by 'coop': a CLIP"),
        ("fedclip", {}, "ViT, accepted by 'fedclip': a CosineClassifier"),
    ],
)
def test_bad_requests_name_what_is_wrong(method: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tune(small_vit(), method, generator(0, "t"), **options)


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear, accepted by 'bias'"):
        tune(nn.Linear(2, 2), "bias", generator(0, "t"))
    assert set(TUNINGS) == {method for method, _ in VARIANTS.values()}
    fresh = with_head(small_vit(), 7, generator(0, "head"))
    assert fresh(images()).shape == (5, 7) and equal_bodies(fresh, small_vit())


def equal_bodies(a: nn.Module, b: nn.Module) -> bool:
    one, two = ({n: t for n, t in m.state_dict().items() if not n.startswith("head.")} for m in (a, b))
    return equal(one, two)
