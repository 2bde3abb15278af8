//! Evidence of two stamps: whether they are of one counter, and whether it counted all the time.

use crate::time::calendar::month_ends_between;
use crate::time::frequency::{Frequency, NS_PER_S};
use crate::time::stamp::{BootTime, Stamp};
use core::fmt;

/// Largest difference of rate between an honest counter and the wall clock: the kernel's limit on slewing (MAXFREQ in
/// include/linux/timex.h).
pub const RATE_TOLERANCE_PPM: u128 = 500;

/// Error of one sleep's length, in nanoseconds: real-time clocks count whole seconds (`timekeeping_inject_sleeptime64`
/// and `rtc_resume`; the kernel keeps the errors of many sleeps from adding up, `timekeeping_suspend`).
pub const SLEEP_ERROR_NS: u64 = NS_PER_S;

const MILLION: u128 = 1_000_000;

/// Sleep of a host between two stamps of one boot, by the kernel's own sum of its sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Sleep {
    /// A stamp doesn't say how long the host had slept.
    Unknown,
    /// None, within the widths of both reads.
    Absent,
    /// At least and at most so long, in nanoseconds.
    Grew {
        /// At least.
        least_ns: u64,
        /// At most.
        most_ns: u64,
    },
    /// The sum has become smaller, which it doesn't on one host.
    Shrank,
}

impl Sleep {
    fn between(saved: Option<BootTime>, here: Option<BootTime>) -> Self {
        let (Some(saved), Some(here)) = (saved, here) else { return Self::Unknown };
        let end = |of: BootTime| of.slept_ns.saturating_add(of.width_ns);
        if here.slept_ns > end(saved) {
            let most_ns = end(here).saturating_sub(saved.slept_ns);
            Self::Grew { least_ns: here.slept_ns - end(saved), most_ns }
        } else if saved.slept_ns > end(here) {
            Self::Shrank
        } else {
            Self::Absent
        }
    }
}

impl fmt::Display for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not known"),
            Self::Absent => f.write_str("0 ns"),
            Self::Grew { least_ns, most_ns } => write!(f, "{least_ns} to {most_ns} ns"),
            Self::Shrank => f.write_str("less than none"),
        }
    }
}

/// Facts for and against this being the counter that the checkpoint was taken by, and against its having counted all the
/// time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and none excludes another")]
pub struct Evidence {
    /// The same kind of counter, of which both counts are host-wide.
    pub source: bool,
    /// At the same frequency.
    pub frequency: bool,
    /// On the same installation; `None` where a machine id is missing. Shown, and decides nothing: containers have ids
    /// of their own, and golden images share one.
    pub machine: Option<bool>,
    /// In the same boot; `None` where a boot id is missing.
    pub boot: Option<bool>,
    /// At another boot the counter had a lower count than the checkpoint's: it was reset in between.
    pub reset: bool,
    /// It hasn't gone backwards.
    pub forward: bool,
    /// Sleep of the host in between; of one boot only.
    pub sleep: Sleep,
    /// Nanoseconds that it counted; negative where it went backwards.
    pub counted_ns: i128,
    /// Nanoseconds by which the boot time grew; `None` for two boots, and where a stamp has no boot time.
    pub boot_ns: Option<i128>,
    /// Nanoseconds by which the wall clock went on: by TAI where both sides know it.
    pub wall_ns: i128,
    /// Largest distance of the time that it counted from the wall clock's that is allowed: by both brackets, both bounds as far as there are
    /// any, the rate, and a leap second where one may have come.
    pub allowed_ns: u128,
    /// Somebody vouches for both wall clocks.
    pub vouched: bool,
}

impl Evidence {
    /// Returns whether the counter is known to have counted all the time in between: in one boot, without a sleep.
    #[must_use]
    pub fn kept_count(&self) -> bool {
        self.source && self.frequency && self.boot != Some(false) && self.forward && self.sleep == Sleep::Absent
    }

    /// Compares two stamps.
    #[must_use]
    pub fn between(saved: &Stamp, here: &Stamp) -> Self {
        let ticks = here.count.since(saved.count).cast_signed();
        let same = |saved: Option<[u8; 16]>, here: Option<[u8; 16]>| Some(saved? == here?);
        let boot = same(saved.boot_id, here.boot_id);
        let times = saved.boot_time.zip(here.boot_time).filter(|_| boot != Some(false));
        let wall_ns = wall_clocks(saved, here);
        let bounds = [saved, here].map(|stamp| stamp.vouched().map_or(0, |sync| u128::from(sync.error_ns())));
        let leap_ns = if leap_may_lie_between(saved, here) { NS_PER_S } else { 0 };
        Self {
            source: saved.source == here.source && !here.source.is_local(),
            frequency: saved.frequency == here.frequency,
            machine: same(saved.machine_id, here.machine_id),
            boot,
            reset: boot == Some(false) && (ticks < 0 || counted_since_boot(here) > ticks.unsigned_abs().into()),
            forward: ticks >= 0,
            sleep: times.map_or(Sleep::Unknown, |(saved, here)| Sleep::between(Some(saved), Some(here))),
            counted_ns: here.frequency.signed_ticks_to_ns(ticks),
            boot_ns: times.map(|(saved, here)| i128::from(here.boottime_ns) - i128::from(saved.boottime_ns)),
            wall_ns,
            // Both roundings to a nanosecond, both brackets, both bounds, and the rate.
            allowed_ns: 2
                + u128::from(saved.width_ns)
                + u128::from(here.width_ns)
                + bounds[0]
                + bounds[1]
                + u128::from(leap_ns)
                + wall_ns.unsigned_abs() * RATE_TOLERANCE_PPM / MILLION,
            vouched: saved.is_vouched() && here.is_vouched(),
        }
    }

