//! The time between a checkpoint and an instant here: whether one counter can tell it, what the wall clocks say, and
//! how far off that may be.

use crate::time::bound::ErrorBound;
use crate::time::frequency::{Frequency, NS_PER_S};
use crate::time::source::SourceName;
use crate::time::stamp::Stamp;
use crate::time::wall_clock::{SyncBound, Unvouched};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;

/// How much faster or slower than the wall clock an honest counter may run: the kernel's limit on slewing
/// (MAXFREQ in include/linux/timex.h).
pub const RATE_TOLERANCE_PPM: u128 = 500;

/// The longest time that is believed of two wall clocks unless the caller decides: 366 days. A host whose clock was
/// never set is years off.
pub const MAX_ELAPSED_NS: u64 = 366 * 86_400 * NS_PER_S;

/// What speaks for and against this being the counter that the checkpoint was taken by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// The same kind of counter.
    pub source: bool,
    /// At the same frequency.
    pub frequency: bool,
    /// On the same installation; `None` where a machine id is missing.
    pub machine: Option<bool>,
    /// In the same boot. Shown, but neither necessary (kexec) nor sufficient (a host that was itself restored).
    pub boot: Option<bool>,
    /// It hasn't gone backwards.
    pub forward: bool,
    /// How far the time that it counted is from the wall clock's, in nanoseconds.
    pub disagreement_ns: u128,
    /// How far it may be.
    pub allowed_ns: u128,
}

impl Evidence {
    /// Compares two stamps.
    #[must_use]
    pub fn between(saved: &Stamp, here: &Stamp) -> Self {
        let ticks = here.count.since(saved.count).cast_signed();
        let counted = here.frequency.signed_ticks_to_ns(ticks);
        let elapsed = by_the_wall_clocks(saved, here);
        let same = |saved: Option<[u8; 16]>, here: Option<[u8; 16]>| Some(saved? == here?);
        Self {
            source: saved.source == here.source,
            frequency: saved.frequency == here.frequency,
            machine: same(saved.machine_id, here.machine_id),
            boot: same(saved.boot_id, here.boot_id),
            forward: ticks >= 0,
            disagreement_ns: counted.abs_diff(elapsed),
            // Both roundings to a nanosecond, both brackets, and the rate.
            allowed_ns: 2
                + u128::from(saved.width_ns)
                + u128::from(here.width_ns)
                + elapsed.unsigned_abs() * RATE_TOLERANCE_PPM / 1_000_000,
        }
    }

    /// Whether it is the same counter. An unknown machine id is enough only for a counter that belongs to no machine.
    #[must_use]
    pub fn decides(&self, source: SourceName) -> bool {
        self.but_for_the_wall_clock(source) && self.agrees()
    }

    /// Whether all speaks for it but the wall clock. That was stepped, then, or the counter stood still.
    #[must_use]
    pub fn contradicted(&self, source: SourceName) -> bool {
        self.but_for_the_wall_clock(source) && !self.agrees()
    }

    fn but_for_the_wall_clock(&self, source: SourceName) -> bool {
        self.source
            && self.frequency
            && (self.machine == Some(true) || self.machine.is_none() && source == SourceName::MANUAL)
            && self.forward
    }

    const fn agrees(&self) -> bool {
        self.disagreement_ns <= self.allowed_ns
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |same: Option<bool>| same.map_or("unknown", yes);
        write!(
            f,
            "same source: {}, same frequency: {}, same machine: {}, same boot: {}, went forward: {}, off the wall clock by \
             {} ns where {} are allowed",
            yes(self.source),
            yes(self.frequency),
            known(self.machine),
            known(self.boot),
            yes(self.forward),
            self.disagreement_ns,
            self.allowed_ns
        )
    }
}

const fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// The longest that `ticks` of an honest counter last, in nanoseconds, rounded up: it may be as slow as is tolerated.
#[must_use]
pub fn longest_ns(frequency: Frequency, ticks: u64) -> u64 {
    const MILLION: u128 = 1_000_000;
    // Below 2^114, and the divisor not 0.
    let ticks = u128::from(ticks) * u128::from(NS_PER_S) * MILLION;
    let longest = ticks.div_ceil(u128::from(frequency.hz()) * (MILLION - RATE_TOLERANCE_PPM));
    u64::try_from(longest).unwrap_or(u64::MAX)
}

/// A clock of the host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum HostClock {
    /// The host's counter, in ticks.
    Counter,
    /// CLOCK_REALTIME, in nanoseconds.
    Realtime,
}

impl fmt::Display for HostClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "host's counter (ticks)",
            Self::Realtime => "wall clock (ns)",
        })
    }
}

/// Everything that speaks for or against knowing the time between two hosts' instants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownElapsed {
    /// The bound of the checkpoint's wall clock, or why it has none.
    pub saved: Result<SyncBound, Unvouched>,
    /// The bound of the wall clock here, or why it has none.
    pub here: Result<SyncBound, Unvouched>,
    /// The evidence that this isn't the checkpoint's counter.
    pub evidence: Evidence,
}

impl UnknownElapsed {
    /// One side in words: its bound and who vouches for it, or why nobody does.
    #[must_use]
    pub fn side(side: &Result<SyncBound, Unvouched>) -> String {
        match side {
            Ok(sync) => format!("within {} ns ({})", sync.max_error_ns, sync.quality.name()),
            Err(why) => format!("{why}"),
        }
    }
}

