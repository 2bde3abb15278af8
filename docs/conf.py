"""The site: `make site` builds it into out/site, offline, and a warning is an error."""

import re
from importlib.metadata import version as installed

from pygments.lexers.special import TextLexer

project = "guestclock"
author = copyright = "The guestclock developers"  # noqa: A001 - Sphinx's name
release = version = installed("guestclock")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "attrs_block"]

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_title = "guestclock"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"top_of_page_buttons": []}


CODE = re.compile(r"(`[^`]+`)")
ARGUMENT = re.compile(r"([a-z_]+(?:, [a-z_]+)*): ")


def plain(_app, _what, _name, _obj, _options, lines):
    """Makes reStructuredText of a docstring: plain text with Markdown's backticks, a line or more for each argument."""
    out = []
    listing = False
    for line in CODE.sub(lambda code: " ".join(code[0].split()), "\n".join(lines)).split("\n"):
        if argument := ARGUMENT.match(line):
            out += ["", f"- ``{argument[1]}``: {marked(line[argument.end() :])}"]
            listing = True
        else:
            listing = listing and line.startswith(" ")
            out += [""] if not listing and out and out[-1].startswith(("- ", "  ")) else []
            out.append(f"{'  ' if listing else ''}{marked(line.strip())}")
    lines[:] = out


def marked(text):
    """The text with its code as literals, and every other mark of reStructuredText's as a plain character."""
    parts = CODE.split(text)
    parts[::2] = [re.sub(r"[|*_\\]", r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [rf"``{code.strip('`')}``\ " for code in parts[1::2]]
    return "".join(parts)


def setup(app):
    """Called by Sphinx."""
    app.add_lexer("cbor-diag", TextLexer)
    app.connect("autodoc-process-docstring", plain)
