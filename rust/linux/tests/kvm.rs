//! A VM on KVM, with the model as its kernel: what is asked, in what order, and what comes of every answer.

use guestclock_core::arch::arm64::{Behaviours, CtlReadback, El2, ListOrder, Role, Timer, View, one_reg_id};
use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::drive::{Condition, Errno, OperationError, RestoreError, Saving};
use guestclock_core::restore::{Diagnostic, Method, Policy, Refusal, Request, Views, Written};
use guestclock_core::time::{Counter, Elapsed, Frequency, HostCount, Offset};
use guestclock_linux::kvm::error::KvmError;
use guestclock_linux::kvm::ioctls::Ioctls;
use guestclock_linux::kvm::vm::{KvmOptions, KvmVm};
use guestclock_model::config::Config;
use guestclock_model::error::VmError;
use guestclock_model::manual::ManualCounter;
use guestclock_model::vm::ModelVm;
use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Extension,
    Offset(u64),
    Get(usize, u64),
    Set(usize, u64),
    List,
    Look,
    Distributor,
    Redistributor(u64),
    TimerIrq(usize, u64),
}

/// The model behind KVM's ioctls and errnos, with what a kernel may do besides.
struct Kernel<'a> {
    vm: RefCell<ModelVm>,
    counter: &'a ManualCounter,
    calls: RefCell<Vec<Call>>,
    /// Ticks that pass in every call.
    slow: Cell<u64>,
    /// Number of calls that need every vCPU stopped and answer EBUSY.
    busy: Cell<usize>,
    /// An offset that differs answers EBUSY, and one that is written as it is doesn't.
    late: Cell<bool>,
    /// The VM has a vGIC in the kernel, and with it a look on its own descriptor.
    vgic: bool,
    /// The vGIC's descriptor was given.
    gic: bool,
    /// The errno of every redistributor's register: a GICv2's.
    redistributor_errno: Cell<Option<i32>>,
    /// GICD_CTLR.
    ctlr: Cell<u32>,
    /// GICR_ISENABLER0 of vCPU 1.
    enabled: Cell<u32>,
    /// A vCPU that KVM_ARM_VCPU_INIT wasn't called on.
    bare: Cell<Option<usize>>,
    /// The errno of every offset: a protected VM's.
    offset_errno: Cell<Option<i32>>,
    /// An offset is taken, and does nothing: a protected VM's before Linux 7.2.6.
    offset_lost: Cell<bool>,
    /// The errno of every call.
    errno: Cell<Option<i32>>,
    /// CTL reads with ISTATUS, which a CPU left there.
    left_istatus: Cell<bool>,
}

type Host<'a> = &'a ManualCounter;

fn counter() -> ManualCounter {
    ManualCounter::new(HostCount(5_000_000_000), Frequency::new(62_500_000).unwrap(), 0)
}

impl<'a> Kernel<'a> {
    fn new(counter: Host<'a>, name: &str, el2: El2, vcpus: usize) -> Self {
        let config = Config { el2, ..Config::default() };
        let mut vm = ModelVm::new(counter.frequency(), Behaviours::named(name).unwrap(), config).unwrap();
        for _ in 0..vcpus {
            vm.create_vcpu(counter.count()).unwrap();
        }
        Self {
            vm: RefCell::new(vm),
            counter,
            calls: RefCell::default(),
            slow: Cell::new(0),
            busy: Cell::new(0),
            late: Cell::new(false),
            vgic: false,
            gic: false,
            redistributor_errno: Cell::new(None),
            // On: EnableGrp1, ARE_NS and DS.
            ctlr: Cell::new(0x52),
            enabled: Cell::new(1 << 27),
            bare: Cell::new(None),
            offset_errno: Cell::new(None),
            offset_lost: Cell::new(false),
            errno: Cell::new(None),
            left_istatus: Cell::new(false),
        }
    }

    fn plain(counter: Host<'a>) -> Self {
        Self::new(counter, "6.12", El2::Absent, 2)
    }

    fn open(&self) -> KvmVm<Host<'a>> {
        let vm = KvmVm::new(self, self.counter, options()).unwrap();
        self.calls.take();
        vm
    }

    fn called(&self, call: Call) -> io::Result<()> {
        self.calls.borrow_mut().push(call);
        self.counter.advance(self.slow.get());
        self.errno.get().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn all_stopped(&self) -> io::Result<()> {
        let busy = self.busy.get();
        self.busy.set(busy.saturating_sub(1));
        if busy > 0 || self.vm.borrow().first_running().is_some() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        Ok(())
    }

    fn initialised(&self, vcpu: usize) -> io::Result<()> {
        if self.bare.get() == Some(vcpu) { Err(io::Error::from_raw_os_error(libc::ENOEXEC)) } else { Ok(()) }
    }

    fn offset_writes(&self) -> usize {
        self.calls.borrow().iter().filter(|call| matches!(call, Call::Offset(_))).count()
    }
}

fn errno(error: VmError) -> io::Error {
    io::Error::from_raw_os_error(match error {
        VmError::Running { .. } => panic!("KVM would wait for the vCPU"),
        VmError::NoSuchOneReg { .. } => libc::ENOENT,
        _ => libc::EINVAL,
    })
}

