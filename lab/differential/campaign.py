"""Many sequences on one kernel, each judged by an oracle of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from differential.generator import Sequence, Shape
from differential.operations import Answer, Kind, Operation, Step, Target, execute
from differential.oracle import Divergence, Oracle, Tally
from differential.world import World
from guestclock import Reg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from differential.trace import Header, Writer

PRESETS = ("6.1", "6.12", "7.3")


@dataclass(frozen=True)
class Probed:
    """Behaviour of a kernel that a VMM can see, and that differs between the presets."""

    counter_offset: bool
    fresh_ctl: Answer
    wide_ctl: Answer
    listed: Answer
    emulated_ctl: Answer
    """A physical timer's reserved bits after a run: they stay where it isn't the hardware's, on a host without VHE."""


def probe(do: Callable[[Operation], Answer], *, counter_offset: bool) -> Probed:
    """Asks a VM that has no vCPUs yet."""
    do(Operation(Kind.CREATE))
    fresh = do(Operation(Kind.GET, 0, Reg.TIMER_CTL))
    do(Operation(Kind.SET, 0, Reg.TIMER_CTL, 2**40))
    wide, listed = do(Operation(Kind.GET, 0, Reg.TIMER_CTL)), do(Operation(Kind.LIST, 0))
    do(Operation(Kind.SET, 0, Reg.PTIMER_CTL, 8))
    for kind in (Kind.START, Kind.ENTERED, Kind.LEAVE, Kind.LEFT):
        do(Operation(kind, 0))
    emulated = do(Operation(Kind.GET, 0, Reg.PTIMER_CTL))
    return Probed(counter_offset, fresh, wide, listed, emulated & 8 if isinstance(emulated, int) else emulated)


def matching(probed: Probed, *, nested: bool) -> tuple[str, bool]:
    """The preset of the model that answers as the kernel did, and whether with VHE."""
    for kernel in PRESETS[-1:] if nested else PRESETS:
        for vhe in (True,) if nested else (True, False):
            world = World(kernel, frequency_hz=1, nested=nested, vhe=vhe)
            offers = bool(world.vm.capabilities.counter_offset.ok)
            if probe(lambda operation, world=world: world.do(operation, 0), counter_offset=offers) == probed:  # type: ignore[misc]
                return kernel, vhe
    raise Divergence(f"no preset of the model answers as this kernel does: {probed}")


@dataclass
class Outcome:
    """The result of a campaign."""

    tally: Tally = field(default_factory=Tally)
    divergences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        tally = self.tally
        widths = sorted(tally.widths) or [0]
        return (
            f"{tally.sequences} sequences, {tally.steps} steps, {tally.compared} comparisons,"
            f" {tally.several} ({self.share:.2%}) with more than one allowed value;"
            f" {len(widths)} counts, open by {widths[len(widths) // 2]} ticks (median), {widths[-1]} (most);"
            f" vCPUs entered {tally.entered} times, EBUSY {tally.busy} times; {len(self.divergences)} divergences"
        )

    @property
    def share(self) -> float:
        """Share of the comparisons that allowed more than one value."""
        return self.tally.several / max(1, self.tally.compared)

    def judge(self, header: Header, steps: Iterable[Step]) -> None:
        """Judges one sequence, as far as the first divergence."""
        oracle = Oracle(header, self.tally)
        self.tally.sequences += 1
        taken: list[Step] = []
        try:
            for step in steps:
                taken.append(step)
                oracle.judge(step)
        except Divergence as divergence:
            story = "\n".join(f"    {step}" for step in taken)
            self.divergences.append(f"{header.leg}, sequence {self.tally.sequences}: {divergence}; after\n{story}")


def take(target: Target, sequence: Sequence) -> Iterator[Step]:
    """Does a sequence's operations to a VM that has no vCPUs yet."""
    while operation := sequence.next(target.count()):
        step = execute(target, operation)
        sequence.learn(step)
        yield step


def run(
    new_target: Callable[[], Target], header: Header, shapes: list[Shape], sequences: int, writer: Writer | None = None
) -> Outcome:
    """Takes so many sequences, of the shapes in turn, each on a VM of its own."""
    outcome = Outcome()
    for number in range(sequences):
        target = new_target()
        sequence = Sequence(random.Random(f"{header.seed}/{number}"), shapes[number % len(shapes)])  # noqa: S311
        steps = list(take(target, sequence))
        target.close()
        if writer:
            writer.begin()
            for step in steps:
                writer.step(step)
        outcome.judge(header, steps)
    return outcome
