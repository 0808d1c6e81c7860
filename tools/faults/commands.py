"""The command line, called with options, files and folders that make no sense: exit code 2, and words that name it."""

import contextlib
import dataclasses
import io
import json
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedlab_core import cli
from fedlab_core.experiment import Experiment
from fedlab_core.settings import Settings
from tools.faults.calls import Late, limited
from tools.faults.table import Table

WORDS = ("nonsense", "-7", "1.5", "nan", "", "1e400", "99999999999999999999", "../nowhere", "\u2603")
VALUES = ("nonsense", -7, 1.5, 10**30, [], {}, ["nonsense"], {"non": "sense"}, True, None)
GOOD = {"clients": 4, "settings": {"fraction": 0.5}}


def cases(root: Path, draws: random.Random) -> Iterator[tuple[str, list[str], list[str]]]:
    """What is tried, the words of a command, and those of which the answer has to name one."""
    run = root / "run"
    file = _experiment(root / "good.json", GOOD)
    for word in WORDS:
        fresh = str(root / f"out{draws.randrange(10**9)}")
        for option in ("--rounds", "--engine", "--device", "--cluster", "--with"):
            one, more = [option, word], [] if option == "--rounds" else ["--rounds", "1"]
            yield (
                f"run {option}",
                ["run", str(file), "--out", fresh, *more, *one],
                [option, option[2:], Path(word).name or "ray:"],
            )
            yield f"resume {option}", ["resume", str(run), *one], [option, option[2:], Path(word).name or "ray:"]
        for command in ("resume", "report"):
            yield f"{command} RUN", [command, word], ["RUN", "run", Path(word).name or "."]
        yield "run FILE", ["run", word, "--rounds", "1"], ["experiment", Path(word).name or "."]
        yield "COMMAND", [word], ["COMMAND"]
        yield "lab --port", ["lab", "--copy-only", "--port", word, str(root / "lab")], ["--port"]
    for name, value in _nonsense():
        inside = {**GOOD["settings"], name: value} if name in _names(Settings) else GOOD["settings"]
        changed = {**GOOD, "settings": inside} | ({} if name in _names(Settings) else {name: value})
        odd = _experiment(root / f"{name} {draws.randrange(10**9)}.json", changed)
        said = [name, "non"] if name.endswith("options") else [name]
        yield "a field of the file", ["run", str(odd), "--rounds", "1", "--out", str(odd.with_suffix(""))], said
    for text in ("", "[]", "3", "{", '{"clients": NaN}', '{"clients": 4, "clients": 5}', '{"unknown": 1}', "\0"):
        odd = root / f"text{draws.randrange(10**9)}.json"
        odd.write_text(text, encoding="utf-8")
        yield "the text of the file", ["run", str(odd), "--rounds", "1"], [odd.name]


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name != "settings"]


def _nonsense() -> list[tuple[str, Any]]:
    """Fields of an experiment and its settings with values that they never have."""
    plain = {**Experiment().to_json(), **Experiment().to_json()["settings"]}
    found = [(name, value) for name in (*_names(Experiment), *_names(Settings)) for value in VALUES]

    def right(name: str, value: Any) -> bool:
        usual = plain[name]
        if value is None or isinstance(usual, bool):
            return True if value is None else isinstance(value, bool)
        if isinstance(usual, dict):
            return isinstance(value, dict) and not value
        return name in ("channels_last", "failures", "seed", "steps", "epochs") or (
            name in ("lr", "weight_decay", "clip_norm") and value == 1.5
        )

    return [(name, value) for name, value in found if not right(name, value)]


def _experiment(path: Path, fields: dict[str, Any]) -> Path:
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def commands(count: int, seed: int = 0) -> Table:
    """So many commands, drawn at random, or as many as there are."""
    table, draws = Table(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        root = Path(folder)
        _said(["run", str(_experiment(root / "first.json", GOOD)), "--rounds", "1", "--out", str(root / "run")])
        every = list(cases(root, draws))
        draws.shuffle(every)
        for tried, words, names in every[:count]:
            shown = " ".join(map(repr, words)).replace(folder, "")
            try:
                code, said = _said(words)
            except Late:
                table.add(tried, "crash", f"{shown}: no answer")
            except Exception as error:
                table.add(tried, "crash" if "memory" in str(error) else "unclear", f"{shown}: {error!r:.200}")
            else:
                clear = code in (1, 2) and any(name in said for name in names)
                table.add(tried, "clear" if clear else "unclear" if code else "silent", f"{shown}: {code} {said:.300}")
    return table


def _said(words: list[str]) -> tuple[int, str]:
    """Exit code of a command, and what it says."""
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = limited(lambda: cli.main(words))
        except SystemExit as end:
            code = end.code
    return int(code or 0), out.getvalue()
