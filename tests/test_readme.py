"""The Python of the README and the docs is run, page by page, in one namespace each, as its reader would type it."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("faults", "pages", "unicorn"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    blocks = [token for token in tokens if token.type == "fence" and token.info.split()[:1] == ["python"]]
    assert blocks, "the page has no Python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        assert block.map is not None
        # The blank lines put a traceback's line numbers where they are in the page.
        source = "\n" * (block.map[0] + 1) + block.content
        exec(compile(source, page, "exec"), namespace)  # noqa: S102 - the page is ours
