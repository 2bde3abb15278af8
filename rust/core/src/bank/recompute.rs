//! The offsets of many VMs at one instant: the table of [`plan`](crate::plan), as columns.

use super::scale::Scale;
use crate::counter::{GuestCount, HostCount, Offset};

/// What a VM's guest is to see of the time it didn't run, and by what that is told: [`Policy`](crate::plan::Policy)
/// with the plan's decision whether it is the same counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Added {
    /// Nothing: `Freeze`, and `CatchUp`, which owes it.
    Nothing,
    /// The ticks since the checkpoint, on the same counter.
    Counted,
    /// The same, at most `max_ns`.
    CountedUpTo,
    /// `elapsed_ns`, which two wall clocks or the caller said.
    Elapsed,
    /// The same, at most `max_ns`.
    ElapsedUpTo,
}

impl Added {
    /// All, in their numbers' order.
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Counted, Self::CountedUpTo, Self::Elapsed, Self::ElapsedUpTo];

    const fn counted(self) -> bool {
        matches!(self, Self::Counted | Self::CountedUpTo)
    }

    const fn told(self) -> bool {
        matches!(self, Self::Elapsed | Self::ElapsedUpTo)
    }

    const fn capped(self) -> bool {
        matches!(self, Self::CountedUpTo | Self::ElapsedUpTo)
    }
}

/// All bits where it is so. Read from a table, which the compiler makes no branches of: a third of them would be
/// mispredicted where the policies are mixed.
#[derive(Clone, Copy)]
struct Masks {
    counted: u64,
    told: u64,
    uncapped: u64,
}

const MASKS: [Masks; Added::ALL.len()] = {
    let mut masks = [Masks { counted: 0, told: 0, uncapped: 0 }; Added::ALL.len()];
    let mut number = 0;
    while number < masks.len() {
        let added = Added::ALL[number];
        masks[number] =
            Masks { counted: all(added.counted()), told: all(added.told()), uncapped: all(!added.capped()) };
        number += 1;
    }
    masks
};

const fn all(yes: bool) -> u64 {
    if yes { u64::MAX } else { 0 }
}

/// `min`, of which the compiler makes a branch here, to hide the latency of the multiplication: of policies that are
/// mixed many of them are mispredicted.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves of a difference: the upper one is its sign, in each bit"
)]
fn lesser(one: u64, other: u64) -> u64 {
    let difference = u128::from(one).wrapping_sub(other.into());
    other.wrapping_add(difference as u64 & (difference >> 64) as u64)
}

/// VMs to restore, a row each. A column that a row's [`Added`] makes no use of may hold anything.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// The guest's counter at the checkpoint.
    pub guest: &'a [u64],
    /// The host's count then.
    pub host: &'a [u64],
    /// What is added.
    pub added: &'a [Added],
    /// How long it has been, in nanoseconds.
    pub elapsed_ns: &'a [u64],
    /// The most that is added, in nanoseconds.
    pub max_ns: &'a [u64],
    /// Which of the frequencies is the row's.
    pub frequency: &'a [u16],
}

/// The first row that goes by its counter, and whose counter has gone backwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the host's counter went backwards since the checkpoint of row {row}: tell how long it has been, or use Freeze()"
)]
pub struct WentBackwards {
    /// Which one.
    pub row: usize,
}

/// The offset under which each guest goes on at the instant at which its host's counter reads `now`, and the ticks that
/// are added to its counter, modulo 2^64: [`Plan::at`](crate::plan::Plan::at) of a VM that is owed no time.
///
/// `frequencies` are [`Scale::ns_to_ticks`] of each counter. Either of a guest's counters has a call of its own. How
/// far off the elapsed time may be, and whether it is believed, is the plan's to say.
///
/// # Errors
///
/// [`WentBackwards`]: nothing is written then.
///
/// # Panics
///
/// Where the columns differ in length, and at a row whose frequency isn't in `frequencies`: before anything is written.
pub fn recompute_offsets(
    now: HostCount,
    frequencies: &[Scale],
    saved: Saved<'_>,
    offsets: &mut [u64],
    added_ticks: &mut [u64],
) -> Result<(), WentBackwards> {
    let Saved { guest, host, added, elapsed_ns, max_ns, frequency } = saved;
    let rows = [guest.len(), host.len(), added.len(), elapsed_ns.len(), max_ns.len(), frequency.len()];
    assert_eq!(rows, [offsets.len(); 6], "rows of the columns and of the offsets");
    assert_eq!(added_ticks.len(), offsets.len(), "rows of both outputs");
    let backwards = |(&host, &added): (&u64, &Added)| HostCount(host).is_after(now) & added.counted();
    if host.iter().zip(added).fold(false, |any, row| any | backwards(row)) {
        let row = host.iter().zip(added).position(backwards).unwrap_or_default();
        return Err(WentBackwards { row });
    }
    let last = frequency.iter().fold(0, |last, &index| last.max(index));
    assert!(offsets.is_empty() || usize::from(last) < frequencies.len(), "there is no frequency {last}");

    let times = elapsed_ns.iter().zip(max_ns).zip(frequency);
    let columns = guest.iter().zip(host).zip(added).zip(times);
    for ((offset, added_ticks), row) in offsets.iter_mut().zip(added_ticks).zip(columns) {
        let (((&guest, &host), &added), ((&elapsed_ns, &max_ns), &frequency)) = row;
        let scale = frequencies[usize::from(frequency)];
        let masks = MASKS[added as usize];
        // Of two times the lesser has the lesser ticks, so one conversion does. Modulo 2^64, as a counter is.
        let ns = (elapsed_ns | !masks.told).min(max_ns | masks.uncapped);
        let ticks = scale.wrapping(ns);
        let most = ticks | masks.uncapped | u64::from(scale.exceeds(ns)).wrapping_neg();
        let since = now.since(HostCount(host));
        let ticks = lesser(since, most) & masks.counted | ticks & masks.told;
        *added_ticks = ticks;
        *offset = Offset::between(now, GuestCount(guest).after(ticks)).0;
    }
    Ok(())
}