impl Ioctls for Kernel<'_> {
    fn vcpus(&self) -> usize {
        self.vm.borrow().vcpus()
    }

    fn check_extension(&self, capability: u32) -> io::Result<i32> {
        self.called(Call::Extension)?;
        assert_eq!(capability, 227);
        Ok(i32::from(self.vm.borrow().behaviours().counter_offset))
    }

    fn set_counter_offset(&self, offset: u64) -> io::Result<()> {
        self.called(Call::Offset(offset))?;
        if let Some(errno) = self.offset_errno.get() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.all_stopped()?;
        if self.late.get() && self.vm.borrow().vm_offset() != Some(Offset(offset)) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        if self.offset_lost.get() {
            return Ok(());
        }
        self.vm.borrow_mut().set_counter_offset(Offset(offset), 0).map_err(errno)
    }

    fn get_one_reg(&self, vcpu: usize, id: u64) -> io::Result<u64> {
        self.called(Call::Get(vcpu, id))?;
        self.initialised(vcpu)?;
        if id == MPIDR_EL1 {
            assert!(self.vm.borrow().first_running().is_none(), "KVM would wait for the vCPU");
            return Ok(mpidr(vcpu));
        }
        let left = u64::from(self.left_istatus.get() && id == one_reg_id(CTL)) << 2;
        self.vm.borrow().get_one_reg(vcpu, id, self.counter.count()).map(|value| value | left).map_err(errno)
    }

    fn set_one_reg(&self, vcpu: usize, id: u64, value: u64) -> io::Result<()> {
        self.called(Call::Set(vcpu, id))?;
        self.initialised(vcpu)?;
        self.vm.borrow_mut().set_one_reg(vcpu, id, value, self.counter.count()).map_err(errno)
    }

    fn reg_list(&self, vcpu: usize) -> io::Result<Vec<u64>> {
        self.called(Call::List)?;
        self.initialised(vcpu)?;
        let mut list = self.vm.borrow().reg_list(vcpu).map_err(errno)?;
        // X0, which is no timer's.
        list.insert(0, 0x6030_0000_0010_0000);
        Ok(list)
    }

    fn look(&self) -> Option<io::Result<()>> {
        self.vgic.then(|| {
            self.called(Call::Look)?;
            self.all_stopped()
        })
    }

    fn distributor(&self) -> Option<io::Result<u32>> {
        self.gic.then(|| {
            self.called(Call::Distributor)?;
            self.all_stopped().map(|()| self.ctlr.get())
        })
    }

    /// The redistributor of a vCPU has its number in ISPENDR0.
    fn redistributor(&self, attr: u64) -> Option<io::Result<u32>> {
        self.gic.then(|| {
            self.called(Call::Redistributor(attr))?;
            self.redistributor_errno.get().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))?;
            if self.late.take() {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            if let Some(vcpu) = (0..self.vcpus()).find(|vcpu| attr == LATCHES[*vcpu] - 0x100) {
                // GICR_ISENABLER0: vCPU 1's virtual timer.
                return Ok(if vcpu == 1 { self.enabled.get() } else { 0 });
            }
            let vcpu = (0..self.vcpus()).find(|vcpu| attr == LATCHES[*vcpu]);
            vcpu.map(|vcpu| u32::try_from(vcpu).unwrap()).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
        })
    }

    fn timer_irq(&self, vcpu: usize, timer: u64) -> Option<io::Result<i32>> {
        let id = || self.vm.borrow().irqs().get(timer).map(i32::from).map_err(|error| errno(VmError::Irq(error)));
        Some(self.called(Call::TimerIrq(vcpu, timer)).and_then(|()| id()))
    }
}

const MPIDR_EL1: u64 = 0x6030_0000_0013_c005;

/// Aff3, U and Aff1 besides Aff0, and RES1, so that each field shows.
fn mpidr(vcpu: usize) -> u64 {
    0x5a_c000_0000 | 0x31_2200 | vcpu as u64
}

/// Attributes of GICR_ISPENDR0 of the first three vCPUs in the vGIC: Aff3, Aff2, Aff1, Aff0, and the offset.
const LATCHES: [u64; 3] = [0x5a31_2200_0001_0200, 0x5a31_2201_0001_0200, 0x5a31_2202_0001_0200];

fn options() -> KvmOptions {
    KvmOptions::default().with_busy_timeout(Duration::from_hours(1))
}

fn impatient() -> KvmOptions {
    KvmOptions::default().with_busy_timeout(Duration::ZERO)
}

fn freeze() -> Request {
    Request { policy: Policy::FREEZE, elapsed: Some(Elapsed::ByCounter), ..Request::default() }
}

/// Checkpoint of a VM that had opted in.
fn saved(host: Host<'_>) -> Arc<Checkpoint> {
    let source = Kernel::plain(host);
    let vm = source.open();
    vm.set_counter_offset(&source, Offset(400)).unwrap();
    Arc::new(vm.checkpoint(&source, &Saving::default()).unwrap())
}

const CVAL: Role = Role::Cval(Timer::Vtimer);
const CTL: Role = Role::Ctl(Timer::Vtimer);

