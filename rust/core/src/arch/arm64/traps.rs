//! Does this access trap, and where to: CNTKCTL_EL1 and CNTHCTL_EL2 as run_states before the generic timer's registers.
//!
//! For an emulator's MRS and MSR. The rules are the pseudocode under "Accessing the register" of each register's page
//! in the Arm ARM (DDI 0487, D24.10 "Generic Timer registers"), for a guest in the Non-secure state, in AArch64, with
//! FEAT_ECV, and without EL3. Without FEAT_ECV bits 13 to 16 of CNTHCTL_EL2 are RES0: pass them as zeros.
//!
//! Here KVM decides what the guest has got:
//! - E2H is fixed when a vCPU is made: FEAT_VHE or FEAT_E2H0, never both (arch_timer.c, `timer_set_traps`). So
//!   CNTHV_*_EL2 are undefined where E2H is 0 (sys_regs.c, `cnthv_visibility`; before Linux 6.18 `access_hv_timer`).
//! - CNTPOFF_EL2 is undefined for every guest: FEAT_ECV_POFF is hidden (nested.c, `limit_nv_id_reg`).
//! - Traps of KVM's own are not seen here: it emulates what they catch, and the guest never learns of them.
//!
//! HCR_EL2.NV is taken as 0, so EL1NVPCT and EL1NVVCT (bits 15 and 16) run_state nothing: they are for hypervisors below the
//! guest's.

use crate::arch::arm64::registers::{Role, Sysreg};
use crate::arch::arm64::timer::Timer;
use crate::arch::arm64::view::View;

/// Gates of both CNTKCTL_EL1 and, where E2H is set, CNTHCTL_EL2: EL0 may use these counters and timers.
const EL0PCTEN: u64 = 1 << 0;

const EL0VCTEN: u64 = 1 << 1;

const EL0VTEN: u64 = 1 << 8;

const EL0PTEN: u64 = 1 << 9;

/// Gates of CNTHCTL_EL2 where E2H is clear: EL1 and EL0 may use the physical counter, and the physical timer.
const EL1PCTEN: u64 = 1 << 0;

const EL1PCEN: u64 = 1 << 1;

/// How much further up they are where E2H is set. EL1PCEN is called EL1PTEN there.
const E2H_SHIFT: u32 = 10;

/// Traps of CNTHCTL_EL2: EL1 and EL0 may not use the virtual timer, and the virtual counter.
const EL1TVT: u64 = 1 << 13;

const EL1TVCT: u64 = 1 << 14;

/// An exception level of the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum El {
    /// Its user space.
    El0 = 0,
    /// Its kernel.
    El1 = 1,
    /// Its hypervisor.
    El2 = 2,
}

/// What decides an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Controls {
    /// CNTKCTL_EL1.
    pub cntkctl: u64,
    /// CNTHCTL_EL2. Without effect on a guest that hasn't got EL2, as `e2h` and `tge` are.
    pub cnthctl: u64,
    /// HCR_EL2.E2H: the hypervisor is at home at EL2.
    pub e2h: bool,
    /// HCR_EL2.TGE: traps from EL0 go to EL2, past EL1.
    pub tge: bool,
    /// The guest has got EL2.
    pub nested: bool,
}

impl Controls {
    /// Whether EL0 is the hypervisor's user space: `ELIsInHost(EL0)`.
    const fn host_user(&self) -> bool {
        self.nested && self.e2h && self.tge
    }
}

/// What comes of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// It takes place, on what has this role: not always what the name says.
    Allowed(Role),
    /// The guest's EL1 gets it, as an exception of class 0x18.
    TrapToEl1,
    /// The guest's EL2 gets it, as an exception of class 0x18.
    TrapToEl2,
    /// An undefined instruction.
    Undefined,
}

/// What an MRS (or with `write` an MSR) of this register at this exception level comes to.
///
/// CNTFRQ_EL0 can be written only at the highest exception level there is, which is never a guest's: KVM isn't asked,
/// and the guest gets an undefined instruction. The counters can't be written at all.
///
/// ```
/// use guestclock_core::arch::arm64::traps::check;
/// use guestclock_core::arch::arm64::{Access, Controls, El, Role, Sysreg, View};
/// let cntvct = Sysreg::named("CNTVCT_EL0").unwrap();
/// let closed = Controls::default();
/// assert_eq!(check(cntvct, false, El::El0, &closed), Access::TrapToEl1);
/// let linux = Controls { cntkctl: 1 << 1, ..closed };
/// assert_eq!(check(cntvct, false, El::El0, &linux), Access::Allowed(Role::Count(View::Virtual)));
/// ```
#[must_use]
pub const fn check(register: &Sysreg, write: bool, el: El, controls: &Controls) -> Access {
    let role = register.role;
    let no_such_level = matches!(el, El::El2) && !controls.nested;
    let read_only = matches!(role, Role::Frequency | Role::Count(_));
    if no_such_level || write && read_only {
        return Access::Undefined;
    }
    // op1 is the architecture's word for the lowest exception level that a register is for, and 5 for names of EL2's
    // own.
    match (register.encoding.1, el) {
        (3, El::El0 | El::El1) => lower(role, el, controls),
        (0, El::El1) => Access::Allowed(role),
        (0 | 3, El::El2) => Access::Allowed(if controls.e2h { redirected(role) } else { role }),
        (4, El::El2) => match role {
            Role::Cntpoff => Access::Undefined,
            Role::Ctl(Timer::Hvtimer) | Role::Cval(Timer::Hvtimer) | Role::Tval(Timer::Hvtimer) if !controls.e2h => {
                Access::Undefined
            }
            _ => Access::Allowed(role),
        },
        (5, El::El2) if controls.e2h => Access::Allowed(role),
        _ => Access::Undefined,
    }
}

