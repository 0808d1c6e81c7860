"""The workbench without a browser: values are set and buttons clicked as the front end would."""

import json
import sys
import threading

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ipywidgets import BoundedIntText, Button, DOMWidget, FloatLogSlider, FloatSlider, ValueWidget, Widget
from PIL import Image

from fedlab_core import plots
from fedlab_core.engines import loop
from fedlab_core.experiment import Experiment
from fedlab_core.references import centralised
from fedlab_core.state import BATCH_NORM_POLICIES
from fedlab_core.workbench import Busy, View, Workbench
from fedlab_core.workbench.controls import POLICY_LABELS, Controls
from fedlab_core.workbench.runs import changes, unique
from fedlab_core.workbench.tabs import SIZE
from tests.workbench.panels import PATIENCE, SMALL


def say(bench):
    return bench.panel.status.value


def test_run_is_the_same_round_loop(pictures, bench, capsys):
    bench.run(2, block=True)
    bench.panel.run.click()
    bench.wait(PATIENCE)
    straight = bench.experiment.build().run(5)
    assert bench.result.history == straight.history
    assert [run.name for run in bench.runs] == ["FedAvg"]
    assert bench.panel.progress.value == 1
    assert "3 of 3 rounds" in bench.panel.timing.value and "stands at round 5" in say(bench)
    assert bytes(bench.panel.image.value).startswith(b"\x89PNG")
    assert capsys.readouterr() == ("", "")


def test_nothing_is_left_with_pyplot(bench):
    def open_figures():
        pyplot = sys.modules.get("matplotlib.pyplot")
        return [] if pyplot is None else pyplot.get_fignums()

    before = open_figures()  # of other tests
    bench.run(1, block=True)
    bench.report()
    assert open_figures() == before


def test_other_settings_begin_a_new_run_and_the_old_stays(bench):
    bench.run(1, block=True)
    first = bench.result
    bench.set(lr=0.05)
    bench.run(2, block=True)
    bench.set(partition="iid")
    bench.run(1, block=True, name="my own")
    assert [run.name for run in bench.runs] == ["FedAvg", "FedAvg, lr 0.05", "my own"]
    assert bench.runs[0].federation is first and first.round == 1
    assert [label for label, _ in bench.panel.chosen.options] == [run.name for run in bench.runs]


def test_stale_is_said_and_shown_until_settings_match_again(bench):
    bench.run(1, block=True)
    assert "Result of" in bench.panel.shown.value
    bench.controls.lr.value = 0.05
    shown = bench.panel.shown.value
    assert "Stale" in shown and "lr 0.1 → 0.05" in shown and "fedlab-dim" in bench.panel.stage._dom_classes
    bench.controls.lr.value = 0.1
    assert "Stale" not in bench.panel.shown.value and "fedlab-dim" not in bench.panel.stage._dom_classes


def test_a_second_run_is_refused_and_not_queued(bench, gate):
    bench.panel.run.click()
    assert gate.entered.acquire(timeout=PATIENCE)
    bench.panel.run.click()
    assert "Already running" in say(bench) and "⚠" in say(bench)
    for forbidden in (bench.run, bench.rewind, bench.fork, bench.reset):
        with pytest.raises((Busy, ValueError)):
            forbidden()
    for _ in range(3 * 3):
        gate.go.release()
    bench.wait(PATIENCE)
    assert bench.result.round == 3 and gate.trained == 9


def test_stop_answers_within_one_client_and_keeps_finished_rounds(bench, gate):
    bench.panel.run.click()
    for _ in range(4):  # a whole round of three clients, and the first of the next
        assert gate.entered.acquire(timeout=PATIENCE)
        gate.go.release()
    assert gate.entered.acquire(timeout=PATIENCE)
    bench.panel.stop.click()
    assert "Stopping" in say(bench)
    gate.go.release()
    bench.wait(PATIENCE)
    assert gate.trained == 5 and bench.result.round == 1
    assert "Stopped after 1 of 3" in say(bench)
    for _ in range(6 + 9):
        gate.go.release()
    bench.run(2, block=True)
    assert bench.result.history == bench.experiment.build().run(3).history


