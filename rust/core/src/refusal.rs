//! Why a restore is refused.

use alloc::string::String;

/// Why a restore is refused. Nothing was touched.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The guest was saved at another frequency.
    #[error(
        "the guest was saved with CNTFRQ_EL0 = {saved_hz} Hz, and this VM's counter runs at {host_hz} Hz: the guest would \
         take each second for {} ms, a drift of {:+} ppm. KVM can't rescale: restore it on a host with a counter of \
         {saved_hz} Hz, or into the model over ScaledCounter(counter, frequency_hz={saved_hz})",
        second_in_ms(*saved_hz, *host_hz),
        drift_ppm(*saved_hz, *host_hz)
    )]
    FrequencyMismatch {
        /// The checkpoint's.
        saved_hz: u64,
        /// The target's.
        host_hz: u64,
    },
    /// Two counters that one offset can't reproduce.
    #[error(
        "the guest's counters differ (CNTVCT_EL0 {cntvct}, CNTPCT_EL0 {cntpct}), and {why}: views=\"preserve\" into a VM \
         that never opted in keeps both, views=\"adopt-virtual\" gives up the physical one"
    )]
    CounterSkew {
        /// The virtual counter.
        cntvct: u64,
        /// The physical counter.
        cntpct: u64,
        /// What stands in the way.
        why: &'static str,
    },
    /// A clock reads less than it did.
    #[error(
        "the {clock} read {saved} at the checkpoint and {host} here: it went backwards, so the time that has passed isn't \
         known. Put the clock right, or say what passed with elapsed_ns=, or restore with Freeze()"
    )]
    ClockWentBackwards {
        /// Which clock, and its unit.
        clock: &'static str,
        /// The checkpoint's reading.
        saved: i128,
        /// The reading here.
        host: i128,
    },
    /// Nobody vouches for the time that has passed.
    #[error(
        "this isn't the counter that the checkpoint was taken by ({evidence}), and nobody knows how much time has passed: \
         of the wall clock at the checkpoint, {saved}; of the one here, {here}. Declare both with sync=, or give \
         assume_error_ns=, or elapsed_ns= with it, or same_counter=True if it is the same counter after all, or restore \
         with Freeze()"
    )]
    ElapsedUnknown {
        /// What vouches for the checkpoint's wall clock, or why nothing does.
        saved: String,
        /// The same of the wall clock here.
        here: String,
        /// What the decision rests on.
        evidence: String,
    },
    /// So much time that a wall clock is more likely to be wrong.
    #[error(
        "the wall clocks say that {elapsed_ns} ns have passed since the checkpoint, and more than {longest_ns} ns aren't \
         believed: give max_elapsed_ns= if it is so, or Advance(max_ns=) to let less of it through, or restore with Freeze()"
    )]
    ElapsedTooLong {
        /// By the wall clocks.
        elapsed_ns: u64,
        /// The most that is believed.
        longest_ns: u64,
    },
    /// The time that is owed can't be paid back in time.
    #[error(
        "paying {owed_ns} ns back takes {needed_ns} ns in these steps, and {deadline_ns} ns are given for it: larger steps, \
         a shorter interval or a later deadline; or Advance()"
    )]
    DeadlineMissed {
        /// What is owed.
        owed_ns: u128,
        /// How long that takes.
        needed_ns: u128,
        /// How long it may take.
        deadline_ns: u64,
    },
    /// The VM isn't built like the checkpoint's.
    #[error("the checkpoint has {saved} {what} and this VM has {host}: build the VM as it was when it was saved")]
    TopologyMismatch {
        /// What is counted.
        what: &'static str,
        /// In the checkpoint.
        saved: usize,
        /// In the target.
        host: usize,
    },
    /// The checkpoint has something this version doesn't know, and the caller was strict about it.
    #[error(
        "the checkpoint has {what}, which this guestclock doesn't know: restore it without strict=True, or with a newer one"
    )]
    Unknown {
        /// What it has.
        what: String,
    },
    /// The target changed after the plan was made.
    #[error("the VM has changed since this plan was made: make a new plan")]
    StalePlan,
    /// The steps of a restore were taken out of order.
    #[error("{called}() can't come now: a restore is prepare(), apply(), release(), once each")]
    OutOfOrder {
        /// The step that was tried.
        called: &'static str,
    },
    /// The backend can't do it.
    #[error("{capability}: {reason}")]
    CapabilityMissing {
        /// What is missing.
        capability: &'static str,
        /// What follows and what to do.
        reason: &'static str,
    },
}

/// What a guest of `saved` Hz takes for a second's worth of ticks at `host` Hz, in milliseconds.
fn second_in_ms(saved_hz: u64, host_hz: u64) -> u128 {
    u128::from(host_hz) * 1000 / u128::from(saved_hz.max(1))
}

/// How fast that guest's clock would run, in parts per million of `(host - saved) / saved`: rounded away from zero, so that
/// no mismatch looks like none.
fn drift_ppm(saved_hz: u64, host_hz: u64) -> i128 {
    let size = (u128::from(host_hz.abs_diff(saved_hz)) * 1_000_000).div_ceil(saved_hz.max(1).into()).cast_signed();
    if host_hz < saved_hz { -size } else { size }
}
