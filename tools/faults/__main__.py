"""`make faults`: try what can go wrong, and count how the project takes it. Seeded and bounded.

python -m tools.faults --kills 200 --interrupts 88 --corruptions 1000 --saves 100 --calls 10000
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedlab_core.about import versions
from tools.faults.calls import calls
from tools.faults.commands import commands
from tools.faults.corruptions import corruptions
from tools.faults.disk import disk
from tools.faults.growth import growth
from tools.faults.kills import interrupts, kills
from tools.faults.table import OUTCOMES, Table

PARTS: dict[str, tuple[Callable[[int, int], Table], int]] = {
    "kills": (kills, 100),
    "interrupts": (interrupts, 44),
    "corruptions": (corruptions, 1000),
    "saves": (disk, 50),
    "growth": (growth, 300),
    "calls": (calls, 3000),
    "commands": (commands, 400),
}


def main() -> int:
    """Run the parts that are asked for (all of them by default) and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=20, help="how many bad outcomes to print of each part")
    parser.add_argument("--out", type=Path, help="a JSON file that keeps the tables, those of other calls included")
    for name in PARTS:
        parser.add_argument(f"--{name}", type=int, default=None, help="how many; with any given, the others are 0")
    options = parser.parse_args()
    asked = {name: getattr(options, name) for name in PARTS}
    default = all(count is None for count in asked.values())
    bad = 0
    for name, (part, usual) in PARTS.items():
        count = usual if default else asked[name] or 0
        if count:
            began, table = time.perf_counter(), part(count, options.seed)
            bad += table.bad
            if options.out:
                _keep(options.out, name, {"asked": count, "seed": options.seed, **table.to_json()}, began)
            print(f"{name}\n{table}", *table.examples[: options.examples], "", sep="\n", flush=True)
    print("; ".join(f"{outcome}: {meaning}" for outcome, meaning in OUTCOMES.items()))
    return bool(bad)


def _keep(file: Path, name: str, table: dict[str, Any], began: float) -> None:
    """Put a part's table into a file, in the place of what it had there."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known[name] = {**table, "minutes": round((time.perf_counter() - began) / 60, 1), "versions": versions()}
    ordered = {part: known[part] for part in PARTS if part in known}
    file.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
