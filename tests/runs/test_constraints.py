"""The locked versions are those of an environment that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def test_every_direct_dependency_is_locked_at_a_version_that_is_allowed() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.+]*", line) for line in lines) and lines == sorted(lines)
    locked = dict(line.split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["test"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[re.sub(r"[-_.]+", "-", wanted.name).lower()]), text
