"""What the panel's benchmark does in Chromium: presses of every control, and Run to the first curve."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.summary import PRESSES, summary
from tools.jupyterlab import Notebook, open_notebook

NOTEBOOK = """
from fedlab_core.experiment import Experiment
from fedlab_core.workbench import Workbench
bench = Workbench(Experiment(partition="dirichlet", clients=20).replace(fraction=0.25, epochs=5), most_runs=64)
bench
"""
LIMIT = 20_000  # milliseconds that one press may take before it counts as without effect
# What the panel shows, and whether its work is done.
LOOKS = """
    const panel = document.querySelector('.fedlab-bench');
    const parts = '.fedlab-status, .fedlab-shown, .fedlab-line, .fedlab-note, .fedlab-says button, .fedlab-text';
    const shown = () => [...panel.querySelectorAll(parts)].map(e => e.textContent).join('|')
        + [...panel.querySelectorAll('img')].map(e => e.src).join('|') + panel.querySelector('.fedlab-stage').className;
"""
# Resolves with the milliseconds from an action to the first change of what the panel shows, once it is on the screen;
# with null if there is none within the limit.
EFFECT = (
    "([action, argument, limit]) => new Promise(resolve => {"
    + LOOKS
    + """
    const named = label => [...panel.querySelectorAll('.widget-label')]
        .find(e => e.textContent.trim() == label && e.offsetParent).parentElement;
    const acts = {
        press: label => [...panel.querySelectorAll('button')].find(e => e.textContent.trim() == label).click(),
        choose: ([label, option]) => {
            const menu = named(label).querySelector('select');
            const names = [...menu.options].map(e => e.textContent.replaceAll('\\u00a0', ' '));
            if (!names.includes(option)) throw new Error(`${label} has no ${option}: ${names}`);
            menu.selectedIndex = names.indexOf(option);
            menu.dispatchEvent(new Event('change', {bubbles: true}));
        },
        type: ([label, value]) => {
            const field = named(label).querySelector('input');
            field.value = value;
            field.dispatchEvent(new Event('change', {bubbles: true}));
        },
        key: ([label, key]) => named(label).querySelector('.noUi-handle')
            .dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true})),
    };
    const before = shown();
    const observer = new MutationObserver(() => {
        if (shown() == before) return;
        observer.disconnect();
        requestAnimationFrame(() => resolve(performance.now() - began));
    });
    observer.observe(panel, {subtree: true, childList: true, characterData: true, attributes: true});
    setTimeout(() => { observer.disconnect(); resolve(null); }, limit);
    const began = performance.now();
    acts[action](argument);
})"""
)
# Resolves once nothing has changed for a while and neither panel nor kernel is at work; with whether that came in time.
SETTLED = (
    "([quiet, limit]) => new Promise(resolve => {"
    + LOOKS
    + """
    const began = performance.now();
    let last = shown(), since = began;
    const look = () => {
        const now = performance.now(), seen = shown();
        const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status;
        const works = kernel == 'busy' || panel.querySelector('.fedlab-status.busy');
        if (seen != last || works) { last = seen; since = now; }
        if (now - since > quiet || now - began > limit) resolve(now - since > quiet);
        else setTimeout(look, 20);
    };
    look();
})"""
)
# Resolves with the milliseconds from Run to the first picture that holds a round.
CURVE = """limit => new Promise(resolve => {
    const panel = document.querySelector('.fedlab-bench'), image = panel.querySelector('.fedlab-stage img');
    let source = null;
    const observer = new MutationObserver(() => {
        const measured = /Round.[1-9]/.test(panel.querySelector('.fedlab-line.two').textContent);
        if (measured && source === null) source = image.src;
        if (source === null || image.src == source) return;
        observer.disconnect();
        image.decode().then(() => requestAnimationFrame(() => resolve(performance.now() - began)));
    });
    observer.observe(panel, {subtree: true, childList: true, characterData: true, attributes: true});
    setTimeout(() => { observer.disconnect(); resolve(null); }, limit);
    const began = performance.now();
    [...panel.querySelectorAll('button')].find(e => e.textContent.trim() == 'Run').click();
})"""


class Presses:
    """Presses controls of one panel, and keeps what each took.

    Args:
        notebook: with the panel.

    Attributes:
        found: milliseconds by control, None where nothing followed within the limit.
    """

    def __init__(self, notebook: Notebook) -> None:
        self.notebook, self.page = notebook, notebook.page
        self.found: dict[str, list[float | None]] = {}

    def press(self, control: str, action: str, argument: Any, settle: bool = True) -> None:
        """One press; waits then for the rest of what it brings about, unless told not to."""
        took = self.page.evaluate(EFFECT, [action, argument, LIMIT])
        self.found.setdefault(control, []).append(took)
        if settle:
            self.settle()

    def settle(self) -> None:
        """Waits until the panel rests.

        Raises:
            TimeoutError: it does not.
        """
        if not self.page.evaluate(SETTLED, [200, 2 * LIMIT]):
            raise TimeoutError("the panel does not come to rest")

    def button(self, name: str) -> None:
        """Presses a button."""
        self.press(name, "press", name)


def run(panel: Presses) -> None:
    """Run, one round at a time, so that there are rounds to look back at."""
    panel.notebook.type("Rounds", 1)
    for _ in range(PRESSES):
        panel.button("Run")


def settings(panel: Presses) -> None:
    """A control of each kind: menus that change the rules, the data and the network, a slider and a field."""
    for i in range(PRESSES):
        panel.press("Method", "choose", ["Method", ("FedProx", "SCAFFOLD", "FedAvg")[i % 3]])
        panel.press("Learning rate", "key", ["Learning rate", "ArrowRight" if i % 2 else "ArrowLeft"])
        panel.press("Partition", "choose", ["Partition", ("IID", "Dirichlet labels")[i % 2]])
        panel.press("Clients K", "type", ["Clients K", str(10 + i % 2)])
        panel.press("Model", "choose", ["Model", ("mlp", "2nn")[i % 2]])
    panel.notebook.type("Clients K", 20)
    panel.settle()


def browse(panel: Presses) -> None:
    """The slider of rounds, and every tab."""
    for i in range(PRESSES):
        panel.press("Round", "key", ["Round", "ArrowLeft" if i < PRESSES / 2 else "ArrowRight"])
        for tab in ("Clients", "Drift", "Stability", "Basin", "Twins", "Costs", "Curves"):
            panel.button(tab)


def fork(panel: Presses) -> None:
    """Fork, again and again."""
    for _ in range(PRESSES):
        panel.button("Fork")


def stop(panel: Presses) -> None:
    """Stop in the midst of many rounds."""
    panel.notebook.type("Rounds", 2000)
    for _ in range(PRESSES):
        panel.page.evaluate(EFFECT, ["press", "Run", LIMIT])
        panel.page.wait_for_timeout(300)
        panel.button("Stop")


def presses() -> Iterator[tuple[str, Any]]:
    """Milliseconds from a press to its first visible effect, by control, each kind as soon as it is measured."""
    with open_notebook(NOTEBOOK) as notebook:
        notebook.wait_text("then press")
        panel = Presses(notebook)
        kinds: tuple[Callable[[Presses], None], ...] = (run, settings, browse, fork, stop)
        for kind in kinds:
            kind(panel)
            yield from ((f"{name}, ms", summary(took, 1)) for name, took in panel.found.items())
            panel.found.clear()


def curve() -> Iterator[tuple[str, Any]]:
    """Milliseconds from Run to the first picture with a round in it; a new run each time."""
    with open_notebook(NOTEBOOK) as notebook:
        notebook.wait_text("then press")
        panel, found = Presses(notebook), list[float | None]()
        notebook.type("Rounds", 3)
        for seed in range(PRESSES):
            found.append(notebook.page.evaluate(CURVE, LIMIT))
            panel.settle()
            notebook.type("Seed", seed + 1)
            panel.settle()
        yield "Run to first curve, ms", summary(found, 1)
