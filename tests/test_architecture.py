"""Imports point down only, and in no circle: every import of every file counts, wherever and however it is written."""

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fedlab_core

ROOT = Path(fedlab_core.__file__).parent
LAYERS = (
    ("hints",),
    ("about", "check", "files", "memory"),
    ("randomness", "settings", "failures", "state", "costs", "drift", "sampling", "intervals", "glossary"),
    ("data", "partition"),
    ("models",),
    ("local",),
    ("methods",),
    ("engines",),
    ("timeline", "history", "checkpoint"),
    ("inside", "aggregation", "round", "standing"),
    ("federation",),
    ("references", "selfsupervised", "batchnorm", "pretraining", "finetuning", "layerwise", "probes"),
    ("registry",),
    ("experiment",),
    ("plots",),
    ("studies",),
    ("claims",),
    ("workbench",),
    ("cli",),
)
"""From the ground up; a file may import from its own layer and from those below."""


def files(root: Path) -> dict[str, Path]:
    """Module name -> file, of a package whose folder is `root`."""
    found = {}
    for file in sorted(root.rglob("*.py")):
        parts = (root.name, *file.relative_to(root).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def imports(module: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the package that a file names in an import: at its top, inside functions, for type checkers only,
    relative to itself, or as a text given to `import_module`."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            while name and name not in known:  # a name in a module, or somebody else's package
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def arrows(root: Path) -> dict[str, set[str]]:
    """Module -> modules that it imports."""
    known = files(root)
    return {module: set(imports(module, file, known)) for module, file in known.items()}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """The modules of a circle of imports, in order; [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward(graph: Mapping[str, set[str]], layers: tuple[tuple[str, ...], ...]) -> list[str]:
    """Every import of a higher layer; the package itself, which stands for its `__init__`, is the highest."""
    height = {name: level for level, names in enumerate(layers) for name in names}

    def level(module: str) -> int:
        return height[module.split(".")[1]] if "." in module else len(layers)

    return sorted(f"{one} -> {other}" for one, others in graph.items() for other in others if level(other) > level(one))


def test_no_import_points_up_or_leads_round() -> None:
    graph = arrows(ROOT)
    assert len(graph) > 100 and sum(map(len, graph.values())) > 400
    drawn = {name for names in LAYERS for name in names}
    assert {module.split(".")[1] for module in graph if "." in module} == drawn, "give each its place in LAYERS"
    assert upward(graph, LAYERS) == []
    assert circle(graph) == []


def written(root: Path, tree: Mapping[str, str]) -> Path:
    for name, text in ({"__init__.py": "", "low/__init__.py": "", "high/__init__.py": ""} | dict(tree)).items():
        (root / "house" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "house" / name).write_text(text)
    return root / "house"


CLEAN = {"low/a.py": "import os\nfrom house.low import b", "low/b.py": "", "high/c.py": "import house.low.a as a"}


@pytest.mark.parametrize(
    "text",
    [
        "import house.high.c",
        "from house.high import c",
        "from house.high.c import name",
        "from ..high import c",
        "from ..high.c import name",
        "from .. import high",
        "def later():\n    from house.high.c import name",
        "def later():\n    import importlib\n    importlib.import_module('house.high.c')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.high.c import name",
        "try:\n    import house.high.c\nexcept ImportError:\n    pass",
        "import house",
    ],
)
def test_an_upward_arrow_is_found_however_it_is_written(tmp_path: Path, text: str) -> None:
    layers = (("low",), ("high",))
    assert upward(arrows(written(tmp_path, CLEAN)), layers) == []
    assert len(upward(arrows(written(tmp_path, CLEAN | {"low/b.py": text})), layers)) == 1


@pytest.mark.parametrize(
    "text",
    ["from house.low import a", "from . import a", "from .a import name", "def later():\n    from .a import name"],
)
def test_a_circle_within_a_layer_is_found(tmp_path: Path, text: str) -> None:
    assert circle(arrows(written(tmp_path, CLEAN))) == []
    assert set(circle(arrows(written(tmp_path, CLEAN | {"low/b.py": text})))) == {"house.low.a", "house.low.b"}


def test_files_of_the_core_stay_small() -> None:
    long = {str(f.relative_to(ROOT)): n for f in ROOT.rglob("*.py") if (n := len(f.read_text().splitlines())) > 320}
    assert long == {}


def test_docstrings_say_what_a_thing_is_or_does() -> None:
    vague = re.compile(r'"""(The same|Of)\b')
    found = [
        f"{file.name}: {line.strip()}" for file in ROOT.rglob("*.py") for line in file.open() if vague.search(line)
    ]
    assert found == [] and vague.search('    """Of all LayerNorms."""')
