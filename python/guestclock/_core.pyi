"""The native module's types. Its documentation stands at the definitions in Rust; `guestclock` re-exports the names."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from os import PathLike
from types import GenericAlias, TracebackType
from typing import (
    Any,
    Final,
    Generic,
    Literal,
    Protocol,
    Self,
    SupportsIndex,
    TypeAlias,
    TypedDict,
    TypeVar,
    final,
    type_check_only,
)

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Buffer, Unpack, disjoint_base

from guestclock.registers import Timer
from guestclock.testing import Fault
from guestclock.types import (
    Backlog,
    Behaviours,
    CallTotals,
    Capabilities,
    Changes,
    Counter,
    DeadlineSource,
    Diagnostic,
    Expired,
    GuestLimit,
    Intent,
    LatchMismatch,
    Lateness,
    Lines,
    OptionKeywords,
    Options,
    Policy,
    Reading,
    Stamp,
    Support,
    SyncBound,
    TimerStatus,
    TracedCall,
    Verified,
    Views,
)

__version__: Final[str]
DEBUG_BUILD: Final[bool]
NO_DEADLINE: Final[int]
_LINUX: Final[bool]
_RATE_TOLERANCE_PPM: Final[int]

def reg_id(name: str) -> int:
    """The KVM register id of `name`, as KVM_GET_ONE_REG takes it: "TIMER_CNT" and so on."""

def sysreg(name: str) -> tuple[int, int, int, int, int]:
    """The encoding (op0, op1, CRn, CRm, op2) of the system register `name`: "CNTVCT_EL0" and so on."""

def _counter(counter: Counter) -> None: ...
def _cancel(pause: Pause) -> None: ...
def _each_checkpoint(
    vms: Sequence[tuple[GuestVm, str, int | None, int | None, Sequence[int | None] | None]],
    now: int | Stamp | None,
    sync: SyncBound | None,
    threads: int,
) -> tuple[dict[int, Checkpoint], dict[int, Exception]]: ...
def _each_plan(
    vms: Sequence[GuestVm],
    checkpoints: Sequence[Checkpoint],
    policy: Policy | None,
    options: Options | None,
    now: int | Stamp | None,
    keywords: OptionKeywords,
    threads: int,
) -> tuple[dict[int, Plan], dict[int, Exception]]: ...
def _each_restore(
    vms: Sequence[GuestVm],
    checkpoints: Sequence[Checkpoint],
    policy: Policy | None,
    options: Options | None,
    now: int | Stamp | None,
    keywords: OptionKeywords,
    stages: Sequence[str],
    threads: int,
    stop: bool,
) -> tuple[list[Restore], tuple[dict[int, Report | None], dict[int, Exception]], str]: ...
def _each_step(
    restores: Sequence[Restore],
    stages: Sequence[str],
    threads: int,
    *,
    stop: bool,
    at: Stamp | None = None,
    now: int | Stamp | None = None,
) -> tuple[tuple[dict[int, Report | None], dict[int, Exception]], str]: ...
def _each_pause(
    vms: Sequence[GuestVm], policy: Policy | None, views: str, threads: int
) -> tuple[dict[int, Pause], dict[int, Exception]]: ...
def _each_resume(
    pauses: Sequence[Pause], policy: Policy | None, threads: int
) -> tuple[dict[int, Report], dict[int, Exception]]: ...
def _each_verify(
    vms: Sequence[GuestVm], given: Sequence[Report | Checkpoint | None], now: int | Stamp | None, threads: int
) -> tuple[dict[int, Verified], dict[int, Exception]]: ...
def _crc32c(data: bytes) -> int: ...
def _is_unknown_host(host: Stamp) -> bool: ...
def _monitored(on: bool) -> None: ...
def _speak_flags(on: bool) -> bool: ...
def _vm_name(name: str) -> str: ...
def _vouched(here: Stamp) -> tuple[int | None, str]: ...
def isa() -> Literal["baseline", "avx2", "avx512"]:
    """The instruction set that batches are computed on: "baseline", "avx2" or "avx512".

    By default the widest that the CPU has. The environment variable GUESTCLOCK_ISA names another, and is read once;
    ValueError for a set that the CPU hasn't.
    """

def ticks_to_ns(
    ticks: NDArray[np.uint64], frequency_hz: int | NDArray[np.uint64], *, out: NDArray[np.uint64] | None = None
) -> NDArray[np.uint64]:
    """`floor(ticks * 10^9 / frequency_hz)`, exact, held at 2^64 - 1: uint64 columns of shape (n,).

    `frequency_hz` is one int for all rows, or a uint64 array, one a row. `out` is as in `ClockBank`.
    """

def ns_to_ticks(
    ns: NDArray[np.uint64], frequency_hz: int | NDArray[np.uint64], *, out: NDArray[np.uint64] | None = None
) -> NDArray[np.uint64]:
    """`floor(ns * frequency_hz / 10^9)`, exact, held at 2^64 - 1: uint64 columns of shape (n,).

    `frequency_hz` is one int for all rows, or a uint64 array, one a row. `out` is as in `ClockBank`.
    """

def recompute_offsets(
    now: int | NDArray[np.uint64],
    guest: NDArray[np.uint64],
    host: NDArray[np.uint64],
    added: NDArray[np.uint8],
    elapsed_ns: NDArray[np.uint64],
    max_ns: NDArray[np.uint64],
    frequency: NDArray[np.uint16],
    frequencies_hz: NDArray[np.uint64],
    *,
    out: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None = None,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Computes the offsets under which many saved guests go on at one instant, and the ticks that are added to their
    counters: two uint64 arrays of shape (n,). It is the arithmetic of a plan and its release, a row each VM, for each
    counter of a guest by itself.

    The arguments are columns of n rows. `guest` and `host` (uint64) are the guest's counter and the host's count at the
    checkpoint. `added` (uint8, of `Added`) says what is added. `elapsed_ns` is the elapsed time in nanoseconds where it
    is given, and `max_ns` the most that is added (uint64; a row may have anything in a column that it makes no use of).
    `frequency` (uint16) is the row's index into `frequencies_hz` (uint64). `now` is the count of the host's counter, or
    a uint64 array with a count for each frequency. `out` is a tuple of two arrays, else as in `ClockBank`.
    ClockWentBackwards for a row that goes by its counter, if that counter went backwards. `plan` says how far off the
    time may be.
    """

def read_cost_ns(counter: Counter) -> int:
    """Cost of a read of `counter`, in ns: the least of several batches, for people to look at."""

_Select: TypeAlias = NDArray[np.int64] | NDArray[np.bool_]

@type_check_only
class _KvmProbe(TypedDict):
    arch: str
    api_version: int | None
    device: Support
    counter_offset: Support
    el2: Support
    user_irq: Support

def kvm_probe() -> _KvmProbe:
    """KVM's offer on this host: "arch", "api_version", and a `Support` each for "device", "counter_offset", "el2" and
    "user_irq". No VM is created.
    """

@final
class HostCounter:
    """The counter of this host: CNTVCT_EL0 on arm64, elsewhere CLOCK_MONOTONIC_RAW as a counter of 1 GHz.

    `source` asks for one by name: "cntvct_el0", "clock_monotonic_raw", or "tsc", which is there only where the kernel
    states its calibration. CapabilityMissing says why one isn't.

    `sync` says how far this host's wall clock may be off UTC: a `SyncBound`, as of now, or a callable that returns one,
    or None (`sync=guestclock.sync.chrony`). The counter's stamps carry it, so `checkpoint`, `plan` and `restore` need
    no `sync=` of their own, which would win. A bound ages with the host. A callable is asked before each `stamp`,
    `checkpoint`, and `plan` or `restore` under another policy than `Freeze`; where it raises NotSynchronised, nobody
    vouches.

    `read` is the count as this process reads it. A stamp is host-wide: in a time namespace (time_namespaces(7)) what it
    adds to CLOCK_MONOTONIC_RAW is taken off. Where the namespace can't be known, `source` is
    "clock_monotonic_raw_local".
    """

    def __new__(
        cls,
        *,
        source: Literal["auto", "cntvct_el0", "clock_monotonic_raw", "tsc"] = "auto",
        sync: SyncBound | Callable[[], SyncBound | None] | None = None,
    ) -> Self: ...
    @property
    def source(self) -> str:
        """Name of the counter: the source of its stamps."""

    @property
    def sync(self) -> SyncBound | Callable[[], SyncBound | None] | None:
        """Bound of the wall clock, or the function that gives it, as it was given; None where nobody vouches for it."""

    @property
    def frequency_hz(self) -> int:
        """Ticks a second."""

    def read(self) -> int:
        """The count now."""

    def stamp(self) -> Stamp:
        """The count and the wall clock together."""

@final
class MonotonicCounter:
    """CLOCK_MONOTONIC in ticks, rounded down: at the default 62.5 MHz, Unicorn's own clock.

    `sync` is as in `HostCounter`, and so are stamps in a time namespace.
    """

    def __new__(
        cls, *, frequency_hz: int = 62_500_000, sync: SyncBound | Callable[[], SyncBound | None] | None = None
    ) -> Self: ...
    @property
    def source(self) -> str:
        """Name of the counter: "clock_monotonic", or "clock_monotonic_local" where the time namespace can't be
        known.
        """

    @property
    def sync(self) -> SyncBound | Callable[[], SyncBound | None] | None:
        """Bound of the wall clock, or the function that gives it, as it was given; None where nobody vouches for it."""

    @property
    def frequency_hz(self) -> int:
        """Ticks a second."""

    def read(self) -> int:
        """The count now."""

    def stamp(self) -> Stamp:
        """The count and the wall clock together."""

