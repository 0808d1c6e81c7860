"""The decision guide follows the records: another verdict, another advice."""

import pytest

from fedlab_core.studies.guide import RULES, decide, guide
from fedlab_core.studies.record import FIGURES, recorded

CLAIM = {"verdict": "shown", "measured": {"part": 1.23456}, "headline": "part", "interval": [1.0, 1.5]}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.claim)
def test_every_rule_quotes_a_number_that_is_on_record(rule):
    claims = {row["id"]: row for row in recorded("claims", FIGURES)}
    assert rule.part in claims[rule.claim]["measured"]


@pytest.mark.parametrize(
    ("verdict", "advice"),
    [("shown", RULES[0].shown), ("refuted", RULES[0].refuted), ("undecided", "undecided"), ("not run", "undecided")],
)
def test_the_verdict_decides(verdict, advice):
    row = decide(RULES[0], {RULES[0].claim: CLAIM | {"verdict": verdict, "measured": {RULES[0].part: 2.0}}})
    assert row["advice"].startswith(advice) and row["verdict"] == verdict


def test_the_interval_stands_beside_the_number():
    rule = RULES[0].__class__("if", "claim", "part", "do", "do not", "01")
    assert decide(rule, {"claim": CLAIM})["because"] == "part: 1.23 (1 to 1.5)"
    assert decide(rule, {})["verdict"] == "not run"


def test_the_page_is_short_and_readable():
    page = guide()
    assert len(page.rows) == len(RULES) <= 12
    assert page._repr_html_().count("<tr>") == len(RULES) + 1 and "undecided" in repr(page)
