"""The study as a picture: each error against the bound that was stated for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure

from study.figures import CELLS_PER_DECADE

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes

    from study.figures import Cell, Document

_COLOURS: Final = (
    "#000000",
    "#56b4e9",
    "#999999",
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#f0e442",
    "#d55e00",
)
"""Okabe and Ito's colours, which colour-blind readers tell apart, and a grey."""
_GREY: Final = "#444444"
_LEAST: Final = -1
"""The decade of the smallest error that is shown as it is."""


def draw(document: Document, path: str | PathLike[str]) -> None:
    """Draw it and save it; SVG or PNG by the path's suffix, ValueError for one that matplotlib doesn't know.

    A dot stands for all migrations of one class about there, and is the larger the more there are. The classes of one
    place stand side by side, along the line, so that none is nearer to it than it was. Errors below a tenth of a tick
    are drawn at the foot, bounds of 0 at the left.
    """
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    decades = [1]
    for number, (record, colour) in enumerate(zip(document["classes"], _COLOURS, strict=True)):
        decades += [(cell[0] or 0) // CELLS_PER_DECADE + 1 for cell in (*record["cells"], *record["corners"]["cells"])]
        aside = 10 ** ((number / len(_COLOURS) - 0.5) / CELLS_PER_DECADE)
        _dots(axes, record["cells"], colour, record["title"], aside)
    for number, record in enumerate(document["classes"]):
        _crosses(axes, record["corners"]["cells"], "the worst corner of each bound" if number == 0 else None)
    end = 10.0 ** max(decades)
    low = 10.0 ** (_LEAST - 0.5)
    axes.plot([low, end], [low, end], "-", color=_GREY, linewidth=1, gid="bound")
    axes.fill_between([low, end], [low, end], [end, end], color="#d55e00", alpha=0.07, linewidth=0)
    axes.text(end**0.45, end**0.75, "beyond the bound", color="#d55e00", ha="center")
    axes.set_xlim(low, end)
    axes.set_ylim(low, end)
    axes.set_title(
        "How far guests' clocks were off, and how far guestclock said", loc="left", fontweight="bold", pad=28
    )
    axes.text(
        0,
        1.02,
        f"{document['migrations']:,} simulated migrations, seed {document['seed']}; "
        f"{document['corners']:,} corners of the assumptions{_of_lie(document)}.",
        transform=axes.transAxes,
        color=_GREY,
    )
    places = [_place(None), *(10.0**decade for decade in range(0, max(decades) + 1, 2))]
    axes.set_xticks(places, ["0", *(f"$10^{{{decade}}}$" for decade in range(0, max(decades) + 1, 2))])
    axes.set_yticks(places, ["< 0.1", *(f"$10^{{{decade}}}$" for decade in range(0, max(decades) + 1, 2))])
    axes.set_xlabel("error bound in the report, ticks")
    axes.set_ylabel("true error, ticks")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", frameon=False, fontsize="small", markerscale=2)
    figure.savefig(path, dpi=110)


def _of_lie(document: Document) -> str:
    lie = document["lie"]
    return "" if lie is None else f"; the targets lie about {lie['about']} by {lie['factor']}"


def _dots(axes: Axes, cells: list[Cell], colour: str, title: str, aside: float) -> None:
    # As pixels in an SVG too, since there are thousands; and in few colours, or those would be as large.
    axes.scatter(
        [_place(cell[0]) * aside for cell in cells],
        [_place(cell[1]) * aside for cell in cells],
        s=[2 + (cell[2] or 0).bit_length() for cell in cells],
        c=colour,
        linewidths=0,
        antialiased=False,
        label=title,
        rasterized=True,
        zorder=2,
    )


def _crosses(axes: Axes, cells: list[Cell], label: str | None) -> None:
    axes.scatter(
        [_place(cell[0]) for cell in cells],
        [_place(cell[1]) for cell in cells],
        s=16,
        c="#000000",
        marker="x",
        linewidths=0.8,
        antialiased=False,
        label=label,
        rasterized=True,
        zorder=3,
    )


def _place(decades: int | None) -> float:
    """The middle of a cell."""
    least = _LEAST * CELLS_PER_DECADE
    return 10 ** (max(decades if decades is not None else least, least) / CELLS_PER_DECADE)
