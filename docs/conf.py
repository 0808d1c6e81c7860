"""Sphinx's settings of the book; `tools/book.py` puts its sources together and calls Sphinx."""

import re
from typing import Any

from docutils import nodes
from sphinx.domains.python import PyObject

from fedlab_core import about

project = "fedlab_core"
author = "the authors of fedlab_core"
copyright = "MIT licence"
release = about.version()
html_title = f"Federated learning you can watch, {release}"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx-mathjax-offline"]
nb_execution_mode = "off"  # notebooks are shown as they are committed
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = [
    "mystnb.unknown_mime_type",  # widgets: the picture beside them is shown
    "ref.python",  # a type in a docstring, such as bytes, that is also the name of attributes
    "myst.header",  # notebooks may begin a section below a cell that shows HTML
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {
    "members": True,
    "show-inheritance": True,
    "no-value": True,
    "ignore-module-all": True,
    "exclude-members": "set",
}
napoleon_use_ivar = True
default_role = "code"  # docstrings write names in single backticks
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["player.js"]
html_show_sphinx = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
html_theme_options = {"navigation_with_keys": True, "sidebar_hide_name": False}
exclude_patterns = ["README.md"]
COLON = "\ue000"  # stands for one while napoleon reads


def plain(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain English: |x|, test_ and **options mean what they say, and are no markup."""
    for number, line in enumerate(lines):
        parts = line.replace(COLON, ":").split("`")
        parts[::2] = [re.sub(r"(?<![\w:])(\*+|\|)|\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
        for inside in range(2, len(parts), 2):  # `norm`s
            parts[inside] = re.sub(r"^(?=\w)", r"\\ ", parts[inside])
        lines[number] = "`".join(parts)


def whole(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading the first words of an attribute's text, up to a colon, as its type."""
    if what in ("attribute", "data", "property"):
        lines[:] = [line.replace(":", COLON) for line in lines]


def without_object(app: Any, tree: nodes.document) -> None:
    """That a class derives from object goes without saying."""
    for line in [p for p in tree.findall(nodes.paragraph) if p.astext() == "Bases: object"]:
        line.parent.remove(line)


def own_sources(app: Any) -> list[Any]:
    """Keep modules of other packages, whose source is not shown, out of the list of sources."""
    known = getattr(app.env, "_viewcode_modules", {})
    for name in [name for name, entry in known.items() if not entry]:
        del known[name]
    return []


def setup(app: Any) -> None:
    """Called by Sphinx."""
    for kind in PyObject.doc_field_types:
        if kind.name == "variable":
            kind.label = "Attributes"
    app.connect("autodoc-process-docstring", whole, priority=400)
    app.connect("autodoc-process-docstring", plain, priority=900)
    app.connect("doctree-read", without_object)
    app.connect("html-collect-pages", own_sources, priority=100)
