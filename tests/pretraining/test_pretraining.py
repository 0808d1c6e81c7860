"""Starting points: fractals as the fact sheet has them, recipes that are kept, ImageNet weights made to fit."""

import json
import math
import threading
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from small import equal

from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.models.weights import torchvision_resnet as inet
from fedlab_core.partition import pooled
from fedlab_core.pretraining.fractals import (
    Codes,
    chaos_game,
    coloured,
    jittered,
    render,
    sample_codes,
    singular_values,
)
from fedlab_core.pretraining.kept import Start
from fedlab_core.pretraining.named import READ, STARTS, imagenet_start, recipe
from fedlab_core.pretraining.objectives import MultiLabel, SelfSupervised, Siamese
from fedlab_core.pretraining.pairs import (
    compose,
    fitted,
    fractal_pairs,
    fractal_twins,
    make_renders,
    multi_label,
    random_sets,
)
from fedlab_core.pretraining.sources import fractal_labels, fractal_views
from fedlab_core.pretraining.starts import Decentralised, Fractals, Supervised, transfer
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings

TINY = Experiment(
    "digits",
    {"examples": 60},
    clients=3,
    model="mlp",
    model_options={"hidden": [8]},
    settings=Settings(1.0, epochs=1, batch_size=10, lr=0.1),
)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_singular_values_have_their_order_and_their_sum(n: int) -> None:
    values = singular_values(n, 3000, generator(0, "values"))
    first, second = values[..., 0], values[..., 1]
    assert (second <= first + 1e-12).all() and (values >= 0).all() and (values <= 1).all()
    total = (first + 2 * second).sum(1)
    assert (total >= (5 + n) / 2).all() and (total <= (6 + n) / 2).all()
    assert total.mean().item() == pytest.approx((5.5 + n) / 2, abs=0.01)


def test_codes_have_their_maps_and_the_matrices_those_singular_values() -> None:
    codes = sample_codes(600, generator(0, "codes"))
    assert set(codes.maps.tolist()) == {2, 3, 4}
    values = torch.linalg.svdvals(codes.a)
    total = (values[..., 0] + 2 * values[..., 1]).sum(1)
    assert ((total >= (5 + codes.maps) / 2 - 1e-9) & (total <= (6 + codes.maps) / 2 + 1e-9)).all()
    absent = torch.arange(4) >= codes.maps[:, None]
    assert codes.a[absent].abs().sum() == 0 and codes.b[absent].abs().sum() == 0
    assert codes.b.abs().max() <= 1 and (torch.linalg.det(codes.a)[~absent] < 0).float().mean() > 0.4


def test_the_orbit_stays_on_the_attractor_of_a_known_system() -> None:
    # Sierpinski's triangle: three maps that halve the way to a corner; the middle triangle stays empty
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    a = torch.eye(2, dtype=torch.float64).repeat(1, 4, 1, 1) / 2
    a[0, 3] = 0
    orbit = chaos_game(Codes(a, corners[None] / 2, torch.tensor([3])), 4000, generator(0, "orbit"))[:, 0]
    x, y = orbit.T
    assert (orbit >= -1e-6).all() and (x + y <= 1 + 1e-6).all()
    assert not ((x < 0.49) & (y < 0.49) & (x + y > 0.51)).any()
    shares = [((x > 0.5).float().mean()), ((y > 0.5).float().mean())]
    assert all(share.item() == pytest.approx(1 / 3, abs=0.05) for share in shares)  # equal determinants


