//! The time between a checkpoint and an instant here: the caller's word on it, the clock that tells it, its bound, and
//! the table of evidence that chooses between the clocks.

use crate::time::bound::ErrorBound;
use crate::time::evidence::{Evidence, RATE_TOLERANCE_PPM, SLEEP_ERROR_NS, leap_may_lie_between};
use crate::time::frequency::{Frequency, NS_PER_S};
use crate::time::stamp::Stamp;
use crate::time::wall_clock::{SyncBound, Unvouched};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::fmt;

/// The longest time that is believed of two wall clocks unless the caller decides: 366 days. A host whose clock was
/// never set is years off.
pub const MAX_ELAPSED_NS: u64 = 366 * 86_400 * NS_PER_S;

/// The caller's word on the time that has passed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Elapsed {
    /// So much, as of the plan.
    Given {
        /// The time, in nanoseconds.
        ns: u64,
        /// The error of that time, in nanoseconds.
        error_ns: u64,
    },
    /// The counter tells the time: it is the checkpoint's, and has counted all the time.
    ByCounter,
    /// The two wall clocks tell the time.
    ByWallClocks {
        /// Distance of the two wall clocks at most, in nanoseconds; `None` for what is vouched or claimed on both sides.
        error_ns: Option<u64>,
        /// Longest time that they are believed, in nanoseconds; `None` for [`MAX_ELAPSED_NS`].
        refuse_over_ns: Option<u64>,
    },
}

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given { ns, error_ns } => write!(f, "{ns} ns within {error_ns} ns"),
            Self::ByCounter => f.write_str("by the counter"),
            Self::ByWallClocks { error_ns, refuse_over_ns } => {
                f.write_str("by the wall clocks")?;
                if let Some(error_ns) = error_ns {
                    write!(f, ", within {error_ns} ns of each other")?;
                }
                refuse_over_ns.map_or(Ok(()), |longest_ns| write!(f, ", up to {longest_ns} ns"))
            }
        }
    }
}

/// Source of the elapsed time.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum ElapsedBy {
    /// The caller.
    Given,
    /// The host's counter.
    Counter,
    /// The wall clocks of both stamps.
    WallClocks,
    /// The kernel's boot time, which counts sleeps.
    BootTime,
}

impl ElapsedBy {
    /// Name of the evidence: `given`, `counter`, `wall-clocks` or `boot-time`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Counter => "counter",
            Self::WallClocks => "wall-clocks",
            Self::BootTime => "boot-time",
        }
    }
}

/// A clock of the host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum HostClock {
    /// The host's counter, in ticks.
    Counter,
    /// CLOCK_REALTIME, in nanoseconds.
    Realtime,
    /// CLOCK_BOOTTIME, in nanoseconds.
    BootTime,
}

impl fmt::Display for HostClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "host's counter (ticks)",
            Self::Realtime => "wall clock (ns)",
            Self::BootTime => "boot time (ns)",
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
        /// Time that passed by the wall clocks, in nanoseconds.
        elapsed_ns: u64,
        /// The most that is believed.
        longest_ns: u64,
    },
    /// The counter and two wall clocks that somebody vouches for tell different times.
    #[error(
        "the counter says that {} ns have passed, and the wall clocks say {} ns, of which both are vouched for: they are {} \
         ns apart, and {} ns are allowed. Either a wall clock was stepped and whoever vouches doesn't know, or the counter \
         stood still while this host was itself suspended or restored",
        .0.counted_ns,
        .0.wall_ns,
        .0.disagreement_ns(),
        .0.allowed_ns
    )]
    ClocksDisagree(Box<Evidence>),
}

/// Time that has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Passed {
    /// In ticks of the guest's counter, rounded down.
    pub ticks: u128,
    /// Error of that time, except the error of the checkpoint's own reads.
    pub bound: ErrorBound,
}

impl Passed {
    /// Returns the time after `ticks` more of this counter. On one counter that is exact; after any other time they are
    /// as far off as an honest counter's rate may be: most where it is slow, and counts fewer of them than pass.
    #[must_use]
    pub fn and_then(self, ticks: u64, same_counter: bool) -> Self {
        let rate = (u128::from(ticks) * RATE_TOLERANCE_PPM).div_ceil(1_000_000 - RATE_TOLERANCE_PPM);
        let rate_ticks = if same_counter { 0 } else { u64::try_from(rate).unwrap_or(u64::MAX) };
        Self { ticks: self.ticks + u128::from(ticks), bound: ErrorBound { rate_ticks, ..self.bound } }
    }
}