def test_rewind_and_run_again_is_a_straight_run(bench):
    bench.run(4, block=True)
    before = list(bench.result.history)
    bench.panel.round.value = 2
    bench.panel.rewind.click()
    bench.wait(PATIENCE)
    assert bench.result.round == 2 and bench.panel.round.max == 2 and "back at round 2" in say(bench)
    bench.run(2, block=True)
    assert bench.result.history == before
    with pytest.raises(ValueError, match="round=9, accepted: .*4"):
        bench.rewind(9)


def test_fork_is_a_branch_with_the_controls_settings(bench):
    bench.run(3, block=True)
    bench.controls.method.value = "scaffold"
    bench.controls.lr.value = 0.05
    bench.panel.round.value = 2
    bench.panel.fork.click()
    bench.wait(PATIENCE)
    parent, branch = bench.runs
    assert branch.start == 2 and branch.parent is parent and branch.federation.parent == ("FedAvg", 2)
    assert branch.federation.history == parent.federation.history[:3]
    assert "Stale" not in bench.panel.shown.value
    bench.run(1, block=True)
    assert branch.federation.method.name == "SCAFFOLD" and branch.federation.settings.lr == 0.05
    assert parent.round == 3 and branch.round == 3
    bench.rewind(1)  # before the fork point: it is its parent again
    assert bench.runs[1].experiment == parent.experiment and "Stale" in bench.panel.shown.value


def test_a_fork_keeps_data_partition_model_and_seed(bench):
    bench.run(1, block=True)
    for change in ({"seed": 1}, {"clients": 5}, {"partition": "iid"}, {"model": "mlp"}):
        bench.set(**change)
        with pytest.raises(ValueError, match="a fork keeps data"):
            bench.fork()
        assert len(bench.runs) == 1
        bench.controls.load(bench.runs[0].experiment)
    bench.fork("same")
    assert bench.runs[1].name == "same"


def test_an_error_shows_its_traceback_and_leaves_the_panel_usable(bench, monkeypatch):
    bench.run(1, block=True)

    def train_client(*_):
        raise RuntimeError("the <client> fell over")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_client", train_client)
        bench.panel.run.click()
        with pytest.raises(RuntimeError, match="fell over"):
            bench.wait(PATIENCE)
    assert "RuntimeError: the &lt;client&gt; fell over" in say(bench) and "✗" in say(bench)
    assert "Traceback" in bench.panel.text.value and bench.panel.image.layout.display == "none"
    assert bench.result.round == 1
    bench.panel.run.click()
    bench.wait(PATIENCE)
    assert bench.result.round == 4 and bench.panel.text.layout.display == "none"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"clients": 121}, "120 examples make at most 120 clients"),
        ({"partition": "shards", "clients": 100}, "at most 60 clients with per_client=2"),
        ({"partition": "natural"}, "no natural clients"),
        (
            {"model": "mlp", "norm": "batch"},
            "The model has batch normalisation: choose in Batch norm what happens to it.",
        ),
        ({"method": "fedprox", "method_options": {"mu": -1.0}}, "mu=-1.0, accepted"),
        ({"model": "lstm"}, "lstm expects"),
    ],
)
def test_settings_that_do_not_go_together_are_said_at_once(bench, values, message):
    bench.set(**values)
    assert "✗" in say(bench) and message in say(bench)
    bench.panel.run.click()
    with pytest.raises(ValueError):
        bench.wait(PATIENCE)
    assert message in say(bench) and bench.runs == [] and bench.panel.text.value == ""
    bench.controls.load(SMALL)
    assert "Ready" in say(bench)
    bench.run(1, block=True)


def test_scaffold_with_momentum_is_refused_by_the_core():
    bench = Workbench(SMALL.replace(momentum=0.9))
    bench.controls.method.value = "scaffold"
    assert "presume plain" in say(bench)


def test_missing_data_is_said_and_never_downloaded(tmp_path):
    bench = Workbench(SMALL, root=tmp_path)
    assert ("mnist (not found)", "mnist") in bench.controls.dataset.options
    bench.controls.dataset.value = "mnist"
    assert bench._worker.join(PATIENCE)
    assert "mnist is not in the data root" in say(bench) and str(tmp_path) in say(bench)
    with pytest.raises(FileNotFoundError, match="mnist is not in the data root"):
        bench.run(1, block=True)


