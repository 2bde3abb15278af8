//! Kinds of KVM's descriptors: a wrong descriptor is refused before it gets an ioctl.

use rustix::io::fcntl_getfd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::{fs, io};

/// Objects that KVM gives descriptors for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum DescriptorKind {
    /// KVM_CREATE_VM.
    Vm,
    /// KVM_CREATE_VCPU.
    Vcpu,
    /// KVM_CREATE_DEVICE of a vGIC.
    Vgic,
}

/// Names of the files of a GICv2 and a GICv3.
const VGICS: [&str; 2] = ["anon_inode:kvm-arm-vgic-v2", "anon_inode:kvm-arm-vgic-v3"];

/// Returns whether the descriptor is a vGICv3's by its name; without /proc nobody can tell.
#[must_use]
#[cfg_attr(not(target_arch = "aarch64"), expect(dead_code, reason = "only arm64 has vGICs"))]
pub(crate) fn is_vgic_v3(fd: BorrowedFd<'_>) -> bool {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).is_ok_and(|name| name.to_string_lossy() == VGICS[1])
}

impl DescriptorKind {
    /// Compares the name that the kernel gives to such a file (virt/kvm/kvm_main.c;
    /// arch/arm64/kvm/vgic/vgic-kvm-device.c).
    fn is_named(self, name: &str) -> bool {
        match self {
            Self::Vm => name == "anon_inode:kvm-vm",
            Self::Vcpu => name.starts_with("anon_inode:kvm-vcpu:"),
            // Not the vGIC's ITS, which is a device of its own.
            Self::Vgic => VGICS.contains(&name),
        }
    }

    const fn noun(self) -> &'static str {
        match self {
            Self::Vm => "a KVM VM's descriptor",
            Self::Vcpu => "a KVM vCPU's descriptor",
            Self::Vgic => "a vGIC's descriptor",
        }
    }
}

/// Refuses a descriptor that isn't of this kind, with the name of the file that it is of.
///
/// A closed descriptor is EBADF, another file's `InvalidInput`. Without /proc the file has no name to compare, and any
/// open descriptor passes.
pub fn expect(kind: DescriptorKind, fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd();
    fcntl_getfd(fd)?;
    let number = fd.as_raw_fd();
    match fs::read_link(format!("/proc/self/fd/{number}")) {
        Ok(name) if !kind.is_named(&name.to_string_lossy()) => {
            let message = format!("{number} isn't {}, but of {}", kind.noun(), name.display());
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_kernels_names_are_told_apart() {
        assert!(
            DescriptorKind::Vm.is_named("anon_inode:kvm-vm") && !DescriptorKind::Vm.is_named("anon_inode:kvm-vcpu:0")
        );
        assert!(
            DescriptorKind::Vcpu.is_named("anon_inode:kvm-vcpu:11")
                && !DescriptorKind::Vcpu.is_named("anon_inode:kvm-vm")
        );
        assert!(
            VGICS.iter().all(|name| DescriptorKind::Vgic.is_named(name))
                && !DescriptorKind::Vgic.is_named("anon_inode:kvm-arm-vgic-its")
                && !DescriptorKind::Vgic.is_named("anon_inode:kvm-vm")
        );
    }

    #[test]
    fn another_file_is_refused_by_its_name() {
        let file = File::open("/dev/null").unwrap();
        let error = expect(DescriptorKind::Vm, &file).unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (io::ErrorKind::InvalidInput, None));
        let error = error.to_string();
        assert!(error.contains("/dev/null") && error.contains("a KVM VM's descriptor"), "{error}");
    }
}