/// Why the time that has passed isn't known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ElapsedError {
    /// A clock reads less than it did.
    #[error(
        "the {clock} read {saved} at the checkpoint and {host} here: it went backwards, so the time that has passed isn't \
         known"
    )]
    ClockWentBackwards {
        /// The clock.
        clock: HostClock,
        /// The checkpoint's reading.
        saved: i128,
        /// The reading here.
        host: i128,
    },
    /// Nobody vouches for the time that has passed.
    #[error(
        "this isn't the counter that the checkpoint was taken by ({}), and nobody knows how much time has passed: of the \
         wall clock at the checkpoint, {}; of the one here, {}",
        .0.evidence,
        UnknownElapsed::side(&.0.saved),
        UnknownElapsed::side(&.0.here)
    )]
    Unknown(Box<UnknownElapsed>),
    /// So much time that a wall clock is more likely to be wrong.
    #[error(
        "the wall clocks say that {elapsed_ns} ns have passed since the checkpoint, and more than {longest_ns} ns aren't \
         believed"
    )]
    TooLong {
        /// By the wall clocks.
        elapsed_ns: u64,
        /// The most that is believed.
        longest_ns: u64,
    },
}

/// The time that has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Elapsed {
    /// In ticks of the guest's counter, rounded down.
    pub ticks: u128,
    /// How far off, but for the checkpoint's own reads.
    pub bound: ErrorBound,
}

/// How much time has passed, on one counter: exact, whatever the delay.
pub(crate) fn by_one_counter(saved: &Stamp, here: &Stamp) -> Result<Elapsed, ElapsedError> {
    if saved.count.is_after(here.count) {
        return Err(ElapsedError::ClockWentBackwards {
            clock: HostClock::Counter,
            saved: saved.count.0.into(),
            host: here.count.0.into(),
        });
    }
    Ok(Elapsed { ticks: here.count.since(saved.count).into(), bound: ErrorBound::default() })
}

/// How far the wall clock went, in nanoseconds: by TAI, which has no leap seconds, where both sides know it.
fn by_the_wall_clocks(saved: &Stamp, here: &Stamp) -> i128 {
    match (saved.tai_ns(), here.tai_ns()) {
        (Some(saved), Some(here)) => here - saved,
        _ => i128::from(here.realtime_ns) - i128::from(saved.realtime_ns),
    }
}

/// How much time has passed by two wall clocks, and how far off that may be: by both brackets, by what is vouched for
/// on both sides or assumed of their difference, and by a tick for rounding.
pub(crate) fn by_two_wall_clocks(
    saved: &Stamp,
    here: &Stamp,
    assumed_ns: Option<u64>,
    longest_ns: Option<u64>,
) -> Result<Elapsed, ElapsedError> {
    let brackets = ErrorBound {
        rounding_ticks: 1,
        saved_bracket_ns: saved.width_ns,
        here_bracket_ns: here.width_ns,
        ..ErrorBound::default()
    };
    let bound = match (assumed_ns, saved.vouched(), here.vouched()) {
        (Some(assumed_ns), there, _) if there != Err(Unvouched::UnknownHost) => ErrorBound { assumed_ns, ..brackets },
        (None, Ok(there), Ok(here)) => ErrorBound {
            saved_sync_ns: there.max_error_ns,
            saved_holdover: there.held_over(),
            here_sync_ns: here.max_error_ns,
            here_holdover: here.held_over(),
            ..brackets
        },
        (_, saved_by, here_by) => {
            let unknown = UnknownElapsed { saved: saved_by, here: here_by, evidence: Evidence::between(saved, here) };
            return Err(ElapsedError::Unknown(Box::new(unknown)));
        }
    };
    let elapsed = by_the_wall_clocks(saved, here);
    let elapsed = u64::try_from(elapsed).map_err(|_| ElapsedError::ClockWentBackwards {
        clock: HostClock::Realtime,
        saved: saved.realtime_ns.into(),
        host: here.realtime_ns.into(),
    })?;
    match longest_ns {
        Some(longest_ns) if elapsed > longest_ns => Err(ElapsedError::TooLong { elapsed_ns: elapsed, longest_ns }),
        _ => Ok(Elapsed { ticks: here.frequency.ns_to_ticks(elapsed), bound }),
    }
}

/// Returns the time that has passed by the caller's word.
pub(crate) fn by_the_callers_word(elapsed_ns: u64, assumed_ns: u64, here: &Stamp) -> Elapsed {
    let bound = ErrorBound { rounding_ticks: 1, assumed_ns, ..ErrorBound::default() };
    Elapsed { ticks: here.frequency.ns_to_ticks(elapsed_ns), bound }
}

impl Elapsed {
    /// Returns the time after `ticks` more of this counter. On one counter that is exact; after any other time they are
    /// as far off as an honest counter's rate may be: most where it is slow, and counts fewer of them than pass.
    #[must_use]
    pub fn and_then(self, ticks: u64, same_counter: bool) -> Self {
        let rate = (u128::from(ticks) * RATE_TOLERANCE_PPM).div_ceil(1_000_000 - RATE_TOLERANCE_PPM);
        let rate_ticks = if same_counter { 0 } else { u64::try_from(rate).unwrap_or(u64::MAX) };
        Self { ticks: self.ticks + u128::from(ticks), bound: ErrorBound { rate_ticks, ..self.bound } }
    }
}

/// By how much faster the guest's counter runs from now on, in parts per billion, by what both kernels found of their
/// counters' rates; `None` where one of them doesn't know.
#[must_use]
pub fn rate_step_ppb(saved: &Stamp, here: &Stamp) -> Option<i64> {
    here.rate_ppb?.checked_sub(saved.rate_ppb?)
}
