//! The host's counter: CNTVCT_EL0 on arm64, CLOCK_MONOTONIC_RAW or the TSC elsewhere.

use core::fmt;
use core::str::FromStr;
use guestclock_core::time::{Counter, Frequency, HostCount, NS_PER_S, NamespaceTicks, SourceName, Stamp};
use std::env::consts::ARCH;

use crate::clock;
use crate::opened::Opened;
use crate::stamp::{self, Stamping};
use crate::time_namespace::TimeNamespace;

/// A counter that a host may have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Source {
    /// CNTVCT_EL0 on arm64, CLOCK_MONOTONIC_RAW elsewhere.
    Auto,
    /// The Arm generic timer's virtual counter, at the frequency that CNTFRQ_EL0 states.
    CntvctEl0,
    /// CLOCK_MONOTONIC_RAW as a counter of 1 GHz (clock_gettime(2)): no NTP slewing, and the same in every process of a
    /// boot except those in a time namespace with offsets of its own (time_namespaces(7)), which its stamps take off. It
    /// stops while the host is suspended.
    ClockMonotonicRaw,
    /// The x86 time stamp counter, where the kernel uses it as its clock source and states its own calibration.
    Tsc,
}

impl Source {
    const ALL: [Self; 4] = [Self::Auto, Self::CntvctEl0, Self::ClockMonotonicRaw, Self::Tsc];

