//! The model VM: KVM's rules for the arm64 timer, without KVM.
//!
//! Pure state and rules: every operation that depends on time takes the host's count. What each kernel does differently is
//! a line of [`Behaviours`]. Sources: arch/arm64/kvm/arch_timer.c and guest.c, api.rst 4.138, and what was observed on
//! running kernels; docs/model.md has them rule by rule.

use crate::access::{self, Access, Controls, El};
use crate::bank::{self, TimerBank};
use crate::counter::{Frequency, GuestCount, HostCount, Offset};
use crate::irq::{self, IrqError, IrqIds};
use crate::kernel::{Behaviours, CtlReadback, ListOrder};
use crate::sysreg::{Encoding, Role, SYSREGS, Sysreg, View};
use crate::timer::{self, CTL_ENABLE, CTL_IMASK, CTL_ISTATUS, Timer, Width};
use crate::wake;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// How many vCPUs a VM may have: KVM_MAX_VCPUS, which is VGIC_V3_MAX_CPUS (arch/arm64/include/asm/kvm_host.h).
pub const MAX_VCPUS: usize = 512;

/// The bits of CNTHCTL_EL2 that no guest has: 63 to 20, and those that need CNTPOFF_EL2, CNTPMASK, CNTVMASK and ECV.
const CNTHCTL_RES0: u64 = !0 << 18 | 1 << 12;

/// What a guest has of EL2, and with it of the generic timer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum El2 {
    /// None: two counters and two timers.
    #[default]
    Absent,
    /// EL2 with HCR_EL2.E2H fixed at 1 (KVM_ARM_VCPU_HAS_EL2): CNTVOFF_EL2 and both EL2 timers.
    Vhe,
    /// EL2 with HCR_EL2.E2H fixed at 0 (and KVM_ARM_VCPU_HAS_EL2_E2H0): without the EL2 virtual timer.
    E2h0,
}

impl El2 {
    /// The guest's timers, in the order of [`Timer::ALL`].
    #[must_use]
    pub const fn timers(self) -> &'static [Timer] {
        match self {
            Self::Absent => &[Timer::Vtimer, Timer::Ptimer],
            Self::Vhe => &Timer::ALL,
            Self::E2h0 => &[Timer::Vtimer, Timer::Ptimer, Timer::Hptimer],
        }
    }
}

/// What the model refuses, as KVM would.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// There is no such vCPU.
    #[error("there is no vCPU {vcpu}: the VM has {vcpus}")]
    NoSuchVcpu {
        /// The one asked for.
        vcpu: usize,
        /// How many there are.
        vcpus: usize,
    },
    /// The counter is too fast for a guest.
    #[error("a guest's CNTFRQ_EL0 has 32 bits, and {hz} Hz don't fit: use a slower counter")]
    FrequencyTooHigh {
        /// The counter's frequency.
        hz: u64,
    },
    /// The kernel can't give a guest EL2 (EINVAL).
    #[error("this kernel has no KVM_CAP_ARM_EL2: a nested guest needs one that has, started with kvm-arm.mode=nested")]
    NoEl2,
    /// The VM is full (EINVAL).
    #[error("the VM has {MAX_VCPUS} vCPUs, as many as KVM allows")]
    TooManyVcpus,
    /// A vCPU is in the guest (EBUSY).
    #[error("vCPU {vcpu} is running: stop it, or leave its running() block, and try again")]
    Running {
        /// Which one.
        vcpu: usize,
    },
    /// There is no such register id (ENOENT).
    #[error("KVM has no register {id:#018x} on this vCPU")]
    NoSuchOneReg {
        /// The id.
        id: u64,
    },
    /// The guest hasn't got this timer (ENOENT).
    #[error("this guest has no {}: a guest with EL2 has", timer.name())]
    NoSuchTimer {
        /// Which one.
        timer: Timer,
    },
    /// There is no such system register, or not with this access: an undefined instruction in the guest.
    #[error("{}", undefined(*encoding, *write))]
    NoSuchSysreg {
        /// Its encoding.
        encoding: Encoding,
        /// Whether it was to be written.
        write: bool,
    },
    /// The access traps instead of taking place.
    #[error("{} traps to EL{to} from here: the guest's own exception handler gets it", name(*encoding))]
    Trap {
        /// The register's encoding.
        encoding: Encoding,
        /// The exception level that gets it: 1 or 2.
        to: u8,
    },
    /// A rule of the timers' interrupt ids.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The offset ioctl's reserved field isn't 0 (EINVAL).
    #[error("the reserved field of kvm_arm_counter_offset is {reserved:#x}: it has to be 0")]
    Reserved {
        /// What it was.
        reserved: u64,
    },
    /// The kernel hasn't the offset ioctl (EINVAL).
    #[error("this kernel has no KVM_CAP_COUNTER_OFFSET (Linux 6.4 and later have): set the counters by value instead")]
    NoCounterOffset,
}

