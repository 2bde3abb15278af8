//! Pages in a guest's memory that give it the time, written in place: no reader sees half a store.
//!
//! A VMM hands in its own mapping of the guest's memory as a [`Memory`]. The layouts are those of
//! [`guestclock_core::guest::pvtime`] and [`guestclock_core::guest::vmclock::layout`].
#![expect(unsafe_code, reason = "atomic stores into memory that isn't Rust's")]

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guestclock_core::guest::pvtime;
use guestclock_core::guest::vmclock::{Body, Header, Shared, layout as vmclock};
use thiserror::Error;

/// Reasons why there is no page in a piece of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum PageError {
    /// The memory ends too soon.
    #[error("{what} of {size} bytes at offset {offset:#x} doesn't fit in {len:#x} bytes of memory")]
    OutOfBounds {
        /// Name of the page.
        what: &'static str,
        /// Size of the page, in bytes.
        size: usize,
        /// Offset asked for.
        offset: usize,
        /// Length of the memory, in bytes.
        len: usize,
    },
    /// A field at this address can't be stored at once.
    #[error(
        "{what} has to be at a multiple of {alignment} bytes: offset {offset:#x} of this memory is {over} past one \
         (map guest memory with mmap, which aligns it to pages)"
    )]
    Misaligned {
        /// Name of the page.
        what: &'static str,
        /// Offset asked for.
        offset: usize,
        /// Alignment of the page, in bytes.
        alignment: usize,
        /// Distance past the last multiple of it, in bytes.
        over: usize,
    },
    /// The layout is unknown.
    #[error("at offset {offset:#x} is no stolen-time record of revision 0: it begins with {header:#018x}")]
    NotStolenTime {
        /// Offset in the memory.
        offset: usize,
        /// Revision and attributes of the record.
        header: u64,
    },
    /// There is no vmclock page, or none that this version can write.
    #[error(
        "there is no vmclock page of version 1 by UTC or TAI at offset {offset:#x}: it begins with \
         {magic_and_size:#018x} {identity:#010x} (VmClock.create makes one)"
    )]
    NotVmClock {
        /// Offset in the memory.
        offset: usize,
        /// First word: magic number and size.
        magic_and_size: u64,
        /// Second word: version, counter and type of time.
        identity: u32,
    },
    /// The region is too small for a page, or ends past the memory.
    #[error(
        "a vmclock region of {size} bytes at offset {offset:#x}: at least {}, and it has to fit in {len:#x} bytes",
        vmclock::SIZE
    )]
    Region {
        /// Size of the region, in bytes.
        size: usize,
        /// Offset in the memory.
        offset: usize,
        /// Length of the memory, in bytes.
        len: usize,
    },
}

/// Memory that is shared with a guest: others write it too, at any time.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    bytes: NonNull<[u8]>,
    shared: PhantomData<&'a AtomicU64>,
}

impl<'a> Memory<'a> {
    /// Takes the memory at `bytes`.
    ///
    /// # Safety
    /// For as long as 'a the memory is mapped and may be written, and no Rust code holds a reference to it or accesses
    /// it except by atomics. This crate accesses it by atomics, of 8 bytes and of 4 at places that don't overlap.
    #[must_use]
    pub const unsafe fn new(bytes: NonNull<[u8]>) -> Self {
        Self { bytes, shared: PhantomData }
    }

    const fn len(self) -> usize {
        self.bytes.len()
    }

    fn address(self) -> usize {
        self.bytes.cast::<u8>().addr().get()
    }

    /// The `size` bytes at `offset`, at a multiple of `alignment`.
    fn page(self, what: &'static str, offset: usize, size: usize, alignment: usize) -> Result<Self, PageError> {
        let len = self.len();
        if offset > len || size > len - offset {
            return Err(PageError::OutOfBounds { what, size, offset, len });
        }
        let page = self.at(offset, size);
        match page.address() % alignment {
            0 => Ok(page),
            over => Err(PageError::Misaligned { what, offset, alignment, over }),
        }
    }

    fn at(self, offset: usize, size: usize) -> Self {
        assert!(offset <= self.len() && size <= self.len() - offset);
        // SAFETY: as asserted, both ends lie in the memory, which is one allocation as long as 'a.
        let start = unsafe { self.bytes.cast::<u8>().add(offset) };
        Self { bytes: NonNull::slice_from_raw_parts(start, size), shared: PhantomData }
    }

    fn u64_at(self, offset: usize) -> &'a AtomicU64 {
        let [word] = self.u64s_at(offset);
        word
    }

    fn u64s_at<const N: usize>(self, offset: usize) -> &'a [AtomicU64; N] {
        let words = self.at(offset, size_of::<[AtomicU64; N]>());
        assert!(words.address().is_multiple_of(align_of::<AtomicU64>()));
        // SAFETY: `new`'s caller vouches for the bytes as long as 'a; they are enough and, as asserted, aligned.
        // AtomicU64 is laid out as u64 is, and any bits make one. A guest writes them as another process would write
        // shared memory.
        unsafe { words.bytes.cast().as_ref() }
    }

    fn u32_at(self, offset: usize) -> &'a AtomicU32 {
        let word = self.at(offset, size_of::<AtomicU32>());
        assert!(word.address().is_multiple_of(align_of::<AtomicU32>()));
        // SAFETY: as above, for four bytes.
        unsafe { word.bytes.cast().as_ref() }
    }
}

