"""What the machine may lack: a home folder, folders that can be written to, memory, files that stay as they are."""

import ctypes
import json
import os
import pwd
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small import small_federation, split

from fedlab_core import cli, files, plots
from fedlab_core.data import load_dataset
from fedlab_core.data.cache import cache_folders, read_images, write_images
from fedlab_core.experiment import Experiment
from fedlab_core.federation import Federation
from fedlab_core.models.weights import shipped
from fedlab_core.models.weights.torchvision_resnet import read_state
from fedlab_core.pretraining import kept
from fedlab_core.studies import coverage, queue
from fedlab_core.workbench import export, store
from fedlab_core.workbench.bench import Workbench
from fedlab_core.workbench.tabs import View, curves_view

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and capabilities of Linux")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Call it when the folder is filled: from then on nothing in it can be written, by the superuser neither."""
    before = capabilities()

    def close() -> None:
        for place, _, names in os.walk(tmp_path):
            for name in names:
                os.chmod(Path(place, name), 0o444)
            os.chmod(place, 0o555)
        capabilities(before[0] & ~0b110)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH

    yield close
    capabilities(before[0])
    for place, _, _ in os.walk(tmp_path):
        os.chmod(place, 0o755)


def capabilities(effective: int | None = None) -> "ctypes.Array[ctypes.c_uint32]":
    """Of this thread: effective, permitted and inheritable ones, twice 32 bits; the first 32 may be replaced."""
    call, head, found = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert call.capget(head, found) == 0
    if effective is not None:
        found[0] = effective
        assert call.capset(head, found) == 0
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def run(rounds: int) -> Federation:
    return small_federation(split(10, 10, 10, 10), fraction=0.5, batch_size=4).run(rounds)


def load(folder: Path) -> Federation:
    like = run(0)
    return Federation.load(folder, like.dataset, like.partition, like.model)


@linux
def test_a_run_in_a_read_only_folder_is_read_and_not_changed(tmp_path: Path, read_only) -> None:
    federation = run(2)
    federation.save(tmp_path / "run")
    before = content(tmp_path)
    federation.run(1)
    read_only()
    for place in ("run", "other"):
        with pytest.raises(PermissionError, match=str(tmp_path / place)):
            federation.save(tmp_path / place)
        with pytest.raises(PermissionError, match=str(tmp_path / place)):
            next(run(0).rounds(1, checkpoint=tmp_path / place))
    assert content(tmp_path) == before and load(tmp_path / "run").history == federation.history[:3]
    with tempfile.TemporaryDirectory() as elsewhere:  # nothing of the run is lost
        federation.save(Path(elsewhere) / "run")
        assert load(Path(elsewhere) / "run").history == federation.history


@linux
def test_whatever_writes_a_file_names_it_where_it_cannot(
    tmp_path: Path, read_only, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "experiment.json").write_text(json.dumps({"clients": 4, "settings": {"fraction": 0.5}}))
    bench = Workbench(Experiment(dataset_options={"examples": 120}, clients=4), rounds=1)
    bench.run(1, block=True)
    figure = plots.figure()[0]
    writers = {
        "new.bin": lambda: files.write(tmp_path / "new.bin", b"content"),
        "old.json": lambda: files.write(tmp_path / "old.json", b"content"),
        "log": lambda: files.append(tmp_path / "log", 0, b"content"),
        "picture": lambda: plots.save(figure, tmp_path / "picture", {}),
        "page.md": lambda: coverage.write(tmp_path / "page.md"),
        "new": lambda: shipped.write("name", torch.nn.Linear(1, 1), {}, tmp_path / "new"),
        "runs": lambda: queue.halt(tmp_path / "runs"),
        "panel": lambda: store.Store(tmp_path / "panel").keep(bench.runs, bench.runs[0], last=True),
    }  # fmt: skip
    for kind in export.TYPES:
        shown = kind, View("View", curves_view), bench.runs[0], bench.runs, 1, lambda: figure
        writers[f"workbench-view-.*.{kind}"] = lambda shown=shown: export.save(*shown)
    before = content(tmp_path)
    read_only()
    for name, write in writers.items():
        with pytest.raises(PermissionError, match=str(tmp_path / name)):
            write()
    assert cli.main(["run", str(tmp_path / "experiment.json"), "--rounds", "1", "--out", str(tmp_path / "out")]) != 0
    assert content(tmp_path) == before


@linux
def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(tmp_path: Path, read_only) -> None:
    images = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), (0.0,), (1.0,)
    read_only()
    with pytest.warns(UserWarning, match=f"decoded images are not kept.*{tmp_path}"):
        write_images([tmp_path / "cache"], "key", images)
    assert read_images([tmp_path / "cache"], "key") is None
    start = kept.Start("start", {"w": torch.zeros(2)}, {}, 1, 1)
    kept.write([tmp_path / "starts"], "key", start)
    assert kept.read(tmp_path / "starts" / "key", "start") is None and not any(tmp_path.iterdir())


