//! Instruction sets that the column loops are compiled for, and those that this CPU has.
//!
//! A loop's text is written once, in its own module, and compiled here for each set. Two steps are written by hand for
//! the wider sets, for which the compiler makes worse code of the text; the text remains the rule. This is the one file
//! of the crate that may hold unsafe code: a function compiled for instructions that a CPU lacks must not run on it,
//! and only an [`Isa`] proves that they are there.

#![allow(unsafe_code, reason = "of the whole crate, here")]

use crate::bank::block::{BLOCK, Lanes};
use crate::bank::timer_block::{TimerBlock, conditions, least_ticks};
use guestclock_core::time::HostCount;
use std::fmt;

/// Instruction set that this CPU has. A set that it lacks can't be constructed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Isa(Level);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Level {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// Error for an instruction set that doesn't exist, or that this CPU lacks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no instruction set {asked:?} here: this CPU has {}", .available.join(", "))]
pub struct NoSuchIsa {
    /// The requested name.
    pub asked: String,
    /// The names that this CPU has.
    pub available: Vec<&'static str>,
}

impl Level {
    /// All sets that the loops are compiled for, each wider than the one before it.
    const ALL: &[Self] = &[
        Self::Baseline,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
        }
    }
}

macro_rules! x86 {
    ($($level:ident $function:ident [$($feature:tt)+];)+) => {
        impl Level {
            fn is_here(self) -> bool {
                match self {
                    Self::Baseline => true,
                    $(
                        #[cfg(target_arch = "x86_64")]
                        Self::$level => true $(&& std::arch::is_x86_feature_detected!($feature))+,
                    )+
                }
            }
        }

        $(
            #[cfg(target_arch = "x86_64")]
            $(#[target_feature(enable = $feature)])+
            fn $function<R>(work: impl FnOnce(Isa) -> R) -> R {
                work(Isa(Level::$level))
            }
        )+
    };
}

x86! {
    Avx2 avx2 ["avx2" "bmi1" "bmi2" "lzcnt"];
    // As wide as Ice Lake's and Zen 4's.
    Avx512 avx512 ["avx2" "bmi1" "bmi2" "lzcnt" "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512ifma"];
}

impl Isa {
    /// Instructions that every CPU of the architecture has.
    pub const BASELINE: Self = Self(Level::Baseline);

    /// Returns the sets that this CPU has, the widest last. Without the feature `std` these are the ones that the
    /// target is sure to have.
    pub fn available() -> impl Iterator<Item = Self> {
        Level::ALL.iter().copied().filter(|level| level.is_here()).map(Self)
    }

    /// Returns the widest set that this CPU has.
    #[must_use]
    pub fn best() -> Self {
        Self::available().last().unwrap_or(Self::BASELINE)
    }

    /// Returns the set with this name.
    ///
    /// ```
    /// use guestclock_model::bank::Isa;
    /// assert_eq!(Isa::named("baseline"), Ok(Isa::BASELINE));
    /// assert!(Isa::named("mmx").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// [`NoSuchIsa`] if the set doesn't exist, or this CPU lacks it.
    pub fn named(name: &str) -> Result<Self, NoSuchIsa> {
        let found = Self::available().find(|isa| isa.name() == name);
        found.ok_or_else(|| NoSuchIsa { asked: name.into(), available: Self::available().map(Self::name).collect() })
    }

    /// Name of the set: `baseline`, `avx2` or `avx512`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0.name()
    }

    /// Runs a loop that is compiled for these instructions. Only inlined code is compiled for them, so the closure and
    /// its callees are `#[inline(always)]`. The closure gets the set as a constant, so that what depends on it is
    /// decided at compile time.
    #[inline]
    pub(super) fn run<R>(self, work: impl FnOnce(Self) -> R) -> R {
        match self.0 {
            Level::Baseline => work(Self::BASELINE),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this level was made only if the CPU has these features.
            Level::Avx2 => unsafe { avx2(work) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx512 => unsafe { avx512(work) },
        }
    }
}

/// Number of words in a register.
pub(super) const TABLE: usize = 8;

impl Isa {
    /// Looks up the word of each row in each table. No index is past the tables' end.
    #[inline]
    pub(super) fn look_up(self, tables: &[[u64; TABLE]], of: &[u16; BLOCK], words: &mut [Lanes<u64>]) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Level::Avx2 => unsafe { look_up::avx2(tables, of, words) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Level::Avx512 => unsafe { look_up::avx512(tables, of, words) },
            Level::Baseline => {
                for (table, words) in tables.iter().zip(words) {
                    for (word, &of) in words.0.iter_mut().zip(of) {
                        *word = table[usize::from(of) % TABLE];
                    }
                }
            }
        }
    }
}

