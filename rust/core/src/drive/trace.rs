//! A record of the primitive calls of a VM's operations: each call, and what it answered.

use crate::drive::around::{Answer, Around};
use crate::drive::backend::Backend;
use crate::drive::call::{Call, CallKind, Verb};
use alloc::vec::Vec;
use core::fmt;

/// Error that the kernel could have answered.
pub trait Errno {
    /// Returns the errno, as KVM would answer it.
    fn errno(&self) -> i32;
}

/// A call that was made, and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TracedCall {
    /// Operation that it was made for; `None` for a call of the VMM's own.
    pub verb: Option<Verb>,
    /// The call.
    pub call: Call,
    /// The value that it wrote or read: a register's, an offset, or the number of listed registers.
    pub value: Option<u64>,
    /// Errno of the answer; 0 for success.
    pub errno: i32,
    /// Instant of the call, in nanoseconds of the trace's clock.
    pub began_ns: u64,
    /// Time until the answer, in nanoseconds.
    pub took_ns: u64,
}

/// Errno of a call that has to be made again.
const EBUSY: i32 = 16;

/// Sums over all calls of a kind, those included that a ring has no room for any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CallTotals {
    /// Number of calls.
    pub made: u64,
    /// Number of calls that answered EBUSY.
    pub busy: u64,
    /// Number of calls that answered another errno.
    pub failed: u64,
    /// Time until the answers, in nanoseconds.
    pub took_ns: u64,
}

/// A ring of the latest calls, which allocates nothing while calls are made.
pub struct Trace {
    ring: Vec<TracedCall>,
    totals: [CallTotals; CallKind::NAMES.len()],
    most: usize,
    made: u64,
    verb: Option<Verb>,
    clock_ns: fn() -> u64,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("most", &self.most).field("made", &self.made).finish_non_exhaustive()
    }
}

impl Trace {
    /// Returns a ring of `most` calls, at least one, timed by a clock of nanoseconds.
    #[must_use]
    pub fn new(most: usize, clock_ns: fn() -> u64) -> Self {
        let most = most.max(1);
        Self { ring: Vec::with_capacity(most), totals: Default::default(), most, made: 0, verb: None, clock_ns }
    }

    /// Number of calls, those that the ring no longer has included.
    #[must_use]
    pub const fn made(&self) -> u64 {
        self.made
    }

    /// Returns the calls in their order: the latest, as many as the ring has.
    pub fn calls(&self) -> impl Iterator<Item = &TracedCall> {
        let (newer, older) = self.ring.split_at(self.next());
        older.iter().chain(newer)
    }

    /// Returns the sums over all calls of each kind, by its name. They only grow.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, CallTotals)> + '_ {
        CallKind::NAMES.iter().zip(&self.totals).map(|((name, _), totals)| (*name, *totals))
    }

    /// Forgets all calls. Their totals stay.
    pub fn clear(&mut self) {
        self.ring.clear();
        self.made = 0;
    }

    /// Place of the next call in a ring that is full, and of the oldest one.
    fn next(&self) -> usize {
        if self.ring.len() < self.most { 0 } else { usize::try_from(self.made % self.most as u64).unwrap_or(0) }
    }

    fn record(&mut self, call: TracedCall) {
        let totals = &mut self.totals[call.call.kind.place()];
        totals.made += 1;
        totals.busy += u64::from(call.errno == EBUSY);
        totals.failed += u64::from(!matches!(call.errno, 0 | EBUSY));
        totals.took_ns = totals.took_ns.saturating_add(call.took_ns);
        if self.ring.len() < self.most {
            self.ring.push(call);
        } else {
            let next = self.next();
            self.ring[next] = call;
        }
        self.made += 1;
    }
}

impl<E: Errno> Around<E> for Trace {
    type Error = E;

    fn begin(&mut self, verb: Option<Verb>) -> Result<(), E> {
        self.verb = verb;
        Ok(())
    }

    fn call<A: Answer>(&mut self, call: Call, wrote: Option<u64>, make: impl FnOnce() -> Result<A, E>) -> Result<A, E> {
        let began_ns = (self.clock_ns)();
        let answer = make();
        let took_ns = (self.clock_ns)().saturating_sub(began_ns);
        let (read, errno) = match &answer {
            Ok(answer) => (answer.value(), 0),
            Err(error) => (None, error.errno()),
        };
        self.record(TracedCall { verb: self.verb, call, value: wrote.or(read), errno, began_ns, took_ns });
        answer
    }

    fn retries(&mut self, backend: &mut dyn Backend<Error = E>, error: &E, attempt: u32) -> bool {
        backend.retries(error, attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::convert::Infallible;
    use core::sync::atomic::{AtomicU64, Ordering};

    impl Errno for Infallible {
        fn errno(&self) -> i32 {
            match *self {}
        }
    }

    fn clock() -> u64 {
        static NOW: AtomicU64 = AtomicU64::new(0);
        NOW.fetch_add(1, Ordering::Relaxed)
    }

    fn values(trace: &Trace) -> Vec<u64> {
        trace.calls().filter_map(|call| call.value).collect()
    }

    #[test]
    fn the_ring_keeps_the_latest_calls_in_their_order() {
        let mut trace = Trace::new(3, clock);
        let call = Call::named("set_counter_offset").unwrap();
        let mut expected = Vec::new();
        for number in 0..8 {
            let answer: Result<(), Infallible> = trace.call(call, Some(number), || Ok(()));
            assert_eq!(answer, Ok(()));
            expected.push(number);
            assert_eq!(values(&trace), expected[expected.len().saturating_sub(3)..]);
            assert_eq!(trace.made(), number + 1);
        }
        assert_eq!(trace.ring.capacity(), 3, "nothing was allocated");
        assert!(trace.calls().all(|call| call.took_ns >= 1));
        trace.clear();
        assert_eq!((values(&trace), trace.made()), (Vec::new(), 0));
        let (_, totals) = trace.totals().find(|(name, _)| *name == "set_counter_offset").unwrap();
        assert_eq!((totals.made, totals.busy, totals.failed), (8, 0, 0));
        assert!(totals.took_ns >= 8);
    }
}
