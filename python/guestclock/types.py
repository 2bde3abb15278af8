"""Records that calls return, objects that verbs return (`Pause`, `Step`, `Running`), and aliases for annotations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, TypeVar

from guestclock._core import (
    Advance,
    CatchUp,
    Elapsed,
    Freeze,
    GuestVm,
    HostCounter,
    ManualCounter,
    MonotonicCounter,
    Pause,
    Running,
    ScaledCounter,
    Step,
    TimerState,
    _vouched,
)
from guestclock.registers import Timer

__all__ = [
    "Backlog",
    "Behaviours",
    "CallTotals",
    "Capabilities",
    "Changes",
    "Counter",
    "CounterObject",
    "DeadlineSource",
    "Deadlines",
    "Diagnostic",
    "Expired",
    "GuestLimit",
    "GuestVm",
    "Intent",
    "LatchMismatch",
    "Lateness",
    "Lines",
    "LinuxGuest",
    "Mismatch",
    "OptionKeywords",
    "Pause",
    "Policy",
    "Reading",
    "Running",
    "Step",
    "Support",
    "TimerState",
    "TimerStatus",
    "TracedCall",
    "Verified",
    "Views",
]

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CounterObject(Protocol):
    """An object that a `ModelVm`, a `ClockBank` or a `ScaledCounter` takes for a counter.

    Each call that needs a sample takes one, before it takes any lock of guestclock's, and the counter stands still for
    the call. An attribute `moves_by_itself = False` says that nobody is to wait for it. A `DeadlineAlarm` and a `KvmVm`
    take native counters only.
    """

    @property
    def source(self) -> str:
        """Name of the counter, for messages."""

    @property
    def frequency_hz(self) -> int:
        """Ticks a second: constant."""

    def read(self) -> int:
        """Return the count now, below 2**64."""

    def stamp(self) -> "Stamp":
        """Return the count with the host's clocks, at the same frequency."""


Counter: TypeAlias = HostCounter | MonotonicCounter | ManualCounter | ScaledCounter | CounterObject
"""Whatever a `ModelVm` can run over."""

Policy: TypeAlias = Freeze | Advance | CatchUp
"""Policy of a restore or a pause: the time that the guest sees of it."""

_Expired_co = TypeVar("_Expired_co", bound=tuple[object, ...], covariant=True)


class DeadlineSource(Protocol[_Expired_co]):
    """Whatever has deadlines on a counter: what a `DeadlineAlarm` waits for."""

    def next_deadline(self, now: int, /) -> int:
        """The count at which the next deadline passes: `now` where one has, 2**64 - 1 where there is none."""

    def expire(self, now: int, /) -> _Expired_co:
        """Take what has passed. The last item is the deadlines: a contiguous uint64 array, of counts."""


Views: TypeAlias = Literal["preserve", "adopt-virtual", "refuse"]
"""Treatment of two guest counters that differ: both kept apart, the virtual one for both, or a refusal."""

Deadlines: TypeAlias = Literal["absolute", "relative"]
"""Treatment of the timers: they keep their deadlines, or the time that was left to them."""

Intent: TypeAlias = Literal["live-migration", "live-update", "snapshot", "clone"]
"""Why a VM is restored."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """A fact about a plan, a report or a checkpoint: a warning, an assumption, or something that can't be had."""

    code: str
    """Name for programs, such as "same-boot": docs/refused.md has a place for each."""
    text: str
    """The sentence."""
    ground: Literal["proved", "assumed"] | None = None
    """Ground of an assumption: what was looked at proves it, or nothing does; None for any other fact."""

    def __str__(self) -> str:
        """The sentence and the code."""
        return f"{self.text} [{self.code}]"


@dataclass(frozen=True, slots=True)
class Support:
    """Answer whether something is to be had here, with its reason. `ok` is None where nothing can tell."""

    ok: bool | None
    reason: str

    def __bool__(self) -> bool:
        """Only a certain yes counts as one."""
        return self.ok is True


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capabilities of a VM's backend for its clocks."""

    counter_offset: Support
    """One VM-wide offset for both counters (KVM_CAP_COUNTER_OFFSET)."""
    physical_timer: Support
    """The physical counter and timer can be saved and set (KVM_REG_ARM_PTIMER_*)."""
    physical_offset_untrapped: Support
    """A physical offset costs nothing: the CPU has CNTPOFF_EL2. Without it CNTPCT and the physical timer trap."""
    quiescence_check: Support
    """A running vCPU is found out before anything is read or written."""
    nested: Support
    """A guest may have EL2 (KVM_CAP_ARM_EL2)."""


