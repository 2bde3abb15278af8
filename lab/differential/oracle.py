"""The answers that the model allows a kernel: a set, since nobody knows the instant of an operation.

An operation took place at some count of the host's between those before and after it. No rule of the timers stands
here: the model is asked at the instants in question, and the counts that follow from unknown instants are told from the
others by a second model that lives through the same operations at other instants (`Oracle.bounds`).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from differential.operations import WORD, Answer, Kind, Operation, Refused, Step
from differential.world import World
from guestclock import Reg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from differential.trace import Header

COUNTS = (Reg.TIMER_CNT, Reg.PTIMER_CNT)
COMPARE = {
    Reg.TIMER_CTL: Reg.TIMER_CVAL,
    Reg.PTIMER_CTL: Reg.PTIMER_CVAL,
    Reg.CNTHV_CTL_EL2: Reg.CNTHV_CVAL_EL2,
    Reg.CNTHP_CTL_EL2: Reg.CNTHP_CVAL_EL2,
}
"""Each timer's CTL and CVAL."""
ISTATUS = 4
AWAY_FROM_THE_DEADLINE = 100
"""A CTL is compared whole 1/100 s from its deadline."""
DYE = 0x9E37_79B9_7F4A_7C15
"""Odd, so that no two of its multiples are the same modulo 2^64; and far, so that none is a time that passes."""


class Divergence(Exception):
    """The kernel answered what the model says that it can't."""


@dataclass
class Tally:
    """Numbers of comparisons, and their sharpness."""

    sequences: int = 0
    steps: int = 0
    compared: int = 0
    """Answers that the model had a say in."""
    several: int = 0
    """Those to which it allowed more than one value. A count is held against all that is known of its offset: that is
    one question, answered by yes or no, and how much was left open is in `widths`."""
    widths: list[int] = field(default_factory=list)
    """The number of allowed values less one, for each count that was compared."""
    entered: int = 0
    """Number of entries of vCPUs into their guests."""
    busy: int = 0
    """Number of offsets refused because a vCPU was in its guest."""


@dataclass
class Bounds:
    """Ticks from the count before an operation to its instant, at least and at most."""

    low: int
    high: int


NO_DOUBT = Bounds(0, 0)
BUSY = Refused(errno.EBUSY)


