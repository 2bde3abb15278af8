"""The Python of the README and the docs is run, page by page, in one namespace each, as its reader would type it.

A `text` block is what the Python block before it prints.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("bank", "event-loop", "faults", "fleet", "pages", "policies", "restore", "unicorn")
    ),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    fences = [token for token in tokens if token.type == "fence"]
    assert any(block.info == "python" for block in fences), "the page has no Python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    for block in fences:
        assert block.map is not None
        if block.info == "text":
            assert block.content == printed.getvalue(), f"what line {block.map[0] + 1} shows isn't what is printed"
        if block.info != "python":
            continue
        # The blank lines put a traceback's line numbers where they are in the page.
        source = "\n" * (block.map[0] + 1) + block.content
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(source, page, "exec"), namespace)  # noqa: S102 - the page is ours
