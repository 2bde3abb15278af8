//! The time between a checkpoint and an instant here: whether one counter can tell it, what the wall clocks say, and how
//! far off that may be.

use crate::counter::{CrossTimestamp, Frequency, NS_PER_S};
use crate::manual::ManualCounter;
use crate::refusal::Refusal;
use crate::wall_clock::{PPB, SyncBound, Unvouched, whole_ns};
use alloc::format;
use core::fmt;

/// How much faster or slower than the wall clock an honest counter may run: the kernel's limit on slewing
/// (MAXFREQ in include/linux/timex.h).
pub const RATE_TOLERANCE_PPM: u128 = 500;

/// The longest time that is believed of two wall clocks unless the caller decides: 366 days. A host whose clock was never
/// set is years off.
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
    /// Compares two cross-timestamps.
    #[must_use]
    pub fn between(saved: &CrossTimestamp, here: &CrossTimestamp) -> Self {
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
    pub fn decides(&self, source: &str) -> bool {
        self.but_for_the_wall_clock(source) && self.agrees()
    }

    /// Whether all speaks for it but the wall clock. That was stepped, then, or the counter stood still.
    #[must_use]
    pub fn contradicted(&self, source: &str) -> bool {
        self.but_for_the_wall_clock(source) && !self.agrees()
    }

    fn but_for_the_wall_clock(&self, source: &str) -> bool {
        self.source
            && self.frequency
            && (self.machine == Some(true) || self.machine.is_none() && source == ManualCounter::SOURCE)
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

/// How far the guest's counters may be from what the policy promises: a sum, kept by its terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ErrorBound {
    /// The reads that measured the guest's counters at the checkpoint, in ticks; 0 where they were computed.
    pub reads_ticks: u64,
    /// How the counters came out where they were set by value, in ticks.
    pub by_value_ticks: u64,
    /// Rounding the elapsed time down, in ticks.
    pub rounding_ticks: u64,
    /// The bracket of the checkpoint's cross-timestamp.
    pub saved_bracket_ns: u64,
    /// The bracket of the cross-timestamp here.
    pub here_bracket_ns: u64,
    /// The bound of the checkpoint's wall clock, when it was last known.
    pub saved_sync_ns: u64,
    /// The bound of the wall clock here.
    pub here_sync_ns: u64,
    /// What the checkpoint's has grown by since, in billionths of a nanosecond: exact, so that it is rounded once.
    pub saved_holdover: u128,
    /// What the one here has grown by, in the same.
    pub here_holdover: u128,
    /// What the caller assumes.
    pub assumed_ns: u64,
    /// By how much the elapsed time lies beyond what the policy lets through, in ticks: so much of its error, all of the
    /// above but the guest's own counters', has no effect.
    pub beyond_cap_ticks: u64,
}

/// A term of an error bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// In ticks of the guest's counter.
    Ticks(u64),
    /// In nanoseconds.
    Ns(u64),
    /// Ticks that it is less by, down to what the counters themselves are off.
    LessTicks(u64),
}