def test_looking_back_at_a_round(pictures, bench):
    bench.run(3, block=True)
    last, image = bench.panel.numbers.value, bytes(bench.panel.image.value)
    assert bench.panel.round.value == 3
    bench.panel.round.value = 1
    assert "Round 1" in bench.panel.numbers.value and bench.panel.numbers.value != last
    assert bytes(bench.panel.image.value) != image
    bench.run(1, block=True)
    assert bench.panel.round.value == 1 and bench.panel.round.max == 4  # it follows only from the end


@pytest.mark.parametrize("band", [True, False])
def test_every_view_draws_every_round(pictures, band):
    bench = Workbench(SMALL.replace(partition="shards", steps=3, weighting="uniform"), band=band, reference=True)
    bench.run(1, block=True)
    bench.fork(at=1, lr=0.01)
    bench.run(1, block=True)
    images = set()
    for name in bench.panel.tabs.options:
        bench.panel.tabs.value = name
        for round in (0, 2) if band else (1, 2):
            bench.panel.round.value = round
            bench.wait(PATIENCE)
            images.add(bytes(bench.panel.image.value))
    assert len(images) == 2 * len(bench.panel.tabs.options) and bench.panel.text.value == ""


def test_a_view_of_ones_own_and_a_broken_one(bench):
    seen = []

    def rounds(run, round):
        seen.append((run.name, round, threading.current_thread().name))
        return plots.figure()[0]

    def broken(run, round):
        raise KeyError("no such layer")

    bench = Workbench(SMALL, views=[View("Mine", rounds, slow=True), View("Broken", broken)])
    bench.panel.tabs.value = "Broken"
    bench.run(2, block=True)
    assert bench.result.round == 2 and "no such layer" in bench.panel.text.value
    bench.panel.tabs.value = "Mine"
    bench.wait(PATIENCE)
    assert bench.panel.text.value == ""
    bench.panel.round.value = 1
    bench.wait(PATIENCE)
    assert seen == [("FedAvg", 2, "workbench"), ("FedAvg", 1, "workbench")]


def test_a_slow_view_waits_for_the_rounds_under_way(gate):
    seen = []
    bench = Workbench(
        SMALL, views=[View("Mine", lambda run, round: seen.append(round) or plots.figure()[0], slow=True)]
    )
    bench.run(2)
    assert gate.entered.acquire(timeout=PATIENCE)
    bench.panel.tabs.value = "Mine"
    assert "round under way" in bench.panel.text.value and seen == []
    for _ in range(6):
        gate.go.release()
    bench.wait(PATIENCE)
    assert seen[0] == 1 and seen[-1] == 2 and bench.panel.text.value == ""


def test_a_run_says_where_it_started_and_a_fork_keeps_it(bench):
    bench.set(model="mlp", model_options={"hidden": [8]}, start="decentralised")
    bench.run(1, block=True)
    run = bench.runs[0]
    assert run.origin.rounds == 5 and "start: decentralised (+5 rounds, " in bench.panel.shown.value
    assert all((run.federation.state_at(0)[name] == tensor).all() for name, tensor in run.origin.state.items())
    bench.fork(at=1, lr=0.05)
    assert bench.runs[1].origin is run.origin
    with pytest.raises(ValueError, match="start decentralised → random"):
        bench.fork(at=1, start="random")


def test_the_engine_is_a_choice_and_the_round_says_where_clients_ran(bench):
    bench.set(engine="auto")
    bench.run(2, block=True)
    assert "auto: stacked (dense layers)" in bench.panel.numbers.value.replace("&nbsp;", " ")
    assert Controls(SMALL.replace(engine="ray:10.0.0.1:6379"), lambda: None).engine.value == "ray:10.0.0.1:6379"


