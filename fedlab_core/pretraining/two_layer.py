"""Two layers in which one sees why a start matters: filters that are misaligned at first, and clients of one class.

The setting of *Initialization matters* (arXiv 2502.08024), with constants of our own: its text was not at hand. Inputs
are a signal and noise, x = (y mu, xi) with y = +-1 and xi ~ N(0, sigma^2 (I - mu mu' / ||mu||^2)). The network is
f = F_+ - F_-, F_j = (1/m) sum_r [relu<w_jr, y mu> + relu<w_jr, xi>], its loss log(1 + exp(-y f)). Clients take
full-batch gradient steps, the server averages.

Filter (j, r) is **misaligned** if <w_jr, j mu> < 0. With l'_i = -1 / (1 + exp(y_i f_i)), one step with rate eta adds

    -(eta / (n m)) ||mu||^2 sum_i l'_i 1[y_i <w_jr, mu> > 0]  >=  0

to <w_jr, j mu>: it never falls, under averaging neither. A misaligned filter learns the signal from the other class
only, so nothing from a client that lacks it.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlab_core.check import Many, checked, choice
from fedlab_core.randomness import generator

STARTS = ("random", "all aligned", "all misaligned", "pre-trained")


@checked
@dataclass(frozen=True)
class TwoLayer:
    """The clients' examples and a test set, float64.

    Attributes:
        mu: (d,) the signal.
        y: (clients, n) +-1.
        xi: (clients, n, d) noise, orthogonal to the signal.
        test_y, test_xi: (t,) and (t, d).
    """

    mu: Tensor
    y: Tensor
    xi: Tensor
    test_y: Tensor
    test_xi: Tensor

    def step(self, w: Tensor, lr: float) -> Tensor:
        """Filters (..., 2, m, d), those of F_+ first, after one gradient step on the examples of each client.

        Args:
            w: the leading dimensions are the clients, or none where all of them are together.
        """
        y, xi = (self.y, self.xi) if w.ndim == 4 else (self.y.flatten(), self.xi.flatten(0, 1))
        signal, noise = w @ self.mu, torch.einsum("...jrd,...nd->...jrn", w, xi)
        slope = torch.sigmoid(-y * margins(w, self.mu, y, xi))  # -l'
        own = torch.tensor([1.0, -1.0], dtype=w.dtype)[:, None, None]  # j
        share = slope * y / (y.shape[-1] * w.shape[-2])  # of each example, by its class
        along = ((y[..., None, None, :] * signal[..., None] > 0) * (share * y)[..., None, None, :] * own).sum(-1)
        across = torch.einsum("...jrn,...nd->...jrd", (noise > 0) * share[..., None, None, :] * own, xi)
        return w + lr * (along[..., None] * self.mu + across)

    def local(self, w: Tensor, lr: float, steps: Many) -> Tensor:
        """The mean of the clients' filters after so many steps of each from the same ones."""
        each = w.expand(len(self.y), *w.shape)
        for _ in range(steps):
            each = self.step(each, lr)
        return each.mean(0)

    def misaligned(self, w: Tensor) -> int:
        """How many of the filters (2, m, d) point away from the signal of their own class."""
        return int((_towards(w, self.mu) < 0).sum())

    def error(self, w: Tensor) -> float:
        """Share of the test examples that are on the wrong side."""
        return float((self.test_y * margins(w, self.mu, self.test_y, self.test_xi) <= 0).double().mean())

    def begin(self, start: str, filters: Many = 10, scale: float = 0.01, seed: int = 0) -> Tensor:
        """Filters (2, m, d) from N(0, scale^2): as drawn, turned towards or away from their signal, or trained for 200
        steps of rate 0.1 on all examples together; `start` is one of `STARTS`."""
        choice("start", start, STARTS)
        w = scale * torch.randn(2, filters, len(self.mu), generator=generator(seed, "filters"), dtype=torch.float64)
        if start == "pre-trained":
            for _ in range(200):
                w = self.step(w, 0.1)
        elif start != "random":
            found, wanted = _towards(w, self.mu), 1.0 if start == "all aligned" else -1.0
            turned = torch.where(found * wanted < 0, -2 * found / self.mu.square().sum(), 0.0)
            w = w + turned[..., None] * torch.tensor([1.0, -1.0], dtype=w.dtype)[:, None, None] * self.mu
        return w


@checked
def two_layer(
    one_class: bool, clients: Many = 10, n: Many = 10, d: Many = 400, signal: float = 0.3, noise: float = 0.15,
    tests: Many = 2000, seed: int = 0,
) -> TwoLayer:  # fmt: skip
    """Clients with examples of one class each, or of both; the same examples either way.

    Args:
        n: examples of each client, an even number.
        d: length of signal and of noise.
        signal, noise: ||mu|| and sigma.
    """
    draws = generator(seed, "two layers")
    mu = torch.randn(d, generator=draws, dtype=torch.float64)
    mu = signal * mu / mu.norm()
    xi = noise * torch.randn(clients * n + tests, d, generator=draws, dtype=torch.float64)
    xi = xi - (xi @ mu)[:, None] * mu / mu.square().sum()
    labels = torch.tensor([1.0, -1.0], dtype=torch.float64)
    test_y = labels.repeat(tests)[:tests]
    y = labels.repeat_interleave(clients * n // 2)
    made = TwoLayer(mu, y.view(clients, n), xi[: clients * n].view(clients, n, d), test_y, xi[clients * n :])
    if one_class:
        return made
    dealt = torch.arange(clients * n).view(2, clients, -1).transpose(0, 1).reshape(clients, -1)  # half of each class
    return replace(made, y=y[dealt], xi=xi[: clients * n][dealt])


@checked
def margins(w: Tensor, mu: Tensor, y: Tensor, xi: Tensor) -> Tensor:
    """(..., n) the outputs f of filters (..., 2, m, d)."""
    signal = (y[..., None, None, :] * (w @ mu)[..., None]).relu()
    each = (signal + torch.einsum("...jrd,...nd->...jrn", w, xi).relu()).mean(-2)
    return each[..., 0, :] - each[..., 1, :]


def _towards(w: Tensor, mu: Tensor) -> Tensor:
    """(2, m) <w_jr, j mu>."""
    return (w @ mu) * torch.tensor([[1.0], [-1.0]], dtype=w.dtype)
