"""Adds to the wheel what a reader needs who has no clone: notebooks, records with their pictures, benchmarks, checks.

Everything else about the package stands in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = (
    "notebooks/*.ipynb",
    "notebooks/solutions/*.ipynb",
    "figures/*.json",
    "figures/*.png",
    "benchmarks/*.py",
    "tools/check.py",
    "pyproject.toml",
    "data/README.md",
)


class BuildWithNotebooks(build_py):
    """Copies the files into `fedlab_core/shipped`, each at its place in the clone; see `fedlab_core.about.ROOT`."""

    def run(self) -> None:
        """Build; an editable installation finds the files in the clone and copies nothing."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "fedlab_core" / "shipped"
        shutil.rmtree(target, ignore_errors=True)
        for pattern in SHIPPED:
            for file in sorted(Path().glob(pattern)):
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / file)


setup(cmdclass={"build_py": BuildWithNotebooks})
