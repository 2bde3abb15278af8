"""Every link from one page of the repo to another leads somewhere, down to the heading."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("lab/**/*.md")]
)


def inline(page: Path) -> list[Token]:
    parsed = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    return [child for token in parsed for child in token.children or []]


def links(page: Path) -> list[str]:
    targets = [token.attrs.get("href") or token.attrs.get("src") for token in inline(page)]
    return [str(target) for target in targets if target]


def anchors(page: Path) -> set[str]:
    """The headings' anchors as code hosts make them: lower case, punctuation dropped, spaces to hyphens."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    headings = [after.content for before, after in pairwise(tokens) if before.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_pages() -> None:
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "README.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repo_lead_somewhere(page: Path) -> None:
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme in {"https", "mailto"}, link
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if parts.fragment and target.suffix == ".md":
            assert parts.fragment in anchors(target), link
