"""The folder of a run belongs to it alone: damage is noticed, files of others are left alone, saves are small."""

import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import equal, small_data, small_federation, split

from fedlab_core import files
from fedlab_core.checkpoint import write
from fedlab_core.checkpoint.manifest import OURS
from fedlab_core.federation import Federation
from fedlab_core.methods.client import Scaffold
from fedlab_core.methods.fedavg import FedAvg
from fedlab_core.methods.named import METHODS, build_method


def run(rounds: int = 0, method: FedAvg | None = None, **changes: Any) -> Federation:
    options = {"fraction": 0.5, "batch_size": 4} | changes
    return small_federation(split(10, 10, 10, 10), method or Scaffold(), **options).run(rounds)


def load(folder: Path, like: Federation | None = None, **options: Any) -> Federation:
    like = like or run()
    return Federation.load(folder, like.dataset, like.partition, like.model, **options)


def same(a: Federation, b: Federation) -> bool:
    return (
        a.history == b.history
        and all(equal(a.state_at(t), b.state_at(t)) for t in range(a.round + 1))
        and all(equal(a.client_state(c), b.client_state(c)) for c in range(len(a.partition)))
        and a.past.now.clients.keys() == b.past.now.clients.keys()
        and all(equal(a.past.now.clients[c], b.past.now.clients[c]) for c in a.past.now.clients)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Federation]:
    folder = tmp_path_factory.mktemp("saved")
    federation = run(3)
    federation.save(folder)
    return folder, federation


def files_of(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.name != write.LOCK)


