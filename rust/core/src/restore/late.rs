//! Closed form of a guest's counter at the last sample of a restore, under every policy.
//!
//! Everything that divides or refuses is done when the plan is made. Between the last sample and the system call that
//! sets the counter, this is all.

use crate::time::{GuestCount, HostCount, Offset};

/// A guest's counter as a function of the host's: `saved + min(missed + (now - anchor), cap)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Late {
    /// The host's count up to which `missed` counts: the plan's sample.
    pub anchor: HostCount,
    /// Ticks that the guest has missed up to there.
    pub missed: u128,
    /// The most ticks that are given back at once: 0 under `Freeze`, no limit under `Advance`.
    pub cap: u128,
    /// The guest's counter that it goes on from.
    pub saved: GuestCount,
}

impl Late {
    /// Returns the ticks that the guest has missed when the host's counter reads `now`. A count before the anchor is as
    /// the anchor.
    #[must_use]
    #[inline]
    pub const fn missed_at(&self, now: HostCount) -> u128 {
        let distance = now.0.wrapping_sub(self.anchor.0);
        let since = if distance.cast_signed() < 0 { 0 } else { distance };
        self.missed.saturating_add(since as u128)
    }

    /// Returns the ticks that the guest is given when the host's counter reads `now`.
    #[must_use]
    #[inline]
    pub fn added_at(&self, now: HostCount) -> u128 {
        self.missed_at(now).min(self.cap)
    }

    /// Returns the guest's counter when the host's reads `now`.
    #[must_use]
    #[inline]
    pub fn guest_at(&self, now: HostCount) -> GuestCount {
        self.saved.after(wrapped(self.added_at(now)))
    }

    /// Returns the offset by which the guest's counter goes on from `now`.
    #[must_use]
    #[inline]
    pub fn offset_at(&self, now: HostCount) -> Offset {
        Offset::between(now, self.guest_at(now))
    }

    /// The counter of a guest that has this offset at every count from `anchor` on.
    #[must_use]
    pub const fn of_offset(offset: Offset, anchor: HostCount) -> Self {
        Self { anchor, missed: 0, cap: u128::MAX, saved: anchor.guest(offset) }
    }

    /// The counter of a guest that stands at this count, whenever it goes on.
    #[must_use]
    pub const fn at_rest(saved: GuestCount) -> Self {
        Self { anchor: HostCount(0), missed: 0, cap: 0, saved }
    }
}

/// Ticks modulo 2^64: a counter is, and so is what is added to it.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "modulo 2^64")]
pub const fn wrapped(ticks: u128) -> u64 {
    ticks as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proptest::sample::select;

    const EDGES: [u64; 9] = [0, 1, 999, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 63) + 1, u64::MAX - 1, u64::MAX];

    /// The plain statement, in integers that don't end.
    fn plain(late: &Late, now: u64) -> i128 {
        let modulus = 1_i128 << 64;
        let mut since = (i128::from(now) - i128::from(late.anchor.0)).rem_euclid(modulus);
        if since >= modulus / 2 {
            since = 0;
        }
        let missed = late.missed.saturating_add(since.unsigned_abs());
        let added = (missed.min(late.cap) % modulus.unsigned_abs()).cast_signed();
        let guest = (i128::from(late.saved.0) + added).rem_euclid(modulus);
        (i128::from(now) - guest).rem_euclid(modulus)
    }

    fn edgy() -> impl Strategy<Value = u64> {
        prop_oneof![select(&EDGES), any::<u64>(), (0..64_u32).prop_map(|bit| 1 << bit)]
    }

    fn longer() -> impl Strategy<Value = u128> {
        prop_oneof![edgy().prop_map(u128::from), Just(u128::MAX), any::<u128>()]
    }

    proptest! {
        #[test]
        fn the_closed_form_is_the_plain_statement(
            anchor in edgy(), missed in longer(), cap in longer(), saved in edgy(), now in edgy(),
        ) {
            let late = Late { anchor: HostCount(anchor), missed, cap, saved: GuestCount(saved) };
            prop_assert_eq!(i128::from(late.offset_at(HostCount(now)).0), plain(&late, now));
        }
    }

    #[test]
    fn it_is_so_at_every_edge() {
        let longer = || EDGES.map(u128::from).into_iter().chain([1 << 64, u128::MAX - 1, u128::MAX]);
        for anchor in EDGES {
            for (missed, cap) in longer().flat_map(|missed| longer().map(move |cap| (missed, cap))) {
                for (saved, now) in EDGES.iter().flat_map(|&saved| EDGES.map(|now| (saved, now))) {
                    let late = Late { anchor: HostCount(anchor), missed, cap, saved: GuestCount(saved) };
                    assert_eq!(i128::from(late.offset_at(HostCount(now)).0), plain(&late, now), "{late:?} at {now}");
                }
            }
        }
    }
}
