//! The model VM: KVM's rules for the arm64 timer, without KVM.
//!
//! It is pure state and rules: every operation that depends on time takes the host's count. Differences between kernels
//! are fields of [`Behaviours`]. Sources: arch/arm64/kvm/arch_timer.c and guest.c, api.rst 4.138, and observations of
//! running kernels; docs/model.md has them rule by rule.

use crate::bank::rows::Rows;
use crate::bank::vms::{FrequencyDomain, Seat, VmClass};
use crate::bank::{Bank, BankError, Handle};
use crate::config::{Config, MAX_VCPUS, Origin};
use crate::error::VmError;
use guestclock_core::arch::arm64::{
    Access, Behaviours, CTL_ENABLE, CTL_IMASK, CTL_ISTATUS, Controls, CtlReadback, El2, Encoding, IrqIds, ListOrder,
    Offsets, Registers, Role, SYSREGS, Sysreg, Timer, TimerState, View, interrupts as irq, timer, traps as access,
    view_of, wake,
};
use guestclock_core::checkpoint::Interrupts;
use guestclock_core::time::{Frequency, GuestCount, HostCount, Offset, deadline};
use std::ops::{Deref, DerefMut};

/// Bits of CNTHCTL_EL2 that no guest has: 63 to 20, and those that need CNTPOFF_EL2, CNTPMASK, CNTVMASK and ECV.
const CNTHCTL_RES0: u64 = !0 << 18 | 1 << 12;

/// A VM: two counters, and on every vCPU two timers, or up to four if its guest has EL2.
///
/// It is a view of a [`Bank`], which holds its state: a bank that it shares with other VMs, or one of its own.
#[derive(Clone, Debug)]
pub struct ModelVm<B = Box<Bank>> {
    bank: B,
    slot: u32,
}

impl ModelVm {
    /// Creates a VM without vCPUs, whose guest's CNTFRQ_EL0 is the host's frequency.
    pub fn new(frequency: Frequency, behaviours: Behaviours, config: Config) -> Result<Self, VmError> {
        let (bank, slot) = Bank::of_one(frequency, behaviours, config)?;
        Ok(Self { bank: Box::new(bank), slot })
    }
}

impl Bank {
    /// Returns a read-only view of a VM.
    pub fn vm(&self, vm: Handle) -> Result<ModelVm<&Self>, BankError> {
        Ok(ModelVm::view(self, self.slot(vm)?))
    }

    /// Returns a view of a VM.
    pub fn vm_mut(&mut self, vm: Handle) -> Result<ModelVm<&mut Self>, BankError> {
        let slot = self.slot(vm)?;
        Ok(ModelVm::view(self, slot))
    }

    /// Opts VMs in to these offsets, by [`ModelVm::set_counter_offset`]: all of them, or none.
    ///
    /// # Panics
    ///
    /// If the number of offsets isn't that of VMs.
    pub fn set_offsets(&mut self, vms: &[Handle], offsets: &[u64]) -> Result<(), BankError> {
        assert_eq!(vms.len(), offsets.len(), "VMs and offsets");
        let slots = self.slots(vms)?;
        for vm in vms {
            self.vm(*vm)?.takes_an_offset(0).map_err(|error| BankError::OfVm { handle: vm.0, error })?;
        }
        for (slot, offset) in slots.into_iter().zip(offsets) {
            ModelVm::view(&mut *self, slot).set_counter_offset(Offset(*offset), 0)?;
        }
        Ok(())
    }
}

impl<B: Deref<Target = Bank>> ModelVm<B> {
    /// Returns a view of the VM in this slot.
    pub(crate) const fn view(bank: B, slot: u32) -> Self {
        Self { bank, slot }
    }

    /// Behaviours of the VM's kernel.
    #[must_use]
    pub fn behaviours(&self) -> Behaviours {
        self.class().behaviours
    }

    /// Configuration of the VM.
    #[must_use]
    pub fn config(&self) -> Config {
        self.class().config
    }

