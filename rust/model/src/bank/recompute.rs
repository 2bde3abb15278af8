//! Offsets of many VMs at one instant: the table of [`plan`](mod@guestclock_core::restore::plan), as columns.
#![expect(clippy::inline_always, reason = "what Isa::run asks for")]

use crate::bank::block::{BLOCK, Lanes, rest, whole, widened};
use crate::bank::isa::{Isa, TABLE};
use crate::bank::scale::{Digits, Scale};
use guestclock_core::time::{Frequency, GuestCount, HostCount, Offset};

/// Guest time to add for the time that a VM didn't run, and its source: [`Policy`](guestclock_core::restore::Policy)
/// with the plan's decision whether this is the same counter.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Added {
    /// Nothing: `Freeze`, and `CatchUp`, which makes it a backlog.
    Nothing,
    /// The ticks since the checkpoint, on the same counter.
    Counted,
    /// The ticks since the checkpoint, at most `max_ns`.
    CountedUpTo,
    /// `elapsed_ns`, from two wall clocks or the caller.
    Elapsed,
    /// `elapsed_ns`, at most `max_ns`.
    ElapsedUpTo,
}

impl Added {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Counted, Self::CountedUpTo, Self::Elapsed, Self::ElapsedUpTo];

    /// Returns the one with this number, its place in [`ALL`](Self::ALL).
    #[must_use]
    pub const fn numbered(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Nothing),
            1 => Some(Self::Counted),
            2 => Some(Self::CountedUpTo),
            3 => Some(Self::Elapsed),
            4 => Some(Self::ElapsedUpTo),
            _ => None,
        }
    }

    #[inline(always)]
    const fn counted(self) -> bool {
        matches!(self, Self::Counted | Self::CountedUpTo)
    }

    #[inline(always)]
    const fn told(self) -> bool {
        matches!(self, Self::Elapsed | Self::ElapsedUpTo)
    }

    #[inline(always)]
    const fn capped(self) -> bool {
        matches!(self, Self::CountedUpTo | Self::ElapsedUpTo)
    }
}

/// Number of words of a rate.
const WORDS: usize = 5;

/// A counter that VMs are restored on: its count at that instant, and its frequency.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    now: HostCount,
    digits: Digits,
    /// Largest number of nanoseconds whose ticks are in range.
    limit: u64,
}

impl Rate {
    /// Returns the rate of a counter of this frequency, which reads `now`.
    #[must_use]
    #[expect(clippy::missing_panics_doc, reason = "never, as said below")]
    pub const fn new(now: HostCount, frequency: Frequency) -> Self {
        let scale = Scale::ns_to_ticks(frequency);
        Self { now, digits: scale.digits().expect("10^9 is below 2^30"), limit: scale.limit() }
    }

    /// The counter's count.
    #[must_use]
    pub const fn now(self) -> HostCount {
        self.now
    }

    /// Returns the words in the order in which a loop needs them: see [`Rates::look_up`].
    const fn words(self) -> [u64; WORDS] {
        let Digits { whole, upper, lower } = self.digits;
        [self.now.0, whole, upper, lower, self.limit]
    }
}

/// The rates of all rows. If there are few, each word's table fits into a register.
struct Rates<'a> {
    isa: Isa,
    all: &'a [Rate],
    tables: [[u64; TABLE]; WORDS],
}

impl<'a> Rates<'a> {
    fn new(isa: Isa, all: &'a [Rate]) -> Self {
        let mut tables = [[0; TABLE]; WORDS];
        for (number, rate) in all.iter().enumerate().take(TABLE) {
            for (table, word) in tables.iter_mut().zip(rate.words()) {
                table[number] = word;
            }
        }
        Self { isa, all, tables }
    }

    /// Looks up the first words of each row's rate, as many as there is room for.
    #[inline(always)]
    fn look_up(&self, rate: &[u16; BLOCK], words: &mut [Lanes<u64>]) {
        if self.all.len() <= TABLE {
            self.isa.look_up(&self.tables, rate, words);
        } else {
            for (row, &rate) in rate.iter().enumerate() {
                for (words, word) in words.iter_mut().zip(self.all[usize::from(rate)].words()) {
                    words.0[row] = word;
                }
            }
        }
    }
}

