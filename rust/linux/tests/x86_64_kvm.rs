//! Machines for x86-64 on real KVM: a small guest reads its TSC before a save, and after a restore into another VM.
//!
//! They run in the testbed's machine for x86-64 alone (`make kvm-test LEGS=x86`), never on the KVM of the machine that
//! they are built on.
#![cfg(target_arch = "x86_64")]

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use guestclock_core::arch::x86_64::{
    IA32_TSC_ADJUST, IA32_TSC_DEADLINE, KVMCLOCK, SavedClocks, TSC_OFFSET, tsc_offset,
};
use guestclock_core::drive::machine::Answer;
use guestclock_core::drive::x86_64::{ClocksError, RestoredClocks, restore, save};
use guestclock_core::drive::{Bracket, Done, Failed, Io, Machine, Op, SavedRegister, What};
use guestclock_core::restore::Policy;
use guestclock_core::time::{Frequency, HostCount};
use kvm_bindings::{
    CpuId, KVM_CLOCK_HOST_TSC, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
    KVMIO, Msrs, kvm_clock_data, kvm_device_attr, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};
use std::{env, fs, io, ptr, thread};

const SET_DEVICE_ATTR: libc::Ioctl = libc::_IOW::<kvm_device_attr>(KVMIO, 0xe1);
const GET_DEVICE_ATTR: libc::Ioctl = libc::_IOW::<kvm_device_attr>(KVMIO, 0xe2);

/// The timer's interrupt.
const VECTOR: u16 = 0x40;
const CODE: u16 = 0x1000;
const HANDLER: u16 = 0x1080;
/// Records of the vCPUs: the count read last, and the count at the timer's interrupt.
const RECORDS: u16 = 0x2000;
const RECORD: u16 = 0x10;
const STACKS: u16 = 0x8000;
const MEMORY: usize = 0x1_0000;

/// Reads the TSC into the vCPU's record and leaves the guest, again and again.
const LOOP: &[u8] = &[
    0x0f, 0x31, // rdtsc
    0x66, 0x89, 0x07, // mov [bx], eax
    0x66, 0x89, 0x57, 0x04, // mov [bx+4], edx
    0xe6, 0x10, // out 0x10, al
    0xeb, 0xf3, // jmp to the start
];

/// Reads the TSC into the second place of the vCPU's record. It happens once, and so needs no end of interrupt.
const AT_TIMER: &[u8] = &[
    0x66, 0x50, // push eax
    0x66, 0x52, // push edx
    0x0f, 0x31, // rdtsc
    0x66, 0x89, 0x47, 0x08, // mov [bx+8], eax
    0x66, 0x89, 0x57, 0x0c, // mov [bx+12], edx
    0x66, 0x5a, // pop edx
    0x66, 0x58, // pop eax
    0xcf, // iret
];

/// The guest's memory.
struct Memory(*mut u8);