    /// CNTFRQ_EL0, in Hz: the frequency of both guest counters and of the host's.
    #[must_use]
    pub fn cntfrq_hz(&self) -> u32 {
        self.bank.domain_of(self.slot).cntfrq_hz()
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.seat().vcpus.into()
    }

    /// The VM-wide offset, once the VM has opted in.
    #[must_use]
    pub fn vm_offset(&self) -> Option<Offset> {
        let seat = self.seat();
        seat.opted_in.then_some(seat.offsets.virt)
    }

    /// A number that grows with every change of the VM's state.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.seat().changes
    }

    /// The first vCPU that is in the guest.
    #[must_use]
    pub fn first_running(&self) -> Option<usize> {
        self.rows().running[self.bank.rows_of(self.slot)].iter().position(|running| *running)
    }

    /// Checks that no vCPU is in the guest; the error names the first that is (EBUSY).
    pub(crate) fn all_stopped(&self) -> Result<(), VmError> {
        self.first_running().map_or(Ok(()), |vcpu| Err(VmError::Running { vcpu }))
    }

    /// Checks that [`set_counter_offset`](Self::set_counter_offset) wouldn't be refused.
    pub(crate) fn takes_an_offset(&self, reserved: u64) -> Result<(), VmError> {
        if !self.behaviours().counter_offset {
            return Err(VmError::NoCounterOffset);
        }
        if reserved != 0 {
            return Err(VmError::Reserved { reserved });
        }
        self.all_stopped()
    }

    /// The offsets of the vCPU's counters. A running vCPU keeps those that it was loaded with.
    pub fn offsets(&self, vcpu: usize) -> Result<Offsets, VmError> {
        Ok(self.rows().offsets(self.row(vcpu)?))
    }

    /// The count that the vCPU's guest reads from a counter at EL1.
    pub fn count(&self, vcpu: usize, view: View, now: HostCount) -> Result<GuestCount, VmError> {
        Ok(self.config().width.count(now.guest(self.offsets(vcpu)?.of(view))))
    }

    /// The ids of the timer registers, in KVM_GET_REG_LIST's order.
    pub fn reg_list(&self, vcpu: usize) -> Result<Vec<u64>, VmError> {
        self.row(vcpu)?;
        let mut rows: Vec<&Sysreg> = SYSREGS.iter().filter(|row| self.has_one_reg(row)).collect();
        if self.behaviours().list_order == ListOrder::Grouped {
            rows.sort_by_key(|row| match row.role {
                Role::Ctl(timer) => (timer.index(), 0),
                Role::Count(view) => (usize::from(view == View::Physical), 1),
                Role::Cval(timer) => (timer.index(), 2),
                _ => (usize::MAX, 0),
            });
        }
        Ok(rows.into_iter().filter_map(Sysreg::one_reg_id).collect())
    }

    /// Returns a stored CTL as GET_ONE_REG shows it, without a computed ISTATUS.
    pub(crate) fn ctl_seen(&self, ctl: u64) -> u64 {
        match self.behaviours().ctl_readback {
            CtlReadback::Stored => ctl,
            CtlReadback::Computed => ctl & 0xffff_ffff,
        }
    }

    /// The timer registers of the VM's vCPUs.
    pub(crate) fn registers(&self) -> Registers {
        Registers::from(self.reg_list(0).unwrap_or_default())
    }

    /// Reads a register (KVM_GET_ONE_REG). KVM would wait until the vCPU leaves the guest; the model refuses a running
    /// vCPU.
    pub fn get_one_reg(&self, vcpu: usize, id: u64, now: HostCount) -> Result<u64, VmError> {
        let (rows, row) = (self.rows(), self.stopped(vcpu)?);
        match self.one_reg(id)?.role {
            Role::Count(view) => Ok(now.guest(self.offsets(vcpu)?.of(view)).0),
            Role::Cval(timer) => Ok(rows.cval(row, timer)),
            Role::Ctl(timer) => match self.behaviours().ctl_readback {
                CtlReadback::Stored => Ok(self.ctl_seen(rows.ctl(row, timer))),
                CtlReadback::Computed => {
                    let guest = self.count(vcpu, view_of(timer), now)?;
                    let met = self.config().width.condition_met(rows.cval(row, timer), guest);
                    Ok(self.ctl_seen(rows.ctl(row, timer)) | if met { CTL_ISTATUS } else { 0 })
                }
            },
            Role::Cntkctl => Ok(rows.cntkctl[row]),
            Role::Cnthctl => Ok(self.cnthctl(row)),
            Role::Cntvoff => Ok(rows.cntvoff[row]),
            _ => Err(VmError::NoSuchOneReg { id }),
        }
    }

    /// Returns the result of an MRS (with `write`, of an MSR) of the register by the vCPU's guest.
    pub fn access(&self, vcpu: usize, encoding: Encoding, write: bool, from: Origin) -> Result<Access, VmError> {
        let row = self.row(vcpu)?;
        let controls = Controls {
            cntkctl: self.rows().cntkctl[row],
            cnthctl: self.cnthctl(row),
            e2h: self.e2h(),
            tge: from.tge,
            nested: self.config().el2 != El2::Absent,
        };
        Ok(Sysreg::at(encoding).map_or(Access::Undefined, |row| access::check(row, write, from.el, &controls)))
    }

    fn role(&self, vcpu: usize, encoding: Encoding, write: bool, from: Origin) -> Result<Role, VmError> {
        match self.access(vcpu, encoding, write, from)? {
            Access::Allowed(role) => Ok(role),
            Access::TrapToEl1 => Err(VmError::Trap { encoding, to: 1 }),
            Access::TrapToEl2 => Err(VmError::Trap { encoding, to: 2 }),
            Access::Undefined => Err(VmError::NoSuchSysreg { encoding, write }),
        }
    }

    /// Reads a register as the vCPU's guest does with MRS.
    pub fn read_sysreg(&self, vcpu: usize, encoding: Encoding, from: Origin, now: HostCount) -> Result<u64, VmError> {
        let (rows, row) = (self.rows(), self.row(vcpu)?);
        match self.role(vcpu, encoding, false, from)? {
            Role::Frequency => Ok(self.cntfrq_hz().into()),
            Role::Count(View::Virtual) if !access::kvm_counts_cntvoff(from.el, self.e2h(), from.tge) => {
                Ok(self.count(vcpu, View::Physical, now)?.0)
            }
            Role::Count(view) => Ok(self.count(vcpu, view, now)?.0),
            Role::Ctl(timer) => Ok(self.timer(vcpu, timer, now)?.ctl),
            Role::Cval(timer) => Ok(self.timer(vcpu, timer, now)?.cval),
            Role::Tval(timer) => Ok(self.timer(vcpu, timer, now)?.tval.into()),
            Role::Cntkctl => Ok(rows.cntkctl[row]),
            Role::Cnthctl => Ok(self.cnthctl(row)),
            Role::Cntvoff => Ok(rows.cntvoff[row]),
            Role::Cntpoff => Err(VmError::NoSuchSysreg { encoding, write: false }),
        }
    }

    /// The host count at which a vCPU that waits in WFI, or in WFIT with this operand, wakes by itself: `now` for at
    /// once, or [`NO_DEADLINE`](guestclock_core::time::NO_DEADLINE).
    pub fn wake(&self, vcpu: usize, wfit: Option<u64>, from: Origin, now: HostCount) -> Result<u64, VmError> {
        let (rows, row, Config { el2, width, .. }) = (self.rows(), self.row(vcpu)?, self.config());
        let mut ticks = [None; Timer::ALL.len()];
        for &timer in el2.timers() {
            let guest = self.count(vcpu, view_of(timer), now)?;
            ticks[timer.index()] = width.ticks_to_line(rows.ctl(row, timer), rows.cval(row, timer), guest);
        }
        let view = if access::counts_cntvoff(from.el, self.e2h(), from.tge) { View::Virtual } else { View::Physical };
        let timeout = match wfit {
            Some(operand) => Some(wake::wfit_ticks(operand, self.count(vcpu, view, now)?)),
            None => None,
        };
        Ok(deadline(now, wake::ticks_to_wake(ticks, timeout)))
    }

    /// `kvm_run.s.regs.device_irq_level`: the lines of the EL1 timers, for an interrupt controller in the VMM.
    pub fn device_irq_level(&self, vcpu: usize, now: HostCount) -> Result<u64, VmError> {
        let line = |timer| self.timer(vcpu, timer, now).map(|state| state.line);
        Ok(irq::device_irq_level(line(Timer::Vtimer)?, line(Timer::Ptimer)?))
    }

    /// Interrupt ids of the timers.
    #[must_use]
    pub fn irqs(&self) -> &IrqIds {
        &self.seat().irqs
    }

    /// Interrupt ids of the timers that the guest has.
    #[must_use]
    pub fn interrupts(&self) -> Interrupts {
        let mut ids = [0; 4];
        for timer in self.config().el2.timers() {
            ids[timer.index()] = self.irqs().of(*timer).into();
        }
        Interrupts(ids)
    }

    /// Returns whether the timer is in hardware while the guest runs (`get_timer_map` in arch_timer.c). KVM's copy of
    /// an emulated timer stays as it was written.
    fn in_hardware(&self, timer: Timer) -> bool {
        self.config().vhe || !matches!(timer, Timer::Ptimer)
    }

    /// CNTHCTL_EL2; 0 for a guest without EL2, whose rows may have no such column.
    fn cnthctl(&self, row: usize) -> u64 {
        let cnthctl = self.rows().cnthctl.get(row).copied().unwrap_or(0);
        cnthctl & if self.seat().sanitised { !CNTHCTL_RES0 } else { u64::MAX }
    }

    fn e2h(&self) -> bool {
        self.config().el2 == El2::Vhe
    }

    /// State of one timer as the vCPU's guest reads it.
    pub fn timer(&self, vcpu: usize, timer: Timer, now: HostCount) -> Result<TimerState, VmError> {
        let guest = self.count(vcpu, view_of(timer), now)?;
        let Config { el2, width, .. } = self.config();
        if !el2.timers().contains(&timer) {
            return Err(VmError::NoSuchTimer { timer });
        }
        let (rows, row) = (self.rows(), self.row(vcpu)?);
        let (ctl, cval) = (rows.ctl(row, timer), rows.cval(row, timer) & width.mask());
        Ok(TimerState::at(ctl, cval, guest, now))
    }

    /// The earliest deadline of the vCPU's timers, at which a WFI would end: `now` if a line is high, or
    /// [`NO_DEADLINE`](guestclock_core::time::NO_DEADLINE).
    pub fn next_deadline(&self, vcpu: usize, now: HostCount) -> Result<u64, VmError> {
        self.wake(vcpu, None, Origin::default(), now)
    }

    fn seat(&self) -> &Seat {
        &self.bank.seats[self.slot as usize]
    }

    fn class(&self) -> &VmClass {
        self.bank.class_of(self.slot)
    }

    fn rows(&self) -> &Rows {
        &self.bank.domain_of(self.slot).rows
    }

    /// Returns the vCPU's row.
    fn row(&self, vcpu: usize) -> Result<usize, VmError> {
        let vcpus = self.vcpus();
        let there = self.bank.rows_of(self.slot).nth(vcpu);
        there.ok_or(VmError::NoSuchVcpu { vcpu, vcpus })
    }

    /// Returns the row of a vCPU that isn't in its guest.
    fn stopped(&self, vcpu: usize) -> Result<usize, VmError> {
        let row = self.row(vcpu)?;
        if self.rows().running[row] { Err(VmError::Running { vcpu }) } else { Ok(row) }
    }

    fn has_one_reg(&self, row: &Sysreg) -> bool {
        match row.role {
            _ if row.kvm.is_none() => false,
            Role::Ctl(Timer::Ptimer) | Role::Cval(Timer::Ptimer) | Role::Count(View::Physical) => {
                self.behaviours().physical_timer
            }
            // Every guest has the virtual timer, and these are what a VMM reads most.
            Role::Ctl(Timer::Vtimer) | Role::Cval(Timer::Vtimer) | Role::Count(View::Virtual) | Role::Cntkctl => true,
            Role::Ctl(timer) | Role::Cval(timer) => self.config().el2.timers().contains(&timer),
            Role::Cntvoff | Role::Cnthctl => self.config().el2 != El2::Absent,
            _ => false,
        }
    }

    fn one_reg(&self, id: u64) -> Result<&'static Sysreg, VmError> {
        Sysreg::with_one_reg_id(id).filter(|row| self.has_one_reg(row)).ok_or(VmError::NoSuchOneReg { id })
    }
}