#[test]
fn what_it_finds_out_costs_no_write() {
    let host = counter();
    for (name, el2, physical, order, readback) in [
        ("6.1", El2::Absent, false, ListOrder::Grouped, CtlReadback::Computed),
        ("6.12", El2::Absent, true, ListOrder::Grouped, CtlReadback::Computed),
        ("7.3", El2::Absent, true, ListOrder::ByEncoding, CtlReadback::Stored),
        ("7.3", El2::Vhe, true, ListOrder::ByEncoding, CtlReadback::Stored),
    ] {
        let kernel = Kernel::new(&host, name, el2, 2);
        let vm = KvmVm::new(&kernel, &host, options()).unwrap();
        let probed = vm.probed(&kernel).unwrap();
        assert_eq!((probed.physical_timer, probed.nested), (physical, el2 != El2::Absent), "{name}");
        assert_eq!((probed.list_order, probed.ctl_readback), (Some(order), Some(readback)), "{name}");
        assert_eq!(vm.abilities().counter_offset, name != "6.1");
        let writes = |call: &Call| matches!(call, Call::Set(..) | Call::Offset(_));
        assert!(!kernel.calls.borrow().iter().any(writes), "{:?}", kernel.calls);
    }
}

#[test]
fn a_timer_that_is_not_due_does_not_show_how_ctl_reads() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    kernel.vm.borrow_mut().set_one_reg(0, one_reg_id(CVAL), u64::MAX, host.count()).unwrap();
    let vm = KvmVm::new(&kernel, &host, options()).unwrap();
    assert_eq!(vm.probed(&kernel).unwrap().ctl_readback, None);
}

/// The counter passes CVAL between two reads of the look, or a CPU left ISTATUS set in the CTL of a timer that is off.
#[test]
fn a_timer_that_becomes_due_or_is_off_does_not_pass_for_another_kernels() {
    let host = counter();
    let kernel = Kernel::new(&host, "6.12", El2::Absent, 1);
    kernel.slow.set(10);
    for ahead in 0..200 {
        let mut model = kernel.vm.borrow_mut();
        let now = model.get_one_reg(0, one_reg_id(Role::Count(View::Virtual)), host.count()).unwrap();
        model.set_one_reg(0, one_reg_id(CVAL), now + ahead, host.count()).unwrap();
        model.set_one_reg(0, one_reg_id(CTL), 1, host.count()).unwrap();
        drop(model);
        let vm = KvmVm::new(&kernel, &host, options()).unwrap();
        assert_eq!(vm.probed(&kernel).unwrap().ctl_readback, None, "{ahead}");
    }

    let kernel = Kernel::new(&host, "7.3", El2::Absent, 1);
    kernel.left_istatus.set(true);
    let vm = KvmVm::new(&kernel, &host, options()).unwrap();
    assert_eq!(vm.probed(&kernel).unwrap().ctl_readback, None);
}

/// Two offsets for the VM, and four registers for each vCPU: the rest is reading. Without a vGIC to ask, whether a vCPU
/// runs is found out by writing the offset once more as it is, before each of the last two steps.
#[test]
fn the_budget_of_a_restore() {
    for (vgic, gic) in [(true, false), (false, true), (false, false)] {
        let host = counter();
        let saved = saved(&host);
        let target = Kernel { vgic, gic, ..Kernel::plain(&host) };
        let vm = target.open();
        let plan = vm.plan(&target, &saved, freeze()).unwrap();
        let provisional = plan.as_of.virtual_offset().0;
        let mut restore = vm.prepare(&target, plan, Arc::clone(&saved)).unwrap();
        host.advance(1_000);
        vm.apply(&target, &mut restore).unwrap();
        let report = vm.release(&target, &mut restore).unwrap();
        let calls = target.calls.borrow();
        let offsets: Vec<_> = calls.iter().filter(|call| matches!(call, Call::Offset(_))).copied().collect();
        let last = host.count().0.wrapping_sub(saved.only().unwrap().cntvct().0);
        assert_eq!(offsets, [Call::Offset(provisional), Call::Offset(last)], "no look writes an offset");
        let count = one_reg_id(Role::Count(View::Virtual));
        let read_back = [Call::Offset(last), Call::Get(0, count), Call::Get(1, count)];
        assert!(calls.ends_with(&read_back), "the final offset comes last, and is read back from every vCPU");
        for vcpu in 0..2 {
            let sets = calls.iter().filter(|call| matches!(call, Call::Set(of, _) if *of == vcpu)).count();
            assert_eq!(sets, 4);
        }
        assert_eq!((report.writes.offsets, report.writes.registers), (2, 8));
    }
}

/// KVM queues no interrupt while the distributor is off, and afterwards sees no change of the line.
#[test]
fn a_release_refuses_a_distributor_that_is_off_while_a_line_is_high() {
    let host = counter();
    let source = Kernel::plain(&host);
    let vm = source.open();
    vm.set_counter_offset(&source, Offset(400)).unwrap();
    vm.set_one_reg(&source, 1, one_reg_id(CTL), 1).unwrap();
    let high = Arc::new(vm.checkpoint(&source, &Saving::default()).unwrap());
    let off = 0x50;
    for (saved, gic, ctlr, enabled, refused) in [
        (Arc::clone(&high), true, off, 1 << 27, true),
        (Arc::clone(&high), true, 0x52, 1 << 27, false),
        // A guest that never enabled it, such as one that polls.
        (Arc::clone(&high), true, off, !(1 << 27), false),
        (high, false, off, 1 << 27, false),
        (saved(&host), true, off, 1 << 27, false),
    ] {
        let target = Kernel { gic, enabled: Cell::new(enabled), ..Kernel::plain(&host) };
        let vm = target.open();
        let plan = vm.plan(&target, &saved, freeze()).unwrap();
        let mut restore = vm.prepare(&target, plan, saved).unwrap();
        vm.apply(&target, &mut restore).unwrap();
        target.ctlr.set(ctlr);
        let released = vm.release(&target, &mut restore);
        assert_eq!(released.is_err(), refused, "{ctlr:#x}");
        if let Err(error) = released {
            let OperationError::Restore(error) = error else { panic!("{error}") };
            assert_eq!(error, RestoreError::InterruptsOff { vcpu: 1, timer: Timer::Vtimer });
            assert_eq!(error.left(), Condition::TimersOnly);
            // The VMM has restored the register since.
            target.ctlr.set(0x52);
            vm.release(&target, &mut restore).unwrap();
        }
    }
}

