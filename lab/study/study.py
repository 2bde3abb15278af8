"""Run the study: random migrations, unlucky hosts and every corner, each through the real library and judged."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Final

from guestclock.progress import progress as progressing
from study import luck, outcome
from study.corners import FREQUENCIES, corners
from study.figures import Figures
from study.lies import ABOUT, Lie
from study.luck_figures import LuckFigures
from study.migration import judge
from study.worlds import draw

if TYPE_CHECKING:
    from study.figures import Document
    from study.lies import About

SCHEMA: Final = "guestclock.study/1"

_STRIDE: Final = 1_000
"""Migrations judged between two moves of the progress bar."""


def run(
    *,
    migrations: int = 100_000,
    seed: int = 1,
    lie: Fraction | int = 1,
    lie_about: About = "sync",
    frequencies: tuple[int, ...] = FREQUENCIES,
    progress: bool = False,
) -> Document:
    """Judge random migrations, as many with unlucky and lying hosts, and all corners. Returns the document.

    migrations, seed: how many are drawn of either kind, and from what; the same two draw the same.
    lie: the factor by which the target's hosts exceed what they declare; 1 for none.
    lie_about: what they lie about. Of "counter" any factor but 1 says that two machines have one counter.
    frequencies: those of the corners, in Hz.
    progress: show it on standard error (needs rich).

    Raises ValueError for fewer than no migrations, a factor that isn't above 0, or an unknown lie.
    """
    if migrations < 0:
        msg = f"migrations is {migrations}, and there can't be fewer than 0"
        raise ValueError(msg)
    if lie <= 0:
        msg = f"lie is {lie}, and a factor has to be above 0"
        raise ValueError(msg)
    if lie_about not in ABOUT:
        msg = f"lie_about is {lie_about!r}, and not one of {', '.join(ABOUT)}"
        raise ValueError(msg)
    told = Lie(Fraction(lie), lie_about)
    figures, of_luck = Figures(), LuckFigures()
    with progressing(2 * migrations, shown=progress) as tell:
        tell("corners", 0)
        for key, corner in corners(told, frequencies):
            figures.add_corner(key, judge(corner))
        for start in range(0, migrations, _STRIDE):
            numbers = range(start, min(start + _STRIDE, migrations))
            for number in numbers:
                migration = draw(seed, number, told)
                figures.add(number, migration, judge(migration))
            for number in numbers:
                unlucky = luck.draw(seed, number)
                of_luck.add(number, unlucky, outcome.judge(unlucky))
            tell("migrations", 2 * len(numbers))
    return figures.document(
        SCHEMA,
        seed=seed,
        migrations=migrations,
        lie=None if told.factor == 1 else {"about": told.about, "factor": str(told.factor)},
        unlucky=of_luck.record(),
    )
