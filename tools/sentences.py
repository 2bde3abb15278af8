"""Lint of sentences: no doc comment opens with a clause that has no subject.

    python tools/sentences.py [--list | --update]

A doc comment says in its first words what the item is or does, so none opens with one of OPENERS. Read are the Rust doc
comments under rust/, and the Python strings that document something. tests/ has none to read: a test's name says it.

tools/sentences-exempt.txt names the files that don't follow the rule yet, one a line, sorted. A file without a finding,
or one that is gone, fails there, so the list can only shrink. --list prints what the list would have to be, for a
change that renames files; --update only removes what needs no exemption any more.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).resolve().parent.parent
EXEMPT = Path("tools", "sentences-exempt.txt")
FOLDERS = ("rust", "python", "lab", "tools", "benches", "examples")
OPENERS = ("What", "Whether", "Who", "Whose", "Which", "How", "Its", "By", "Of")

# Not "By-value", which is a word of the field's.
OPENS_BADLY = re.compile(rf"[*_]*(?:{'|'.join(OPENERS)})(?![\w-])", re.IGNORECASE)
DOC_LINE = re.compile(r"\s*(///(?!/)|//!)(.*)")


class Comment(NamedTuple):
    """A doc comment: its first line's number, and its text."""

    line: int
    text: str


def rust_comments(source: str) -> list[Comment]:
    """Runs of `///` lines and runs of `//!` lines, each as one comment."""
    comments: list[Comment] = []
    before = None
    for number, line in enumerate(source.splitlines(), 1):
        found = DOC_LINE.match(line)
        if found and found[1] == before:
            comments[-1] = comments[-1]._replace(text=f"{comments[-1].text}\n{found[2]}")
        elif found:
            comments.append(Comment(number, found[2]))
        before = found[1] if found else None
    return comments


def python_comments(source: str) -> list[Comment]:
    """Docstrings, and the strings that stand below an attribute."""
    alone = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Expr))
    strings = [node for node in alone if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return sorted(Comment(node.lineno, str(node.value)) for node in strings)


def findings(path: Path) -> list[Comment]:
    """The comments of one file that open badly."""
    read = rust_comments if path.suffix == ".rs" else python_comments
    return [comment for comment in read(path.read_text(encoding="utf-8")) if OPENS_BADLY.match(comment.text.strip())]


def found_in(tree: Path) -> dict[str, list[Comment]]:
    """The findings of a work tree or an unpacked sdist, by file. A hidden folder isn't the project's."""
    paths = [path.relative_to(tree) for folder in FOLDERS for path in sorted((tree / folder).rglob("*.*"))]
    ours = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    docs = [path for path in ours if path.suffix in ((".rs",) if path.parts[0] == "rust" else (".py", ".pyi"))]
    if not docs:
        sys.exit(f"sentences: {tree} has no file to read")
    return {path.as_posix(): found for path in docs if (found := findings(tree / path))}


def complaints(found: dict[str, list[Comment]], exempt: list[str]) -> list[str]:
    """A line for each finding outside of `exempt`, and for each line that `exempt` shouldn't have."""
    lines = [
        f"{path}:{comment.line}: {' '.join(comment.text.split()[:6])}"
        for path, comments in sorted(found.items())
        if path not in exempt
        for comment in comments
    ]
    lines += [f"{EXEMPT}: {path} needs no exemption: --update removes it" for path in exempt if path not in found]
    if exempt != sorted(set(exempt)):
        lines.append(f"{EXEMPT}: not sorted, or a path stands there twice")
    return lines


def main(tree: Path = TREE) -> int:
    """Lint the tree, or look after the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = parser.add_mutually_exclusive_group()
    options.add_argument("--list", action="store_true", help="print the list of exempt files as it would have to be")
    options.add_argument("--update", action="store_true", help="remove from the list what needs no exemption")
    chosen = parser.parse_args()
    found = found_in(tree)
    if chosen.list:
        sys.stdout.writelines(f"{path}\n" for path in sorted(found))
        return 0
    exempt = (tree / EXEMPT).read_text(encoding="utf-8").split()
    if chosen.update:
        exempt = sorted(set(exempt) & set(found))
        (tree / EXEMPT).write_text("".join(f"{path}\n" for path in exempt), encoding="utf-8")
    wrong = complaints(found, exempt)
    for line in wrong:
        print(line)
    if wrong:
        print(f"sentences: no doc comment opens with {', '.join(OPENERS)}; it names its subject first", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