def copy(saved: Path, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files_of(saved):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_changed_byte_anywhere_is_an_error_that_names_the_file(
    saved: tuple[Path, Federation], tmp_path: Path
) -> None:
    folder, draws = copy(saved[0], tmp_path / "copy"), random.Random(0)
    assert {file.name.partition("-")[0] for file in files_of(folder)} == {"run.json", "journal", "round", "clients"}
    for file in files_of(folder):
        content = file.read_bytes()
        places = {0, len(content) - 1, *(draws.randrange(len(content)) for _ in range(25))}
        for place in places:
            flipped = content[place] ^ (1 << draws.randrange(8))
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
            with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
                load(folder, saved[1])
        for cut in {0, 1, len(content) - 1, draws.randrange(len(content))}:
            file.write_bytes(content[:cut])
            with pytest.raises(ValueError, match=file.name.replace(".", r"\.")):
                load(folder, saved[1])
        file.write_bytes(content)
    assert same(load(folder, saved[1]), saved[1])


def test_a_file_in_the_place_of_another_is_an_error(saved: tuple[Path, Federation], tmp_path: Path) -> None:
    folder = copy(saved[0], tmp_path / "copy")
    rounds = sorted(folder.glob("round-*"))
    content = rounds[1].read_bytes()
    rounds[1].write_bytes(rounds[2].read_bytes())
    with pytest.raises(ValueError, match=rounds[1].name):
        load(folder, saved[1])
    rounds[1].write_bytes(content)
    assert load(folder, saved[1]).round == 3


def mutations(value: Any, draws: random.Random) -> Any:
    """A copy of plain data with one value somewhere replaced, removed or added."""
    nonsense = (None, -1, 2**70, 0.5, 1e308, "x", "nan", [], {}, True, [1, 2, 3], {"a": 1}, "../../etc/passwd")
    if isinstance(value, dict) and value and draws.random() < 0.9:
        name = draws.choice(list(value))
        if draws.random() < 0.15:
            return {n: v for n, v in value.items() if n != name}
        if draws.random() < 0.1:
            return {**value, "unknown": 1}
        return {**value, name: mutations(value[name], draws)}
    if isinstance(value, list) and value and draws.random() < 0.9:
        at = draws.randrange(len(value))
        return [*value[:at], mutations(value[at], draws), *value[at + 1 :]]
    return draws.choice(nonsense)


def test_what_a_forged_file_says_is_checked(saved: tuple[Path, Federation], tmp_path: Path) -> None:
    folder, draws = copy(saved[0], tmp_path / "copy"), random.Random(1)
    head, journal = folder / "run.json", next(folder.glob("journal-*"))
    data, lines = files.unseal(head.read_bytes(), head), journal.read_bytes().splitlines()
    refused = 0
    for _ in range(300):
        if draws.random() < 0.5:
            changed, line = mutations(data, draws), list(lines)
        else:
            at = draws.randrange(len(lines))
            line = [*lines[:at], json.dumps(mutations(json.loads(lines[at]), draws)).encode(), *lines[at + 1 :]]
            content = b"".join(one + b"\n" for one in line)
            sealed = {"file": journal.name, "bytes": len(content), "sha256": write.chain("", content)}
            changed = {**data, "journal": sealed}
        if not isinstance(changed, dict):
            continue
        head.write_bytes(files.seal(changed))
        journal.write_bytes(b"".join(one + b"\n" for one in line))
        try:
            load(folder, saved[1])
        except ValueError as error:
            assert str(folder) in str(error) or "engine=" in str(error) or "device=" in str(error), error
            refused += 1
    assert refused > 200


def test_names_given_twice_and_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    for content in (b'{"a": 1, "a": 2}', b'{"a": NaN}', b'{"a": Infinity}', b"[1]", b"{", b"[" * 100_000, b"\xff"):
        with pytest.raises(ValueError, match="run.json: damaged"):
            files.parse(content, tmp_path / "run.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("kind", ["pipe", "link", "folder", "huge"])
@pytest.mark.parametrize("which", ["run.json", "journal-*", "round-*", "clients-*"])
def test_what_is_no_regular_file_is_refused_before_it_is_read(
    saved: tuple[Path, Federation], tmp_path: Path, kind: str, which: str
) -> None:
    folder = copy(saved[0], tmp_path / "copy")
    file = next(folder.glob(which))
    content = file.read_bytes()
    file.unlink()
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "link":
            (tmp_path / "elsewhere").write_bytes(content)
            file.symlink_to(tmp_path / "elsewhere")
        case "folder":
            file.mkdir()
        case "huge":
            with file.open("wb") as stream:
                stream.truncate(2**37)
    with pytest.raises(ValueError, match=file.name):
        load(folder, saved[1])


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    names = ["film.mp4.part", "round-table-notes.txt", "round-000001.txt", "x.json"]
    for name in names:
        (tmp_path / name).write_text(name)
    with pytest.raises(ValueError, match="film.mp4.part"):
        run(1).save(tmp_path)
    with pytest.raises(ValueError, match="overwrite=True"):
        list(run().rounds(1, checkpoint=tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    federation = run(1)
    federation.save(tmp_path, overwrite=True)
    federation.run(2).save(tmp_path)
    assert [(tmp_path / name).read_text() for name in names] == names
    assert same(load(tmp_path), federation)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OSError, match="run"):
        run(1).save(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    first, second = run(5), run(1)
    first.save(tmp_path)
    for save in (second.save, second.fork("fork").save, first.fork("fork").save):
        with pytest.raises(ValueError, match="another run, 'run' with 5 rounds"):
            save(tmp_path)
    with pytest.raises(ValueError, match="another run"):  # before its first round is computed
        next(run().rounds(1, checkpoint=tmp_path))
    assert same(load(tmp_path), first)
    second.save(tmp_path, overwrite=True)
    assert same(load(tmp_path), second)
    with pytest.raises(ValueError, match="another run"):
        first.run(1).save(tmp_path)
    assert {file.name for file in files_of(tmp_path)} == {"run.json", *second.past.places[str(tmp_path)].seen}


def test_two_that_go_on_with_one_saved_run_lose_nothing(tmp_path: Path) -> None:
    run(3).save(tmp_path)
    one, other = load(tmp_path), load(tmp_path)
    list(one.rounds(2, checkpoint=tmp_path))
    with pytest.raises(ValueError, match="5 rounds of this run, saved elsewhere"):
        other.run(1).save(tmp_path)
    assert same(load(tmp_path), one)
    other.run(2).save(tmp_path)  # now it has the same rounds, bit for bit, and one more
    one.run(2).save(tmp_path)
    assert same(load(tmp_path), one) and one.round == 7


def test_a_lock_that_is_held_is_waited_for_and_then_named(tmp_path: Path) -> None:
    with files.locked(tmp_path / "run.lock", "held"):
        with pytest.raises(TimeoutError, match=r"run\.lock: another process"):
            with files.locked(tmp_path / "run.lock", "wanted", seconds=0.05):
                pass
    with files.locked(tmp_path / "run.lock", "wanted"):
        assert (tmp_path / "run.lock").read_text() == "held"


def test_a_rewound_run_is_saved_in_the_place_of_what_it_took_back(tmp_path: Path) -> None:
    federation = run(6)
    federation.save(tmp_path)
    federation.rewind(2)
    federation.save(tmp_path)
    assert same(load(tmp_path), federation) and federation.round == 2
    for name, changes in {"slower": {"lr": 0.01}, "single": {"double": False}}.items():
        other = federation.fork(name, **changes).run(2)
        other.save(tmp_path / name)
        assert same(load(tmp_path / name), other)


@pytest.mark.parametrize("which", ["run.json", "journal-*", "round-000001-*", "clients-000002-*"])
@pytest.mark.parametrize("damage", ["gone", "flipped", "cut"])
def test_the_next_save_repairs_what_was_damaged(tmp_path: Path, which: str, damage: str) -> None:
    federation = run(3)
    federation.save(tmp_path)
    file = next(tmp_path.glob(which))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    match damage:
        case "gone":
            file.unlink()
        case "flipped":
            file.write_bytes(content)
        case "cut":
            file.write_bytes(content[:-9])
    with pytest.warns(RuntimeWarning, match=f"{file.name}: .* written again"):
        federation.run(1).save(tmp_path)
    assert same(load(tmp_path), federation)


def test_a_save_writes_what_is_new_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def spy(function: Callable[..., None], content: int) -> Callable[..., None]:
        def call(*args: Any) -> None:
            written.append(len(args[content]))
            function(*args)

        return call

    monkeypatch.setattr(files, "write", spy(files.write, 1))
    monkeypatch.setattr(files, "append", spy(files.append, 2))
    federation, sums = run(), []
    for _ in federation.rounds(40, checkpoint=tmp_path):
        sums.append((len(written), sum(written)))
        written.clear()
    federation.save(tmp_path)
    assert not written, "nothing is new"
    assert {count for count, _ in sums[1:]} == {4}  # state, memories, journal, head
    assert max(size for _, size in sums[30:]) < 1.02 * max(size for _, size in sums[1:10])
    memories = sum(file.stat().st_size for file in tmp_path.glob("clients-*"))
    versions = 40 * 2  # two clients a round, each with a memory as large as the model
    assert memories < 1.5 * versions * sum(t.numel() * 8 for t in federation.state.values()) + 40 * 2000


def test_memories_survive_the_thinning_of_the_snapshot_they_came_with(tmp_path: Path) -> None:
    federation = run(fraction=0.25)
    federation.past = replace(federation.past, timeline=replace(federation.timeline, limit=60_000))
    for _ in federation.rounds(25, checkpoint=tmp_path):
        again = load(tmp_path)
        assert equal(again.state, federation.state)
        assert again.past.now.clients.keys() == federation.past.now.clients.keys()
    kept = federation.timeline.rounds()
    assert len(list(tmp_path.glob("round-*"))) == len(kept) < 20
    assert len(kept) <= len(list(tmp_path.glob("clients-*"))) < 25
    again = load(tmp_path)
    assert again.timeline.rounds() == kept
    for round in kept:
        ours, theirs = (f.timeline.at_or_before(round).clients for f in (federation, again))
        assert ours.keys() == theirs.keys() and all(equal(ours[c], theirs[c]) for c in ours)
    assert same(again, federation)
    for one in (again, federation):
        one.run(3)
    assert same(again, federation)


@pytest.mark.parametrize("step", range(5))
def test_a_save_that_fails_half_way_leaves_the_last_one(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation, left = run(2), [step]
    federation.save(tmp_path)
    before, fsync = load(tmp_path), os.fsync

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    federation.run(1)
    monkeypatch.setattr(os, "fsync", full)
    if step < 4:
        with pytest.raises(OSError, match=r"No space left on device: '.*/(round|clients|journal|run)[^/]*'"):
            federation.save(tmp_path)
        assert same(load(tmp_path), before)
    federation.save(tmp_path)
    assert same(load(tmp_path), federation)
    assert not [file for file in files_of(tmp_path) if file.name != "run.json" and not OURS.fullmatch(file.name)]


def test_engine_and_device_of_a_file_can_be_replaced_and_an_address_is_not_contacted(tmp_path: Path) -> None:
    federation = run(2, FedAvg())
    federation.save(tmp_path)
    assert load(tmp_path, engine="threads").settings.engine == "threads"
    head = tmp_path / "run.json"
    data = files.unseal(head.read_bytes(), head)
    data["segments"][0]["settings"] |= {"engine": "ray:203.0.113.1:6379", "device": "cuda:99"}
    head.write_bytes(files.seal(data))
    with pytest.raises(ValueError, match="engine='ray:203.0.113.1:6379' is the address"):
        load(tmp_path)
    with pytest.raises(ValueError, match="device='cuda:99' is not on this machine"):
        load(tmp_path, engine="loop")
    assert same(load(tmp_path, engine="loop", device="cpu"), federation)


@dataclass(frozen=True)
class Halved(FedAvg):
    """FedAvg that goes half of the way."""

    share: float = 0.5
    path: tuple[float, ...] = (1.0, 2.0)
    inner: FedAvg = FedAvg()
    name = "halved"

    def aggregate(self, start: Any, updates: Any, weights: Any, server: Any, clients: int) -> Any:
        return super().aggregate(start, updates, [self.share * weight for weight in weights], server, clients)


def test_a_method_of_ones_own_is_saved_and_read_back(tmp_path: Path) -> None:
    federation = run(2, Halved(0.25, inner=build_method("fedprox", mu=0.5)))
    federation.save(tmp_path)
    again = load(tmp_path)
    assert again.method == federation.method and type(again.method) is Halved
    assert same(again.run(1), federation.run(1))


def test_a_class_that_was_defined_again_is_the_one_that_counts(tmp_path: Path) -> None:
    def cell(twice: bool = False) -> type[FedAvg]:
        @dataclass(frozen=True)
        class Mine(FedAvg):
            factor: float = 1.0

        return Mine

    federation = run(1, cell()(factor=2.0))
    newest = cell()
    federation.save(tmp_path)
    assert type(load(tmp_path).method) is newest
    for methods in ([Halved, newest], {"Mine": newest}):
        assert type(load(tmp_path, methods=methods).method) is newest
    with pytest.raises(ValueError, match=r"Halved does not take \['factor'\]"):
        load(tmp_path, methods={"Mine": Halved})


def test_a_registered_method_that_is_defined_again_is_still_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "halved", Halved)
    federation = run(1, Halved())
    monkeypatch.setitem(METHODS, "halved", dataclass(frozen=True)(type("Halved", (Halved,), {})))
    federation.save(tmp_path)
    assert load(tmp_path).round == 1


def test_reading_imports_no_module_that_a_file_names(tmp_path: Path) -> None:
    run(1, Halved()).save(tmp_path / "run")
    (tmp_path / "evil_module.py").write_text("raise SystemExit('code was run')")
    sys.path.insert(0, str(tmp_path))
    head = tmp_path / "run" / "run.json"
    data = files.unseal(head.read_bytes(), head)
    try:
        for path in ("evil_module:Halved", "os:system", "builtins:eval", "evil_module:"):
            data["segments"][0]["method"]["class"] = path
            head.write_bytes(files.seal(data))
            with pytest.raises(ValueError, match=r"run\.json.*is not defined here; define it"):
                load(tmp_path / "run")
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_module" not in sys.modules


def test_what_could_not_be_read_back_is_refused_before_the_first_round(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Tensors(FedAvg):
        weights: Any = None

    class OwnInit(FedAvg):
        def __init__(self, factor: float) -> None:
            object.__setattr__(self, "factor", factor)

    for method, said in (
        (Tensors(torch.ones(2)), r"Tensors\.weights=tensor"),
        (OwnInit(2.0), "OwnInit has an __init__"),
    ):
        federation = run(0, method)
        with pytest.raises(ValueError, match=said):
            next(federation.rounds(1, checkpoint=tmp_path))
        assert federation.round == 0


def test_runs_of_the_first_format_are_refused_with_what_to_do(tmp_path: Path) -> None:
    federation = run(1)
    federation.save(tmp_path)
    head = tmp_path / "run.json"
    data = {**files.unseal(head.read_bytes(), head), "format": 1}
    for content in (json.dumps(data).encode(), files.seal(data)):
        head.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"run\.json: format 1, accepted: 2; runs of fedlab_core 0\.1 .*run it again"
        ):
            load(tmp_path)


@pytest.mark.parametrize("dtype", ["torch.int8", "torch.float32", "nonsense"])
def test_a_forged_dtype_is_refused(dtype: str, tmp_path: Path) -> None:
    federation = run(1, double=True)
    federation.save(tmp_path)
    head = tmp_path / "run.json"
    data = files.unseal(head.read_bytes(), head)
    name = next(iter(data["tensors"]))
    data["tensors"][name][0] = dtype
    head.write_bytes(files.seal(data))
    with pytest.raises(ValueError, match=rf"round-000001-\w+\.safetensors: {name} is torch.float64, .*run\.json says"):
        load(tmp_path)


def test_a_saved_run_of_another_version_or_none_is_refused(tmp_path: Path) -> None:
    federation = run(1)
    federation.save(tmp_path)
    head = tmp_path / "run.json"
    head.write_bytes(files.seal({**files.unseal(head.read_bytes(), head), "format": 3}))
    with pytest.raises(ValueError, match="format 3, accepted: 2"):
        load(tmp_path)
    with pytest.raises(ValueError, match="dataset"):
        federation.save(tmp_path / "other")
        Federation.load(tmp_path / "other", small_data(40, seed=3), federation.partition, federation.model)