class Behaviours(TypedDict):
    """Behaviours of a KVM where kernels differ, as probed."""

    counter_offset: bool
    """It has the VM-wide offset: KVM_CAP_COUNTER_OFFSET."""
    physical_timer: bool
    """It has the registers of the physical counter and timer: KVM_REG_ARM_PTIMER_*."""
    list_order: Literal["grouped", "by-encoding"] | None
    """KVM_GET_REG_LIST has the timer registers ahead of the system registers (Linux up to 6.17), or among them. None
    where the vCPU has too few for an order."""
    ctl_readback: Literal["computed", "stored"] | None
    """KVM_GET_ONE_REG computes ISTATUS (Linux up to 6.17), or gives the stored one. None where no timer of vCPU 0 shows
    it."""
    nested: bool
    """The guest has EL2."""


class TimerStatus(NamedTuple):
    """One timer of one vCPU at one instant, from a checkpoint: as its guest finds it. KVM's rules, on 64 bits."""

    vcpu: int
    timer: Timer
    ctl: int
    """CTL as it was saved, without ISTATUS."""
    cval: int
    """The compare value, in guest ticks."""
    guest_count: int
    """Count that the timer compares with on this vCPU, in guest ticks."""
    line: bool
    """The level that the interrupt line has to have: enabled, not masked, and CVAL reached."""
    overdue_ticks: int | None
    """Guest ticks since its deadline, for a timer that is on, masked or not; None where the deadline is to come."""
    passed_in_pause: bool
    """It is on, and its deadline lies between the checkpoint and the instant."""


