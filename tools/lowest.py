"""Print the oldest release of each package that pyproject.toml allows, as requirements for pip (`make test-lowest`)."""

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def lowest(requirement: str) -> str:
    """The lower bound alone: "ray>=2.40,<3; python_version < '3.14'" -> "ray==2.40; python_version < '3.14'"."""
    bounds, semicolon, marker = requirement.partition(";")
    return bounds.split(",")[0].replace(">=", "==") + semicolon + marker


if __name__ == "__main__":
    print("\n".join(map(lowest, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"])))
