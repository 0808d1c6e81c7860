"""A lab without a browser: its knobs, the same path as its buttons, stopping, comparing, and what it exports."""

import threading
from dataclasses import replace

import ipywidgets as widgets
import pytest

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.workbench.fields import knob
from fedlab_core.workbench.lab import Lab
from fedlab_core.workbench.pictures import put
from fedlab_core.workbench.plan import Band, Plan, draw_pair
from fedlab_core.workbench.worker import Busy

SMALL = Experiment(dataset_options={"examples": 200}, clients=4).replace(fraction=0.5, epochs=1, lr=0.1)


def make(alpha, mu):
    skewed = SMALL.replace(partition="dirichlet", partition_options={"alpha": alpha})
    return {"FedAvg": skewed, "FedProx": skewed.replace(method="fedprox", method_options={"mu": mu})}


PLAN = Plan(
    "Does FedProx help?", make, {"alpha": (0.1, 0.5, 1.0), "mu": (0.01, 1.0)}, {"alpha": 0.5}, rounds=3,
    experiment=lambda alpha, mu: make(alpha, mu)["FedProx"],
)  # fmt: skip


def counting(**_):
    return {"numbers": iter(range(100))}


def one_frame(figure, result):
    figure.subplots().plot(result.frames["numbers"])


def numbers_plan(**changes):
    given = {"rounds": 5, "draw": one_frame, "sentence": lambda r: f"{len(r.frames['numbers'])} numbers"} | changes
    return Plan("numbers", counting, {"knob": (1, 2, 3)}, **given)


def gated_lab():
    """A lab whose runs wait, and by setting of its knob what they wait for."""
    gates = {1: threading.Event(), 2: threading.Event(), 3: threading.Event()}

    def gated(knob):
        return {"numbers": (number for number in range(5) if gates[knob].wait())}

    return Lab(replace(numbers_plan(), make=gated)), gates


def test_a_lab_runs_exactly_what_its_experiments_say():
    lab = Lab(PLAN).set(alpha=0.5, mu=1.0).run(block=True)
    for name, experiment in make(0.5, 1.0).items():
        expected = [record.metrics for record in experiment.build().run(3).history]
        assert [record.metrics for record in lab.result.frames[name]] == expected
    last = lab.result.last("FedAvg").metrics["test_accuracy"]
    assert lab.sentence.startswith(f"Test accuracy after 3 rounds: FedAvg {last:.3f}")


def test_earlier_results_are_one_word_of_the_legend():
    lab = Lab(replace(PLAN, draw=draw_pair)).run(block=True)
    assert [len(ax.get_lines()) for ax in lab.figure.axes] == [2, 2]
    lab.set(mu=1.0).run(block=True).set(mu=0.01).run(block=True)
    left, right = lab.figure.axes
    assert len(left.get_lines()) == len(right.get_lines()) == 6 and right.get_ylim()[0] == 0
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["before", *lab.result.frames]


def test_rounds_are_whole_on_every_axis_that_counts_them():
    for rounds in (1, 2, 3):
        figure = Lab(replace(PLAN, rounds=rounds)).run(block=True).figure
        (ax,) = [ax for ax in figure.axes if ax.get_xlabel() == "round"]
        assert all(float(place).is_integer() for place in ax.get_xticks())


def test_a_long_sentence_has_lines_and_a_knob_says_what_it_takes():
    lab = Lab(replace(PLAN, sentence=lambda result: "a b " * 60)).run(block=True)
    assert max(map(len, lab.sentence.splitlines())) <= 100 and lab.sentence.split() == ["a", "b"] * 60
    assert lab.knobs["mu"].tooltip == "mu\nvalues: " + "; ".join(f"{value:g}" for value in PLAN.knobs["mu"])
    assert replace(PLAN, about={"mu": "Strength"}).hover("mu").startswith("mu: Strength\nvalues: ")
    plan = Plan("Words", PLAN.make, {"stage_rounds": ("layer_wise", "end_to_end")})
    shown = knob(plan, "stage_rounds")
    assert (shown.description, shown.label, shown.value) == ("stage-rounds", "layer-wise", "layer_wise")


def test_photographs_and_scales_of_colours_keep_theirs_in_the_dark():
    image, drawings = widgets.Image(), {"plot": False, "imshow": True, "contourf": True}
    for draw, keeps in drawings.items():
        fig, axes = plots.figure()
        getattr(axes[0, 0], draw)([[0, 1], [1, 2]])
        put(image, fig, b"")
        assert ("fedlab-colours" in image._dom_classes) == keeps, draw


