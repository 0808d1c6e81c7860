"""The table of claims (`make claims`): what the studies set out to show, what was measured, and the verdict.

Rows of size "quick" are computed on the spot; those of size "standard" come from recorded runs in `figures/` and are
"not run" without a record.
"""

import argparse
import html
import importlib
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedlab_core import files
from fedlab_core.about import versions
from fedlab_core.check import checked
from fedlab_core.studies import coverage, headlines
from fedlab_core.studies.claim import VERDICTS, Claim, Range
from fedlab_core.studies.record import FIGURES, recorded

__all__ = ["VERDICTS", "Claim", "ClaimTable", "Range", "collect", "main", "recorded_table", "table"]

STUDIES = (
    "engines",
    "fedavg",
    "batchnorm",
    "layerwise",
    "finetuning",
    "pretraining",
    "failing",
    "attribution",
)  # modules of fedlab_core.studies; each has CLAIMS, a dict from id to a function that makes the row
WIDTH, INDENT = 118, " " * 13
_MARKS = {"shown": "+", "refuted": "-", "undecided": "?", "not run": "."}


@checked
class ClaimTable:
    """Rows for reading: one line a claim as text, and in a notebook a table whose rows unfold.

    Args:
        rows: see `Claim.row`.
        verbose: as text, every part of every row.
    """

    def __init__(self, rows: list[dict[str, Any]], verbose: bool = False) -> None:
        self.rows = rows
        self.verbose = verbose

    def __repr__(self) -> str:
        return "\n".join(line for row in self.rows for line in (_details(row) if self.verbose else [_line(row)]))

    def _repr_html_(self) -> str:
        names = ("verdict", "claim", "expected", "measured")
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in names)
        return f"<table><tr>{head}</tr>{''.join(map(_html, self.rows))}</table>"


@checked
def table(*claims: Claim) -> ClaimTable:
    """The rows of some claims, to end a cell with."""
    return ClaimTable([claim.row() for claim in claims])


@checked
def recorded_table(*ids: str) -> ClaimTable:
    """Rows of `figures/claims.json`, the last `make claims` on record, for claims that take longer than a cell should.

    Raises:
        ValueError: a row is not on record.
    """
    rows = {row["id"]: row for row in recorded("claims") or []}
    if missing := [name for name in ids if name not in rows]:
        raise ValueError(f"ids={missing} are not in figures/claims.json (run make claims), accepted: {sorted(rows)}")
    return ClaimTable([rows[name] for name in ids])


@checked
def collect(only: str = "") -> Iterator[Claim]:
    """Every claim whose id begins with `only`, study by study; quick ones are computed now.

    Raises:
        ValueError: no claim's id begins so.
    """
    found: dict[str, Callable[[], Claim]] = {}
    for name in STUDIES:
        found |= importlib.import_module(f"fedlab_core.studies.{name}").CLAIMS
    chosen = [make for key, make in found.items() if key.startswith(only)]
    if not chosen:
        raise ValueError(f"only={only!r} begins no claim, accepted: {', '.join(found)}")
    for make in chosen:
        yield make()


