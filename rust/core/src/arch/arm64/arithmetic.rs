//! Wrapping arithmetic of one timer: the comparison, CTL, TVAL and the time until its line goes high.
//!
//! One text is instantiated twice, as in [`time::arithmetic`](crate::time): [`timer`](crate::arch::arm64::timer) uses
//! `w64`, and the tests check `w8` on every possible input. TVAL is the lower half of a word: 32 of 64 bits, or 4 of 8.

macro_rules! arithmetic {
    ($module:ident, $word:ty) => {
        pub(crate) mod $module {
            use crate::arch::arm64::ctl::{CTL_ENABLE, CTL_IMASK, CTL_ISTATUS};

            const HALF_BITS: u32 = <$word>::BITS / 2;

            pub(crate) const fn condition_met(cval: $word, now: $word) -> bool {
                now >= cval
            }

            pub(crate) const fn can_raise(ctl: u64) -> bool {
                ctl & (CTL_ENABLE | CTL_IMASK) == CTL_ENABLE
            }

            pub(crate) const fn line(ctl: u64, cval: $word, now: $word) -> bool {
                can_raise(ctl) && condition_met(cval, now)
            }

            pub(crate) const fn ctl_read(ctl: u64, cval: $word, now: $word) -> u64 {
                let status = if condition_met(cval, now) { CTL_ISTATUS } else { 0 };
                (ctl & (CTL_ENABLE | CTL_IMASK)) | status
            }

            pub(crate) const fn tval_read(cval: $word, now: $word) -> $word {
                cval.wrapping_sub(now) & (<$word>::MAX >> HALF_BITS)
            }

            pub(crate) const fn tval_write(tval: $word, now: $word) -> $word {
                // Shift up to the top and down again: the half's sign bit fills the upper half.
                now.wrapping_add(((tval << HALF_BITS).cast_signed() >> HALF_BITS).cast_unsigned())
            }

            pub(crate) const fn ticks_until(cval: $word, now: $word) -> $word {
                cval.saturating_sub(now)
            }

            pub(crate) const fn ticks_to_line(ctl: u64, cval: $word, now: $word) -> Option<$word> {
                if can_raise(ctl) { Some(ticks_until(cval, now)) } else { None }
            }
        }
    };
}

arithmetic!(w64, u64);
#[cfg(test)]
arithmetic!(w8, u8);

/// Tests of every rule on every byte. The expected value is computed on unbounded integers, never in the code's own
/// terms.
#[cfg(test)]
mod tests {
    use super::w8;
    use crate::arch::arm64::ctl::{CTL_ENABLE, CTL_IMASK, CTL_ISTATUS};

    const SIZE: i128 = 256;
    /// CTL's low three bits, and bits that must not survive a write.
    const CTLS: [u64; 10] = [0, 1, 2, 3, 4, 5, 6, 7, 1 << 3 | 1, u64::MAX];

    fn modulo(value: i128) -> u8 {
        u8::try_from(value.rem_euclid(SIZE)).unwrap()
    }

    fn every_pair(check: impl Fn(u8, u8)) {
        for a in 0..=u8::MAX {
            for b in 0..=u8::MAX {
                check(a, b);
            }
        }
    }

    #[test]
    fn timers() {
        every_pair(|cval, now| {
            let ahead = i128::from(cval) - i128::from(now);
            assert_eq!(w8::condition_met(cval, now), ahead <= 0);
            assert_eq!(i128::from(w8::ticks_until(cval, now)), ahead.max(0));
            for ctl in CTLS {
                let enabled = ctl % 2 == 1;
                let masked = ctl / 2 % 2 == 1;
                assert_eq!(w8::line(ctl, cval, now), enabled && !masked && ahead <= 0);
                let read = if enabled { CTL_ENABLE } else { 0 }
                    + if masked { CTL_IMASK } else { 0 }
                    + if ahead <= 0 { CTL_ISTATUS } else { 0 };
                assert_eq!(w8::ctl_read(ctl, cval, now), read);
                let ticks = (enabled && !masked).then(|| u8::try_from(ahead.max(0)).unwrap());
                assert_eq!(w8::ticks_to_line(ctl, cval, now), ticks);
            }
        });
    }

    /// The line goes high after exactly the promised ticks, and not before, unless the count wraps on its way.
    #[test]
    fn a_line_goes_high_when_it_was_to() {
        every_pair(|cval, now| {
            let ticks = w8::ticks_to_line(CTL_ENABLE, cval, now).unwrap();
            assert!((0..ticks).all(|early| !w8::line(CTL_ENABLE, cval, now.wrapping_add(early))));
            assert!(w8::line(CTL_ENABLE, cval, now.wrapping_add(ticks)));
        });
    }

    /// TVAL has half of a word's bits, 4 here: from -8 to 7.
    #[test]
    fn tval_is_a_signed_half() {
        every_pair(|cval, now| {
            let ahead = i128::from(cval) - i128::from(now);
            assert_eq!(i128::from(w8::tval_read(cval, now)), ahead.rem_euclid(16));
        });
        every_pair(|tval, now| {
            let half = i128::from(tval).rem_euclid(16);
            let ticks = if half < 8 { half } else { half - 16 };
            assert_eq!(w8::tval_write(tval, now), modulo(i128::from(now) + ticks));
            assert_eq!(i128::from(w8::tval_read(w8::tval_write(tval, now), now)), half, "what was written reads back");
        });
    }
}
