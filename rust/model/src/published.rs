//! Published offsets of a VM's vCPUs, for reads that take no lock.

use crate::bank::Bank;
use crate::config::MAX_VCPUS;
use crate::error::VmError;
use crate::vm::ModelVm;
use guestclock_core::arch::arm64::{Offsets, View};
use guestclock_core::sync::{AtomicU64, Ordering};
use guestclock_core::time::PublishedOffset;
use std::ops::Deref;
use std::sync::OnceLock;

/// Published offsets of one vCPU's two counters.
#[derive(Debug, Default)]
pub struct VcpuOffsets {
    virt: PublishedOffset,
    phys: PublishedOffset,
}

impl VcpuOffsets {
    /// Returns offsets that readers see from the start.
    #[must_use]
    pub fn new(offsets: Offsets) -> Self {
        Self { virt: PublishedOffset::new(offsets.virt), phys: PublishedOffset::new(offsets.phys) }
    }

    /// Publishes these offsets, one after the other. One thread at a time may do so.
    pub fn publish(&self, offsets: Offsets) {
        self.virt.publish(offsets.virt);
        self.phys.publish(offsets.phys);
    }

    /// The published offset of this view.
    #[inline]
    #[must_use]
    pub const fn of(&self, view: View) -> &PublishedOffset {
        match view {
            View::Virtual => &self.virt,
            View::Physical => &self.phys,
        }
    }
}

/// Number of vCPUs whose offsets are allocated together. Small under loom, so that a test adds a chunk.
const CHUNK: usize = if cfg!(loom) { 2 } else { 32 };

/// Number of chunks for the maximum number of vCPUs. Small under loom, whose threads have small stacks.
const CHUNKS: usize = if cfg!(loom) { 2 } else { MAX_VCPUS / CHUNK };

/// Published offsets of all vCPUs. They never move, so that they can be read while vCPUs are added.
#[derive(Debug)]
pub(crate) struct PublishedVm {
    /// `OnceLock` is the standard library's under loom too, where it orders nothing: no proof there relies on it.
    chunks: [OnceLock<Box<[VcpuOffsets; CHUNK]>>; CHUNKS],
    /// Number of vCPUs, stored after their offsets: a reader that sees the number sees their offsets.
    vcpus: AtomicU64,
}

impl PublishedVm {
    /// Returns the offsets of a VM that has no readers yet.
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

    /// Publishes the VM's offsets, one after the other: two reads during the call may have different ones. The caller
    /// holds the VM's lock, so the last thread to publish is the last that changed the VM.
    pub(crate) fn publish(&self, vm: &ModelVm<impl Deref<Target = Bank>>) {
        for vcpu in 0..vm.vcpus() {
            let Ok(offsets) = vm.offsets(vcpu) else { continue };
            self.chunks[vcpu / CHUNK].get_or_init(Box::default)[vcpu % CHUNK].publish(offsets);
        }
        self.vcpus.store(vm.vcpus() as u64, Ordering::Release);
    }

    /// Memory of the offsets in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let chunks = self.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        size_of::<Self>() + chunks * size_of::<[VcpuOffsets; CHUNK]>()
    }

    /// Ends the publication: the VM is removed.
    pub(crate) fn clear(&self) {
        self.vcpus.store(0, Ordering::Release);
    }
}