@checked
def main(arguments: list[str] | None = None) -> int:
    """Command line: prints the table row by row, writes it as JSON, `docs/coverage.md`, and sentences of the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only claims whose id begins so; the file keeps its other rows")
    parser.add_argument("--out", type=Path, default=FIGURES / "claims.json", help="file to write")
    parser.add_argument("--verbose", action="store_true", help="print every part of every claim")
    options = parser.parse_args(arguments)
    rows = []
    for claim in collect(options.only):
        rows.append(claim.row() | {"versions": versions()})
        print(ClaimTable(rows[-1:], options.verbose), flush=True)
    counts = ", ".join(f"{sum(row['verdict'] == verdict for row in rows)} {verdict}" for verdict in VERDICTS)
    print(f"{len(rows)} claims: {counts}")
    new = {row["id"]: row for row in rows}
    kept = (recorded("claims", options.out.parent) or []) if options.only and options.out.name == "claims.json" else []
    rows = [new.pop(row["id"], row) for row in kept] + list(new.values())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    files.write(options.out, f"{json.dumps(rows, indent=1, allow_nan=False)}\n".encode())
    if options.out == FIGURES / "claims.json":
        coverage.write()
        headlines.write()
    return 0


def _value(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,.10g}"


def _ends(ends: list[Any] | None) -> str:
    return f" [{_value(ends[0])}, {_value(ends[1])}]" if ends else ""


def _judged(row: dict[str, Any]) -> tuple[str, str, str]:
    """What decides, its range, and measured, in a few words: of an exact claim the first part that failed, if any."""
    if row["headline"]:
        part = row["headline"]
        return part, row["expected"][part], f"{_value(row['measured'].get(part))}{_ends(row['interval'])}"
    names = row["failed"] or list(row["expected"])
    part = names[0]
    more = f", and {len(names) - 1} more" if len(names) > 1 else ""
    return part, f"{row['expected'][part]}{more}", _value(row["measured"].get(part))


def _parts(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, measured with its interval, and expected of each part; what is only shown and not judged comes last."""
    names = [*row["expected"], *(name for name in row["measured"] if name not in row["expected"])]
    ends = row["intervals"] | {row["headline"]: row["interval"]}
    found = [
        (name, f"{_value(row['measured'].get(name))}{_ends(ends.get(name))}", row["expected"].get(name, ""))
        for name in names
    ]
    return found + [(f"reference: {name}", _value(value), "") for name, value in row["references"].items()]


def _facts(row: dict[str, Any]) -> str:
    """Size, seeds, test set, source, and when the range was set."""
    seeds, facts = len(row["seeds"]), [row["size"]]
    if seeds:
        facts.append(f"{seeds} seed{'s' * (seeds != 1)}")
    if row["test_size"]:
        error = row.get("test_set_error")
        facts.append(f"{row['test_size']:,} test examples{f' (standard error {error:g})' if error else ''}")
    facts.append(row["source"])
    return "; ".join(facts + [f"range: {row['registered']}"] * bool(row["registered"]))


def _line(row: dict[str, Any]) -> str:
    """One line: verdict, id, what was measured, what was expected."""
    part, limits, measured = _judged(row)
    return f"{_MARKS[row['verdict']]} {row['verdict']:9}  {row['id']:30} {measured}; expected {part} {limits}"


def _details(row: dict[str, Any]) -> list[str]:
    said = textwrap.wrap(f"{row['id']}: {row['claim']} ({_facts(row)})", WIDTH - len(INDENT))
    parts = _parts(row)
    width = max(len(name) for name, _, _ in parts)
    numbers = [f"{INDENT}{name:{width}}  {measured:>10}   {expected}".rstrip() for name, measured, expected in parts]
    first = f"{_MARKS[row['verdict']]} {row['verdict']}"
    return [f"{first:{len(INDENT)}}{said[0]}", *(INDENT + line for line in said[1:]), *numbers]


def _html(row: dict[str, Any]) -> str:
    left, escape = "style='text-align:left;vertical-align:top'", html.escape
    part, limits, measured = map(escape, _judged(row))
    inner = "".join(
        f"<tr><td {left}>{escape(name)}</td><td {left}>{escape(value)}</td><td {left}>{escape(limits)}</td></tr>"
        for name, value, limits in _parts(row)
    )
    unfolds = f"<details><summary>{escape(row['claim'])}</summary>{escape(_facts(row))}<table>{inner}</table></details>"
    verdict, about = f"<b>{escape(row['verdict'])}</b>", f"<b>{escape(row['id'])}</b>{unfolds}"
    cells = (verdict, about, f"{part}<br>{limits}", measured)
    return f"<tr>{''.join(f'<td {left}>{cell}</td>' for cell in cells)}</tr>"


if __name__ == "__main__":
    sys.exit(main())