    /// The name, as [`Stamp::source`] and Python spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::CntvctEl0 => "cntvct_el0",
            Self::ClockMonotonicRaw => "clock_monotonic_raw",
            Self::Tsc => "tsc",
        }
    }

    const fn resolved(self) -> Self {
        match self {
            Self::Auto if cfg!(target_arch = "aarch64") => Self::CntvctEl0,
            Self::Auto => Self::ClockMonotonicRaw,
            chosen => chosen,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Source {
    type Err = CounterError;

    fn from_str(name: &str) -> Result<Self, CounterError> {
        Self::ALL
            .into_iter()
            .find(|source| source.name() == name)
            .ok_or_else(|| CounterError::UnknownSource(name.to_owned()))
    }
}

/// Reasons why there is no such counter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CounterError {
    /// The host or its kernel doesn't offer the counter.
    #[error("the counter {source} isn't available here: {reason}")]
    Unavailable {
        /// Counter asked for.
        // Raw, so that thiserror doesn't take it for the error's cause.
        r#source: Source,
        /// Missing condition, in words.
        reason: String,
    },
    /// No source has this name.
    #[error("no counter is called {0:?}: auto, cntvct_el0, clock_monotonic_raw or tsc")]
    UnknownSource(String),
}

/// The host's counter.
#[derive(Clone, Copy, Debug)]
pub struct HostCounter {
    source: Source,
    frequency: Frequency,
    read: fn() -> HostCount,
    stamping: Stamping,
}

impl HostCounter {
    /// Name of CLOCK_MONOTONIC_RAW in [`Stamp::source`] where the time namespace isn't known.
    pub const LOCAL_RAW: SourceName = SourceName::fixed("clock_monotonic_raw_local");

    /// Opens the counter `source`, and looks up the time namespace, once. [`CounterError::Unavailable`] has the reason
    /// why there is none.
    pub fn new(source: Source) -> Result<Self, CounterError> {
        let source = source.resolved();
        let (frequency, read) = open(source).map_err(|reason| CounterError::Unavailable { source, reason })?;
        Ok(Self { source, frequency, read, stamping: stamping(source, TimeNamespace::of_this_process()) })
    }

    /// Name of the counter in [`Stamp::source`]: that of its source, or [`Self::LOCAL_RAW`].
    #[must_use]
    pub const fn stamp_source(&self) -> SourceName {
        self.stamping.source()
    }

    /// The counter that is read; never [`Source::Auto`].
    #[must_use]
    pub const fn source(&self) -> Source {
        self.source
    }
}

impl Counter for HostCounter {
    fn frequency(&self) -> Frequency {
        self.frequency
    }

    #[inline]
    fn count(&self) -> HostCount {
        (self.read)()
    }

    fn stamp(&self) -> Stamp {
        stamp::stamp(&self.stamping, self.frequency, self.read)
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        self.stamping.namespace_ticks(self.frequency)
    }
}

/// Returns the stamping of an opened counter in this namespace. Only the kernel's clocks are shifted by it: the TSC and
/// CNTVCT_EL0 are read from the hardware.
fn stamping(source: Source, namespace: Option<TimeNamespace>) -> Stamping {
    let name = SourceName::fixed(source.name());
    match source {
        Source::ClockMonotonicRaw => Stamping::of_a_clock(name, HostCounter::LOCAL_RAW, namespace),
        _ => Stamping::of_hardware(name, namespace),
    }
}

fn open(source: Source) -> Result<Opened, String> {
    match source {
        Source::ClockMonotonicRaw => {
            Ok((const { Frequency::new(NS_PER_S).unwrap() }, || HostCount(clock::monotonic_raw().unsigned_ns())))
        }
        #[cfg(target_arch = "aarch64")]
        Source::CntvctEl0 => crate::cntvct::open(),
        #[cfg(target_arch = "x86_64")]
        Source::Tsc => crate::tsc::open(),
        _ => Err(format!("the CPU ({ARCH}) has no such counter")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::time::{ClockId, clock_gettime};
    use std::error::Error;

    /// The same clock, converted by other code.
    fn raw_ns() -> u64 {
        let now = clock_gettime(ClockId::MonotonicRaw);
        u64::try_from(now.tv_sec).unwrap() * NS_PER_S + u64::try_from(now.tv_nsec).unwrap()
    }

    #[test]
    fn raw_counts_are_the_clocks_nanoseconds() {
        let counter = HostCounter::new(Source::ClockMonotonicRaw).unwrap();
        assert_eq!(counter.frequency().hz(), 1_000_000_000);
        for _ in 0..1000 {
            let before = raw_ns();
            let count = counter.count().0;
            let after = raw_ns();
            assert!(before <= count && count <= after, "{before} <= {count} <= {after}");
        }
    }

    #[test]
    fn auto_is_a_counter_of_this_machine() {
        let counter = HostCounter::new(Source::Auto).unwrap();
        let expected = if cfg!(target_arch = "aarch64") { Source::CntvctEl0 } else { Source::ClockMonotonicRaw };
        assert_eq!(counter.source(), expected);
        let counts: Vec<_> = (0..1000).map(|_| counter.count()).collect();
        assert!(counts.is_sorted());
    }

    #[test]
    fn another_machines_counter_is_refused_by_name() {
        let foreign = if cfg!(target_arch = "aarch64") { Source::Tsc } else { Source::CntvctEl0 };
        let error = HostCounter::new(foreign).unwrap_err();
        assert!(matches!(error, CounterError::Unavailable { source, .. } if source == foreign), "{error:?}");
        assert!(error.to_string().contains(foreign.name()) && error.to_string().contains(ARCH), "{error}");
        assert!(error.source().is_none());
    }

    #[test]
    fn cross_timestamp_carries_the_counters_own_facts() {
        let counter = HostCounter::new(Source::Auto).unwrap();
        let before = counter.count();
        let here = counter.stamp();
        let after = counter.count();
        let own = here.count.own(counter.namespace_ticks());
        assert!(before <= own && own <= after);
        assert_eq!(here.frequency, counter.frequency());
        assert_eq!(here.source, counter.stamp_source());
        // The narrowest bracket lies between the two reads, so their distance bounds its width.
        assert!(u128::from(here.width_ns) <= counter.frequency().ticks_to_ns_ceil(after.since(before) + 1));
    }

    #[test]
    fn a_clock_in_an_unknown_namespace_has_a_name_of_its_own() {
        let known = Some(TimeNamespace { monotonic_ns: 1, boottime_ns: 2 });
        let name = |source, namespace| String::from(stamping(source, namespace).source().as_str());
        assert_eq!(name(Source::ClockMonotonicRaw, known), "clock_monotonic_raw");
        assert_eq!(name(Source::ClockMonotonicRaw, None), "clock_monotonic_raw_local");
        for hardware in [Source::CntvctEl0, Source::Tsc] {
            assert_eq!(name(hardware, None), hardware.name());
            let ticks = stamping(hardware, known).namespace_ticks(Frequency::new(NS_PER_S).unwrap());
            assert_eq!(ticks, NamespaceTicks::NONE);
        }
    }

    #[test]
    fn names_lead_back_to_their_source() {
        for source in Source::ALL {
            assert_eq!(source.name().parse(), Ok(source));
        }
        assert_eq!("TSC".parse::<Source>(), Err(CounterError::UnknownSource("TSC".to_owned())));
    }
}
