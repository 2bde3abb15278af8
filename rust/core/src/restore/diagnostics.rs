//! Diagnostics of a plan, as codes with their facts: assumptions of its bound, unsupported and degraded parts, and
//! warnings. [`words`](crate::restore::words) has the sentences.

use crate::checkpoint::Unknown;
use crate::guest::Limit;
use crate::restore::refusal::Refusal;
use crate::time::{ElapsedBy, Sleep, SyncBound, Unvouched};
use alloc::vec::Vec;

/// One of the two instants of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Side {
    /// The checkpoint.
    Saved,
    /// The plan's sample.
    Here,
}

/// Fact that the caller of a plan should know.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Diagnostic {
    /// The counters were measured, and are assumed not to have moved between the reads.
    CountersStoodStill,
    /// The elapsed time is the caller's.
    ElapsedGiven,
    /// The counter here is assumed to count from the plan to the release, at its nominal frequency within 500 ppm.
    NominalRateHere,
    /// The counter is one object of this process.
    OneCounter,
    /// That object has counted all the time: nothing stopped this host without its kernel's knowing.
    HostNotSuspended,
    /// The counter is the checkpoint's by the caller's word, and has counted all the time.
    SameCounter,
    /// The counter is the checkpoint's by the boot id, and has counted all the time: neither this host nor a copy of it
    /// was itself suspended.
    SameBoot,
    /// The host is assumed not to have slept: a stamp doesn't say how long it did.
    NotSlept,
    /// The kernel's boot time is assumed to have counted the host's sleep.
    BootTimeCountedSleep,
    /// No vCPU is created after the restore: it would undo counters that were set by value.
    NoVcpuLater,
    /// The wall clocks of both hosts are assumed to be within the caller's error of each other.
    WallClocksAgree,
    /// A wall clock is assumed to have been within its bound.
    WallClockWithin {
        /// The instant.
        side: Side,
        /// The bound, or the reason why there is none.
        bound: Result<SyncBound, Unvouched>,
    },
    /// Neither wall clock is assumed to be smeared.
    NotSmeared,
    /// No leap second is assumed to have come between the two instants: TAI isn't known on both sides.
    NoLeapSecond,

    /// Only the virtual counter and timer can be restored here.
    OnlyVirtual,
    /// The guest's counters run at another frequency than the guest takes them for, by the caller's leave.
    WrongRate {
        /// Frequency of the guest.
        saved_hz: u64,
        /// Frequency of the counter here.
        host_hz: u64,
    },
    /// CNTPCT_EL0 jumps, since the virtual counter's offset is used for both.
    PhysicalJumps {
        /// The jump, in ticks.
        ticks: i64,
    },
    /// The checkpoint has no physical timer.
    PhysicalTimerMissing,

    /// The physical counter gets an offset, which traps on a CPU without CNTPOFF_EL2.
    PhysicalTraps,

    /// The restore opts the VM in to one offset, for good.
    OptsIn,
    /// Kernels before 7.3 miscompute the deadline of an enabled physical timer that traps.
    PhysicalTimerMisfires {
        /// The vCPU.
        vcpu: usize,
        /// The timer's CVAL.
        cval: u64,
        /// The physical offset.
        offset: i64,
    },
    /// A counter or its offset reaches the counter's width in hardware, or the least width that it may have.
    ReachesWidth {
        /// The width in bits.
        bits: u8,
        /// True if the backend states that width.
        stated: bool,
    },
    /// More time has passed than the policy's cap.
    Capped {
        /// Ticks that the guest gets.
        added_ticks: u64,
    },
    /// The guest's time jumps further than parts of a Linux guest tolerate.
    LargeJump {
        /// The jump, in nanoseconds.
        jump_ns: u128,
        /// The limits that the jump crosses, or may cross.
        limits: Vec<Limit>,
    },
    /// The counter is believed, and the wall clock says another time.
    WallClockContradicts {
        /// Nanoseconds between the two.
        disagreement_ns: u128,
        /// Nanoseconds that may be.
        allowed_ns: u128,
    },
    /// The host slept, and its counter counted on.
    CountedThroughSleep {
        /// The shortest sleep that the kernel's sum allows, in nanoseconds.
        least_ns: u64,
    },
    /// The counter stood still while the host slept, or went back.
    CounterStopped {
        /// The clock that tells the time instead; the counter where there is none.
        by: ElapsedBy,
        /// The host's sleep.
        sleep: Sleep,
    },
    /// The caller goes by a counter that was reset since the checkpoint.
    CounterWasReset,
    /// The intent is a live update, and the evidence says that this is another counter.
    LiveUpdateElsewhere,
    /// The only bound of a wall clock is the kernel's maximum error, which nobody verified.
    KernelUnverified {
        /// The instant.
        side: Side,
        /// The kernel's maximum error.
        max_error_ns: u64,
    },
    /// The kernel says that a wall clock isn't synchronised, although the caller declared a bound.
    Unsynchronized {
        /// The instant.
        side: Side,
    },
    /// The backlog can't be paid back here: the counters are set by value.
    BacklogByValue,
    /// The backlog can't be paid back by the deadline.
    BacklogLate(Refusal),
    /// A step of the backlog is so large that a guest's watchdogs may take it for a lockup.
    LargeStep {
        /// The step.
        step_ns: u64,
    },
    /// The guest's time seems to pass more than twice as fast while the backlog is paid back.
    FastCatchUp {
        /// The rate in thousandths.
        rate_permille: u128,
    },
    /// The checkpoint has an unknown key or register, which is passed on unchanged.
    PassedOn(Unknown),
}
