"""The README and the site: every Python block runs as it stands, and they stay short enough to be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blocks import KVM_PAGES, ROOT, blocks, has_python, run

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
MOST_WORDS = 20_000


@pytest.mark.parametrize("page", [page for page in PAGES if has_python(page)], ids=lambda page: page.name)
def test_the_pages_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in KVM_PAGES:
        pytest.skip("tests/kvm runs it")
    monkeypatch.chdir(tmp_path)
    run(page)


def test_no_block_goes_by_another_name() -> None:
    """A block of Python that isn't called so would not be run."""
    infos = {block.info for page in PAGES for block in blocks(page)}
    assert infos <= {"", "python", "text", "console", "sh", "json", "cbor-diag", "{toctree}", "{eval-rst}"}, infos


def test_a_page_that_installs_guestclock_says_that_it_is_on_no_index() -> None:
    own = re.compile(r"""pip\s+install\s+(-\S+\s+)*['"]?(\.|guestclock)""")
    texts = {page.name: " ".join(page.read_text().split()) for page in PAGES}
    told = {name: "on an index yet" in text for name, text in texts.items() if own.search(text)}
    assert {"README.md", "cli.md", "unicorn.md"} <= set(told)
    assert all(told.values()), told


def test_the_pages_are_short_enough_to_be_read() -> None:
    words = {page.name: len(page.read_text(encoding="utf-8").split()) for page in PAGES}
    assert sum(words.values()) <= MOST_WORDS, sorted(words.items(), key=lambda page: -page[1])


def test_each_page_of_the_site_is_in_its_table_of_contents() -> None:
    (listed,) = [
        {line for tree in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL) for line in tree.split()}
        for page in PAGES
        if page.name == "index.md"
    ]
    names = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in PAGES[1:]} - {"index"}
    assert names <= listed
