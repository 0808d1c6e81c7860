"""Files are whole or absent, and what was changed in them is noticed."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from fedlab_core import check, files
from fedlab_core.studies.record import recorded

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@limits(deadline=None)
@given(st.dictionaries(st.text(max_size=5).filter("sha256".__ne__), PLAIN, min_size=1), st.sampled_from([None, 1]))
def test_sealed_data_comes_back_and_is_json(data: dict, indent: int | None) -> None:
    content = files.seal(data, indent)
    assert files.unseal(content, Path("x")) == files.parse_any(content, Path("x")) == data
    assert {n: v for n, v in json.loads(content).items() if n != "sha256"} == data


@limits(deadline=None)
@given(st.data())
def test_every_changed_byte_breaks_the_seal(data: st.DataObject) -> None:
    content = files.seal({"a": 1.5, "b": ["x", None]}, indent=1)
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]))
    with pytest.raises(ValueError, match="here.json: damaged"):
        files.unseal(content[:at] + bytes([other]) + content[at + 1 :], Path("here.json"))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    files.write(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        files.write(file, b"new")
    with pytest.raises(KeyboardInterrupt), files.published(file) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_append_cuts_off_what_stood_after(tmp_path: Path) -> None:
    files.append(tmp_path / "log", 0, b"one\n")
    files.append(tmp_path / "log", 4, b"two\nhalf")
    files.append(tmp_path / "log", 8, b"three\n")
    assert files.read(tmp_path / "log") == b"one\ntwo\nthree\n"
    assert files.read(tmp_path / "log", first=4) == b"one\n"
    with pytest.raises(ValueError, match="14 bytes, accepted: at most 13"):
        files.read(tmp_path / "log", 13)


def test_kept_results_of_studies_are_sealed(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    files.write(file, files.seal({"accuracy": 0.75}))
    assert recorded("a", tmp_path) == {"accuracy": 0.75}
    file.write_bytes(file.read_bytes().replace(b"0.75", b"0.85"))
    with pytest.raises(ValueError, match=r"a\.json: damaged, its checksum is wrong; record it again"):
        recorded("a", tmp_path)
    assert recorded("b", tmp_path) is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: check.whole("epochs", 0, 1), "epochs=0, accepted: a whole number >= 1"),
        (lambda: check.whole("epochs", True), "epochs=True, accepted: a whole number"),
        (lambda: check.whole("round", 7, 0, 5), "round=7, accepted: a whole number >= 0 and <= 5"),
        (lambda: check.number("lr", float("nan"), above=0), "lr=nan, accepted: a number > 0"),
        (lambda: check.number("share", 2, 0, 1), "share=2, accepted: a number >= 0 and <= 1"),
        (lambda: check.choice("split", "tset", ("test", "train")), "split='tset', accepted: 'test', 'train'"),
        (lambda: check.flag("double", 1), "double=1, accepted: True or False"),
        (lambda: check.text("name", None), "name=None, accepted: a text"),
        (lambda: check.instance("path", "x" * 999, int), "path='" + "x" * 199 + " ..., accepted: a int"),
    ],
)
def test_refusals_name_argument_value_and_what_is_accepted(call: object, said: str) -> None:
    with pytest.raises(ValueError) as error:
        call()  # type: ignore[operator]
    assert str(error.value) == said
