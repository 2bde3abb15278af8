//! Sources of host counts.

use crate::time::count::{HostCount, NamespaceTicks};
use crate::time::frequency::Frequency;
use crate::time::stamp::Stamp;

/// Source of host counts.
///
/// Reading it must be cheap. It must never go backwards between two reads on any threads, unless its owner says so (a
/// counter moved by hand that was rewound).
///
/// A read is ordered as an acquire load is, between the acquire loads before it and everything after it. A count taken
/// earlier or later than the program says would be combined with an offset that wasn't in force then.
pub trait Counter: Send + Sync {
    /// Ticks a second: stated by the hardware or the kernel, never measured.
    fn frequency(&self) -> Frequency;

    /// The count now, as this process reads it.
    fn count(&self) -> HostCount;

    /// The host-wide count now with the wall clock, and a bound of the time between the two reads.
    ///
    /// The process's own count at that instant is `stamp().count.own(namespace_ticks())`.
    fn stamp(&self) -> Stamp;

    /// Ticks that the process's time namespace adds to [`count`](Self::count): constant, and
    /// [`NamespaceTicks::NONE`] for most counters. A counter that is made from another one gives that counter's, at its
    /// own frequency.
    fn namespace_ticks(&self) -> NamespaceTicks;
}

impl<C: Counter + ?Sized> Counter for &C {
    fn frequency(&self) -> Frequency {
        (**self).frequency()
    }

    fn count(&self) -> HostCount {
        (**self).count()
    }

    fn stamp(&self) -> Stamp {
        (**self).stamp()
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        (**self).namespace_ticks()
    }
}

/// One instant as a counter that stands still: the form that an injected host count takes.
#[derive(Clone, Debug)]
pub struct Instant {
    /// The instant, host-wide.
    pub stamp: Stamp,
    /// Namespace of the counter that it is an instant of.
    pub namespace_ticks: NamespaceTicks,
}

impl Instant {
    /// Returns the instant of `counter` that `stamp` is of.
    #[must_use]
    pub fn of<C: Counter + ?Sized>(stamp: Stamp, counter: &C) -> Self {
        Self { stamp, namespace_ticks: counter.namespace_ticks() }
    }

    /// Returns the instant at which `counter` reads `count`; the wall clock moves along from the present one.
    /// `None` where it leaves its range.
    pub fn at<C: Counter + ?Sized>(count: HostCount, counter: &C) -> Option<Self> {
        let namespace_ticks = counter.namespace_ticks();
        let stamp = counter.stamp().at(count.stamped(namespace_ticks))?;
        Some(Self { stamp, namespace_ticks })
    }
}

impl From<Stamp> for Instant {
    /// The instant of a counter that no time namespace shifts.
    fn from(stamp: Stamp) -> Self {
        Self { stamp, namespace_ticks: NamespaceTicks::NONE }
    }
}

impl Counter for Instant {
    fn frequency(&self) -> Frequency {
        self.stamp.frequency
    }

    fn count(&self) -> HostCount {
        self.stamp.count.own(self.namespace_ticks)
    }

    fn stamp(&self) -> Stamp {
        self.stamp
    }

    fn namespace_ticks(&self) -> NamespaceTicks {
        self.namespace_ticks
    }
}
