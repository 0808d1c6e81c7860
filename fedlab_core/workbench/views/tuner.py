"""Ways to fine-tune, drawn on the network, with what each sends, keeps and computes; choices, and no training."""

import functools
from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import nn

from fedlab_core import plots
from fedlab_core.check import checked
from fedlab_core.costs import MIB
from fedlab_core.finetuning.accounts import anatomy, client_costs
from fedlab_core.finetuning.classifiers import cosine_classifier
from fedlab_core.finetuning.tuning import FAMILIES, TUNINGS, tune
from fedlab_core.models.clip import CLIP, Vocabulary
from fedlab_core.plots import finetuning as plots_finetuning
from fedlab_core.randomness import generator
from fedlab_core.workbench.pictures import Look


@checked
class Tuner(Look):
    """A panel: choose a network, a family and a method. Show it by ending a cell with it.

    Args:
        networks: by name: a model as `tune` takes it, and a batch of images for it. A `CLIP` is tuned by a learnt
            prompt; models on the meta device are counted without values.
        vocabulary, classes: for the learnt prompt.
    """

    def __init__(
        self,
        networks: Mapping[str, tuple[nn.Module, torch.Tensor]],
        vocabulary: Vocabulary | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        self._networks, self._vocabulary, self._classes = dict(networks), vocabulary, classes
        self._row = functools.lru_cache(self._measure)
        style = {"style": {"description_width": "70px"}, "layout": {"width": "300px"}}
        self.network = widgets.Dropdown(options=list(networks), description="Network", **style)
        self.family = widgets.Dropdown(options=list(FAMILIES), description="Family", value="backbone", **style)
        self.method = widgets.Dropdown(options=self._methods("backbone"), description="Way", **style)
        self.network.observe(self._family_changed, "value")
        self.family.observe(self._family_changed, "value")
        self.method.observe(self._changed, "value")
        super().__init__([self.network, self.family, self.method])
        self._changed(None)

    def set(self, **values: str) -> "Tuner":
        """Chooses by name, as a reader would; a method brings its family along."""
        if "method" in values:
            values = {"family": TUNINGS[values["method"]].family, **values}
        for name in ("network", "family", "method"):
            if name in values:
                getattr(self, name).value = values[name]
        return self

    def figure(self) -> Figure:
        """What the panel shows now."""
        fig, axes = plots.figure(1, 2, (9.2, 4.4))
        parts = self._row(self.network.value, self.method.value)["anatomy"]
        plots_finetuning.network(axes[0, 0], parts, "text" if self.method.value == "coop" else "image")
        axes[0, 0].set_title(f"{self.network.value}: {TUNINGS[self.method.value].title}")
        rows = [self._row(self.network.value, method) for method in ("full", self.method.value)]
        plots_finetuning.times_less(axes[0, 1], rows[: 1 + (rows[1]["method"] != "full")])
        return fig

    def describe(self) -> str:
        """The numbers behind the picture in a sentence."""
        row = self._row(self.network.value, self.method.value)
        return (
            f"{row['trained']:,} of {row['total']:,} parameters are trained and travel, {row['head']:,} of them in the "
            f"classifier: {row['bytes'] / 1e6:.3g} MB one way. A step keeps {row['kept'] / MIB:.3g} MiB for the "
            f"backward pass and takes {row['flops'] / 1e9:.3g} GFLOP."
        )

    def _methods(self, family: str) -> list[tuple[str, str]]:
        clip = isinstance(self._networks[self.network.value][0], CLIP)
        fits = [n for n, way in TUNINGS.items() if way.family == family and (clip or not way.of_clip)]
        return [(f"{name}: {TUNINGS[name].title}", name) for name in fits]

    def _measure(self, network: str, method: str) -> dict[str, Any]:
        model, images = self._networks[network]
        if method == "coop":
            words = {"tokenizer": self._vocabulary, "classes": self._classes}
            tuned = tune(model, method, generator(0, "panel"), **words)
        else:
            tuned = tune(self._with_classes(model), method, generator(0, "panel"))
        total = sum(parameter.numel() for parameter in tuned.parameters())
        return {"method": method, "anatomy": anatomy(tuned), "total": total} | client_costs(tuned, images)

    def _with_classes(self, model: nn.Module) -> nn.Module:
        if not isinstance(model, CLIP):
            return model
        weights = model.logit_scale.new_zeros(len(self._classes), model.image.head.out_features)
        return cosine_classifier(model.image, model.logit_scale, weights, "text_init", generator(0, "panel"))

    def _family_changed(self, _: object) -> None:
        chosen = self._methods(self.family.value)
        if tuple(self.method.options) != tuple(chosen):
            self.method.options = chosen  # takes the first, which draws
        self._changed(None)

    def _changed(self, _: object) -> None:
        if self.method.value is None:
            return
        self.show(self.figure())
        self.say(self.describe())
