"""The demonstration as a picture: the guest's clock against the host's, through the pause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure

from guestclock.demo.runner import describe

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes

    from guestclock.demo.document import Document, PolicyRecord, RunRecord

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's colours, which colour-blind readers tell apart."""


def draw(document: Document, path: str | PathLike[str]) -> None:
    """Draws one line per policy from the guests' readings, and saves it; SVG or PNG by the path's suffix.

    The policies are drawn from the first mode in the document: the modes differ in how a counter is read, not in what a
    policy does. Raises ValueError for a document without runs.
    """
    if not document["runs"]:
        msg = "there is nothing to draw: the document has no runs"
        raise ValueError(msg)
    mode = document["runs"][0]["mode"]
    runs = [run for run in document["runs"] if run["mode"] == mode]
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    _pause(axes, runs)
    ends = [_line(axes, run, colour) for run, colour in zip(runs, _COLOURS * len(runs), strict=False)]
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (high - low) / 8)  # room for the words above the lines
    for (x, y, text, colour), height in zip(ends, _spread([end[1] for end in ends], axes), strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(x + 0.04 * (axes.get_xlim()[1] - axes.get_xlim()[0]), height),
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.5},
        )
    axes.set_title(
        "What a virtual machine's clock does while the machine is saved, away, and restored",
        loc="left",
        fontweight="bold",
        pad=28,
    )
    axes.text(
        0,
        1.02,
        "Each dot is the guest reading its own clock. The policy says how much of the pause the guest gets to see.",
        transform=axes.transAxes,
        color="#444444",
    )
    axes.set_xlabel("time on the host's clock, seconds from the checkpoint")
    axes.set_ylabel("time on the guest's clock, seconds from the checkpoint")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def _pause(axes: Axes, runs: list[RunRecord]) -> None:
    releases = [_host_seconds(run, run["released_at"][0]) for run in runs]
    for release in releases:
        # One shade per run, since no two pauses are quite equal.
        axes.axvspan(0, release, color="#000000", alpha=0.08 / len(runs), linewidth=0)
    longest = max(releases)
    begin = min(_host_seconds(run, run["samples"][0]["host_ticks"][0]) for run in runs)
    end = max(_host_seconds(run, run["samples"][-1]["host_ticks"][1]) for run in runs)
    for x, text in (
        (begin / 2, "first process"),
        (longest / 2, "paused: the guest is a file,\nits process has exited"),
        ((longest + end) / 2, "second process"),
    ):
        axes.text(x, 0.98, text, transform=axes.get_xaxis_transform(), ha="center", va="top", color="#444444")


def _line(axes: Axes, run: RunRecord, colour: str) -> tuple[float, float, str, str]:
    """Draws one run, and returns its end, and the label and colour for it."""
    hz = run["frequency_hz"]
    before = [sample for sample in run["samples"] if sample["host_ticks"][1] <= run["taken_at"][0]]
    # The guest's clock at the checkpoint: its last reading, moved on by the host's clock.
    last = before[-1]
    zero = last["cntvct"] + run["taken_at"][0] - last["host_ticks"][0]
    xs = [_host_seconds(run, sample["host_ticks"][0]) for sample in run["samples"]]
    ys = [(sample["cntvct"] - zero) / hz for sample in run["samples"]]
    cut = len(before)
    axes.plot(xs[:cut], ys[:cut], "o-", color=colour, markersize=3.5, linewidth=1.2)
    axes.plot(xs[cut:], ys[cut:], "o-", color=colour, markersize=3.5, linewidth=1.2)
    axes.plot([xs[cut - 1], xs[cut]], [ys[cut - 1], ys[cut]], ":", color=colour, linewidth=1.2)
    return xs[-1], ys[-1], f"{describe(run['policy'])}\n{_meaning(run['policy'])}", colour


def _meaning(policy: PolicyRecord) -> str:
    if policy["name"] == "freeze":
        return "the pause never happened"
    if policy["max_ns"] is None:
        return "all of the pause is shown"
    return f"at most {policy['max_ns'] / 1e9:.3g} s of it is shown"


def _host_seconds(run: RunRecord, ticks: int) -> float:
    return (ticks - run["taken_at"][0]) / run["frequency_hz"]


def _spread(heights: list[float], axes: Axes) -> list[float]:
    """The heights, moved apart where labels at them would overlap."""
    low, high = axes.get_ylim()
    room = (high - low) * 0.09
    placed: dict[int, float] = {}
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        floor = max(placed.values(), default=low - room) + room
        placed[index] = max(heights[index], floor)
    return [placed[index] for index in range(len(heights))]