/// In the middle of a restore too: a read of its registers would wait for as long as it runs.
#[test]
fn a_vcpu_that_runs_unannounced_in_a_restore() {
    let host = counter();
    for (vgic, gic) in [(true, false), (false, true)] {
        let saved = saved(&host);
        let target = Kernel { vgic, gic, ..Kernel::plain(&host) };
        let vm = KvmVm::new(&target, &host, impatient()).unwrap();
        let plan = vm.plan(&target, &saved, freeze()).unwrap();
        let mut restore = vm.prepare(&target, plan, saved).unwrap();
        let busy = |result: Result<(), OperationError<KvmError>>, condition| {
            let Err(OperationError::Restore(RestoreError::Backend { error: KvmError::Busy { .. }, left, .. })) = result
            else {
                panic!("{result:?}")
            };
            assert_eq!(left, condition);
        };
        target.vm.borrow_mut().enter(0).unwrap();
        busy(vm.apply(&target, &mut restore), Condition::Partial);
        target.vm.borrow_mut().exit(0, host.count()).unwrap();
        vm.apply(&target, &mut restore).unwrap();
        target.vm.borrow_mut().enter(0).unwrap();
        busy(vm.release(&target, &mut restore).map(|_| ()), Condition::TimersOnly);
        target.vm.borrow_mut().exit(0, host.count()).unwrap();
        vm.release(&target, &mut restore).unwrap();
    }
}

#[test]
fn an_owned_vms_counters_cost_no_ioctl() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    vm.count(&kernel, 0, View::Virtual, None).unwrap();
    assert_eq!(kernel.calls.take().len(), 1);
    assert!(matches!(vm.count(&kernel, 0, View::Virtual, Some(HostCount(7))), Err(KvmError::OnlyNow { .. })));
    vm.set_counter_offset(&kernel, Offset(5)).unwrap();
    kernel.calls.take();
    for view in [View::Virtual, View::Physical] {
        assert_eq!(vm.count(&kernel, 1, view, None).unwrap(), host.count().guest(Offset(5)));
        assert_eq!(vm.count(&kernel, 1, view, Some(HostCount(7))).unwrap().0, 2);
    }
    assert_eq!(kernel.calls.take(), []);
    assert!(matches!(vm.count(&kernel, 2, View::Virtual, None), Err(KvmError::NoSuchVcpu { vcpu: 2, vcpus: 2 })));
    let known = options().with_counter_offset(Offset(5));
    let again = KvmVm::new(&kernel, &host, known).unwrap();
    assert!(again.has_opted_in());
    assert_eq!(again.count(&kernel, 0, View::Physical, None).unwrap(), host.count().guest(Offset(5)));
}

/// A guest hypervisor's CNTVOFF_EL2 is its own: its virtual counter is always asked for.
#[test]
fn a_nested_guests_virtual_counter_is_asked_for() {
    let host = counter();
    let kernel = Kernel::new(&host, "7.3", El2::Vhe, 1);
    let vm = kernel.open();
    vm.set_counter_offset(&kernel, Offset(5)).unwrap();
    vm.set_one_reg(&kernel, 0, one_reg_id(Role::Cntvoff), 1000).unwrap();
    kernel.calls.take();
    assert_eq!(vm.count(&kernel, 0, View::Virtual, None).unwrap(), host.count().guest(Offset(1005)));
    assert_eq!(kernel.calls.take().len(), 1);
    assert_eq!(vm.count(&kernel, 0, View::Physical, None).unwrap(), host.count().guest(Offset(5)));
    assert_eq!(kernel.calls.take(), []);
}

