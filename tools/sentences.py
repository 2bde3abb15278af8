"""Lint of sentences: no doc comment opens with a clause that has no subject.

A doc comment says in its first words what the item is or does, so none opens with one of OPENERS. Read are the Rust doc
comments under rust/, and the Python strings that document something. tests/ has none to read: a test's name says it.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).resolve().parent.parent
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


def main(tree: Path = TREE) -> int:
    """Lint the tree."""
    found = found_in(tree)
    for path, comments in sorted(found.items()):
        for comment in comments:
            print(f"{path}:{comment.line}: {' '.join(comment.text.split()[:6])}")
    if found:
        print(f"sentences: no doc comment opens with {', '.join(OPENERS)}; it names its subject first", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
