//! Counts, offsets and frequencies as types, the arithmetic between them, and how much time has passed.
//!
//! This room knows no architecture: a counter is a number that wraps at 2^64, and its frequency. [`elapsed`] computes
//! the time between two instants of a host, and an [`ErrorBound`] bounds its error.

pub(crate) mod arithmetic;
pub mod bound;
pub(crate) mod calendar;
pub mod count;
pub mod counter;
pub mod elapsed;
pub mod evidence;
pub mod frequency;
pub mod intent;
pub mod interval;
pub mod published;
pub mod ratio;
pub mod source;
pub mod stamp;
pub mod wall_clock;

pub use bound::{Amount, ErrorBound, Ground, Term};
pub use count::{GuestCount, HostCount, NO_DEADLINE, NamespaceTicks, Offset, StampCount, deadline};
pub use counter::{Counter, Instant};
pub use elapsed::{Believed, Between, Elapsed, ElapsedBy, ElapsedError, MAX_ELAPSED_NS, Passed};
pub use evidence::{Evidence, RATE_TOLERANCE_PPM, SLEEP_ERROR_NS, Sleep};
pub use frequency::{Frequency, NS_PER_S};
pub use intent::Intent;
pub use interval::OffsetInterval;
pub use published::PublishedOffset;
pub use ratio::Ratio;
pub use source::SourceName;
pub use stamp::{BootTime, Lack, Leap, Stamp};
pub use wall_clock::{Quality, SyncBound, Unvouched};