def test_without_a_home_folder_only_a_path_with_a_tilde_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: int) -> None:
        raise KeyError("no such user")

    for name in ("HOME", "XDG_CACHE_HOME", "USERPROFILE", "HOMEPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache_folders(tmp_path) == (tmp_path / ".cache",)
    for call, said in (
        (lambda: load_dataset("mnist", "~/data"), "root='~/data'"),
        (lambda: load_dataset("folder:~/photos", tmp_path), "path='~/photos'"),
        (lambda: load_dataset("text:~/book.txt", tmp_path), "path='~/book.txt'"),
        (lambda: Experiment("text:~/book.txt").load_data(tmp_path), "'~/book.txt'"),
        (lambda: Workbench(keep="~/runs"), "keep='~/runs'"),
    ):
        with pytest.raises(ValueError, match=f"{said}, accepted: a path without ~, since there is no home folder"):
            call()


HOMELESS = """
from pathlib import Path
from fedlab_core import plots
from fedlab_core.experiment import Experiment
from fedlab_core.workbench.bench import Workbench
bench = Workbench(Experiment(dataset_options={"examples": 120}, clients=4), rounds=1)
bench.run(1, block=True)
bench.runs[0].federation.save(Path.cwd() / "run")
print("whole", *sorted(path.name.partition("-")[0] for path in Path("run").iterdir()))
"""


@linux
@pytest.mark.parametrize("home", [None, "/proc"])
def test_a_process_without_a_home_folder_runs_and_saves(home: str | None, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS], cwd=tmp_path, env=kept | ({"HOME": home} if home else {}),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "whole journal round round run.json run.lock\n", done


SHORT_OF_MEMORY = """
import json, resource, sys
from pathlib import Path
import torch
from fedlab_core import files
from fedlab_core.experiment import Experiment
from fedlab_core.models import build_model
from fedlab_core.randomness import generator

def limit(mib):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mib * 2**20, resource.RLIM_INFINITY))

def said(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

folder = Path.cwd()
wide = Experiment(clients=4, model="mlp", model_options={"hidden": [60_000, 200]}, dataset_options={"examples": 60})
run = wide.build().run(1)
run.save(folder / "run")
run.run(1)
limit(10**6)
found = {}
limit(300)
found["model"] = said(lambda: build_model("mlp", (1, 8, 8), 10, generator(0, "x"), hidden=(60_000, 60_000)))
found["dataset"] = said(lambda: Experiment("letters", dataset_options={"per_class": 10_000, "size": 64}).load_data())
with open(folder / "large", "wb") as stream:
    stream.truncate(2**32)
found["file"] = said(lambda: files.read(folder / "large"))
limit(100)  # room for the tensors or for their bytes, not for both
found["tight"] = said(lambda: run.save(folder / "run"))
limit(2)  # a file of more than 32 MiB takes new memory always, whatever has been freed before
found["save"] = said(lambda: run.save(folder / "run"))
limit(10**6)
found["rounds"] = Experiment.load(wide, folder / "run").round
found["parts"] = [file.name for file in (folder / "run").iterdir() if file.suffix == ".part"]
run.save(folder / "run")
found["again"] = Experiment.load(wide, folder / "run").round
print(json.dumps(found))
"""


@linux
def test_what_does_not_fit_into_memory_is_named_and_nothing_is_half_written(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SHORT_OF_MEMORY], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["model"].startswith(
        "MemoryError: model='mlp', hidden=(60000, 60000), norm='none': there is not enough memory"
    )
    assert found["dataset"].startswith(
        "MemoryError: dataset='letters', per_class=10000, size=64: there is not enough memory"
    )
    assert found["file"] == f"MemoryError: {tmp_path / 'large'}: there is not enough memory"
    assert found["save"] == f"MemoryError: file='{tmp_path / 'run' / 'round-000002'}': there is not enough memory"
    assert found["tight"] == found["save"]
    assert found["rounds"] == 1 and found["parts"] == [] and found["again"] == 2


def test_a_cache_that_is_cut_off_while_it_is_read_is_whole_or_absent(tmp_path: Path) -> None:
    pixels = torch.arange(2**18).reshape(4, 1, 256, 256).to(torch.uint8)
    write_images([tmp_path], "key", (pixels, (0.5,), (0.25,)))
    file, done = tmp_path / "key.safetensors", threading.Event()
    whole, size = file.read_bytes(), file.stat().st_size

    def spoil() -> None:
        number = 0
        while not done.is_set():
            number += 1
            os.truncate(file, number * 7919 % size)
            file.write_bytes(whole)

    cutter = threading.Thread(target=spoil)
    cutter.start()
    try:
        found = [read_images([tmp_path], "key") for _ in range(200)]
    finally:
        done.set()
        cutter.join()
    os.truncate(file, 100)  # what was read stays as it was: it was copied, not mapped
    assert all(one is None or torch.equal(one[0], pixels) for one in found)
    assert read_images([tmp_path], "key") is None


def test_weights_that_are_cut_off_after_they_were_read_stay_as_they_were(tmp_path: Path) -> None:
    import safetensors.torch

    file = tmp_path / "weights.safetensors"
    file.write_bytes(safetensors.torch.save({"w": torch.arange(2.0**20)}))
    found = read_state(file)
    os.truncate(file, 0)
    assert torch.equal(found["w"], torch.arange(2.0**20))
    with pytest.raises(ValueError, match="weights.safetensors holds no weights that can be read"):
        read_state(file)