def test_the_buttons_do_what_the_calls_do():
    called, pressed = Lab(PLAN).set(mu=1.0).run(block=True), Lab(PLAN)
    pressed.knobs["mu"].value = 1.0  # a moved knob takes a first look
    pressed._run.click()
    pressed.wait()
    assert [r.metrics for r in pressed.result.frames["FedProx"]] == [r.metrics for r in called.result.frames["FedProx"]]
    assert pressed._image.value[:4] == b"\x89PNG" and "FedProx" in pressed._said.value
    assert "took" in pressed._about.value


def test_a_move_that_a_press_on_run_has_overtaken_counts_as_made_before(monkeypatch):
    lab, gates = gated_lab()
    lab.run()
    gates[1].set()
    gates[2].set()
    lab.knobs["knob"].value = 2
    lab.wait()
    assert lab.result.settings == {"knob": 2} and lab.result.done
    lab.run(block=True)  # nothing is left to do for knob 2
    gates[1].set()
    lab.knobs["knob"].value = 1
    lab.wait()
    assert lab.result.settings == {"knob": 1} and lab.result.done
    lab.set(knob=3).run()
    monkeypatch.setattr("fedlab_core.workbench.lab.OVERTAKEN", 0.0)
    lab.knobs["knob"].value = 1
    assert "Run starts with the new ones" in lab._status.value
    gates[3].set()
    lab.wait()
    assert lab.result.settings == {"knob": 3}


def viewed(make=counting):
    """A lab with a knob that only chooses what is shown."""
    knobs = {"knob": (1, 2), "shown": ("first", "second")}
    words = {"sentence": lambda r: f"{r.settings['shown']} of {len(r.frames['numbers'])}"}
    return Lab(Plan("numbers", make, knobs, rounds=5, draw=one_frame, views=("shown",), **words))


def test_a_view_redraws_what_is_there_and_trains_nothing():
    lab = viewed().run(block=True)
    before, picture = lab.result, lab._image.value
    lab.knobs["shown"].value = "second"
    assert "second of 5" in lab._said.value and lab.result is before and not lab._worker.busy and lab.kept == []
    assert lab._image.value == picture  # drawn again, of the same frames
    assert lab.set(shown="first").sentence == "first of 5" and "first of 5" in lab._said.value
    assert lab.set(shown="second").run(block=True).result is before and lab.result.settings["shown"] == "second"
    assert lab.set(knob=2).run(block=True).result is not before and len(lab.kept) == 1


def test_a_view_redraws_while_the_run_goes_on():
    reached, gate = threading.Event(), threading.Event()

    def frames():
        yield from (0, 1)
        reached.set()
        gate.wait(30)
        yield from (2, 3, 4)

    made = []
    lab = viewed(lambda **_: made.append(1) or {"numbers": frames()})
    lab.run()
    assert reached.wait(30)
    lab.knobs["shown"].value = "second"
    assert "second of 2" in lab._said.value and lab._worker.busy and not lab._worker.stop.is_set()
    with pytest.raises(Busy, match="Already running"):
        lab.run()
    gate.set()
    lab.wait()
    assert lab.result.done and made == [1] and lab.sentence == "second of 5"


def test_run_begins_anew_where_the_knobs_were_moved_since(monkeypatch):
    lab, gates = gated_lab()
    lab.run()
    monkeypatch.setattr("fedlab_core.workbench.lab.OVERTAKEN", 0.0)
    lab.knobs["knob"].value = 2
    assert "Run starts with the new ones" in lab._status.value
    gates[1].set()
    gates[2].set()
    lab._run.click()
    lab.wait()
    assert lab.result.settings == {"knob": 2} and lab.result.done
    lab.set(knob=3).run()
    with pytest.raises(Busy, match="Already running"):
        lab.run()
    gates[3].set()
    lab.wait()
    assert lab.result.settings == {"knob": 3} and lab.result.done


def test_a_first_look_is_gone_on_with_and_measures_how_long_the_rest_takes():
    gate = threading.Event()

    def slowly(**_):
        def frames():
            yield from (0, 1)
            gate.wait(30)
            yield from range(2, 10)

        return {"numbers": frames()}

    lab = Lab(Plan("slow", slowly, {"knob": (1, 2)}, rounds=4, draw=one_frame, sentence=lambda r: str(r.frames)))
    lab._worker.start(lambda: lab._advance(0.0))
    lab.wait(30)
    assert lab.result.frames == {"numbers": [0, 1]} and "about" in lab._about.value and not lab.result.done
    gate.set()
    lab.run(block=True)
    assert lab.result.frames == {"numbers": [0, 1, 2, 3]} and lab.result.done