/// VMs to restore, one a row. A column that a row's [`Added`] doesn't use may hold anything.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// The guest's counter at the checkpoint.
    pub guest: &'a [u64],
    /// The host's count at the checkpoint.
    pub host: &'a [u64],
    /// The time that is added.
    pub added: &'a [Added],
    /// The elapsed time, in nanoseconds.
    pub elapsed_ns: &'a [u64],
    /// The most time that is added, in nanoseconds.
    pub max_ns: &'a [u64],
    /// Index of the counter of the row's host.
    pub rate: &'a [u16],
}

/// A block of rows.
#[derive(Clone, Copy)]
struct SavedBlock<'a> {
    guest: &'a [u64; BLOCK],
    host: &'a [u64; BLOCK],
    added: &'a [Added; BLOCK],
    elapsed_ns: &'a [u64; BLOCK],
    max_ns: &'a [u64; BLOCK],
    rate: &'a [u16; BLOCK],
}

/// The rows after the whole blocks.
struct SavedRest {
    guest: [u64; BLOCK],
    host: [u64; BLOCK],
    added: [Added; BLOCK],
    elapsed_ns: [u64; BLOCK],
    max_ns: [u64; BLOCK],
    rate: [u16; BLOCK],
}

impl Saved<'_> {
    #[inline(always)]
    fn whole(&self, number: usize) -> SavedBlock<'_> {
        SavedBlock {
            guest: whole(self.guest, number),
            host: whole(self.host, number),
            added: whole(self.added, number),
            elapsed_ns: whole(self.elapsed_ns, number),
            max_ns: whole(self.max_ns, number),
            rate: whole(self.rate, number),
        }
    }

    #[inline(always)]
    fn rest(&self) -> SavedRest {
        SavedRest {
            guest: rest(self.guest, 0),
            host: rest(self.host, 0),
            // A padding row has no counter that could go backwards.
            added: rest(self.added, Added::Nothing),
            elapsed_ns: rest(self.elapsed_ns, 0),
            max_ns: rest(self.max_ns, 0),
            rate: rest(self.rate, 0),
        }
    }
}

impl SavedRest {
    #[inline(always)]
    fn block(&self) -> SavedBlock<'_> {
        let Self { guest, host, added, elapsed_ns, max_ns, rate } = self;
        SavedBlock { guest, host, added, elapsed_ns, max_ns, rate }
    }
}

/// The first row that depends on its counter, and whose counter has gone backwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the host's counter went backwards since the checkpoint of row {row}: tell how long it has been, or freeze")]
pub struct WentBackwards {
    /// The row.
    pub row: usize,
}

