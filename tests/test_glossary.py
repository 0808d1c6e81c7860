"""The glossary: one sentence a term, and a term for whatever a reader meets."""

from fedlab_core.glossary import GLOSSARY, define
from fedlab_core.registry import METHODS
from tools import glossary_page


def test_every_definition_is_one_sentence():
    for term, sentence in GLOSSARY.items():
        assert sentence.endswith(".") and len(sentence) < 260, term
    assert define("Relative Drift") == GLOSSARY["relative drift"] and define("no such term") == ""


def test_every_built_in_method_is_defined():
    assert {kind.name for kind in METHODS.values() if not define(kind.name)} == set()


def test_the_page_is_what_the_one_source_says():
    assert glossary_page.PAGE.read_text(encoding="utf-8") == glossary_page.page(), "run tools/glossary_page.py"