/// In a running() block nothing is asked of KVM: it would wait, or answer EBUSY.
#[test]
fn the_gate_costs_no_ioctl() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    let saved = Arc::new(vm.checkpoint(&kernel, &Saving::default()).unwrap());
    let plan = vm.plan(&kernel, &saved, freeze()).unwrap();
    vm.enter(&kernel, 1).unwrap();
    kernel.calls.take();
    let running = OperationError::Backend(KvmError::Running { vcpu: 1 });
    assert_eq!(vm.checkpoint(&kernel, &Saving::default()).unwrap_err(), running);
    assert_eq!(vm.plan(&kernel, &saved, freeze()).unwrap_err(), running);
    assert_eq!(vm.prepare(&kernel, plan.clone(), Arc::clone(&saved)).unwrap_err(), running);
    assert_eq!(vm.pause(&kernel, freeze()).unwrap_err(), running);
    assert_eq!(vm.enter(&kernel, 1).unwrap_err(), running);
    let running = KvmError::Running { vcpu: 1 };
    assert_eq!(vm.set_counter_offset(&kernel, Offset(1)).unwrap_err(), running);
    assert_eq!(vm.get_one_reg(&kernel, 1, one_reg_id(CVAL)).unwrap_err(), running);
    assert_eq!(vm.set_one_reg(&kernel, 1, one_reg_id(CVAL), 1).unwrap_err(), running);
    assert_eq!(vm.count(&kernel, 1, View::Virtual, None).unwrap_err(), running);
    assert_eq!(running.errno(), libc::EBUSY);
    assert_eq!(kernel.calls.take(), []);
    assert!(vm.get_one_reg(&kernel, 0, one_reg_id(CVAL)).is_ok(), "the other one is stopped");
    vm.exit(1);
    let stale = vm.prepare(&kernel, plan, Arc::clone(&saved)).unwrap_err();
    assert_eq!(stale, Refusal::StalePlan.into(), "running has changed its state");
    let plan = vm.plan(&kernel, &saved, freeze()).unwrap();
    let mut restore = vm.prepare(&kernel, plan, saved).unwrap();
    assert_eq!(vm.enter(&kernel, 0).unwrap_err(), OperationError::Closed);
    vm.apply(&kernel, &mut restore).unwrap();
    vm.release(&kernel, &mut restore).unwrap();
    vm.enter(&kernel, 0).unwrap();
}

/// A vCPU in KVM_RUN outside running() is found out by the look on the VM, or by the vGIC.
#[test]
fn a_vcpu_that_runs_unannounced() {
    let host = counter();
    let count = Call::Get(0, one_reg_id(Role::Count(View::Virtual)));
    for (vgic, gic, opted_in, first) in [
        (true, false, false, Call::Look),
        (true, true, true, Call::Look),
        (false, true, false, Call::Distributor),
        (false, true, true, Call::Distributor),
        (false, false, true, count),
        (false, false, false, Call::List),
    ] {
        let kernel = Kernel { vgic, gic, ..Kernel::plain(&host) };
        let vm = KvmVm::new(&kernel, &host, impatient()).unwrap();
        if opted_in {
            vm.set_counter_offset(&kernel, Offset(77)).unwrap();
        }
        kernel.calls.take();
        vm.checkpoint(&kernel, &Saving::default()).unwrap();
        let calls = kernel.calls.take();
        assert_eq!(calls[0], first);
        assert!(!calls.iter().any(|call| matches!(call, Call::Offset(_) | Call::Set(..))), "nothing is written");
        if !vgic && !gic {
            // Nothing tells: the caller vouches.
            continue;
        }
        kernel.vm.borrow_mut().enter(0).unwrap();
        let error = vm.checkpoint(&kernel, &Saving::default()).unwrap_err();
        let OperationError::Backend(error @ KvmError::Busy { .. }) = error else { panic!("{error}") };
        assert_eq!(error.errno(), libc::EBUSY);
        assert!(error.to_string().contains("Stop every vCPU"), "{error}");
        assert_eq!(kernel.calls.take(), [first], "no register was read");
    }
}

#[test]
fn a_passing_ebusy_is_waited_out() {
    let host = counter();
    let kernel = Kernel { gic: true, ..Kernel::plain(&host) };
    let vm = kernel.open();
    kernel.busy.set(200);
    vm.set_counter_offset(&kernel, Offset(3)).unwrap();
    assert_eq!(kernel.offset_writes(), 201);
    kernel.busy.set(200);
    vm.checkpoint(&kernel, &Saving::default()).unwrap();
    let vm = KvmVm::new(&kernel, &host, impatient()).unwrap();
    kernel.busy.set(1);
    assert!(matches!(vm.set_counter_offset(&kernel, Offset(4)), Err(KvmError::Busy { .. })));
    assert!(!vm.has_opted_in(), "a refused offset isn't taken for written");
}

/// A Freeze promises the counters of the last sample: each attempt at the final offset needs its own.
#[test]
fn a_busy_release_takes_a_new_sample() {
    let host = counter();
    let saved = saved(&host);
    let target = Kernel::plain(&host);
    let vm = target.open();
    let plan = vm.plan(&target, &saved, freeze()).unwrap();
    let mut restore = vm.prepare(&target, plan, Arc::clone(&saved)).unwrap();
    vm.apply(&target, &mut restore).unwrap();
    target.slow.set(9);
    target.busy.set(20);
    let report = vm.release(&target, &mut restore).unwrap();
    // The call itself, and two counts that were read back.
    assert_eq!(host.count().since(report.outcome.count), 3 * 9);
    let guest = host.count().guest(target.vm.borrow().offsets(0).unwrap().virt);
    assert_eq!(guest.0, saved.only().unwrap().cntvct().0 + 3 * 9);
}

#[test]
fn a_release_while_a_vcpu_runs_says_so_and_can_be_taken_again() {
    let host = counter();
    let saved = saved(&host);
    let target = Kernel::plain(&host);
    let vm = KvmVm::new(&target, &host, impatient()).unwrap();
    let plan = vm.plan(&target, &saved, freeze()).unwrap();
    let mut restore = vm.prepare(&target, plan, Arc::clone(&saved)).unwrap();
    vm.apply(&target, &mut restore).unwrap();
    host.advance(1);
    // Not while it was looked at, but at the write.
    target.late.set(true);
    let error = vm.release(&target, &mut restore).unwrap_err();
    let OperationError::Restore(RestoreError::Backend { error: KvmError::Busy { .. }, left, .. }) = error else {
        panic!("{error}")
    };
    assert_eq!(left, Condition::TimersOnly);
    target.late.set(false);
    vm.release(&target, &mut restore).unwrap();
}

