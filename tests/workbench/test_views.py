"""What the views compute: arrows, lines, and code that rebuilds a run."""

import base64
import dataclasses
import gc
import io
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from fedlab_core import plots
from fedlab_core.data import load_dataset
from fedlab_core.partition import iid
from fedlab_core.randomness import generator
from fedlab_core.state import flatten
from fedlab_core.workbench import export
from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.pictures import DPI, LIVE_DPI, FramePace, Live, dying_young, png
from fedlab_core.workbench.tabs import SIZE, clients_view, curves_view, draw_holdings, waiting_view
from fedlab_core.workbench.text import numbers, sentence
from fedlab_core.workbench.views.drift import arrows, draw_arrows
from tests.workbench.panels import PATIENCE, SMALL


@settings(max_examples=8, deadline=None)
@given(clients=st.integers(1, 6), seed=st.integers(0, 99), round=st.integers(1, 2))
def test_arrows_are_the_updates_seen_in_their_plane(clients, seed, round):
    federation = SMALL.replace(clients=clients, fraction=1.0, seed=seed, model="mlp", partition="iid").build().run(2)
    found, inside = arrows(federation, round), federation.inside(round)
    names = federation.trained_names
    moved = [flatten(u.state, names) - flatten(inside.start, names) for u in inside.updates]
    sizes = np.array([m.norm().item() for m in moved])
    lengths = np.linalg.norm(found.tips, axis=1)
    assert found.clients == tuple(range(clients)) and (lengths <= sizes * (1 + 1e-4)).all()
    assert found.share == pytest.approx((lengths**2).sum() / (sizes**2).sum(), rel=1e-3)
    assert found.mean == pytest.approx(np.array(inside.shares) @ found.tips) and found.mean[0] >= 0
    if clients <= 2:  # two arrows lie in a plane: nothing of them is lost
        assert found.share == pytest.approx(1, abs=1e-4) and lengths == pytest.approx(sizes, rel=1e-3)
        angles = torch.stack(moved) @ torch.stack(moved).T
        assert found.tips @ found.tips.T == pytest.approx(angles.numpy(), rel=1e-2, abs=1e-5)


