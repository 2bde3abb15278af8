"""The lint of sentences: what it finds, and what it passes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
OPENERS = ("What", "Whether", "Who", "Whose", "Which", "How", "Its", "By", "Of")
GOOD = '"""Alignment of a record, in bytes."""\n'
BAD = '"""What its address is a multiple of."""\n'


@pytest.fixture(name="sentences")
def fixture_sentences(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    from tools import sentences

    return sentences


def write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


PLACES = {
    "rust/core/src/a.rs": ("use b;\n\n    /// {} it is.\n    /// More.\n    fn c() {{}}\n", 3),
    "rust/core/tests/a.rs": ("//! {} it is.\n\nuse b;\n", 1),
    "rust/linux/src/a.rs": ("//! Good.\n/// {} it is.\nfn c() {{}}\n", 2),
    "rust/python/src/a.rs": ("/// Good.\nfn c() {{}}\n///\n/// {}, it is.\nfn d() {{}}\n", 3),
    "python/guestclock/a.py": ('"""{} it is."""\n', 1),
    "python/guestclock/a.pyi": ('def a() -> None:\n    """{} it is."""\n', 2),
    "tools/a.py": ('class A:\n    """{}, it is."""\n', 2),
    "benches/b/a.py": ('class A:\n    async def b(self) -> None:\n        """{}\n        it is."""\n', 3),
    "examples/a.py": ('class A:\n    b: int\n    """\n    {} it is."""\n', 3),
    "lab/a.py": ('A = 1\n"""*{}* it is."""\n', 2),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("place", PLACES)
def test_an_opener_is_found(
    sentences: ModuleType,
    place: str,
    opener: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text, line = PLACES[place]
    write(tmp_path, {place: text.format(opener), "tools/good.py": GOOD})
    assert sentences.main(tmp_path) == 1
    (told,) = capsys.readouterr().out.splitlines()
    path, number, words = told.split(":")
    assert (path, int(number)) == (place, line)
    assert words.strip().strip("*").startswith(opener)


@pytest.mark.parametrize(
    "files",
    [
        {"rust/a.rs": "/// Alignment.\n/// What follows is free.\nfn a() {}\n"},
        {"rust/a.rs": "// What a comment says is free.\n//// How that is, too.\nfn a() {} // By the way.\n"},
        {"rust/a.rs": "/// By-value measurement of a pause.\n/// \n/// How: so.\nfn a() {}\n"},
        {"tools/a.py": f'{GOOD}# What a comment says is free.\na = "What a value says, too."\n'},
        {"tools/a.py": '"""Whoever calls it, Howard, Often and Byte."""\n', "examples/a.py": '"""Howard\'s."""\n'},
        {"tests/a.py": BAD, "rust/a.rs": "", "tools/.hidden/a.py": BAD, "tools/what.toml": "What"},
    ],
)
def test_the_rest_passes(
    sentences: ModuleType,
    files: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(tmp_path, files)
    assert sentences.main(tmp_path) == 0
    assert capsys.readouterr().out == ""


def test_every_finding_is_told(sentences: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"tools/b.py": BAD + BAD, "tools/c.py": GOOD, "tools/a.py": BAD})
    assert sentences.main(tmp_path) == 1
    told = [line.rpartition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert told == ["tools/a.py:1", "tools/b.py:1", "tools/b.py:2"]


def test_a_tree_without_files_is_no_clean_tree(sentences: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no file to read"):
        sentences.found_in(tmp_path)