/// Computes the offset under which each guest goes on at the instant of the restore, and the ticks added to its
/// counter, modulo 2^64: [`Plan::at`](guestclock_core::restore::Plan::at) of a VM without a backlog.
///
/// `rates` are the hosts' counters, each at its own count. Each of a guest's two counters takes a call of its own. The
/// plan decides whether the elapsed time is believed, and bounds its error.
///
/// # Errors
///
/// [`WentBackwards`]: then nothing is written.
///
/// # Panics
///
/// If the columns differ in length, or a row's rate isn't in `rates`: before anything is written.
pub fn recompute_offsets(
    isa: Isa,
    rates: &[Rate],
    saved: Saved<'_>,
    offsets: &mut [u64],
    added_ticks: &mut [u64],
) -> Result<(), WentBackwards> {
    let Saved { guest, host, added, elapsed_ns, max_ns, rate } = saved;
    let rows = [guest.len(), host.len(), added.len(), elapsed_ns.len(), max_ns.len(), rate.len()];
    assert_eq!(rows, [offsets.len(); 6], "rows of the columns and of the offsets");
    assert_eq!(added_ticks.len(), offsets.len(), "rows of both outputs");
    let last = rate.iter().fold(0, |last, &index| last.max(index));
    assert!(offsets.is_empty() || usize::from(last) < rates.len(), "there is no rate {last}");
    let rates = Rates::new(isa, rates);
    isa.run(
        #[inline(always)]
        |_| {
            let mut words = [Lanes([0; BLOCK]); WORDS];
            let (blocks, rest) = offsets.as_chunks_mut();
            let (added_blocks, added_rest) = added_ticks.as_chunks_mut();
            for number in 0..blocks.len() {
                saved.whole(number).forwards(&rates, &mut words).map_err(|row| number * BLOCK + row)?;
            }
            let last = saved.rest();
            last.block().forwards(&rates, &mut words).map_err(|row| blocks.len() * BLOCK + row)?;
            for (number, (offset, ticks)) in blocks.iter_mut().zip(added_blocks).enumerate() {
                saved.whole(number).recompute(&rates, &mut words, offset, ticks);
            }
            if !rest.is_empty() {
                let (mut offset, mut ticks) = ([0; BLOCK], [0; BLOCK]);
                last.block().recompute(&rates, &mut words, &mut offset, &mut ticks);
                rest.copy_from_slice(&offset[..rest.len()]);
                added_rest.copy_from_slice(&ticks[..rest.len()]);
            }
            Ok(())
        },
    )
    .map_err(|row| WentBackwards { row })
}

impl SavedBlock<'_> {
    /// Returns the first row that depends on its counter, and whose counter has gone backwards, as an error.
    #[inline(always)]
    fn forwards(&self, rates: &Rates<'_>, words: &mut [Lanes<u64>; WORDS]) -> Result<(), usize> {
        rates.look_up(self.rate, &mut words[..1]);
        let now = |row: usize| HostCount(words[0].0[row]);
        let mut counted = Lanes([0; BLOCK]);
        for row in 0..BLOCK {
            counted.0[row] = all(self.added[row].counted());
        }
        let mut any = 0;
        for row in 0..BLOCK {
            any |= u64::from(HostCount(self.host[row]).is_after(now(row))) & widened(counted.0[row]);
        }
        if any == 0 {
            return Ok(());
        }
        let backwards = |&row: &usize| HostCount(self.host[row]).is_after(now(row)) & self.added[row].counted();
        Err((0..BLOCK).find(backwards).unwrap_or_default())
    }

    #[inline(always)]
    fn recompute(
        &self,
        rates: &Rates<'_>,
        words: &mut [Lanes<u64>; WORDS],
        offsets: &mut [u64; BLOCK],
        added_ticks: &mut [u64; BLOCK],
    ) {
        rates.look_up(self.rate, words);
        let [now, whole, upper, lower, limit] = words;
        let [mut counted, mut told, mut uncapped] = [Lanes([0; BLOCK]); 3];
        for row in 0..BLOCK {
            counted.0[row] = all(self.added[row].counted());
            told.0[row] = all(self.added[row].told());
            uncapped.0[row] = all(!self.added[row].capped());
        }
        for row in 0..BLOCK {
            let [counted, told, uncapped] = [&counted, &told, &uncapped].map(|masks| widened(masks.0[row]));
            let now = HostCount(now.0[row]);
            // The lesser of two times has the lesser ticks, so one conversion suffices. Modulo 2^64, as a counter is.
            let ns = (self.elapsed_ns[row] | !told).min(self.max_ns[row] | uncapped);
            let ticks = Digits { whole: whole.0[row], upper: upper.0[row], lower: lower.0[row] }.wrapping(ns);
            let most = ticks | uncapped | u64::from(ns > limit.0[row]).wrapping_neg();
            let since = now.since(HostCount(self.host[row]));
            let ticks = since.min(most) & counted | ticks & told;
            added_ticks[row] = ticks;
            offsets[row] = Offset::between(now, GuestCount(self.guest[row]).after(ticks)).0;
        }
    }
}

/// Returns all ones if `yes`, else all zeros.
#[inline(always)]
const fn all(yes: bool) -> u8 {
    (yes as u8).wrapping_neg()
}