def test_maps_are_drawn_by_their_determinants() -> None:
    a = torch.zeros(1, 4, 2, 2, dtype=torch.float64)
    a[0, 0], a[0, 1] = torch.eye(2) * 0.8, torch.eye(2) * 0.4  # determinants 0.64 and 0.16
    b = torch.tensor([[[0.0, 0.0], [10.0, 0.0], [0.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    orbit = chaos_game(Codes(a, b, torch.tensor([2])), 8000, generator(0, "orbit"))[:, 0, 0]
    before = torch.cat((torch.zeros(1), orbit[:-1]))
    jumped = (orbit - (0.4 * before + 10)).abs() < 1e-3
    assert jumped.float().mean().item() == pytest.approx(0.2, abs=0.02)


def test_renders_fill_the_square_have_full_range_and_depend_on_their_generator() -> None:
    codes = sample_codes(20, generator(0, "codes"))
    images = render(codes, generator(1, "render"))
    assert images.shape == (20, 32, 32) and (images.amax((1, 2)) == 255).all()
    assert torch.equal(images, render(codes, generator(1, "render")))
    rows = (images > 0).any(2)
    assert rows[:, :2].any(1).all() and rows[:, -2:].any(1).all()
    assert not torch.equal(images, render(codes, generator(2, "render")))


def test_jitter_changes_one_map_and_keeps_it_contracting() -> None:
    codes = sample_codes(400, generator(0, "codes"))
    new = jittered(codes, generator(0, "jitter"))
    changed = (new.a != codes.a).flatten(2).any(2)
    assert (changed.sum(1) <= 1).all() and changed.any(1).float().mean() > 0.95
    ratio = (new.b / codes.b)[changed]
    assert (ratio >= 0.8 - 1e-9).all() and (ratio <= 1.1 + 1e-9).all()
    assert torch.linalg.matrix_norm(new.a, 2).max() <= 1 + 1e-9


def test_colours_are_hsv_and_empty_pixels_black() -> None:
    import colorsys

    grey = torch.randint(0, 256, (5, 4, 4), generator=generator(0, "grey")).to(torch.uint8)
    grey[:, 0, 0] = 0
    rgb = coloured(grey, generator(1, "colour"))
    u = torch.rand(3, 5, 1, 1, generator=generator(1, "colour"))
    assert rgb[:, :, 0, 0].abs().sum() == 0
    for image, row, column in ((0, 1, 2), (3, 2, 2), (4, 3, 1)):
        hue = (grey[image, row, column].item() + 255 * u[0, image].item()) % 256 / 256
        saturation, value = 0.3 + 0.7 * u[1, image].item(), 0.5 + 0.5 * u[2, image].item()
        expected = torch.tensor(colorsys.hsv_to_rgb(hue, saturation, value)) * (grey[image, row, column] > 0)
        assert torch.allclose(rgb[image, :, row, column], expected, atol=1e-4)


def test_pairs_share_their_codes_and_not_their_pixels_twins_share_both() -> None:
    # one code is drawn everywhere, the other nowhere: which codes an image holds can be seen
    renders = make_renders(2, 3, size=16, points=200)
    renders.grey[1] = 0
    draws = generator(0, "pairs")
    first, second = fractal_pairs(renders, 60, draws, each=1)
    seen = [(x > 0).flatten(1).any(1) for x in (first, second)]
    assert torch.equal(*seen) and 0 < seen[0].sum() < 60
    assert not torch.allclose(first, second)
    a, b = fractal_twins(renders, 5, draws)
    assert torch.equal(a, b)


def test_a_composed_fractal_has_its_size_and_hangs_out_at_most_by_a_quarter() -> None:
    renders = make_renders(1, 1, size=32)
    renders.grey[:] = 255
    images = compose(renders, torch.zeros(300, 1, dtype=torch.int64), generator(0, "c"), blur=False)
    inside = (images > 0).any(1)
    widths = inside.any(1).sum(1)
    assert widths.max() <= math.ceil(0.75 * 32) + 1 and widths.min() >= 0.75 * 0.45 * 32 - 1.5


def test_multi_labels_say_what_is_there() -> None:
    renders = make_renders(4, 2, size=16, points=200)
    images, labels = multi_label(renders, 50, generator(0, "m"), most=3)
    assert images.shape == (50, 3, 16, 16) and set(labels.sum(1).tolist()) == {1, 2, 3}
    data = fractal_labels((1, 8, 8), 4, 100, 0)
    found = data.y.sum(1)
    assert found.min() >= 1 and found.max() <= 4 and data.input_shape == (1, 8, 8)
    assert (random_sets(5, 100, 3, generator(0, "s")).sort(1).values.diff() > 0).all()


def test_images_are_fitted_by_areas_and_grey_is_luma() -> None:
    x = torch.zeros(1, 3, 4, 4)
    x[0, 1, :2, :2] = 1
    assert torch.allclose(fitted(x, (1, 2, 2)), torch.tensor([[[[0.587, 0.0], [0.0, 0.0]]]]))
    assert fitted(x, (3, 28, 28)).shape == (1, 3, 28, 28)
    with pytest.raises(ValueError, match="one or three"):
        fitted(x, (2, 4, 4))


def test_a_pair_data_set_gives_the_loss_its_two_halves() -> None:
    data = fractal_views("pairs", (1, 8, 8), 8, 64, 0)
    assert data.input_shape == (2, 8, 8)
    twins = fractal_views("twins", (1, 8, 8), 8, 64, 0)
    assert torch.equal(twins.x[:, 0], twins.x[:, 1]) and not torch.equal(data.x[:, 0], data.x[:, 1])


@pytest.mark.parametrize("objective", ["simclr", "simsiam"])
def test_self_supervision_lowers_its_own_objective(objective: str) -> None:
    data = fractal_views("pairs", (1, 8, 8), 8, 300, 0)
    model = Siamese(TINY.make_model(TINY.load_data()), 8, generator(0, "heads"), objective, hidden=16, out=16)
    settings = Settings(1.0, epochs=3, batch_size=64, lr=0.1, momentum=0.9, batch_norm="average")
    federation = Federation(data, pooled(len(data.x)), model, settings, SelfSupervised(objective)).run(5)
    losses = [record.metrics["train_loss"] for record in federation.history[1:]]
    assert losses[-1] < losses[0] - 0.03 and "test_accuracy" not in federation.history[-1].metrics


def test_the_multi_label_loss_is_one_logistic_loss_per_code() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]])

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return logits

    loss = MultiLabel().loss(SimpleNamespace(model=Fixed()), torch.zeros(1, 1), torch.tensor([[1.0, 0.0, 1.0]]))
    parts = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1)), math.log(1 + math.exp(-0.5))]
    assert loss.item() == pytest.approx(sum(parts) / 3)


