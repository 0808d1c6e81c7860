"""The README's sentences say what the records hold, and lead to what is there."""

import json
import re

import pytest

from fedlab_core import cli, files
from fedlab_core.studies import headlines
from fedlab_core.studies.record import FIGURES, recorded
from tools import first_run


def test_the_readme_says_what_the_claims_say() -> None:
    text = headlines.FILE.read_text(encoding="utf-8")
    assert headlines.written(text, recorded("claims")) == text
    assert text.count(headlines.BEGIN) == text.count(headlines.END) == 1


def test_every_sentence_has_a_number_and_a_link_that_leads_somewhere() -> None:
    said = headlines.sentences(recorded("claims"))
    assert len(said) == 5
    for sentence in said:
        (target,) = re.findall(r"\]\(([^)]+)\)", sentence)
        assert re.search(r"\d", sentence) and (FIGURES.parent / target).exists()


def test_the_readme_leads_to_what_is_there() -> None:
    text = headlines.FILE.read_text(encoding="utf-8")
    root = headlines.FILE.parent
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20 and [link for link in links if not (root / link).exists()] == []
    fenced = r"```\w*\n(.*?)```"
    blocks = re.sub("#.*", "", "\n".join(re.findall(fenced, text, re.DOTALL)))
    code = " ".join([blocks, *re.findall(r"`([^`]+)`", re.sub(fenced, "", text, flags=re.DOTALL))])
    targets = {*re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE)}
    made, commands = {*re.findall(r"\bmake ([a-z-]+)", code)}, {*re.findall(r"\bfedlab-core ([a-z]+)", code)}
    assert {"lab", "test", "book"} <= made <= targets and {"lab", "run", "report"} <= commands
    for command in commands:
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])


def test_the_readme_tells_the_measured_way_in() -> None:
    first = recorded("first_run")
    said = f"[{first['minutes']} minutes and four actions](figures/first_run.json)"
    text = headlines.FILE.read_text(encoding="utf-8")
    assert first["actions"] == 4 and said in text
    assert files.between(text, first_run.BEGIN, first_run.END, first_run.sentences(first)) == text
    assert text.count(first_run.BEGIN) == text.count(first_run.END) == 1
    assert (
        f"of the {first['wheel']['gigabytes']} GB that the wheel"
        in (headlines.FILE.parent / "docs/versions.md").read_text()
    )
    versions = (headlines.FILE.parent / "docs" / "versions.md").read_text(encoding="utf-8")
    assert f"with tests and book, takes {first['book']['gigabytes']}." in versions


def test_another_record_gives_other_numbers(tmp_path) -> None:
    rows = json.loads(json.dumps(recorded("claims")))
    (memory,) = [row for row in rows if row["id"] == "finetuning.memory"]
    memory["measured"]["bias: payload, times less"] = 12345.0
    assert "sends 12345 times fewer bytes" in headlines.sentences(rows)[3]
    file = tmp_path / "README.md"
    headlines.write(file)  # there is none: nothing is written
    assert not file.exists()
    file.write_text(f"before\n{headlines.BEGIN}\nold\n{headlines.END}\nafter\n")
    headlines.write(file)
    text = file.read_text()
    assert text.startswith(f"before\n{headlines.BEGIN}\n1. ") and text.endswith(f"\n{headlines.END}\nafter\n")
    assert all(sentence in text for sentence in headlines.sentences(recorded("claims"))) and "old" not in text


@pytest.mark.parametrize("lacking", [headlines.BEGIN, headlines.END])
def test_a_page_without_a_mark_is_left_as_it_was(tmp_path, lacking) -> None:
    file = tmp_path / "README.md"
    file.write_text(before := f"before\n{headlines.BEGIN}\nold\n{headlines.END}\nafter\n".replace(lacking, ""))
    with pytest.raises(ValueError, match=f"lacks the mark {lacking!r}"):
        headlines.write(file)
    assert file.read_text() == before


def test_a_missing_claim_is_named() -> None:
    with pytest.raises(KeyError, match=r"batchnorm\.identity"):
        headlines.sentences([])
