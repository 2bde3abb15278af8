//! KVM_GET_API_VERSION and KVM_CHECK_EXTENSION: the ioctls that pass no pointer.
#![expect(unsafe_code, reason = "KVM is asked by ioctl")]

use kvm_bindings::KVMIO;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

// Macros in the kernel's header (include/uapi/linux/kvm.h), so not in kvm-bindings.
const GET_API_VERSION: libc::Ioctl = libc::_IO(KVMIO, 0x00);
const CHECK_EXTENSION: libc::Ioctl = libc::_IO(KVMIO, 0x03);

/// Returns KVM's API version, from the descriptor of /dev/kvm.
pub(crate) fn api_version(kvm: impl AsFd) -> io::Result<i32> {
    integer(&kvm, GET_API_VERSION, 0)
}

/// Returns the value of a capability, from the descriptor of /dev/kvm or of a VM; 0 where it is absent.
pub(crate) fn check_extension(fd: impl AsFd, capability: u32) -> io::Result<i32> {
    integer(&fd, CHECK_EXTENSION, capability)
}

// rustix::ioctl returns no integer but through an unsafe trait that each caller implements: more unsafe code than this.
fn integer(fd: &impl AsFd, request: libc::Ioctl, argument: u32) -> io::Result<i32> {
    // SAFETY: both requests above are made by `_IO`: the kernel takes the argument as a number and accesses no memory
    // by it.
    let answer = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request, libc::c_ulong::from(argument)) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn another_driver_refuses_the_requests() {
        let null = File::open("/dev/null").unwrap();
        for answer in [api_version(&null), check_extension(&null, 1)] {
            assert_eq!(answer.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}
