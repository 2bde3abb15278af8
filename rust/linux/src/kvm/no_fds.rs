//! Stand-in for KVM's ioctls elsewhere than on arm64, whose KVM alone has these clocks.

use crate::kvm::ioctls::Ioctls;
use crate::kvm::number::FdNumber;
use core::convert::Infallible;
use core::marker::PhantomData;
use std::io;
use std::os::fd::BorrowedFd;

/// The descriptors of a VM: a type without values here.
#[derive(Clone, Debug)]
pub struct Fds<'fd> {
    never: Infallible,
    borrowed: PhantomData<BorrowedFd<'fd>>,
}

impl<'fd> Fds<'fd> {
    /// `None`, since this isn't arm64.
    #[must_use]
    pub fn new(_vm: BorrowedFd<'fd>, _vcpus: Vec<BorrowedFd<'fd>>, _gic: Option<BorrowedFd<'fd>>) -> Option<Self> {
        None
    }

    /// `None`, since this isn't arm64.
    #[must_use]
    pub fn by_number(_vm: &'fd FdNumber, _vcpus: &'fd [FdNumber], _gic: Option<&'fd FdNumber>) -> Option<Self> {
        None
    }
}

impl Ioctls for Fds<'_> {
    fn vcpus(&self) -> usize {
        match self.never {}
    }

    fn check_extension(&self, _capability: u32) -> io::Result<i32> {
        match self.never {}
    }

    fn set_counter_offset(&self, _offset: u64) -> io::Result<()> {
        match self.never {}
    }

    fn get_one_reg(&self, _vcpu: usize, _id: u64) -> io::Result<u64> {
        match self.never {}
    }

    fn set_one_reg(&self, _vcpu: usize, _id: u64, _value: u64) -> io::Result<()> {
        match self.never {}
    }

    fn reg_list(&self, _vcpu: usize) -> io::Result<Vec<u64>> {
        match self.never {}
    }
}
