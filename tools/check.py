"""`make check`: OK or FAIL for Python, packages, device, data sets and the tests' browser, and what to do about it.

Only the standard library is imported at the top, so that this runs where nothing is installed yet.
"""

import importlib.metadata
import operator
import os
import platform
import re
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLONE = (ROOT / "Makefile").exists()
INSTALL = (
    "make lab (or, in an environment of your own: python -m pip install -e '.[test]')"
    if CLONE
    else "install the package again, with its dependencies: python -m pip install --upgrade fedlab_core-*.whl"
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC_BROWSERS = ("Google Chrome.app/Contents/MacOS/Google Chrome", "Chromium.app/Contents/MacOS/Chromium")
BROWSER_REMEDY = "install Chromium (Debian: apt-get install chromium) or run: python -m playwright install chromium"


@dataclass(frozen=True)
class Check:
    """One line: `status` is OK, FAIL (something has to be done) or "-" (not there, and only needed for some things)."""

    status: str
    name: str
    detail: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.status:4} {self.name:16} {self.detail}"
        if not self.remedy:
            return line
        return line + "\n" + textwrap.indent(textwrap.fill(f"-> {self.remedy}", 96, break_long_words=False), " " * 22)


def project() -> dict:
    """The [project] table of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


COMPARE = {">=": operator.ge, "<": operator.lt, "!=": operator.ne}


def release(version: str) -> tuple[int, ...]:
    """The first three numbers of a version: "2.15.0+cpu" -> (2, 15, 0), "2.3" -> (2, 3, 0)."""
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
    return tuple((numbers + [0, 0, 0])[:3])


def within(version: str, bounds: str) -> bool:
    """Whether a version satisfies bounds such as ">=2.11,!=2.13.0,<3" (the operators pyproject.toml uses)."""
    parts = [re.fullmatch(r"(>=|<|!=)([\d.]+)", bound).groups() for bound in bounds.split(",")]
    return all(COMPARE[comparison](release(version), release(limit)) for comparison, limit in parts)


def split_requirement(requirement: str) -> tuple[str, str]:
    """A requirement's name and bounds: "torch>=2.11,<3" -> ("torch", ">=2.11,<3"); what follows a semicolon is left."""
    name = re.match(r"[\w-]+", requirement).group()
    return name, requirement[len(name) :].partition(";")[0]


def check_python() -> Check:
    """This interpreter against requires-python."""
    bounds, version = project()["requires-python"], platform.python_version()
    if within(version, bounds):
        return Check("OK", "python", f"{version} ({sys.executable})")
    return Check("FAIL", "python", f"{version}, needed: {bounds}", "make clean lab PYTHON=/path/to/another/python")


def check_packages(tests: bool = True) -> Iterator[Check]:
    """Every direct dependency, and test tool unless told otherwise, against its bounds in pyproject.toml."""
    for requirement in project()["dependencies"] + project()["optional-dependencies"]["test"] * tests:
        name, bounds = split_requirement(requirement)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if ";" in requirement:  # not for every system
                yield Check("-", name, f"missing: what needs it is skipped ({requirement})")
            else:
                yield Check("FAIL", name, f"missing, needed: {bounds}", INSTALL)
            continue
        if within(version, bounds):
            yield Check("OK", name, version)
        else:
            yield Check("FAIL", name, f"{version}, needed: {bounds}", INSTALL)


def check_device() -> Iterator[Check]:
    """CPU cores, and whether torch computes here and on the accelerator it sees."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("OK", "cpu", f"{cores} cores, {platform.machine()}")
    try:
        import torch
    except Exception as error:  # a broken installation raises OSError and others besides ImportError
        yield Check("FAIL", "torch runs", f"{type(error).__name__}: {error}", INSTALL)
        return
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    for device in devices:
        try:
            total = torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
            detail = torch.cuda.get_device_name() if device == "cuda" else f"a matrix product sums to {total:.0f}"
            status, remedy = ("OK", "") if total == 512 else ("FAIL", INSTALL)
        except Exception as error:
            status, detail, remedy = "FAIL", f"{type(error).__name__}: {error}", "check the driver; the CPU is enough"
        yield Check(status, f"torch on {device}", detail, remedy)
    if devices == ["cpu"]:
        yield Check("-", "accelerator", "no CUDA, no MPS: everything here runs on the CPU")


def check_data(root: Path | None = None) -> Iterator[Check]:
    """Each data set `load_dataset` knows: there (or made without a download), or what goes where in the data root."""
    try:
        from fedlab_core.data import data_root, dataset_names, missing_data
    except Exception as error:  # as above
        yield Check("FAIL", "data sets", f"not looked for, {type(error).__name__}: {error}", INSTALL)
        return
    yield Check("OK", "data root", str(data_root(root)))
    for name in dataset_names():
        missing = missing_data(name, root)
        yield Check("-", name, "not found", missing) if missing else Check("OK", name, "ready")


def find_browser() -> str | None:
    """The browser of the tests: Chromium or Chrome on the PATH or among macOS's applications, else Playwright's own."""
    for found in filter(None, map(shutil.which, BROWSERS)):
        return found
    for path in (Path("/Applications") / name for name in MAC_BROWSERS):
        if path.exists():
            return str(path)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    with sync_playwright() as playwright:
        path = Path(playwright.chromium.executable_path)
    return str(path) if path.exists() else None


def check_browser() -> Check:
    """A browser for tests/browser; without one these tests are skipped."""
    found = find_browser()
    return Check("OK", "browser", found) if found else Check("-", "browser", "none: its tests skip", BROWSER_REMEDY)


def main(tests: bool = True) -> int:
    """Print every check, those of what only the tests need on request; 1 if one of them failed, else 0."""
    failed = 0
    checks = [check_python(), *check_packages(tests), *check_device(), *check_data(), *[check_browser()] * tests]
    for check in checks:
        print(check)
        failed += check.status == "FAIL"
    print(f"{failed} FAIL of {len(checks)} checks" if failed else "all is well (-: not there, and not needed to begin)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
