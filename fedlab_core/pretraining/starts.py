"""Starting points for federated learning: recipes of one or more steps, made once and kept with their recipe."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fedlab_core.check import Many, checked
from fedlab_core.data import Dataset
from fedlab_core.data.prepared import load_prepared
from fedlab_core.federation import Federation
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models.build import MODELS, Architecture
from fedlab_core.partition import Partition, pooled
from fedlab_core.pretraining.kept import Start, from_cache, into_cache
from fedlab_core.pretraining.objectives import MultiLabel, SelfSupervised, Siamese
from fedlab_core.pretraining.sources import fractal_labels, fractal_views
from fedlab_core.randomness import generator
from fedlab_core.settings import Settings
from fedlab_core.state import State

VERSION = 1  # of the recipes: a start made by other code is made anew


@checked
@dataclass(frozen=True)
class Supervised:
    """Training on labelled data of another kind; in every kind of step, the learning rate falls along a cosine."""

    dataset: str = "letters"
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: Many = 10
    lr: float = 0.1
    batch_size: Many = 64
    momentum: float = 0.9


@checked
@dataclass(frozen=True)
class Fractals:
    """Training on composed fractals, or on a control.

    Args:
        task: "pairs" (fractal pair similarity), "twins" (control: the same image twice, told apart by augmentation
            only), "noise" (control: images without structure), or "labels" (which codes are in the image).
        codes, images: how many there are, see `sources`.
        objective: "simclr" or "simsiam"; not of "labels".
    """

    task: str = "pairs"
    codes: Many = 48
    images: Many = 4096
    epochs: Many = 10
    lr: float = 0.1
    batch_size: Many = 128
    momentum: float = 0.9
    objective: str = "simclr"
    views: str = "characters"


@checked
@dataclass(frozen=True)
class Decentralised:
    """Self-supervised federated averaging on the clients' own images, without their labels; its rounds and bytes count.

    Every client takes part in every round. The heads, which are thrown away, have layer normalisation by default: a
    client may hold a single image, which has no batch statistics.
    """

    rounds: Many = 10
    epochs: Many = 1
    lr: float = 0.05
    batch_size: Many = 32
    momentum: float = 0.9
    objective: str = "simclr"
    views: str = "characters"
    norm: str = "layer"


Step = Supervised | Fractals | Decentralised


@checked
@dataclass(frozen=True, eq=False)
class Beginning:
    """What a start is made from.

    Attributes:
        data: the data set to begin on; starts read its shape, decentralised steps its training images as well.
        partition: its clients; of decentralised steps only.
        model: the network that is to begin there.
        seed: of every draw.
        engine: where the clients of decentralised steps run.
    """

    data: Dataset
    partition: Partition | None
    model: Architecture
    seed: int = 0
    engine: str = "loop"


@checked
def make_start(
    beginning: Beginning,
    steps: Sequence[Step] = (),
    *,
    name: str | None = None,
    root: str | Path | None = None,
    keep: bool = True,
    stop: threading.Event | None = None,
) -> Start:
    """The start that the steps lead to, one after the other.

    Args:
        steps: a recipe; none is the random start.
        root: the data root; the cache lies in its `.cache/starts`.
        keep: look the start up in the cache and store it there (safetensors, the recipe in a JSON beside it). Starts of
            registered models are not kept: their code may change under their name.
        stop: once set, training is given up with an InterruptedError.

    Raises:
        ValueError: a decentralised step without a partition; a step or a model that does not fit the data.
    """
    data, model = beginning.data, beginning.model
    recipe: dict[str, Any] = {
        "version": VERSION,
        "model": [model.name, model.norm, dict(model.options)],
        "input_shape": list(data.input_shape),
        "seed": beginning.seed,
        "steps": [{"kind": type(step).__name__, **asdict(step)} for step in steps],
    }
    if any(isinstance(step, Decentralised) for step in steps):
        if beginning.partition is None:
            raise ValueError("partition=None, accepted by a decentralised step: a partition of the data")
        recipe["clients"] = [data.fingerprint, beginning.partition.fingerprint]
    recipe["sources"] = [_other(step, root).fingerprint for step in steps if isinstance(step, Supervised)]
    name = name or " + ".join(type(step).__name__.lower() for step in steps) or "random"
    if not steps:
        return Start(name, {}, recipe)
    keep = keep and model.name in MODELS and MODELS[model.name].built_in
    if keep and (known := from_cache(recipe, name, root)) is not None:
        return known
    state: State = {}
    rounds = traffic = 0
    for number, step in enumerate(steps):
        trained = _pretrain(beginning, step, state, number, root)
        for _ in trained.rounds(step.rounds if isinstance(step, Decentralised) else step.epochs, stop=stop):
            pass
        if stop is not None and stop.is_set():
            raise InterruptedError(f"start {name!r} was stopped in step {number}")
        state = body(trained.state)
        if isinstance(step, Decentralised):
            rounds, traffic = rounds + trained.round, traffic + trained.history[-1].total.bytes
    start = Start(name, dict(sorted(state.items())), recipe, rounds, traffic)
    if keep:
        into_cache(start, root)
    return start


@checked
def body(state: State) -> State:
    """The tensors below the classifier: those of `encoder.` of a siamese model, else all but `head.`."""
    if any(name.startswith("encoder.") for name in state):
        return {name.removeprefix("encoder."): t for name, t in state.items() if name.startswith("encoder.")}
    return {name: t for name, t in state.items() if not name.startswith(("head.", "fc."))}


@checked
def transfer(state: State, model: nn.Module) -> nn.Module:
    """Copies the tensors of a start into a model, in place, and returns it; what the start lacks stays as it is.

    Raises:
        ValueError: a tensor that the model does not have, or has in another shape.
    """
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            shape = tuple(own[name].shape) if name in own else None
            raise ValueError(f"start has {name!r} of shape {tuple(tensor.shape)}, the model's is {shape}")
        own[name].copy_(tensor)
    return model


def _other(step: Supervised, root: str | Path | None) -> Dataset:
    return load_prepared(step.dataset, root, step.options)


def _pretrain(beginning: Beginning, step: Step, state: State, number: int, root: str | Path | None) -> Federation:
    """The federation, of one client unless the step is decentralised, that takes a step from a state."""
    seed, shape = beginning.seed, beginning.data.input_shape
    method: FedAvg
    if isinstance(step, Supervised):
        source, method = _other(step, root), FedAvg()
        if source.input_shape != shape:
            raise ValueError(f"{source.name} has images {source.input_shape}, the experiment's are {shape}")
    elif isinstance(step, Fractals):
        if step.task == "labels":
            source, method = fractal_labels(shape, step.codes, step.images, seed), MultiLabel()
        else:
            source = fractal_views(step.task, shape, step.codes, step.images, seed)
            method = SelfSupervised(step.objective, views=step.views)
    else:
        source, method = beginning.data, SelfSupervised(step.objective, views=step.views)
    draws = generator(seed, "start", number)
    model = transfer(state, beginning.model.build(shape, source.outputs, draws))
    if isinstance(method, SelfSupervised):
        norm = step.norm if isinstance(step, Decentralised) else "batch"
        model = Siamese(model, _width(model), draws, method.objective, norm=norm)
    local = isinstance(step, Decentralised)
    settings = Settings(
        fraction=1.0,
        epochs=step.epochs if local else 1,
        batch_size=step.batch_size,
        lr=step.lr,
        lr_schedule="cosine",
        schedule_rounds=step.rounds if isinstance(step, Decentralised) else step.epochs,
        momentum=step.momentum,
        batch_norm="average",
        seed=seed,
        evaluate_every=10**6,
        engine="threads" if local and beginning.engine == "threads" else "loop",
    )
    partition = (local and beginning.partition) or pooled(len(source.x))
    return Federation(source, partition, model, settings, method, memory_mib=1)


def _width(model: nn.Module) -> int:
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear) or not hasattr(model, "features"):
        raise ValueError(f"model {type(model).__name__}: self-supervised starts need `features` and a linear `head`")
    return head.in_features