/// Permutations of a register: the compiler makes a load for each word.
#[cfg(target_arch = "x86_64")]
mod look_up {
    use super::{BLOCK, Lanes, TABLE};
    #[allow(clippy::wildcard_imports, reason = "the names say where they come from")]
    use core::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub(super) fn avx512(tables: &[[u64; TABLE]], of: &[u16; BLOCK], words: &mut [Lanes<u64>]) {
        for (number, of) in of.as_chunks::<8>().0.iter().enumerate() {
            // SAFETY: half a vector of two is read from eight indices, at any address.
            let of = _mm512_cvtepu16_epi64(unsafe { _mm_loadu_si128(of.as_ptr().cast()) });
            for (table, words) in tables.iter().zip(words.iter_mut()) {
                let words = &mut words.0.as_chunks_mut::<8>().0[number];
                // SAFETY: a vector is read from the table, and one is written to eight words, at any address.
                unsafe {
                    let table = _mm512_loadu_si512(table.as_ptr().cast());
                    _mm512_storeu_si512(words.as_mut_ptr().cast(), _mm512_permutexvar_epi64(of, table));
                }
            }
        }
    }

    /// Keeps the lower halves of all eight words in one register, and the upper halves in another.
    #[target_feature(enable = "avx2")]
    pub(super) fn avx2(tables: &[[u64; TABLE]], of: &[u16; BLOCK], words: &mut [Lanes<u64>]) {
        for (table, words) in tables.iter().zip(words) {
            // SAFETY: a vector is read from each half of the table, at any address.
            let (first, last) = unsafe {
                let halves = [table.as_ptr(), table.as_ptr().add(TABLE / 2)];
                let [first, last] = halves.map(|half| _mm256_loadu_si256(half.cast()));
                (_mm256_castsi256_ps(first), _mm256_castsi256_ps(last))
            };
            // The shuffles leave the words in the order 0, 1, 4, 5, 2, 3, 6 and 7.
            let order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
            let lower = _mm256_castps_si256(_mm256_shuffle_ps::<0b10_00_10_00>(first, last));
            let lower = _mm256_permutevar8x32_epi32(lower, order);
            let upper = _mm256_castps_si256(_mm256_shuffle_ps::<0b11_01_11_01>(first, last));
            let upper = _mm256_permutevar8x32_epi32(upper, order);
            for (of, words) in of.as_chunks::<4>().0.iter().zip(words.0.as_chunks_mut::<4>().0) {
                // SAFETY: half a vector is read from four indices, at any address.
                let of = _mm256_cvtepu16_epi64(unsafe { _mm_loadl_epi64(of.as_ptr().cast()) });
                let of = _mm256_or_si256(of, _mm256_slli_epi64::<32>(of));
                let [lower, upper] = [lower, upper].map(|halves| _mm256_permutevar8x32_epi32(halves, of));
                let found = _mm256_blend_epi32::<0b1010_1010>(lower, upper);
                // SAFETY: a vector is written to four words, at any address.
                unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), found) };
            }
        }
    }
}

impl Isa {
    /// Computes [`conditions`] of one timer, and [`least_ticks`].
    #[inline]
    pub(super) fn conditions_and_ticks(
        self,
        now: HostCount,
        timer: TimerBlock<'_>,
        never: &Lanes<u8>,
        met: &mut Lanes<bool>,
        ticks: &mut [u64; BLOCK],
    ) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Level::Avx2 => unsafe { conditions_and_ticks::avx2(now, timer, never, met, ticks) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Level::Avx512 => unsafe { conditions_and_ticks::avx512(now, timer, never, met, ticks) },
            Level::Baseline => {
                conditions(now, timer, &mut met.0);
                least_ticks(now, timer, never, ticks);
            }
        }
    }
}