def test_stop_ends_the_learning_of_a_start(bench, monkeypatch):
    make = Experiment.make_start

    def learn(experiment, stop=None, **options):
        if stop is None:  # the check that all else is right
            return make(experiment, **options)
        bench.panel.stop.click()
        assert stop.is_set() and "Stopping" in say(bench)
        raise InterruptedError

    monkeypatch.setattr(Experiment, "make_start", learn)
    bench.set(start="letters")
    bench.run(2, block=True)
    assert "Stopped before the first round" in say(bench) and bench.runs == []


def test_choosing_a_run_brings_back_its_settings(bench):
    bench.run(1, block=True)
    bench.set(lr=0.05)
    bench.run(2, block=True)
    bench.panel.chosen.value = 0
    assert bench.result is bench.runs[0].federation and bench.controls.lr.value == 0.1
    assert bench.panel.round.max == 1 and "Stale" not in bench.panel.shown.value


def test_reset_and_too_many_runs():
    bench = Workbench(SMALL, most_runs=2, memory_mib=64)
    for lr in (0.1, 0.2):
        bench.set(lr=lr)
        bench.run(1, block=True)
    assert bench.result.timeline.limit == 32 * 2**20
    bench.set(lr=0.3)
    with pytest.raises(ValueError, match="press Reset"):
        bench.run(1, block=True)
    bench.panel.reset.click()
    assert bench.runs == [] and bench.result is None and bench.panel.round.max == 0
    bench.run(1, block=True)
    assert len(bench.runs) == 1


def test_the_centralised_reference_is_the_core_s(bench):
    bench.run(2, block=True)
    bench.controls.reference.value = True
    bench.wait(PATIENCE)
    expected = centralised(bench.result).run(2).history
    assert bench.runs[0].reference.history == expected
    bench.run(1, block=True)
    assert bench.runs[0].reference.round == 3
    bench.fork()
    bench.run(1, block=True)
    assert bench.runs[1].reference is None and bench.runs[0].reference.round == 4


def test_the_reference_stops_in_the_middle_of_its_training(bench):
    bench.run(1, block=True)
    run = bench.runs[0]
    run.advance_reference(threading.Event())
    bench.run(1, block=True)
    asked = []

    class Stop(threading.Event):
        def is_set(self):
            asked.append(1)
            return len(asked) > 3

    run.advance_reference(Stop())
    assert len(asked) == 4 and run.reference.round == 1


def test_files(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no run yet"):
        bench.save()
    bench.run(2, block=True)
    bench.fork("branch", at=1)
    bench.run(2, block=True)
    bench.panel.save.click()
    bench.panel.save.click()
    pictures = sorted(tmp_path.glob("*.png"))
    assert len(pictures) == 2 and pictures[0].name.split(".")[0] in say(bench) and "Download</a>" in say(bench)
    with Image.open(pictures[0]) as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.02) and picture.width == round(300 * SIZE[0])
    content = json.loads(pictures[0].with_suffix(".json").read_text())
    assert content["versions"].keys() >= {"python", "torch"} and content["shown"]["seed"] == 0
    assert Experiment.from_json(content["runs"][1]["segments"][-1]["experiment"]) == bench.runs[1].experiment
    bench.panel.kind.value = "csv"
    bench.panel.save.click()
    (table,) = tmp_path.glob("*.csv")
    frame = pd.read_csv(table)
    assert frame.groupby("run")["round"].apply(list).to_dict() == {"FedAvg": [0, 1, 2], "branch": [0, 1, 2, 3]}
    assert set(frame.columns) >= {"test_accuracy", "drift", "total_bytes_up", "parent", "forked_at"}


def test_report_is_the_same_every_time_and_tells_no_time(monkeypatch):
    shown = []
    monkeypatch.setattr("fedlab_core.workbench.export.display", lambda data, raw: shown.append(data))
    for _ in range(2):
        bench = Workbench(SMALL)
        assert str(bench.report()) == "No runs yet."
        bench.run(2, block=True)
        bench.fork("branch", at=1, epochs=2)
        bench.run(2, block=True)
        bench.report()._ipython_display_()
    picture, table = shown[:2]
    assert shown[2:] == [picture, table]
    assert picture["image/png"].startswith(b"\x89PNG") and "FedAvg" in picture["text/plain"]
    assert "<td>FedAvg, round 1</td>" in table["text/html"] and "branch" in table["text/plain"]