@dataclass(frozen=True, slots=True)
class Lateness:
    """Lateness of the deadlines that a `DeadlineAlarm` gave out: from each to the count at which it was taken.

    Counts are exact. Times are nanoseconds, rounded up.
    """

    frequency_hz: int
    total_ticks: int
    """All of them together."""
    max_ticks: int
    """The latest."""
    by_length: tuple[int, ...]
    """Numbers of deadlines by the bits of their lateness in ticks: at 0 those in time, at i those late by 2**(i - 1) up
    to below 2**i."""

    @property
    def expired(self) -> int:
        """Number of deadlines."""
        return sum(self.by_length)

    @property
    def max_ns(self) -> int:
        """Lateness of the latest, in nanoseconds."""
        return self._ns(self.max_ticks)

    @property
    def mean_ns(self) -> int:
        """Average lateness, in nanoseconds: 0 where there were none."""
        return self._ns(self.total_ticks, of=max(self.expired, 1))

    def within_ns(self, percent: int) -> int:
        """Bound on the lateness of so many percent of them, in nanoseconds: less than twice too large."""
        if not 0 <= percent <= 100:
            raise ValueError(f"percent is from 0 to 100, and {percent} isn't")
        needed = self.expired * percent
        within = 0
        for bits, count in enumerate(self.by_length):
            within += count
            if within * 100 >= needed:
                return self._ns(min(2**bits - 1, self.max_ticks))
        return 0

    def _ns(self, ticks: int, *, of: int = 1) -> int:
        return -(-ticks * 1_000_000_000 // (self.frequency_hz * of))

    def __str__(self) -> str:
        """For people."""
        if not self.expired:
            return "nothing has expired"
        return (
            f"{self.expired} expired, late by {self.mean_ns} ns on average, half by {self.within_ns(50)} ns at most, "
            f"99 % by {self.within_ns(99)} ns, the latest by {self.max_ns} ns"
        )


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A clock of a VM that isn't where it is to be: of a `Verified`."""

    code: Literal["vm-offset", "other-vcpus", "report", "condition", "checkpoint"]
    """The contradicted side: the VM's own offset, the other vCPUs, the report or the checkpoint that was given, or a
    timer's CVAL."""
    text: str
    """The sentence."""
    vcpu: int | None
    """The vCPU; None where it is all of them."""
    clock: str
    """The counter's register, or the timer."""
    ahead_ticks: int | None
    """Ticks by which it is ahead, at least; negative where it is behind; None for a timer."""

    def __str__(self) -> str:
        """For people."""
        return self.text


@dataclass(frozen=True, slots=True)
class Verified:
    """A look at a VM's clocks: what `GuestVm.verify` returns. True where all is as it is to be."""

    state: Literal["open", "paused", "restoring"]
    """State of the VM. One that is being restored has a provisional offset."""
    looked_at: int
    """The host's count at the end of the look."""
    vcpus: int
    """Number of vCPUs that were looked at."""
    virtual_offset: tuple[int, int] | None
    """The virtual counter's offset as all vCPUs' reads allow it: the lowest, and ticks above it. None for a guest with
    EL2, where each vCPU has its own CNTVOFF_EL2 in it, and where the vCPUs don't agree."""
    physical_offset: tuple[int, int] | None
    """The physical counter's. None where KVM has no register of it, and where the vCPUs don't agree."""
    timers: bool
    """The timers were compared: KVM computes ISTATUS when it is read (Linux up to 6.17), on 64 bits."""
    mismatches: tuple[Mismatch, ...]
    """The clocks that aren't where they are to be."""

    def __bool__(self) -> bool:
        """True where there is none."""
        return not self.mismatches

    @property
    def error_bound_ticks(self) -> int:
        """Ticks by which a counter can be off without having been found: the reads' own width."""
        return max((known[1] for known in (self.virtual_offset, self.physical_offset) if known), default=2**64 - 1)

    def __str__(self) -> str:
        """For people."""
        if self.mismatches:
            return "; ".join(map(str, self.mismatches))
        return f"all clocks of {self.vcpus} vCPUs are where they are to be, within {self.error_bound_ticks} ticks"


class LatchMismatch(NamedTuple):
    """A timer's interrupt whose pending latch isn't as its line has to be."""

    vcpu: int
    timer: Timer
    irq: int
    """Interrupt id of the timer."""
    line: bool
    """The level that the line has to have."""
    pending: bool
    """The latch: without the line, the guest takes one interrupt that no timer accounts for; the line without the latch
    is one that an interrupt controller in user space has to raise."""


class GuestLimit(NamedTuple):
    """Length of a jump from which a Linux guest feels it (docs/limits.md), and whether the plan's jump is as long."""

    name: str
    """Effect of the jump: "soft lockup", "RCU stall", "workqueue lockup", "hung task", "softdog", "timekeeping
    overflow", "sched_clock wrap"."""
    earliest_ns: int
    """The shortest jump that can have the effect, in nanoseconds, on a guest in which nothing has waited before it: an
    RCU grace period, work or a task that has is as much nearer to its limit."""
    at_ns: int
    """The length from which the guest's last look at its clock no longer matters, in nanoseconds."""
    of: str
    """Guests that have the effect: "a busy vCPU", "a guest with a grace period under way"."""
    reached: Literal["not crossed", "possible", "certain"]
    """Effect of the plan's jump; "certain" for the guests of `of` alone."""


@dataclass(frozen=True, slots=True)
class SyncBound:
    """Bound on the distance of the host's wall clock from UTC, and who says so.

    `max_error_ns + age_ns * holdover_ppb / 10**9`, rounded up, bounds it at the stamp that this goes with.
    `guestclock.sync` asks chrony or ClockBound; a caller that knows its own clocks gives the numbers.
    """

    max_error_ns: int
    """|CLOCK_REALTIME - UTC| was at most this, in nanoseconds, when it was last known."""
    age_ns: int = 0
    """Age of that knowledge at the stamp, in nanoseconds."""
    holdover_ppb: int = 50_000
    """Growth of the error since, at most, in parts per billion: 50 ppm is a plain crystal oscillator's."""
    quality: Literal["declared", "chrony", "clockbound", "kernel-unverified"] = "declared"
    """Origin of the bound: the caller, a daemon that was asked, or the kernel's maxerror, which nobody has verified."""
    tai_offset_s: int | None = None
    """TAI - UTC in seconds, from somebody who knows it better than the kernel; None: the kernel's word."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A host counter and the host's clocks at one instant, and what vouches for them.

    A stamp is host-wide: what a time namespace (time_namespaces(7)) adds to this process's clocks is taken off. So
    `count` may differ from the counter's `read` by a constant.
    """

    count: int
    """The host's counter as the initial time namespace reads it, in ticks."""
    frequency_hz: int
    source: str
    """Name of the counter: cntvct_el0, clock_monotonic_raw, clock_monotonic, tsc or manual; clock_monotonic_raw_local
    or clock_monotonic_local where the time namespace isn't known, so that the count isn't host-wide."""
    realtime_ns: int
    """CLOCK_REALTIME, nanoseconds since 1970."""
    width_ns: int
    """Distance of the two reads at most, in nanoseconds: the whole width of the bracket."""
    tai_offset_s: int | None
    """TAI - UTC in seconds by the kernel; None where it doesn't know."""
    synchronized: bool | None
    """True if the kernel believes its wall clock to be synchronised; None where nobody was asked."""
    max_error_ns: int | None
    """The kernel's maximum error of its wall clock: a claim, not a proof."""
    leap: str
    """The leap-second state: none, insert, delete, in-progress, passed or unknown."""
    machine_id: str | None
    """The installation, made from /etc/machine-id for guestclock alone, as hexadecimal."""
    boot_id: str | None
    """The kernel's boot id, as hexadecimal."""
    sync: SyncBound | None = None
    """Bound of the wall clock by somebody who vouches for it; None where nobody was declared to."""
    rate_ppb: int | None = None
    """Rate of the counter over its nominal frequency, in parts per billion, by the kernel's correction of it."""
    boottime_ns: int | None = None
    """CLOCK_BOOTTIME, in nanoseconds since the host's boot: at `count` it read this, or up to `slept_width_ns` less."""
    slept_ns: int | None = None
    """CLOCK_BOOTTIME - CLOCK_MONOTONIC, the time that the host was suspended since its boot, in nanoseconds: this, or
    up to `slept_width_ns` more."""
    slept_width_ns: int | None = None
    """Distance of the reads that the other two were taken between, and a tick of the counter, in nanoseconds."""

    def __post_init__(self) -> None:
        """Refuses a part of the boot time."""
        if len({self.boottime_ns is None, self.slept_ns is None, self.slept_width_ns is None}) > 1:
            raise ValueError("boottime_ns, slept_ns and slept_width_ns are given together, or not at all")

    @property
    def tai_ns(self) -> int | None:
        """CLOCK_TAI, in nanoseconds; None where TAI - UTC isn't known."""
        return None if self.tai_offset_s is None else self.realtime_ns + self.tai_offset_s * 10**9

    @property
    def error_bound_ns(self) -> int | None:
        """Distance of `realtime_ns` from UTC at the instant of `count` at most, in ns; None where nobody knows.

        The bracket's width, the bound of `sync` and what that has grown by; or the kernel's own maximum error, which
        nobody verified. Nobody knows where the kernel says that it isn't synchronised, where its maximum error has
        reached 16 s, the end of its range.
        """
        return _vouched(self)[0]

    @property
    def vouched(self) -> str:
        """Name of who vouches for that bound (`SyncBound.quality`), or the reason why nobody does."""
        return _vouched(self)[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinuxGuest:
    """Settings of a Linux guest that decide how it takes a jump of its clock; the defaults are the kernel's.

    A plan's limits follow from them (docs/limits.md). 0 says that a detector is off.
    """

    watchdog_thresh_s: int = 10
    """kernel.watchdog_thresh, in seconds: a soft lockup is reported after twice as long."""
    rcu_stall_s: int = 21
    """rcupdate.rcu_cpu_stall_timeout, in seconds."""
    workqueue_s: int = 30
    """workqueue.watchdog_thresh, in seconds."""
    hung_task_s: int = 120
    """kernel.hung_task_timeout_secs, in seconds."""
    softdog_s: tuple[int, int] | None = None
    """A watchdog that resets the guest by a timer of the guest's own clock: its timeout, and the longest time between
    two feedings, in seconds. systemd feeds after half of the timeout."""
    cpu_max_us: tuple[int, int] | None = None
    """The tightest CPU quota of the guest's cgroups, as cpu.max has it: CPU time in each period, and the period, in
    microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """A restore's choices besides the policy, as one value: the keywords of `plan`, `restore` and `restoring`.

    `vm.restore(checkpoint, Advance(), options=options)`; keywords beside it change single fields. `GuestVm.plan` says
    what each means.
    """

    views: Views = "preserve"
    elapsed: Elapsed | None = None
    sync: SyncBound | None = None
    rate_error_ppb: int = 0
    timers: Deadlines = "absolute"
    intent: Intent | None = None
    guest: LinuxGuest | None = None
    strict: bool = False


class OptionKeywords(TypedDict, total=False):
    """The fields of `Options`, for annotations of functions that hand keywords on."""

    views: Views
    elapsed: Elapsed | None
    sync: SyncBound | None
    rate_error_ppb: int
    timers: Deadlines
    intent: Intent | None
    guest: LinuxGuest | None
    strict: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """Guest time still to be given back, and the steps that give it: `Checkpoint.backlog`."""

    remaining_ticks: int
    """Ticks by which the guest's counters are behind."""
    step_ns: int
    """The largest step, in nanoseconds."""
    interval_ns: int
    """The shortest time between two steps, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A guest's virtual counter and the host's wall clock, read together: `Checkpoint.reading`."""

    count: int
    """The guest's virtual counter, in ticks."""
    realtime_ns: int
    """CLOCK_REALTIME of the host, nanoseconds since 1970."""
    width_ns: int = 0
    """Time between the two reads, in nanoseconds, at most."""


class TracedCall(NamedTuple):
    """One primitive call that a `TracedVm` has recorded, and its answer. As text it is the call."""

    vm: str
    """The VM's name."""
    verb: str | None
    """The operation that it was made for: opt_in, checkpoint, plan, prepare (entering the block of `restoring`), apply,
    release, give_up, pause, resume or catch_up; None for a call of the VMM's own."""
    text: str
    """The call: "set_counter_offset", "set_one_reg 0 TIMER_CVAL"."""
    operation: str
    """Kind of the call: reg_list, stopped, get_one_reg, set_one_reg, set_counter_offset or interrupts. On KVM each is
    an ioctl, but for stopped (two on the VM's descriptor, or one on the vGIC's) and interrupts (one a timer)."""
    vcpu: int | None
    reg: int | None
    """KVM's id of the register."""
    value: int | None
    """Value written or read: a register's, an offset, or the number of registers listed; None for neither."""
    errno: int
    """Answer of the call: 0 for success."""
    began_ns: int
    """Begin, in nanoseconds of CLOCK_MONOTONIC."""
    took_ns: int
    """Duration, in nanoseconds."""

    def __str__(self) -> str:
        return self.text


class CallTotals(NamedTuple):
    """Sums over all primitive calls of a kind that a `TracedVm` has made."""

    made: int
    """Number of calls."""
    busy: int
    """Number of calls that answered EBUSY."""
    failed: int
    """Number of calls that answered another errno."""
    took_ns: int
    """Time until the answers, in nanoseconds."""


class Lines(NamedTuple):
    """The timers of n vCPUs at one instant. Two bool arrays of shape (timers, n), a row for each of `Timer`."""

    istatus: "NDArray[np.bool_]"
    """True where the timer condition is met."""
    line: "NDArray[np.bool_]"
    """True where the interrupt line is high: enabled, not masked, and the condition met."""
    deadlines: "NDArray[np.uint64]"
    """The count at which the first of each vCPU's lines goes high by itself, as `ClockBank.next_deadlines` has it."""


class Changes(NamedTuple):
    """Lines whose level has changed: three arrays of one length."""

    vcpus: "NDArray[np.int64]"
    """Handles of the vCPUs."""
    timers: "NDArray[np.uint8]"
    """Numbers of the timers, as `Timer` has them."""
    levels: "NDArray[np.bool_]"
    """Levels of the lines now."""


class Expired(NamedTuple):
    """Timers that have fired, by deadline, then by vCPU and timer: three arrays of one length."""

    vcpus: "NDArray[np.int64]"
    """Handles of the vCPUs."""
    timers: "NDArray[np.uint8]"
    """Numbers of the timers, as `Timer` has them."""
    deadlines: "NDArray[np.uint64]"
    """The counts of the bank's counter at which they were due."""