impl<B: DerefMut<Target = Bank>> ModelVm<B> {
    /// Creates a vCPU (KVM_CREATE_VCPU). Unless the VM has opted in, this moves every vCPU's virtual counter to 0 and
    /// the physical one to the host's (`kvm_timer_vcpu_init`); if the guest has EL2, both to the host's.
    pub fn create_vcpu(&mut self, now: HostCount) -> Result<usize, VmError> {
        self.create_vcpus(1, now)?;
        Ok(self.vcpus() - 1)
    }

    /// Creates `vcpus` vCPUs at one instant (KVM_CREATE_VCPU each).
    pub fn create_vcpus(&mut self, vcpus: usize, now: HostCount) -> Result<(), VmError> {
        if self.vcpus() + vcpus > MAX_VCPUS || !self.bank.has_room(self.slot, vcpus) {
            return Err(VmError::TooManyVcpus);
        }
        if vcpus == 0 {
            return Ok(());
        }
        self.bank.resettle(self.slot, |bank| (0..vcpus).for_each(|_| bank.push_row(self.slot)));
        if !self.seat().opted_in {
            self.state().1.offsets = Offsets { virt: Offset(now.0), phys: Offset(0) };
        }
        self.follow_the_vm();
        self.state().1.changes += vcpus as u64;
        Ok(())
    }