    /// Returns whether both stamps are of one counter in one boot.
    #[must_use]
    pub fn one_boot(&self) -> bool {
        self.source && self.frequency && self.boot == Some(true)
    }

    /// Distance of the time that it counted from the wall clock's, in nanoseconds.
    #[must_use]
    pub const fn disagreement_ns(&self) -> u128 {
        self.counted_ns.abs_diff(self.wall_ns)
    }

    /// Returns whether the wall clocks contradict the counter: a clock was stepped, or the counter stood still.
    #[must_use]
    pub const fn contradicted(&self) -> bool {
        self.disagreement_ns() > self.allowed_ns
    }

    /// Returns whether the counter has counted all the time, as far as the host itself knows: it went forward, and the
    /// host didn't sleep, or it counted through the sleep as the boot time did.
    #[must_use]
    pub(crate) fn counted_on(&self, widths_ns: u128) -> bool {
        match self.sleep {
            Sleep::Unknown | Sleep::Absent => self.forward,
            Sleep::Grew { .. } => self.forward && self.boot_ns.is_some_and(|boot_ns| self.fits(boot_ns, widths_ns)),
            Sleep::Shrank => false,
        }
    }

    /// Longest sleep through which the counter may have stood still although it counted on, in nanoseconds: one that is
    /// no longer than what the rate may account for, and what the kernel may have taken it for too little.
    #[must_use]
    pub(crate) fn hidden_sleep_ns(&self, widths_ns: u128) -> u64 {
        match (self.sleep, self.boot_ns) {
            (Sleep::Grew { least_ns, most_ns }, Some(boot_ns))
                if self.fits(boot_ns - i128::from(least_ns), widths_ns) =>
            {
                most_ns.saturating_add(SLEEP_ERROR_NS)
            }
            _ => 0,
        }
    }

    /// Returns whether the counter may have counted this time, within both widths and the rate.
    fn fits(&self, ns: i128, widths_ns: u128) -> bool {
        let longer = self.counted_ns.unsigned_abs().max(ns.unsigned_abs());
        self.counted_ns.abs_diff(ns) <= 2 + widths_ns + longer * RATE_TOLERANCE_PPM / MILLION
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |same: Option<bool>| same.map_or("unknown", yes);
        write!(
            f,
            "same source: {}, same frequency: {}, same machine: {}, same boot: {}, went forward: {}, host slept: {}, off \
             the wall clock by {} ns where {} are allowed",
            yes(self.source),
            yes(self.frequency),
            known(self.machine),
            known(self.boot),
            yes(self.forward),
            self.sleep,
            self.disagreement_ns(),
            self.allowed_ns
        )?;
        if self.reset { f.write_str(", reset since") } else { Ok(()) }
    }
}

const fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// Ticks that the counter has counted since the boot at least: those of the time that the host was awake, at the slowest
/// rate that is tolerated. 0 where the boot time isn't known.
fn counted_since_boot(here: &Stamp) -> u128 {
    let Some(BootTime { boottime_ns, slept_ns, width_ns }) = here.boot_time else { return 0 };
    let awake_ns = boottime_ns.saturating_sub(slept_ns).saturating_sub(width_ns).saturating_sub(width_ns);
    here.frequency.ns_to_ticks(awake_ns) * (MILLION - RATE_TOLERANCE_PPM) / MILLION
}

/// Returns the time by which the wall clock went on, in nanoseconds: by TAI, which has no leap seconds, where both sides know it.
pub(crate) fn wall_clocks(saved: &Stamp, here: &Stamp) -> i128 {
    match (saved.tai_ns(), here.tai_ns()) {
        (Some(saved), Some(here)) => here - saved,
        _ => i128::from(here.realtime_ns) - i128::from(saved.realtime_ns),
    }
}

/// Returns whether a leap second may lie between two stamps that don't both know TAI: the interval between them, wider
/// by both bounds, reaches over the end of a UTC month. A clock may read its last second twice.
pub(crate) fn leap_may_lie_between(saved: &Stamp, here: &Stamp) -> bool {
    if saved.tai_offset_s.is_some() && here.tai_offset_s.is_some() {
        return false;
    }
    let reach = |stamp: &Stamp| i128::from(stamp.error_bound_ns().unwrap_or(stamp.width_ns));
    let from_ns = i128::from(saved.realtime_ns) - reach(saved);
    month_ends_between(from_ns, i128::from(here.realtime_ns) + reach(here) + i128::from(NS_PER_S))
}

/// The longest that `ticks` of an honest counter last, in nanoseconds, rounded up: it may be as slow as is tolerated.
#[must_use]
pub fn longest_ns(frequency: Frequency, ticks: u64) -> u64 {
    // Below 2^114, and the divisor not 0.
    let ticks = u128::from(ticks) * u128::from(NS_PER_S) * MILLION;
    let longest = ticks.div_ceil(u128::from(frequency.hz()) * (MILLION - RATE_TOLERANCE_PPM));
    u64::try_from(longest).unwrap_or(u64::MAX)
}
