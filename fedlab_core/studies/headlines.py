"""Five sentences of the README with their numbers, computed from the recorded claims; `make claims` writes them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedlab_core import files
from fedlab_core.studies.record import FIGURES, recorded

FILE = FIGURES.parent / "README.md"
BEGIN, END = "<!-- written by `make claims` -->", "<!-- end -->"


def sentences(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the claims found, in Markdown with links, from the rows of `figures/claims.json`.

    Raises:
        KeyError: a claim or a measure that a sentence rests on is not there.
    """
    by_id = {row["id"]: row for row in rows}

    def measured(claim: str, part: str) -> Any:
        return by_id[claim]["measured"][part]

    identity = "batchnorm.identity"
    exact, without = measured(identity, "largest relative error"), "smallest error with something left out"
    iid = by_id["fedavg.rounds_iid"]
    rounds, (low, high) = iid["measured"][iid["headline"]], iid["interval"]
    kept, rewound = (
        measured("fedavg.resume", f"equal after {how}") for how in ("a kill, of 20 runs", "rewinding, of 20")
    )
    sent, memory = (
        measured("finetuning.memory", f"bias: {part}, times less") for part in ("payload", "kept for backward")
    )
    verdicts = Counter(row["verdict"] for row in rows)
    counts = ", ".join(f"{verdicts[name]} {name}" for name in ("shown", "refuted", "undecided", "not run"))
    return [
        f"FedTAN's averaged gradient is the gradient of the pooled data, to a relative error of {exact:.0e}; with one "
        f"of its exchanges left out the error is at least {measured(identity, without):.2g} "
        "([02_batchnorm](notebooks/02_batchnorm.ipynb)).",
        f"McMahan et al. come out again: MNIST, IID, 2NN, C = 0.1, E = 1, B = 10 needs {rounds:.0f} rounds to 97 % "
        f"({low:.0f} to {high:.0f}, 95 %, {iid['n']} seeds); the paper's tables 1 and 4 say 87 and 92 "
        "([picture](figures/fedavg_tables.png)).",
        f"A run that was killed at a random moment and resumed ends in the bits of an uninterrupted one, {kept} times "
        f"of 20; so does one that was rewound and run again, {rewound} of 20 "
        "([00_start_here](notebooks/00_start_here.ipynb)).",
        f"Training only the biases of a ViT-B/16 sends {sent:.0f} times fewer bytes, but keeps only {memory:.2g} times "
        "less for the backward pass ([05_finetuning](notebooks/05_finetuning.ipynb)).",
        f"Of {len(rows)} claims, each with its range and the commit that set it: {counts} "
        "([the five abstracts, statement by statement](docs/coverage.md)).",
    ]


def written(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The README's text with the sentences."""
    return files.between(text, BEGIN, END, [f"1. {sentence}" for sentence in sentences(rows)])


def write(file: Path = FILE) -> None:
    """Write the sentences into the README, where there is one."""
    if file.exists():
        files.write(file, written(file.read_text(encoding="utf-8"), recorded("claims") or []).encode())
