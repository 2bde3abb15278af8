"""A time line as a picture: the guest's clock against the host's, with what it didn't see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure

from guestclock.inspection.words import duration, printable
from guestclock.units import S

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes

    from guestclock.inspection.timeline import Point, Stretch, Timeline

_LINE: Final = "#0072b2"
_HIDDEN: Final = "#d55e00"
_GREY: Final = "#444444"
_LONGEST: Final = 40
"""The most characters of a name."""
_SCALES: Final = ((86_400 * S, "days"), (3_600 * S, "hours"), (60 * S, "minutes"))


def draw(document: Timeline, path: str | PathLike[str]) -> None:
    """Draw the time line and save it; SVG or PNG by the path's suffix, ValueError for one that matplotlib doesn't know.

    A pause is drawn where it began if the guest was restored from the checkpoint before it: flat, at that checkpoint.
    Two checkpoints can't tell more.
    """
    points, stretches = document["points"], document["stretches"]
    longest = max(abs(point[clock]) for point in points for clock in ("host_ns", "guest_ns"))
    # Three of the larger unit are read better than thousands of the smaller.
    size, unit = next(((size, unit) for size, unit in _SCALES if longest >= 3 * size), (S, "seconds"))
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    for stretch, one, other in zip(stretches, points, points[1:], strict=False):
        _stretch(axes, stretch, one, other, size)
    axes.plot(
        [point["host_ns"] / size for point in points],
        [point["guest_ns"] / size for point in points],
        "o",
        color=_LINE,
        gid="checkpoints",
    )
    for point in points:
        axes.annotate(
            _label(point["name"]),
            (point["host_ns"] / size, point["guest_ns"] / size),
            xytext=(6, -12),
            textcoords="offset points",
            color=_GREY,
            parse_math=False,
        )
    axes.set_title("A guest's clock through its checkpoints", loc="left", fontweight="bold")
    axes.set_xlabel(f"time on the host's clock, {unit} from the first checkpoint")
    axes.set_ylabel(f"time on the guest's clock, {unit}")
    axes.margins(0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def _label(name: str) -> str:
    """A name that leaves room for the picture."""
    shown = printable(name)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _stretch(axes: Axes, stretch: Stretch, one: Point, other: Point, size: int) -> None:
    begin, end = (one["host_ns"] / size, one["guest_ns"] / size), (other["host_ns"] / size, other["guest_ns"] / size)
    hidden_ns = stretch["hidden_ns"] or 0
    beside: dict[str, Any]
    if stretch["kind"] == "ran":
        axes.plot(*zip(begin, end, strict=True), "-", color=_LINE, gid="ran")
        return
    if stretch["kind"] == "paused":
        turn = ((one["host_ns"] + hidden_ns) / size, begin[1])
        axes.axvspan(begin[0], turn[0], color="#000000", alpha=0.08, linewidth=0, gid="paused")
        label, beside = f"{duration(hidden_ns)}\nhidden", {"xytext": (0, 6), "ha": "center", "va": "bottom"}
    else:
        # The guest's clock was moved: at the first checkpoint too, as far as two of them can tell.
        turn = (begin[0], (one["guest_ns"] - hidden_ns) / size)
        label = f"{stretch['kind']}\n{duration(abs(hidden_ns))}"
        beside = {"xytext": (-6, 0), "ha": "right", "va": "center"}
    axes.plot(*zip(begin, turn, strict=True), ":", color=_HIDDEN, gid="hidden")
    axes.plot(*zip(turn, end, strict=True), "-", color=_LINE, gid="ran")
    middle = (begin[0] + turn[0]) / 2, (begin[1] + turn[1]) / 2
    axes.annotate(label, middle, textcoords="offset points", color=_HIDDEN, **beside)
