"""Counters for tests of a VMM: one that records the samples of a run, and one that gives them out again.

A guest under Unicorn in exact mode, or a `ModelVm` in a test, sees nothing of real time except by its counter. So a
live run over a `RecordingCounter` runs again over its `replay()`, the same to the last bit.
"""

from __future__ import annotations

import reprlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from guestclock._core import FaultyVm, TracedVm, _counter
from guestclock.errors import Misuse
from guestclock.live import live
from guestclock.pacing import moves_by_itself
from guestclock.types import Stamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guestclock.types import Counter

Sample: TypeAlias = int | Stamp
"""Result of a `read()` or of a `stamp()`."""

__all__ = ["Fault", "FaultyVm", "RecordingCounter", "ReplayCounter", "Sample", "TracedVm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Fault in one call of a `FaultyVm`, or in some: see docs/faults.md."""

    on: str | None = field(default=None, kw_only=False)
    """Place of the fault: None for any call; a call as a `TracedCall` is shown ("set_one_reg 0 TIMER_CVAL"), or its
    beginning, for all that begin so ("set_one_reg"). Or a step, before whose first call it comes: opt_in, checkpoint,
    plan, prepare (entering the block of `restoring`), apply, release, give_up, pause, resume, catch_up or
    verify."""
    nth: int = 0
    """Number of those calls that pass first: with `on=None`, an index into `TracedVm.calls`."""
    times: int | None = 1
    """Number of them in a row that it is in; None for all from there on."""
    errno: int | None = None
    """Answer of the call, which isn't made. Not for a step."""
    dropped: bool = False
    """The write answers success, without being made. Only for set_one_reg and set_counter_offset."""
    flipped: int = 0
    """Bits of a register that are read wrongly. Only for get_one_reg."""
    delay_ticks: int = 0
    """Ticks by which the VM's `ManualCounter` moves on before the call."""
    step_realtime_ns: int = 0
    """Step of the wall clock of the VM's `ManualCounter` before the call, in nanoseconds."""
    crash: bool = False
    """The process that holds the VM is gone: neither the call nor any later one is made (`Crashed`)."""


@live("take its samples")
class RecordingCounter:
    """A counter that keeps each sample which it gives out, in order. Safe to use from many threads."""

    def __init__(self, counter: Counter) -> None:
        _counter(counter)
        self._counter = counter
        self._samples: list[Sample] = []
        # A sample is taken and kept in one go, or two threads' samples might change places.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<RecordingCounter of {self._counter!r}, {len(self._samples)} samples>"

    @property
    def counter(self) -> Counter:
        """The counter that is recorded."""
        return self._counter

    @property
    def source(self) -> str:
        """The source of its stamps."""
        return self._counter.source

    @property
    def frequency_hz(self) -> int:
        """Ticks a second."""
        return self._counter.frequency_hz

    @property
    def moves_by_itself(self) -> bool:
        """False where the recorded counter is moved by hand: then nothing waits for it."""
        return moves_by_itself(self._counter)

    def read(self) -> int:
        """Read the counter, and keep the count."""
        with self._lock:
            count = self._counter.read()
            self._samples.append(count)
        return count

    def stamp(self) -> Stamp:
        """Take a stamp, and keep it."""
        with self._lock:
            stamp = self._counter.stamp()
            self._samples.append(stamp)
        return stamp

    @property
    def samples(self) -> tuple[Sample, ...]:
        """The samples so far, in order: ints and `Stamp`s, which pickle."""
        with self._lock:
            return tuple(self._samples)

    def replay(self) -> ReplayCounter:
        """Return a counter that gives out the samples so far."""
        return ReplayCounter(self.samples, frequency_hz=self.frequency_hz, source=self.source)


@live("take the samples that it was made of")
class ReplayCounter:
    """A counter that gives out recorded samples, each once, in order.

    Misuse where the run asks for more than there are, or for a count where a stamp was recorded: then it isn't the run
    that was recorded.
    """

    moves_by_itself = False
    """Nothing waits for it: it goes on with each sample."""

    def __init__(self, samples: Iterable[Sample], *, frequency_hz: int, source: str = "replay") -> None:
        self._samples = tuple(samples)
        for sample in self._samples:
            if isinstance(sample, bool) or not isinstance(sample, int | Stamp):
                raise TypeError(f"{reprlib.repr(sample)} isn't a sample: a count or a Stamp")
        if not isinstance(source, str):
            raise TypeError(f"{reprlib.repr(source)} isn't a counter's name")
        self._frequency_hz = frequency_hz
        self._source = source
        _counter(self)
        self._next = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<ReplayCounter of {len(self._samples)} samples, {self.left} left>"

    @property
    def source(self) -> str:
        """Name of the counter that was recorded."""
        return self._source

    @property
    def frequency_hz(self) -> int:
        """Ticks a second."""
        return self._frequency_hz

    @property
    def left(self) -> int:
        """Number of samples that weren't given out yet."""
        return len(self._samples) - self._next

    def read(self) -> int:
        """Return the next sample, which has to be a count."""
        with self._lock:
            sample = self._peek("read()")
            if isinstance(sample, Stamp):
                raise self._diverged("read()", "a stamp")
            self._next += 1
        return sample

    def stamp(self) -> Stamp:
        """Return the next sample, which has to be a stamp."""
        with self._lock:
            sample = self._peek("stamp()")
            if not isinstance(sample, Stamp):
                raise self._diverged("stamp()", "a count")
            self._next += 1
        return sample

    def _peek(self, called: str) -> Sample:
        if self._next == len(self._samples):
            raise self._diverged(called, "nothing more")
        return self._samples[self._next]

    def _diverged(self, called: str, recorded: str) -> Misuse:
        return Misuse(
            f"the run calls {called} where {recorded} was recorded, after {self._next} samples: it isn't the run that "
            "was recorded"
        )
