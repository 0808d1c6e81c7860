"""Write docs/glossary.md from `fedlab_core.glossary`, the one source of the terms: python tools/glossary_page.py"""

from pathlib import Path

from fedlab_core.glossary import GLOSSARY

PAGE = Path(__file__).resolve().parents[1] / "docs" / "glossary.md"


def page() -> str:
    """The page as Markdown, terms in alphabetical order."""
    rows = (f"**{term}**: {GLOSSARY[term]}" for term in sorted(GLOSSARY, key=str.casefold))
    head = "# Glossary\n\nThe terms of the book, one sentence each; panels show them where you point at a word."
    return "\n\n".join([head, *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