@final
class ManualCounter:
    """A counter that moves only when it is told to, with the clocks of its host, which move along: for tests,
    simulation, instruction counts and replay.

    Its host booted when it was made: the boot time was 0 then. Two of them are two hosts, each with a random boot id;
    `boot_id`, 32 hexadecimal digits, gives one that is the same in every run.
    """

    def __new__(
        cls, count: int = 0, *, frequency_hz: int = 62_500_000, realtime_ns: int = 0, boot_id: str | None = None
    ) -> Self: ...
    @property
    def source(self) -> str:
        """Name of the counter: "manual"."""

    @property
    def frequency_hz(self) -> int:
        """Ticks a second."""

    @property
    def realtime_ns(self) -> int:
        """The counter's wall clock now, in nanoseconds since 1970."""

    def read(self) -> int:
        """The count now."""

    def stamp(self) -> Stamp:
        """The count and the wall clock together; they belong together exactly."""

    def advance(self, ticks: int) -> int:
        """Moves on by `ticks`, modulo 2^64, and the wall clock with it. Returns the new count."""

    def advance_ns(self, ns: int) -> int:
        """Moves on by `ns` nanoseconds, and the host's clocks with it. Returns the new count. What is less than a tick
        counts in the next call.
        """

    def suspend(self, ns: int, *, counter: Literal["stops", "counts-on", "restarts"] = "stops") -> int:
        """Suspends the host for `ns` nanoseconds: its wall clock, its boot time and its sum of sleeps go on. Returns
        the new count.

        The counter "stops" meanwhile, as CLOCK_MONOTONIC does; "counts-on", as most arm64 counters do; or "restarts" at
        0, as the TSC does in an S3 sleep.
        """

    def reboot(self, *, counter: Literal["restarts", "counts-on"] = "restarts") -> int:
        """Boots the host anew: another boot id, and a boot time and a sum of sleeps of 0. Its wall clock goes on.
        Returns the new count.

        The counter "restarts" at 0, or "counts-on", as over a kexec.
        """

    def rewind(self, ticks: int) -> int:
        """Moves back by `ticks`: the one way in which a counter goes backwards. Returns the new count."""

    def step_realtime(self, ns: int) -> int:
        """Steps the wall clock alone by `ns`, as setting it would. Returns the new wall-clock time in nanoseconds."""

@final
class ScaledCounter:
    """Another counter at a frequency of its own: `floor(count * frequency_hz / counter.frequency_hz)` modulo 2^64.

    This is how the model takes a guest that was saved at another frequency:
    `ModelVm(counter=ScaledCounter(HostCounter(), frequency_hz=24_000_000))`. KVM can't rescale. Each read is exact to
    the tick, so nothing drifts. Every count of a VM over it, `now=` and deadlines included, is in its ticks, which
    `read` gives; `inner_count` leads back to the inner counter's. The stamp is the inner counter's, wider by a tick of
    this one unless the frequency is a whole multiple. Where the inner counter wraps at 2^64 this one jumps, unless it
    is a whole multiple.
    """

    def __new__(cls, counter: Counter, *, frequency_hz: int) -> Self: ...
    @property
    def counter(self) -> Counter:
        """The counter that it is made from."""

    @property
    def source(self) -> str:
        """Name of the counter it is made from: rescaling doesn't make it another one."""

    @property
    def frequency_hz(self) -> int:
        """Ticks a second."""

    def read(self) -> int:
        """The count now."""

    def stamp(self) -> Stamp:
        """The count and the wall clock together."""

    def inner_count(self, count: int) -> int | None:
        """The first inner count at which this counter reads `count` or more: what to wait for until a deadline of a VM
        over it.

        None where the inner counter wraps first. A count that has passed gives an inner count that has passed. A
        counter that is faster than the inner one wraps more often, and then this is about its present pass, as
        deadlines are.
        """

