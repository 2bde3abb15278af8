//! Restore on KVM that `make instructions` counts: what is executed between its system calls, in Rust.
//!
//! callgrind counts in `counted_call` except in `system_call`, where the model is the kernel, and writes a file when
//! `counted_call` returns. The name of the count, with the number of system calls, goes to stdout.

use guestclock_core::arch::arm64::Behaviours;
use guestclock_core::drive::Saving;
use guestclock_core::restore::{Policy, Request};
use guestclock_core::time::{Counter, Elapsed, Frequency, HostCount, Offset};
use guestclock_linux::kvm::ioctls::Ioctls;
use guestclock_linux::kvm::vm::{KvmOptions, KvmVm};
use guestclock_model::config::Config;
use guestclock_model::error::VmError;
use guestclock_model::manual::ManualCounter;
use guestclock_model::vm::ModelVm;
use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;

const VCPUS: usize = 8;

#[inline(never)]
fn counted_call(call: &mut dyn FnMut()) {
    call();
}

#[inline(never)]
fn system_call(call: &mut dyn FnMut()) {
    call();
}

/// The model behind KVM's ioctls, with a vGIC that can be asked.
struct Kernel<'a> {
    vm: RefCell<ModelVm>,
    counter: &'a ManualCounter,
    calls: Cell<usize>,
    /// True while callgrind counts: it would begin to at any `system_call` before.
    is_counted: Cell<bool>,
}

impl<'a> Kernel<'a> {
    fn new(counter: &'a ManualCounter) -> Self {
        let kernel = Behaviours::named("6.12").expect("a kernel that is known");
        let mut vm = ModelVm::new(counter.frequency(), kernel, Config::default()).expect("a VM of that kernel");
        for _ in 0..VCPUS {
            vm.create_vcpu(counter.count()).expect("there is room");
        }
        Self { vm: RefCell::new(vm), counter, calls: Cell::new(0), is_counted: Cell::new(false) }
    }

    fn call<T>(&self, call: impl Fn(&mut ModelVm) -> Result<T, VmError>) -> io::Result<T> {
        self.calls.set(self.calls.get() + 1);
        let mut answer = None;
        let mut call = || answer = Some(call(&mut self.vm.borrow_mut()));
        if self.is_counted.get() {
            system_call(&mut call);
        } else {
            call();
        }
        answer.expect("a call is made").map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
    }
}

impl Ioctls for Kernel<'_> {
    fn vcpus(&self) -> usize {
        VCPUS
    }

    fn check_extension(&self, _capability: u32) -> io::Result<i32> {
        self.call(|_| Ok(1))
    }

    fn set_counter_offset(&self, offset: u64) -> io::Result<()> {
        self.call(|vm| vm.set_counter_offset(Offset(offset), 0))
    }

    fn get_one_reg(&self, vcpu: usize, id: u64) -> io::Result<u64> {
        self.call(|vm| vm.get_one_reg(vcpu, id, self.counter.count()))
    }

    fn set_one_reg(&self, vcpu: usize, id: u64, value: u64) -> io::Result<()> {
        self.call(|vm| vm.set_one_reg(vcpu, id, value, self.counter.count()))
    }

    fn reg_list(&self, vcpu: usize) -> io::Result<Vec<u64>> {
        self.call(|vm| vm.reg_list(vcpu))
    }

    fn look(&self) -> Option<io::Result<()>> {
        Some(self.call(|_| Ok(())))
    }
}

fn main() {
    // `cargo test --benches` runs it as well.
    if !std::env::args().any(|argument| argument == "--count") {
        return;
    }
    let counter = ManualCounter::new(HostCount(1 << 50), Frequency::new(62_500_000).expect("not 0"), 0);
    let kernel = Kernel::new(&counter);
    let vm = KvmVm::new(&kernel, &counter, KvmOptions::default()).expect("none runs");
    vm.set_counter_offset(&kernel, Offset(400)).expect("none runs");
    let saved = Arc::new(vm.checkpoint(&kernel, &Saving::default()).expect("none runs"));
    let request = Request { policy: Policy::ADVANCE, elapsed: Some(Elapsed::ByCounter), ..Request::default() };
    let mut restore = || {
        kernel.calls.set(0);
        let plan = vm.plan(&kernel, &saved, request).expect("it is the same VM");
        let mut open = vm.prepare(&kernel, plan, Arc::clone(&saved)).expect("none runs");
        vm.apply(&kernel, &mut open).expect("none runs");
        vm.release(&kernel, &mut open).expect("none runs");
    };
    // Nothing is looked up or allocated for the first time in what is counted.
    restore();
    kernel.is_counted.set(true);
    counted_call(&mut restore);
    println!("restore of {VCPUS} vCPUs on KVM, {} system calls/any", kernel.calls.get());
}
