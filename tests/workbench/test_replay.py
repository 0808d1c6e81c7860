"""Replays: pictures as plain data, the committed ones of the labs, and the page of a run that plays one."""

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import export, replay, scene
from fedlab_core.workbench.labs.rounds import TUG_OF_WAR
from fedlab_core.workbench.plan import Result
from fedlab_core.workbench.runs import Run
from fedlab_core.workbench.views.drift import Arrows, arrows, draw_arrows
from tools import replays

KEPT = sorted(replays.FOLDER.glob("*.json"))


def frame(panel: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The items of a frame, as the player draws them."""
    found = []
    for ref in panel["frames"][number]:
        index, points = ref if isinstance(ref, list) else (ref, None)
        item = panel["items"][index]
        found.append(item if points is None else {**item, "p": item["p"][: 2 * points]})
    return found


@given(st.lists(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 3), max_size=4)), max_size=4)))
def test_pooling_loses_nothing(frames: list[list[tuple[str, list[int]]]]) -> None:
    whole = [[{"t": "line", "c": c, "p": [v for v in p for _ in "xy"]} for c, p in items] for items in frames]
    panel = scene.pooled(whole)
    assert [frame(panel, number) for number in range(len(whole))] == whole


def test_a_growing_curve_is_kept_once() -> None:
    figures = []
    for count in (1, 2, 3, 9):
        fig, axes = plots.figure()
        axes[0, 0].plot(range(count), [i * i for i in range(count)], color="black")
        figures.append(fig)
    (panel,) = scene.replay(figures)
    assert len(panel["items"]) == 1 and panel["items"][0]["c"] == "ink"
    ends = [frame(panel, number)[0]["p"] for number in range(4)]
    assert [len(p) // 2 for p in ends] == [1, 2, 3, 9] and ends[2] == ends[3][:6]
    x0, x1 = panel["looks"][0]["xticks"][0][0], ends[3][0]
    assert abs(x0 - x1) <= 1, "the first tick, 0, stands at the first point"


def test_places_are_those_of_the_axes_on_every_scale() -> None:
    fig, axes = plots.figure(1, 2)
    axes[0, 0].plot([0, 5, 10], [1, 10, 100], "o")
    axes[0, 0].set(xlim=(0, 10), ylim=(1, 100), yscale="log")
    axes[0, 1].bar([0, 1], [2, 4], color="red", label="bars")
    axes[0, 1].set(xlim=(-1, 2), ylim=(0, 4))
    axes[0, 1].annotate("", (2, 4), (-1, 0), arrowprops={"arrowstyle": "-|>"})
    curve, bars = scene.replay([fig])
    assert frame(curve, 0)[0]["p"] == [0, 0, 500, 500, 1000, 1000]
    shapes = [item for item in frame(bars, 0) if item["t"] == "shape"]
    assert [max(s["p"][0][1::2]) for s in shapes] == [500, 1000]
    assert {(s["f"], s["l"]) for s in shapes} == {("#ff0000", "bars")}
    (arrow,) = [item for item in frame(bars, 0) if item["t"] == "arrow"]
    assert arrow["p"] == [0, 0, 1000, 1000]


def test_words_that_stand_slanting_are_turned() -> None:
    fig, axes = plots.figure()
    axes[0, 0].plot([0, 1], [0, 1])
    axes[0, 0].annotate("cause", (0.5, 1.0), rotation=45)
    axes[0, 0].text(0.5, 0.5, "level")
    (panel,) = scene.replay([fig])
    assert {item["s"]: item.get("r") for item in frame(panel, 0) if item["t"] == "text"} == {"cause": 45, "level": None}


def test_ticks_stand_inside_their_axes() -> None:
    fig, axes = plots.figure()
    axes[0, 0].semilogy([0, 1], [1e-16, 10])
    axes[0, 0].set_ylim(1e-17, 100)
    (panel,) = scene.replay([fig])
    (look,) = panel["looks"]
    assert len(look["yticks"]) > 2 and all(0 <= place <= 1000 for place, _ in look["xticks"] + look["yticks"])


def test_a_ring_stays_open() -> None:
    fig, axes = plots.figure()
    axes[0, 0].plot(0, 0, "o", label="full")
    axes[0, 0].plot(0, 0, "o", markerfacecolor="none", label="ring")
    (panel,) = scene.replay([fig])
    assert {item["l"]: item.get("o", 0) for item in frame(panel, 0)} == {"full": 0, "ring": 1}


def test_short_updates_of_a_late_round_are_drawn_long_with_their_own_scale() -> None:
    figures = []
    for size in (10.0, 0.1):
        found = Arrows((0, 1), np.array([[size, 0.0], [0.0, size]]), np.array([size / 2, size / 2]), 1.0)
        fig, axes = plots.figure()
        draw_arrows(axes[0, 0], found, "red")
        figures.append(fig)
    (panel,) = scene.replay(figures)
    early, late = ([item["p"] for item in frame(panel, n) if item["t"] == "arrow"] for n in range(2))
    assert early == late and len(early) == 3
    ends = [max(float(word.replace("−", "-")) for _, word in look["xticks"]) for look in panel["looks"]]
    assert ends[0] == pytest.approx(100 * ends[1])


def test_labels_are_plain_characters() -> None:
    assert scene.plain(r"drift: mean $\Vert w_k - w_t \Vert$") == "drift: mean ‖ wₖ - wₜ ‖"
    assert scene.plain(r"$\mathdefault{10^{-2}}$") == "1e-2"


def test_every_lab_has_a_replay_of_its_first_settings() -> None:
    plans = replays.plans()
    assert {path.stem for path in KEPT} == plans.keys() and len(plans) > 15
    for path in KEPT:
        data, plan = json.loads(path.read_text(encoding="utf-8")), plans[path.stem]
        settings = {name: plan.start.get(name, values[0]) for name, values in plan.knobs.items()}
        assert data["title"] == plan.title
        assert data["settings"] == Result(settings, {}).label
        assert path.stat().st_size <= replays.MOST_BYTES, path.name
        count = len(data["steps"])
        assert count == len(data["said"]) <= plan.length(settings) and all(data["said"])
        for panel in data["panels"]:
            assert len(panel["frames"]) == count and any(frame(panel, n) for n in range(count))
            words = [word for look in panel["looks"] for word in (look["title"], look["x"], look["y"])]
            words += [item["s"] for item in panel["items"] if item["t"] == "text"]
            assert not [word for word in words if "$" in word or "\\" in word], path.name


def test_what_a_replay_does_not_show_is_said_with_its_reason() -> None:
    """Some replays lack the updates, or who holds what too, and the page names each."""
    without: dict[str, set[str]] = {"updates": set(), "holdings": set()}
    for path in KEPT:
        data = json.loads(path.read_text(encoding="utf-8"))
        titles = {look["title"] for panel in data["panels"] for look in panel["looks"]}
        if not any("updates" in title for title in titles):
            without["updates"].add(data["title"])
        if "who holds what" not in titles:
            without["holdings"].add(data["title"])
    said = (replays.FOLDER.parent / "replays.md").read_text(encoding="utf-8")
    named = {line.split("*")[2]: line for line in said.splitlines() if line.startswith("* *")}
    assert named.keys() == without["updates"]
    assert {title for title, line in named.items() if "shows neither" in line} == without["holdings"]


def test_the_updates_of_a_replay_are_arrows_from_the_received_model() -> None:
    federation = Experiment(clients=6).replace(fraction=0.5, steps=1).build().run(1)
    found = arrows(federation, 1)
    (panel, _) = scene.replay([replay.clients_figure(federation, 1)])
    ends = np.array([item["p"] for item in frame(panel, 0) if item["t"] == "arrow"], dtype=float).reshape(-1, 2, 2)
    moved = ends[:, 1] - ends[:, 0]
    assert len(moved) == 3 + 1 and len(np.unique(ends[:, 0], axis=0)) == 1
    tips = np.concatenate((found.tips, found.mean[None]))
    scale = moved[np.abs(tips).argmax() // 2] / tips[np.abs(tips).argmax() // 2]
    assert moved == pytest.approx(tips * scale, abs=3)


def test_committed_replays_show_an_arrow_for_each_update() -> None:
    for path in KEPT:
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            if "mean (thick)" in panel["looks"][0]["title"]:
                drawn = [[item["t"] for item in frame(panel, n)].count("arrow") for n in range(len(panel["frames"]))]
                assert all(count > 1 for count, items in zip(drawn, panel["frames"], strict=True) if items), path


def test_words_beside_a_place_stand_there() -> None:
    """An offset in points is kept: a number above a bar is not drawn on its edge."""
    fig, axes = plots.figure()
    axes[0, 0].plot([0, 1], [0, 1])
    for shift, word in ((0, "on"), (9, "above")):
        axes[0, 0].annotate(word, (0.5, 0.5), (0, shift), textcoords="offset points")
    (panel,) = scene.replay([fig])
    on, above = (next(i["p"] for i in frame(panel, 0) if i.get("s") == word) for word in ("on", "above"))
    height = axes[0, 0].get_window_extent().height / fig.dpi * 72
    assert on[0] == above[0] and above[1] - on[1] == pytest.approx(1000 * 9 / height, abs=1.5)


def test_a_lab_is_recorded_with_who_holds_what() -> None:
    data = replay.lab_replay(TUG_OF_WAR, frames=2)
    assert data["steps"] == ["1 of 2", "2 of 2"] and "in round 2;" in data["said"][1]
    colors = [item["c"] for item in frame(data["panels"][0], 1) if item["t"] == "arrow"]
    assert len(colors) == 5 + 1 and colors.count("ink") == 1
    lengths = {item["l"]: item["c"] for item in data["panels"][1]["items"] if "l" in item}
    assert lengths == {"each client": next(c for c in colors if c != "ink"), "their mean": "ink"}
    held = data["panels"][-1]
    assert held["looks"][0]["title"] == "who holds what"
    assert {item["l"] for item in held["items"] if "l" in item} == set("0123456789")


@pytest.mark.parametrize("replayed", [0, 3])
def test_the_page_of_a_run_plays_it(replayed: int) -> None:
    experiment = Experiment(dataset_options={"examples": 200}, clients=4)
    run = Run(experiment.build().run(5), [(0, experiment)], goal=5)
    run.overlaid.append(run)
    data = replay.run_replay(run, replayed)
    assert data["steps"] == [f"round {r}" for r in ((1, 3, 5) if replayed else range(1, 6))]
    titles = [panel["looks"][0]["title"] for panel in data["panels"]]
    assert titles[:2] == ["test accuracy", "test loss (nats)"] and titles[-1] == "who holds what"
    assert ("updates of the clients, and their mean (thick)" in titles) is bool(replayed)
    page = export.page(run, [run], None, replayed)
    own = page.partition('<script type="application/json">')[2].partition("</script>")[0]
    assert json.loads(own) == json.loads(replay.written(data))
    assert page.count("<script") == page.count("</script>") == 3 and "http" not in page.split("<svg xmlns")[0]


def test_the_player_may_stand_in_a_page() -> None:
    text = replay.PLAYER.read_text(encoding="utf-8")
    assert "</script" not in text and Path(replay.PLAYER).stat().st_size < 20_000


def test_random_points_stay_in_their_panel() -> None:
    draw = random.Random(0)
    fig, axes = plots.figure()
    points = [(draw.gauss(0, 10), draw.gauss(0, 10)) for _ in range(50)] + [(math.nan, 0.0), (0.0, math.inf)]
    axes[0, 0].scatter(*zip(*points, strict=True))
    (panel,) = scene.replay([fig])
    places = [v for item in frame(panel, 0) for v in item["p"]]
    assert len(places) == 100 and all(0 <= v <= 1000 for v in places)
