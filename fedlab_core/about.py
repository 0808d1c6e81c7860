"""Which version this is, where the files are that come with it, and what a result was made with."""

import platform
from importlib import metadata
from pathlib import Path

from fedlab_core.check import checked

_PACKAGE = Path(__file__).resolve().parent
INSTALLED = (_PACKAGE / "shipped").is_dir()
"""Whether this is a wheel's copy, which brings notebooks, records and benchmarks along, and not a clone."""
ROOT = _PACKAGE / "shipped" if INSTALLED else _PACKAGE.parent
"""The folder with notebooks/, figures/, benchmarks/ and tools/: the clone, or their copy in the wheel."""


@checked
def version(package: str = "fedlab_core") -> str:
    """The version of an installed package; "not installed" without one, as in a copied folder."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """What a result was made with: Python, this package and the libraries that a result depends on."""
    packages = ("fedlab_core", "torch", "numpy", "matplotlib")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
