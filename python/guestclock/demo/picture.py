"""The demonstration as a picture: the guest's clock against the host's, and how far it is from what was promised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure

from guestclock.demo.runner import describe, is_control

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.axes import Axes

    from guestclock.demo.document import Document, RunRecord

_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which colour-blind readers tell apart."""
_CONTROL: Final = "#000000"
_GREY: Final = "#444444"


def draw(document: Document, path: str | PathLike[str]) -> None:
    """Draws a line for each row, from the guest's readings on its first vCPU, and saves it; SVG or PNG by the suffix.

    Above is the guest's clock against the host's. Below is its distance from what was promised, by all vCPUs: every
    line that isn't at zero is a failure. Raises ValueError for a document without runs.
    """
    runs = document["runs"]
    if not runs:
        msg = "there is nothing to draw: the document has no runs"
        raise ValueError(msg)
    colours = iter(_COLOURS * len(runs))
    drawn = [(run, _CONTROL if is_control(run["row"]) else next(colours)) for run in runs]
    figure = Figure(figsize=(10, 9), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 2), sharex=True)
    _pause(above, runs)
    for run, colour in drawn:
        _clock(above, run, colour)
        _distance(below, run, colour)
    low, high = above.get_ylim()
    above.set_ylim(low, high + (high - low) / 8)  # room for the words above the lines
    above.set_title(
        "What a virtual machine's clock does while the machine is saved, away, and restored",
        loc="left",
        fontweight="bold",
        pad=28,
    )
    above.text(
        0,
        1.02,
        "Each dot is the guest reading its own clock. The policy says how much of the pause the guest gets to see.",
        transform=above.transAxes,
        color=_GREY,
    )
    above.set_ylabel("the guest's clock, seconds from its stop")
    above.legend(loc="center left", frameon=False)
    below.axhline(0, color=_GREY, linewidth=0.8)
    below.set_title("How far its clock is from the promise: zero is right", loc="left", fontweight="bold")
    below.set_ylabel("ahead of the promise, milliseconds")
    below.set_xlabel("time on the host's clock, seconds from the guest's stop")
    # A promise that is kept to microseconds is a flat line, not noise that fills the picture.
    bottom, top = below.get_ylim()
    below.set_ylim(min(bottom, -5.0), max(top, 5.0))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def _pause(axes: Axes, runs: list[RunRecord]) -> None:
    releases = [_host_seconds(run, run["released_at"][0]) for run in runs]
    for release in releases:
        # One shade per run, since no two pauses are quite equal.
        axes.axvspan(0, release, color="#000000", alpha=0.08 / len(runs), linewidth=0)
    longest = max(releases)
    every = [(run, sample) for run in runs for vcpu in run["samples"] for sample in vcpu]
    begin = min((_host_seconds(run, sample["host_ticks"][0]) for run, sample in every), default=0.0)
    end = max((_host_seconds(run, sample["host_ticks"][1]) for run, sample in every), default=0.0)
    for x, text in (
        (begin / 2, "first process"),
        (longest / 2, "paused: the guest is a file,\nits process has exited"),
        ((longest + end) / 2, "second process"),
    ):
        axes.text(x, 0.98, text, transform=axes.get_xaxis_transform(), ha="center", va="top", color=_GREY)


def _clock(axes: Axes, run: RunRecord, colour: str) -> None:
    hz = run["frequency_hz"]
    samples = run["samples"][0]
    before = [sample for sample in samples if sample["host_ticks"][1] <= run["taken_at"][0]]
    if not before:
        return
    # The guest's clock at its stop: its last reading, moved on by the host's clock.
    last = before[-1]
    zero = last["cntvct"] + run["taken_at"][0] - last["host_ticks"][0]
    xs = [_host_seconds(run, sample["host_ticks"][0]) for sample in samples]
    ys = [(sample["cntvct"] - zero) / hz for sample in samples]
    cut = len(before)
    line = "--" if is_control(run["row"]) else "-"
    label = describe(run["row"]) + (": WRONG" if run["verdict"] == "wrong" else "")
    axes.plot(xs[:cut], ys[:cut], "o" + line, color=colour, markersize=3, linewidth=1.2, label=label)
    axes.plot(xs[cut:], ys[cut:], "o" + line, color=colour, markersize=3, linewidth=1.2)
    if cut < len(samples):
        axes.plot([xs[cut - 1], xs[cut]], [ys[cut - 1], ys[cut]], ":", color=colour, linewidth=1.2)


def _distance(axes: Axes, run: RunRecord, colour: str) -> None:
    ms = run["frequency_hz"] / 1_000
    for vcpu in run["samples"]:
        seen = [(sample, ahead) for sample in vcpu if (ahead := sample["ahead_ticks"]) is not None]
        axes.plot(
            [_host_seconds(run, sample["host_ticks"][0]) for sample, _ in seen],
            [(low + high) / 2 / ms for _, (low, high) in seen],
            "o--" if is_control(run["row"]) else "o-",
            color=colour,
            markersize=3,
            linewidth=1.2,
        )


def _host_seconds(run: RunRecord, ticks: int) -> float:
    return (ticks - run["taken_at"][0]) / run["frequency_hz"]
