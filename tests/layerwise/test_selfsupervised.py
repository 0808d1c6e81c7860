"""Views and losses without labels: their known values, gradients that stop where they must, addressed randomness."""

import math

import pytest
import torch
from torch.nn import functional as F

from fedlab_core.randomness import generator
from fedlab_core.selfsupervised import (
    Augmentation,
    augment,
    byol_loss,
    info_nce,
    move_target,
    nt_xent,
    predictor,
    projector,
    simsiam_loss,
    spread,
)

NOTHING = Augmentation(scale=1, flip=0, jitter=0, grey=0, blur=0)


def images(n: int = 8, channels: int = 3, size: int = 12) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=generator(0, "images"), dtype=torch.float64)


def test_a_view_without_any_change_is_the_image() -> None:
    x = images()
    assert torch.allclose(augment(x, generator(0, "v"), NOTHING), x, atol=1e-12)


def test_a_flip_alone_mirrors_the_image() -> None:
    x = images()
    flipped = augment(x, generator(0, "v"), Augmentation(scale=1, flip=1, jitter=0, grey=0, blur=0))
    assert torch.allclose(flipped, x.flip(3), atol=1e-12)


def test_grey_images_have_equal_channels_and_solarised_ones_no_value_above_half() -> None:
    x = images()
    grey = augment(x, generator(0, "v"), Augmentation(scale=1, flip=0, jitter=0, grey=1, blur=0))
    assert torch.allclose(grey[:, 0], grey[:, 2]) and not torch.allclose(grey, x)
    bright = augment(x, generator(0, "v"), Augmentation(scale=1, flip=0, jitter=0, grey=0, blur=0, solarise=1))
    assert torch.allclose(bright, torch.minimum(x, 1 - x))


def test_a_blur_keeps_a_constant_image_and_smooths_noise() -> None:
    recipe = Augmentation(scale=1, flip=0, jitter=0, grey=0, blur=1)
    assert torch.allclose(augment(torch.full((2, 1, 9, 9), 0.3), generator(0, "v"), recipe), torch.tensor(0.3))
    x = images()
    assert augment(x, generator(0, "v"), recipe).var() < 0.9 * x.var()


def test_hue_turns_keep_the_brightness() -> None:
    x = 0.4 + 0.2 * images()
    recipe = Augmentation(scale=1, flip=0, jitter=1, brightness=0, contrast=0, saturation=0, hue=0.05, grey=0, blur=0)
    turned = augment(x, generator(0, "v"), recipe)
    luma = torch.tensor((0.299, 0.587, 0.114), dtype=x.dtype).view(1, 3, 1, 1)
    assert (turned - x).abs().max() > 0.01
    assert torch.allclose((turned * luma).sum(1), (x * luma).sum(1), atol=1e-3)


def test_views_depend_on_the_generator_alone_and_an_image_not_on_its_neighbours() -> None:
    x = images(16)
    a, b = (augment(x, generator(1, "v")) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, augment(x, generator(2, "v")))
    other = x.clone()
    other[1:] = 0.5
    assert torch.allclose(augment(other, generator(1, "v"))[0], a[0], atol=1e-12)


def test_normalised_images_get_the_same_views() -> None:
    x = images()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)
    shift, scale = (torch.tensor(v, dtype=x.dtype).view(1, 3, 1, 1) for v in (mean, std))
    view = augment((x - shift) / scale, generator(0, "v"), mean=mean, std=std)
    assert torch.allclose(view * scale + shift, augment(x, generator(0, "v")), atol=1e-9)


def test_nt_xent_of_orthogonal_pairs_is_known_in_closed_form() -> None:
    z = torch.eye(4, dtype=torch.float64)
    expected = math.log(1 + 6 * math.exp(-1 / 0.5))  # one positive with cosine 1, six negatives with cosine 0
    assert nt_xent(z, 3 * z, 0.5).item() == pytest.approx(expected)
    rolled = nt_xent(z, z.roll(1, 0), 0.5).item()
    assert rolled == pytest.approx(expected + 2)  # the positive has cosine 0, one negative has 1


def test_info_nce_is_scaled_cross_entropy_without_a_gradient_to_the_keys() -> None:
    q = torch.randn(5, 3, generator=generator(0, "q")).requires_grad_()
    k = torch.randn(5, 3, generator=generator(1, "q")).requires_grad_()
    loss = info_nce(q, k, 0.2)
    loss.backward()
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.2
    assert loss.item() == pytest.approx(0.4 * F.cross_entropy(logits, torch.arange(5)).item())
    assert k.grad is None and q.grad is not None


def test_simsiam_and_byol_have_their_extremes_and_stop_gradients() -> None:
    z = torch.randn(6, 4, generator=generator(0, "z")).requires_grad_()
    p = z.detach().clone().requires_grad_()
    assert simsiam_loss(p, p, 2 * z, z).item() == pytest.approx(-1)
    assert simsiam_loss(p, p, -z, -z).item() == pytest.approx(1)
    assert byol_loss(p, p, z, z).item() == pytest.approx(0, abs=1e-6)
    t = torch.randn(6, 4, generator=generator(1, "z"))
    squared = 2 * (F.normalize(p, dim=1) - F.normalize(t, dim=1)).square().sum(1).mean()
    assert byol_loss(p, p, t, t).item() == pytest.approx(squared.item())
    simsiam_loss(p, p, z, z.flip(0)).backward()
    assert z.grad is None and p.grad.abs().sum() > 0


def test_a_target_moves_towards_the_online_network() -> None:
    target, online = {"w": torch.zeros(2), "n": torch.tensor(3)}, {"w": torch.ones(2), "n": torch.tensor(5)}
    moved = move_target(target, online, 0.9)
    assert torch.allclose(moved["w"], torch.tensor(0.1)) and moved["n"] == 5 and target["w"].sum() == 0
    assert torch.equal(move_target(target, online, 1.0)["w"], target["w"])


def test_heads_have_the_published_shapes_and_draw_from_their_generator() -> None:
    # SimSiam for ResNet-18 on CIFAR: a 3-layer projector, a bottleneck predictor; no bias before a normalisation
    head = projector(64, generator(0, "head"), hidden=512, out=256)
    linears = [m for m in head if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(64, 512), (512, 512), (512, 256)]
    assert all(m.bias is None for m in linears) and isinstance(head[-1], torch.nn.BatchNorm1d)
    tail = predictor(256, generator(0, "head"), hidden=64)
    assert tail(torch.rand(4, 256)).shape == (4, 256) and tail[-1].bias is not None
    again = projector(64, generator(0, "head"), hidden=512, out=256)
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), again.parameters(), strict=True))


def test_spread_tells_a_collapse() -> None:
    z = torch.randn(4000, 16, generator=generator(0, "z"))
    assert spread(z) == pytest.approx(1, abs=0.02) and spread(torch.ones(10, 16)) == 0


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="3, height"):
        augment(torch.zeros(2, 2, 4, 4), generator(0, "v"))
    with pytest.raises(ValueError, match="blur=1.5"):
        Augmentation(blur=1.5)
    with pytest.raises(ValueError, match="scale=0"):
        Augmentation(scale=0)
    with pytest.raises(ValueError, match="kernel=4"):
        Augmentation(kernel=4)
    with pytest.raises(ValueError, match="layers=0"):
        projector(4, generator(0, "head"), layers=0)
