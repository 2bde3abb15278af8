//! KVM on arm64: a VM's clocks through its descriptors, and the offer of /dev/kvm.
//!
//! [`vm::KvmVm`] asks its VM through [`ioctls::Ioctls`], a trait of a handful of system calls: a VMM in Rust implements
//! it on its own descriptors, and [`fds::Fds`] does so on descriptors that it borrows, where this is arm64.

mod capability;
pub mod cpu;
pub mod descriptor;
pub mod error;
#[cfg_attr(not(target_arch = "aarch64"), path = "kvm/no_fds.rs")]
pub mod fds;
pub mod ioctls;
pub mod number;
pub mod offer;
pub mod vm;