/// Without the ioctl, or where two offsets have to be kept.
#[test]
fn by_value_and_a_vcpu_created_too_late() {
    for (name, method) in [("6.1", Method::VirtualOnly), ("6.12", Method::ByValue)] {
        let host = counter();
        let source = Kernel::new(&host, name, El2::Absent, 2);
        let saved = Arc::new(source.open().checkpoint(&source, &Saving::default()).unwrap());
        host.advance(1_000_000);
        let target = Kernel::new(&host, name, El2::Absent, 2);
        let vm = target.open();
        target.slow.set(3);
        let plan = vm.plan(&target, &saved, freeze()).unwrap();
        assert_eq!(plan.method, method);
        assert!(plan.assumptions.contains(&Diagnostic::NoVcpuLater), "{:?}", plan.assumptions);
        let mut restore = vm.prepare(&target, plan, Arc::clone(&saved)).unwrap();
        vm.apply(&target, &mut restore).unwrap();
        let report = vm.release(&target, &mut restore).unwrap();
        let Written::ByValue { virt, phys } = report.written else { panic!("{:?}", report.written) };
        let truth = target.vm.borrow().offsets(0).unwrap();
        assert!(virt.contains(truth.virt), "{virt:?} {truth:?}");
        assert!(phys.is_none_or(|phys| phys.contains(truth.phys)));
        assert_eq!(target.offset_writes(), 0);

        host.advance(1_000);
        target.vm.borrow_mut().create_vcpu(host.count()).unwrap();
        for vcpu in [0, 2] {
            let error = vm.enter(&target, vcpu).unwrap_err();
            assert_eq!(error, OperationError::Backend(KvmError::CountersMoved { view: "virtual" }), "{name}");
        }
    }
}

#[test]
fn by_value_the_first_entry_looks_and_the_others_do_not() {
    let host = counter();
    let source = Kernel::plain(&host);
    let saved = Arc::new(source.open().checkpoint(&source, &Saving::default()).unwrap());
    let target = Kernel::plain(&host);
    let vm = target.open();
    let plan = vm.plan(&target, &saved, freeze()).unwrap();
    let mut restore = vm.prepare(&target, plan, saved).unwrap();
    vm.apply(&target, &mut restore).unwrap();
    vm.release(&target, &mut restore).unwrap();
    target.calls.take();
    vm.enter(&target, 0).unwrap();
    assert_eq!(target.calls.take().len(), 2, "each counter once");
    vm.enter(&target, 1).unwrap();
    assert_eq!(target.calls.take(), []);
    // A vCPU that is created afterwards moves the counters as well.
    vm.exit(0);
    vm.exit(1);
    host.advance(1_000);
    target.vm.borrow_mut().create_vcpu(host.count()).unwrap();
    let error = vm.enter(&target, 0).unwrap_err();
    assert_eq!(error, OperationError::Backend(KvmError::CountersMoved { view: "virtual" }));
    // And a caller that sets them says where they are.
    vm.set_one_reg(&target, 0, one_reg_id(Role::Count(View::Virtual)), 7).unwrap();
    vm.enter(&target, 0).unwrap();
}

/// With an offset, a vCPU created late does no harm.
#[test]
fn a_late_vcpu_of_an_owned_vm() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    vm.set_counter_offset(&kernel, Offset(400)).unwrap();
    host.advance(1_000);
    kernel.vm.borrow_mut().create_vcpu(host.count()).unwrap();
    vm.enter(&kernel, 2).unwrap();
    assert_eq!(vm.count(&kernel, 2, View::Virtual, None).unwrap(), host.count().guest(Offset(400)));
    vm.exit(2);
    let stale = vm.plan(&kernel, &vm.checkpoint(&kernel, &Saving::default()).unwrap(), freeze()).unwrap();
    kernel.vm.borrow_mut().create_vcpu(host.count()).unwrap();
    let saved = Arc::new(vm.checkpoint(&kernel, &Saving::default()).unwrap());
    assert_eq!(vm.prepare(&kernel, stale, saved).unwrap_err(), Refusal::StalePlan.into());
}

#[test]
fn a_vcpu_without_init_is_found_out_before_anything_is_written() {
    let host = counter();
    let saved = saved(&host);
    let target = Kernel::plain(&host);
    target.bare.set(Some(1));
    let vm = target.open();
    let plan = vm.plan(&target, &saved, freeze()).unwrap();
    let error = vm.prepare(&target, plan, saved).unwrap_err();
    assert!(error.to_string().contains("KVM_ARM_VCPU_INIT comes first"), "{error}");
    let OperationError::Restore(RestoreError::Backend { left, .. }) = error else { panic!("{error}") };
    assert_eq!((left, target.offset_writes()), (Condition::Untouched, 0));
    vm.enter(&target, 0).unwrap();
}