@final
class DeadlineQueue:
    """Timers of many VMs, and which of them are due: the next deadline is always at hand, and no call looks at other
    timers than its own.

    A VM is a group of timers with one counter offset. Compare values (CVAL) are guest ticks; deadlines and `now` are
    ticks of the host's counter, and the caller gives `now`. A timer is due while the guest's count, `now - offset`
    modulo 2^64, is at or past its compare value, unsigned and without a wrap, as KVM compares (kvm_timer_pending in
    arch/arm64/kvm/arch_timer.c). The queue doesn't know which timers are enabled and not masked: the caller arms those.

    Timers and groups are named by ints, or by int64 arrays in the calls whose names end in `_many` and in
    `set_offsets`; counts in arrays are uint64. Arrays are one-dimensional and may be strided; they are copied, and
    refused as a whole before anything changes: TypeError for another dtype, ValueError for lengths that differ,
    IndexError for a timer or a group that the queue hasn't got.
    """

    def __new__(cls) -> Self: ...
    def add_group(self, timers: int, *, offset: SupportsIndex | None = None) -> int:
        """Adds a VM with `timers` timers, none of them armed, and returns the group's number.

        `offset` is the guest's counter offset: the ticks by which its counter lies behind the host's, any int from
        -2^63 up to 2^64, modulo 2^64.
        """

    def remove_group(self, group: int) -> None:
        """Removes a group with its timers. Groups that are added later get its number and its ids."""

    def timers(self, group: int) -> range:
        """The ids of a group's timers: a range. The ranges of two groups needn't follow each other."""

    def offset(self, group: int) -> int:
        """A group's counter offset, in ticks, from 0 up to 2^64."""

    def set_offset(self, group: int, offset: SupportsIndex) -> None:
        """Sets a group's counter offset. All its deadlines move with it, at the cost of one."""

    def set_offsets(self, groups: NDArray[np.int64], offsets: NDArray[np.uint64]) -> None:
        """Sets the offsets of many groups, in this order: int64 numbers, uint64 ticks."""

    def arm(self, timer: int, cval: int) -> None:
        """Arms a timer with a compare value in guest ticks; an armed timer is moved."""

    def arm_many(self, timers: NDArray[np.int64], cvals: NDArray[np.uint64]) -> None:
        """Arms many timers, in this order: int64 ids, uint64 compare values. An armed timer is moved."""

    def disarm(self, timer: int) -> None:
        """Disarms a timer; a timer that isn't armed stays so."""

    def disarm_many(self, timers: NDArray[np.int64]) -> None:
        """Disarms many timers, by their int64 ids; timers that aren't armed stay so."""

    def next_deadline(self, now: int) -> int:
        """The host count at which the next timer is due: `now` where a timer is due, 2^64 - 1 where none is armed. A
        deadline past the counter's last count is 2^64 - 2.
        """

    def expire(self, now: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Disarms the timers that are due, and returns their ids (int64) and deadlines (uint64), in the order of the
        deadlines and then of the ids.

        A deadline is the host count at which the timer became due: 0 where that was before the counter's first count.
        MemoryError where there is no memory for them: every timer is still armed then.
        """

    @property
    def nbytes(self) -> int:
        """Memory of the queue, in bytes."""

    def __len__(self) -> int: ...

_Expired_co = TypeVar("_Expired_co", bound=tuple[object, ...], covariant=True)

@final
class DeadlineAlarm(Generic[_Expired_co]):
    """A descriptor for select, poll, epoll and event loops, readable when timers of `source` may have expired on
    `counter`.

    `source` is a ClockBank, a DeadlineQueue, or any object with `next_deadline(now)` and `expire(now)` as
    DeadlineSource describes them; `counter` is the source's own by default. The descriptor is a hint; `expire` is the
    authority, and reads the counter. Over a ManualCounter, or a ScaledCounter of one, each `advance` and `rewind` makes
    the descriptor readable (an eventfd). Over any other counter, time does (a timerfd on CLOCK_MONOTONIC, set a second
    ahead at most, since that clock is slewed against the counter and stops when the host is suspended). The descriptor
    is close-on-exec and non-blocking, and no other descriptor is made.

    A ClockBank and a DeadlineQueue notify their alarms when a timer is armed or an offset moves, on any thread, and a
    blocked epoll_wait returns in time. After a change of any other source call `rearm`.

    One consumer takes the expired timers: a second one at the same time gets AlarmInUse. The alarm is a context manager
    that owns the descriptor and closes it; using it after that raises ValueError. OSError where the kernel has no
    descriptor left.
    """

    def __new__(cls, source: DeadlineSource[_Expired_co], counter: Counter | None = None) -> Self: ...
    def __class_getitem__(cls, key: object) -> GenericAlias: ...
    @property
    def source(self) -> DeadlineSource[_Expired_co]:
        """The source of the deadlines."""

    @property
    def counter(self) -> Counter:
        """The counter that the deadlines are counts of."""

    def fileno(self) -> int:
        """The descriptor, to wait on for reading. The alarm owns it: don't read from it or close it."""

    def expire(self, *, at_most: int | None = None) -> _Expired_co:
        """Takes what has expired: reads the counter, and returns what `source.expire` returns for that count.

        The result may be empty, as the descriptor is only a hint. Afterwards the descriptor isn't readable until
        something may have expired again. If a passed deadline stays the source's next one, the source is asked again
        after a second, or when the counter is moved by hand.

        With `at_most` the result has so many rows at most. The alarm keeps the rest, stays readable, and gives them
        first at the next call; ValueError for 0. The columns of another source's result have to be sliceable for that.
        """

    def rearm(self) -> None:
        """Looks at the source's next deadline again, after it may have become an earlier one. A ClockBank and a
        DeadlineQueue do that themselves.
        """

    @property
    def lateness(self) -> Lateness:
        """Lateness of the deadlines that `expire` has returned so far: a Lateness."""

    @property
    def wakes_in_ns(self) -> int | None:
        """Nanoseconds until the kernel makes the descriptor readable: at most 10^9. None where the kernel won't by
        itself, or has done so.
        """

    @property
    def closed(self) -> bool:
        """True once the alarm was closed."""

    def close(self) -> None:
        """Closes the descriptor. Timers stay as they are, and another alarm goes on with them.

        An `async for` over the alarm ends, and only then is the descriptor closed. Any other waiter on the descriptor
        has to end first, as with any descriptor. Closing twice is closing once.
        """

    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

def _claim(alarm: DeadlineAlarm[tuple[object, ...]]) -> None: ...
def _release(alarm: DeadlineAlarm[tuple[object, ...]]) -> None: ...

@final
class ClockBank:
    """Many VMs with their vCPUs, as columns over one counter: a query of all of them costs a pass over columns.

    `counter` is the host's by default. `timers` is the most timers that a vCPU has: 2, or 4 for guests with EL2. VMs
    and vCPUs are named by int64 handles, which are never given to others: vCPU n of the VM `h` is `h + n`.

    `now` is a count of `counter` as its `read` gives it, by default its present one. All counts and deadlines are in
    its ticks, except those of the counters that guests read. `select` is an int64 array of vCPU handles, each once, in
    any order, or a bool array over `vcpus()`; without `select`, a result is in the order of `vcpus()`. `out` is a
    C-contiguous array of exactly the result's dtype and shape that overlaps with no input; without `out`, the result is
    a new array. Inputs may be strided; they are copied. All arguments are checked before anything is written: TypeError
    for another dtype, ValueError for a shape or an overlap, IndexError for a handle that the bank hasn't got. Safe to
    use from many threads.
    """

    def __new__(cls, counter: Counter | None = None, *, timers: Literal[2, 4] = 2) -> Self: ...
    @property
    def counter(self) -> Counter:
        """The counter that the guests' counters are offset from."""

    @property
    def frequency_hz(self) -> int:
        """The counter's frequency, in Hz."""

    @property
    def timers(self) -> int:
        """Number of timers of a vCPU that the bank has columns for: 2 or 4."""

    @property
    def nbytes(self) -> int:
        """Memory of the bank, in bytes, the deadline queue included."""

    def add(
        self,
        vcpus: int = 1,
        *,
        frequency_hz: int | None = None,
        kernel: str | None = None,
        nested: bool = False,
        e2h0: bool = False,
        irqchip: Literal["in-kernel", "user"] = "in-kernel",
        vhe: bool = True,
        now: int | None = None,
    ) -> int:
        """Adds a VM with `vcpus` vCPUs, all created at `now`, and returns its handle. See `ModelVm` for the other
        arguments.

        `frequency_hz` is the guest's CNTFRQ_EL0, by default the counter's. For a guest that was saved at another
        frequency the guest's counters are `floor(count * frequency_hz / counter.frequency_hz)` less its offset, exact
        to the tick. KVM can't rescale.
        """

    def add_many(
        self,
        vms: int,
        vcpus: int = 1,
        *,
        frequency_hz: int | None = None,
        kernel: str | None = None,
        nested: bool = False,
        e2h0: bool = False,
        irqchip: Literal["in-kernel", "user"] = "in-kernel",
        vhe: bool = True,
        now: int | None = None,
    ) -> NDArray[np.int64]:
        """Adds `vms` VMs that are alike, and returns their handles (int64): see `add`."""

    def remove(self, vms: SupportsIndex | NDArray[np.int64]) -> None:
        """Removes VMs with their vCPUs: an int, or an int64 array of handles. The handles are never given to another
        VM.
        """

    def vm(self, handle: SupportsIndex) -> ModelVm:
        """A VM of the bank, as a `ModelVm`: a view of its rows. IndexError for a handle that the bank hasn't got.

        The `ModelVm` is over the bank's counter, or over a `ScaledCounter` of it for a VM of another frequency: its
        `now=` and deadlines are in that counter's ticks. Once the VM is removed, every call on the view is refused.
        """

    def vms(self) -> NDArray[np.int64]:
        """The handles of all VMs (int64)."""

    def vcpus(self) -> NDArray[np.int64]:
        """The handles of all vCPUs (int64), in the order of their rows: VM by VM as they were added, VMs of the
        counter's own frequency first. A VM that gets another vCPU later may go to the end.
        """

    def cntvct(
        self, now: int | None = None, *, select: _Select | None = None, out: NDArray[np.uint64] | None = None
    ) -> NDArray[np.uint64]:
        """CNTVCT_EL0 as the guests read it, all at one instant: uint64, of shape (n,)."""

    def cntpct(
        self, now: int | None = None, *, select: _Select | None = None, out: NDArray[np.uint64] | None = None
    ) -> NDArray[np.uint64]:
        """CNTPCT_EL0 as the guests read it, all at one instant: uint64, of shape (n,)."""

    def counts(
        self, now: int | None = None, *, select: _Select | None = None, out: NDArray[np.uint64] | None = None
    ) -> NDArray[np.uint64]:
        """Both counters at one instant: uint64, of shape (2, n), CNTVCT_EL0 first."""

    def offsets(self, *, select: _Select | None = None, out: NDArray[np.uint64] | None = None) -> NDArray[np.uint64]:
        """The offsets of the vCPUs' counters, in ticks, modulo 2^64: uint64, of shape (2, n), the virtual counter's
        first. A running vCPU keeps the offsets that it was loaded with.
        """

    def running(self, *, select: _Select | None = None, out: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """True for each vCPU that is in its guest: bool, of shape (n,)."""

    def set_offsets(self, vms: NDArray[np.int64], offsets: NDArray[np.uint64]) -> None:
        """Opts VMs in to one counter offset each (KVM_ARM_SET_COUNTER_OFFSET): int64 handles, each once, and uint64
        ticks.

        Does for each VM what `ModelVm.set_counter_offset` does, for all of them or for none: VcpuRunning (EBUSY) while
        a vCPU of any of them runs.
        """

    def set_timers(
        self, timer: int, vcpus: NDArray[np.int64], cval: NDArray[np.uint64], ctl: NDArray[np.uint8]
    ) -> None:
        """Writes CVAL and CTL of one timer of many vCPUs: int64 handles, each once, uint64 and uint8.

        Does for each vCPU what KVM_SET_ONE_REG does, for all of them or for none: VcpuRunning (EBUSY) for a vCPU that
        runs, UnknownRegister (ENOENT) for a guest that hasn't got the timer.
        """

    def evaluate(
        self,
        now: int | None = None,
        *,
        select: _Select | None = None,
        out: tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.uint64]] | None = None,
    ) -> Lines:
        """Every timer at one instant: `Lines`, of ISTATUS and of the interrupt lines (bool, of shape (timers, n), a row
        for each of `Timer`), and of `next_deadlines` (uint64, of shape (n,)). `out` is a tuple of three such arrays.

        A timer that a guest hasn't got is off, and compares with 0.
        """

    def next_deadlines(
        self, now: int | None = None, *, select: _Select | None = None, out: NDArray[np.uint64] | None = None
    ) -> NDArray[np.uint64]:
        """The count at which the first of each vCPU's lines goes high by itself: uint64, of shape (n,).

        `now` where a line is high, NO_DEADLINE (2^64 - 1) where none will be; a deadline at or past that is one less.
        """

    def next_deadlines_of_vms(
        self, now: int | None = None, *, vms: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint64]:
        """The earliest of `next_deadlines` of each VM: uint64, for the handles `vms` (int64, each once), or for all VMs
        in the order of `vms()`.
        """

    def next_deadline(self, now: int | None = None) -> int:
        """The count at which the next line goes high: `now` where a line is high, NO_DEADLINE (2^64 - 1) where none
        will be.

        Takes the same time whatever the number of timers. Ignores timers already returned by `expire`, until they are
        written again or an offset change of their VM puts them into the future, and those of a VM that is paused or
        being restored, until it goes on.
        """

    def expire(self, now: int | None = None) -> Expired:
        """The timers whose lines have gone high: `Expired`, of their vCPUs (int64), timers (uint8) and deadlines
        (uint64), in the order of the deadlines, then of the vCPUs' handles and the timers.

        Each timer is returned once, until it is written again or an offset change of its VM puts it into the future. A
        VM that is paused or being restored has none until it goes on. The cost of a call depends on the number of
        timers that it returns, not on how many are pending. A deadline before the counter's first count is 0.
        MemoryError where there is no memory for them: none was returned then.
        """

    def changes(self, now: int | None = None) -> Changes:
        """The lines whose level has changed since the last call: `Changes`, of their vCPUs (int64), timers (uint8) and
        levels (bool), each timer's in the order of `vcpus()`. A new vCPU's lines are low. Those of a VM that is paused
        or being restored stay as they were seen, until it goes on.
        """

    def _checkpoint(
        self,
        vms: NDArray[np.int64] | None = None,
        *,
        names: Sequence[str] | None = None,
        now: int | Stamp | None = None,
        stopped_at: int | list[int | None] | None = None,
        sync: SyncBound | None = None,
    ) -> Checkpoint: ...
    def _restore(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        vms: NDArray[np.int64] | None = None,
        options: Options | None = None,
        now: int | Stamp | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> _SetReport: ...
    def _plan(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        vms: NDArray[np.int64] | None = None,
        options: Options | None = None,
        now: int | Stamp | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> _SetPlan: ...
    def _pause(
        self, policy: Policy | None = None, *, vms: NDArray[np.int64] | None = None, views: Views = "preserve"
    ) -> _PausedSet: ...
    def __len__(self) -> int: ...
    def __contains__(self, handle: SupportsIndex, /) -> bool: ...

@final
class _PausedSet:
    def resume(self, policy: Policy | None = None) -> _SetReport: ...

@final
class _SetReport:
    @property
    def vms(self) -> NDArray[np.int64]: ...
    @property
    def overtaken(self) -> NDArray[np.int64]: ...
    def columns(self) -> dict[str, Sequence[Any] | NDArray[np.uint64]]: ...
    def report(self, row: int) -> Report: ...
    def __len__(self) -> int: ...

@final
class _SetPlan:
    @property
    def vms(self) -> NDArray[np.int64]: ...
    def columns(self) -> dict[str, Sequence[Any]]: ...
    def plan(self, row: int) -> Plan: ...
    def __len__(self) -> int: ...

@final
class Freeze:
    """The guest sees nothing of the time it didn't run: its counters go on from where they stopped. The default."""

    def __new__(cls) -> Self: ...
    @property
    def name(self) -> str:
        """Name of the policy: "freeze"."""

@final
class Advance:
    """The guest sees the time it didn't run, all of it or at most `max_ns` nanoseconds."""

    def __new__(cls, max_ns: int | None = None) -> Self: ...
    @property
    def name(self) -> str:
        """Name of the policy: "advance"."""

    @property
    def max_ns(self) -> int | None:
        """The most guest time that is added, in nanoseconds; None for all."""

@final
class CatchUp:
    """The guest sees the time it didn't run later, all of it: its counters go on from where they stopped, and go
    forward by at most `step_ns`, or one tick if that is longer, every `interval_ns` or more, until they have caught up
    (`vm.catch_up()`).

    At most `at_once_ns` of the time is given at once, before the first step. The plan is refused where the steps take
    longer than `within_ns` (DeadlineMissed), and where the VM's counters can only be set by value (CapabilityMissing).
    All four are in nanoseconds; `step_ns` and `interval_ns` are at least 1, else ValueError.
    """

    def __new__(cls, step_ns: int, interval_ns: int, *, at_once_ns: int = 0, within_ns: int | None = None) -> Self: ...
    def __getnewargs_ex__(self) -> tuple[tuple[int, int], dict[str, int | None]]: ...
    @property
    def name(self) -> str:
        """Name of the policy: "catch-up"."""

    @property
    def step_ns(self) -> int:
        """The most that one step makes up, in nanoseconds."""

    @property
    def interval_ns(self) -> int:
        """The least time between two steps, in nanoseconds."""

    @property
    def at_once_ns(self) -> int:
        """The most that is given at once, before the first step, in nanoseconds."""

    @property
    def within_ns(self) -> int | None:
        """The longest that all steps may take, in nanoseconds; None for as long as they take."""

@disjoint_base
class GuestVm:
    """A VM's guest clocks: what `ModelVm`, `KvmVm` and `FaultyVm` have in common.

    Code written for it runs on each. `now=` injects an instant of a model's counter: ValueError on KVM, whose time is
    the host's.
    """

    @property
    def name(self) -> str:
        """Name of the VM in its checkpoints; empty where nobody named it."""

    @property
    def vcpus(self) -> int:
        """Number of vCPUs."""

    @property
    def counter(self) -> Counter:
        """The counter that the guest's counters are offset from: on KVM CNTVCT_EL0 of the host."""

    @property
    def frequency_hz(self) -> int:
        """The guest's CNTFRQ_EL0, in Hz."""

    @property
    def nested(self) -> bool:
        """True if the guest has EL2."""

    @property
    def opted_in(self) -> bool:
        """True if the VM has opted in to one counter offset, for good, as far as guestclock knows."""

    @property
    def _identity(self) -> int: ...
    @property
    def state(self) -> Literal["open", "paused", "restoring"]:
        """State of the VM: "open" (its vCPUs may run), "paused", or "restoring" (closed until a restore is
        released).
        """

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities for this VM's clocks."""

    @property
    def backlog_ticks(self) -> int:
        """The guest's backlog, in ticks: 0 unless a `CatchUp` is unfinished."""

    def opt_in(self, *, offset: SupportsIndex | None = None) -> None:
        """Opts the VM in to one offset for both counters of all its vCPUs: called once, before the guest first runs.

        There is no way back. From then on CNTVCT_EL0 and CNTPCT_EL0 read the same on every vCPU, and a restore is exact
        to the tick; KVM ignores counter values that are set, and counts of vCPUs created later fit in by themselves.
        Without the CPU's CNTPOFF_EL2 the guest's CNTPCT_EL0 and physical timer trap.

        The guest's counters begin at 0, or with `offset` at the host's count less `offset`: ticks, any integer from
        -2**63 up to 2**64, taken modulo 2**64. The offset is read back from every vCPU. VcpuRunning while a vCPU runs,
        CapabilityMissing where the kernel has no offset, and Misuse for a VM that has opted in.
        """

    def checkpoint(
        self,
        *,
        name: str | None = None,
        now: int | Stamp | None = None,
        stopped_at: int | None = None,
        sync: SyncBound | None = None,
        vmclock_address: int | None = None,
        stolen_time: Sequence[int | None] | None = None,
    ) -> Checkpoint:
        """Saves the VM's guest time. VcpuRunning (EBUSY) while a vCPU runs, as far as `capabilities.quiescence_check`
        goes.

        `now` is the host's count of the checkpoint as the counter's `read` gives it, by default the present one, or a
        whole Stamp, which is host-wide. `stopped_at` is the host's count when the last vCPU left its guest, as `read`
        gave it to a VMM that knows it: ValueError if that lies after the checkpoint. Without it a paused VM has stopped
        at its pause, if its counter is known to have counted since. `sync` says how far the wall clock may be off:
        without it, and without one of the counter, the bound is only the kernel's claim. `vmclock_address` is the
        guest-physical address of the vmclock page, and `stolen_time` those of the vCPUs' stolen-time records, one a
        vCPU (None where there is none): they are carried for whoever restores them. `name` names the VM in this
        checkpoint instead of its own name.
        """

    def plan(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        options: Options | None = None,
        now: int | Stamp | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> Plan:
        """Plans the restore of `checkpoint` under `policy`, without touching anything: a dry run.

        The keywords are the fields of `Options`, or `options` gives them as a value, which keywords change. `views`
        decides what becomes of two counters that differ: "preserve" sets each by value, "adopt-virtual" gives both the
        virtual counter's offset, "refuse" raises CounterSkew. `timers="relative"` keeps each timer's remaining time,
        instead of its deadline; a physical timer's moves with a counter that is given up. `intent` is the reason of the
        restore: "live-migration", "live-update", "snapshot" or "clone". `guest` says which settings of a Linux guest
        differ from the kernel's defaults, so that the plan knows what a jump does to it. `strict` refuses a checkpoint
        with something that this version doesn't know; otherwise the plan warns of it.

        `elapsed` is the caller's word on the time that has passed, an `Elapsed`; without it the evidence of both stamps
        decides. On one counter the counter tells the time, on another the wall clocks: `sync` says how far the one here
        may be off, as `checkpoint(sync=)` did there; without it the counter's own `sync` does, else the bound is only
        the kernel's claim. Where nobody knows, an `Advance` or `CatchUp` is refused (ElapsedUnknown), and where a
        counter and two vouched wall clocks contradict each other (ClocksDisagree). More than 366 days by two wall
        clocks is refused too (ElapsedTooLong), unless `Advance` has a cap of its own.

        `rate_error_ppb` accepts a counter here whose frequency differs from the guest's by so many parts per billion of
        it, at most 250 000; otherwise any difference is refused (FrequencyMismatch). The guest's clock is wrong by as
        much from then on, and the plan says so.

        `now` injects an instant of a model's counter: a count as its `read` gives it, or a whole Stamp, which is
        host-wide. Refused names both sides and the way out.
        """

    def restore(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        options: Options | None = None,
        now: int | Stamp | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> Report:
        """Restores `checkpoint`, with `plan`'s arguments: the guest may run when it returns.

        Refused where nothing was written. Interrupted says what state the VM is in: a VM that had opted in gets its own
        offset back unless a register was written, and may run; else it stays closed, and can be restored again.
        """

    def restoring(
        self,
        checkpoint: Checkpoint,
        policy: Policy | None = None,
        *,
        options: Options | None = None,
        now: int | Stamp | None = None,
        **keywords: Unpack[OptionKeywords],
    ) -> Restore:
        """Restores `checkpoint` around what the VMM restores itself, with `plan`'s arguments: a context manager.

        The call plans. Entering the block writes a provisional offset, if the plan's method is an offset: counter
        values that the VMM loads then have no effect. `apply()` writes the timers, and `release()` the counters.
        Leaving the block without `release()` gives the restore up, and so does every exception: see `Restore`.
        """

    def pause(self, policy: Policy | None = None, *, views: Views = "preserve") -> Pause:
        """Pauses the VM in place: no vCPU can run until `resume()` of the returned pause, or the end of its `with`
        block. Then the policy decides how much of the pause the guest sees.

        The call stops no vCPU: VcpuRunning while one runs. What would be refused at the end is refused here.
        """

    def verify(self, given: Report | Checkpoint | None = None, *, now: int | Stamp | None = None) -> Verified:
        """Looks at the VM's clocks, changes nothing, and waits for nobody: a `Verified`, which is true where all is as
        it is to be.

        Each vCPU's counters are read between two reads of the host's: they have to be where the VM's offset puts them,
        or without one where the other vCPUs' are. Each timer's ISTATUS has to be as its CVAL and its counter tell,
        where the kernel computes it when it is read (Linux up to 6.17). With the report that the guest goes by, its
        counters have to be where that put them, with the steps of its backlog paid since; with a checkpoint, not before
        those saved.

        VcpuRunning while a vCPU runs, whose registers can't be read without waiting for it.
        """

    def next_step(self) -> Step | None:
        """The next step that pays the backlog back, due or not; None where there is no backlog."""

    def catch_up(self, *, sleep: Callable[[float], object] | None = None) -> Iterator[Step]:
        """The steps that pay the backlog back: an iterator that waits until each is due, and ends when the backlog is
        0.

        For each, stop all vCPUs, `apply` it, and let them go on. A step that wasn't applied comes again, after 10 ms at
        least. Over a counter that is moved by hand the iterator doesn't wait: it ends at the first step that isn't due,
        or wasn't applied. `sleep` takes seconds, and waits instead of `time.sleep`, over such a counter too.
        `guestclock.aio.catch_up` does the same in an event loop.
        """

    def running(self, vcpu: int) -> Running:
        """A context manager for the time that the vCPU spends in its guest: a VMM wraps KVM_RUN, or its emulator's run,
        in it.

        Inside the block, checkpoints and restores raise VcpuRunning without an ioctl. RestoreOpen while a restore or
        pause isn't finished.
        """

    def set_counter_offset(self, offset: SupportsIndex) -> None:
        """KVM_ARM_SET_COUNTER_OFFSET as it is, for tests and for VMMs that do all themselves: `opt_in` is the verb.

        VcpuRunning (EBUSY) while a vCPU runs. `offset` is any integer from -2**63 up to 2**64, taken modulo 2**64.
        """

    def cntvct(self, vcpu: int, now: int | Stamp | None = None) -> int:
        """CNTVCT_EL0 as the vCPU's guest reads it, now or when the host's counter reads `now`.

        `now` is a count as the counter's `read` gives it, or a Stamp of the counter. The model takes no lock for it.
        KVM needs no ioctl for it once the VM has opted in, and only then takes `now` (else ValueError).
        """

    def cntpct(self, vcpu: int, now: int | Stamp | None = None) -> int:
        """CNTPCT_EL0 as the vCPU's guest reads it: see `cntvct`."""

    def get_one_reg(self, vcpu: int, reg: int, *, now: int | None = None) -> int:
        """KVM_GET_ONE_REG: `reg` is a `Reg` or its number. VcpuRunning while the vCPU is in its `running` block."""

    def set_one_reg(self, vcpu: int, reg: int, value: SupportsIndex, *, now: int | None = None) -> None:
        """KVM_SET_ONE_REG. A counter's value moves the whole VM's counter, unless the VM has opted in: then it is
        ignored.
        """

    def reg_list(self, vcpu: int) -> list[int]:
        """The timer registers of the vCPU, in KVM_GET_REG_LIST's order."""

    def timer(self, vcpu: int, timer: int, *, now: int | None = None) -> TimerState:
        """One timer as its guest sees it, now or when the host's counter reads `now`."""

    def next_deadline(self, vcpu: int, *, now: int | None = None) -> int | None:
        """The host count at which the first of the vCPU's timer lines goes high by itself; None if none will."""

@final
class Elapsed:
    """The caller's word on how much time has passed since a checkpoint: `elapsed=` of `plan` and `restore`.

    Without a word the evidence decides: docs/time-model.md has its table. One of `given`, `by_counter` and
    `by_wall_clocks` makes it.
    """

    @staticmethod
    def given(ns: int, *, error_ns: int) -> Elapsed:
        """So many nanoseconds, as of the plan, within `error_ns`: no clock is asked up to there."""

    @staticmethod
    def by_counter() -> Elapsed:
        """The VM's counter tells: it is the checkpoint's, and has counted all the time."""

    @staticmethod
    def by_wall_clocks(*, error_ns: int | None = None, refuse_over_ns: int | None = None) -> Elapsed:
        """The wall clocks of both hosts tell, even where the evidence says that they have one counter.

        The two are within `error_ns` of each other; without it each is within what is vouched or claimed for it. More
        than `refuse_over_ns` is refused (ElapsedTooLong): by default 366 days.
        """

    @property
    def by(self) -> Literal["given", "counter", "wall-clocks"]:
        """Evidence to go by: "given", "counter" or "wall-clocks"."""

    @property
    def ns(self) -> int | None:
        """The time, in nanoseconds; None unless it is given."""

    @property
    def error_ns(self) -> int | None:
        """The error of the time that is given, or of the wall clocks' distance, in nanoseconds; None for neither."""

    @property
    def refuse_over_ns(self) -> int | None:
        """The longest time that the wall clocks are believed, in nanoseconds; None for the default."""

    @classmethod
    def _of(cls, by: str, ns: int | None, error_ns: int | None, refuse_over_ns: int | None) -> Self: ...

@final
class ModelVm(GuestVm):
    """A model of a KVM guest's clocks: vCPUs and their timers over one counter.

    The model follows the rules of KVM in the kernel named by `kernel` ("6.1", "6.12" or "7.3"; by default "6.12", or
    "7.3" for a nested guest). `counter` is the host's by default, and may be any object with `frequency_hz`, `read()`
    and `stamp()`, which each call that needs a sample asks once, before it takes a lock. The guest's CNTFRQ_EL0 is the
    counter's frequency. Safe to use from many threads.

    `nested=True` gives the guest EL2 (KVM_ARM_VCPU_HAS_EL2): a CNTVOFF_EL2 on each vCPU, and two more timers; with
    `e2h0=True` (KVM_ARM_VCPU_HAS_EL2_E2H0) HCR_EL2.E2H is 0, and there is no EL2 virtual timer. `irqchip="user"` has
    the interrupt controller in the VMM. `vhe=False` is a host whose kernel doesn't run at EL2, and so emulates the
    guest's physical timer. `arch_width` is for emulators of hardware whose counters have fewer than 64 bits (56 and
    more): KVM knows only 64. `name` names the VM in its checkpoints.
    """

    def __new__(
        cls,
        vcpus: int = 1,
        *,
        counter: Counter | None = None,
        kernel: str | None = None,
        nested: bool = False,
        e2h0: bool = False,
        irqchip: Literal["in-kernel", "user"] = "in-kernel",
        vhe: bool = True,
        arch_width: int = 64,
        name: str = "",
    ) -> Self: ...
    @property
    def kernel(self) -> str:
        """The kernel whose rules the model follows."""

    def create_vcpu(self, *, now: int | None = None) -> int:
        """Creates one more vCPU and returns its index.

        Unless the VM has opted in, the creation moves every vCPU's CNTVCT_EL0 to 0 and CNTPCT_EL0 to the host's
        (kvm_timer_vcpu_init, arch/arm64/kvm/arch_timer.c).
        """

    def init_vcpu(self, vcpu: int) -> None:
        """KVM_ARM_VCPU_INIT: turns the vCPU's timers off. The offsets stay."""

    def set_counter_offset(self, offset: SupportsIndex, *, reserved: int = 0) -> None:
        """KVM_ARM_SET_COUNTER_OFFSET: see `GuestVm`. `reserved` is the ioctl's second field: EINVAL unless it is 0."""

    def access(
        self,
        vcpu: int,
        op0: int,
        op1: int,
        crn: int,
        crm: int,
        op2: int,
        *,
        write: bool = False,
        el: int = 1,
        tge: bool = False,
    ) -> Literal["allowed", "trap-to-el1", "trap-to-el2", "undefined"]:
        """The outcome of an `mrs`, or with `write` an `msr`, at this exception level: "allowed", "trap-to-el1",
        "trap-to-el2" or "undefined".

        `tge` is HCR_EL2.TGE of a nested guest, whose EL0 is then its hypervisor's user space.
        """

    def read_sysreg(
        self,
        vcpu: int,
        op0: int,
        op1: int,
        crn: int,
        crm: int,
        op2: int,
        *,
        el: int = 1,
        tge: bool = False,
        now: int | None = None,
    ) -> int:
        """The value that the vCPU's guest reads with `mrs` at exception level `el`, now or when the host's counter
        reads `now`.

        SysregTrap where the access traps, and UnknownRegister where it is undefined for the guest.
        """

    def write_sysreg(
        self,
        vcpu: int,
        op0: int,
        op1: int,
        crn: int,
        crm: int,
        op2: int,
        value: int,
        *,
        el: int = 1,
        tge: bool = False,
        now: int | None = None,
    ) -> None:
        """Writes a register as the vCPU's guest does with `msr` at exception level `el`: see `read_sysreg`."""

    def wfi_wake(
        self,
        vcpu: int,
        *,
        timeout: int | None = None,
        el: int = 1,
        tge: bool = False,
        now: int | None = None,
    ) -> int | None:
        """The host count at which a vCPU that waits in WFI wakes by itself: now, if at once; None if nothing of its own
        will wake it.

        `timeout` is the operand of WFIT, a count of the virtual counter.
        """

    def device_irq_level(self, vcpu: int, *, now: int | None = None) -> int:
        """`kvm_run.s.regs.device_irq_level`: bit 0 the virtual timer's line, bit 1 the physical one's, for an interrupt
        controller in the VMM.
        """

    def irq(self, timer: int) -> int:
        """The interrupt id of a timer, on every vCPU."""

    def set_irq(self, timer: int, irq: int) -> None:
        """KVM_ARM_VCPU_TIMER_CTRL: gives a timer its interrupt id, 16 to 31, on every vCPU.

        KvmError: EINVAL for another id, or without an interrupt controller in the kernel; EBUSY once a vCPU has run;
        ENXIO for a timer that the kernel doesn't know. Two timers with the same id make the first run fail.
        """

@type_check_only
class _HasFileno(Protocol):
    def fileno(self) -> int: ...

@final
class KvmVm(GuestVm):
    """The clocks of a VM on KVM, through the descriptors of the VM and its vCPUs.

    `vm_fd` and each of `vcpu_fds` is an int, or an object with `fileno()`, which is kept and called anew for each call.
    The descriptors are borrowed and never closed. `gic_fd` is the in-kernel vGIC's: with it, a vCPU that runs is found
    out before anything is read or written. `counter_offset` is for a VM that has opted in already: KVM has no way to
    read an offset back. `busy_timeout_ms` is how long KVM's EBUSY is waited out. `counter` is a `HostCounter` of
    CNTVCT_EL0, for its `sync=`; by default one without.

    Every vCPU must be initialised (KVM_ARM_VCPU_INIT), and none may run, when the object is made. The constructor
    probes what this KVM does, and writes nothing. The interpreter's lock is released in every ioctl. CapabilityMissing
    where this isn't arm64.
    """

    def __new__(
        cls,
        vm_fd: int | _HasFileno,
        vcpu_fds: Iterable[int | _HasFileno],
        *,
        gic_fd: int | _HasFileno | None = None,
        counter_offset: SupportsIndex | None = None,
        busy_timeout_ms: int = 50,
        counter: HostCounter | None = None,
        name: str = "",
    ) -> Self: ...
    @property
    def counter(self) -> HostCounter: ...
    @property
    def behaviours(self) -> Behaviours:
        """Behaviours of this KVM where kernels differ, as probed, as plain Python values. None where the VM's vCPU
        doesn't show it.
        """

    def add_vcpu(self, vcpu_fd: int | _HasFileno) -> int:
        """Adds a vCPU that was created later, and returns its index.

        The vCPU's creation has moved the counters of a VM that hasn't opted in: after a restore by value `running` then
        raises CountersMoved.
        """

    def irq(self, timer: int) -> int:
        """The interrupt id of a timer on every vCPU (KVM_ARM_VCPU_TIMER_CTRL), read from vCPU 0.

        KvmError: ENXIO for a timer that the kernel doesn't know. VcpuRunning in vCPU 0's `running` block, since KVM
        would wait.
        """

    def pending_latches(self) -> list[int]:
        """Each vCPU's GICR_ISPENDR0 as the vGICv3 keeps it, 32 bits: the pending latches of its private interrupts,
        lines apart (KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, Documentation/virt/kvm/devices/arm-vgic-v3.rst).

        For `Report.latch_mismatches`. VcpuRunning (EBUSY) while a vCPU runs; CapabilityMissing without `gic_fd`;
        KvmError (ENXIO) for a GICv2, which has none.
        """

@disjoint_base
class TracedVm(GuestVm):
    """A VM whose primitive calls are recorded: what was asked of KVM, or of the model, and what it answered.

    It is a `GuestVm`: `vm` is a `ModelVm` or a `KvmVm`, and its verbs are the same. The record is a ring of the latest
    `most_calls` (1 to 1 048 576), allocated here: nothing is while calls are made. `vm` itself has no part in it, so
    that whoever doesn't trace pays nothing.
    """

    def __new__(cls, vm: ModelVm | KvmVm, *, most_calls: int = 4096) -> Self: ...
    @property
    def vm(self) -> ModelVm | KvmVm:
        """The VM whose calls are recorded."""

    @property
    def calls(self) -> list[TracedCall]:
        """The latest calls in their order, failed ones included: a list of `TracedCall`."""

    @property
    def dropped(self) -> int:
        """Number of calls that the ring has no room for any more: the oldest."""

    @property
    def totals(self) -> dict[str, CallTotals]:
        """Sums over all calls since the VM was traced, by their kind: a dict of `CallTotals`. They only grow."""

    def take(self) -> list[TracedCall]:
        """Takes the calls out of the ring: those since it was last emptied, as far as it has room for them."""

    def clear(self) -> None:
        """Forgets all calls. Their totals stay."""

@final
class FaultyVm(TracedVm):
    """A VM whose calls fail, lie, stall, or find the process gone where `faults` say: for testing a VMM, an
    orchestrator, or anything else that restores VMs.

    It is a `TracedVm`, and `vm` a `ModelVm` or a `KvmVm`: the code that runs is the code that runs on either. `faults`
    are of `Fault`; ValueError for a fault that makes no sense, and for one that moves time where `vm` isn't over a
    `ManualCounter`. `busy_retries` is the number of times that set_counter_offset, and the look whether vCPUs run, are
    repeated after an injected EBUSY: `KvmVm` repeats them for `busy_timeout_ms`.

    After a crash every operation raises Crashed. `vm` can still be looked at.
    """

    def __new__(
        cls, vm: ModelVm | KvmVm, faults: Iterable[Fault], *, busy_retries: int = 0, most_calls: int = 4096
    ) -> Self: ...

@final
class TimerState:
    """One timer at one instant, as its guest would see it: `GuestVm.timer`."""

    def __new__(cls, *, ctl: int, cval: int, tval: int, line: bool, deadline: int | None) -> Self: ...
    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int | bool | None]]: ...
    @property
    def ctl(self) -> int:
        """CTL as a guest reads it: ENABLE, IMASK, and ISTATUS where the condition is met."""

    @property
    def cval(self) -> int:
        """Compare value, in guest ticks."""

    @property
    def tval(self) -> int:
        """CVAL - count as a signed 32-bit number: ticks left, negative when overdue."""

    @property
    def istatus(self) -> bool:
        """True if the condition is met: the guest's count has reached CVAL."""

    @property
    def line(self) -> bool:
        """True if the interrupt line is high: enabled, not masked, and the condition met."""

    @property
    def deadline(self) -> int | None:
        """Host count at which the line goes high by itself (now, if it is high); None if it never does."""

@final
class Running:
    """The time that a vCPU spends in its guest."""

    def __enter__(self) -> None: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...

@final
class Pause:
    """A pause in place: what `pause` of a VM returns. No vCPU can run until `resume`, or until the end of a `with`
    block.

    A pause that is dropped leaves the VM closed, with a ResourceWarning: a checkpoint can be restored into it.
    """

    @property
    def report(self) -> Report:
        """The report of the pause's end. Misuse before it."""

    def resume(self, policy: Policy | None = None) -> Report:
        """Ends the pause under its policy, or under `policy` instead. The guest may run when it returns.

        An error leaves the VM paused: call it again. Misuse where it is over already, or a restore came after it.
        """

    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...

@final
class Checkpoint:
    """The guest time of any number of VMs at one instant: a value that can be saved, sent and restored.

    A sequence of its VMs: `x["web-1"]`, `x[0]` and `x[:2]` are checkpoints too. VMs with the same registers stand
    together, in the order of their names, shorter ones first. The attributes of a VM work where there is exactly one;
    `columns()` and `vcpu_columns()` have those of all. Made by `checkpoint()` of a VM or a fleet, `load` or
    `from_bytes`. Equal checkpoints have equal bytes.
    """

    @property
    def stamp(self) -> Stamp:
        """The instant, by the host's counter and wall clock: one for all VMs."""

    @property
    def names(self) -> list[str]:
        """Names of the VMs, in their order."""

    @property
    def nbytes(self) -> int:
        """Number of bytes that `to_bytes` makes."""

    @property
    def unknown(self) -> list[str]:
        """Keys of the file that this version doesn't know. They stay with the whole: a part of fewer VMs is without
        them.
        """

    @property
    def lacks(self) -> list[Diagnostic]:
        """The evidence that its stamp lacks, and that a later `Advance` would go by: a list of `Diagnostic`, empty
        where there is all of it.
        """

    def __len__(self) -> int: ...
    def __getitem__(self, key: str | SupportsIndex | slice, /) -> Checkpoint: ...
    def __contains__(self, name: str, /) -> bool: ...
    def __iter__(self) -> Iterator[Checkpoint]: ...
    @classmethod
    def join(cls, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
        """Joins checkpoints of one host counter into one, of the latest of their instants: each VM's timeline moves to
        it by the ticks that the counter took.

        A VM that was saved earlier, and whose stop isn't known, has stopped at its own checkpoint. So a restore gives
        each VM what its own checkpoint would have given it. ValueError where the checkpoints aren't shown to be of one
        counter, where two VMs have one name, or where one has a key that this version doesn't know.
        """

    @property
    def name(self) -> str:
        """Name of the one VM; empty where nobody named it."""

    @property
    def vcpus(self) -> int:
        """Number of the one VM's vCPUs."""

    @property
    def frequency_hz(self) -> int:
        """CNTFRQ_EL0 of the one VM, in Hz."""

    @property
    def cntvct(self) -> int:
        """The one VM's virtual counter at the checkpoint's instant, in ticks: its timeline. On nested vCPUs CNTVOFF_EL2
        has been added back.
        """

    @property
    def cntpct(self) -> int:
        """The one VM's physical counter at the checkpoint's instant, in ticks."""

    @property
    def opted_in(self) -> bool:
        """True if the one VM had opted in to one counter offset."""

    @property
    def virtual_width_ticks(self) -> int:
        """Ticks by which the one VM's virtual counter may be off: 0 where it was computed."""

    @property
    def physical_width_ticks(self) -> int:
        """Ticks by which the one VM's physical counter may be off: 0 where it was computed."""

    @property
    def stopped_at(self) -> int | None:
        """The host's count when the one VM's last vCPU left its guest, or None. A restore goes on from there."""

    @property
    def backlog(self) -> Backlog | None:
        """`Backlog` of the one VM: guest time still to be given back; None if there is none."""

    @property
    def interrupts(self) -> dict[Timer, int] | None:
        """Interrupt ids of the one VM's timers, by `Timer`; None where nobody asked for them."""

    @property
    def reading(self) -> Reading | None:
        """`Reading` of the one VM: a count and the wall clock of another instant than the registers'; None if there is
        none.
        """

    @property
    def vmclock_address(self) -> int | None:
        """Guest-physical address of the one VM's vmclock page, or None."""

    @property
    def stolen_time(self) -> list[int | None]:
        """Guest-physical addresses of the stolen-time records, one a vCPU of the one VM, None where it isn't known."""

    @property
    def cntvoff(self) -> NDArray[np.uint64] | None:
        """CNTVOFF_EL2 of the one VM: shape (vcpus,), uint64, ticks. None for a guest without EL2."""

    def cval(self, timer: int) -> NDArray[np.uint64]:
        """The compare values of one timer of the one VM: shape (vcpus,), uint64, guest ticks. KeyError where the guest
        hasn't got it.
        """

    def ctl(self, timer: int) -> NDArray[np.uint64]:
        """The controls of one timer of the one VM, without ISTATUS: shape (vcpus,), uint64. KeyError where the guest
        hasn't got it.
        """

    def columns(self) -> dict[str, NDArray[Any]]:
        """One column for each fact of a VM, a row each VM: arrays of shape (VMs,).

        "name" (str), "vcpus", "frequency_hz", "timeline" (guest ticks, uint64 like all numbers), "opted_in" (bool),
        "virtual_width_ticks", "physical_width_ticks", "physical_displacement_ticks". What is known of some VMs only is
        a masked array, and not there if it is known of none: "stopped_at_count" (host ticks), "backlog_remaining_ticks"
        and so on.
        """

    def vcpu_columns(self) -> dict[str, NDArray[Any]]:
        """One column for each register, a row each vCPU: arrays of shape (vCPUs of all VMs,), uint64.

        "name" (str) and "vcpu" say whose the row is. "vtimer_cval" (guest ticks) and "vtimer_ctl" (without ISTATUS),
        and the same of every timer; "cntvoff" (ticks); "stolen_time_address"; a timer register that this version
        doesn't know by its KVM id in hexadecimal. Where some guests don't have a register, its column is a masked
        array.
        """

    def timers(self) -> list[TimerStatus]:
        """Every timer of the one VM's vCPUs at the checkpoint's own instant: a list of `TimerStatus`, each vCPU's in
        their order.
        """

    @classmethod
    def from_one_regs(
        cls,
        registers: Sequence[dict[int, int]],
        *,
        frequency_hz: int,
        host: Stamp | None,
        counter_offset: SupportsIndex | None = None,
        width_ticks: int = 0,
        reading: Reading | None = None,
        name: str = "",
        ids: Literal["kvm", "arm"] | None = None,
        cntvct: int | None = None,
        cntpct: int | None = None,
    ) -> Checkpoint:
        """A checkpoint from the registers that another VMM saved: one {KVM register id: value} a vCPU, in the vCPUs'
        order.

        Registers that aren't the timers' are passed over. `frequency_hz` is the guest's CNTFRQ_EL0. `host` is the
        host's counter and wall clock at the save, and None says that nobody knows them: then `Freeze()` restores the
        guest, and `Advance` and `CatchUp` are refused (ElapsedUnknown) unless `elapsed=Elapsed.given(...)` says how
        much time has passed.

        A list has no word on when its counters were read. The latest count is taken, and the width of each counter in
        the checkpoint is the distance between the vCPUs' counts, plus the argument: how many ticks may lie between
        `host` and the reading. `counter_offset` is the offset that the VMM had set with KVM_ARM_SET_COUNTER_OFFSET, any
        integer from -2**63 up to 2**64: then the counters are computed from it and `host`, exactly, and the counts in
        the lists aren't used.

        `reading` is a `Reading`: the guest's virtual counter and the wall clock of one instant, which another VMM saved
        beside its lists. With `host=None` the time that has passed counts from there; `Freeze()` gives the guest the
        lists' counts.

        `ids` is "kvm" for KVM's ids, and "arm" for those that follow from Arm's encodings, as other hypervisors than
        KVM have them: there 0x603000000013df1a is CNTV_CVAL_EL0. Without it the ids are KVM's, and lists that show
        otherwise are refused. `cntvct` and `cntpct` are CNTVCT_EL0 and CNTPCT_EL0 at the save, for lists that have no
        such count.

        ValueError where a register is missing, a list's own CNTFRQ_EL0 isn't `frequency_hz`, or the lists need what
        isn't known.
        """

    def to_one_regs(self, *, physical_count: bool | None = None) -> list[dict[int, int]]:
        """The registers of the one VM as {KVM register id: value}, one a vCPU, for another VMM to set: in an order in
        which they can be.

        The counters are those of the checkpoint's instant; ISTATUS is never in CTL.

        `physical_count` decides on PTIMER_CNT. Setting it gives the VM an offset of its physical counter, by which
        CNTPCT_EL0 and the physical timer trap for good on a CPU without CNTPOFF_EL2. Without a word it is in the lists
        of a VM that had such an offset, and left out where CNTPCT_EL0 was the host's own counter, as KVM has it by
        default: replayed so, the guest reads the counter of the host that it comes to. ValueError where the host's
        count isn't known, so that nobody can tell.
        """

    def without_unknown(self) -> Checkpoint:
        """The checkpoint without the timer registers and keys that this version doesn't know: a model VM, and any VM
        that doesn't have the registers, can be restored from it.
        """

    def to_dict(self) -> dict[str, object]:
        """All that it says as plain Python values, for JSON, under the keys of the file: a column has one value a VM,
        or a vCPU; what isn't known is None.
        """

    def to_bytes(self) -> bytes:
        """Returns its bytes: deterministic CBOR with a checksum, as docs/checkpoint-format.md specifies."""

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Checkpoint:
        """The checkpoint of these bytes; an InvalidFile says what is wrong with them.

        Safe on bytes from anywhere, but no proof of who wrote them: the checksum finds damage, not forgery.
        """

    def save(self, path: str | PathLike[str], *, mode: int = 0o600) -> None:
        """Writes its bytes to a file, whole or not at all: a kill or a crash leaves the old file or the new one.

        `path` is a regular file's or nobody's yet. A symbolic link is followed to its file, which is replaced, and the
        link stays; a FIFO, a socket, a device and a folder are refused (OSError). An existing file keeps its mode and
        its owner; a new one gets `mode`, less the umask. Other threads run meanwhile, and the exception of a signal's
        handler ends the call, which then has changed nothing. Once the file is replaced there is no error any more: a
        RuntimeWarning says that its folder couldn't be synced.

        OSError, with errno and the file's name, where the system refuses. See docs/files.md.
        """

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Checkpoint:
        """The checkpoint in a file; or those in all files of a folder, joined (see `join`), as many processes that
        saved one VM each have left them.

        Files whose names begin with a dot are passed over, and so are folders. Every other file has to be a checkpoint;
        an error has a note that names the files it is about. Symbolic links are followed; a FIFO, a socket and a device
        are refused (OSError), as they would have the caller wait. Other threads run meanwhile, and the exception of a
        signal's handler ends the call.
        """

@final
class StolenTime:
    """One vCPU's PV stolen-time record (Arm DEN0057A) in the guest's memory, at `offset` of `memory`.

    `memory` is writable and in one piece (an mmap, a memoryview), and the record at a multiple of 64 bytes, else
    ValueError. PageOverwritten where its revision or its attributes aren't 0. Use it only while the vCPU is stopped:
    KVM writes the record itself when it loads the vCPU.
    """

    def __new__(cls, memory: Buffer, offset: int = 0) -> Self: ...
    @property
    def stolen_ns(self) -> int:
        """The time stolen so far, in nanoseconds."""

    def add(self, ns: int) -> int:
        """Adds `ns` nanoseconds (`report.added_ns`: 0 under Freeze) in one aligned store of 8 bytes, and returns the
        sum: modulo 2^64, as KVM does, since the guest can write anything into its own record.
        """

@final
class ClockEquation:
    """Real time by the guest's counter: `time + (CNTVCT_EL0 - counter_value) * period`, with the claimed bounds of its
    errors.

    `here` is a stamp of the host's counter. `cntvct` is the guest's CNTVCT_EL0 at the instant of the stamp:
    `vm.cntvct(0, now=here)`. The rate is measured since the earlier stamp `since` of the same counter, or nominal
    without one. The caller vouches for the errors, in nanoseconds and parts per billion; they are claimed together with
    the widths of the brackets, and without a number there is no claim. `max_error_ns` and `est_error_ns` have to hold
    at both ends of the window; the errors of the rate say how far the counter may go from the measured, or nominal,
    rate.

    ValueError where there is no honest equation: the wall clock isn't known to be synchronised (`synchronized=True` or
    False overrides the stamp), a leap second is being inserted, TAI isn't known and `time_type` is "tai", the wall
    clock was stepped in the window, the counter is no faster than 1 Hz. A smeared clock can't be detected: don't make
    an equation from one.
    """

    def __new__(
        cls,
        here: Stamp,
        *,
        cntvct: int,
        since: Stamp | None = None,
        time_type: Literal["utc", "tai"] = "utc",
        est_error_ns: int | None = None,
        max_error_ns: int | None = None,
        rate_est_error_ppb: int | None = None,
        rate_max_error_ppb: int | None = None,
        synchronized: bool | None = None,
    ) -> Self: ...
    def __getnewargs_ex__(self) -> tuple[tuple[Stamp], dict[str, Stamp | int | str | bool | None]]: ...
    @property
    def time_type(self) -> Literal["utc", "tai"]:
        """Time scale of the equation: "utc" or "tai"."""

    @property
    def counter_value(self) -> int:
        """The guest's CNTVCT_EL0 at the equation's time, in ticks."""

    @property
    def period(self) -> tuple[int, int]:
        """Duration of a tick, as `(frac, shift)`: `frac / 2**(64 + shift)` seconds, rounded to the nearest, half up."""

    def time_ns(self, count: int) -> int:
        """The time at a count that isn't before `counter_value`, in nanoseconds since 1970, rounded down.

        OverflowError past the end of 64 bits of seconds.
        """

    def max_error_ns_at(self, age_ticks: int) -> int | None:
        """The most by which the time may be off when the clock is `age_ticks` old, in nanoseconds; None where there is
        no claim.
        """

@final
class VmClock:
    """A vmclock page (Linux's linux/vmclock-abi.h) that is in the guest's memory already, as after a restore, at
    `offset` of `memory`. `VmClock.create` makes a new one.

    `memory` is writable and in one piece, and the page at a multiple of 8 bytes, else ValueError. PageOverwritten where
    it doesn't begin as a page does.
    """

    def __new__(cls, memory: Buffer, offset: int = 0) -> Self: ...
    @staticmethod
    def create(
        memory: Buffer,
        offset: int = 0,
        *,
        tai_offset_s: int | None,
        size: int = 4096,
        counter: Literal["arm-vcnt"] | None = "arm-vcnt",
        time_type: Literal["utc", "tai"] = "utc",
        disruption_marker: int = 0,
        vm_generation: int = 0,
        notification: bool = False,
    ) -> VmClock:
        """Makes a page, before the guest runs. `size` is the size of the region that the guest is informed of, in
        bytes, at least 112.

        `counter`, "arm-vcnt" or None for a page that will never have a clock, and `time_type`, "utc" or "tai", are
        constant for the device's life. With `notification` the guest expects an interrupt after each update: the VMM
        has to raise it.

        The page has no clock until an update gives it one, and is "unreliable" until then, which Linux's driver
        refuses; "unknown" if it has no counter. `tai_offset_s` is TAI - UTC in seconds, which `stamp().tai_offset_s` of
        a host's counter has where the kernel knows it; None where nobody does. A driver of Linux 7.3 or newer decides
        by it, once and for all when it finds the device, whether a page of "utc" has a clock.
        """

    @property
    def disruption_marker(self) -> int:
        """The marker that changes when the guest's counter is disrupted."""

    @property
    def vm_generation(self) -> int:
        """The counter that changes when the guest is a copy."""

    @property
    def status(self) -> Literal["unknown", "synchronized", "freerunning", "unreliable"]:
        """Status of the clock on the page: "unknown", "synchronized", "freerunning" or "unreliable"."""

    @property
    def time_type(self) -> Literal["utc", "tai"]:
        """Time scale of the clock: "utc" or "tai"."""

    @property
    def counter_value(self) -> int | None:
        """The guest's CNTVCT_EL0 at which the page's clock begins, in ticks; None for a page without a clock. The
        clock's age is the guest's count less this.
        """

    def update(
        self,
        intent: Intent | None = None,
        *,
        disrupted: bool | None = None,
    ) -> VmClockUpdate:
        """A context manager in which `seq_count` is odd: the guest's readers wait, and see none of the changes until
        the end.

        `intent` is the reason: "live-migration", "live-update", "snapshot" or "clone"; None for a VM that stays, whose
        clock is brought up to date. The last two names change `vm_generation`. The counter counts as disrupted with
        each of the four, which changes `disruption_marker` and takes the clock away, unless `disrupted=False` says that
        the counter went on as if nothing had been (ValueError with "live-migration": another host has another counter).
        """

@final
class VmClockUpdate:
    """An update of a vmclock page, made by `VmClock.update`.

    An exception in the block leaves the page "unreliable", without an equation and with a new disruption marker, and
    `seq_count` even: a guest doesn't wait for the page, and has no clock from it.
    """

    def __enter__(self) -> Self: ...
    def clock(
        self,
        equation: ClockEquation,
        *,
        status: Literal["synchronized", "freerunning"] = "synchronized",
        monotonic: tuple[int, int] | None = None,
    ) -> bool:
        """Gives the page this clock; `status` is "synchronized", or "freerunning" for a host that no longer is.

        `monotonic=(last, first)` asks for TIME_MONOTONIC: `last` is the guest's latest count under the page as it was,
        `first` the earliest under this equation (while the guest runs, one count taken in the block for both). Returns
        true if TIME_MONOTONIC holds, and is claimed: the time at `first` isn't before the time that the page showed at
        `last`.

        ValueError where the page has no counter, or another type of time, or where `first` lies before the equation
        begins.
        """

    def no_clock(self) -> None:
        """Takes the page's clock away: for a host that isn't synchronised, or whose wall clock is smeared."""

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...

@final
class Plan:
    """A plan of a restore: a dry run. `print` it, or take `to_dict()`.

    The numbers are as of the plan's sample; its decisions stand until the VM's state changes. A plan and a report are
    values to look at, which hold no VM: they compare, and their pickles are read by the version that wrote them.
    """

    @property
    def policy(self) -> Policy:
        """The policy."""

    @property
    def method(self) -> Literal["offset", "by-value", "virtual-only"]:
        """The method by which the counters will be set: "offset", "by-value" or "virtual-only"."""

    @property
    def same_counter(self) -> bool:
        """True if the VM's counter is the checkpoint's counter."""

    @property
    def elapsed_by(self) -> Literal["given", "counter", "wall-clocks", "boot-time"] | None:
        """Source of the elapsed time: "given", "counter", "wall-clocks" or "boot-time"; None where nobody knows it,
        which `Freeze` alone can do without.
        """

    @property
    def behind_ns(self) -> int | None:
        """Time by which the guest's wall clock falls behind, in nanoseconds: what that it has missed and isn't given at
        once. None where nobody knows.
        """

    @property
    def behind_error_ns(self) -> int | None:
        """Largest error of `behind_ns`, in nanoseconds."""

    @property
    def jump_ns(self) -> int:
        """Time by which the guest's clock jumps at once, in nanoseconds: the added time, or the longest step of a
        backlog. A Linux guest charges it to the task that ran on each vCPU.
        """

    @property
    def limits(self) -> list[GuestLimit]:
        """Limits of a Linux guest with the settings `guest`, and whether that jump crosses them: a list of
        `GuestLimit`.
        """

    @property
    def throttled_ns(self) -> int | None:
        """Time for which the CPU quota of `guest` throttles a group whose task ran on one vCPU at the pause, in
        nanoseconds: the kernel takes the jump for CPU time. It is longer where periods of the quota begin late. None
        for a guest without a quota.
        """

    @property
    def warnings(self) -> list[Diagnostic]:
        """Warnings to read before going on: a list of `Diagnostic`."""

    @property
    def assumptions(self) -> list[Diagnostic]:
        """Assumptions under which the error bound holds: a list of `Diagnostic`."""

    @property
    def unsupported(self) -> list[Diagnostic]:
        """State that can't be preserved: a list of `Diagnostic`."""

    @property
    def degraded(self) -> list[Diagnostic]:
        """Accesses that are slower for the guest from now on: a list of `Diagnostic`."""

    @property
    def error_bound_ticks(self) -> int:
        """The most by which the counters may be off the policy's promise, in ticks, as of the sample."""

    @property
    def error_bound_ns(self) -> int:
        """The error bound in nanoseconds, rounded up."""

    @property
    def rate_step_ppb(self) -> int | None:
        """The increase of the guest's counter rate from the saving host to this one, in parts per billion, as both
        kernels measured their counters; None where one doesn't know. It isn't part of the bound: it acts after the
        restore.
        """

    @property
    def disrupts(self) -> bool:
        """True if the guest's counters lose step with real time, as a vmclock page has to say: every plan except an
        `Advance` on the same counter by all the time that has passed.
        """

    def to_dict(self) -> dict[str, object]:
        """All fields as plain Python values, for JSON."""

    def timers(self) -> list[TimerStatus]:
        """Every timer of every vCPU as the guest would find it if it went on at the plan's sample: a list of
        `TimerStatus`, each vCPU's in their order.

        The physical timer is left out where it isn't restored ("virtual-only").
        """

@final
class Restore:
    """A restore around what the VMM restores itself: what `restoring` of a VM returns.

    Inside its `with` block: the VMM's registers and vGIC, then `apply()`, then `release()`. Leaving the block without
    `release()`, by whatever way, gives the restore up. A VM to which no register was written, and that had opted in
    before or whose plan writes no offset, goes on as it was. Any other stays closed, can be restored again, and says
    so: in a note on the exception that left the block, or else in a ResourceWarning.
    """

    @property
    def plan(self) -> Plan:
        """The plan."""

    @property
    def report(self) -> Report:
        """The report of the release. Misuse before it."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def apply(self, *, now: int | Stamp | None = None) -> None:
        """The second step: every vCPU's timers, CVAL before CTL, read back. Interrupted says what to call again."""

    def release(self, *, at: Stamp | None = None, now: int | Stamp | None = None) -> Report:
        """The last step: samples the counter, sets the guest's counters, and lets the vCPUs run.

        With `at`, a Stamp of this host that another process may have taken, the guest goes on as if it had been
        released then, and sees the time since: so VMs of many processes go on from one instant. Refused, so that this
        step can be called again, for a stamp of another counter or boot, of before a sleep of the host, of before the
        plan, and of the future.

        Interrupted says what to call again: this step, or `apply()` where a timer was changed meanwhile.
        """

@final
class Step:
    """A forward step of a guest's counters. Stop all of its vCPUs, `apply` it, and let them go on."""

    @property
    def ticks(self) -> int:
        """Ticks by which the guest's counters go forward."""

    @property
    def due_at(self) -> int:
        """The count of the VM's counter from which on the step is due."""

    @property
    def backlog_ticks(self) -> int:
        """The backlog before the step, in ticks."""

    def wait_ns(self, *, now: int | None = None) -> int:
        """Time until the step is due, in nanoseconds, rounded up; 0 when it is.

        `now` is a count of the VM's counter, by default the present one.
        """

    def apply(self, page: VmClock | None = None, *, now: int | Stamp | None = None) -> int:
        """Moves the guest's counters forward, once, when the step is due. All vCPUs have to be stopped meanwhile, else
        VcpuRunning, and the backlog stays as it was.

        `page` is the guest's vmclock page, which is brought up to date in the same stop: its clock shows the same time
        before and after, and its disruption marker changes. Returns the remaining ticks. Misuse for a step that isn't
        due, for one that was applied already or that a restore has made obsolete, and where there is no backlog
        (NoBacklog).
        """

@final
class Report:
    """A report of a restore or a pause. `print` it, or take `to_dict()`. It pickles and compares as a `Plan` does."""

    @property
    def policy(self) -> Policy:
        """The policy."""

    @property
    def method(self) -> Literal["offset", "by-value", "virtual-only"]:
        """The method by which the counters were set: "offset", "by-value" or "virtual-only"."""

    @property
    def released_at(self) -> int:
        """The host's count at the last sample, as the counter's `read` gives it: the counters below belong to it."""

    @property
    def returned_at(self) -> int:
        """The host's count at the end of the call that released, once all was read back. Under `Freeze` the guest sees
        what passes from `released_at` to there, and what comes until it is entered (`resumed_at`).
        """

    @property
    def cntvct(self) -> int:
        """The guest's virtual counter at the last sample, in 64 bits: a guest with a narrower counter (`arch_width`)
        reads its low bits.
        """

    @property
    def cntpct(self) -> int:
        """The guest's physical counter at the last sample, in 64 bits as well."""

    @property
    def added_ticks(self) -> int:
        """The guest time that the policy added, in ticks."""

    @property
    def added_ns(self) -> int:
        """The guest time that the policy added, in nanoseconds, rounded down."""

    @property
    def elapsed_by(self) -> Literal["given", "counter", "wall-clocks", "boot-time"] | None:
        """Source of the elapsed time: "given", "counter", "wall-clocks" or "boot-time"; None where nobody knows it,
        which `Freeze` alone can do without.
        """

    @property
    def behind_ns(self) -> int | None:
        """Time by which the guest's wall clock falls behind, in nanoseconds: what that it has missed and isn't given at
        once. None where nobody knows.
        """

    @property
    def behind_error_ns(self) -> int | None:
        """Largest error of `behind_ns`, in nanoseconds."""

    @property
    def warnings(self) -> list[Diagnostic]:
        """Warnings about what was done: a list of `Diagnostic`."""

    @property
    def assumptions(self) -> list[Diagnostic]:
        """Assumptions under which the error bound holds: a list of `Diagnostic`."""

    @property
    def unsupported(self) -> list[Diagnostic]:
        """State that can't be preserved: a list of `Diagnostic`."""

    @property
    def degraded(self) -> list[Diagnostic]:
        """Accesses that are slower for the guest from now on: a list of `Diagnostic`."""

    @property
    def capped(self) -> bool:
        """True if more time had passed than the policy let through."""

    @property
    def error_bound_ticks(self) -> int:
        """The most by which the counters may be off the policy's promise, in ticks."""

    @property
    def error_bound_ns(self) -> int:
        """The error bound in nanoseconds, rounded up."""

    @property
    def backlog_ticks(self) -> int:
        """The guest's backlog, in ticks: 0 except under `CatchUp`, or where there was a backlog before."""

    @property
    def disrupts(self) -> bool:
        """True if the guest's counters lost step with real time: `disrupted=` of `VmClock.update`."""

    def resumed_at(self, count: int) -> Report:
        """The report with the host's count at the first guest entry added, from a VMM that knows it.

        ValueError for a count before the release.
        """

    def timers(self) -> list[TimerStatus]:
        """Every timer of every vCPU as the guest finds it at the release: a list of `TimerStatus`, each vCPU's in their
        order.

        The physical timer is left out where it isn't restored ("virtual-only"). The list is empty for a pause, whose
        timers weren't read.
        """

    def latch_mismatches(
        self, pending: Sequence[int], *, irqs: dict[Timer, int] | None = None, userspace_gic: bool = False
    ) -> list[LatchMismatch]:
        """The timers' interrupts whose pending latch will do harm, by the lines at the release: a list of
        `LatchMismatch`.

        `pending` is each vCPU's GICR_ISPENDR0 as KVM_DEV_ARM_VGIC_GRP_REDIST_REGS reads it, 32 bits: from a saved vGIC,
        or from `KvmVm.pending_latches()`. The interrupt ids are those of `irqs`, of the checkpoint, or the default ones
        (27, 30, 28 and 26), in this order. Pending without the line is one interrupt that no timer accounts for. The
        line without pending is how KVM keeps a timer that is due, and isn't listed: KVM raises the line itself when the
        vCPU is next loaded (`kvm_timer_vcpu_load`, arch/arm64/kvm/arch_timer.c). With `userspace_gic` it is listed too:
        there the VMM has to raise it.

        ValueError if there aren't as many words as vCPUs, and for an id that isn't a PPI.
        """

    def to_dict(self) -> dict[str, object]:
        """All fields as plain Python values, for JSON."""

def clock_settime(here: Stamp, *, cntvct: int, at: int) -> tuple[int, int]:
    """Time for `clock_settime(CLOCK_REALTIME)` that an agent in the guest sets when its CNTVCT_EL0 reads `at`:
    `(tv_sec, tv_nsec)`.

    `here` is a stamp of the host's counter, and `cntvct` the guest's CNTVCT_EL0 at the instant of the stamp
    (`vm.cntvct(0, now=here)`); `at` may lie on either side: `report.cntvct` for the instant of the release. Between the
    two counts the counter's nominal rate is taken, in integers, rounded down to the nanosecond.

    ValueError for a time that CLOCK_REALTIME can't be set to: before 1970, or past 64 bits of nanoseconds.
    """