impl Memory {
    fn new() -> Self {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place of the kernel's choice touches no other.
        let place = unsafe { libc::mmap(ptr::null_mut(), MEMORY, access, flags, -1, 0) };
        assert_ne!(place, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        Self(place.cast())
    }

    fn write(&self, at: u16, bytes: &[u8]) {
        for (place, byte) in (usize::from(at)..).zip(bytes) {
            assert!(place < MEMORY);
            // SAFETY: the place is in the mapping, which lives as long as `self`, and no reference leads there.
            unsafe { self.0.add(place).write_volatile(*byte) };
        }
    }

    fn read(&self, at: u16) -> u64 {
        let bytes = core::array::from_fn(|byte| {
            let place = usize::from(at) + byte;
            assert!(place < MEMORY);
            // SAFETY: as in `write`.
            unsafe { self.0.add(place).read_volatile() }
        });
        u64::from_le_bytes(bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `new` has made this mapping, and nobody else unmaps it. A VM that still has it is no longer run.
        unsafe { libc::munmap(self.0.cast(), MEMORY) };
    }
}

fn host() -> HostCount {
    // SAFETY: LFENCE belongs to SSE2, which every x86-64 CPU has.
    unsafe { _mm_lfence() };
    // SAFETY: every x86-64 CPU has RDTSC.
    let count = unsafe { _rdtsc() };
    // SAFETY: as above.
    unsafe { _mm_lfence() };
    HostCount(count)
}

/// A VM with two vCPUs. Its memory goes last.
struct Vm {
    vcpus: Vec<VcpuFd>,
    fd: VmFd,
    memory: Memory,
}

/// A guest's read of its TSC, between two counts of the host.
struct Read {
    before: HostCount,
    tsc: u64,
    after: HostCount,
}

impl Vm {
    fn new(deadline_mode: bool) -> Self {
        let kvm = Kvm::new().unwrap();
        let fd = kvm.create_vm().unwrap();
        fd.create_irq_chip().unwrap();
        let memory = Memory::new();
        memory.write(CODE, LOOP);
        memory.write(HANDLER, AT_TIMER);
        memory.write(VECTOR * 4, &HANDLER.to_le_bytes());
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: memory.0.expose_provenance() as u64,
        };
        // SAFETY: the mapping is as long as the region, and lives until the VM's descriptors are closed.
        unsafe { fd.set_user_memory_region(region) }.unwrap();
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        // The TSC-deadline timer, which KVM never lists: it depends on the local APIC's being in the kernel.
        for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
            entry.ecx |= 1 << 24;
        }
        let vcpus = (0..2).map(|number| vcpu(&fd, number, &cpuid, deadline_mode)).collect();
        Self { vcpus, fd, memory }
    }

    /// Runs a vCPU until it has read its TSC once.
    fn run(&mut self, vcpu: u16) -> Read {
        let before = host();
        match self.vcpus[usize::from(vcpu)].run().unwrap() {
            VcpuExit::IoOut(0x10, _) => {}
            exit => panic!("{exit:?}"),
        }
        let after = host();
        Read { before, tsc: self.memory.read(RECORDS + vcpu * RECORD), after }
    }

    /// The count that the guest read at its timer's interrupt; 0 before it.
    fn fired(&self, vcpu: u16) -> u64 {
        self.memory.read(RECORDS + vcpu * RECORD + 8)
    }

    fn frequency(&self) -> Frequency {
        Frequency::new(u64::from(self.vcpus[0].get_tsc_khz().unwrap()) * 1_000).unwrap()
    }