class Oracle:
    """Judges the steps of one VM."""

    def __init__(self, header: Header, tally: Tally) -> None:
        def pair(*, reloads: bool) -> tuple[World, World]:
            return world(reloads=reloads), world(reloads=reloads)

        def world(*, reloads: bool) -> World:
            hz, nested, vhe = header.frequency_hz, header.nested, header.vhe
            return World(header.kernel, frequency_hz=hz, nested=nested, vhe=vhe, reloads=reloads)

        self.stays, self.reloads = pair(reloads=False), pair(reloads=True)
        self.margin = header.frequency_hz // AWAY_FROM_THE_DEADLINE
        self.tally = tally
        self.taken: dict[int, Bounds] = {}
        """The instant of each step's operation, by the difference that it makes between the worlds of a pair."""
        self.dye = 0
        """Ticks by which the second world of each pair takes the present step elsewhere."""
        self.perhaps: set[int] = set()
        """The vCPUs that may be in their guests or not."""
        self.renewed: set[tuple[int, int]] = set()
        """The counters, by vCPU and view, that were seen under the newer offset: there is no way back to the older."""
        self.latched: dict[tuple[int, int], int | None] = {}
        """The ISTATUS that a run left, by vCPU and CTL, whatever GET computes; None until it is known."""

    def judge(self, step: Step) -> None:
        """Takes one step more, or raises Divergence."""
        operation, before, after, answer = step
        self.tally.steps += 1
        self.dye = (self.dye + DYE) % WORD
        self.taken[self.dye] = Bounds(0, (after - before) % WORD)
        match operation:
            case Operation(Kind.START | Kind.ENTERED | Kind.LEAVE | Kind.LEFT):
                self.everywhere(operation, before)
            case Operation(Kind.SAMPLE, vcpu):
                self.samples(vcpu, step)
            case Operation(Kind.GET, _, reg) if reg in COUNTS:
                expected = self.everywhere(operation, before)
                if isinstance(expected, int) and isinstance(answer, int):
                    bounds = self.bounds(expected, self.stays[1].do(operation, before))
                    self.counts(step, [(expected, bounds)], answer)
                else:
                    self.one_of([expected], step)
            case Operation(Kind.GET, vcpu, reg) if reg in COMPARE:
                self.one_of(self.ctl(vcpu, Reg(reg), step), step)
            case Operation(Kind.OFFSET):
                self.offset(step)
            case _:
                self.one_of([self.everywhere(operation, before)], step)
        self.remember(step)

    def remember(self, step: Step) -> None:
        """Records what the step says of the vCPUs beyond the model's own state."""
        operation, vcpu = step.operation, step.operation.vcpu
        self.tally.busy += step.answer == BUSY
        match operation.kind:
            case Kind.START:
                self.perhaps.add(vcpu)
                self.tally.entered += 1
            case Kind.ENTERED:
                self.perhaps.discard(vcpu)
            case Kind.LEAVE:
                self.perhaps.add(vcpu)
            case Kind.LEFT:
                self.perhaps.discard(vcpu)
                self.renewed -= {(vcpu, 0), (vcpu, 1)}
                self.forget_istatus(vcpu, step.after)
            case Kind.INIT:
                self.latched = {key: status for key, status in self.latched.items() if key[0] != vcpu}
            case Kind.SET:
                self.latched.pop((vcpu, operation.reg), None)

    def everywhere(self, operation: Operation, before: int) -> Answer:
        """Does it in all worlds: in the first of each pair at the count before it, in the second far from there.

        What the first answers.
        """
        elsewhere = (before + self.dye) % WORD
        answer = self.stays[0].do(operation, before)
        self.reloads[0].do(operation, before)
        for pair in self.stays, self.reloads:
            pair[1].do(operation, elsewhere)
        return answer

    def bounds(self, one: Answer, other: Answer) -> Bounds:
        """When the operation took place that a count depends on: it reads so in one world and in the other of a pair.

        The later an operation that sets a counter took place, the less the counter reads.
        """
        if not (isinstance(one, int) and isinstance(other, int)):
            return NO_DOUBT
        return self.taken.get((one - other) % WORD, NO_DOUBT)

    def counts(self, step: Step, allowed: list[tuple[int, Bounds]], seen: int) -> list[int]:
        """A count that was seen, against what it would be at the count before it under the earliest of its offsets.

        Returns which are possible, and narrows the bounds where there is only one.
        """
        width = (step.after - step.before) % WORD
        possible: list[tuple[int, int, int]] = []
        for index, (expected, bounds) in enumerate(allowed):
            # seen = expected + (this read's instant) - (that operation's), both from the counts before them.
            late = signed(expected - seen)
            low, high = max(bounds.low, late), min(bounds.high, late + width)
            if low <= high:
                possible.append((index, low, high))
        self.compare(step, agreed=bool(possible), allowed=len(allowed), expected=allowed)
        self.tally.widths.append(max(width + bounds.high - bounds.low for _, bounds in allowed))
        if len(possible) == 1:
            index, low, high = possible[0]
            bounds = allowed[index][1]
            bounds.low, bounds.high = low, high
        return [index for index, _, _ in possible]

    def samples(self, vcpu: int, step: Step) -> None:
        """Judges a guest's reads of both counters: each is under the offset of its entry, or under a newer one."""
        assert isinstance(step.answer, list)
        both = [[world.do(step.operation, step.before) for world in pair] for pair in (self.stays, self.reloads)]
        for view, seen in enumerate(step.answer):
            allowed: list[tuple[int, Bounds]] = []
            for one, other in both:
                assert isinstance(one, list)
                assert isinstance(other, list)
                allowed.append((one[view], self.bounds(one[view], other[view])))
            if allowed[0] == allowed[1] or (vcpu, view) in self.renewed:
                self.counts(step, allowed[1:], seen)
            elif self.counts(step, allowed, seen) == [1]:
                self.renewed.add((vcpu, view))

    def forget_istatus(self, vcpu: int, now: int) -> None:
        """Forgets ISTATUS: nobody knows what the hardware showed at the end of a run."""
        for ctl in COMPARE:
            for world in (*self.stays, *self.reloads):
                value = world.do(Operation(Kind.GET, vcpu, ctl), now)
                if isinstance(value, int):
                    world.do(Operation(Kind.SET, vcpu, ctl, value), now)
                    self.latched[vcpu, ctl] = None

    def ctl(self, vcpu: int, reg: Reg, step: Step) -> list[Answer]:
        """The values that a CTL may have at any possible instant of the read."""
        answers = [self.everywhere(step.operation, step.before)]
        for now in self.instants(vcpu, reg, step):
            answer = self.stays[0].do(step.operation, now)
            if answer not in answers:
                answers.append(answer)
        if (vcpu, reg) not in self.latched or not isinstance(step.answer, int):
            return answers
        known = self.latched[vcpu, reg]
        if known is None and (not step.answer & ISTATUS or not any(a & ISTATUS for a in answers if isinstance(a, int))):
            self.latched[vcpu, reg] = step.answer & ISTATUS
        left = (0, ISTATUS) if known is None else (known,)
        return list({a | status if isinstance(a, int) else a: None for a in answers for status in left})

    def instants(self, vcpu: int, reg: Reg, step: Step) -> Iterator[int]:
        """Where to ask for ISTATUS: at both ends, and wherever a counter meets CVAL or begins anew in between.

        A counter that may have been set later than the model's reads as the model's does earlier.
        """
        first, model = self.stays[0], self.stays[0].vm
        reads = [[world.do(Operation(Kind.GET, vcpu, reg), step.before) for reg in COUNTS] for world in self.stays]
        earlier = self.margin + max(self.bounds(*both).high for both in zip(*reads, strict=True))
        start, length = (step.before - earlier) % WORD, earlier + (step.after - step.before) % WORD + self.margin
        yield start
        yield (start + length) % WORD
        cval = first.do(Operation(Kind.GET, vcpu, COMPARE[reg]), step.before)
        for count in model.cntvct(vcpu, start), model.cntpct(vcpu, start):
            for turn in (0, cval) if isinstance(cval, int) else (0,):
                ahead = (turn - count) % WORD
                if ahead <= length:
                    yield (start + ahead) % WORD
                    yield (start + ahead - 1) % WORD

    def offset(self, step: Step) -> None:
        """KVM_ARM_SET_COUNTER_OFFSET. Where nobody knows whether a vCPU is in its guest, both answers are right."""
        allowed = [self.everywhere(step.operation, step.before)]
        if self.perhaps and allowed[0] == BUSY:
            if step.answer == BUSY:
                self.compare(step, agreed=True, allowed=2, expected=allowed)
                return
            worlds = *self.stays, *self.reloads
            for world in worlds:
                for vcpu in self.perhaps:
                    world.leave(vcpu)
            allowed.append(self.everywhere(step.operation, step.before))
            for world in worlds:
                for vcpu in self.perhaps:
                    world.enter(vcpu)
        self.one_of(allowed, step)

    def one_of(self, allowed: list[Answer], step: Step) -> None:
        """Compares the answer with those that are allowed."""
        self.compare(step, agreed=step.answer in allowed, allowed=len(allowed), expected=allowed)

    def compare(self, step: Step, *, agreed: bool, allowed: int, expected: object) -> None:
        """Counts one comparison, and raises Divergence unless it agreed."""
        self.tally.compared += 1
        self.tally.several += allowed > 1
        if not agreed:
            raise Divergence(f"the model allows {expected}: {step}")


def signed(value: int) -> int:
    """The value modulo 2^64, as the signed number nearest to zero."""
    value %= WORD
    return value - WORD if value >= WORD // 2 else value
