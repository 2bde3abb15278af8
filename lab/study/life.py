"""The life of a simulated host: it runs, sleeps, is suspended, boots anew, and its wall clock is put right or wrong.

A life moves forward in true time (`study.hosts`), and gives a stamp of any instant that it comes to. Its kernel has its
own measure of time: CLOCK_BOOTTIME runs at the kernel's rate while the host is awake, and goes on by what the kernel
takes a sleep for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from guestclock import Stamp
from study.hosts import PPB, SECOND, LeapSecond, Oscillator

if TYPE_CHECKING:
    from guestclock import SyncBound

Meanwhile: TypeAlias = Literal["stops", "counts-on", "restarts"]
"""Conduct of a counter while the host sleeps or boots."""

LEAP: Final = LeapSecond(1_483_228_836 * SECOND, 36)
"""The last one so far, at the end of 2016."""


@dataclass(frozen=True, slots=True)
class WallClock:
    """The reading of a wall clock at one instant, and what is said of it."""

    error_ns: int
    """The reading less UTC."""
    sync: SyncBound | None = None
    """The bound that somebody vouches for."""
    claimed_ns: int | None = None
    """The kernel's maximum error, where the kernel believes its clock to be synchronised."""
    knows_tai: bool = True
    width_ns: int = 0
    read_after_ns: int = 0
    """Time from the instant of the count to the reading; negative for before."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A stamp, with the truth about its instant."""

    stamp: Stamp
    count: int
    """The count, not reduced modulo 2^64."""
    at: Fraction
    """The instant."""
    clock: WallClock
    ahead_s: int
    """TAI - UTC, as the kernel has it."""
    ideal: Fraction
    """Ticks that the counter has counted since the life began, and the nominal frequency times what it missed."""


@dataclass(slots=True)
class Life:
    """One host, at one instant of its life."""

    oscillator: Oscillator
    at: Fraction
    """The instant that it has come to."""
    boot_id: str | None
    machine_id: str | None = None
    source: str = "cntvct_el0"
    kernel_ppb: int = 0
    """Error of the rate of the kernel's clocks."""
    boottime: Fraction = Fraction(0)
    slept_ns: int = 0
    knows_boot_time: bool = True
    shifted_ticks: int = 0
    """Ticks that a time namespace adds to the stamps' counts, where nobody takes them off."""
    ideal: Fraction = Fraction(0)
    """Ticks that the counter has counted, and the nominal frequency times what it missed."""

    def wait(self, ns: int) -> None:
        """Stay awake for so long."""
        self._run(Fraction(ns))

    def sleep(self, ns: int, counter: Meanwhile, *, taken_for_ns: int) -> None:
        """Sleep for so long: the kernel takes it for `taken_for_ns`."""
        self._stand_still(ns, counter)
        self.boottime += taken_for_ns
        self.slept_ns += taken_for_ns

    def suspend(self, ns: int) -> None:
        """Be suspended by a hypervisor, or restored by it: nothing on the host counts that."""
        self._stand_still(ns, "stops")

    def boot(self, boot_id: str | None, counter: Meanwhile, *, firmware_ns: int) -> None:
        """Boot anew: the counter restarts, or counts on as over a kexec."""
        self._stand_still(firmware_ns, counter)
        self.boot_id = boot_id
        self.boottime, self.slept_ns = Fraction(0), 0

    def _run(self, ns: Fraction) -> None:
        self._count(ns, self.oscillator.rate_ppb)
        self.at += ns
        self.boottime += ns * (PPB + self.kernel_ppb) / PPB

    def _stand_still(self, ns: int, counter: Meanwhile) -> None:
        self._count(ns, self.oscillator.rate_ppb if counter == "counts-on" else 0)
        self.at += ns
        if counter == "stops":
            self.oscillator = replace(self.oscillator, at=self.oscillator.at + ns)
        elif counter == "restarts":
            self.oscillator = replace(self.oscillator, count=0, at=self.at)

    def _count(self, ns: Fraction | int, rate_ppb: int) -> None:
        self.ideal += Fraction(ns * self.oscillator.frequency_hz * (PPB + rate_ppb), SECOND * PPB)

    def take(self, clock: WallClock, *, boot_width_ns: int = 0, boot_late_ns: int = 0) -> Taken:
        """Take a stamp at the instant of the next count.

        boot_width_ns: distance of the reads of CLOCK_MONOTONIC round it; boot_late_ns: where in it the others were.
        """
        count = ceil(self._exact_count())
        self._run(self.oscillator.came_to(count) - self.at)
        tai_ns = floor(self.at + clock.read_after_ns + clock.error_ns)
        ahead_s, leap = LEAP.of_kernel(tai_ns)
        boot: dict[str, int] = {}
        if self.knows_boot_time:
            boot = {
                "boottime_ns": floor(self.boottime) + boot_late_ns,
                "slept_ns": max(self.slept_ns - boot_late_ns, 0),
                "slept_width_ns": boot_width_ns + 1,
            }
        stamp = Stamp(
            count=(count + self.shifted_ticks) % 2**64,
            frequency_hz=self.oscillator.frequency_hz,
            source=self.source,
            realtime_ns=tai_ns - ahead_s * SECOND,
            width_ns=clock.width_ns,
            tai_offset_s=ahead_s if clock.knows_tai else None,
            # Where somebody vouches, the kernel may say nothing.
            synchronized=clock.claimed_ns is not None or (None if clock.sync else False),
            max_error_ns=clock.claimed_ns,
            leap=leap,
            machine_id=self.machine_id,
            boot_id=self.boot_id,
            sync=clock.sync,
            **boot,
        )
        return Taken(stamp, count, self.at, clock, ahead_s, self.ideal)

    def _exact_count(self) -> Fraction:
        passed = (self.at - self.oscillator.at) * self.oscillator.frequency_hz
        return self.oscillator.count + passed * (PPB + self.oscillator.rate_ppb) / (SECOND * PPB)
