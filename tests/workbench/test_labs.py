"""Every lab of the notebooks: it begins, moves each of its knobs, draws, and says what it shows in numbers."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from fedlab_core.experiment import Experiment
from fedlab_core.workbench import labs
from fedlab_core.workbench.lab import Lab
from fedlab_core.workbench.plan import Plan, say

MODULES = [importlib.import_module(f"{labs.__name__}.{found.name}") for found in pkgutil.iter_modules(labs.__path__)]
PLANS = {name: plan for module in MODULES for name, plan in vars(module).items() if isinstance(plan, Plan)}
NEEDS_DATA = {("text", "shakespeare"), ("data", "mnist")}


def named(plans):
    return [pytest.param(plan, id=name) for name, plan in plans.items()]


def test_all_labs_are_found():
    assert len(PLANS) >= 16 and len({plan.title for plan in PLANS.values()}) == len(PLANS)


def test_the_page_of_labs_names_every_one_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "labs.md").read_text(encoding="utf-8")
    there = {f"{m.__name__.rsplit('.', 1)[1]}.{n}" for m in MODULES for n, p in vars(m).items() if isinstance(p, Plan)}
    assert set(re.findall(r"`(\w+\.[A-Z_0-9]+)`", page)) == there


@pytest.mark.parametrize("plan", named(PLANS))
def test_a_lab_draws_and_speaks_in_numbers_from_its_first_frames_on(plan):
    lab = Lab(plan)
    assert all(lab.knobs[name].value == value for name, value in plan.start.items())
    empty = plan.begin(lab.settings)
    assert isinstance(plan.sentence(empty), str)  # nothing there yet, and nothing raises
    lab._worker.start(lambda: lab._advance(0.0), block=True)
    assert lab._image.value[:4] == b"\x89PNG"
    assert re.search(r"\d", lab.sentence)
    if not lab.result.done:
        assert re.fullmatch(r"<p>about \d+ s to the end</p>", lab._about.value)


@pytest.mark.parametrize("plan", named(PLANS))
def test_every_value_of_every_knob_makes_something_that_can_run(plan):
    first = Lab(plan).settings
    for name, values in plan.knobs.items():
        for value in values:
            if (name, value) in NEEDS_DATA:
                continue
            made = plan.make(**first | {name: value})
            assert made and plan.length(first | {name: value}) >= 1, (name, say(value))
            if plan.experiment is not None:
                assert isinstance(plan.experiment(**first | {name: value}), Experiment)