    /// Initialises a vCPU (KVM_ARM_VCPU_INIT): turns the timers off, and resets the vCPU's own registers, including
    /// CNTVOFF_EL2. The VM's offsets stay.
    pub fn init_vcpu(&mut self, vcpu: usize) -> Result<(), VmError> {
        let (row, zeroes_cval) = (self.stopped(vcpu)?, self.behaviours().init_zeroes_cval);
        let Rows { cntkctl, cnthctl, cntvoff, .. } = &mut self.state().0.rows;
        for column in [cntkctl, cnthctl, cntvoff] {
            if let Some(value) = column.get_mut(row) {
                *value = 0;
            }
        }
        self.follow_the_vm();
        for &timer in self.config().el2.timers() {
            self.write_timer(vcpu, timer, zeroes_cval.then_some(0), Some(0))?;
        }
        self.changed();
        Ok(())
    }

    /// Sets one offset for both counters of every vCPU, present and future (KVM_ARM_SET_COUNTER_OFFSET). There is no
    /// way back to setting counters by value. `reserved` is the ioctl's second field, which has to be 0.
    pub fn set_counter_offset(&mut self, offset: Offset, reserved: u64) -> Result<(), VmError> {
        self.takes_an_offset(reserved)?;
        self.opt_in_stopped(offset);
        Ok(())
    }

