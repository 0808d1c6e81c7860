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
)  # modules of fedlab_core.studies; each has CLAIMS, a dict from id to a function that makes the row
WIDTH, INDENT = 118, " " * 13
_MARKS = {"shown": "+", "partly": "~", "not shown": "-", "not run": "."}


class ClaimTable:
    """Rows for reading: as text, and as HTML in a notebook."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __repr__(self) -> str:
        return "\n".join(line for row in self.rows for line in _text(row))

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{h}</th>" for h in ("claim", "expected", "measured", "verdict"))
        return f"<table><tr>{head}</tr>{''.join(map(_html, self.rows))}</table>"


def table(*claims: Claim) -> ClaimTable:
    """The rows of some claims, to end a cell with."""
    return ClaimTable([claim.row() for claim in claims])


def recorded_table(*ids: str) -> ClaimTable:
    """Rows of `figures/claims.json`, the last `make claims` on record, for claims that take longer than a cell should.

    Raises:
        ValueError: a row is not on record.
    """
    rows = {row["id"]: row for row in recorded("claims") or []}
    if missing := [name for name in ids if name not in rows]:
        raise ValueError(f"ids={missing} are not in figures/claims.json (run make claims), accepted: {sorted(rows)}")
    return ClaimTable([rows[name] for name in ids])


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


def main(arguments: list[str] | None = None) -> int:
    """Command line: prints the table row by row and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only claims whose id begins so; the file keeps its other rows")
    parser.add_argument("--out", type=Path, default=FIGURES / "claims.json", help="file to write")
    options = parser.parse_args(arguments)
    rows = []
    for claim in collect(options.only):
        rows.append(claim.row())
        print("\n".join(_text(rows[-1])), flush=True)
    counts = ", ".join(f"{sum(row['verdict'] == verdict for row in rows)} {verdict}" for verdict in VERDICTS)
    print(f"{len(rows)} claims: {counts}")
    new = {row["id"]: row for row in rows}
    kept = (recorded("claims", options.out.parent) or []) if options.only and options.out.name == "claims.json" else []
    rows = [new.pop(row["id"], row) for row in kept] + list(new.values())
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def _value(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:,.10g}"


def _parts(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, expected and measured of each part; what is only shown and not judged comes last."""
    names = [*row["expected"], *(name for name in row["measured"] if name not in row["expected"])]
    return [(name, row["expected"].get(name, ""), _value(row["measured"].get(name))) for name in names]


def _run(row: dict[str, Any]) -> str:
    seeds = row["seeds"]
    counted = f", {len(seeds)} seed{'s' * (len(seeds) != 1)}" if seeds else ""
    return f"{row['size']}{counted}; {row['source']}"


def _text(row: dict[str, Any]) -> list[str]:
    said = textwrap.wrap(f"{row['id']}: {row['claim']} ({_run(row)})", WIDTH - len(INDENT))
    parts = _parts(row)
    width = max(len(name) for name, _, _ in parts)
    numbers = [f"{INDENT}{name:{width}}  {measured:>10}   {expected}".rstrip() for name, expected, measured in parts]
    first = f"{_MARKS[row['verdict']]} {row['verdict']}"
    return [f"{first:{len(INDENT)}}{said[0]}", *(INDENT + line for line in said[1:]), *numbers]


def _html(row: dict[str, Any]) -> str:
    left, escape = "style='text-align:left'", html.escape
    parts = _parts(row)
    first = f"<b>{escape(row['id'])}</b><br>{escape(row['claim'])}<br><i>{escape(_run(row))}</i>"
    cells = []
    for number, (name, expected, measured) in enumerate(parts):
        ends = (f"<td {left} rowspan={len(parts)}>{text}</td>" for text in (first, f"<b>{escape(row['verdict'])}</b>"))
        begin, end = ends if number == 0 else ("", "")
        inner = (
            f"<td {left}>{escape(f'{name}: {expected}' if expected else name)}</td><td {left}>{escape(measured)}</td>"
        )
        cells.append(f"<tr>{begin}{inner}{end}</tr>")
    return "".join(cells)


if __name__ == "__main__":
    sys.exit(main())
