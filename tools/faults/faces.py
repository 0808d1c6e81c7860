"""Small calls of what draws, of the panel's parts, and of what studies are made of, that show with which arguments."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from ipywidgets import IntText

from fedlab_core import claims, plots
from fedlab_core.costs import Memory
from fedlab_core.experiment import Experiment
from fedlab_core.layerwise.network import build_staged
from fedlab_core.layerwise.stages import Stage
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.models import build_model
from fedlab_core.plots import attribution as causes
from fedlab_core.plots import batchnorm, clients, fedavg, finetuning, layerwise, probes, schematics
from fedlab_core.probes import lines, planes
from fedlab_core.probes.attribution import Attribution, attribute
from fedlab_core.probes.groups import connectivity
from fedlab_core.probes.mixtures import stability
from fedlab_core.randomness import generator
from fedlab_core.studies import arms, claim, coverage, guide, queue, statistics, tuning, units
from fedlab_core.studies.record import record_to_frame, recorded
from fedlab_core.workbench import browse, catalog, export, fields, lab, options, plan, replay, runs, store, tabs
from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.views.climb import Climb
from fedlab_core.workbench.views.tuner import Tuner
from tools.faults.scenes import Scene
from tools.faults.small import small_run

SMALL = Experiment(dataset_options={"examples": 60}, clients=4).replace(fraction=0.5, epochs=1)


def faces(root: Path) -> Iterator[Scene]:
    """Calls of the top of the house.

    Args:
        root: an empty folder.
    """
    for group in (_plots, _panel, _fields, _studies):
        yield from map(partial, group(root))


def _plots(root: Path) -> list[Scene]:
    even = {"fraction": 1.0, "batch_norm": "average", "method": FedAvg()}
    run, ax = small_run().run(2), plots.figure()[1][0, 0]
    pair = list(plots.figure(1, 2)[1][0])
    line, record = plots.Line("run", run.history), run.history[1]
    found: Attribution = attribute(lambda seed: small_run(**even), 1, causes=("skew",), seeds=(0, 1))
    grid = np.arange(4.0).reshape(2, 2)
    along = lines.LossLine((0.0, 0.5, 1.0), (1.0, 0.4, 0.5), (0.1, 0.2, 0.2))
    looked = {"theta": [0.0, 1.0], "loss": [1.0, 0.5], "barrier": 0.1}
    weights = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0.4, 0.3, 0.3]])
    counts = np.arange(12).reshape(4, 3)
    return [
        lambda: [plots.figure(1, 2), plots.mosaic("ab", (6, 3)), clients.holdings_bars(ax, counts, ("a", "b", "c"))],
        lambda: clients.holdings_heatmap(ax, counts, ("a", "b", "c")),
        lambda: [plots.Line("run", run.history), plots.measured(record, "test_accuracy")],
        lambda: plots.curves(ax, [line], "test_accuracy"),
        lambda: [plots.client_band(ax, line, "loss"), clients.client_dots(ax, record, "loss", line)],
        lambda: plots.save(plots.figure()[0], root / "picture", {}),
        lambda: [one(plots.figure()[1][0, 0], found) for one in (causes.waterfall, causes.cells, causes.over_rounds)],
        lambda: [batchnorm.normalise([1.0, 2.0], 1.0, 1.0), batchnorm.lines({"run": run.history})],
        lambda: batchnorm.number_lines(plots.figure(1, 3)[1][0], [1.0, 2.0], [3.0, 4.0]),
        lambda: batchnorm.mismatch_map(ax, grid, ("a", "b"), (0, 1)),
        lambda: batchnorm.deviation_by_depth(ax, ("a", "b"), {"local": [0.1, 0.2]}),
        lambda: batchnorm.left_out(ax, {"mean": 0.1}),
        lambda: fedavg.loss_lines(ax, [along], "title"),
        lambda: [finetuning.styles(["bias", "bias, alone", "own"]), finetuning.logarithmic(ax)],
        lambda: finetuning.dots(ax, {"lora": {"full": [0.1, 0.2]}}),
        lambda: layerwise.network(ax, 3, Stage(1, 2, 1, 1)),
        lambda: [layerwise.memory_bars(ax, {"all": Memory(1, 2, 3, 4)}), layerwise.lines(ax, {"a": ([1.0], [2.0])})],
        lambda: probes.landscape(ax, planes.Landscape(grid[0], grid[0], grid, grid, 1)),
        lambda: probes.paths(ax, {"run": grid}),
        lambda: probes.triangle(ax, weights, [1.0, 2.0, 3.0, 4.0], ("a", "b", "c")),
        lambda: probes.groups(*pair, "run", [(1, connectivity(run, 1))], 0),
        lambda: probes.loss_lines(ax, {"run": along, "kept": looked}),
        lambda: probes.spread_bars(ax, stability(run, 1, count=2)),
        lambda: [schematics.round_of(ax, counts, (0, 1)), schematics.method(ax, "FedAvg"), pair],
    ]


def _panel(root: Path) -> list[Scene]:
    bench = Workbench(SMALL, rounds=1)
    bench.run(1, block=True)
    run = bench.runs[0]
    shown = plan.Plan("title", lambda alpha: {"run": SMALL}, {"alpha": (0.1, 1.0)}, rounds=1)
    result = shown.begin({"alpha": 0.1})
    band = plan.Band("label", [0.0, 1.0], [0.1, 0.2], [0.0, 0.1], [0.2, 0.3], 2)
    view, figure = tabs.View("View", tabs.curves_view), plots.figure()[0]
    result.frames["run"].extend(run.federation.history)
    staged = {"depth": 2, "patch": 2, "dim": 8, "heads": 2, "hidden": 12, "out": 6, "layers": 2}
    vit = build_model("vit", (1, 8, 8), 3, generator(0, "w"), patch=4, dim=8, depth=1, heads=2)
    data, ax = run.federation.dataset, figure.subplots()
    store.Store(root / "panel").keep([run], run, last=True)
    return [
        lambda: Workbench(SMALL, rounds=1),
        lambda: [lab.Lab(shown), browse.Browse(lambda a: plots.figure()[0], a=(1, 2))],
        lambda: plan.Plan("title", lambda alpha: {"run": SMALL}, {"alpha": (0.1, 1.0)}, rounds=1),
        lambda: [plan.Band("label", [0.0], [0.1], [0.0], [0.2], 2), band.draw(ax)],
        lambda: plan.Result({"alpha": 0.1}, {"run": run.federation}, frames={"run": []}),
        lambda: [plan.experiment_code(SMALL), plan.plan_code(shown), fields.knob(shown, "alpha")],
        lambda: [plan.lines_of(result), plan.looks_of(result), plots.places(["FedAvg", "other"])],
        lambda: plan.accuracy_curves(plots.figure()[0], result),
        lambda: [plan.final_accuracies(result), plan.best_of(run.federation.history)],
        lambda: plan.draw_pair(plots.figure()[0], result, "test_loss"),
        lambda: [export.Report(figure, [run]), export.code(run), export.page(run, [run], figure, 0)],
        lambda: export.download(export.save("csv", view, run, [run], 1, lambda: figure)),
        lambda: [replay.clients_figure(run.federation, 1), replay.run_replay(run, 1), replay.lab_replay(shown, 1)],
        lambda: [replay.inside(run.federation), replay.page_part([replay.run_replay(run, 1)])],
        lambda: replay.written(replay.run_replay(run, 1)),
        lambda: [store.Store(root / "other"), store.new_folder(root), store.earlier(root), store.title(root / "panel")],
        lambda: store.bring_back(root / "panel", catalog.Catalog(), run.stop),
        lambda: [catalog.Catalog(), catalog.of_federation(small_run())],
        lambda: [catalog.what_there_is(SMALL, {}, {}, None, None), catalog.watched(SMALL, True)],
        lambda: [options.Option("mu", 0.1), options.options_of(run.federation.settings)],
        lambda: [options.options_from({"mu": 0.1}, {}), options.accepted_by(type(SMALL.settings), "weighting")],
        lambda: [options.described(type(SMALL.settings), "lr"), options.differing(SMALL.settings)],
        lambda: tabs.words_only(plots.figure()[0], "nothing to draw"),
        lambda: [tabs.View("View", tabs.curves_view), tabs.curves_view(run), tabs.clients_view(run, 1)],
        lambda: [tabs.costs_view(run, 1), tabs.waiting_view(data, run.federation.partition), tabs.lines_of(run)],
        lambda: [tabs.empty_view("name"), tabs.holdings_figure(data, run.federation.partition)],
        lambda: tabs.draw_holdings(plots.figure()[1][0, 0], data, run.federation.partition),
        lambda: [tabs.mark_divergence(plots.figure()[1][0, 0], run, "loss"), tabs.rounds_axis(ax, run)],
        lambda: [runs.Run(run.federation, [(0, SMALL)]), runs.method_label("fedavg"), runs.changes(SMALL, SMALL)],
        lambda: [runs.describe(SMALL), runs.unique("run", ["run"]), runs.runs_to_frame([run])],
        lambda: runs.runs_to_json([run]),
        lambda: Climb(lambda n: build_staged((1, 4, 4), generator(0, "w"), **staged), (1, 4, 4), most_units=2),
        lambda: Tuner({"vit": (vit, data.x[:2].float())}),
    ]


def _fields(root: Path) -> list[Scene]:
    return [
        lambda: [fields.finish(IntText(), "words"), fields.dropdown("label", ("a", "b"), "words")],
        lambda: [fields.whole("label", 1, 3, "words"), fields.float_slider("label", 0.0, 1.0, 0.1, "words")],
        lambda: [fields.log_slider("label", -1.0, 1.0, "words", 1.0), fields.number("label", "words", 1.0)],
        lambda: [fields.text("label", "words"), fields.switch("label", "words"), fields.heading("title")],
        lambda: [fields.option(options.Option("mu", 0.1)), fields.value_of(IntText()), fields.tidy(0.1)],
        lambda: fields.set_value(IntText(), 2),
    ]


def _studies(root: Path) -> list[Scene]:
    run = small_run().run(2)
    comparison = arms.Comparison("name", "title", SMALL, 1, {"arm": arms.Arm()}, (0,))
    unit = comparison.unit("arm", -2, 0)
    record = units.Record("name", "title", lambda done: [unit], lambda *_: {}, lambda data: plots.figure()[0], (0,))
    kept = {"arm": "arm", "seed": 0, "settings": unit.settings, "key": unit.key, "result": {"test": 0.5, "lr": 0.1}}
    data = {"units": [kept], "complete": [0], "seeds": [0]}
    row = claim.Claim("a.b", "text", "ours", "quick", {"part": claim.Range(0.0)}, {"part": 0.5}).row()
    about = {"source": "ours", "size": "quick"}
    rule = guide.Rule("situation", "a.b", "part", "yes", "no", "01")
    return [
        lambda: [units.Unit("arm", 0, {}), queue.results({unit.key: kept}), queue.missing(record, {})],
        lambda: units.Record("name", "title", lambda done: [], lambda *_: {}, lambda data: plots.figure()[0]),
        lambda: [
            units.full(units.sparse(SMALL)),
            list(units.heeding(run.history, lambda: False)),
            queue.known(record, root, root),
        ],
        lambda: [queue.gathered(record, {unit.key: kept}), queue.write(record, root, root), queue.halt(root)],
        lambda: [arms.Arm(), arms.Comparison("name", "title", SMALL, 1, {"arm": arms.Arm()}, (0,)), comparison.record],
        lambda: [arms.hold_out(run.dataset, 0.2), arms.outcome(run), arms.trained(small_run(), 1)],
        lambda: [
            arms.by_arm(data),
            arms.grouped(data),
            arms.rates(data),
            arms.finals({"arm": [kept["result"]]}, "arm"),
        ],
        lambda: tuning.climb(-2, lambda exponent, seed: unit, lambda result: 0.5, {}),
        lambda: [claim.Range(0.0), claim.headlined("a.b", "text", claim.Range(0.0), {"part": 0.5}, "part", **about)],
        lambda: claim.Claim("a.b", "text", "ours", "quick", {"part": claim.Range(0.0)}, {"part": 0.5}),
        lambda: [claim.exact("a.b", "text", {"part": (0.5, claim.Range(0.0))}, **about), claim.two_digits(0.123)],
        lambda: [claim.extended("before", data), queue.picture(record, data)],
        lambda: [
            coverage.Statement("said", ("a.b",)),
            coverage.chosen(coverage.Statement("said", ("a.b",)), {"a.b": row}),
        ],
        lambda: [coverage.page(recorded("claims")), coverage.write(root / "page.md")],
        lambda: [guide.Rule("situation", "a.b", "part", "yes", "no", "01"), guide.decide(rule, {"a.b": row})],
        lambda: [guide.Guide([]), guide.guide([rule], root)],
        lambda: [statistics.differences([1.0, 2.0], [0.5, 1.0]), statistics.ratios([1.0, 2.0], [0.5, 1.0])],
        lambda: [statistics.interval([1.0, 2.0]), statistics.test_set_error(0.5, 100)],
        lambda: [tuning.Tuned(1.0, 0.1, (1.0,), False, (0.1,), (0,), 3), tuning.negated(run.history, "test_loss")],
        lambda: [tuning.run(SMALL, 0.1, 1), tuning.tune(SMALL, 0.1, 1, grid=(0.1,), seeds=(0,))],
        lambda: [recorded("name", root), record_to_frame("failing_clients", ["runs"])],
        lambda: [claims.ClaimTable([row]), next(claims.collect("failing.lost"))],
    ]
