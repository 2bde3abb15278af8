//! The kernel's clocks, read through the vDSO (clock_gettime(2), vdso(7)).
//!
//! A read orders as an acquire load does, where the kernel makes it one: it lies in a seqlock, and no later load can be
//! taken ahead of the second look at the sequence (lib/vdso/gettimeofday.c). On arm64 that look is ordered behind the
//! counter; on x86 the kernel relies on RDTSC behind a fence being ordered as a load is (`rdtsc_ordered`,
//! arch/x86/include/asm/msr.h).
//!
//! Every Linux has the four clocks. A read panics in one place alone: a sandbox without the vDSO that also forbids the
//! system call. There is no time to go on with there.

use guestclock_core::time::NS_PER_S;
use rustix::time::{ClockId, clock_gettime};

/// A reading: whole seconds, and the nanoseconds after them, below 10^9.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) s: i64,
    pub(crate) ns: i64,
}

impl Reading {
    /// The reading in nanoseconds, modulo 2^64: CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW and CLOCK_BOOTTIME take 584 years to wrap.
    pub(crate) const fn unsigned_ns(self) -> u64 {
        self.s.cast_unsigned().wrapping_mul(NS_PER_S).wrapping_add(self.ns.cast_unsigned())
    }
}

/// CLOCK_MONOTONIC in nanoseconds: for timing what a program does, not for a guest's time.
#[must_use]
pub fn monotonic_ns() -> u64 {
    monotonic().unsigned_ns()
}

pub(crate) fn monotonic() -> Reading {
    read(ClockId::Monotonic)
}

/// CLOCK_BOOTTIME, which goes on while the host is suspended.
pub(crate) fn boottime() -> Reading {
    read(ClockId::Boottime)
}

pub(crate) fn monotonic_raw() -> Reading {
    read(ClockId::MonotonicRaw)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
///
/// Never overflows: the kernel refuses to set the clock outside `0..KTIME_SEC_MAX` (`timespec64_valid_settod`).
pub(crate) fn realtime_ns() -> i64 {
    let now = read(ClockId::Realtime);
    now.s * NS_PER_S.cast_signed() + now.ns
}

fn read(clock: ClockId) -> Reading {
    let now = clock_gettime(clock);
    Reading { s: now.tv_sec, ns: now.tv_nsec }
}
