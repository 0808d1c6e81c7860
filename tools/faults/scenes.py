"""Small runs and calls of the core that show with which arguments its public functions are called."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from fedlab_core import costs, files, glossary, history, registry, selfsupervised, state
from fedlab_core.batchnorm import hybrid, measures, neighbours
from fedlab_core.batchnorm.split import label_blocks
from fedlab_core.checkpoint import manifest, place
from fedlab_core.data import Dataset, arguments, arrays, cache, checks, counts, examples, folder, load, prepared, scenes
from fedlab_core.data import measures as metrics
from fedlab_core.data import statistics as channel
from fedlab_core.data.dataset import Dataset as _Dataset
from fedlab_core.data.text import missing_text, text_file
from fedlab_core.engines.auto import values_per_layer
from fedlab_core.engines.frozen import FrozenEngine
from fedlab_core.engines.loop import LoopEngine
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.finetuning import accounts as payloads
from fedlab_core.finetuning import classifiers, lora
from fedlab_core.finetuning.tuning import Tuning, tune
from fedlab_core.layerwise import accounts, evaluation, stages
from fedlab_core.layerwise import method as staged
from fedlab_core.layerwise.network import build_staged
from fedlab_core.local import optimisers, training
from fedlab_core.methods import fedavg
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models import build, clip
from fedlab_core.models.layers import WSConv2d
from fedlab_core.models.weights import shipped, torchvision_resnet, torchvision_vit
from fedlab_core.partition import Partition, natural
from fedlab_core.pretraining import distillation, fractals, kept, pairs, sources
from fedlab_core.pretraining.objectives import Siamese
from fedlab_core.pretraining.two_layer import margins, two_layer
from fedlab_core.probes import attribution, cells, lines, planes, twins
from fedlab_core.probes.gradients import client_loss
from fedlab_core.probes.groups import connectivity
from fedlab_core.probes.mixtures import spread, stability
from fedlab_core.randomness import generator
from fedlab_core.registry import METHODS
from fedlab_core.round import while_finite, with_flipped_labels
from fedlab_core.settings import Settings
from tools.faults.small import small_data, small_model, small_partition, small_run

Scene = Callable[[], object]
OWN_LAYERS = ("hbn", "fbn", "fedsa_lora", "flora", "fedex_lora")


def core(root: Path) -> Iterator[Scene]:
    """Small runs that call most of the core, and calls of the rest.

    Args:
        root: an empty folder.
    """
    for name, method in METHODS.items():
        if name not in ("fedsgd", "layer_wise", *OWN_LAYERS):
            yield lambda method=method: small_run(method=method(), batch_norm="average").run(2)
    for engine in ("threads", "stacked", "auto"):
        yield lambda engine=engine: small_run(engine).run(1)
    yield lambda: hybrid.put(hybrid.with_global_norms(small_model(), False), {})  # runs do it in threads
    failing = {"failures": {"liars": 0.3, "late": 0.5, "lost": 0.2, "unavailable": 0.2, "stale": 0.2}}
    yield lambda: small_run(batch_norm=None, method=METHODS["fedavg"](), norm="none", **failing).run(3)
    yield lambda: small_run().run(1)
    yield lambda: small_run(batch_norm="local", optimiser="adam", keep_optimiser=True, method=FedAvg()).run(1)
    run = small_run(batch_norm="average", method=METHODS["fedavg"]()).run(2)
    parts = small_data(), small_partition(), small_model()
    yield lambda: [small_run().save(root / "run"), Federation.load(root / "run", *parts)]
    yield lambda: [run.trained_model(), run.client_state(1), run.evaluate(), run.inside(1), run.state_at(1)]
    yield lambda: [run.fork("other", lr=0.2), run.evaluate_states([run.state]), small_run().run(2).rewind(2)]
    yield lambda: [small_data().subset(30, 10), small_data().with_validation(0.2)]
    for partition in ("iid", "dirichlet", "shards"):
        yield lambda partition=partition: Experiment(partition=partition, clients=4).build().run(1)
    skewed = {"feature_skew": "rotation", "strength": 30}
    yield lambda: Experiment(partition_options=skewed, clients=4, method="fedprox").build().run(1)
    yield lambda: Experiment("letters", model="small_cnn", norm="group", clients=4).build()
    plain = Experiment(clients=4, dataset_options={"examples": 60})
    yield lambda: [plain.build().save(root / "plain"), plain.load(root / "plain")]
    for group in (_saved, _data, _files, _models, _batch_norm, _layer_wise, _fine_tuning, _starts, _probes):
        yield from map(partial, group(run, root))


def _saved(run: Federation, root: Path) -> list[Scene]:
    small_run().run(1).save(root / "saved")
    journal = next((root / "saved").glob("journal-*"))
    stored = manifest.Stored(journal.name, journal.stat().st_size, place.sha256(journal.read_bytes()))
    record = run.history[1]
    return [
        lambda: manifest.record_from_json(record.to_json(), "here"),
        lambda: manifest.check_follows(list(run.history), "here"),
        lambda: place.warn(root / "x", "is gone"),
        lambda: place.damaged_files(root / "saved", place.Place()),
        lambda: place.read_bytes(root / "saved", stored),
        lambda: history.Record(0, 0.1, {"loss": 1.0}, costs.Costs(), costs.Costs(), []),
        lambda: history.Past("run", None, run.past.segments, run.past.records, run.past.timeline),
        lambda: costs.serialised_tensor_bytes(costs.serialise(run.state)),
        lambda: costs.Memory(1, 2, 3, 4),
        lambda: [one(run.model, _loss) for one in (costs.step_memory, costs.kept_for_backward, costs.count_flops)],
        lambda: [*while_finite(run.history)],
        lambda: with_flipped_labels(run.dataset, run.partition, frozenset({0})),
        lambda: state.unflatten(torch.zeros(6), {"w": torch.zeros(2, 3)}),
        lambda: glossary.define("fork"),
        lambda: registry.register("model", "mine", lambda: small_model()),
        lambda: natural(torch.tensor([0, 0, 1, 1])),
        lambda: fedavg.stackable(lambda *_: None),
    ]


def _loss(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.rand(3, 1, 4, 4, generator=generator(0, "x"))).square().mean()


def _data(run: Federation, root: Path) -> list[Scene]:
    x, y = torch.rand(12, 1, 4, 4, generator=generator(0, "x")), torch.arange(12) % 3
    one = y.float()[:, None]
    book = "\n\n".join(f"CHAPTER {c}\n\n" + "\n".join(f"It was line {n}." for n in range(9)) for c in (1, 2, 3))
    (root / "book.txt").write_text(book)
    return [
        lambda: Dataset.from_arrays(x, y, x[:3], y[:3], classes=("a", "b", "c")),
        lambda: _Dataset.from_arrays(x.numpy(), one.numpy(), x[:3].numpy(), one[:3].numpy(), loss="mse"),
        lambda: Dataset.from_torch(list(zip(x, y, strict=True)), list(zip(x, y, strict=True))[:3]),
        lambda: examples.read_examples("train", list(zip(x, y, strict=True))),
        lambda: examples.stack("train", list(x)),
        lambda: arguments.describe(x),
        lambda: arrays.as_tensor("x", [1.0, 2.0]),
        lambda: arrays.infer_kind(x, y, None),
        lambda: arrays.as_inputs("x", x, "image"),
        lambda: arrays.as_targets({"y": y, "test_y": y}, ("a", "b", "c")),
        lambda: arrays.numbered_classes([y], 0),
        lambda: arrays.as_groups({"groups": y}),
        lambda: checks.check_finite("x", "train", x),
        lambda: checks.check_groups("groups", "train", y, ("a", "b", "c")),
        lambda: metrics.squared_error(one, one),
        lambda: metrics.absolute_error(one, one),
        lambda: prepared.averaged(small_data(), 2),
        lambda: [scenes.class_names("task"), scenes.split_scenes("task", 3, generator(0, "scenes"))],
        lambda: [channel.feature_statistics(one, -1), channel.statistics(x, "image", True)],
        lambda: [text_file(root, "book.txt", 20), missing_text(root, "book.txt"), load.missing_data("mnist", root)],
        lambda: counts.table_bits(text_file(root, "book.txt", 20), 1),
    ]


def _files(run: Federation, root: Path) -> list[Scene]:
    for number in range(12):
        image = root / "photos" / "ab"[number % 2] / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(np.full((8, 8), number * 20, np.uint8)).save(content, "png")
        image.write_bytes(content.getvalue())
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), (0.0,), (1.0,)
    return [
        lambda: folder.image_folder(root, "photos"),
        lambda: [cache.write_images([root], "key", images), cache.read_images([root], "key")],
        lambda: [cache.write_index([root], "list", "key"), cache.read_index([root], "list")],
        lambda: shipped.write("name", small_model(), {}, root / "shipped"),
        lambda: shipped.load_backbone("vit_weak"),
        lambda: shipped.blank("vit_weak", 3, 0),
        lambda: shipped.source(shipped.Recipe(per_class=2)),
    ]


def _models(run: Federation, root: Path) -> list[Scene]:
    words = clip.Vocabulary(("a", "photo", "of", "red", "blue"), 8)
    tiny = clip.small_clip((3, 16, 16), words, generator(0, "clip"), 8, dim=8, depth=1, heads=2, text_dim=8)
    work, parameters = run.rules(1).work(1, {}), dict(run.model.named_parameters())
    adam = torch.optim.Adam(parameters.values())
    vit = tiny.image
    return [
        lambda: clip.small_clip((3, 16, 16), words, generator(0, "clip"), 8, dim=8, depth=1, heads=2, text_dim=8),
        lambda: clip.zero_shot_weights(tiny, words, ("red", "blue")),
        lambda: clip.clip_loss(torch.eye(3), torch.arange(3)[:, None]),
        lambda: WSConv2d(2, 2, 3),
        lambda: build.ModelInfo("any", ("none",), lambda: small_model()),
        lambda: build.own_model(lambda num_classes=2: torch.nn.Linear(2, num_classes)),
        lambda: classifiers.with_head(vit, 3, generator(0, "head")),
        lambda: classifiers.class_means(torch.rand(6, 4), torch.arange(6) % 3, 3),
        lambda: shipped.Backbone("name", tiny, {}),
        lambda: torchvision_resnet.resized_stem(torch.rand(4, 3, 7, 7), torch.Size((4, 1, 3, 3))),
        lambda: torchvision_vit.set_eps(small_model(), 1e-6),
        lambda: torchvision_vit.renamed("a.weight", {"a": "b"}),
        lambda: values_per_layer(work),
        lambda: FrozenEngine(LoopEngine()),
        lambda: optimisers.moments(adam, parameters),
        lambda: optimisers.recall(adam, parameters, {}),
        lambda: optimisers.forgotten({}),
        lambda: files.between("<a> old <b>", "<a>", "<b>", ["new"]),
        lambda: training.summary(run.dataset, [torch.ones(2, 2)]),
    ]


def _batch_norm(run: Federation, root: Path) -> list[Scene]:
    batches, model = measures.fixed_batches(run, 4), measures.in_training(run, run.state)
    gradient = measures.union_gradient(model, batches)
    return [
        lambda: [neighbours.four_ways(run), neighbours.reestimate(run), measures.mismatch(run.model, batches)],
        lambda: [measures.union_gradient(model, batches), measures.mean_gradient(model, batches)],
        lambda: [measures.deviation(gradient, gradient), measures.deviation_by_source(model, batches)],
        lambda: measures.running_gap(model, run.state, run.state_at(0)),
        lambda: neighbours.fixbn(small_run(batch_norm="average", method=FedAvg()), 2, 1, 0.1),
        lambda: label_blocks(run.dataset.y, 3, 0.5, generator(0, "blocks")),
    ]


def _layer_wise(run: Federation, root: Path) -> list[Scene]:
    rule = staged.LayerWise()
    model = build_staged((1, 4, 4), generator(0, "w"), depth=2, patch=2, dim=8, heads=2, hidden=12, out=6, layers=2)
    fed = Federation(small_data(), small_partition(), model, Settings(fraction=1.0, lr=0.01, batch_size=8), rule).run(2)
    stage, batch = stages.Stage(1, 2, 1, 1), torch.rand(4, 1, 4, 4, generator=generator(0, "x"))
    views, seen, labels = torch.cat([batch, batch]), evaluation.features(model, small_data()), small_data().y
    small = {name: tensor for name, tensor in fed.state.items() if "units" in name or "blocks" in name} or fed.state
    half = frozenset(small)
    return [
        lambda: [one(model, rule, stage, batch) for one in (accounts.stage_loss, accounts.training_memory)],
        lambda: [accounts.peak_memory(model, rule, batch), accounts.relative_flops(rule, 2)],
        lambda: accounts.deepest(10**9, lambda depth: model, rule, batch, 2),
        lambda: [accounts.flops_by_round(fed), [*accounts.traffic(fed, True)], accounts.staged_run(fed)],
        lambda: staged.staged_loss(model, views, rule, stage),
        lambda: staged.freeze_statistics(model, stage),
        lambda: stages.Stage(1, 2, 1, 1),
        lambda: stages.payload(model, stage, (True, True)),
        lambda: stages.Payload(half, half, half, frozenset({0})),
        lambda: stages.same(fed.state, half, half),
        lambda: evaluation.features(model, small_data()),
        lambda: evaluation.Features(seen.x, seen.test_x),
        lambda: evaluation.knn_accuracy(seen.x, labels, seen.test_x, small_data().test_y, k=3),
        lambda: evaluation.linear_probe(seen, labels, small_data().test_y),
        lambda: evaluation.few_labels(labels, 2, 0),
    ]


def _fine_tuning(run: Federation, root: Path) -> list[Scene]:
    vit = build.build_model("vit", (1, 4, 4), 3, generator(0, "w"), patch=2, dim=8, depth=1, heads=2)
    wide = tune(vit, "lora", generator(0, "lora"), rank=2)
    start, layers = state.get_state(wide), lora.lora_layers(state.get_state(wide))
    return [
        lambda: payloads.cost_table(vit, torch.rand(2, 1, 4, 4), ("full", "head")),
        lambda: lora.update_error(start, [start, start], [0.5, 0.5]),
        lambda: lora.effective_update(start, layers[0]),
        lambda: Tuning("vit", "title"),
    ]


def _starts(run: Federation, root: Path) -> list[Scene]:
    renders, two = pairs.make_renders(2, 2, size=8, points=50), two_layer(True, 2, 4, 10, tests=6)
    draws, start = generator(0, "pairs"), kept.Start("start", {"w": torch.zeros(2)}, {}, 1, 1)
    return [
        lambda: fractals.coloured(torch.rand(2, 8, 8), draws),
        lambda: pairs.compose(renders, torch.zeros(2, 2, dtype=torch.int64), draws),
        lambda: pairs.random_sets(4, 3, 2, draws),
        lambda: [one(renders, 2, draws) for one in (pairs.fractal_pairs, pairs.fractal_twins, pairs.multi_label)],
        lambda: pairs.noise_images(2, 8, draws),
        lambda: sources.fractal_views("pairs", (1, 8, 8), 4, 4, 0),
        lambda: sources.fractal_labels((1, 8, 8), 4, 4, 0),
        lambda: sources.logistic_loss(torch.zeros(2, 3), torch.ones(2, 3)),
        lambda: Siamese(small_model("none"), 6, draws),
        lambda: [
            kept.write([root / "starts"], "key", start),
            kept.into_cache(start, root),
            kept.from_cache({}, "start", root),
        ],
        lambda: distillation.Distillation(),
        lambda: margins(torch.ones(2, 3, 10, dtype=torch.float64), two.mu, two.y, two.xi),
        lambda: selfsupervised.nt_xent(torch.rand(4, 3), torch.rand(4, 3)),
        lambda: selfsupervised.info_nce(torch.rand(4, 3), torch.rand(4, 3)),
        lambda: selfsupervised.byol_loss(*[F.normalize(torch.rand(4, 3)) for _ in range(4)]),
        lambda: selfsupervised.move_target(run.state, run.state),
    ]


def _probes(run: Federation, root: Path) -> list[Scene]:
    states = [run.state_at(t) for t in range(3)]
    plane, causes = planes.plane_of_path(states, run.trained_names), ("skew", "local steps")
    small = small_run(batch_norm="average", method=FedAvg(), fraction=1.0)
    even = small_run(batch_norm="average", method=FedAvg(), batch_size=5)
    found = attribution.attribute(lambda seed: small.fork(f"seed {seed}"), 1, causes=causes, seeds=(0, 1))
    shown = {"validation_loss": found.values["test_loss"]}
    held_out = attribution.Attribution(found.causes, found.seeds, found.rounds, shown, found.lrs)
    cell, now = {"round": [0, 1], "test_loss": [1.0, 0.5]}, {"test_loss": 0.5}
    return [
        lambda: lines.line(run, states[0], states[1], (0.0, 1.0)),
        lambda: [spread(run, 1, count=2), stability(run, 1, count=2)],
        lambda: [*planes.scan(run, plane, ((0.0, 0.0), (1.0, 1.0)), size=3)],
        lambda: planes.Landscape(np.zeros(2), np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2)), 1),
        lambda: planes.plane_through(*states, run.trained_names),
        lambda: attribution.attribute(lambda seed: small.fork(f"seed {seed}"), 1, causes=causes, seeds=(0,)),
        lambda: attribution.Attribution(found.causes, found.seeds, found.rounds, found.values, found.lrs),
        lambda: [
            attribution.run_cell(small, ("skew",), 1),
            attribution.cell_of(small, ("skew",)),
            attribution.cells_of(small),
        ],
        lambda: attribution.gathered(("skew",), (0,), [[cell, cell]], (0.1,)),
        lambda: attribution.best_rates([held_out]),
        lambda: [attribution.shapley(causes), attribution.moebius(causes), attribution.said(causes)],
        lambda: attribution.interval(torch.rand(4)),
        lambda: twins.Twin(1, "skew", 0.1, 0.2, now, now),
        lambda: twins.twin_round(small_run(batch_norm="average", method=FedAvg()).run(1), 1, "skew"),
        lambda: cells.subsets(causes),
        lambda: [connectivity(run, 1), client_loss(run, run.state, 0)],
        lambda: cells.slots(even.rules(1).work(1, {}), (0, 1, 2, 3), True),
    ]


def parts() -> tuple[Dataset, Partition, torch.nn.Module]:
    """What a saved small run is read back with."""
    return small_data(), small_partition(), small_model()
