//! Wrapping arithmetic of counts, offsets and intervals of offsets.
//!
//! The text is written once and instantiated twice: [`count`](crate::time::count) and
//! [`interval`](crate::time::interval) use [`w64`], and the tests check `w8` on every possible input against arithmetic
//! on `i128`. It is a macro rather than a trait, because a trait's functions can't be `const`.

macro_rules! arithmetic {
    ($module:ident, $word:ty) => {
        pub(crate) mod $module {
            pub(crate) const fn guest(host: $word, offset: $word) -> $word {
                host.wrapping_sub(offset)
            }

            pub(crate) const fn offset_between(host: $word, guest: $word) -> $word {
                host.wrapping_sub(guest)
            }

            pub(crate) const fn plus(one: $word, other: $word) -> $word {
                one.wrapping_add(other)
            }

            pub(crate) const fn since(later: $word, earlier: $word) -> $word {
                later.wrapping_sub(earlier)
            }

            pub(crate) const fn after(count: $word, ticks: $word) -> $word {
                count.wrapping_add(ticks)
            }

            /// Interval of offsets: the lowest, and the width.
            pub(crate) type Interval = ($word, $word);

            pub(crate) const fn bracketed(before: $word, guest: $word, after: $word) -> Interval {
                (offset_between(before, guest), since(after, before))
            }

            pub(crate) const fn contains((low, width): Interval, offset: $word) -> bool {
                offset.wrapping_sub(low) <= width
            }

            pub(crate) fn intersect(one: Interval, other: Interval) -> Option<Interval> {
                let (first, second) = if contains(one, other.0) { (one, other) } else { (other, one) };
                let skipped = second.0.wrapping_sub(first.0);
                (skipped <= first.1).then(|| (second.0, second.1.min(first.1 - skipped)))
            }

            pub(crate) fn farthest((low, width): Interval, wanted: $word) -> $word {
                let low = low.wrapping_sub(wanted).cast_signed();
                match low.checked_add_unsigned(width) {
                    Some(high) => low.unsigned_abs().max(high.unsigned_abs()),
                    // The interval reaches past the far side of the circle, the longest possible distance.
                    None => <$word>::MAX / 2 + 1,
                }
            }
        }
    };
}

arithmetic!(w64, u64);
#[cfg(test)]
arithmetic!(w8, u8);

/// Tests of every rule on every byte, never in the code's own terms. The expected value is computed on unbounded
/// integers and reduced to a byte at the end by [`modulo`], or found by a walk over the circle of 256 offsets.
#[cfg(test)]
mod tests {
    use super::w8;
    use alloc::vec::Vec;

    const SIZE: i128 = 256;

    fn modulo(value: i128) -> u8 {
        u8::try_from(value.rem_euclid(SIZE)).unwrap()
    }

    /// The number nearest to zero that is this byte modulo 256: from -128 to 127.
    fn signed(value: u8) -> i128 {
        let value = i128::from(value);
        if value < SIZE / 2 { value } else { value - SIZE }
    }

    fn every_pair(check: impl Fn(u8, u8)) {
        for a in 0..=u8::MAX {
            for b in 0..=u8::MAX {
                check(a, b);
            }
        }
    }

    #[test]
    fn counts_and_offsets() {
        every_pair(|a, b| {
            let (x, y) = (i128::from(a), i128::from(b));
            assert_eq!(w8::guest(a, b), modulo(x - y));
            assert_eq!(w8::offset_between(a, b), modulo(x - y));
            assert_eq!(w8::plus(a, b), modulo(x + y));
            assert_eq!(w8::since(a, b), modulo(x - y));
            assert_eq!(w8::after(a, b), modulo(x + y));
            assert_eq!(
                w8::guest(a, w8::offset_between(a, b)),
                b,
                "the offset between two counts leads from one to the other"
            );
        });
    }

    /// The offsets in an interval, found by walking from the lowest.
    fn members((low, width): w8::Interval) -> impl Iterator<Item = u8> {
        (low..=u8::MAX).chain(0..=u8::MAX).take(usize::from(width) + 1)
    }

    /// Set of offsets.
    #[derive(Clone, Copy, PartialEq, Debug, Default)]
    struct Set([u128; 2]);

    impl Set {
        fn of(interval: w8::Interval) -> Self {
            let mut set = Self::default();
            for member in members(interval) {
                set.0[usize::from(member >> 7)] |= 1 << (member & 127);
            }
            set
        }

        fn both(self, other: Self) -> Self {
            Self([self.0[0] & other.0[0], self.0[1] & other.0[1]])
        }

        fn has(self, member: u8) -> bool {
            self.0[usize::from(member >> 7)] >> (member & 127) & 1 == 1
        }
    }

    #[test]
    fn an_interval_contains_its_members() {
        every_pair(|low, width| {
            let set = Set::of((low, width));
            for offset in 0..=u8::MAX {
                assert_eq!(w8::contains((low, width), offset), set.has(offset));
            }
        });
    }

    /// The bracket contains the guest's offset, whatever it is, and whenever between the two host reads the guest's
    /// counter was read.
    #[test]
    fn a_bracket_holds_the_offset() {
        for guest in [0, 99] {
            let offsets: Vec<u8> = (0..SIZE).map(|host| modulo(host - i128::from(guest))).collect();
            every_pair(|before, width| {
                let bracket = w8::bracketed(before, guest, modulo(i128::from(before) + i128::from(width)));
                let possible = members((before, width)).map(|host| offsets[usize::from(host)]);
                assert!(possible.eq(members(bracket)));
            });
        }
    }

    /// Two arcs of a circle may meet at both ends. One interval can't express that, and is then one of the two pieces.
    #[test]
    fn an_intersection_is_what_both_hold() {
        let sets: Vec<Vec<Set>> = (0..=255).map(|low| (0..=255).map(|width| Set::of((low, width))).collect()).collect();
        let set = |(low, width): w8::Interval| sets[usize::from(low)][usize::from(width)];
        for width in 0..=255 {
            let held = set((0, width));
            every_pair(|low, other_width| {
                let both = held.both(set((low, other_width)));
                match w8::intersect((0, width), (low, other_width)).map(set) {
                    None => assert_eq!(both, Set::default()),
                    Some(found) if u16::from(width) + u16::from(other_width) < 255 => assert_eq!(found, both),
                    Some(found) => assert_eq!(found.both(both), found),
                }
            });
        }
    }

    /// The test above begins its first interval at 0; this one shows that nothing depends on that.
    #[test]
    fn an_intersection_turns_with_the_circle() {
        let turn = |(low, width): w8::Interval, by: u8| (modulo(i128::from(low) + i128::from(by)), width);
        for (width, other_width) in [(0, 0), (3, 200), (100, 27), (127, 128), (250, 255)] {
            every_pair(|low, by| {
                let (one, other) = ((0, width), (low, other_width));
                let turned = w8::intersect(turn(one, by), turn(other, by));
                assert_eq!(turned, w8::intersect(one, other).map(|found| turn(found, by)));
            });
        }
    }

    #[test]
    fn the_farthest_is_the_farthest_member() {
        for wanted in [0, 1, 127, 128, 255] {
            let from_wanted: Vec<u8> =
                (0..SIZE).map(|offset| signed(modulo(offset - wanted)).unsigned_abs().try_into().unwrap()).collect();
            every_pair(|low, width| {
                let farthest = members((low, width)).map(|offset| from_wanted[usize::from(offset)]).max();
                assert_eq!(Some(w8::farthest((low, width), modulo(wanted))), farthest, "{low} {width} {wanted}");
            });
        }
    }
}