/// Stolen-time record of a stopped vCPU: KVM reads it, adds to it and writes it whenever it loads the vCPU
/// (arch/arm64/kvm/pvtime.c).
#[derive(Clone, Copy)]
pub struct StolenTime<'a> {
    stolen_ns: &'a AtomicU64,
}

impl core::fmt::Debug for StolenTime<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("StolenTime").field("stolen_ns", &self.stolen_ns()).finish()
    }
}

impl<'a> StolenTime<'a> {
    /// Finds the record at `offset`, which has to be of revision 0, with attributes 0.
    pub fn at(memory: Memory<'a>, offset: usize) -> Result<Self, PageError> {
        let place = memory.page("a stolen-time record", offset, pvtime::SIZE, pvtime::SIZE)?;
        let header = u64::from_le(place.u64_at(pvtime::HEADER).load(Ordering::Relaxed));
        if !pvtime::is_known(header) {
            return Err(PageError::NotStolenTime { offset, header });
        }
        Ok(Self { stolen_ns: place.u64_at(pvtime::STOLEN_TIME) })
    }

    /// Finds a record that was found at `offset` before, whatever is in it now: the guest can write it.
    pub fn again(memory: Memory<'a>, offset: usize) -> Result<Self, PageError> {
        let place = memory.page("a stolen-time record", offset, pvtime::SIZE, pvtime::SIZE)?;
        Ok(Self { stolen_ns: place.u64_at(pvtime::STOLEN_TIME) })
    }

    /// The time stolen so far, in nanoseconds.
    #[must_use]
    pub fn stolen_ns(&self) -> u64 {
        u64::from_le(self.stolen_ns.load(Ordering::Relaxed))
    }

    /// Adds to the time stolen, in one store, and returns the sum: modulo 2^64, as KVM adds to what it finds there
    /// (`kvm_update_stolen_time` in arch/arm64/kvm/pvtime.c). The guest can write anything into its own record.
    #[expect(clippy::must_use_candidate, reason = "the store is what it is called for")]
    pub fn add(&self, ns: u64) -> u64 {
        let sum = self.stolen_ns().wrapping_add(ns);
        self.stolen_ns.store(sum.to_le(), Ordering::Relaxed);
        sum
    }
}

/// A vmclock page.
#[derive(Clone, Copy)]
pub struct VmClock<'a> {
    place: Memory<'a>,
}

impl core::fmt::Debug for VmClock<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("VmClock").field("shared", &self.shared()).finish()
    }
}

impl<'a> VmClock<'a> {
    fn place(memory: Memory<'a>, offset: usize) -> Result<Self, PageError> {
        let place = memory.page("a vmclock page", offset, vmclock::SIZE, vmclock::ALIGNMENT)?;
        Ok(Self { place })
    }

    /// Makes a page at `offset`, before the guest runs: its first fields are constant from then on.
    ///
    /// The magic number is stored last, so that there is no page before it is whole.
    pub fn create(memory: Memory<'a>, offset: usize, header: Header, body: &Body) -> Result<Self, PageError> {
        let page = Self::place(memory, offset)?;
        let (len, size) = (memory.len(), usize::try_from(header.size).unwrap_or(usize::MAX));
        if !(vmclock::SIZE..=len - offset).contains(&size) {
            return Err(PageError::Region { size, offset, len });
        }
        let (magic_and_size, identity) = header.words();
        page.place.u64_at(vmclock::MAGIC_AND_SIZE).store(0, Ordering::Relaxed);
        page.place.u32_at(vmclock::IDENTITY).store(identity.to_le(), Ordering::Relaxed);
        page.shared().begin();
        page.shared().end(body);
        page.place.u64_at(vmclock::MAGIC_AND_SIZE).store(magic_and_size.to_le(), Ordering::Release);
        Ok(page)
    }

    /// Finds the page that is at `offset` already, such as one that came with the guest's memory, and its header.
    pub fn at(memory: Memory<'a>, offset: usize) -> Result<(Self, Header), PageError> {
        let page = Self::place(memory, offset)?;
        let magic_and_size = u64::from_le(page.place.u64_at(vmclock::MAGIC_AND_SIZE).load(Ordering::Relaxed));
        let identity = u32::from_le(page.place.u32_at(vmclock::IDENTITY).load(Ordering::Relaxed));
        let header = Header::of((magic_and_size, identity));
        let header = header.ok_or(PageError::NotVmClock { offset, magic_and_size, identity })?;
        Ok((page, header))
    }

    /// Finds a page that was made or found at `offset` before, whatever is in it now: the guest may have overwritten it,
    /// and its header is written again.
    pub fn again(memory: Memory<'a>, offset: usize, header: Header) -> Result<Self, PageError> {
        let page = Self::place(memory, offset)?;
        let (magic_and_size, identity) = header.words();
        page.place.u32_at(vmclock::IDENTITY).store(identity.to_le(), Ordering::Relaxed);
        page.place.u64_at(vmclock::MAGIC_AND_SIZE).store(magic_and_size.to_le(), Ordering::Relaxed);
        Ok(page)
    }

    /// The fields that readers share.
    #[must_use]
    pub fn shared(&self) -> Shared<'a> {
        Shared { seq_count: self.place.u32_at(vmclock::SEQ_COUNT), words: self.place.u64s_at(vmclock::BODY) }
    }
}