/// A protected VM's counters can't be moved. Newer kernels say so; older ones take the offset and do nothing.
#[test]
fn a_protected_vm_is_refused() {
    let host = counter();
    let saved = saved(&host);

    let target = Kernel::plain(&host);
    target.offset_errno.set(Some(libc::EINVAL));
    let vm = target.open();
    let plan = vm.plan(&target, &saved, freeze()).unwrap();
    let error = vm.prepare(&target, plan, Arc::clone(&saved)).unwrap_err();
    assert!(error.to_string().contains("the VM is protected"), "{error}");
    assert!(error.to_string().contains("the VM is as it was"), "{error}");
    assert!(!vm.has_opted_in());

    let target = Kernel::plain(&host);
    target.offset_lost.set(true);
    let vm = target.open();
    let plan = vm.plan(&target, &saved, freeze()).unwrap();
    let error = vm.prepare(&target, plan, Arc::clone(&saved)).unwrap_err();
    let OperationError::Restore(RestoreError::CounterElsewhere { vcpu, left, .. }) = error else { panic!("{error}") };
    assert_eq!((vcpu, left), (0, Condition::Provisional));
    assert_eq!(vm.enter(&target, 0).unwrap_err(), OperationError::Closed, "nobody knows where its clock is");
}

/// Two objects of one VM: what the one remembers isn't believed once the other has moved the VM's clock.
#[test]
fn a_remembered_offset_is_compared_before_it_is_believed() {
    let host = counter();
    let kernel = Kernel { vgic: true, ..Kernel::plain(&host) };
    let (stale, other) = (kernel.open(), kernel.open());
    stale.set_counter_offset(&kernel, Offset(4_000_000_000)).unwrap();
    let saved = Arc::new(stale.checkpoint(&kernel, &Saving::default()).unwrap());
    other.set_counter_offset(&kernel, Offset(3_000_000_000)).unwrap();
    // An object that was told of an offset which the VM never had.
    let told = KvmVm::new(&kernel, &host, options().with_counter_offset(Offset(77))).unwrap();
    for vm in [&stale, &told] {
        kernel.calls.take();
        let errors = [
            vm.checkpoint(&kernel, &Saving::default()).unwrap_err(),
            vm.plan(&kernel, &saved, freeze()).unwrap_err(),
            vm.pause(&kernel, freeze()).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, OperationError::OffsetElsewhere { .. }), "{error}");
        }
        let calls = kernel.calls.take();
        assert!(!calls.iter().any(|call| matches!(call, Call::Offset(_) | Call::Set(..))), "nothing is written");
    }
    assert_eq!(kernel.vm.borrow().vm_offset(), Some(Offset(3_000_000_000)));
    // The physical counter of a VM that never opted in is the host's: it alone would bear an offset of 0 out.
    let plain = Kernel { vgic: true, ..Kernel::plain(&host) };
    let told = KvmVm::new(&plain, &host, options().with_counter_offset(Offset(0))).unwrap();
    let error = told.checkpoint(&plain, &Saving::default()).unwrap_err();
    assert!(matches!(error, OperationError::OffsetElsewhere { .. }), "{error}");
    assert_eq!(plain.vm.borrow().vm_offset(), None);
}

#[test]
fn another_processs_vm_is_explained() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    kernel.errno.set(Some(libc::EIO));
    let error = vm.get_one_reg(&kernel, 0, one_reg_id(CVAL)).unwrap_err();
    assert_eq!(error.errno(), libc::EIO);
    assert!(error.to_string().contains("VMM's own process"), "{error}");
    let error = KvmVm::new(&kernel, &host, options()).unwrap_err();
    assert!(error.to_string().contains("VMM's own process"), "{error}");
}

#[test]
fn an_absent_register_and_a_missing_ioctl() {
    let host = counter();
    let kernel = Kernel::new(&host, "6.1", El2::Absent, 1);
    let vm = kernel.open();
    let id = one_reg_id(Role::Count(View::Physical));
    assert_eq!(vm.get_one_reg(&kernel, 0, id).unwrap_err(), KvmError::NoSuchOneReg { vcpu: 0, id });
    assert_eq!(vm.count(&kernel, 0, View::Physical, None).unwrap().0, host.count().0, "nobody can have moved it");
    kernel.calls.take();
    assert_eq!(vm.set_counter_offset(&kernel, Offset(1)).unwrap_err(), KvmError::NoCounterOffset);
    assert_eq!(kernel.calls.take(), []);
    let known = options().with_counter_offset(Offset(5));
    assert_eq!(KvmVm::new(&kernel, &host, known).unwrap_err(), KvmError::NoCounterOffset);
    let saved = vm.checkpoint(&kernel, &Saving::default()).unwrap();
    let adopt = Request { views: Views::AdoptVirtual, ..freeze() };
    let refused = vm.plan(&kernel, &saved, adopt).unwrap_err();
    assert!(matches!(refused, OperationError::Restore(RestoreError::Refused(Refusal::NoCounterOffset { .. }))));
}

#[test]
fn a_timer_as_its_guest_sees_it() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    vm.set_counter_offset(&kernel, Offset(0)).unwrap();
    let due = host.count().0 + 500;
    vm.set_one_reg(&kernel, 0, one_reg_id(CVAL), due).unwrap();
    vm.set_one_reg(&kernel, 0, one_reg_id(CTL), 1).unwrap();
    let expected = kernel.vm.borrow().timer(0, Timer::Vtimer, host.count()).unwrap();
    assert_eq!(vm.timer(&kernel, 0, Timer::Vtimer).unwrap(), expected);
    assert_eq!(vm.next_deadline(&kernel, 0).unwrap(), due);
    assert_eq!(vm.next_deadline(&kernel, 1).unwrap(), u64::MAX);
    let list = vm.reg_list(&kernel, 0).unwrap();
    assert_eq!(list, kernel.vm.borrow().reg_list(0).unwrap(), "the timers' alone");
}

