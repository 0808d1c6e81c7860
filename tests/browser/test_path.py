"""The path of clicks of docs/path.md, followed in JupyterLab: every knob by its keys, Run, and what is then said."""

import re

from clicks import steps

from benchmarks.labs import IMPORT, plans
from fedlab_core.workbench.plan import say
from tools.jupyterlab import exactly

NUMBER = r"(-?\d+\.\d+)"


def move(notebook, name, options, value):
    """A knob to a value: a drop-down by its option, a slider by the arrow keys."""
    named = notebook.page.locator(".widget-label", has_text=exactly(name))
    knob = notebook.root.locator(".fedlab-knobs > *").filter(has=named)
    if knob.locator("select").count():
        notebook.select(knob.locator("select"), value, f"w.description == {name!r} and w.label")
        return
    shown, handle = knob.locator(".widget-readout"), knob.locator(".noUi-handle")
    places = [say(option) for option in options]
    away = places.index(value) - places.index(shown.inner_text().strip())
    back, on = ("ArrowLeft", "ArrowRight") if away > 0 else ("ArrowRight", "ArrowLeft")
    for key in [on] * abs(away):
        handle.press(key)
    assert shown.inner_text().strip() == value
    for _ in range(5):  # on a busy machine JupyterLab loses a key now and then: the slider has moved, the kernel not
        notebook.answered()
        if notebook.ask(f"lab.knobs[{name!r}].value") == repr(options[places.index(value)]):
            return
        handle.press(back)
        notebook.answered()
        handle.press(on)
    raise AssertionError(f"{name} does not become {value}")


def test_the_path_leads_to_the_answer(lab, page):
    page.set_viewport_size({"width": 1440, "height": 1000})
    said, found, notebook, title = {}, plans(), None, ""
    for step in steps():
        if step.lab != title:
            title = step.lab
            name, plan = next((name, plan) for name, plan in found.items() if plan.title == title)
            module, _, constant = name.partition(".")
            cell = f"{IMPORT.format(module, constant)}lab = Lab({constant})\nlab"
            notebook = lab.open(page, lab.write(f"path-{step.number}.ipynb", cell))
            notebook.run_all()
            notebook.button("Run").wait_for()
            notebook.answered()
        for knob, value in step.settings:
            move(notebook, knob, plan.knobs[knob], value)
            notebook.press("Run")
            notebook.wait_text(re.compile(rf"Done: .*\b{knob} = {re.escape(value)}(,|\.$)"), timeout=300)
            said[step.number, value] = notebook.root.locator(".fedlab-sentence").inner_text()
            notebook.screenshot(f"path-{step.number}-{knob}-{value}")
    cosines = [re.search(f"clients {NUMBER}", said[1, alpha])[1] for alpha in ("100", "0.1")]
    assert float(cosines[0]) > 2 * float(cosines[1])
    assert "better than both; independent" in said[3, "shared"] and said[3, "shared"].endswith("worse than both.")
    early = re.findall(f"accuracy {NUMBER}.*?drift {NUMBER}", said[4, "0.1"])
    late = re.findall(f"accuracy {NUMBER}.*?drift {NUMBER}", said[4, "0.3"])
    lead = [float(letters[0]) - float(random[0]) for random, letters in (early, late)]
    assert lead[0] > lead[1] > 0 and all(float(letters[1]) < float(random[1]) for random, letters in (early, late))
    rises = [float(re.search(f"rises by {NUMBER}", said[5, f"{other} weights"])[1]) for other in ("same", "other")]
    assert rises[0] < 0.05 and rises[1] > 0.3
    spreads = re.findall(f"mixtures {NUMBER} ± {NUMBER}", said[6, "letters"])
    assert float(spreads[1][0]) > float(spreads[0][0]) and float(spreads[1][1]) < float(spreads[0][1])
