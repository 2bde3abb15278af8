"""A progress bar on standard error, for commands that take a while."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress(total: int, *, shown: bool) -> Iterator[Callable[[str, int], None]]:
    """Shows a bar (needs rich), and yields a function that moves it on.

    The function takes a description of the work and the amount done.
    """
    if not shown:
        yield lambda _description, _advance: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda description, advance: bar.update(task, description=description, advance=advance)
