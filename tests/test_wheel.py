"""Without a clone: the sdist is whole, and the wheel made from it runs, with notebooks and records, by itself."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEFT = shutil.ignore_patterns(
    ".git",
    ".venv*",
    "build",
    "dist",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "runs",
    "artefacts",
    "_build",
)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def python(*words: str, cwd: Path, path: Path | None = None) -> str:
    """Runs the interpreter, importing from `path` only; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FEDLAB_DATA")}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "clone"
    copy.mkdir()
    for item in ROOT.iterdir():
        if item.name == "data":
            (copy / "data").mkdir()
            shutil.copy(item / "README.md", copy / "data")
        elif item.name not in LEFT(str(ROOT), [item.name]):
            (shutil.copytree if item.is_dir() else shutil.copy)(
                item, copy / item.name, **{"ignore": LEFT} if item.is_dir() else {}
            )
    python("-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})", cwd=copy)
    with tarfile.open(folder / f"fedlab_core-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / f"fedlab_core-{VERSION}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist alone."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), "."]
    python(*words, cwd=sdist)
    return folder / f"fedlab_core-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    words = ["-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    python(*words, cwd=folder)
    return folder


def test_the_wheel_holds_what_a_reader_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    own = {str(p.relative_to(ROOT)) for p in (ROOT / "fedlab_core").rglob("*.py")}
    shipped = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/solutions/*.ipynb"), *ROOT.glob("figures/*.json")]
    assert own | {"fedlab_core/py.typed"} <= names
    assert {f"fedlab_core/shipped/{p.relative_to(ROOT)}" for p in shipped} <= names and len(shipped) > 30
    weights = (ROOT / "fedlab_core/models/weights/shipped").glob("*.safetensors")
    assert {str(p.relative_to(ROOT)) for p in weights} <= names
    foreign = {name for name in names if not name.startswith(("fedlab_core/", f"fedlab_core-{VERSION}.dist-info/"))}
    assert foreign == set()


def test_the_sdist_holds_the_tests_and_the_book(sdist: Path) -> None:
    for folder, kind in (("tests", "*.py"), ("docs", "*.md"), ("benchmarks", "*.py"), ("tools", "*.py")):
        files = [p for p in (ROOT / folder).rglob(kind) if not {"_build", "runs"} & {*p.parts}]
        assert [str(p) for p in files if not (sdist / p.relative_to(ROOT)).exists()] == []
    kinds = {".md", ".txt", ".toml", ".yml", ".in", ".py", ".cff"}
    top = {p.name for p in ROOT.iterdir() if p.is_file() and (p.suffix in kinds or p.name in ("Makefile", "LICENSE"))}
    assert {"SECURITY.md", "constraints.txt"} <= top and top <= {p.name for p in sdist.iterdir()}


def test_the_wheel_alone_runs_resumes_reports_and_gives_the_notebooks(installed: Path, tmp_path: Path) -> None:
    small = {"dataset_options": {"examples": 200}, "clients": 4, "settings": {"fraction": 0.5}}
    (tmp_path / "small.json").write_text(json.dumps(small))
    program = f"""
import fedlab_core, json
from fedlab_core import cli, data
assert fedlab_core.__file__.startswith({str(installed)!r}), fedlab_core.__file__
for words in (["run", "small.json", "--rounds", "1", "--out", "a"], ["resume", "a", "--rounds", "2"], ["report", "a"],
              ["lab", "mine", "--copy-only"]):
    assert cli.main(words) == 0, words
from fedlab_core.studies.record import recorded
print(json.dumps([fedlab_core.__version__, str(data.data_root()), len(recorded("claims"))]))
"""
    version, root, claims = json.loads(python("-c", program, cwd=tmp_path, path=installed).splitlines()[-1])
    assert version == VERSION and root == str(Path("~/.cache/fedlab_core").expanduser()) and claims > 30
    report = (tmp_path / "a/report.html").read_text(encoding="utf-8")
    assert len(report) > 10_000 and "fedlab-player" in report and '"steps":["round 1","round 2"]' in report
    notebooks = sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(p.name for p in (tmp_path / "mine/notebooks").glob("*.ipynb")) == notebooks
    checked = subprocess.run(
        [sys.executable, "-m", "fedlab_core.cli", "check"],
        env={**os.environ, "PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0 and "all is well" in checked.stdout, checked.stdout + checked.stderr
    assert "pytest" not in checked.stdout
    helped = python("-m", "benchmarks", "--help", cwd=tmp_path, path=installed / "fedlab_core" / "shipped")
    assert "--quick" in helped


def test_the_wheel_alone_opens_the_notebooks(installed: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fedlab_core.cli", "lab", "mine", "--no-browser"]
    environment = {**os.environ, "PYTHONPATH": str(installed), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    lab = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert lab.stderr is not None
    try:
        address = next(found[0] for line in lab.stderr if (found := re.search(r"http://127\S+token=\w+", line)))
        content = address.replace("/lab/tree/", "/api/contents/")
        assert "/api/contents/notebooks/00_start_here.ipynb?" in content
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(600):  # the address is printed a moment before it is listened to
            try:
                with direct.open(content, timeout=60) as answer:
                    assert json.load(answer)["name"] == "00_start_here.ipynb"
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            pytest.fail(f"{address} does not answer")
    finally:
        lab.terminate()
        lab.wait(60)


def test_the_command_is_installed(installed: Path) -> None:
    assert (installed / "bin" / "fedlab-core").exists() or sys.platform == "win32"