def test_arrows_are_drawn_from_the_received_model_with_the_mean_on_top():
    found = arrows(SMALL.build().run(1), 1)
    fig, ((ax,),) = plots.figure()
    draw_arrows(ax, found, "C0")
    (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    for x, y in [(0, 0), *found.tips, found.mean]:
        assert low < x < high and bottom < y < top
    assert high - low == pytest.approx(top - bottom)


def test_the_line_between_two_runs_ends_at_their_models(bench):
    bench.run(2, block=True)
    bench.fork("other", at=1, lr=0.02)
    bench.run(1, block=True)
    bench.panel.tabs.value = "Basin"
    bench.wait(PATIENCE)
    assert bench.panel.against.label == "FedAvg"  # a fork is compared with its parent
    loss = bench._display.figure().axes[0].lines[0].get_ydata()
    ends = [run.federation.history[2].metrics["test_loss"] for run in bench.runs]
    assert (loss[0], loss[-1]) == pytest.approx(tuple(ends), rel=1e-5)
    bench.panel.against.value = -1
    bench.wait(PATIENCE)
    start = bench.result.history[0].metrics["test_loss"]
    assert bench._display.figure().axes[0].lines[0].get_ydata()[0] == pytest.approx(start, rel=1e-5)


def test_code_rebuilds_the_run_forks_and_all(bench):
    bench.run(2, block=True)
    bench.fork("branch", at=1, method="fedadam", method_options={"server_lr": 0.02}, lr=0.05)
    bench.run(2, block=True)
    bench.fork(at=2, steps=3)
    bench.run(1, block=True)
    for run in bench.runs:
        names: dict = {}
        exec(export.code(run), names)
        assert names["federation"].history == run.federation.history


def report_of(bench, view, tmp_path, monkeypatch):
    """The page of a run of one round, with that view in front; nothing in it is trained again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "REPLAYED", 0)
    bench.run(1, block=True)
    bench.panel.tabs.value = view
    assert bench._worker.join(PATIENCE)
    return bench.save("html").read_text()


@pytest.mark.parametrize("name", ["Clients", "Drift", "Stability", "Basin", "Twins"])
def test_a_report_holds_the_picture_that_is_shown(bench, name, pictures, tmp_path, monkeypatch):
    page = report_of(bench, name, tmp_path, monkeypatch)
    picture = base64.b64decode(page.split("data:image/png;base64,")[1].split("'")[0])
    assert picture == bytes(bench.panel.image.value) and picture.startswith(b"\x89PNG")
    assert "<img class='lines'" in page  # what a dark page may invert


@pytest.mark.parametrize("name", ["Curves", "Costs"])
def test_a_report_shows_what_every_report_has_once(bench, name, tmp_path, monkeypatch):
    page = report_of(bench, name, tmp_path, monkeypatch)
    assert "<h2>Picture" not in page and page.count("<h2>Curves") == page.count("<h2>Costs") == 1


def test_a_scale_of_colours_keeps_them_in_a_dark_report(bench):
    bench.run(1, block=True)
    run, data = bench._display.current, load_dataset("digits")
    figure = waiting_view(data, iid(len(data.x), 4, generator(0, "test")))
    assert "<img class='colours'" in export.page(run, [run], figure, 0)


def test_a_long_description_of_who_holds_what_is_not_cut_off():
    data, part = load_dataset("python_docs"), iid(40, 4, generator(0, "test"))
    part = dataclasses.replace(part, description="natural(min_size=5, 27 groups left out), 28 clients")
    figure = waiting_view(data.subset(40, 10), part)
    FigureCanvasAgg(figure).draw()
    box = figure.axes[0].title.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0 and box.y1 <= figure.bbox.height


def test_a_picture_of_another_view_is_not_taken_for_the_one_chosen(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench.run(1, block=True)
    monkeypatch.setattr(bench._display, "draw", lambda: None)  # the drawing is not done yet
    bench.panel.tabs.value = "Drift"
    assert "data:image/png" not in bench.save("html").read_text()


@pytest.mark.parametrize("on", [True, False])
def test_the_garbage_collector_is_as_it_was_after_a_picture(on):
    was = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        with pytest.raises(ZeroDivisionError), dying_young():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() is on
    finally:
        (gc.enable if was else gc.disable)()


def test_a_sentence_begins_large_and_names_stay_as_they_are():
    assert [sentence(words) for words in ("shared, FedAvg: 2", "FedAvg", "")] == ["Shared, FedAvg: 2.", "FedAvg.", "."]


def test_a_picture_is_encoded_as_it_was_drawn(pictures):
    fig, ((ax,),) = plots.figure()
    draw_arrows(ax, arrows(SMALL.build().run(1), 1), "C0")
    with Image.open(io.BytesIO(png(fig, 150))) as picture:
        picture.verify()  # its checksums
    with Image.open(io.BytesIO(png(fig, 150))) as picture:
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.02) and picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), np.asarray(fig.canvas.buffer_rgba())[..., :3])


def test_live_pictures_keep_the_places_of_the_last_careful_one(pictures):
    live_pictures = Live()
    bench = Workbench(SMALL)
    bench.run(2, block=True)
    sizes, places = [], []
    for live in (False, True):
        figure = bench._display.figure()
        content = live_pictures.png("Curves", figure, live=live)
        assert live_pictures.quick is live
        sizes.append(int.from_bytes(content[16:20], "big"))
        places.append([tuple(ax.get_position().bounds) for ax in figure.axes])
    assert sizes == [int(7.4 * DPI), int(7.4 * LIVE_DPI)] and places[0] == places[1]


@pytest.mark.parametrize("name", ["Curves", "Clients", "Costs", "Drift", "Basin"])
def test_live_pictures_are_those_drawn_from_scratch(bench, name, pictures):
    """Ticks and legends put as pixels, on axes that move and on axes that rest, with a fork that comes in between."""
    bench.run(4, block=True)
    live, run, view = Live(), bench.runs[0], bench._display.views[name]
    live.png(name, view.draw(run, 2), live=False)
    for round in (1, 2, 2, 3, 3, 4):
        if round == 4:
            bench.fork("branch", at=2, lr=0.02)
            bench.run(1, block=True)
        figure = view.draw(run, round)
        seen = live.png(name, figure, live=True)
        for artist in [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)] + figure.legends:
            del artist.draw
        seen, scratch = (np.asarray(Image.open(io.BytesIO(content))) for content in (seen, png(figure, LIVE_DPI)))
        assert np.abs(seen.astype(int) - scratch).max() <= 1  # of 255: pixels are blended as whole numbers


def test_a_live_picture_without_places_is_laid_out_with_care_and_said_to_be(pictures):
    bench, live = Workbench(SMALL), Live()
    bench.run(1, block=True)
    said = []
    for _ in range(2):
        live.png("Curves", bench._display.figure(), live=True)
        said.append(live.quick)
    assert said == [False, True]


@pytest.mark.parametrize(("round", "drawing"), [(0.01, 0.02), (0.01, 0.06), (0.05, 0.15), (0.6, 0.05), (0.001, 0.3)])
def test_live_pictures_take_their_share_of_the_time_and_no_more(monkeypatch, round, drawing):
    clock = [100.0]
    monkeypatch.setattr("fedlab_core.workbench.pictures.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    pace, spent, shown = FramePace(), 0.0, [100.0]
    while clock[0] < 160:
        clock[0] += round
        if pace.due:
            began, held_up = clock[0], 1.0 * (130 < clock[0] < 131)
            clock[0] += drawing + held_up
            spent += drawing
            shown.append(clock[0])
            pace.drawn(began, live=True)
    assert 0 < spent / 60 < 0.2
    most = max(round + drawing, 0.2, drawing / 0.18)  # seconds from one picture to the next
    assert len(shown) > 0.8 * 60 / most and max(np.diff(shown)) < 1 + 3 * most


def test_live_pictures_of_axes_without_ticks_of_flat_ones_and_of_none(pictures):
    live, seen = Live(), []
    for round in range(4):
        fig, ((bare, off, flat),) = plots.figure(1, 3)
        bare.set(xticks=[], yticks=[])
        off.set_axis_off()
        flat.set(yticks=[], ylim=(0, 1), xlabel="x")
        for ax in (bare, off, flat):
            ax.plot([0, 1], [0, 1])
        seen.append(np.asarray(Image.open(io.BytesIO(live.png("three", fig, live=round > 0)))))
    assert all(np.abs(one.astype(int) - seen[1]).max() <= 1 for one in seen[2:])


def test_a_band_says_on_how_many_examples_it_was_measured():
    bench = Workbench(SMALL)
    assert bench.experiment.settings.client_examples == 1000  # more than digits have
    bench.run(1, block=True)
    bench.set(client_examples=50)
    bench.run(1, block=True)
    legends = [curves_view(run).axes[0].get_legend_handles_labels()[1] for run in (bench.runs[0], bench.runs[1])]
    assert "clients' own models, worst to best" in legends[0]
    assert "clients on 50 test examples, worst to best" in legends[1]
    assert [" on 50 examples" in numbers(run.at(1)) for run in bench.runs] == [False, True]
    assert [clients_view(run, 1).axes[1].get_xlabel() for run in bench.runs] == [
        "test accuracy",
        "test accuracy on 50 examples",
    ]


@pytest.mark.parametrize(("classes", "long"), [(17, 1), (37, 1), (101, 12)])
def test_many_classes_have_a_bar_of_colours_whose_names_do_not_overlap(classes, long):
    names = tuple(f"{chr(97 + c % 26)}{c}".ljust(long, "x") for c in range(classes))
    data = dataclasses.replace(
        load_dataset("digits").subset(4 * classes), classes=names, y=torch.arange(4 * classes) % classes
    )
    partition = iid(4 * classes, 4, generator(0, "partition"))
    fig, ((ax, *_),) = plots.figure(1, 3, SIZE)
    draw_holdings(ax, data, partition)
    bar = fig.axes[-1]
    assert len(fig.axes) == 4 and bar is not ax
    FigureCanvasAgg(fig).draw()
    boxes = [label.get_window_extent() for label in bar.get_xticklabels()]
    assert len(boxes) >= 2 and all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))