    /// Gives a VM that takes an offset this one.
    pub(crate) fn opt_in_stopped(&mut self, offset: Offset) {
        self.seat_mut().opted_in = true;
        self.move_offsets(Offsets { virt: offset, phys: offset });
    }

    /// Lets the vCPU enter the guest (KVM_RUN), loaded with the offsets of this moment. The first entry fixes the
    /// timers' interrupt ids, and fails if two timers have the same id.
    pub fn enter(&mut self, vcpu: usize) -> Result<(), VmError> {
        let (row, Config { el2, in_kernel_irqchip, .. }) = (self.stopped(vcpu)?, self.config());
        let in_hardware = Timer::ALL.map(|timer| self.in_hardware(timer));
        let (FrequencyDomain { rows, .. }, seat) = self.state();
        seat.irqs.first_run(el2.timers(), in_kernel_irqchip)?;
        seat.sanitised = true;
        rows.running[row] = true;
        for &timer in rows.kept().iter().filter(|timer| in_hardware[timer.index()]) {
            // The hardware has no other bits, so other stored bits are lost.
            rows.set_ctl(row, timer, rows.ctl(row, timer) & (CTL_ENABLE | CTL_IMASK));
        }
        self.changed();
        Ok(())
    }

    /// Lets the vCPU leave the guest. CTL keeps the ISTATUS that the hardware shows now (`timer_save_state`).
    pub fn exit(&mut self, vcpu: usize, now: HostCount) -> Result<(), VmError> {
        let (row, Config { el2, width, .. }) = (self.row(vcpu)?, self.config());
        for &timer in el2.timers() {
            let (guest, in_hardware) = (self.count(vcpu, view_of(timer), now)?, self.in_hardware(timer));
            let rows = &mut self.state().0.rows;
            let (ctl, cval) = (rows.ctl(row, timer), rows.cval(row, timer));
            if in_hardware && ctl & CTL_ENABLE != 0 {
                rows.set_ctl(row, timer, width.ctl_read(ctl, cval, guest));
            }
        }
        self.state().0.rows.running[row] = false;
        self.follow_the_vm();
        self.changed();
        Ok(())
    }

