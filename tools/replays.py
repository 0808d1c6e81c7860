"""`make replays`: records the run of each lab at its first settings into docs/replays/, for the book to play."""

import argparse
import importlib
import pkgutil
import sys
import time
from pathlib import Path

from fedlab_core import files
from fedlab_core.workbench import labs
from fedlab_core.workbench.plan import Plan
from fedlab_core.workbench.replay import lab_replay, written

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "replays"
MOST_BYTES = 300_000


def plans() -> dict[str, Plan]:
    """Every lab by the name in small letters."""
    found = {}
    for module in pkgutil.iter_modules(labs.__path__, labs.__name__ + "."):
        members = vars(importlib.import_module(module.name))
        found |= {name.lower(): plan for name, plan in members.items() if isinstance(plan, Plan)}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Record all of them, or those named."""
    parser = argparse.ArgumentParser(prog="tools.replays", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *plans()], help="labs, all by default")
    for name in parser.parse_args(arguments).names or plans():
        since = time.perf_counter()
        content = written(lab_replay(plans()[name])).encode()
        files.write(FOLDER / f"{name}.json", content)
        print(f"{name}: {len(content) / 1000:.0f} kB, {time.perf_counter() - since:.1f} s")
        if len(content) > MOST_BYTES:
            print(f"{name}: more than {MOST_BYTES / 1000:.0f} kB", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
