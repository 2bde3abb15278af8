"""The lint of sentences: what it finds, what it passes, and a list of exemptions that can only shrink."""

from __future__ import annotations

import sys
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


def run(sentences: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sentences.py", *options])
    return int(sentences.main(tree))


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, line = PLACES[place]
    write(tmp_path, {place: text.format(opener), "tools/good.py": GOOD, "tools/sentences-exempt.txt": ""})
    assert run(sentences, tmp_path, monkeypatch) == 1
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path, files | {"tools/sentences-exempt.txt": ""})
    assert run(sentences, tmp_path, monkeypatch) == 0
    assert capsys.readouterr().out == ""


EXEMPT = {"tools/a.py": BAD, "tools/b.py": GOOD, "tools/c.py": BAD}


@pytest.mark.parametrize(
    ("exempt", "told"),
    [
        (["tools/a.py", "tools/c.py"], []),
        (["tools/c.py"], ["tools/a.py:1: What its address is a multiple"]),
        (["tools/a.py", "tools/b.py", "tools/c.py"], ["tools/sentences-exempt.txt: tools/b.py needs no exemption"]),
        (["tools/a.py", "tools/c.py", "tools/d.py"], ["tools/sentences-exempt.txt: tools/d.py needs no exemption"]),
        (["tools/c.py", "tools/a.py"], ["tools/sentences-exempt.txt: not sorted"]),
        (["tools/a.py", "tools/a.py", "tools/c.py"], ["tools/sentences-exempt.txt: not sorted"]),
    ],
)
def test_only_what_needs_it_is_exempt(
    sentences: ModuleType,
    exempt: list[str],
    told: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(tmp_path, EXEMPT | {"tools/sentences-exempt.txt": "\n".join(exempt)})
    assert run(sentences, tmp_path, monkeypatch) == bool(told)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(told)
    assert all(line.startswith(start) for line, start in zip(printed, told, strict=True))


def test_the_list_is_made_anew(
    sentences: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, EXEMPT)
    assert run(sentences, tmp_path, monkeypatch, "--list") == 0
    assert capsys.readouterr().out == "tools/a.py\ntools/c.py\n"


def test_an_update_only_removes(
    sentences: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, EXEMPT | {"tools/sentences-exempt.txt": "tools/d.py\ntools/c.py\ntools/b.py\n"})
    assert run(sentences, tmp_path, monkeypatch, "--update") == 1
    assert (tmp_path / "tools/sentences-exempt.txt").read_text() == "tools/c.py\n"
    assert "tools/a.py:1: " in capsys.readouterr().out


def test_a_tree_without_files_is_no_clean_tree(sentences: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no file to read"):
        sentences.found_in(tmp_path)
