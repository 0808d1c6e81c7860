"""Which method should I use? One page of advice, each line decided by a recorded claim."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedlab_core.check import checked
from fedlab_core.studies.record import FIGURES, recorded


@checked
@dataclass(frozen=True)
class Rule:
    """A situation, and what to do about it as a record decides.

    Attributes:
        situation: of the reader.
        claim: id of the claim that decides.
        part: name of the measured number to quote.
        shown, refuted: the advice where the claim is shown, and where it is refuted; undecided says so itself.
        notebook: where to try it.
    """

    situation: str
    claim: str
    part: str
    shown: str
    refuted: str
    notebook: str


RULES = (
    Rule("Messages are dear, computing is cheap", "fedavg.text", "times fewer rounds",
         "let clients work: E = 5, B = 10", "keep to FedSGD", "01"),
    Rule("Models begin apart", "fedavg.figure_one", "independent: midpoint above the worse parent",
         "do not average them: begin every round from one model", "averaging them does no harm", "01"),
    Rule("Batch norm, clients with different classes", "batchnorm.cifar", "FedTAN minus FedAvg+BN",
         "replace batch norm by GroupNorm, or use FedTAN", "keep batch norm averaged", "02"),
    Rule("FedTAN over a slow network", "batchnorm.exchanges", "exchanges per round",
         "not on phones: count the exchanges of a round", "its exchanges cost little", "02"),
    Rule("A pre-trained start is at hand", "pretraining.mnist", "Dir(0.05): gap narrowed by",
         "use it, the more so the more clients differ", "do not expect it to close the gap", "03"),
    Rule("No data to pre-train on", "pretraining.synthetic", "fractal pairs: gain",
         "pre-train on fractals", "a few thousand fractals do not help", "03"),
    Rule("Clients could pre-train on their own images", "pretraining.decentralised", "gain at equal rounds",
         "spend the first rounds on it", "spend the rounds on the task", "03"),
    Rule("A strong Transformer, dear bytes", "finetuning.targets", "bias: times fewer bytes than full",
         "train biases or adapters only", "train everything", "05"),
    Rule("Few examples at each client", "finetuning.local", "4: all classes, FL minus alone",
         "train together", "train alone", "05"),
    Rule("Short of memory", "layerwise.memory", "times less, small heads",
         "train one block at a time", "train end to end", "06"),
    Rule("One block at a time, as many rounds", "layerwise.accuracy", "minus end-to-end at equal rounds",
         "expect the accuracy of end-to-end training", "give it more rounds", "06"),
    Rule("Frozen blocks cost too much computing", "layerwise.dropout_accuracy", "rate 0.5 minus none",
         "drop half of them", "keep them", "06"),
)  # fmt: skip


@checked
class Guide:
    """The rules with what the records say, as text and as HTML in a notebook.

    Attributes:
        rows: one dictionary of texts per rule: situation, advice, because, verdict, notebook.
    """

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.rows = rows

    def __repr__(self) -> str:
        lines = (f"{r['situation']}: {r['advice'].upper()} ({r['because']}; {r['verdict']})" for r in self.rows)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        heads = ("If", "then", "because", "verdict", "try it in")
        left = "style='text-align:left'"
        head = "".join(f"<th {left}>{text}</th>" for text in heads)
        keys = ("situation", "advice", "because", "verdict", "notebook")
        body = "".join(
            "<tr>" + "".join(f"<td {left}>{html.escape(row[key])}</td>" for key in keys) + "</tr>" for row in self.rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


@checked
def decide(rule: Rule, claims: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A rule's row: what the claim's verdict advises, and the number it rests on."""
    claim = claims.get(rule.claim)
    verdict = "not run" if claim is None else str(claim["verdict"])
    advice = {"shown": rule.shown, "refuted": rule.refuted}.get(verdict, f"undecided so far: {rule.shown}? Try both")
    because = rule.claim
    if claim is not None and (value := claim["measured"].get(rule.part)) is not None:
        ends = claim.get("intervals", {}).get(rule.part)
        ends = claim.get("interval") if claim.get("headline") == rule.part else ends
        spread = f" ({_short(ends[0])} to {_short(ends[1])})" if ends else ""
        because = f"{rule.part}: {_short(value)}{spread}"
    notebook = f"notebook {rule.notebook}"
    return {"situation": rule.situation, "advice": advice, "because": because, "verdict": verdict, "notebook": notebook}


@checked
def guide(rules: Iterable[Rule] = RULES, folder: Path = FIGURES) -> Guide:
    """The guide from the claims on record, `figures/claims.json`."""
    claims = {row["id"]: row for row in recorded("claims", folder) or []}
    return Guide([decide(rule, claims) for rule in rules])


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)
