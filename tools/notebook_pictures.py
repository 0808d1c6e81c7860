"""Look at the notebooks as readers do: python -m tools.notebook_pictures 00_start_here ... (all by default).

Each is opened in JupyterLab, run from top to bottom, and pictured whole, on a desk and on a phone, in the light and in
the dark: tests/browser/artefacts/notebooks/NAME/STATE-SIZE-THEME-NN.png. Printed is what no picture shows well: outputs
wider than the page, and words on stderr.
"""

import argparse
import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from tools.execute_notebooks import ROOT
from tools.jupyterlab import ARTEFACTS, Notebook, chromium, jupyterlab

SIZES = {"desk": (1440, 1500), "phone": (390, 1500)}
COLUMNS = {"desk": 1, "phone": 4}  # screens of a phone beside each other in one picture
THEMES = ("Light", "Dark")
# Outputs that are wider than their place, by cell: what a reader has to push sideways.
TOO_WIDE = """() => [...document.querySelectorAll(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")]
    .flatMap((cell, i) =>
    [...cell.querySelectorAll('.jp-OutputArea-output, .jp-RenderedHTMLCommon')]
        .filter(e => e.scrollWidth > e.clientWidth + 2 && e.clientWidth)
        .map(e => `cell ${i}: ${e.className.split(' ').pop()} is ${e.scrollWidth} px in ${e.clientWidth}`))"""
STDERR = """() => [...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.stderr"]')]
    .map(e => e.textContent.slice(0, 300))"""


def whole(page: Page, folder: Path, name: str, columns: int) -> None:
    """Picture the open notebook from top to bottom, `columns` screens beside each other."""
    place = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer")
    frame = place.bounding_box()
    assert frame is not None, "no notebook is open"
    step = int(frame["height"])
    screens: list[Image.Image] = []
    while len(screens) * step < place.evaluate("e => e.scrollHeight"):  # which is an estimate before cells are seen
        place.evaluate("(e, top) => e.scrollTo(0, top)", len(screens) * step)
        page.wait_for_timeout(150)
        screens.append(Image.open(io.BytesIO(page.screenshot(clip=frame))))  # type: ignore[arg-type]
    for first in range(0, len(screens), columns):
        row = screens[first : first + columns]
        sheet = Image.new("RGB", (sum(s.width for s in row), step), "white")
        for i, screen in enumerate(row):
            sheet.paste(screen, (i * screens[0].width, 0))
        sheet.save(folder / f"{name}-{first // columns:02}.png")


def look(page: Page, notebook: Notebook, folder: Path) -> None:
    """Picture a notebook in every size and theme, before and after it is run."""
    for state in ("before", "after"):
        for size, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height})
            if (state, size) == ("after", "desk"):
                notebook.run_all(300)
            for theme in THEMES:
                page.evaluate(
                    f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})"
                )
                page.locator(f"body[data-jp-theme-light={str(theme == 'Light').lower()}]").wait_for(state="attached")
                page.wait_for_timeout(1500)
                whole(page, folder, f"{state}-{size}-{theme.lower()}", COLUMNS[size])
            for line in page.evaluate(TOO_WIDE):
                print(f"  {state}, {size}: {line}", flush=True)
            page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")  # away on a phone
    for line in page.evaluate(STDERR):
        print(f"  stderr: {line}", flush=True)


def main() -> None:
    """Picture those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb")
    asked = parser.parse_args().names or sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as files, tempfile.TemporaryDirectory() as own, chromium() as browser:
        shutil.copytree(ROOT / "figures", Path(files) / "figures")
        (Path(files) / "notebooks").mkdir()
        with jupyterlab(Path(files), Path(own)) as lab:
            for name in asked:
                print(name, flush=True)
                folder = ARTEFACTS / "notebooks" / name
                folder.mkdir(parents=True, exist_ok=True)
                for old in folder.glob("*.png"):
                    old.unlink()
                path = Path(files) / "notebooks" / f"{name}.ipynb"
                path.write_bytes((ROOT / "notebooks" / path.name).read_bytes())
                page = browser.new_context(viewport={"width": 1440, "height": 1500}).new_page()
                look(page, lab.open(page, path), folder)
                page.context.close()


if __name__ == "__main__":
    main()