    fn attr(&self, vcpu: usize, request: libc::Ioctl, mut value: u64) -> io::Result<u64> {
        let addr = (&raw mut value).expose_provenance() as u64;
        let (group, attr) = (KVM_VCPU_TSC_CTRL, u64::from(KVM_VCPU_TSC_OFFSET));
        let mut argument = kvm_device_attr { group, attr, addr, flags: 0 };
        // SAFETY: the struct is the one that the request is made from. KVM reads or writes the 8 bytes of `value`, which
        // is what this attribute has, and keeps nothing of either.
        let answer = unsafe { libc::ioctl(self.vcpus[vcpu].as_raw_fd(), request, &raw mut argument) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
    }

    fn get(&self, vcpu: usize, id: u64) -> io::Result<u64> {
        let Ok(index) = u32::try_from(id) else { return self.attr(vcpu, GET_DEVICE_ATTR, 0) };
        let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index, ..kvm_msr_entry::default() }]).unwrap();
        let read = self.vcpus[vcpu].get_msrs(&mut msrs)?;
        if read == 1 { Ok(msrs.as_slice()[0].data) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn set(&self, vcpu: usize, id: u64, value: u64) -> io::Result<()> {
        let Ok(index) = u32::try_from(id) else { return self.attr(vcpu, SET_DEVICE_ATTR, value).map(drop) };
        let msrs = Msrs::from_entries(&[kvm_msr_entry { index, data: value, ..kvm_msr_entry::default() }]).unwrap();
        let written = self.vcpus[vcpu].set_msrs(&msrs)?;
        if written == 1 { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Reads kvmclock. The kernel tells the count of the read as long as all vCPUs have one offset.
    fn kvmclock(&self) -> io::Result<Bracket> {
        let before = host();
        let clock = self.fd.get_clock()?;
        let after = host();
        let told = HostCount(clock.host_tsc);
        let paired = clock.flags & KVM_CLOCK_HOST_TSC != 0;
        let (before, after) = if paired { (told, told) } else { (before, after) };
        Ok(Bracket { before, value: clock.clock, after })
    }

    fn carry_out(&self, op: Op<'_>) -> Answer<io::Error> {
        let get = |vcpu, id| self.get(vcpu, id).map_err(|error| Failed::Register { vcpu, id, reading: true, error });
        match op {
            Op::Sample => return Ok(Done::Count(host())),
            Op::Read { id } => {
                return (0..self.vcpus.len()).map(|vcpu| get(vcpu, id)).collect::<Result<_, _>>().map(Done::Values);
            }
            Op::Write(block) => block.registers().try_for_each(|register| {
                let SavedRegister { vcpu, id, value, .. } = register;
                let written = self.set(vcpu, id, value);
                written.map_err(|error| Failed::Register { vcpu, id, reading: false, error })?;
                register.check(get(vcpu, id)?)
            })?,
            Op::ReadBack(block) => {
                block.registers().try_for_each(|register| register.check(get(register.vcpu, register.id)?))?;
            }
            Op::SetLate(What::VcpuOffsets { displacements }, late) => {
                let now = host();
                let offset = late.offset_at(now);
                for (vcpu, displacement) in displacements.iter().enumerate() {
                    let written = self.set(vcpu, TSC_OFFSET, tsc_offset(offset, *displacement));
                    written.map_err(|error| Failed::Register { vcpu, id: TSC_OFFSET, reading: false, error })?;
                }
                return Ok(Done::Count(now));
            }
            Op::SetClock { id: KVMCLOCK, value } => {
                let clock = kvm_clock_data { clock: value, ..kvm_clock_data::default() };
                self.fd.set_clock(&clock).map_err(|error| Failed::Call(error.into()))?;
            }
            Op::Bracket { id: KVMCLOCK, .. } => return self.kvmclock().map(Done::Bracket).map_err(Failed::Call),
            other => unreachable!("x86-64 doesn't ask for {other:?}"),
        }
        Ok(Done::Ok)
    }

    fn drive<'a, T: 'a, F>(&self, begin: impl FnOnce(Io<'a, io::Error>) -> F) -> T
    where
        F: Future<Output = T> + 'a,
    {
        Machine::new(begin).run(|op| self.carry_out(op))
    }

    fn save(&self) -> SavedClocks {
        let frequency = self.frequency();
        self.drive(async |io| save(&io, frequency).await).unwrap()
    }

    fn restore(&self, saved: &SavedClocks, policy: Policy) -> Result<RestoredClocks, ClocksError<io::Error>> {
        self.drive(async |io| restore(&io, saved, policy).await)
    }
}

/// Makes a vCPU that is about to run the loop in real mode.
fn vcpu(fd: &VmFd, number: u16, cpuid: &CpuId, deadline_mode: bool) -> VcpuFd {
    let vcpu = fd.create_vcpu(number.into()).unwrap();
    vcpu.set_cpuid2(cpuid).unwrap();
    let mut apic = vcpu.get_lapic().unwrap();
    let mut set = |register: usize, value: u32| {
        for (place, byte) in apic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *place = byte.cast_signed();
        }
    };
    // The spurious-interrupt vector with the APIC's switch, and the timer's in TSC-deadline mode.
    set(0xf0, 0x1ff);
    set(0x320, u32::from(VECTOR) | if deadline_mode { 2 << 17 } else { 0 });
    vcpu.set_lapic(&apic).unwrap();
    vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).unwrap();
    let mut segments = vcpu.get_sregs().unwrap();
    (segments.cs.base, segments.cs.selector) = (0, 0);
    vcpu.set_sregs(&segments).unwrap();
    let (rbx, rsp) = ((RECORDS + number * RECORD).into(), (STACKS + number * 0x400).into());
    // The interrupt flag, and the bit that is always set.
    vcpu.set_regs(&kvm_regs { rip: CODE.into(), rflags: 0x202, rbx, rsp, ..kvm_regs::default() }).unwrap();
    vcpu
}

/// Refuses to go on where the machine isn't the testbed's.
fn in_the_testbed() {
    let leg = env::var("GUESTCLOCK_LEG").unwrap_or_default();
    assert_eq!(leg, "x86", "this test is for the testbed's machine: make kvm-test LEGS=x86");
}

/// Saves the clocks of one VM, and restores them into another one later; `displacement` is what the guest has moved the
/// TSC of vCPU 1 by.
fn saved_and_restored(policy: Policy, displacement: u64) {
    let mut source = Vm::new(true);
    let hz = source.frequency().hz();
    // A guest that has been up for a quarter of an hour: with a new VM's clocks it would be that far off.
    let up = source.get(0, TSC_OFFSET).unwrap().wrapping_add(900 * hz);
    source.set(0, TSC_OFFSET, up).unwrap();
    source.set(1, TSC_OFFSET, up.wrapping_add(displacement)).unwrap();
    source.set(1, IA32_TSC_ADJUST, displacement).unwrap();
    source.fd.set_clock(&kvm_clock_data { clock: 900_000_000_000, ..kvm_clock_data::default() }).unwrap();
    let seen = [source.run(0), source.run(1), source.run(0)].map(|read| read.tsc)[2];
    let deadline = seen + hz / 3;
    source.set(0, IA32_TSC_DEADLINE, deadline).unwrap();
    let saved = source.save();
    assert_eq!((&*saved.adjust, &*saved.deadline), (&[0, displacement][..], &[deadline, 0][..]));
    assert!(saved.tsc.0 > seen, "after the guest's last read");
    drop(source);
    thread::sleep(Duration::from_millis(700));

    let mut target = Vm::new(true);
    let restored = target.restore(&saved, policy).unwrap();
    let after_sample = target.frequency().ticks_to_ns(host().since(restored.sample));
    let at_sample = restored.sample.guest(restored.offset);
    let added = at_sample.since(saved.tsc);
    let missed = restored.sample.since(saved.count);
    assert!(missed > hz / 2);
    assert_eq!(added, if policy == Policy::FREEZE { 0 } else { missed });
    let offsets = [0, displacement].map(|displacement| tsc_offset(restored.offset, displacement));
    assert_eq!([0, 1].map(|vcpu| target.get(vcpu, TSC_OFFSET).unwrap()), offsets, "as planned, on each vCPU");

    let firsts = [at_sample.0, at_sample.0.wrapping_add(displacement)];
    let mut lasts = firsts;
    let mut rounds = 0;
    let begun = Instant::now();
    while rounds < 20 || target.fired(0) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "the timer hasn't fired after {rounds} rounds");
        for vcpu in [0, 1] {
            let (number, fired_before) = (usize::from(vcpu), target.fired(vcpu));
            let Read { before, tsc, after } = target.run(vcpu);
            let planned = |count: HostCount| firsts[number].wrapping_add(count.since(restored.sample));
            let within = planned(before)..=planned(after);
            assert!(within.contains(&tsc), "vCPU {vcpu} read {tsc} outside of {within:?}");
            assert!(lasts[number] < tsc, "vCPU {vcpu} read {} before {tsc}", lasts[number]);
            lasts[number] = tsc;
            // As KVM programs its own timer ahead, and makes up for it: `lapic_timer_advance` is 5 us at most.
            if fired_before == 0 && target.fired(vcpu) != 0 {
                assert!(target.fired(vcpu) + hz / 200_000 >= deadline, "early");
            }
        }
        rounds += 1;
    }
    assert_eq!(target.fired(1), 0, "nobody armed it");
    assert!(target.fired(0) > at_sample.0, "in the restored VM");
    let late_ns = target.frequency().ticks_to_ns(target.fired(0).saturating_sub(deadline));

    // The guest has run, so the clock is as the guest has it.
    let read = target.kvmclock().unwrap();
    assert_eq!(read.before == read.after, displacement == 0, "a pair, where all vCPUs have one offset");
    let ahead =
        |count: HostCount| read.value.wrapping_sub(saved.kvmclock_at(count.guest(restored.offset))).cast_signed();
    let (least, most) = (ahead(read.after), ahead(read.before));
    let farthest = restored.kvmclock.farthest_ns().cast_signed();
    // The kernel makes nanoseconds of ticks by several factors, each rounded: 10 ppm and a microsecond are ample.
    let ns = target.frequency().ticks_to_ns(read.after.since(restored.sample));
    let drift = i64::try_from(ns / 100_000).unwrap() + 1_000;
    println!(
        "{policy:?}, displaced by {displacement}: {after_sample} ns from the sample to the end, kvmclock {:?}, now {least} \
         to {most} ns ahead; {rounds} rounds; timer {late_ns} ns late",
        restored.kvmclock
    );
    // However late each attempt came: a new VM's own clock is a quarter of an hour off.
    assert!(farthest < 1_000_000_000, "{:?}", restored.kvmclock);
    assert!(least <= farthest + drift && most >= -farthest - drift, "kvmclock is {least} to {most} ns ahead");
}

