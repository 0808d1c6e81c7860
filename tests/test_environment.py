"""pyproject.toml and environment.yml say the same; `make check` tells a good environment from a bad one."""

import importlib.metadata
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement

from tools import check

CONDA_NAMES = {"torch": "pytorch"}


def environment_yml() -> tuple[list[str], list[str]]:
    """The conda and the pip requirements of environment.yml."""
    listed = yaml.safe_load((check.ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = [entry for entry in listed if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in listed if isinstance(entry, dict)]
    return conda, pip


def test_conda_has_the_same_direct_dependencies_with_the_same_bounds():
    conda, pip = environment_yml()
    wanted = {"python": check.project()["requires-python"], "pip": ""}
    for name, bounds in map(check.split_requirement, project_dependencies()):
        wanted[CONDA_NAMES.get(name, name)] = bounds
    assert dict(map(check.split_requirement, conda)) == wanted
    assert pip == ["-e .[test]"]


def project_dependencies() -> list[str]:
    return check.project()["dependencies"]


@pytest.mark.parametrize("requirement", project_dependencies() + check.project()["optional-dependencies"]["test"])
def test_every_dependency_has_a_lower_and_an_upper_bound(requirement):
    _, bounds = check.split_requirement(requirement)
    assert bounds.startswith(">=") and ",<" in bounds


def test_a_package_for_some_systems_is_no_failure_where_it_is_missing(monkeypatch):
    requirement = "no-such-package>=1,<2; python_version < '3.14'"
    monkeypatch.setattr(
        check, "project", lambda: {"dependencies": [], "optional-dependencies": {"test": [requirement]}}
    )
    (found,) = check.check_packages()
    assert (found.status, found.name) == ("-", "no-such-package") and check.split_requirement(requirement)[
        1
    ] == ">=1,<2"


def test_who_cites_the_software_cites_this_version():
    citation = yaml.safe_load((check.ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (check.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == check.project()["version"] and f"\n## {citation['version']}\n" in changes


def test_no_file_of_the_environment_names_a_host():
    for name in ("pyproject.toml", "environment.yml", "Makefile", ".ci/run"):
        assert "://" not in (check.ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.parametrize(
    ("version", "bounds", "expected"),
    [
        ("2.15.0", ">=2.11,!=2.13.0,<3", True),
        ("2.13.0+cpu", ">=2.11,!=2.13.0,<3", False),
        ("2.9", ">=2.11,<3", False),
        ("3", ">=2.11,<3", False),
        ("2.11", ">=2.11.0,<3", True),
    ],
)
def test_versions_are_compared_as_numbers(version, bounds, expected):
    assert check.within(version, bounds) is expected


def test_this_environment_is_within_its_bounds():
    asked = map(Requirement, check.project()["optional-dependencies"]["test"])
    not_here = {r.name for r in asked if r.marker and not r.marker.evaluate()}
    found = [check.check_python(), *check.check_packages()]
    assert [c for c in found if c.status != "OK" and c.name not in not_here] == []


def test_a_missing_and_a_too_old_package_fail_with_a_remedy(monkeypatch):
    found = importlib.metadata.version

    def version(name):
        if name == "tqdm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0" if name == "torch" else found(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    failed = {c.name: c for c in check.check_packages() if c.status == "FAIL"}
    assert set(failed) == {"torch", "tqdm"}
    assert failed["torch"].detail.startswith("1.0, needed: >=2.11")
    assert "make lab" in str(failed["tqdm"])


def test_data_sets_are_found_in_the_data_root_and_absent_ones_are_no_failure(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_text("ROMEO:\nAy me!\n")
    checks = {c.name: c for c in check.check_data(tmp_path)}
    ready = {name for name, c in checks.items() if c.status == "OK"}
    assert ready == {"data root", "digits", "letters", "scenes", "python_docs", "shakespeare"}
    assert checks["cifar10"].status == "-" and str(tmp_path / "cifar10") in checks["cifar10"].remedy


def test_torch_that_cannot_be_imported_is_a_failure_not_a_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [c.status for c in check.check_device()] == ["OK", "FAIL"]


def test_data_sets_that_cannot_be_looked_for_are_a_failure_not_a_crash(monkeypatch):
    monkeypatch.setitem(sys.modules, "fedlab_core.data", None)
    assert [(c.status, c.name) for c in check.check_data()] == [("FAIL", "data sets")]


def test_check_runs_without_any_package_and_says_so():
    script = check.ROOT / "tools" / "check.py"
    bare = subprocess.run([sys.executable, "-I", "-S", script], capture_output=True, text=True)
    assert bare.returncode == 1, bare.stderr
    assert "FAIL torch " in bare.stdout and "OK   python" in bare.stdout and bare.stderr == ""


def test_make_help_lists_every_target():
    makefile = (check.ROOT / "Makefile").read_text(encoding="utf-8")
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:")).split()[1:]
    printed = subprocess.run(["make", "help"], cwd=check.ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("  make ")] == phony