/// Both results from one read of each word, with one comparison (AVX2). The compiler's loops read it twice, and reorder
/// the bytes of every two vectors.
#[cfg(target_arch = "x86_64")]
mod conditions_and_ticks {
    use super::{BLOCK, HostCount, Lanes, TimerBlock};
    #[allow(clippy::wildcard_imports, reason = "the names say where they come from")]
    use core::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    pub(super) fn avx512(
        now: HostCount,
        timer: TimerBlock<'_>,
        never: &Lanes<u8>,
        met: &mut Lanes<bool>,
        ticks: &mut [u64; BLOCK],
    ) {
        let now = _mm512_set1_epi64(now.0.cast_signed());
        // SAFETY: a vector is read from 64 bytes, at any address.
        let never = unsafe { _mm512_loadu_si512(never.0.as_ptr().cast()) };
        let ever = _mm512_testn_epi8_mask(never, never).to_le_bytes();
        let (offsets, cval) = (timer.offsets.as_chunks::<8>().0, timer.cval.as_chunks::<8>().0);
        let ticks = ticks.as_chunks_mut::<8>().0;
        let met_in = core::array::from_fn(|at| {
            // SAFETY: a vector is read from each eight words, at any address.
            let [offsets, cval, least] =
                [&offsets[at], &cval[at], &ticks[at]].map(|words| unsafe { _mm512_loadu_si512(words.as_ptr().cast()) });
            let guest = _mm512_sub_epi64(now, offsets);
            let until = _mm512_sub_epi64(_mm512_max_epu64(cval, guest), guest);
            let least = _mm512_mask_min_epu64(least, ever[at], least, until);
            // SAFETY: a vector is written to eight words, at any address.
            unsafe { _mm512_storeu_si512(ticks[at].as_mut_ptr().cast(), least) };
            _mm512_cmple_epu64_mask(cval, guest)
        });
        let ones = _mm512_maskz_set1_epi8(u64::from_le_bytes(met_in), 1);
        // SAFETY: a vector is written to 64 truth values, at any address, and each of its bytes is 0 or 1.
        unsafe { _mm512_storeu_si512(met.0.as_mut_ptr().cast(), ones) };
    }

    /// Compares words as signed ones, with their top bits flipped.
    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn avx2(
        now: HostCount,
        timer: TimerBlock<'_>,
        never: &Lanes<u8>,
        met: &mut Lanes<bool>,
        ticks: &mut [u64; BLOCK],
    ) {
        let top = _mm256_set1_epi64x(i64::MIN);
        let now = _mm256_set1_epi64x(now.0.cast_signed() ^ i64::MIN);
        let (offsets, cval) = (timer.offsets.as_chunks::<4>().0, timer.cval.as_chunks::<4>().0);
        let (never, ticks) = (never.0.as_chunks::<4>().0, ticks.as_chunks_mut::<4>().0);
        for (first, met) in (0..).step_by(8).zip(met.0.as_chunks_mut::<32>().0) {
            let unmet: [__m256i; 8] = core::array::from_fn(|at| {
                let at = first + at;
                // SAFETY: a vector is read from each four words, at any address.
                let [offsets, cval, least] = [&offsets[at], &cval[at], &ticks[at]]
                    .map(|words| unsafe { _mm256_loadu_si256(words.as_ptr().cast()) });
                let guest = _mm256_sub_epi64(now, offsets);
                let cval = _mm256_xor_si256(cval, top);
                let unmet = _mm256_cmpgt_epi64(cval, guest);
                let until = _mm256_and_si256(unmet, _mm256_sub_epi64(cval, guest));
                let never = _mm256_cvtepi8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(never[at])));
                let until = _mm256_or_si256(until, never);
                let sooner = _mm256_cmpgt_epi64(_mm256_xor_si256(least, top), _mm256_xor_si256(until, top));
                let least = _mm256_blendv_epi8(least, until, sooner);
                // SAFETY: a vector is written to four words, at any address.
                unsafe { _mm256_storeu_si256(ticks[at].as_mut_ptr().cast(), least) };
                unmet
            });
            let packed = |at| {
                let halves = _mm256_packs_epi32(unmet[at], unmet[at + 1]);
                _mm256_packs_epi16(halves, _mm256_packs_epi32(unmet[at + 2], unmet[at + 3]))
            };
            let ones = _mm256_add_epi8(_mm256_packs_epi16(packed(0), packed(4)), _mm256_set1_epi8(1));
            // Each lane has every other pair of rows. One vector is written: two would be slow to read as one.
            let pairs = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
            let halves = _mm256_permute4x64_epi64::<0b11_01_10_00>(ones);
            let ones = _mm256_shuffle_epi8(halves, _mm256_broadcastsi128_si256(pairs));
            // SAFETY: a vector is written to 32 truth values, at any address, and each of its bytes is 0 or 1.
            unsafe { _mm256_storeu_si256(met.as_mut_ptr().cast(), ones) };
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
