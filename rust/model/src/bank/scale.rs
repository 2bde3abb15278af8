//! Ticks to nanoseconds and back, exact and without a division for each row.
//!
//! The result is `floor(n * a / b)` for a ratio `a / b` that many rows share. One division splits the ratio into whole
//! and rest, `a = whole * b + rest`, and the rest becomes a binary fraction of 128 bits, rounded *up*:
//!
//! ```text
//! fraction = ceil(rest * 2^128 / b)
//! floor(n * a / b) = n * whole + floor(n * fraction / 2^128)
//! ```
//!
//! **It is exact** for every `n`, `a` and `b` of 64 bits. Let `fraction = (rest * 2^128 + e) / b`, where `0 <= e < b`.
//! Then `n * fraction / 2^128 = n * rest / b + n * e / (b * 2^128)`. The first term is a multiple of `1 / b`, so adding
//! less than `1 / b` doesn't change its floor: that is, if `n * e < 2^128`, which holds since both are below 2^64.
//!
//! The fraction fits in 128 bits: `rest <= b - 1`, so it is at most `ceil(2^128 - 2^128 / b)`, and `2^128 / b` is above
//! 1.
//!
//! **In half words**, which vectors can multiply: [`Digits`] takes 96 bits of the fraction in three digits of 32, and
//! `n` in two. It leaves out the least of the six products, and the lower halves of the next two. The omitted sum is
//! below `3 / 2^32`, and `3 / 2^32` is added for it. A fraction of 96 bits has `n * e / (b * 2^96)` below `1 / 2^32`.
//! In total less than `4 / 2^32` is added to `n * rest / b`: not more than `1 / b` if `b <= 2^30`, as 10^9 is.
//!
//! The tests instantiate the same text for bytes, and try every `n`, `a` and `b`.

use crate::bank::isa::Isa;
use guestclock_core::time::{Frequency, NS_PER_S};

macro_rules! scale {
    ($module:ident, $word:ty, $wide:ty) => {
        #[allow(unreachable_pub, reason = "of the two only that of 64 bits is public")]
        mod $module {
            const BITS: u32 = <$word>::BITS;

            /// A ratio `a / b`, prepared for multiplication.
            #[derive(Clone, Copy, PartialEq, Eq, Debug)]
            pub struct Scale {
                whole: $word,
                upper: $word,
                lower: $word,
                /// The largest number whose product fits in a word.
                limit: $word,
                /// True if the ratio can be taken in half words.
                in_halves: bool,
            }

            impl Scale {
                /// Returns the ratio `a / b`. Neither is 0.
                #[expect(clippy::cast_possible_truncation, reason = "each quotient is in a word's range, as said")]
                pub(crate) const fn ratio(a: $word, b: $word) -> Self {
                    let (wide, rest) = (b as $wide, (a % b) as $wide);
                    // Long division, a word at a time. Each dividend is below b * 2^64.
                    let upper = (rest << BITS) / wide;
                    let below = ((rest << BITS) % wide) << BITS;
                    let (lower, up) = (below / wide, (below % wide != 0) as $wide);
                    let fraction = (upper << BITS | lower) + up;
                    // n * a / b < 2^64 exactly if n * a <= b * 2^64 - 1.
                    let limit = ((wide << BITS) - 1) / a as $wide;
                    Self {
                        whole: a / b,
                        upper: (fraction >> BITS) as $word,
                        lower: fraction as $word,
                        limit: if limit > <$word>::MAX as $wide { <$word>::MAX } else { limit as $word },
                        in_halves: b <= 1 << (BITS / 2 - 2),
                    }
                }

                /// Returns `floor(n * a / b)` modulo 2^64.
                #[must_use]
                #[inline]
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "modulo 2^64; of bytes clippy sees that nothing is lost"
                )]
                pub const fn wrapping(self, n: $word) -> $word {
                    // The products' digits below 2^128 are dropped, and the carry of those above 2^64 is kept. No sum
                    // overflows: (2^64 - 1)^2 + 2^64 - 1 < 2^128.
                    let carry = (n as $wide * self.lower as $wide) >> BITS;
                    let part = (n as $wide * self.upper as $wide).wrapping_add(carry) >> BITS;
                    n.wrapping_mul(self.whole).wrapping_add(part as $word)
                }

                /// Returns whether `floor(n * a / b)` is 2^64 or more.
                #[must_use]
                #[inline]
                pub const fn exceeds(self, n: $word) -> bool {
                    n > self.limit()
                }

                /// Returns the largest number that doesn't exceed.
                pub(crate) const fn limit(self) -> $word {
                    self.limit
                }

                /// Returns `floor(n * a / b)`, or 2^64 - 1 if it is larger.
                #[must_use]
                #[inline]
                pub const fn saturating(self, n: $word) -> $word {
                    if self.exceeds(n) { <$word>::MAX } else { self.wrapping(n) }
                }

                /// Returns the ratio in half words; `None` if its `b` is above 2^30.
                #[expect(clippy::cast_possible_truncation, reason = "taken apart, and a fraction is below 1")]
                pub(crate) const fn digits(self) -> Option<Digits> {
                    if !self.in_halves {
                        return None;
                    }
                    let half = BITS / 2;
                    let fraction = (self.upper as $wide) << BITS | self.lower as $wide;
                    let digits = (fraction >> half) + (fraction & ((1 << half) - 1) != 0) as $wide;
                    let (upper, lower) = ((digits >> half) as $word, digits as $word & LOWER);
                    Some(Digits { whole: self.whole, upper, lower })
                }
            }

            const LOWER: $word = <$word>::MAX >> (BITS / 2);

            /// A ratio with a fraction of three half words: `upper` has two of them, `lower` one.
            #[derive(Clone, Copy, PartialEq, Eq, Debug)]
            pub(crate) struct Digits {
                pub(crate) whole: $word,
                pub(crate) upper: $word,
                pub(crate) lower: $word,
            }

            impl Digits {
                /// Computes [`Scale::wrapping`] without a product of more than a word.
                #[inline]
                pub(crate) fn wrapping(self, n: $word) -> $word {
                    const HALF: u32 = BITS / 2;
                    let (high, low) = (n >> HALF, n & LOWER);
                    let (first, second, third) = (self.upper >> HALF, self.upper & LOWER, self.lower & LOWER);
                    let times = <$word>::wrapping_mul;
                    // No sum overflows: the first digit is at most 2^32 - 4, since 1 - 1 / b is not more than that. A
                    // check would prevent vector code.
                    let below = times(low, first)
                        .wrapping_add(times(low, second) >> HALF)
                        .wrapping_add(times(high, third) >> HALF)
                        .wrapping_add(3);
                    let carry = times(high, second).wrapping_add(below & LOWER) >> HALF;
                    let part = times(high, first).wrapping_add(below >> HALF).wrapping_add(carry);
                    n.wrapping_mul(self.whole).wrapping_add(part)
                }
            }
        }
    };
}

