"""Every lab of the notebooks: it begins, moves each of its knobs, draws, and says what it shows in numbers."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest
from clicks import steps as path_steps

from benchmarks import labs as benchmark
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import labs
from fedlab_core.workbench.lab import Lab
from fedlab_core.workbench.plan import Plan, Result, looks_of, nothing_recorded, say

MODULES = [importlib.import_module(f"{labs.__name__}.{found.name}") for found in pkgutil.iter_modules(labs.__path__)]
PLANS = {name: plan for module in MODULES for name, plan in vars(module).items() if isinstance(plan, Plan)}
ROOT = Path(__file__).parents[2]
FOUND = json.loads((ROOT / "figures" / "labs.json").read_text(encoding="utf-8"))
COLOURS: dict[str, str] = {}  # by name of a run, of whatever lab and setting
NEEDS_DATA = {("text", "shakespeare"), ("data", "mnist")}


def named(plans):
    return [pytest.param(plan, id=name) for name, plan in plans.items()]


def test_all_labs_are_found():
    assert len(PLANS) >= 16 and len({plan.title for plan in PLANS.values()}) == len(PLANS)


def test_the_page_of_labs_names_every_one_and_no_other():
    page = (ROOT / "docs" / "labs.md").read_text(encoding="utf-8")
    there = {f"{m.__name__.rsplit('.', 1)[1]}.{n}" for m in MODULES for n, p in vars(m).items() if isinstance(p, Plan)}
    assert set(re.findall(r"`(\w+\.[A-Z_0-9]+)`", page)) == there == FOUND["labs"].keys()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")][1:]
    assert all(len(row) == 6 and len(row[5].strip()) > 5 for row in rows)  # no row without a reason
    assert page == benchmark.page(page, FOUND)  # run python -m benchmarks.labs


def test_a_lab_without_a_button_or_a_record_has_its_reason_on_the_page():
    page = (ROOT / "docs" / "labs.md").read_text(encoding="utf-8")
    unopened, unrecorded = page.partition('## Without "Open')[2].split("## Without a recorded result behind")

    def listed(part):
        heads = [line.partition("`: ")[0] + "`" for line in part.splitlines() if line.startswith("* ")]
        return set(re.findall(r"`\w+\.([A-Z_]+)`", " ".join(heads)))

    assert listed(unopened) == {name for name, plan in PLANS.items() if plan.experiment is None}
    assert listed(unrecorded) == {name for name, plan in PLANS.items() if plan.behind is nothing_recorded}


@pytest.mark.parametrize(("shots", "bands"), [(1, 2), (8, 2), (16, 2)])
def test_clip_has_the_recorded_curves_behind(shots, bands):
    plan = PLANS["CLIP"]
    result = plan.begin({"network": "CLIP, text head", "shots": shots})
    assert [band.label for band in result.behind] == list(result.frames) and len(result.behind) == bands
    assert all(band.seeds == 5 and list(band.x) == [0, 2, 4, 6, 8, 10, 12] for band in result.behind)


def test_labs_are_quick_and_so_are_notebooks():
    for name, row in FOUND["labs"].items():
        picture, end = row["processor"]
        assert picture <= 1.4 and end <= 20, name  # of a busy machine; a quiet one takes a second
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == benchmark.readme(readme, FOUND)
    assert FOUND["notebooks"].keys() == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert all(row["processor"] < 90 for row in FOUND["notebooks"].values())


@pytest.mark.parametrize("step", path_steps(), ids=lambda step: f"{step.number}")
def test_every_step_of_the_path_is_a_lab_of_its_notebook(step):
    plan = next(plan for plan in PLANS.values() if plan.title == step.lab)
    name = next(name for name, found in PLANS.items() if found is plan)
    if step.notebook:
        assert f"Lab({name})" in (ROOT / "notebooks" / step.notebook).read_text(encoding="utf-8")
    lab = Lab(plan)
    for knob, value in step.settings:
        lab.set(**{knob: next(v for v in plan.knobs[knob] if say(v) == value)})


@pytest.mark.parametrize("plan", named(PLANS))
def test_a_lab_draws_and_speaks_in_numbers_from_its_first_frames_on(plan):
    lab = Lab(plan)
    assert all(lab.knobs[name].value == value for name, value in plan.start.items())
    empty = plan.begin(lab.settings)
    assert isinstance(plan.sentence(empty), str)  # nothing there yet, and nothing raises
    lab._worker.start(lambda: lab._advance(0.0), block=True)
    assert lab._image.value[:4] == b"\x89PNG"
    looks = looks_of(lab.result)
    for line in (line for ax in lab.figure.axes for line in ax.get_lines() if line.get_label() in looks):
        assert line.get_color() == looks[line.get_label()]["color"], line.get_label()
    assert re.search(r"\d", lab.sentence)
    if not lab.result.done:
        assert re.fullmatch(r"<p>about \d+ s to the end</p>", lab._about.value)


@pytest.mark.parametrize("plan", named({name: plan for name, plan in PLANS.items() if plan.views}))
def test_moving_a_view_trains_nothing(plan, pictures):
    lab = Lab(plan)
    lab._worker.start(lambda: lab._advance(0.0), block=True)
    before, frames = lab.result, {name: len(found) for name, found in lab.result.frames.items()}
    for name in plan.views:
        shown = set()
        for value in plan.knobs[name]:
            lab.knobs[name].value = value
            shown.add(lab._image.value)
        assert len(shown) == len(plan.knobs[name])
    assert lab.result is before and {name: len(found) for name, found in before.frames.items()} == frames


def test_the_views_are_those_of_the_step_and_of_theta():
    assert {name: tuple(plan.views) for name, plan in PLANS.items() if plan.views} == {
        "STEP_BY_STEP": ("step",),
        "TWO_MODELS": ("start", "theta"),
    }


@pytest.mark.parametrize("plan", named(PLANS))
def test_copied_code_makes_the_lab_in_an_empty_namespace(plan):
    made = {}
    exec(Lab(plan).code().partition(".run(block=True)")[0], made)
    assert made["lab"].plan is plan and made["lab"].settings == Lab(plan).settings


@pytest.mark.parametrize("plan", named(PLANS))
def test_every_value_of_every_knob_makes_something_that_can_run(plan):
    first = Lab(plan).settings
    for name, values in plan.knobs.items():
        for value in values:
            if (name, value) in NEEDS_DATA:
                continue
            made = plan.make(**first | {name: value})
            for name_of_run, look in looks_of(Result({}, {}, frames={run: [] for run in made})).items():
                assert COLOURS.setdefault(name_of_run, look["color"]) == look["color"], name_of_run
            assert made and plan.length(first | {name: value}) >= 1, (name, say(value))
            if plan.experiment is not None:
                assert isinstance(plan.experiment(**first | {name: value}), Experiment)