/// An EL0 register at EL0 or EL1: past the kernel's run_state, and then past the hypervisor's.
const fn lower(role: Role, el: El, controls: &Controls) -> Access {
    if matches!(el, El::El0) {
        let run_states = if controls.host_user() { controls.cnthctl } else { controls.cntkctl };
        if run_states & el0_gate(role) == 0 {
            return if controls.nested && controls.tge { Access::TrapToEl2 } else { Access::TrapToEl1 };
        }
        if controls.host_user() {
            return Access::Allowed(redirected(role));
        }
    }
    if controls.nested && hypervisor_traps(role, controls) { Access::TrapToEl2 } else { Access::Allowed(role) }
}

/// The bits that let EL0 in; one of them is enough.
const fn el0_gate(role: Role) -> u64 {
    match role {
        Role::Frequency => EL0PCTEN | EL0VCTEN,
        Role::Count(View::Physical) => EL0PCTEN,
        Role::Count(View::Virtual) => EL0VCTEN,
        Role::Ctl(Timer::Ptimer) | Role::Cval(Timer::Ptimer) | Role::Tval(Timer::Ptimer) => EL0PTEN,
        Role::Ctl(Timer::Vtimer) | Role::Cval(Timer::Vtimer) | Role::Tval(Timer::Vtimer) => EL0VTEN,
        // No EL0 register holds these.
        _ => 0,
    }
}

/// Whether CNTHCTL_EL2 keeps EL1 and EL0 away from what it virtualises for them.
const fn hypervisor_traps(role: Role, controls: &Controls) -> bool {
    let cnthctl = controls.cnthctl;
    let shift = if controls.e2h { E2H_SHIFT } else { 0 };
    match role {
        Role::Count(View::Physical) => cnthctl & EL1PCTEN << shift == 0,
        Role::Ctl(Timer::Ptimer) | Role::Cval(Timer::Ptimer) | Role::Tval(Timer::Ptimer) => {
            cnthctl & EL1PCEN << shift == 0
        }
        Role::Count(View::Virtual) => cnthctl & EL1TVCT != 0,
        Role::Ctl(Timer::Vtimer) | Role::Cval(Timer::Vtimer) | Role::Tval(Timer::Vtimer) => cnthctl & EL1TVT != 0,
        _ => false,
    }
}

/// What EL1's name stands for where the hypervisor is at home.
const fn redirected(role: Role) -> Role {
    const fn at_el2(timer: Timer) -> Timer {
        match timer {
            Timer::Vtimer => Timer::Hvtimer,
            Timer::Ptimer => Timer::Hptimer,
            el2 => el2,
        }
    }
    match role {
        Role::Ctl(timer) => Role::Ctl(at_el2(timer)),
        Role::Cval(timer) => Role::Cval(at_el2(timer)),
        Role::Tval(timer) => Role::Tval(at_el2(timer)),
        Role::Cntkctl => Role::Cnthctl,
        same => same,
    }
}

/// Whether the virtual counter at this exception level is less CNTVOFF_EL2: the architecture's rule for CNTVCT_EL0 and
/// for WFIT (Arm ARM, CNTVCT_EL0 and `VirtualCounterTimer`), and KVM's for WFIT (arch_timer.c, `wfit_delay_ns`).
///
/// For CNTVCT_EL0 itself KVM differs: [`kvm_counts_cntvoff`].
#[must_use]
pub const fn counts_cntvoff(el: El, e2h: bool, tge: bool) -> bool {
    match el {
        El::El0 => !(e2h && tge),
        El::El1 => true,
        El::El2 => !e2h,
    }
}

/// The same for CNTVCT_EL0 under KVM, which never subtracts CNTVOFF_EL2 at EL2.
///
/// There the hardware's offset is that of the timer which is loaded, HVTIMER's, and a trapped read computes with it
/// (arch_timer.c, `get_timer_map`; hyp/vhe/switch.c, `kvm_hyp_handle_timer`; sys_regs.c, `access_arch_timer`). Observed
/// with E2H set, where the architecture agrees; with E2H clear it doesn't, and this follows the code.
#[must_use]
pub const fn kvm_counts_cntvoff(el: El, e2h: bool, tge: bool) -> bool {
    !matches!(el, El::El2) && counts_cntvoff(el, e2h, tge)
}