fn name(encoding: Encoding) -> String {
    let Encoding(op0, op1, crn, crm, op2) = encoding;
    let name = Sysreg::at(encoding).map_or("an unknown register", |row| row.name);
    format!("{name} (S{op0}_{op1}_C{crn}_C{crm}_{op2})")
}

fn undefined(encoding: Encoding, write: bool) -> String {
    let access = if write { "written" } else { "read" };
    format!("{} can't be {access} here: it is undefined for this guest", name(encoding))
}

/// Where in the guest an access or a wait comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// The exception level.
    pub el: El,
    /// HCR_EL2.TGE of a nested guest: its EL0 is its hypervisor's user space.
    pub tge: bool,
}

impl Default for Origin {
    /// The guest's kernel.
    fn default() -> Self {
        Self { el: El::El1, tge: false }
    }
}

/// What a VM is made of, besides its kernel's behaviours.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Config {
    /// What its guest has of EL2.
    pub el2: El2,
    /// The interrupt controller is in the kernel, and not in the VMM.
    pub in_kernel_irqchip: bool,
    /// The host's kernel runs at EL2 (VHE). Without, it emulates the physical timer of every guest.
    pub vhe: bool,
    /// How wide the guest's counters are, for emulators of hardware with fewer than 64 bits. KVM knows none but 64.
    pub width: Width,
}

impl Default for Config {
    fn default() -> Self {
        Self { el2: El2::Absent, in_kernel_irqchip: true, vhe: true, width: Width::FULL }
    }
}

/// The offsets that a vCPU's two counters are under.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offsets {
    /// Of CNTVCT_EL0.
    pub virt: Offset,
    /// Of CNTPCT_EL0.
    pub phys: Offset,
}

impl Offsets {
    /// The one asked for.
    #[must_use]
    pub const fn of(self, view: View) -> Offset {
        match view {
            View::Virtual => self.virt,
            View::Physical => self.phys,
        }
    }

    /// The VM's, on a vCPU of this CNTVOFF_EL2: `None` for one without EL2. With it, both views go by the physical offset
    /// (`timer_get_offset`, include/kvm/arm_arch_timer.h).
    #[must_use]
    pub const fn on_vcpu(self, cntvoff: Option<Offset>) -> Self {
        match cntvoff {
            None => self,
            Some(cntvoff) => Self { virt: self.phys.plus(cntvoff), phys: self.phys },
        }
    }
}

/// The counter that a timer compares with, as far as its offset goes: the EL2 virtual timer's is without CNTVOFF_EL2, and so
/// the physical one's (`timer_get_offset`, include/kvm/arm_arch_timer.h).
#[must_use]
pub const fn view_of(timer: Timer) -> View {
    match timer {
        Timer::Vtimer => View::Virtual,
        Timer::Ptimer | Timer::Hvtimer | Timer::Hptimer => View::Physical,
    }
}

/// One timer at one instant, as its guest would see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerState {
    /// CTL as the guest reads it.
    pub ctl: u64,
    /// CVAL.
    pub cval: u64,
    /// TVAL as the guest reads it.
    pub tval: u32,
    /// The interrupt line.
    pub line: bool,
    /// The host count at which the line goes high by itself, or [`NO_DEADLINE`](bank::NO_DEADLINE).
    pub deadline: u64,
}

