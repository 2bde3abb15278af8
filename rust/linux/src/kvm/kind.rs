//! What a descriptor is of: so that a wrong one is told at once, and never given an ioctl that means something else to it.

use std::os::fd::RawFd;
use std::{fs, io};

/// What KVM gives descriptors for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// KVM_CREATE_VM.
    Vm,
    /// KVM_CREATE_VCPU.
    Vcpu,
    /// KVM_CREATE_DEVICE of a vGIC.
    Vgic,
}

impl Kind {
    /// What the kernel names such a descriptor's file (virt/kvm/kvm_main.c; arch/arm64/kvm/vgic/vgic-kvm-device.c).
    fn is_named(self, name: &str) -> bool {
        match self {
            Self::Vm => name == "anon_inode:kvm-vm",
            Self::Vcpu => name.starts_with("anon_inode:kvm-vcpu:"),
            Self::Vgic => name.starts_with("anon_inode:kvm-arm-vgic"),
        }
    }

    const fn told(self) -> &'static str {
        match self {
            Self::Vm => "a KVM VM's descriptor",
            Self::Vcpu => "a KVM vCPU's descriptor",
            Self::Vgic => "a vGIC's descriptor",
        }
    }
}

/// Refuses a descriptor that isn't of this kind: EBADF for a closed one, EINVAL for another. Where there is no /proc, it
/// can't be told, and passes.
pub fn expect(kind: Kind, fd: RawFd) -> io::Result<()> {
    let links = "/proc/self/fd";
    match fs::read_link(format!("{links}/{fd}")) {
        Ok(name) if kind.is_named(&name.to_string_lossy()) => Ok(()),
        Ok(name) => {
            let message = format!("{fd} isn't {}, but of {}", kind.told(), name.display());
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
        Err(_) if !fs::exists(links).unwrap_or(false) => Ok(()),
        Err(_) => Err(io::Error::from_raw_os_error(libc::EBADF)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_kernels_names_are_told_apart() {
        assert!(Kind::Vm.is_named("anon_inode:kvm-vm") && !Kind::Vm.is_named("anon_inode:kvm-vcpu:0"));
        assert!(Kind::Vcpu.is_named("anon_inode:kvm-vcpu:11") && !Kind::Vcpu.is_named("anon_inode:kvm-vm"));
        assert!(Kind::Vgic.is_named("anon_inode:kvm-arm-vgic-v3") && !Kind::Vgic.is_named("anon_inode:kvm-vm"));
    }

    #[test]
    fn another_file_is_named_and_a_closed_one_is_told() {
        let file = File::open("/dev/null").unwrap();
        let error = expect(Kind::Vm, file.as_raw_fd()).unwrap_err().to_string();
        assert!(error.contains("/dev/null") && error.contains("a KVM VM's descriptor"), "{error}");
        assert_eq!(expect(Kind::Vcpu, 1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
