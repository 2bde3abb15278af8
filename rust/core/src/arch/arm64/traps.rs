//! Traps of the generic timer's registers: CNTKCTL_EL1 and CNTHCTL_EL2 decide whether an access traps, and to which
//! level.
//!
//! This is for an emulator's MRS and MSR. The rules are the pseudocode under "Accessing the register" on each
//! register's page of the Arm ARM (DDI 0487, D24.10 "Generic Timer registers"), for a guest in the Non-secure state, in
//! AArch64, with FEAT_ECV, and without EL3. Without FEAT_ECV bits 13 to 16 of CNTHCTL_EL2 are RES0: pass them as zeros.
//!
//! KVM decides which features the guest has:
//! - E2H is fixed when a vCPU is made: FEAT_VHE or FEAT_E2H0, never both (arch_timer.c, `timer_set_traps`). So
//!   CNTHV_*_EL2 are undefined if E2H is 0 (sys_regs.c, `cnthv_visibility`; before Linux 6.18 `access_hv_timer`).
//! - CNTPOFF_EL2 is undefined for every guest: FEAT_ECV_POFF is hidden (nested.c, `limit_nv_id_reg`).
//! - KVM's own traps aren't covered: KVM emulates the trapped access, and the guest never notices.
//!
//! HCR_EL2.NV is taken as 0, so EL1NVPCT and EL1NVVCT (bits 15 and 16) have no effect: they are for hypervisors below
//! the guest's.

use crate::arch::arm64::registers::{Role, Sysreg};
use crate::arch::arm64::timer::Timer;
use crate::arch::arm64::view::View;

/// Enable bits of CNTKCTL_EL1 and, if E2H is set, of CNTHCTL_EL2: EL0 may use these counters and timers.
const EL0PCTEN: u64 = 1 << 0;

const EL0VCTEN: u64 = 1 << 1;

const EL0VTEN: u64 = 1 << 8;

const EL0PTEN: u64 = 1 << 9;

/// Enable bits of CNTHCTL_EL2 if E2H is clear: EL1 and EL0 may use the physical counter, and the physical timer.
const EL1PCTEN: u64 = 1 << 0;

const EL1PCEN: u64 = 1 << 1;

/// Distance by which these two bits are further up if E2H is set. EL1PCEN is called EL1PTEN there.
const E2H_SHIFT: u32 = 10;

/// Trap bits of CNTHCTL_EL2: EL1 and EL0 may not use the virtual timer, and the virtual counter.
const EL1TVT: u64 = 1 << 13;

const EL1TVCT: u64 = 1 << 14;

/// Exception level of the guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum El {
    /// The guest's user space.
    El0 = 0,
    /// The guest's kernel.
    El1 = 1,
    /// The guest's hypervisor.
    El2 = 2,
}

/// Control bits that decide an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Controls {
    /// CNTKCTL_EL1.
    pub cntkctl: u64,
    /// CNTHCTL_EL2. Like `e2h` and `tge`, it has no effect on a guest without EL2.
    pub cnthctl: u64,
    /// HCR_EL2.E2H: the hypervisor is a host at EL2.
    pub e2h: bool,
    /// HCR_EL2.TGE: traps from EL0 go to EL2 instead of EL1.
    pub tge: bool,
    /// True if the guest has EL2.
    pub nested: bool,
}

impl Controls {
    /// Returns whether EL0 is the hypervisor's user space: `ELIsInHost(EL0)`.
    const fn host_user(&self) -> bool {
        self.nested && self.e2h && self.tge
    }
}

/// Result of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// The access takes place, on the register with this role, which may differ from the name's.
    Allowed(Role),
    /// The access traps to the guest's EL1, as an exception of class 0x18.
    TrapToEl1,
    /// The access traps to the guest's EL2, as an exception of class 0x18.
    TrapToEl2,
    /// The instruction is undefined.
    Undefined,
}

/// Returns the result of an MRS (with `write`, of an MSR) of this register at this exception level.
///
/// CNTFRQ_EL0 can be written only at the highest implemented exception level, which is never a guest's: the write isn't
/// trapped to KVM, and the guest gets an undefined instruction. The counters can't be written at all.
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
    // op1 encodes the lowest exception level that a register is for; 5 is for aliases that EL2 alone has.
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

/// Returns the result of an access to an EL0 register from EL0 or EL1: the kernel's bits come first, then the
/// hypervisor's.
const fn lower(role: Role, el: El, controls: &Controls) -> Access {
    if matches!(el, El::El0) {
        let gates = if controls.host_user() { controls.cnthctl } else { controls.cntkctl };
        if gates & el0_gate(role) == 0 {
            return if controls.nested && controls.tge { Access::TrapToEl2 } else { Access::TrapToEl1 };
        }
        if controls.host_user() {
            return Access::Allowed(redirected(role));
        }
    }
    if controls.nested && hypervisor_traps(role, controls) { Access::TrapToEl2 } else { Access::Allowed(role) }
}

/// Returns the bits that allow EL0 the access; one of them is enough.
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

/// Returns whether CNTHCTL_EL2 traps EL1 and EL0 on a counter or timer that the hypervisor virtualises.
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

/// Returns the role that EL1's register name has at EL2 with E2H set.
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

/// Returns whether CNTVOFF_EL2 is subtracted from the virtual counter at this exception level.
///
/// This is the architecture's rule for CNTVCT_EL0 and for WFIT (Arm ARM, CNTVCT_EL0 and `VirtualCounterTimer`), and
/// KVM's rule for WFIT (arch_timer.c, `wfit_delay_ns`). KVM's rule for CNTVCT_EL0 differs: [`kvm_counts_cntvoff`].
#[must_use]
pub const fn counts_cntvoff(el: El, e2h: bool, tge: bool) -> bool {
    match el {
        El::El0 => !(e2h && tge),
        El::El1 => true,
        El::El2 => !e2h,
    }
}

/// Returns whether KVM subtracts CNTVOFF_EL2 from CNTVCT_EL0 at this exception level, which it never does at EL2.
///
/// At EL2 the hardware has the offset of the loaded timer, HVTIMER, and a trapped read uses that offset too
/// (arch_timer.c, `get_timer_map`; hyp/vhe/switch.c, `kvm_hyp_handle_timer`; sys_regs.c, `access_arch_timer`). Observed
/// with E2H set, where the architecture agrees. With E2H clear the architecture disagrees, and this function follows
/// KVM's code.
#[must_use]
pub const fn kvm_counts_cntvoff(el: El, e2h: bool, tge: bool) -> bool {
    !matches!(el, El::El2) && counts_cntvoff(el, e2h, tge)
}