def test_stop_keeps_what_was_finished_and_run_goes_on_from_there():
    lab = Lab(numbers_plan(rounds=50))
    steps = lab._step

    def step_and_stop(result, name):
        if len(result.frames[name]) == 7:
            lab.stop()
        return steps(result, name)

    lab._step = step_and_stop
    lab.run(block=True)
    assert len(lab.result.frames["numbers"]) == 8 and "Stopped" in lab._status.value
    lab._step = steps
    assert len(lab.run(block=True).result.frames["numbers"]) == 50


def test_the_last_results_stay_for_comparison():
    lab = Lab(numbers_plan())
    for value in (1, 2, 3, 1, 2, 3):
        lab.set(knob=value).run(block=True)
    assert [old.settings["knob"] for old in lab.kept] == [2, 3, 1, 2] and lab.result.settings == {"knob": 3}
    assert lab.result.earlier == tuple(lab.kept) and lab._list.value.count("5 numbers") == 4


def test_a_complete_result_is_not_run_again():
    lab = Lab(numbers_plan()).run(block=True)
    before = lab.result
    assert lab.run(block=True).result is before


def test_wrong_knobs_and_values_are_named():
    lab = Lab(PLAN)
    with pytest.raises(ValueError, match=r"'beta' is no knob, accepted: \['alpha', 'mu'\]"):
        lab.set(beta=1)
    with pytest.raises(ValueError, match=r"alpha=7, accepted: \[0.1, 0.5, 1.0\]"):
        lab.set(alpha=7)
    with pytest.raises(ValueError, match="no result yet"):
        _ = lab.result


def test_an_error_reaches_the_caller_and_the_panel():
    def broken(**_):
        raise ValueError("lr=-1, accepted: > 0")

    lab = Lab(Plan("broken", broken, {"knob": (1, 2)}))
    with pytest.raises(ValueError, match="lr=-1"):
        lab.run(block=True)
    assert "lr=-1" in lab._text.value


def test_copied_code_repeats_the_run():
    lab = Lab(PLAN).set(alpha=0.1, mu=1.0).run(block=True)
    assert "Lab(PLAN).set(alpha=0.1, mu=1.0).run(block=True)\n" in lab.code()
    made = {}
    exec(lab.code(), made)
    expected = [r.metrics for r in lab.result.frames["FedProx"]]
    for again in (made["lab"].result.frames["FedProx"], made["federation"].history):
        assert [r.metrics for r in again] == expected


def test_copied_code_of_a_plan_without_a_name_speaks_of_the_readers_own_lab():
    assert Lab(numbers_plan()).code() == "lab.set(knob=1).run(block=True)  # lab: of your own plan"


def test_the_workbench_opens_with_the_same_experiment():
    bench = Lab(PLAN).set(alpha=0.1).open_workbench()
    assert bench.experiment.partition_options == {"alpha": 0.1} and bench.experiment.method == "fedprox"
    with pytest.raises(ValueError, match="no single experiment"):
        Lab(numbers_plan()).open_workbench()


def test_a_second_workbench_takes_the_place_of_the_first_which_stops():
    lab = Lab(PLAN)
    first = lab.open_workbench()
    first.run(500)
    second = lab.open_workbench()
    first.wait()
    assert not first.busy and lab.view.children[-1] is second.view and first.view not in lab.view.children


def test_what_is_shown_holds_a_picture_for_readers_without_widgets():
    lab = Lab(numbers_plan()).run(block=True)
    bundle = lab._bundle()
    assert bundle["text/plain"] == "[lab: numbers]" and bundle["image/png"].startswith("iVBOR")


def test_a_band_is_the_mean_of_its_curves_with_students_interval():
    band = Band.of_curves("recorded", (0, 1), [(0.0, 1.0), (2.0, 1.0), (4.0, 1.0)])
    half = 4.302653 * 2.0 / 3**0.5  # t(0.975, 2 degrees of freedom) x sd / sqrt(n)
    assert band.mean == [2.0, 1.0] and band.seeds == 3
    assert band.low == pytest.approx([2 - half, 1.0]) and band.high == pytest.approx([2 + half, 1.0])