/// The time that is believed, and the clock that tells it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Believed {
    /// The clock.
    pub by: ElapsedBy,
    /// The time.
    pub passed: Passed,
}

/// Two stamps, and everything else that decides which clock is believed between them.
#[derive(Clone, Copy, Debug)]
pub struct Between<'a> {
    /// The checkpoint's stamp.
    pub saved: &'a Stamp,
    /// The stamp here.
    pub here: &'a Stamp,
    /// Their evidence.
    pub evidence: &'a Evidence,
    /// Frequency of the guest's counter.
    pub guest: Frequency,
    /// True if both stamps are one counter object's, in one process: what has passed is never refused then.
    pub one_object: bool,
    /// Longest time that two wall clocks are believed, in nanoseconds; `None` for any.
    pub longest_ns: Option<u64>,
}

impl Between<'_> {
    /// Returns the time that is believed, by the first row of the table of evidence that fits.
    ///
    /// | evidence | believed |
    /// |---|---|
    /// | the caller's word | as he says |
    /// | one counter object, or one counter of one boot, which counted all the time | the counter; refused where two vouched wall clocks contradict it |
    /// | the same, and the count stood still while the host slept, or went back | two vouched wall clocks, else the boot time |
    /// | anything else | the wall clocks, as far as anybody vouches for both |
    pub fn believed(&self, word: Option<Elapsed>) -> Result<Believed, ElapsedError> {
        match word {
            Some(Elapsed::Given { ns, error_ns }) => {
                let bound = ErrorBound { rounding_ticks: 1, assumed_ns: error_ns, ..ErrorBound::default() };
                Ok(Believed { by: ElapsedBy::Given, passed: Passed { ticks: self.guest.ns_to_ticks(ns), bound } })
            }
            Some(Elapsed::ByCounter) => self.counter(0),
            Some(Elapsed::ByWallClocks { error_ns, .. }) => self.wall_clocks(error_ns),
            None if self.one_object => Ok(self.by_one_object()),
            None if self.evidence.one_boot() => self.by_one_boot(),
            None => self.wall_clocks(None),
        }
    }

    fn by_one_boot(&self) -> Result<Believed, ElapsedError> {
        if self.evidence.counted_on(self.boot_widths_ns()) {
            if self.evidence.vouched && self.evidence.contradicted() {
                return Err(ElapsedError::ClocksDisagree(Box::new(*self.evidence)));
            }
            return self.counter(self.hidden_sleep_ns());
        }
        self.vouched_wall_clocks().map_or_else(|| self.boot_time(), Ok)
    }

    /// Returns what is believed of one counter object: the same, and where nothing says more, what the counter counted.
    fn by_one_object(&self) -> Believed {
        let hidden_ns = self.hidden_sleep_ns();
        let counted =
            || self.counter(hidden_ns).unwrap_or(Believed { by: ElapsedBy::Counter, passed: Passed::default() });
        if self.evidence.counted_on(self.boot_widths_ns()) {
            return counted();
        }
        self.vouched_wall_clocks().or_else(|| self.boot_time().ok()).unwrap_or_else(counted)
    }

    /// Returns the time by this counter: exact, whatever the delay, but for a sleep that may be hidden in it.
    fn counter(&self, hidden_ns: u64) -> Result<Believed, ElapsedError> {
        if self.saved.count.is_after(self.here.count) {
            return Err(self.went_backwards(HostClock::Counter));
        }
        let bound = ErrorBound { sleep_ns: hidden_ns, ..ErrorBound::default() };
        let ticks = self.here.count.since(self.saved.count).into();
        Ok(Believed { by: ElapsedBy::Counter, passed: Passed { ticks, bound } })
    }

    /// Returns the time by both wall clocks where somebody vouches for both.
    fn vouched_wall_clocks(&self) -> Option<Believed> {
        self.wall_clocks(None).ok().filter(|_| self.evidence.vouched)
    }

    /// Returns the time by both wall clocks. Its bound has both brackets, what is vouched or claimed on both sides or
    /// assumed of their difference, and a tick for rounding.
    fn wall_clocks(&self, assumed_ns: Option<u64>) -> Result<Believed, ElapsedError> {
        let (saved, here) = (self.saved, self.here);
        let brackets = ErrorBound {
            rounding_ticks: 1,
            saved_bracket_ns: saved.width_ns,
            here_bracket_ns: here.width_ns,
            ..ErrorBound::default()
        };
        let leap = leap_may_lie_between(saved, here);
        let known = |stamp: &Stamp| match stamp.vouched() {
            Ok(_) if leap && stamp.tai_offset_s.is_none() => Err(Unvouched::TaiUnknown),
            vouched => vouched,
        };
        let bound = match (assumed_ns, known(saved), known(here)) {
            (Some(assumed_ns), there, _) if there != Err(Unvouched::UnknownHost) => {
                ErrorBound { assumed_ns, ..brackets }
            }
            (None, Ok(there), Ok(here)) => ErrorBound {
                saved_sync_ns: there.max_error_ns,
                saved_holdover: there.held_over(),
                here_sync_ns: here.max_error_ns,
                here_holdover: here.held_over(),
                ..brackets
            },
            (_, saved_by, here_by) => {
                let unknown = UnknownElapsed { saved: saved_by, here: here_by, evidence: *self.evidence };
                return Err(ElapsedError::Unknown(Box::new(unknown)));
            }
        };
        let elapsed_ns = u64::try_from(self.evidence.wall_ns).map_err(|_| self.went_backwards(HostClock::Realtime))?;
        match self.longest_ns {
            Some(longest_ns) if elapsed_ns > longest_ns => Err(ElapsedError::TooLong { elapsed_ns, longest_ns }),
            _ => {
                let passed = Passed { ticks: self.guest.ns_to_ticks(elapsed_ns), bound };
                Ok(Believed { by: ElapsedBy::WallClocks, passed })
            }
        }
    }

    /// Returns the time by the kernel's boot time, which counts sleeps. Its bound has the widths of both reads, the
    /// resolution of a sleep, and what the kernel may have slewed its clock by: most where it made it slow, and so read
    /// less of it than passed.
    fn boot_time(&self) -> Result<Believed, ElapsedError> {
        let boot_ns = self.evidence.boot_ns.ok_or_else(|| self.went_backwards(HostClock::Counter))?;
        let elapsed_ns = u64::try_from(boot_ns).map_err(|_| self.went_backwards(HostClock::BootTime))?;
        let width = |stamp: &Stamp| stamp.boot_time.map_or(0, |boot_time| boot_time.width_ns);
        let slew_ns = (u128::from(elapsed_ns) * RATE_TOLERANCE_PPM).div_ceil(1_000_000 - RATE_TOLERANCE_PPM);
        let bound = ErrorBound {
            rounding_ticks: 1,
            saved_bracket_ns: width(self.saved),
            here_bracket_ns: width(self.here),
            sleep_ns: SLEEP_ERROR_NS,
            slew_ns: u64::try_from(slew_ns).unwrap_or(u64::MAX),
            ..ErrorBound::default()
        };
        let passed = Passed { ticks: self.guest.ns_to_ticks(elapsed_ns), bound };
        Ok(Believed { by: ElapsedBy::BootTime, passed })
    }

    fn hidden_sleep_ns(&self) -> u64 {
        self.evidence.hidden_sleep_ns(self.boot_widths_ns())
    }

    fn boot_widths_ns(&self) -> u128 {
        let width = |stamp: &Stamp| stamp.boot_time.map_or(0, |boot_time| u128::from(boot_time.width_ns));
        width(self.saved) + width(self.here)
    }

    fn went_backwards(&self, clock: HostClock) -> ElapsedError {
        let read = |stamp: &Stamp| match clock {
            HostClock::Counter => i128::from(stamp.count.0),
            HostClock::Realtime => stamp.realtime_ns.into(),
            HostClock::BootTime => stamp.boot_time.map_or(0, |boot_time| boot_time.boottime_ns.into()),
        };
        ElapsedError::ClockWentBackwards { clock, saved: read(self.saved), host: read(self.here) }
    }
}

/// Step of the guest's counter rate from now on, in parts per billion, from the rates that both kernels found for their
/// counters; `None` where one of them doesn't know.
#[must_use]
pub fn rate_step_ppb(saved: &Stamp, here: &Stamp) -> Option<i64> {
    here.rate_ppb?.checked_sub(saved.rate_ppb?)
}
