"""The page of coverage is computed from the recorded claims and links to what is there."""

import re

import pytest

from fedlab_core.studies import coverage
from fedlab_core.studies.coverage import FILE, PAPERS, Statement
from fedlab_core.studies.record import FIGURES, recorded


def test_the_committed_page_is_the_one_that_the_claims_give() -> None:
    assert FILE.read_text(encoding="utf-8") == coverage.page(recorded("claims"))


def test_every_picture_is_there_and_every_row_has_six_cells() -> None:
    text = FILE.read_text(encoding="utf-8")
    names = set(re.findall(r"\(\.\./figures/([^)]+)\)", text))
    assert names and all((FIGURES / name).exists() for name in names)
    assert {line.count(" | ") for line in text.splitlines() if line.startswith("| ")} == {5}
    assert text.count("\n## ") == len(PAPERS) == 5


def test_every_claim_about_a_paper_belongs_to_a_statement() -> None:
    rows = {row["id"]: row for row in recorded("claims")}
    named = {row["id"] for statements in PAPERS.values() for s in statements for row in coverage.chosen(s, rows)}
    ours = {"fedavg.mnist", "fedavg.resume", "fedavg.first_run", "batchnorm.silobn"}
    assert {key for key in rows if not key.startswith(("attribution.", "engines.", "failing."))} - named == ours


def test_a_claim_that_is_not_there_is_missed() -> None:
    with pytest.raises(ValueError, match="fedavg.none"):
        coverage.chosen(Statement("said", ("fedavg.none",)), {})
