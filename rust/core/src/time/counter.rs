//! Sources of host counts.

use crate::time::count::HostCount;
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

    /// The count now.
    fn count(&self) -> HostCount;

    /// The count now with the wall clock, and a bound of the time between the two reads.
    fn stamp(&self) -> Stamp;
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
}

/// One instant as a counter that stands still: the form that an injected host count takes.
#[derive(Clone, Debug)]
pub struct Instant(pub Stamp);

impl Counter for Instant {
    fn frequency(&self) -> Frequency {
        self.0.frequency
    }

    fn count(&self) -> HostCount {
        self.0.count
    }

    fn stamp(&self) -> Stamp {
        self.0
    }
}