impl ErrorBound {
    /// The terms by name, those of 0 too.
    #[must_use]
    pub fn terms(&self) -> [(&'static str, Amount); 11] {
        [
            ("reading the counters at the checkpoint", Amount::Ticks(self.reads_ticks)),
            ("setting the counters by value", Amount::Ticks(self.by_value_ticks)),
            ("rounding the elapsed time", Amount::Ticks(self.rounding_ticks)),
            ("bracket at the checkpoint", Amount::Ns(self.saved_bracket_ns)),
            ("bracket here", Amount::Ns(self.here_bracket_ns)),
            ("wall clock at the checkpoint", Amount::Ns(self.saved_sync_ns)),
            ("wall clock here", Amount::Ns(self.here_sync_ns)),
            ("hold-over at the checkpoint", Amount::Ns(whole_ns(self.saved_holdover))),
            ("hold-over here", Amount::Ns(whole_ns(self.here_holdover))),
            ("assumed between the wall clocks", Amount::Ns(self.assumed_ns)),
            ("hidden by the cap", Amount::LessTicks(self.beyond_cap_ticks)),
        ]
    }

    /// The sum in ticks, all that is time together rounded up once; held at the end of its range.
    #[must_use]
    pub fn ticks(&self, frequency: Frequency) -> u64 {
        let counters = self.reads_ticks.saturating_add(self.by_value_ticks);
        let elapsed = self.elapsed_ticks(frequency).unwrap_or(u64::MAX);
        counters.saturating_add(elapsed.saturating_sub(self.beyond_cap_ticks))
    }

    /// The error of the elapsed time. `None` past the end of the range: centuries of it and more.
    fn elapsed_ticks(&self, frequency: Frequency) -> Option<u64> {
        let terms =
            [self.saved_bracket_ns, self.here_bracket_ns, self.saved_sync_ns, self.here_sync_ns, self.assumed_ns];
        let ns: u128 = terms.into_iter().map(u128::from).sum();
        let time = (ns * PPB).checked_add(self.saved_holdover)?.checked_add(self.here_holdover)?;
        let ticks = time.checked_mul(frequency.hz().into())?.div_ceil(u128::from(NS_PER_S) * PPB);
        u64::try_from(ticks).ok()?.checked_add(self.rounding_ticks)
    }
}

/// The longest that `ticks` of an honest counter last, in nanoseconds, rounded up: it may be as slow as is tolerated.
pub(crate) fn longest_ns(frequency: Frequency, ticks: u64) -> u64 {
    const MILLION: u128 = 1_000_000;
    // Below 2^114, and the divisor not 0.
    let ticks = u128::from(ticks) * u128::from(NS_PER_S) * MILLION;
    let longest = ticks.div_ceil(u128::from(frequency.hz()) * (MILLION - RATE_TOLERANCE_PPM));
    u64::try_from(longest).unwrap_or(u64::MAX)
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
pub(crate) fn by_one_counter(saved: &CrossTimestamp, here: &CrossTimestamp) -> Result<Elapsed, Refusal> {
    if saved.count.is_after(here.count) {
        return Err(Refusal::ClockWentBackwards {
            clock: "host's counter (ticks)",
            saved: saved.count.0.into(),
            host: here.count.0.into(),
        });
    }
    Ok(Elapsed { ticks: here.count.since(saved.count).into(), bound: ErrorBound::default() })
}

/// How far the wall clock went, in nanoseconds: by TAI, which has no leap seconds, where both sides know it.
fn by_the_wall_clocks(saved: &CrossTimestamp, here: &CrossTimestamp) -> i128 {
    match (saved.tai_ns(), here.tai_ns()) {
        (Some(saved), Some(here)) => here - saved,
        _ => i128::from(here.realtime_ns) - i128::from(saved.realtime_ns),
    }
}

/// How much time has passed by two wall clocks, and how far off that may be: by both brackets, by what is vouched for on
/// both sides or assumed of their difference, and by a tick for rounding.
pub(crate) fn by_two_wall_clocks(
    saved: &CrossTimestamp,
    here: &CrossTimestamp,
    assumed_ns: Option<u64>,
    longest_ns: Option<u64>,
) -> Result<Elapsed, Refusal> {
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
        (_, there, here_is) => {
            let side = |side: Result<SyncBound, _>| match side {
                Ok(sync) => format!("within {} ns ({})", sync.max_error_ns, sync.quality.name()),
                Err(why) => format!("{why}"),
            };
            let evidence = format!("{}", Evidence::between(saved, here));
            return Err(Refusal::ElapsedUnknown { saved: side(there), here: side(here_is), evidence });
        }
    };
    let elapsed = by_the_wall_clocks(saved, here);
    let elapsed = u64::try_from(elapsed).map_err(|_| Refusal::ClockWentBackwards {
        clock: "wall clock (ns)",
        saved: saved.realtime_ns.into(),
        host: here.realtime_ns.into(),
    })?;
    match longest_ns {
        Some(longest_ns) if elapsed > longest_ns => Err(Refusal::ElapsedTooLong { elapsed_ns: elapsed, longest_ns }),
        _ => Ok(Elapsed { ticks: here.frequency.ns_to_ticks(elapsed), bound }),
    }
}

/// How much time has passed by the caller's word for the instant `sample`: from there this counter goes on.
pub(crate) fn by_the_callers_word(
    elapsed_ns: u64,
    assumed_ns: u64,
    sample: &CrossTimestamp,
    here: &CrossTimestamp,
) -> Result<Elapsed, Refusal> {
    let since = by_one_counter(sample, here)?;
    let bound = ErrorBound { rounding_ticks: 1, assumed_ns, ..ErrorBound::default() };
    Ok(Elapsed { ticks: here.frequency.ns_to_ticks(elapsed_ns) + since.ticks, bound })
}

/// By how much faster the guest's counter runs from now on, in parts per billion, by what both kernels found of their
/// counters' rates; `None` where one of them doesn't know.
#[must_use]
pub fn rate_step_ppb(saved: &CrossTimestamp, here: &CrossTimestamp) -> Option<i64> {
    here.rate_ppb?.checked_sub(saved.rate_ppb?)
}