/// A leg that fell back to another kernel, or to another clock, would prove something else.
#[test]
#[ignore = "for the testbed's machine: make kvm-test LEGS=x86"]
fn the_leg_is_what_it_says() {
    in_the_testbed();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let clock = fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap();
    println!("kernel {}, clock source {}, {:?}", kernel.trim_end(), clock.trim_end(), Vm::new(true).frequency());
    assert!(kernel.starts_with("6.12."), "{kernel}");
    assert_eq!(clock, "tsc\n");
}

#[test]
#[ignore = "for the testbed's machine: make kvm-test LEGS=x86"]
fn a_frozen_guest_goes_on_from_the_save() {
    in_the_testbed();
    saved_and_restored(Policy::FREEZE, 0);
}

#[test]
#[ignore = "for the testbed's machine: make kvm-test LEGS=x86"]
fn an_advanced_guest_goes_on_from_where_it_would_be() {
    in_the_testbed();
    saved_and_restored(Policy::ADVANCE, 0);
}

#[test]
#[ignore = "for the testbed's machine: make kvm-test LEGS=x86"]
fn a_vcpu_that_its_guest_has_moved_stays_ahead() {
    in_the_testbed();
    saved_and_restored(Policy::FREEZE, 1_000_000_007);
}

#[test]
#[ignore = "for the testbed's machine: make kvm-test LEGS=x86"]
fn a_local_apic_that_drops_the_deadline_is_seen() {
    in_the_testbed();
    let mut source = Vm::new(true);
    let deadline = source.run(0).tsc + (1 << 40);
    source.set(0, IA32_TSC_DEADLINE, deadline).unwrap();
    let failed = Vm::new(false).restore(&source.save(), Policy::FREEZE).unwrap_err();
    let dropped = matches!(failed, ClocksError::ReadBack { vcpu: 0, id: IA32_TSC_DEADLINE, read: 0, .. });
    assert!(dropped, "{failed}");
}
