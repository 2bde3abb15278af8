"""Docstrings of the native module's stub, made from the built module's own, which are the doc comments in Rust.

    python tools/stub_docs.py [--update]

An editor shows the docstrings of a stub, and a stub of a native module has none by itself. `--update` writes them into
`_core.pyi`; without it, a stub that isn't in step with the module fails, and so does a public name without a docstring.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from guestclock import _core

if TYPE_CHECKING:
    from collections.abc import Iterator

STUB = Path(_core.__file__ or "").with_name("_core.pyi")
WIDTH = 120
"""Length of a line at most, as in pyproject.toml."""

Node = ast.FunctionDef | ast.ClassDef


def documented(stub: str) -> tuple[str, list[str]]:
    """The stub with the module's docstrings, before any formatter, and the public names that have none."""
    lacking: list[str] = []
    edits: list[tuple[int, int, str]] = []
    starts = [0]
    for line in stub.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + column

    for node, path in nodes(ast.parse(stub)):
        doc = docstring(path)
        if doc is None:
            continue
        if not doc:
            lacking.append(".".join(path))
        first, indent = node.body[0], " " * (node.col_offset + 4)
        marks = first.decorator_list if isinstance(first, Node) else []
        head = offset(marks[0].lineno, 0) if marks else offset(first.lineno, first.col_offset)
        begin = len(stub.encode()[:head].rstrip())
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            end = offset(first.end_lineno or 0, first.end_col_offset or 0)
        else:
            end = begin
        edits.append((begin, end, f"\n{quoted(doc, indent)}\n" if doc else " ..." if end > begin else ""))
    raw = stub.encode()
    for begin, end, text in reversed(edits):
        raw = raw[:begin] + text.encode() + raw[end:]
    return raw.decode(), lacking


def nodes(tree: ast.Module) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """The functions and classes of the stub in its order, and their members, with their names."""
    for node in tree.body:
        if isinstance(node, Node):
            yield node, (node.name,)
            if isinstance(node, ast.ClassDef):
                yield from ((member, (node.name, member.name)) for member in node.body if isinstance(member, Node))


def docstring(path: tuple[str, ...]) -> str | None:
    """The module's docstring of a public name, unwrapped; None for a name that is private, or another class's."""
    if any(name.startswith("_") for name in path):
        return None
    found: object = _core
    for name in path:
        if name not in vars(found):
            return None
        found = getattr(found, name)
    return inspect.cleandoc(getattr(found, "__doc__", None) or "")


def quoted(doc: str, indent: str) -> str:
    """A docstring as source, each of its paragraphs wrapped."""
    parts = []
    for number, paragraph in enumerate(doc.split("\n\n")):
        # The quotes stand before the first line, and the last has to end with them.
        if re.search(r"^(?:[-*|]|\d+\. | {4}|```)", paragraph, re.MULTILINE):
            parts.append(textwrap.indent(paragraph, indent))
        else:
            first = indent + '"""' if number == 0 else indent
            parts.append(
                textwrap.fill(
                    " ".join(paragraph.split()),
                    WIDTH,
                    initial_indent=first,
                    subsequent_indent=indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
    text = "\n\n".join(parts)
    if "\n" not in text and WIDTH - 3 < len(text) <= WIDTH:
        # The formatter leaves the closing quotes on a single line, however long that is.
        text = textwrap.fill(text, WIDTH - 3, subsequent_indent=indent)
    if not text.startswith(indent + '"""'):
        text = f'{indent}"""{text.removeprefix(indent)}'
    if "\\" in text:
        text = text.replace('"""', 'r"""', 1)
    one_line = "\n" not in text and len(text) + 3 <= WIDTH
    return text + ('"""' if one_line else f'\n{indent}"""')


def formatted(stub: str) -> str:
    """The stub as `make fmt` leaves it."""
    ruff = [sys.executable, "-m", "ruff", "format", "--quiet", "--stdin-filename", str(STUB), "-"]
    return subprocess.run(ruff, input=stub, capture_output=True, text=True, check=True).stdout


def lines(text: str) -> list[str]:
    """The lines of a text, with their ends."""
    return text.splitlines(keepends=True)


def main() -> int:
    """Compare the stub with the module, or bring it into step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the module's docstrings into the stub")
    update = parser.parse_args().update
    before = STUB.read_text(encoding="utf-8")
    text, lacking = documented(before)
    after = formatted(text)
    for name in lacking:
        print(f"guestclock._core.{name} has no docstring: give its definition in Rust a doc comment", file=sys.stderr)
    if update:
        STUB.write_text(after, encoding="utf-8")
    elif after != before:
        sys.stderr.writelines(difflib.unified_diff(lines(before), lines(after), "stub", "module"))
        print("the stub isn't in step with the module: python tools/stub_docs.py --update", file=sys.stderr)
    return int(bool(lacking) or (after != before and not update))


if __name__ == "__main__":
    sys.exit(main())
