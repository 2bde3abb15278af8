//! No descriptors: this isn't arm64, whose KVM alone has these clocks.

use crate::kvm::ioctls::Ioctls;
use std::io;
use std::os::fd::RawFd;

/// The descriptors of a VM: there are none here, so there is no value of it.
#[derive(Clone, Debug)]
pub enum Fds {}

impl Fds {
    /// `None`, since this isn't arm64.
    #[must_use]
    pub fn new(_vm: RawFd, _vcpus: Vec<RawFd>, _gic: Option<RawFd>) -> Option<Self> {
        None
    }
}

impl Ioctls for Fds {
    fn vcpus(&self) -> usize {
        match *self {}
    }

    fn check_extension(&self, _capability: u32) -> io::Result<i32> {
        match *self {}
    }

    fn set_counter_offset(&self, _offset: u64) -> io::Result<()> {
        match *self {}
    }

    fn get_one_reg(&self, _vcpu: usize, _id: u64) -> io::Result<u64> {
        match *self {}
    }

    fn set_one_reg(&self, _vcpu: usize, _id: u64, _value: u64) -> io::Result<()> {
        match *self {}
    }

    fn reg_list(&self, _vcpu: usize) -> io::Result<Vec<u64>> {
        match *self {}
    }
}
