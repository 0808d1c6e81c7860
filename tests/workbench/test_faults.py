"""What readers stumbled over, and must not again; each test is named after what they saw."""

import dataclasses
import html
import json
import math
import os
import re
import signal
import threading
import typing
from typing import Any

import pytest

from fedlab_core import plots
from fedlab_core.engines import loop
from fedlab_core.experiment import Experiment
from fedlab_core.failures import Failures
from fedlab_core.glossary import define
from fedlab_core.local import training
from fedlab_core.registry import METHODS
from fedlab_core.settings import Settings
from fedlab_core.workbench import pictures as panel_pictures
from fedlab_core.workbench.bench import BUILT_IN, Workbench
from fedlab_core.workbench.catalog import watched
from fedlab_core.workbench.export import code, page
from fedlab_core.workbench.options import options_of
from fedlab_core.workbench.panel import TERMS
from fedlab_core.workbench.plan import experiment_code
from fedlab_core.workbench.style import CSS
from fedlab_core.workbench.tabs import View
from fedlab_core.workbench.views.probes import VIEWS
from tests.workbench.panels import PATIENCE, SMALL, said


@pytest.mark.parametrize(
    "values", [{"fraction": 0.1}, {"clients": 1}, {"fraction": 0.0}, {"partition": "pooled", "partition_options": {}}]
)
def test_one_sampled_client_has_no_cosine_and_the_panel_goes_on(pictures, values):
    bench = Workbench(SMALL.replace(**values))
    bench.run(2, block=True)
    assert "✓" in said(bench) and "relative drift" in bench.panel.numbers.value
    assert "cosine" not in bench.panel.numbers.value
    for name in bench.panel.tabs.options:
        bench.panel.tabs.value = name
        bench.wait(PATIENCE)
        assert bench.panel.text.value == "", name


