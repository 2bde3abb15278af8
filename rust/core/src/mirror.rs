//! What a read takes no lock for: each vCPU's two offsets in atomics, as the hardware holds CNTVOFF_EL2.
//!
//! One thread at a time publishes; any number read. A read returns `count - offset`, where the offset was in force when the
//! count was taken: both before it and after it. Why each ordering is needed:
//!
//! - *Offset, then count.* Who sees an offset must take a count no older than the one that it was made from: under Freeze
//!   an older count lies in the guest's past. Storing with Release and loading with Acquire orders the writer's sample
//!   before the reader's.
//! - *Count, then offset again.* A count from after a change under the offset from before it is a time that the guest never
//!   gets to. Here it is the counter that orders: [`Counter::count`] is an acquire load, or as good as one. Who takes a
//!   count that some thread moved on to after a change sees that change at the second load.
//! - *The second load* is an Acquire too, since it is the first of the next round.
//!
//! A change that is undone in the middle of a read goes unseen. What is read then lies between what the guest reads before
//! it and after it, so nothing is seen going backwards.
//!
//! Sources: C++20 [intro.races] and [atomics.order], which Rust's orderings are defined by; Arm ARM DDI 0487, B2.3 (an acquire
//! is ordered before all accesses that follow it). No fence stands here: what a counter that isn't an atomic needs for it is
//! the business of its `count`.

use crate::bank::Bank;
use crate::counter::{Counter, GuestCount, Offset};
use crate::sync::{AtomicU64, Ordering};
use crate::sysreg::View;
use crate::vm::{MAX_VCPUS, Offsets, Vm, VmError};
use core::ops::Deref;
use std::boxed::Box;
use std::sync::OnceLock;

/// vCPUs whose mirrors are allocated together. Few under loom, so that a test adds a chunk.
const CHUNK: usize = if cfg!(loom) { 2 } else { 32 };

/// As many as a VM may have vCPUs; few under loom, whose threads have small stacks.
const CHUNKS: usize = if cfg!(loom) { 2 } else { MAX_VCPUS / CHUNK };

/// The offsets of one vCPU, as its reads see them.
#[derive(Debug, Default)]
pub struct Mirror {
    virt: AtomicU64,
    phys: AtomicU64,
}

impl Mirror {
    /// One with these offsets.
    #[must_use]
    pub fn new(offsets: Offsets) -> Self {
        Self { virt: AtomicU64::new(offsets.virt.0), phys: AtomicU64::new(offsets.phys.0) }
    }

    /// Shows these offsets to its readers, one after the other. One thread at a time.
    pub fn publish(&self, offsets: Offsets) {
        self.virt.store(offsets.virt.0, Ordering::Release);
        self.phys.store(offsets.phys.0, Ordering::Release);
    }

    fn of(&self, view: View) -> &AtomicU64 {
        match view {
            View::Virtual => &self.virt,
            View::Physical => &self.phys,
        }
    }

    /// The offset in force.
    #[inline]
    pub fn offset(&self, view: View) -> Offset {
        Offset(self.of(view).load(Ordering::Acquire))
    }

    /// What the guest reads now. Goes round again only when the offset has changed meanwhile.
    #[inline]
    pub fn count(&self, view: View, counter: &impl Counter) -> GuestCount {
        let mut before = self.offset(view);
        loop {
            let count = counter.count();
            let after = self.offset(view);
            if before == after {
                return count.guest(after);
            }
            before = after;
        }
    }
}

/// The mirrors of all vCPUs. They never move, so that they can be read while vCPUs are added.
#[derive(Debug)]
pub(crate) struct Mirrors {
    /// The standard library's under loom too, where it orders nothing: what is proved there doesn't rest on it.
    chunks: [OnceLock<Box<[Mirror; CHUNK]>>; CHUNKS],
    /// How many vCPUs there are: written after their mirrors, so that who sees the number sees their offsets.
    vcpus: AtomicU64,
}

impl Mirrors {
    /// Those of a VM that nobody reads yet.
    pub(crate) fn of(vm: &Vm<impl Deref<Target = Bank>>) -> Self {
        let mirrors = Self { chunks: [const { OnceLock::new() }; CHUNKS], vcpus: AtomicU64::new(0) };
        mirrors.publish(vm);
        mirrors
    }

    #[inline]
    pub(crate) fn get(&self, vcpu: usize) -> Result<&Mirror, VmError> {
        let vcpus = usize::try_from(self.vcpus.load(Ordering::Acquire)).unwrap_or(MAX_VCPUS);
        let there = if vcpu < vcpus { self.chunks.get(vcpu / CHUNK).and_then(OnceLock::get) } else { None };
        there.map(|chunk| &chunk[vcpu % CHUNK]).ok_or(VmError::NoSuchVcpu { vcpu, vcpus })
    }

    /// Shows the VM's offsets to its readers, one after the other: two reads that straddle it may be under different ones.
    /// Under the VM's lock, so that the last to publish is the last that changed the VM.
    pub(crate) fn publish(&self, vm: &Vm<impl Deref<Target = Bank>>) {
        for vcpu in 0..vm.vcpus() {
            let Ok(offsets) = vm.offsets(vcpu) else { continue };
            self.chunks[vcpu / CHUNK].get_or_init(Box::default)[vcpu % CHUNK].publish(offsets);
        }
        self.vcpus.store(vm.vcpus() as u64, Ordering::Release);
    }

    /// Shows nothing any more: the VM is removed.
    pub(crate) fn clear(&self) {
        self.vcpus.store(0, Ordering::Release);
    }
}