impl TimerState {
    /// A timer whose counter reads `guest` when the host's reads `now`.
    #[must_use]
    pub fn at(ctl: u64, cval: u64, guest: GuestCount, now: HostCount) -> Self {
        Self {
            ctl: timer::ctl_read(ctl, cval, guest),
            cval,
            tval: timer::tval_read(cval, guest),
            line: timer::line(ctl, cval, guest),
            deadline: bank::deadline(now, timer::ticks_to_line(ctl, cval, guest)),
        }
    }
}

/// A VM: two counters, and on every vCPU two timers, or four if its guest has EL2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vm {
    behaviours: Behaviours,
    config: Config,
    irqs: IrqIds,
    cntfrq_hz: u32,
    /// KVM_ARCH_FLAG_VM_COUNTER_OFFSET: set by the first offset written, never cleared.
    owned: bool,
    /// The VM's own offsets. A guest with EL2 goes by the physical one alone.
    offsets: Offsets,
    /// Whether each vCPU is in the guest.
    running: Vec<bool>,
    /// The offsets each running vCPU was loaded with.
    loaded: Vec<Offsets>,
    cntkctl: Vec<u64>,
    cnthctl: Vec<u64>,
    /// A vCPU has run, from when on CNTHCTL_EL2 hasn't got [`CNTHCTL_RES0`] (`kvm_init_nv_sysregs`).
    sanitised: bool,
    /// Each vCPU's CNTVOFF_EL2: its guest hypervisor's own, and nobody else's.
    cntvoff: Vec<u64>,
    timers: [TimerBank; 4],
    /// Counts the changes of state, so that a plan can tell whether it is stale.
    generation: u64,
}

impl Vm {
    /// A VM without vCPUs, whose guest's CNTFRQ_EL0 is the host's frequency.
    pub fn new(frequency: Frequency, behaviours: Behaviours, config: Config) -> Result<Self, VmError> {
        if config.el2 != El2::Absent && !behaviours.el2 {
            return Err(VmError::NoEl2);
        }
        let cntfrq_hz = frequency.cntfrq().ok_or(VmError::FrequencyTooHigh { hz: frequency.hz() })?;
        Ok(Self {
            behaviours,
            config,
            // The attributes came with the physical timer's registers, in Linux 6.4.
            irqs: IrqIds::new(behaviours.physical_timer),
            cntfrq_hz,
            owned: false,
            offsets: Offsets::default(),
            running: Vec::new(),
            loaded: Vec::new(),
            cntkctl: Vec::new(),
            cnthctl: Vec::new(),
            sanitised: false,
            cntvoff: Vec::new(),
            timers: Default::default(),
            generation: 0,
        })
    }

    /// What its kernel does.
    #[must_use]
    pub const fn behaviours(&self) -> Behaviours {
        self.behaviours
    }

    /// What it is made of.
    #[must_use]
    pub const fn config(&self) -> Config {
        self.config
    }

    /// CNTFRQ_EL0, in Hz: the frequency of both counters, and of the host's.
    #[must_use]
    pub const fn cntfrq_hz(&self) -> u32 {
        self.cntfrq_hz
    }

