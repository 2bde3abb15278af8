//! Consistent updates of a page that guests read at any moment.

use crate::guest::vmclock::body::Body;
use crate::guest::vmclock::layout::WORDS;
use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// A page that others read during a write: `seq_count`, and the words of the body.
///
/// One thread writes at a time. `seq_count` is odd during a write, and a reader that finds it odd, or changed, reads
/// again. Each ordering has its reason:
///
/// - *Odd, then the body.* The fence in [`begin`](Shared::begin) keeps every store of the body behind the odd count. A
///   reader that loads one of these stores, and then `seq_count` past an acquire fence, finds that count or a later
///   one.
/// - *The body, then even.* The last store is a Release: a reader that acquires the even count finds the whole body.
///
/// A guest's reads have its architecture's read barriers between them, which order at least as much (`virt_rmb` in
/// Linux's drivers/ptp/ptp_vmclock.c). Sources: C++20 [atomics.fences], which defines Rust's fences; UAPI.13, "The
/// vmclock_abi structure".
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    /// `seq_count`.
    pub seq_count: &'a AtomicU32,
    /// The body.
    pub words: &'a [AtomicU64; WORDS],
}

impl Shared<'_> {
    /// Returns the page's content, and whether `seq_count` is even. No other thread may write meanwhile.
    #[must_use]
    pub fn load(&self) -> (Body, bool) {
        let whole = u32::from_le(self.seq_count.load(Ordering::Acquire)) & 1 == 0;
        (Body(core::array::from_fn(|at| u64::from_le(self.words[at].load(Ordering::Relaxed)))), whole)
    }

    /// Opens an update: readers wait until its end. A count that is already odd stays: that update was never closed.
    pub fn begin(&self) {
        let odd = u32::from_le(self.seq_count.load(Ordering::Relaxed)) | 1;
        self.seq_count.store(odd.to_le(), Ordering::Relaxed);
        fence(Ordering::Release);
    }

    /// Writes the body and closes the update.
    pub fn end(&self, body: &Body) {
        for (word, value) in self.words.iter().zip(body.0) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        let odd = u32::from_le(self.seq_count.load(Ordering::Relaxed)) | 1;
        self.seq_count.store(odd.wrapping_add(1).to_le(), Ordering::Release);
    }
}