/// Before there is a vCPU, a VMM may opt in: then no vCPU's creation moves the counters.
#[test]
fn a_vm_without_vcpus_can_opt_in() {
    let host = counter();
    let kernel = Kernel::new(&host, "6.12", El2::Absent, 0);
    let vm = KvmVm::new(&kernel, &host, options()).unwrap();
    vm.set_counter_offset(&kernel, Offset(9)).unwrap();
    kernel.vm.borrow_mut().create_vcpu(host.count()).unwrap();
    assert_eq!(vm.count(&kernel, 0, View::Virtual, None).unwrap(), host.count().guest(Offset(9)));
    assert!(vm.probed(&kernel).unwrap().physical_timer);
}

/// In place: the same plan and report, without a checkpoint.
#[test]
fn a_pause_in_place() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    vm.set_counter_offset(&kernel, Offset(0)).unwrap();
    let before = vm.count(&kernel, 0, View::Virtual, None).unwrap();
    let pause = vm.pause(&kernel, freeze()).unwrap();
    assert_eq!(vm.enter(&kernel, 0).unwrap_err(), OperationError::Closed);
    host.advance(123_456);
    let report = vm.resume(&kernel, &pause).unwrap();
    assert_eq!((report.outcome.cntvct, vm.count(&kernel, 0, View::Virtual, None).unwrap()), (before, before));
    vm.enter(&kernel, 0).unwrap();
}

#[test]
fn the_pending_latches_of_each_vcpu() {
    let host = counter();
    let kernel = Kernel { gic: true, ..Kernel::new(&host, "6.12", El2::Absent, 3) };
    let vm = kernel.open();
    assert_eq!(vm.pending_latches(&kernel).unwrap(), [0, 1, 2]);
    let mut reads = kernel.calls.take();
    reads.retain(|call| *call != Call::Distributor);
    let each = |vcpu: usize| [Call::Get(vcpu, MPIDR_EL1), Call::Redistributor(LATCHES[vcpu])];
    assert_eq!(reads, [0, 1, 2].map(each).concat());
}

/// Found out before a register is read, which would wait for it.
#[test]
fn the_latches_of_a_vm_that_runs_are_not_to_be_had() {
    let host = counter();
    let kernel = Kernel { gic: true, ..Kernel::plain(&host) };
    let vm = KvmVm::new(&kernel, &host, impatient()).unwrap();
    kernel.vm.borrow_mut().enter(1).unwrap();
    let busy = vm.pending_latches(&kernel).unwrap_err();
    assert!(matches!(busy, KvmError::Busy { .. }), "{busy:?}");
    kernel.vm.borrow_mut().exit(1, host.count()).unwrap();
    vm.enter(&kernel, 1).unwrap();
    kernel.calls.take();
    assert_eq!(vm.pending_latches(&kernel).unwrap_err(), KvmError::Running { vcpu: 1 });
    assert!(!kernel.calls.take().iter().any(|call| matches!(call, Call::Get(..) | Call::Redistributor(_))));
    vm.exit(1);
    vm.pending_latches(&kernel).unwrap();
}

/// Another thread's ioctl on a vCPU makes for EBUSY too, and is soon gone.
#[test]
fn a_busy_redistributor_is_waited_out() {
    let host = counter();
    let kernel = Kernel { gic: true, ..Kernel::plain(&host) };
    let vm = kernel.open();
    kernel.busy.set(5);
    assert_eq!(vm.pending_latches(&kernel).unwrap(), [0, 1]);
    let reads =
        |kernel: &Kernel<'_>| kernel.calls.take().iter().filter(|call| matches!(call, Call::Redistributor(_))).count();
    assert_eq!(reads(&kernel), 2, "the look before waited");
    kernel.late.set(true);
    assert_eq!(vm.pending_latches(&kernel).unwrap(), [0, 1]);
    assert_eq!(reads(&kernel), 3);
}

#[test]
fn the_latches_take_a_vgic_v3() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    assert_eq!(vm.pending_latches(&kernel).unwrap_err(), KvmError::NoVgic);
    assert_eq!(kernel.calls.take(), []);
    let kernel = Kernel { gic: true, redistributor_errno: Cell::new(Some(libc::ENXIO)), ..Kernel::plain(&host) };
    let refused = kernel.open().pending_latches(&kernel).unwrap_err();
    assert_eq!(refused.errno(), libc::ENXIO);
    assert!(refused.to_string().contains("GICv2"), "{refused}");
}

#[test]
fn the_timers_interrupt_ids() {
    let host = counter();
    let kernel = Kernel::plain(&host);
    let vm = kernel.open();
    kernel.vm.borrow_mut().set_irq(1, 19).unwrap();
    let ids = Timer::ALL.map(|timer| vm.timer_irq(&kernel, timer).unwrap());
    assert_eq!(ids, [27, 19, 28, 26]);
    vm.enter(&kernel, 0).unwrap();
    kernel.calls.take();
    assert_eq!(vm.timer_irq(&kernel, Timer::Vtimer).unwrap_err(), KvmError::Running { vcpu: 0 });
    assert_eq!(kernel.calls.take(), [], "KVM would wait for it");
}