    /// How many vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.running.len()
    }

    /// The VM-wide offset, once it is owned.
    #[must_use]
    pub fn owned_offset(&self) -> Option<Offset> {
        self.owned.then_some(self.offsets.virt)
    }

    /// Grows with every change of state.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The first vCPU that is in the guest.
    #[must_use]
    pub fn first_running(&self) -> Option<usize> {
        self.running.iter().position(|running| *running)
    }

    /// KVM_CREATE_VCPU. Without an owned offset this moves every vCPU's virtual counter to 0 and the physical one to the
    /// host's (`kvm_timer_vcpu_init`); where the guest has EL2, both to the host's.
    pub fn create_vcpu(&mut self, now: HostCount) -> Result<usize, VmError> {
        if self.vcpus() == MAX_VCPUS {
            return Err(VmError::TooManyVcpus);
        }
        if !self.owned {
            self.offsets = Offsets { virt: Offset(now.0), phys: Offset(0) };
        }
        self.running.push(false);
        self.loaded.push(self.offsets);
        self.cntkctl.push(0);
        self.cnthctl.push(0);
        self.cntvoff.push(0);
        for timer in &mut self.timers {
            timer.push();
        }
        self.generation += 1;
        Ok(self.vcpus() - 1)
    }

    /// KVM_ARM_VCPU_INIT: turns the timers off, and resets the vCPU's own registers, CNTVOFF_EL2 among them; the VM's offsets
    /// stay.
    pub fn init_vcpu(&mut self, vcpu: usize) -> Result<(), VmError> {
        self.stopped(vcpu)?;
        self.cntkctl[vcpu] = 0;
        self.cnthctl[vcpu] = 0;
        self.cntvoff[vcpu] = 0;
        for timer in &mut self.timers {
            timer.ctl[vcpu] = 0;
            if self.behaviours.init_zeroes_cval {
                timer.cval[vcpu] = 0;
            }
        }
        self.generation += 1;
        Ok(())
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: one offset for both counters of every vCPU, now and later. There is no way back to
    /// setting counters by value. `reserved` is the ioctl's second field, which has to be 0.
    pub fn set_counter_offset(&mut self, offset: Offset, reserved: u64) -> Result<(), VmError> {
        if !self.behaviours.counter_offset {
            return Err(VmError::NoCounterOffset);
        }
        if reserved != 0 {
            return Err(VmError::Reserved { reserved });
        }
        if let Some(vcpu) = self.first_running() {
            return Err(VmError::Running { vcpu });
        }
        self.owned = true;
        self.offsets = Offsets { virt: offset, phys: offset };
        self.generation += 1;
        Ok(())
    }

    /// The vCPU enters the guest (KVM_RUN): it is loaded with the offsets of this moment. The first entry fixes the
    /// timers' interrupt ids, and fails where two have the same.
    pub fn enter(&mut self, vcpu: usize) -> Result<(), VmError> {
        self.stopped(vcpu)?;
        self.irqs.first_run(self.config.el2.timers(), self.config.in_kernel_irqchip)?;
        self.loaded[vcpu] = self.offsets(vcpu)?;
        self.running[vcpu] = true;
        self.sanitised = true;
        for timer in Timer::ALL {
            if self.in_hardware(timer) {
                // The hardware has no other bits, so what was stored there is gone.
                self.timers[timer.index()].ctl[vcpu] &= CTL_ENABLE | CTL_IMASK;
            }
        }
        self.generation += 1;
        Ok(())
    }

    /// The vCPU leaves the guest. CTL keeps the ISTATUS that the hardware shows now (`timer_save_state`).
    pub fn exit(&mut self, vcpu: usize, now: HostCount) -> Result<(), VmError> {
        self.exists(vcpu)?;
        for &timer in self.config.el2.timers() {
            let guest = self.count(vcpu, view_of(timer), now)?;
            let in_hardware = self.in_hardware(timer);
            let TimerBank { cval, ctl } = &mut self.timers[timer.index()];
            if in_hardware && ctl[vcpu] & CTL_ENABLE != 0 {
                ctl[vcpu] = self.config.width.ctl_read(ctl[vcpu], cval[vcpu], guest);
            }
        }
        self.running[vcpu] = false;
        self.generation += 1;
        Ok(())
    }

    /// The offsets that the vCPU's counters are under: a running vCPU keeps those it was loaded with.
    pub fn offsets(&self, vcpu: usize) -> Result<Offsets, VmError> {
        self.exists(vcpu)?;
        let cntvoff = (self.config.el2 != El2::Absent).then(|| Offset(self.cntvoff[vcpu]));
        Ok(if self.running[vcpu] { self.loaded[vcpu] } else { self.offsets.on_vcpu(cntvoff) })
    }

    /// What the vCPU's guest reads from a counter at EL1.
    pub fn count(&self, vcpu: usize, view: View, now: HostCount) -> Result<GuestCount, VmError> {
        Ok(self.config.width.count(now.guest(self.offsets(vcpu)?.of(view))))
    }

    /// The ids of the timer registers, in KVM_GET_REG_LIST's order.
    pub fn reg_list(&self, vcpu: usize) -> Result<Vec<u64>, VmError> {
        self.exists(vcpu)?;
        let mut rows: Vec<&Sysreg> = SYSREGS.iter().filter(|row| self.has_one_reg(row)).collect();
        if self.behaviours.list_order == ListOrder::Grouped {
            rows.sort_by_key(|row| match row.role {
                Role::Ctl(timer) => (timer.index(), 0),
                Role::Count(view) => (usize::from(view == View::Physical), 1),
                Role::Cval(timer) => (timer.index(), 2),
                _ => (usize::MAX, 0),
            });
        }
        Ok(rows.into_iter().filter_map(Sysreg::one_reg_id).collect())
    }

    /// KVM_GET_ONE_REG. On KVM it would wait until the vCPU leaves the guest; here a running vCPU is refused.
    pub fn get_one_reg(&self, vcpu: usize, id: u64, now: HostCount) -> Result<u64, VmError> {
        self.stopped(vcpu)?;
        match self.one_reg(id)?.role {
            Role::Count(view) => Ok(now.guest(self.offsets(vcpu)?.of(view)).0),
            Role::Cval(timer) => Ok(self.timers[timer.index()].cval[vcpu]),
            Role::Ctl(timer) => {
                let TimerBank { cval, ctl } = &self.timers[timer.index()];
                match self.behaviours.ctl_readback {
                    CtlReadback::Stored => Ok(ctl[vcpu]),
                    CtlReadback::Computed => {
                        let guest = self.count(vcpu, view_of(timer), now)?;
                        let met = self.config.width.condition_met(cval[vcpu], guest);
                        Ok(ctl[vcpu] & 0xffff_ffff | if met { CTL_ISTATUS } else { 0 })
                    }
                }
            }
            Role::Cntkctl => Ok(self.cntkctl[vcpu]),
            Role::Cnthctl => Ok(self.cnthctl(vcpu)),
            Role::Cntvoff => Ok(self.cntvoff[vcpu]),
            _ => Err(VmError::NoSuchOneReg { id }),
        }
    }

    /// KVM_SET_ONE_REG. A count moves the VM's offset, for every vCPU from its next entry on, unless the VM's offset is
    /// owned: then it is ignored, without an error.
    ///
    /// Where the guest has EL2 either count moves both counters, and no count looks at CNTVOFF_EL2, though reading one
    /// back does: replaying a list of registers, CNTVOFF_EL2 among them, restores neither counter.
    pub fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64, now: HostCount) -> Result<(), VmError> {
        self.stopped(vcpu)?;
        match self.one_reg(id)?.role {
            Role::Count(_) if self.owned => return Ok(()),
            Role::Count(view) => {
                let offset = Offset::between(now, GuestCount(value));
                match view {
                    View::Virtual if self.config.el2 == El2::Absent => self.offsets.virt = offset,
                    View::Virtual | View::Physical => self.offsets.phys = offset,
                }
            }
            Role::Cval(timer) => self.timers[timer.index()].cval[vcpu] = value,
            Role::Ctl(timer) => self.timers[timer.index()].ctl[vcpu] = value & !CTL_ISTATUS,
            Role::Cntkctl => self.cntkctl[vcpu] = value,
            Role::Cnthctl => self.cnthctl[vcpu] = value,
            Role::Cntvoff => self.cntvoff[vcpu] = value,
            _ => return Err(VmError::NoSuchOneReg { id }),
        }
        self.generation += 1;
        Ok(())
    }

    /// What comes of an MRS, or with `write` an MSR, of the register by the vCPU's guest.
    pub fn access(&self, vcpu: usize, encoding: Encoding, write: bool, from: Origin) -> Result<Access, VmError> {
        self.exists(vcpu)?;
        let controls = Controls {
            cntkctl: self.cntkctl[vcpu],
            cnthctl: self.cnthctl(vcpu),
            e2h: self.e2h(),
            tge: from.tge,
            nested: self.config.el2 != El2::Absent,
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

    /// What the vCPU's guest reads with MRS.
    pub fn read_sysreg(&self, vcpu: usize, encoding: Encoding, from: Origin, now: HostCount) -> Result<u64, VmError> {
        match self.role(vcpu, encoding, false, from)? {
            Role::Frequency => Ok(self.cntfrq_hz.into()),
            Role::Count(View::Virtual) if !access::kvm_counts_cntvoff(from.el, self.e2h(), from.tge) => {
                Ok(self.count(vcpu, View::Physical, now)?.0)
            }
            Role::Count(view) => Ok(self.count(vcpu, view, now)?.0),
            Role::Ctl(timer) => Ok(self.timer(vcpu, timer, now)?.ctl),
            Role::Cval(timer) => Ok(self.timer(vcpu, timer, now)?.cval),
            Role::Tval(timer) => Ok(self.timer(vcpu, timer, now)?.tval.into()),
            Role::Cntkctl => Ok(self.cntkctl[vcpu]),
            Role::Cnthctl => Ok(self.cnthctl(vcpu)),
            Role::Cntvoff => Ok(self.cntvoff[vcpu]),
            Role::Cntpoff => Err(VmError::NoSuchSysreg { encoding, write: false }),
        }
    }

    /// What the vCPU's guest does with MSR.
    pub fn write_sysreg(
        &mut self,
        vcpu: usize,
        encoding: Encoding,
        value: u64,
        from: Origin,
        now: HostCount,
    ) -> Result<(), VmError> {
        match self.role(vcpu, encoding, true, from)? {
            Role::Ctl(timer) => self.timers[timer.index()].ctl[vcpu] = value & (CTL_ENABLE | CTL_IMASK),
            Role::Cval(timer) => self.timers[timer.index()].cval[vcpu] = value,
            Role::Tval(timer) => {
                let guest = self.count(vcpu, view_of(timer), now)?;
                #[expect(clippy::cast_possible_truncation, reason = "TVAL has 32 bits")]
                let tval = value as u32;
                self.timers[timer.index()].cval[vcpu] = timer::tval_write(tval, guest);
            }
            Role::Cntkctl => self.cntkctl[vcpu] = value,
            Role::Cnthctl => self.cnthctl[vcpu] = value,
            Role::Cntvoff => {
                self.cntvoff[vcpu] = value;
                // A running vCPU's hypervisor sees to its own guest: it is loaded with the new one when it enters that.
                self.loaded[vcpu].virt = self.loaded[vcpu].phys.plus(Offset(value));
            }
            Role::Frequency | Role::Count(_) | Role::Cntpoff => {
                return Err(VmError::NoSuchSysreg { encoding, write: true });
            }
        }
        self.generation += 1;
        Ok(())
    }

    /// The host count at which a vCPU that waits in WFI, or in WFIT with this operand, wakes by itself: `now` if at once,
    /// or [`NO_DEADLINE`](bank::NO_DEADLINE).
    pub fn wake(&self, vcpu: usize, wfit: Option<u64>, from: Origin, now: HostCount) -> Result<u64, VmError> {
        let mut ticks = [None; Timer::ALL.len()];
        for &timer in self.config.el2.timers() {
            let guest = self.count(vcpu, view_of(timer), now)?;
            let TimerBank { cval, ctl } = &self.timers[timer.index()];
            ticks[timer.index()] = self.config.width.ticks_to_line(ctl[vcpu], cval[vcpu], guest);
        }
        let view = if access::counts_cntvoff(from.el, self.e2h(), from.tge) { View::Virtual } else { View::Physical };
        let timeout = match wfit {
            Some(operand) => Some(wake::wfit_ticks(operand, self.count(vcpu, view, now)?)),
            None => None,
        };
        Ok(bank::deadline(now, wake::ticks_to_wake(ticks, timeout)))
    }

    /// `kvm_run.s.regs.device_irq_level`: the lines of the EL1 timers, for an interrupt controller in the VMM.
    pub fn device_irq_level(&self, vcpu: usize, now: HostCount) -> Result<u64, VmError> {
        let line = |timer| self.timer(vcpu, timer, now).map(|state| state.line);
        Ok(irq::device_irq_level(line(Timer::Vtimer)?, line(Timer::Ptimer)?))
    }

    /// The timers' interrupt ids.
    #[must_use]
    pub const fn irqs(&self) -> &IrqIds {
        &self.irqs
    }

    /// KVM_ARM_VCPU_TIMER_CTRL: gives a timer its interrupt id, on every vCPU.
    pub fn set_irq(&mut self, attribute: u64, id: i32) -> Result<(), VmError> {
        self.irqs.set(attribute, id, self.config.in_kernel_irqchip)?;
        self.generation += 1;
        Ok(())
    }

    /// Whether the timer is the hardware's while the guest runs (`get_timer_map` in arch_timer.c). Of an emulated one
    /// KVM's own copy stays as it was written.
    const fn in_hardware(&self, timer: Timer) -> bool {
        self.config.vhe || !matches!(timer, Timer::Ptimer)
    }

    fn cnthctl(&self, vcpu: usize) -> u64 {
        self.cnthctl[vcpu] & if self.sanitised { !CNTHCTL_RES0 } else { u64::MAX }
    }

    const fn e2h(&self) -> bool {
        matches!(self.config.el2, El2::Vhe)
    }

    /// One timer, as the vCPU's guest would see it.
    pub fn timer(&self, vcpu: usize, timer: Timer, now: HostCount) -> Result<TimerState, VmError> {
        let guest = self.count(vcpu, view_of(timer), now)?;
        if !self.config.el2.timers().contains(&timer) {
            return Err(VmError::NoSuchTimer { timer });
        }
        let bank = &self.timers[timer.index()];
        let width = self.config.width;
        let (ctl, cval) = (bank.ctl[vcpu], bank.cval[vcpu] & width.mask());
        Ok(TimerState::at(ctl, cval, guest, now))
    }

    /// The earliest deadline of the vCPU's timers, which is when a WFI would end: `now` where a line is high, or
    /// [`NO_DEADLINE`](bank::NO_DEADLINE).
    pub fn next_deadline(&self, vcpu: usize, now: HostCount) -> Result<u64, VmError> {
        self.wake(vcpu, None, Origin::default(), now)
    }

    fn exists(&self, vcpu: usize) -> Result<(), VmError> {
        let vcpus = self.vcpus();
        if vcpu < vcpus { Ok(()) } else { Err(VmError::NoSuchVcpu { vcpu, vcpus }) }
    }

    fn stopped(&self, vcpu: usize) -> Result<(), VmError> {
        self.exists(vcpu)?;
        if self.running[vcpu] { Err(VmError::Running { vcpu }) } else { Ok(()) }
    }

    fn has_one_reg(&self, row: &Sysreg) -> bool {
        match row.role {
            _ if row.kvm.is_none() => false,
            Role::Ctl(Timer::Ptimer) | Role::Cval(Timer::Ptimer) | Role::Count(View::Physical) => {
                self.behaviours.physical_timer
            }
            Role::Ctl(timer) | Role::Cval(timer) => self.config.el2.timers().contains(&timer),
            Role::Count(View::Virtual) | Role::Cntkctl => true,
            Role::Cntvoff | Role::Cnthctl => self.config.el2 != El2::Absent,
            _ => false,
        }
    }

    fn one_reg(&self, id: u64) -> Result<&'static Sysreg, VmError> {
        Sysreg::with_one_reg_id(id).filter(|row| self.has_one_reg(row)).ok_or(VmError::NoSuchOneReg { id })
    }
}
