//! Offsets of a VM's vCPUs, as reads see them that take no lock.

use crate::bank::Bank;
use crate::config::MAX_VCPUS;
use crate::error::VmError;
use crate::vm::ModelVm;
use guestclock_core::arch::arm64::{Offsets, View};
use guestclock_core::sync::{AtomicU64, Ordering};
use guestclock_core::time::PublishedOffset;
use std::ops::Deref;
use std::sync::OnceLock;

/// Both offsets of one vCPU.
#[derive(Debug, Default)]
pub struct VcpuOffsets {
    virt: PublishedOffset,
    phys: PublishedOffset,
}

impl VcpuOffsets {
    /// Offsets that readers see from the start.
    #[must_use]
    pub fn new(offsets: Offsets) -> Self {
        Self { virt: PublishedOffset::new(offsets.virt), phys: PublishedOffset::new(offsets.phys) }
    }

    /// Shows these offsets to the readers, one after the other. One thread at a time.
    pub fn publish(&self, offsets: Offsets) {
        self.virt.publish(offsets.virt);
        self.phys.publish(offsets.phys);
    }

    /// The offset that readers of this view go by.
    #[inline]
    #[must_use]
    pub const fn of(&self, view: View) -> &PublishedOffset {
        match view {
            View::Virtual => &self.virt,
            View::Physical => &self.phys,
        }
    }
}

/// vCPUs whose offsets are allocated together. Few under loom, so that a test adds a chunk.
const CHUNK: usize = if cfg!(loom) { 2 } else { 32 };

/// As many as a VM may have vCPUs; few under loom, whose threads have small stacks.
const CHUNKS: usize = if cfg!(loom) { 2 } else { MAX_VCPUS / CHUNK };

/// The published offsets of all vCPUs. They never move, so that they can be read while vCPUs are added.
#[derive(Debug)]
pub(crate) struct PublishedVm {
    /// The standard library's under loom too, where it orders nothing: what is proved there doesn't rest on it.
    chunks: [OnceLock<Box<[VcpuOffsets; CHUNK]>>; CHUNKS],
    /// How many vCPUs there are: written after their offsets, so that who sees the number sees their offsets.
    vcpus: AtomicU64,
}

impl PublishedVm {
    /// Offsets of a VM that nobody reads yet.
    pub(crate) fn of(vm: &ModelVm<impl Deref<Target = Bank>>) -> Self {
        let published = Self { chunks: [const { OnceLock::new() }; CHUNKS], vcpus: AtomicU64::new(0) };
        published.publish(vm);
        published
    }

    #[inline]
    pub(crate) fn get(&self, vcpu: usize) -> Result<&VcpuOffsets, VmError> {
        let vcpus = usize::try_from(self.vcpus.load(Ordering::Acquire)).unwrap_or(MAX_VCPUS);
        let there = if vcpu < vcpus { self.chunks.get(vcpu / CHUNK).and_then(OnceLock::get) } else { None };
        there.map(|chunk| &chunk[vcpu % CHUNK]).ok_or(VmError::NoSuchVcpu { vcpu, vcpus })
    }

    /// Shows the VM's offsets to its readers, one after the other: two reads that straddle it may be under different
    /// ones. Under the VM's lock, so that the last to publish is the last that changed the VM.
    pub(crate) fn publish(&self, vm: &ModelVm<impl Deref<Target = Bank>>) {
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
