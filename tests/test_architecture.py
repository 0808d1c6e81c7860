"""Imports point down only: the core knows nothing of studies, figures, tabs and panels."""

import ast
from pathlib import Path

import fedlab_core

ROOT = Path(fedlab_core.__file__).parent
FACES = ("studies", "claims", "plots", "views", "browse", "workbench")


def is_face(part: str) -> bool:
    return part.startswith(FACES)


def imported(file: Path) -> set[str]:
    """Parts of fedlab_core that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("fedlab_core.")}
    return found


def test_no_part_of_the_core_imports_a_face() -> None:
    core = [file for file in ROOT.rglob("*.py") if not is_face(file.relative_to(ROOT).parts[0].removesuffix(".py"))]
    assert len(core) > 30
    assert {str(file.relative_to(ROOT)): face for file in core for face in imported(file) if is_face(face)} == {}
    assert "plots" in imported(ROOT / "workbench" / "export.py"), "faces are seen"


def test_files_of_the_core_stay_small() -> None:
    long = {str(f.relative_to(ROOT)): n for f in ROOT.rglob("*.py") if (n := len(f.read_text().splitlines())) > 330}
    assert long == {}