    /// Writes a register (KVM_SET_ONE_REG). A count moves the VM's offset, for every vCPU from its next entry on. If
    /// the VM has opted in, the count is ignored without an error.
    ///
    /// If the guest has EL2 either count moves both counters. Writing a count ignores CNTVOFF_EL2, though reading one
    /// back subtracts it. So replaying a list of registers that includes CNTVOFF_EL2 restores neither counter.
    pub fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64, now: HostCount) -> Result<(), VmError> {
        let row = self.stopped(vcpu)?;
        match self.one_reg(id)?.role {
            Role::Count(_) if self.seat().opted_in => return Ok(()),
            Role::Count(view) => {
                let offset = Offset::between(now, GuestCount(value));
                let offsets = self.seat().offsets;
                self.move_offsets(match view {
                    View::Virtual if self.config().el2 == El2::Absent => Offsets { virt: offset, ..offsets },
                    View::Virtual | View::Physical => Offsets { phys: offset, ..offsets },
                });
                return Ok(());
            }
            Role::Cval(timer) => self.write_timer(vcpu, timer, Some(value), None)?,
            Role::Ctl(timer) => self.write_timer(vcpu, timer, None, Some(value & !CTL_ISTATUS))?,
            Role::Cntkctl => self.state().0.rows.cntkctl[row] = value,
            Role::Cnthctl => self.state().0.rows.cnthctl[row] = value,
            Role::Cntvoff => self.set_cntvoff(row, value),
            _ => return Err(VmError::NoSuchOneReg { id }),
        }
        self.changed();
        Ok(())
    }

    /// Writes a register as the vCPU's guest does with MSR.
    pub fn write_sysreg(
        &mut self,
        vcpu: usize,
        encoding: Encoding,
        value: u64,
        from: Origin,
        now: HostCount,
    ) -> Result<(), VmError> {
        let row = self.row(vcpu)?;
        match self.role(vcpu, encoding, true, from)? {
            Role::Ctl(timer) => self.write_timer(vcpu, timer, None, Some(value & (CTL_ENABLE | CTL_IMASK)))?,
            Role::Cval(timer) => self.write_timer(vcpu, timer, Some(value), None)?,
            Role::Tval(timer) => {
                let guest = self.count(vcpu, view_of(timer), now)?;
                #[expect(clippy::cast_possible_truncation, reason = "TVAL has 32 bits")]
                let tval = value as u32;
                self.write_timer(vcpu, timer, Some(timer::tval_write(tval, guest)), None)?;
            }
            Role::Cntkctl => self.state().0.rows.cntkctl[row] = value,
            Role::Cnthctl => self.state().0.rows.cnthctl[row] = value,
            Role::Cntvoff => self.set_cntvoff(row, value),
            Role::Frequency | Role::Count(_) | Role::Cntpoff => {
                return Err(VmError::NoSuchSysreg { encoding, write: true });
            }
        }
        self.changed();
        Ok(())
    }

    /// Sets a timer's interrupt id on every vCPU (KVM_ARM_VCPU_TIMER_CTRL).
    pub fn set_irq(&mut self, attribute: u64, id: i32) -> Result<(), VmError> {
        let in_kernel_irqchip = self.config().in_kernel_irqchip;
        self.seat_mut().irqs.set(attribute, id, in_kernel_irqchip)?;
        self.changed();
        Ok(())
    }

    fn state(&mut self) -> (&mut FrequencyDomain, &mut Seat) {
        self.bank.domain_and_seat(self.slot)
    }

    fn seat_mut(&mut self) -> &mut Seat {
        &mut self.bank.seats[self.slot as usize]
    }

    fn changed(&mut self) {
        self.seat_mut().changes += 1;
    }

    /// Writes CVAL or CTL or both, as the guest or the VMM does.
    fn write_timer(&mut self, vcpu: usize, timer: Timer, cval: Option<u64>, ctl: Option<u64>) -> Result<(), VmError> {
        let (slot, row) = (self.slot, self.row(vcpu)?);
        let domain = self.state().0;
        if let Some(cval) = cval {
            domain.rows.set_cval(row, timer, cval);
        }
        if let Some(ctl) = ctl {
            domain.rows.set_ctl(row, timer, ctl);
        }
        domain.wrote(slot, vcpu, row, timer);
        Ok(())
    }

    /// Sets CNTVOFF_EL2 of a vCPU. A running vCPU is loaded with it when its hypervisor enters its own guest, so it
    /// takes effect at once, although the VM's offset is still the one that the vCPU was loaded with.
    fn set_cntvoff(&mut self, row: usize, cntvoff: u64) {
        self.state().0.rows.set_cntvoff(row, cntvoff);
        self.bank.follow(self.slot);
    }

    /// Sets the VM's own offsets.
    fn move_offsets(&mut self, offsets: Offsets) {
        self.seat_mut().offsets = offsets;
        self.follow_the_vm();
        self.changed();
    }

    /// Applies the VM's offsets to its vCPUs, except those that run: they keep the offsets that they were loaded with.
    fn follow_the_vm(&mut self) {
        let (rows, nested) = (self.bank.rows_of(self.slot), self.class().config.el2 != El2::Absent);
        let (domain, seat) = self.state();
        let offsets = seat.offsets;
        if nested {
            for row in rows {
                if !domain.rows.running[row] {
                    let cntvoff = Offset(domain.rows.cntvoff[row]);
                    domain.rows.set_offsets(row, offsets.on_vcpu(Some(cntvoff)));
                }
            }
        } else {
            let Rows { virt, phys, running, .. } = &mut domain.rows;
            let counters = virt[rows.clone()].iter_mut().zip(&mut phys[rows.clone()]);
            for ((virt, phys), running) in counters.zip(&running[rows]) {
                if !running {
                    (*virt, *phys) = (offsets.virt.0, offsets.phys.0);
                }
            }
        }
        self.bank.follow(self.slot);
    }
}
