"""The code blocks of a page, run as its reader would type them: in their order, in one namespace.

A `text` block is what the Python block before it prints.
"""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
KVM_PAGES = [ROOT / "docs/restore-kvm.md"]
"""Pages whose blocks need an arm64 /dev/kvm: tests/kvm runs them."""


def blocks(page: Path) -> list[Token]:
    return [token for token in MarkdownIt().parse(page.read_text(encoding="utf-8")) if token.type == "fence"]


def has_python(page: Path) -> bool:
    return any(block.info == "python" for block in blocks(page))


def run(page: Path) -> None:
    """Runs a page in the current folder. What it sets up for the log ends with it."""
    logger = logging.getLogger("guestclock")
    level, handlers = logger.level, list(logger.handlers)
    try:
        _run(page)
    finally:
        logger.setLevel(level)
        logger.handlers = handlers


def _run(page: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    for block in blocks(page):
        assert block.map is not None
        if block.info == "text":
            assert block.content == printed.getvalue(), f"what line {block.map[0] + 1} shows isn't what is printed"
        if block.info != "python":
            continue
        # The blank lines put a traceback's line numbers where they are in the page.
        source = "\n" * (block.map[0] + 1) + block.content
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, page, "exec"), namespace)  # noqa: S102 - the page is ours