def test_the_panel_in_a_file_is_one_line(bench):
    bundle = bench._repr_mimebundle_()
    assert bundle["text/plain"] == "[interactive: run this cell in JupyterLab to use it]"
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == bench.view.model_id


def inside(widget: Widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


def test_every_control_has_words(bench):
    bench.set(partition="dirichlet", method="fedprox")
    passive = ("HTMLModel", "ImageModel", "FloatProgressModel")
    controls = [w for w in inside(bench.view) if isinstance(w, ValueWidget | Button) and w._model_name not in passive]
    assert len(controls) > 25
    for control in controls:
        tooltip = control.tooltips if control is bench.panel.tabs else control.tooltip
        unlabelled = (bench.panel.tabs, bench.panel.kind, bench.panel.way_out)
        assert (tooltip and control.description) or control in unlabelled, control
        if isinstance(control, BoundedIntText | FloatSlider | FloatLogSlider):
            assert " to " in tooltip.partition("Accepted: ")[2], control
    assert all(isinstance(w, DOMWidget) for w in controls)


def test_no_slider_that_trains_fires_while_it_is_dragged(bench):
    sliders = [w for w in inside(bench.controls.view) if hasattr(w, "continuous_update")]
    sliders.append(bench.controls.option("partition", "alpha"))
    assert len(sliders) >= 9 and not any(slider.continuous_update for slider in sliders)
    assert bench.panel.round.continuous_update


experiments = st.builds(
    lambda partition, method, model, **values: SMALL.replace(
        partition=partition[0], partition_options=partition[1], method=method[0], method_options=method[1],
        model=model[0], norm=model[1], batch_norm=model[2], **values
    ),
    partition=st.sampled_from(
        [("iid", {}), ("shards", {"per_client": 3}), ("dirichlet", {"alpha": 0.07}), ("quantity", {"sigma": 0.5}),
         ("iid", {"feature_skew": "noise", "strength": 0.5})]
    ),
    method=st.sampled_from([("fedavg", {}), ("fedsgd", {}), ("fedprox", {"mu": 0.3}), ("scaffold", {})]),
    model=st.sampled_from([("2nn", "none", None), ("mlp", "group", None), ("mlp", "batch", "frozen")]),
    clients=st.integers(1, 300), fraction=st.integers(0, 20).map(lambda i: i / 20), epochs=st.integers(1, 40),
    batch_size=st.none() | st.integers(1, 300), lr=st.sampled_from([3e-5, 0.0123, 0.1, 0.215, 3.0]),
    seed=st.integers(0, 9), momentum=st.sampled_from([0.0, 0.9]), start=st.sampled_from(["random", "letters"]),
)  # fmt: skip


@settings(max_examples=30)
@given(first=experiments, second=experiments)
def test_controls_say_what_was_loaded(first, second):
    controls = Controls(first, lambda: None)
    assert controls.experiment == first
    controls.load(second)
    assert controls.experiment == second


def test_every_policy_has_words():
    assert POLICY_LABELS.keys() == BATCH_NORM_POLICIES.keys()


def test_a_log_slider_reads_well():
    controls = Controls(SMALL, lambda: None)
    controls.lr.value = 10**-1.3
    assert controls.lr.value == 0.05
    controls.lr.value = 0.215
    assert controls.experiment.settings.lr == 0.215


def test_differences_in_words():
    other = SMALL.replace(batch_size=None, method="fedprox", method_options={"mu": 0.1}, batch_norm="local")
    assert list(changes(SMALL, other).values()) == [
        "method FedAvg → FedProx", "B 10 → all", "batch norm none → local"
    ]  # fmt: skip
    assert list(changes(other, other.replace(method_options={"mu": 0.2})).values()) == ["mu 0.1 → 0.2"]
    assert changes(SMALL, SMALL.replace()) == {}
    assert [unique("a", taken) for taken in ([], ["a"], ["a", "a (2)"])] == ["a", "a (2)", "a (3)"]
