"""Measurement of a row of the table: in rounds, one side after the other, so that a busy machine is busy for both."""

from __future__ import annotations

import statistics
import time
import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Side:
    """A side of a row: an expression to time, or a callable where one more call doesn't matter.

    `between` is done after each call and isn't timed. Both sides of a row do the same there.
    """

    label: str
    call: str | Call
    names: Mapping[str, Any] = field(default_factory=dict)
    between: Call | None = None

    def calls(self) -> tuple[Call, Call]:
        """The call, and what is done after it."""
        if isinstance(self.call, str):
            raise TypeError(f"an expression has nothing between its calls: {self.call}")
        return self.call, self.between or (lambda: None)

    def timed(self) -> Callable[[int], int]:
        """A function of how many calls, which returns the nanoseconds that they took."""
        clock = time.perf_counter_ns
        if self.between is None:
            return timeit.Timer(self.call, globals=dict(self.names), timer=clock).timeit  # type: ignore[return-value]
        call, between = self.calls()

        def several(number: int) -> int:
            took = 0
            for _ in range(number):
                begin = clock()
                call()
                took += clock() - begin
                between()
            return took

        return several


@dataclass(frozen=True, slots=True)
class Target:
    """Target of a figure: one value, or one for each instruction set."""

    at_least: bool
    value: float | Mapping[str, float]
    bandwidth: float | None = None
    """Or this share of what a copy of as many bytes moves."""

    def here(self, isa: str) -> float | None:
        """The target with an instruction set; None if there is none."""
        return self.value.get(isa) if isinstance(self.value, Mapping) else self.value


def at_most(value: float) -> Target:
    """A cost, of the subject over the sibling's."""
    return Target(at_least=False, value=value)


def at_least(*, bandwidth: float | None = None, **by_isa: float) -> Target:
    """A speed: the sibling's cost over the subject's, by instruction set or for `any`. Without one it isn't judged."""
    return Target(at_least=True, value=by_isa.get("any", by_isa), bandwidth=bandwidth)


class NotHere(Exception):
    """A row that this machine or this build can't measure, with the reason."""


@contextmanager
def of_this_build() -> Iterator[None]:
    """Takes a name that guestclock hasn't got as a row that this build can't measure; any other mistake is one."""
    try:
        yield
    except (AttributeError, ImportError) as error:
        owner = getattr(error, "obj", None)
        owners_module = getattr(owner, "__name__", None) or type(owner).__module__
        if "guestclock" not in (owners_module.partition(".")[0], (error.name or "").partition(".")[0]):
            raise
        raise NotHere(f"this build lacks it: {str(error).partition(' (')[0]}") from error


@dataclass(frozen=True, slots=True)
class Sides:
    """A row's two sides. Results were seen to be equal before."""

    subject: Side
    sibling: Side
    less: tuple[Side, Side] | None = None
    """Taken off both: what a call costs however few its elements are."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A row that compares two sides."""

    name: str
    make: Callable[[], Sides]
    target: Target | None = None
    elements: int = 1
    """Elements in a call."""
    moved: int | None = None
    """Bytes that a call of the subject has to read and write."""
    by_isa: bool = False
    """True for a row that is measured with each instruction set."""


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table. Costs are in ns a call; the figure is a ratio."""

    name: str
    isa: str | None
    subject: str = ""
    sibling: str = ""
    subject_ns: float | None = None
    sibling_ns: float | None = None
    figure: float | None = None
    middle_half: tuple[float, float] | None = None
    unit: str = "x"
    target: str = ""
    met: bool | None = None
    elements: int = 1
    moved: int | None = None
    copy_ns: float | None = None
    """Cost of a copy that moves as many bytes, minus the cost of its call."""
    not_here: str = ""


def copy_of(moved: int) -> Side:
    """A copy that reads half as many bytes, and writes the other half: as near to the CPU as the row's own are."""
    source = np.ones(max(moved // 2, 1), np.uint8)
    return Side("np.copyto", "copyto(out, source)", {"copyto": np.copyto, "out": source.copy(), "source": source})


def costs(sides: Sequence[Side], *, rounds: int, round_ns: int) -> list[list[float]]:
    """The ns a call of each side, a list of rounds each; each side is timed for about `round_ns` a round."""
    timed = [side.timed() for side in sides]
    numbers = [calls_within(one, round_ns) for one in timed]
    taken: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        # Every other round the last one goes first.
        for side in range(len(sides)) if number % 2 == 0 else reversed(range(len(sides))):
            taken[side].append(timed[side](numbers[side]) / numbers[side])
    return taken


def calls_within(timed: Callable[[int], int], round_ns: int) -> int:
    """Number of calls that fill a round. Finding it also warms the code up."""
    number = 1
    while (took := timed(number)) < round_ns:
        number = max(number * 2, int(number * round_ns // max(took, 1)))
    return number


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """The quartiles."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def measure(row: Ratio, *, isa: str, rounds: int, round_ns: int) -> Result:
    """The line of a row."""
    used = isa if row.by_isa else None
    try:
        return _ratio(row, used, isa, rounds, round_ns)
    except NotHere as reason:
        return Result(row.name, used, target=wording(row.target, isa), not_here=str(reason))


def _ratio(row: Ratio, used: str | None, isa: str, rounds: int, round_ns: int) -> Result:
    with of_this_build():
        sides = row.make()
    all_sides = [sides.subject, sides.sibling, *(sides.less or ())]
    if row.moved is not None:
        all_sides += [copy_of(row.moved), copy_of(2)]
    subject, sibling, *others = costs(all_sides, rounds=rounds, round_ns=round_ns)
    copy_ns = None
    if row.moved is not None:
        *others, copied, call = others
        copy_ns = statistics.median(copied) - statistics.median(call)
    if less := others:
        subject = [one - off for one, off in zip(subject, less[0], strict=True)]
        sibling = [one - off for one, off in zip(sibling, less[1], strict=True)]
    faster = row.target is not None and row.target.at_least
    ratios = [b / a if faster else a / b for a, b in zip(subject, sibling, strict=True)]
    subject_ns, figure = statistics.median(subject), statistics.median(ratios)
    share = None if copy_ns is None else copy_ns / subject_ns
    return Result(
        name=row.name,
        isa=used,
        subject=sides.subject.label,
        sibling=sides.sibling.label,
        subject_ns=subject_ns,
        sibling_ns=statistics.median(sibling),
        figure=figure,
        middle_half=middle_half(ratios),
        unit="times as fast" if faster else "x",
        target=wording(row.target, isa),
        met=met(row.target, isa, figure, share),
        elements=row.elements,
        moved=row.moved,
        copy_ns=copy_ns,
    )


def wording(target: Target | None, isa: str) -> str:
    """A target as the table has it."""
    if target is None or (value := target.here(isa)) is None:
        return ""
    ratio = f"{'>=' if target.at_least else '<='} {value:g} x"
    return ratio if target.bandwidth is None else f"{ratio}, or >= {target.bandwidth:.0%} of bandwidth"


def met(target: Target | None, isa: str, figure: float, share: float | None) -> bool | None:
    """True if the figure meets its target; None if it has none."""
    if target is None or (value := target.here(isa)) is None:
        return None
    if target.bandwidth is not None and share is not None and share >= target.bandwidth:
        return True
    return figure >= value if target.at_least else figure <= value
