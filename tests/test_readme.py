"""The README's Python is run, in its order and in one namespace, as its reader would type it."""

from __future__ import annotations

from pathlib import Path

import pytest
from markdown_it import MarkdownIt

README = Path(__file__).parent.parent / "README.md"


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = MarkdownIt().parse(README.read_text(encoding="utf-8"))
    blocks = [token for token in tokens if token.type == "fence" and token.info.split()[:1] == ["python"]]
    assert blocks, "the README has no Python block"
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        assert block.map is not None
        # The blank lines put a traceback's line numbers where they are in the README.
        source = "\n" * (block.map[0] + 1) + block.content
        exec(compile(source, README, "exec"), namespace)  # noqa: S102 - the README is ours