def test_the_random_start_is_the_experiments_own_model() -> None:
    start = TINY.make_start()
    assert equal(TINY.begin(start).state, TINY.build().state) and start.rounds == start.bytes == 0


CHAINS = {
    "letters": (Supervised(options={"size": 8, "per_class": 3, "test_per_class": 1}, epochs=1),),
    "labels": (Fractals("labels", codes=4, images=64, epochs=1),),
    "fractals, decentralised": (
        Fractals(codes=4, images=64, epochs=1, batch_size=32),
        Decentralised(rounds=2, batch_size=10),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_start_changes_all_but_the_head_and_is_kept_with_its_recipe(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    start = TINY.make_start(CHAINS[name], name=name)
    plain, begun = TINY.build().state, TINY.begin(start).state
    assert all(torch.equal(plain[n], begun[n]) == n.startswith("head.") for n in plain)
    (file,) = (tmp_path / ".cache" / "starts").glob("*.json")
    assert [s["kind"] for s in json.loads(file.read_text())["recipe"]["steps"]] == [
        type(s).__name__ for s in CHAINS[name]
    ]
    again = TINY.make_start(CHAINS[name], name=name)
    assert equal(again.state, start.state) and (again.rounds, again.bytes) == (start.rounds, start.bytes)
    tensors = safetensors.torch.load_file(file.with_suffix(".safetensors"))
    safetensors.torch.save_file({n: t + 1 for n, t in tensors.items()}, file.with_suffix(".safetensors"))
    assert equal(TINY.make_start(CHAINS[name], name=name).state, start.state)  # a damaged one is made anew
    other = TINY.replace(seed=1).make_start(CHAINS[name], name=name)
    assert other.fingerprint != start.fingerprint


def test_decentralised_steps_count_their_rounds_and_bytes() -> None:
    start = TINY.make_start(CHAINS["fractals, decentralised"], keep=False)
    model = Siamese(TINY.make_model(TINY.load_data()), 8, generator(0, "heads"), norm="layer")
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert start.rounds == 2 and start.bytes == 2 * 2 * 3 * size  # rounds, ways, clients


def test_a_start_can_be_stopped() -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError, match="step 0"):
        TINY.make_start(CHAINS["labels"], keep=False, stop=stop)


def test_what_does_not_fit_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="blocks.0.0.weight.*shape"):
        transfer(Start("x", {"blocks.0.0.weight": torch.zeros(3)}, {}).state, TINY.make_model(TINY.load_data()))
    with pytest.raises(ValueError, match=r"images \(1, 28, 28\), the experiment's are \(1, 8, 8\)"):
        TINY.make_start((Supervised(options={"per_class": 2, "test_per_class": 1}),), keep=False)
    with pytest.raises(ValueError, match="codes=0"):
        fractal_labels((1, 8, 8), 0, 10, 0)
    with pytest.raises(ValueError, match="task='pair'"):
        fractal_views("pair", (1, 8, 8), 3, 10, 0)


# ---- ImageNet weights, from small saved files with torchvision's own names


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    model = inet.torchvision_resnet("resnet18", (3, 224, 224), 1000, generator(0, "imagenet"))
    state = {n.removeprefix("body."): t for n, t in model.state_dict().items() if n.startswith("body.")}
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def test_the_names_are_torchvisions_and_full_size_images_keep_every_weight(weights) -> None:
    import torchvision

    with torch.device("meta"):
        expected = torchvision.models.resnet18().state_dict()
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in expected.items()}
    model = inet.torchvision_resnet("resnet18", (3, 96, 96), 10, generator(1, "model"))
    start = inet.fit_imagenet(weights, model)
    assert torch.equal(start["body.conv1.weight"], weights["conv1.weight"]) and "head.weight" not in start
    transfer(start, model).eval()
    assert model(torch.rand(2, 3, 96, 96)).shape == (2, 10)