scale!(w64, u64, u128);

#[cfg(test)]
scale!(w8, u8, u16);

pub(crate) use w64::Digits;
pub use w64::Scale;

impl Scale {
    /// Returns the scale from ticks to nanoseconds: [`saturating`](Self::saturating) is [`Frequency::ticks_to_ns`], up
    /// to 2^64 - 1.
    #[must_use]
    pub const fn ticks_to_ns(frequency: Frequency) -> Self {
        Self::ratio(NS_PER_S, frequency.hz())
    }

    /// Returns the scale from nanoseconds to ticks: [`saturating`](Self::saturating) is [`Frequency::ns_to_ticks`], up
    /// to 2^64 - 1.
    #[must_use]
    pub const fn ns_to_ticks(frequency: Frequency) -> Self {
        Self::ratio(frequency.hz(), NS_PER_S)
    }
}

/// Converts each row by the same ratio. Results saturate at 2^64 - 1: 584 years, in nanoseconds.
///
/// # Panics
///
/// If the columns differ in length.
pub fn convert(isa: Isa, scale: Scale, from: &[u64], out: &mut [u64]) {
    assert_eq!(from.len(), out.len(), "rows of the input and of the output");
    // Whole words are multiplied one by one, which is faster only than vectors of two.
    if let Some(digits) = scale.digits().filter(|_| isa != Isa::BASELINE) {
        isa.run(
            #[inline(always)]
            |_| {
                for (out, &from) in out.iter_mut().zip(from) {
                    let product = digits.wrapping(from);
                    *out = if from > scale.limit() { u64::MAX } else { product };
                }
            },
        );
        return;
    }
    isa.run(
        #[inline(always)]
        |_| {
            for (out, &from) in out.iter_mut().zip(from) {
                *out = scale.saturating(from);
            }
        },
    );
}

/// Converts each row by a ratio of its own, `scales[of[row]]`, saturating as [`convert`] does.
///
/// # Panics
///
/// If the columns differ in length, or at a row whose ratio isn't in `scales`: then the rows before it are written.
pub fn convert_mixed(isa: Isa, scales: &[Scale], of: &[u16], from: &[u64], out: &mut [u64]) {
    assert_eq!([from.len(), of.len()], [out.len(); 2], "rows of the input, of its ratios and of the output");
    isa.run(
        #[inline(always)]
        |_| {
            for (out, (&from, &of)) in out.iter_mut().zip(from.iter().zip(of)) {
                *out = scales[usize::from(of)].saturating(from);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::w8;

    /// Every ratio of a byte and a number that has two bits less than half of a byte.
    #[test]
    fn digits_are_the_division() {
        assert_eq!(w8::Scale::ratio(1, 5).digits(), None);
        for a in 1..=u8::MAX {
            for b in 1..=4 {
                let digits = w8::Scale::ratio(a, b).digits().expect("b has two bits less");
                for n in 0..=u8::MAX {
                    let expected = u32::from(n) * u32::from(a) / u32::from(b);
                    assert_eq!(u32::from(digits.wrapping(n)), expected % 256, "{n} * {a} / {b}");
                }
            }
        }
    }

    /// Every ratio of two bytes, on every byte.
    #[test]
    fn it_is_the_division() {
        for a in 1..=u8::MAX {
            for b in 1..=u8::MAX {
                let scale = w8::Scale::ratio(a, b);
                for n in 0..=u8::MAX {
                    let expected = u32::from(n) * u32::from(a) / u32::from(b);
                    assert_eq!(u32::from(scale.wrapping(n)), expected % 256, "{n} * {a} / {b}");
                    assert_eq!(u32::from(scale.saturating(n)), expected.min(255), "{n} * {a} / {b}");
                    assert_eq!(scale.exceeds(n), expected > 255, "{n} * {a} / {b}");
                }
            }
        }
    }
}
