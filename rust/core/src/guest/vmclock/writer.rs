//! TODO

use crate::guest::vmclock::body::Body;
use crate::guest::vmclock::layout::WORDS;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// A page that others read while it is written: `seq_count`, and the words of the body.
///
/// One thread at a time writes. `seq_count` is odd while it does, and a reader that saw it odd, or saw it change, reads
/// again. Why each ordering is needed:
///
/// - *Odd, then the body.* The fence in [`begin`](Shared::begin) keeps every store of the body behind the odd count:
///   who reads one of them, and then looks at the count past an acquire fence, sees that count or a later one.
/// - *The body, then even.* The last store is a Release: who acquires the even count sees the whole body.
///
/// A guest reads with its architecture's read barriers between, which order no less (`virt_rmb` in Linux's
/// drivers/ptp/ptp_vmclock.c). Sources: C++20 [atomics.fences], which Rust's fences are defined by; UAPI.13, "The
/// vmclock_abi structure".
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// `seq_count`.
    pub seq_count: &'a AtomicU32,
    /// The body.
    pub words: &'a [AtomicU64; WORDS],
}

impl Shared<'_> {
    /// What the page has now, and whether `seq_count` is even. Only where nobody writes.
    #[must_use]
    pub fn load(&self) -> (Body, bool) {
        let whole = u32::from_le(self.seq_count.load(Ordering::Acquire)) & 1 == 0;
        (Body(core::array::from_fn(|at| u64::from_le(self.words[at].load(Ordering::Relaxed)))), whole)
    }

    /// Opens an update: from here to its end readers wait. A count that is odd already stays: nobody closed that
    /// update.
    pub fn begin(&self) {
        let odd = u32::from_le(self.seq_count.load(Ordering::Relaxed)) | 1;
        self.seq_count.store(odd.to_le(), Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Writes the body, and closes the update.
    pub fn end(&self, body: &Body) {
        for (word, value) in self.words.iter().zip(body.0) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        let odd = u32::from_le(self.seq_count.load(Ordering::Relaxed)) | 1;
        self.seq_count.store(odd.wrapping_add(1).to_le(), Ordering::Release);
    }
}