def nested(kind: type) -> dict[str, Any]:
    """By the name of each setting that may be a dataclass, one of it with all numbers changed."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        for one in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(one):
                numbers = {f.name: 0.25 for f in dataclasses.fields(one) if isinstance(f.default, float)}
                found[name] = one(**numbers)
    return found


@pytest.mark.parametrize("name", sorted(nested(Settings)))
def test_settings_that_are_objects_survive_the_form_the_code_and_the_fork(name):
    experiment = SMALL.replace(**{name: nested(Settings)[name]})
    bench = Workbench(experiment)
    bench.run(2, block=True)
    experiment = watched(experiment, band=True)
    assert bench.experiment == experiment and bench.result.settings == experiment.settings
    assert eval(experiment_code(experiment), {"Experiment": Experiment}) == experiment
    bench.fork(at=1, lr=0.05)
    bench.run(1, block=True)
    made: dict[str, Any] = {}
    exec(code(bench.runs[-1]), made)
    assert made["experiment"] == experiment and made["federation"].history == bench.result.history


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_method_has_all_of_its_own_options_with_its_own_defaults(name):
    bench = Workbench(SMALL)
    for other in ("moon", "fedprox", "fedavgm"):  # their options share names with those of others
        bench.controls.method.value = other
    bench.controls.method.value = name
    expected = {option.name: option.default for option in options_of(METHODS[name])}
    assert {n: bench.controls.option("method", n).value for n in expected} == expected
    assert bench.experiment.method_options == {}
    fields = bench.controls._slots["method"].children
    assert len(fields) == len(expected) and all(field.tooltip for field in fields)


def test_an_option_set_for_one_method_is_not_another_s():
    bench = Workbench(SMALL)
    bench.controls.method.value = "fedadam"
    bench.controls.option("method", "server_lr").value = 0.5
    assert bench.experiment.method_options == {"server_lr": 0.5}
    bench.controls.method.value = "fedavgm"
    assert bench.experiment.method_options == {} and bench.controls.option("method", "server_lr").value == 1.0
    with pytest.raises(KeyError):
        bench.controls.option("method", "tau")


def test_layer_wise_with_a_plain_network_is_refused_with_a_way_out_and_leaves_no_dead_run(bench):
    bench.set(method="layer_wise")
    assert "✗" in said(bench) and "✓" not in said(bench)
    assert bench.panel.way_out.layout.display == "" and bench.panel.way_out.description.startswith("Use ")
    bench.panel.run.click()
    with pytest.raises(Exception, match="units|Staged"):
        bench.wait(PATIENCE)
    assert bench.runs == []
    bench.panel.way_out.click()
    assert "Ready" in said(bench) and bench.panel.way_out.layout.display == "none"
    bench.run(1, block=True)


def test_divergence_is_a_warning_at_its_round_and_never_a_success(pictures, bench):
    bench.set(lr=1e6)
    bench.run(8, block=True)
    run = bench.runs[0]
    assert run.diverged is not None and run.round <= run.diverged < 8
    assert f"diverged in round {run.diverged}" in said(bench) and "✗" in said(bench) and "✓" not in said(bench)
    assert re.search(r"client \d handed back .*mean training loss (nan|inf|\d).*lr=1e\+06", said(bench))
    (left, right) = bench._display.figure().axes[:2]
    words = [text.get_text() for ax in (left, right) for text in ax.texts]
    assert words.count(f"diverged in round {run.diverged}") == 2
    for name in bench.panel.tabs.options:
        bench.panel.tabs.value = name
        bench.wait(PATIENCE)
        assert "Traceback" not in bench.panel.text.value, name
    assert "diverged" in str(bench.report())


@pytest.mark.parametrize("values", [{"non_finite": "skip_client"}, {"non_finite": "keep", "method": "median"}])
def test_a_client_that_is_left_out_does_not_end_a_healthy_run(values):
    bench = Workbench(SMALL.replace(failures=Failures(liars=0.4, lie="nan"), fraction=1.0, **values))
    bench.run(3, block=True)
    run = bench.runs[0]
    assert "✓" in said(bench) and run.round == 3 and run.diverged is None
    for record in run.federation.history[1:]:
        liars = record.failed["lied"]
        assert record.non_finite == liars and 0 < len(liars) < 6
        honest = [row for row in record.clients if row["client"] not in liars]
        weights = [row["examples"] / sum(one["examples"] for one in honest) for row in honest]
        for key, name in (("train_loss", "loss"), ("drift", "drift")):
            mean = sum(weight * row[name] for weight, row in zip(weights, honest, strict=True))
            assert record.metrics[key] == pytest.approx(mean)
        assert math.isfinite(record.metrics["cosine"]) and math.isfinite(record.metrics["diversity"])
        assert all(math.isnan(row["drift"]) for row in record.clients if row["client"] in liars)


def test_who_failed_is_said_in_the_panel_and_in_the_report_only_where_somebody_did():
    failures = Failures(lost=0.5, liars=0.2, lie="nan")
    bench = Workbench(SMALL.replace(failures=failures, fraction=1.0, non_finite="skip_client"))
    bench.run(2, block=True)
    record = bench.result.history[-1]
    line, whole = bench.panel.numbers.value, page(bench.runs[0], bench.runs, None, 0)
    vain = f"{record.metrics['bytes_in_vain'] / 1e6:,.3f} MB in vain"
    for kind, clients in {**record.failed, "not finite": record.non_finite}.items():
        words = f"{kind}: client{'s' * (len(clients) > 1)} {', '.join(map(str, clients[:5]))}"
        assert not clients or (words in line and words in whole)
    assert record.failed["lied"] and vain in line and vain in whole and "Failures" in whole
    fine = Workbench(SMALL)
    fine.run(1, block=True)
    assert "client " not in fine.panel.numbers.value and "in vain" not in fine.panel.numbers.value
    assert "<h2>Failures</h2>" not in page(fine.runs[0], fine.runs, None, 0)


def test_a_round_in_which_everyone_is_left_out_is_no_divergence():
    bench = Workbench(SMALL.replace(failures=Failures(lost=1.0)))
    bench.run(2, block=True)
    assert "✓" in said(bench) and bench.runs[0].diverged is None
    assert {"drift", "train_loss"}.isdisjoint(bench.result.history[1].metrics)
    assert bench.result.history[1].metrics["bytes_in_vain"] > 0


def test_stop_is_heard_during_the_evaluation_of_clients(bench, monkeypatch):
    bench.run(1, block=True)
    entered, go, original = threading.Semaphore(0), threading.Semaphore(0), training.batch_sums
    trained = threading.Event()

    def train_client(*arguments, **named):
        trained.set()
        return client(*arguments, **named)

    def batch_sums(*arguments):
        if trained.is_set():
            entered.release()
            assert go.acquire(timeout=PATIENCE)
        return original(*arguments)

    client = loop.train_client
    monkeypatch.setattr(loop, "train_client", train_client)
    monkeypatch.setattr(training, "batch_sums", batch_sums)
    bench.run(5)
    assert entered.acquire(timeout=PATIENCE)
    assert "evaluating" in bench.panel.timing.value
    bench.panel.stop.click()
    go.release()
    bench.wait(PATIENCE)
    assert not entered.acquire(timeout=0.01) and "Stopped after 0 of 5" in said(bench)
    monkeypatch.undo()
    bench.run(2, block=True)
    assert bench.result.history == bench.experiment.build().run(3).history


def test_a_new_run_begins_with_an_empty_picture_and_its_own_progress(pictures, bench, gate):
    for _ in range(3):
        gate.go.release()
    bench.run(1, block=True)
    old = bytes(bench.panel.image.value)
    for _ in range(3):
        gate.wait()
    bench.set(lr=0.05)
    bench.run(4)
    gate.wait()
    assert bench.panel.progress.value == 0 and "0 of 4 rounds" in bench.panel.timing.value
    assert "Nothing measured yet" in bench.panel.numbers.value and bytes(bench.panel.image.value) != old
    assert bench.panel.chosen.label == "FedAvg, lr 0.05" and "lr 0.05" in bench.panel.shown.value
    bench.stop()


def test_ctrl_c_stops_a_blocking_run_and_the_panel_is_free_at_once(bench, gate):
    def interrupt():
        gate.wait()
        os.kill(os.getpid(), signal.SIGINT)
        assert bench._worker.stop.wait(PATIENCE)
        gate.go.release()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        bench.run(5, block=True)
    assert not bench.busy and bench.result.round == 0
    for _ in range(10):
        gate.go.release()
    bench.stop()
    bench.wait(PATIENCE)
    bench.run(1, block=True)
    assert bench.result.round == 1


def test_a_run_has_one_colour_in_every_view():
    bench = Workbench(SMALL, views=VIEWS)
    bench.run(3, block=True)
    bench.fork(at=1, lr=0.05)
    bench.run(2, block=True)
    bench.panel.tabs.value = "Stability"
    bench.wait(PATIENCE)
    for name in ("Curves", "Drift", "Costs", "Plane", "Stability"):
        figure = bench._display.views[name].draw(bench.runs[1], 3)
        looks = {line.get_label(): line.get_color() for ax in figure.axes for line in ax.lines}
        shown = [run for run in bench.runs if run.label in looks]
        assert set(shown) == set(bench.runs), name
        assert all(looks[run.label] == run.line.style["color"] for run in shown), name


def test_slow_views_are_drawn_while_rounds_arrive(monkeypatch):
    monkeypatch.setattr(panel_pictures, "SHORTEST", 0)
    monkeypatch.setattr(panel_pictures, "SHARE", math.inf)
    drawn = []
    view = View(
        "Mine", lambda run, round: drawn.append((round, threading.current_thread().name)) or plots.figure()[0], True
    )
    bench = Workbench(SMALL, views=[view])
    bench.panel.tabs.value = "Mine"
    bench.run(4, block=True)
    assert drawn == [(round, "workbench") for round in (1, 2, 3, 4, 4)]


def test_text_data_takes_one_click(bench):
    bench.set(dataset="python_docs", dataset_options={})
    assert "✗" in said(bench) and "lstm" in bench.panel.way_out.description
    bench.panel.way_out.click()
    assert "Ready" in said(bench) and bench.experiment.model == "lstm"
    bench.set(partition="natural")
    assert "Ready" in said(bench)


def test_the_way_out_leaves_alone_what_was_chosen_last_when_the_data_are_loaded_already(bench):
    before = bench.experiment
    for _ in range(2):
        bench.set(dataset="python_docs", dataset_options={})
        assert "model lstm" in bench.panel.way_out.description
        bench.set(dataset=before.dataset, dataset_options=before.dataset_options)
    bench.set(model="lstm")
    assert "data python_docs" in bench.panel.way_out.description


def test_every_measure_is_defined_one_hover_away(bench):
    bench.run(1, block=True)
    line = bench.panel.numbers.value
    for words, name in (
        ("drift", "mean Euclidean"),
        ("relative drift", "divided by the norm"),
        ("cosine", "two clients"),
    ):
        assert f">{words}</abbr>" in line and name.lower() in line.lower()


def test_a_message_that_is_longer_than_its_box_is_one_hover_away_and_scrolls(bench):
    words = " ".join(f"word {number}" for number in range(60))
    bench.panel.say("error", words)
    assert f"✗ {words}</div>" in said(bench) and f"title='{html.escape(words, quote=True)}'" in said(bench)
    assert "tabindex='0'" in said(bench) and ".fedlab-status::-webkit-scrollbar {" in CSS
    bench.panel.say("", "Ready.")
    assert "Ready" in said(bench) and "title=" not in said(bench) and "tabindex" not in said(bench)


def test_a_batch_norm_without_a_policy_is_asked_for_by_the_name_of_its_field(bench):
    bench.set(model="mlp", norm="batch", batch_norm=None)
    assert "The model has batch normalisation: choose in Batch norm what happens to it." in said(bench)
    assert "batch-norm policy average" in bench.panel.way_out.description


def test_every_built_in_view_is_defined_one_hover_away_on_its_tab(bench):
    tabs = dict(zip(bench.panel.tabs.options, bench.panel.tabs.tooltips, strict=True))
    assert list(tabs) == list(TERMS) == [view.name for view in BUILT_IN]
    for name, terms in TERMS.items():
        assert terms and all(define(term) and f"{term}: {define(term)}" in tabs[name] for term in terms)
    assert {"drift", "relative drift"} <= set(TERMS["Drift"])


@pytest.mark.parametrize("kind", ["png", "svg", "pdf", "csv", "html", "code"])
def test_a_name_that_is_no_formula_is_drawn_and_saved(bench, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench.run(1, block=True, name=r"$\frac$ <b>")
    path = bench.save(kind)
    if kind == "code":
        assert path is None and "experiment.build().run(1)" in bench.panel.text.value
        return
    assert path.parent == tmp_path and path.stat().st_size > 500 and f"download='{path.name}'" in said(bench)
    if kind == "html":
        page = path.read_text()
        assert "<svg" in page and "&lt;b&gt;" in page and "http" not in page.split("<svg")[0]
        data = page.split('id="data">')[1].split("</script>")[0]
        assert json.loads(data)[0]["name"] == r"$\frac$ <b>"


def test_what_is_not_accepted_is_refused_and_changes_nothing(bench):
    with pytest.raises(ValueError, match="accepted: an Experiment or a Federation"):
        Workbench(0)
    before = bench.experiment
    for values, words in (
        ({"seed": -1}, "Seed=-1"),
        ({"clients": 0}, "Clients K=0"),
        ({"norm": "batch"}, "Norm='batch'"),
    ):
        with pytest.raises(ValueError, match=words):
            bench.set(**values)
        assert bench.experiment == before
    bench.set(epochs=50)
    assert bench.experiment.settings.epochs == 50
    bench.set(steps=7)
    assert (bench.experiment.settings.epochs, bench.experiment.settings.steps) == (None, 7)


def test_a_fault_in_a_view_does_not_end_the_run():
    def broken(run, round):
        raise KeyError("no such layer")

    bench = Workbench(SMALL, views=[View("Mine", broken)])
    bench.panel.tabs.value = "Mine"
    bench.run(3, block=True)
    assert bench.result.round == 3 and "no such layer" in bench.panel.text.value
