//! Descriptors by their numbers, for VMMs that aren't written in Rust.
#![expect(unsafe_code, reason = "a number is borrowed as a descriptor")]

use crate::kvm::descriptor::{self, DescriptorKind};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

/// Number of a KVM descriptor whose owner isn't Rust code, such as a VMM in Python.
///
/// The owner promises to keep the descriptor open for as long as the number is in use. Nothing can hold it to that, so
/// this type never gives out a `BorrowedFd`. A number can be examined ([`expect`](Self::expect)) and can become part of
/// [`Fds`](crate::kvm::fds::Fds), and both are harmless after a broken promise: a closed number is EBADF, and a number
/// that has become another file's is ENOTTY, or an ioctl on another VM of this process.
///
/// ```
/// use guestclock_linux::kvm::descriptor::DescriptorKind;
/// use guestclock_linux::kvm::number::FdNumber;
/// use std::fs::File;
/// use std::os::fd::AsRawFd;
///
/// let null = File::open("/dev/null")?;
/// let refused = FdNumber::new(null.as_raw_fd())?.expect(DescriptorKind::Vm).unwrap_err();
/// assert!(refused.to_string().contains("isn't a KVM VM's descriptor, but of /dev/null"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FdNumber(RawFd);

impl FdNumber {
    /// Takes the number of a descriptor. A negative number, as a closed socket of Python's has it, is EBADF.
    ///
    /// Makes no system call: each ioctl checks anew that its descriptor is open, and no check here would last until
    /// then.
    pub fn new(number: RawFd) -> io::Result<Self> {
        if number < 0 { Err(io::Error::from_raw_os_error(libc::EBADF)) } else { Ok(Self(number)) }
    }

    /// Refuses a descriptor that isn't of this kind: see [`descriptor::expect`].
    pub fn expect(self, kind: DescriptorKind) -> io::Result<()> {
        descriptor::expect(kind, self.borrow())
    }

    /// Borrows the descriptor, for the calls of this crate alone.
    pub(crate) const fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: the number isn't -1. That the descriptor stays open is its owner's promise. No memory depends on it:
        // this crate asks such a descriptor for its flags and its name, and makes KVM's ioctls on it. A closed number
        // is EBADF. Other drivers answer KVM's requests with an error and access no memory by them (`fds`). KVM itself
        // accesses only what this crate passes, whichever of its descriptors the number has become.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_numbers_are_closed_ones() {
        for number in [-1, -2, RawFd::MIN] {
            assert_eq!(FdNumber::new(number).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }

    #[test]
    fn a_closed_number_is_of_no_kind() {
        let closed = FdNumber::new(1 << 20).unwrap();
        for kind in [DescriptorKind::Vm, DescriptorKind::Vcpu, DescriptorKind::Vgic] {
            assert_eq!(closed.expect(kind).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
}