def test_imagenet_weights_are_a_start_in_one_call(weights, tmp_path) -> None:
    safetensors.torch.save_file(weights, tmp_path / "resnet18.safetensors")
    model = inet.torchvision_resnet("resnet18", (3, 32, 32), 10, generator(1, "model"))
    start = imagenet_start(model, file=tmp_path / "resnet18.safetensors")
    assert equal(dict(sorted(start.state.items())), dict(sorted(inet.fit_imagenet(weights, model).items())))
    assert start.recipe["architecture"] == "resnet18" and start.rounds == 0


def test_a_resized_stem_gives_the_same_values_on_a_constant_image(weights) -> None:
    model = inet.torchvision_resnet("resnet18", (1, 32, 32), 10, generator(1, "model"))
    kernel = inet.fit_imagenet(weights, model)["body.conv1.weight"]
    assert kernel.shape == (64, 1, 3, 3)
    assert torch.allclose(kernel.sum((1, 2, 3)), weights["conv1.weight"].sum((1, 2, 3)), atol=1e-5)
    transfer(inet.fit_imagenet(weights, model), model).eval()
    assert model.body.layer1(model.body.maxpool(model.body.conv1(torch.rand(1, 1, 32, 32)))).shape[-1] == 32


def test_weights_are_read_from_files_and_bad_ones_are_named(weights, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    small = {"conv1.weight": weights["conv1.weight"]}
    safetensors.torch.save_file(small, tmp_path / "resnet18.safetensors")
    assert equal(inet.imagenet_weights(), small)
    torch.save(small, tmp_path / "mine.pth")
    assert equal(inet.imagenet_weights(file=tmp_path / "mine.pth"), small)
    with pytest.raises(ValueError, match="lack"):
        inet.fit_imagenet(small, inet.torchvision_resnet("resnet18", (3, 32, 32), 10, generator(0, "m")))
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bad.pth"):
        inet.imagenet_weights(file=tmp_path / "bad.pth")
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        inet.imagenet_weights(file=tmp_path / "missing.pth")
    with pytest.raises(ValueError, match="resnet19"):
        inet.imagenet_weights("resnet19")


def test_without_network_the_error_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDLAB_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match="resnet34.*could not be downloaded.*resnet34.pth"):
        inet.imagenet_weights("resnet34")


@pytest.mark.parametrize("name", [name for name in STARTS if name not in ("random", "caltech101", *READ)])
def test_every_name_is_a_recipe_that_fits_the_model(name: str) -> None:
    steps = recipe(name, (1, 8, 8))
    assert steps and all(step == again for step, again in zip(steps, recipe(name, (1, 8, 8)), strict=True))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("elsewhere", (1, 8, 8), "start='elsewhere', accepted"),
        ("letters", (3, 32, 32), "square grey images"),
        ("caltech101", (1, 8, 9), "square images"),
        ("fractal pairs", (80,), "learnt from images"),
        ("vit_strong", (3, 32, 28), "colour images of 32 x 32"),
    ],
)
def test_a_source_that_does_not_fit_says_why(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(name, shape)
    assert recipe("random", shape) == ()
