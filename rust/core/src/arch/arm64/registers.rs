//! Registers of the generic timer: encodings, names and KVM register ids, in one table.
//!
//! Encodings: Arm ARM (DDI 0487), D17 "AArch64 System register descriptions". KVM ids:
//! arch/arm64/include/uapi/asm/kvm.h. One oddity: KVM exchanges the ids of CNTVCT_EL0 and CNTV_CVAL_EL0, and this "must
//! remain this way" (api.rst, 4.68).

use crate::arch::arm64::timer::Timer;
use crate::arch::arm64::view::View;

/// Encoding of a system register: op0, op1, CRn, CRm, op2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Encoding(pub u8, pub u8, pub u8, pub u8, pub u8);

impl Encoding {
    /// Returns `ARM64_SYS_REG(op0, op1, crn, crm, op2)`.
    #[must_use]
    pub const fn one_reg_id(self) -> u64 {
        let Self(op0, op1, crn, crm, op2) = self;
        0x6030_0000_0013_0000
            | (op0 as u64) << 14
            | (op1 as u64) << 11
            | (crn as u64) << 7
            | (crm as u64) << 3
            | op2 as u64
    }

    /// Returns the encoding in a KVM register id; `None` if the id isn't that of a 64-bit arm64 system register.
    #[must_use]
    pub const fn from_one_reg_id(id: u64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "masked to fewer bits than it keeps")]
        const fn field(id: u64, shift: u32, bits: u32) -> u8 {
            (id >> shift & ((1 << bits) - 1)) as u8
        }
        if id & !0xffff != Self(0, 0, 0, 0, 0).one_reg_id() {
            return None;
        }
        Some(Self(field(id, 14, 2), field(id, 11, 3), field(id, 7, 4), field(id, 3, 4), field(id, 0, 3)))
    }

    /// Returns whether the encoding lies among the generic timer's: op0 3, CRn 14, CRm below 8 (the PMU's are above).
    #[must_use]
    pub const fn is_generic_timer(self) -> bool {
        self.0 == 3 && self.2 == 14 && self.3 < 8
    }
}

/// Content of a register.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The counter's frequency.
    Frequency,
    /// A counter.
    Count(View),
    /// A timer's control.
    Ctl(Timer),
    /// A timer's compare value.
    Cval(Timer),
    /// A timer's compare value as a distance from the counter.
    Tval(Timer),
    /// Access of EL0 to counters and timers, and the event stream.
    Cntkctl,
    /// Access of EL1 to the physical counter and timer, for a guest hypervisor.
    Cnthctl,
    /// A guest hypervisor's virtual counter offset.
    Cntvoff,
    /// A guest hypervisor's physical counter offset.
    Cntpoff,
}

/// Row of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sysreg {
    /// The architecture's name.
    pub name: &'static str,
    /// The architecture's encoding.
    pub encoding: Encoding,
    /// The register's content.
    pub role: Role,
    /// The name among KVM's ONE_REG registers (without `KVM_REG_ARM_`), if it is one.
    pub kvm: Option<&'static str>,
}

const fn row(name: &'static str, encoding: Encoding, role: Role, kvm: Option<&'static str>) -> Sysreg {
    Sysreg { name, encoding, role, kvm }
}

/// Every CNT* register of the Non-secure state, in the order of the encodings.
///
/// A register's aliases (`_EL12` and `_EL02`, by which a hypervisor with E2H set reaches EL1's registers) come after
/// it.
pub const SYSREGS: [Sysreg; 28] = [
    row("CNTKCTL_EL1", Encoding(3, 0, 14, 1, 0), Role::Cntkctl, Some("CNTKCTL_EL1")),
    row("CNTFRQ_EL0", Encoding(3, 3, 14, 0, 0), Role::Frequency, None),
    row("CNTPCT_EL0", Encoding(3, 3, 14, 0, 1), Role::Count(View::Physical), Some("PTIMER_CNT")),
    row("CNTVCT_EL0", Encoding(3, 3, 14, 0, 2), Role::Count(View::Virtual), Some("TIMER_CNT")),
    row("CNTPCTSS_EL0", Encoding(3, 3, 14, 0, 5), Role::Count(View::Physical), None),
    row("CNTVCTSS_EL0", Encoding(3, 3, 14, 0, 6), Role::Count(View::Virtual), None),
    row("CNTP_TVAL_EL0", Encoding(3, 3, 14, 2, 0), Role::Tval(Timer::Ptimer), None),
    row("CNTP_CTL_EL0", Encoding(3, 3, 14, 2, 1), Role::Ctl(Timer::Ptimer), Some("PTIMER_CTL")),
    row("CNTP_CVAL_EL0", Encoding(3, 3, 14, 2, 2), Role::Cval(Timer::Ptimer), Some("PTIMER_CVAL")),
    row("CNTV_TVAL_EL0", Encoding(3, 3, 14, 3, 0), Role::Tval(Timer::Vtimer), None),
    row("CNTV_CTL_EL0", Encoding(3, 3, 14, 3, 1), Role::Ctl(Timer::Vtimer), Some("TIMER_CTL")),
    row("CNTV_CVAL_EL0", Encoding(3, 3, 14, 3, 2), Role::Cval(Timer::Vtimer), Some("TIMER_CVAL")),
    row("CNTVOFF_EL2", Encoding(3, 4, 14, 0, 3), Role::Cntvoff, Some("CNTVOFF_EL2")),
    row("CNTPOFF_EL2", Encoding(3, 4, 14, 0, 6), Role::Cntpoff, None),
    row("CNTHCTL_EL2", Encoding(3, 4, 14, 1, 0), Role::Cnthctl, Some("CNTHCTL_EL2")),
    row("CNTHP_TVAL_EL2", Encoding(3, 4, 14, 2, 0), Role::Tval(Timer::Hptimer), None),
    row("CNTHP_CTL_EL2", Encoding(3, 4, 14, 2, 1), Role::Ctl(Timer::Hptimer), Some("CNTHP_CTL_EL2")),
    row("CNTHP_CVAL_EL2", Encoding(3, 4, 14, 2, 2), Role::Cval(Timer::Hptimer), Some("CNTHP_CVAL_EL2")),
    row("CNTHV_TVAL_EL2", Encoding(3, 4, 14, 3, 0), Role::Tval(Timer::Hvtimer), None),
    row("CNTHV_CTL_EL2", Encoding(3, 4, 14, 3, 1), Role::Ctl(Timer::Hvtimer), Some("CNTHV_CTL_EL2")),
    row("CNTHV_CVAL_EL2", Encoding(3, 4, 14, 3, 2), Role::Cval(Timer::Hvtimer), Some("CNTHV_CVAL_EL2")),
    row("CNTKCTL_EL12", Encoding(3, 5, 14, 1, 0), Role::Cntkctl, None),
    row("CNTP_TVAL_EL02", Encoding(3, 5, 14, 2, 0), Role::Tval(Timer::Ptimer), None),
    row("CNTP_CTL_EL02", Encoding(3, 5, 14, 2, 1), Role::Ctl(Timer::Ptimer), None),
    row("CNTP_CVAL_EL02", Encoding(3, 5, 14, 2, 2), Role::Cval(Timer::Ptimer), None),
    row("CNTV_TVAL_EL02", Encoding(3, 5, 14, 3, 0), Role::Tval(Timer::Vtimer), None),
    row("CNTV_CTL_EL02", Encoding(3, 5, 14, 3, 1), Role::Ctl(Timer::Vtimer), None),
    row("CNTV_CVAL_EL02", Encoding(3, 5, 14, 3, 2), Role::Cval(Timer::Vtimer), None),
];

/// KVM register ids of the rows; 0 where KVM has none. Computed once, since every access of a register looks here.
const ONE_REG_IDS: [u64; SYSREGS.len()] = {
    let mut ids = [0; SYSREGS.len()];
    // The plain rows of the two registers whose ids KVM exchanges.
    let (mut count, mut cval) = (SYSREGS.len(), SYSREGS.len());
    let mut at = SYSREGS.len();
    while at > 0 {
        at -= 1;
        let Sysreg { role, encoding, kvm, .. } = SYSREGS[at];
        if kvm.is_some() {
            ids[at] = encoding.one_reg_id();
            match role {
                Role::Count(View::Virtual) => count = at,
                Role::Cval(Timer::Vtimer) => cval = at,
                _ => {}
            }
        }
    }
    (ids[count], ids[cval]) = (ids[cval], ids[count]);
    ids
};

/// Place of an id in [`ROWS`]: op1, CRm and op2, in which alone the timer's registers differ.
#[expect(clippy::cast_possible_truncation, reason = "9 bits")]
const fn place(id: u64) -> usize {
    ((id >> 11 & 7) << 6 | (id >> 3 & 7) << 3 | id & 7) as usize
}

/// Row of the id at each place, counted from 1; 0 where there is none.
const ROWS: [u8; 512] = {
    let (mut rows, mut at) = ([0; 512], 0);
    while at < SYSREGS.len() {
        let id = ONE_REG_IDS[at];
        at += 1;
        if id != 0 {
            assert!(rows[place(id)] == 0 && at < 256, "two ids have one place");
            #[expect(clippy::cast_possible_truncation, reason = "asserted")]
            let row = at as u8;
            rows[place(id)] = row;
        }
    }
    rows
};

impl Sysreg {
    /// Returns the KVM register id; `None` if KVM has none.
    #[must_use]
    pub fn one_reg_id(&self) -> Option<u64> {
        let at = SYSREGS.iter().position(|row| row.encoding == self.encoding)?;
        Some(ONE_REG_IDS[at]).filter(|id| *id != 0)
    }

    /// Returns the first register with this role: the plain one, not its self-synchronised twin or its alias at EL2.
    #[must_use]
    pub fn of(role: Role) -> Option<&'static Self> {
        SYSREGS.iter().find(|row| row.role == role)
    }

    /// Returns the register with this encoding.
    #[must_use]
    pub fn at(encoding: Encoding) -> Option<&'static Self> {
        SYSREGS.iter().find(|row| row.encoding == encoding)
    }

    /// Returns the register with this architectural name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SYSREGS.iter().find(|row| row.name == name)
    }

    /// Returns the register with this KVM id.
    #[must_use]
    pub fn with_one_reg_id(id: u64) -> Option<&'static Self> {
        let at = usize::from(ROWS[place(id)]).checked_sub(1)?;
        (ONE_REG_IDS[at] == id).then(|| &SYSREGS[at])
    }

    /// Returns the register with this KVM name.
    #[must_use]
    pub fn with_kvm_name(name: &str) -> Option<&'static Self> {
        SYSREGS.iter().find(|row| row.kvm == Some(name))
    }
}

/// Returns the KVM register id of the register with this role.
///
/// # Panics
/// If KVM has no id for the role: a mistake in the calling code, since the table is fixed.
#[must_use]
pub fn one_reg_id(role: Role) -> u64 {
    Sysreg::of(role).and_then(Sysreg::one_reg_id).expect("the role has a KVM register")
}

/// Returns whether a register with this KVM id is a timer register, as far as the id shows.
#[must_use]
pub fn is_timers(id: u64) -> bool {
    Encoding::from_one_reg_id(id).is_some_and(Encoding::is_generic_timer)
}

/// Returns whether a register with this KVM id is a timer register that KVM doesn't have in the table, and that a
/// checkpoint carries as it is. CNTFRQ_EL0 isn't: it is the VM's frequency, under a field of its own.
#[must_use]
pub fn is_unknown_timers(id: u64) -> bool {
    let is_frequency = |encoding| Sysreg::at(encoding).is_some_and(|row| row.role == Role::Frequency);
    is_timers(id) && Sysreg::with_one_reg_id(id).is_none() && !Encoding::from_one_reg_id(id).is_some_and(is_frequency)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every id written out, as in the kernel's UAPI header.
    #[test]
    fn kvm_ids_are_the_uapi_headers() {
        for (name, id) in [
            ("TIMER_CTL", 0x6030_0000_0013_df19),
            ("TIMER_CNT", 0x6030_0000_0013_df1a),
            ("TIMER_CVAL", 0x6030_0000_0013_df02),
            ("PTIMER_CTL", 0x6030_0000_0013_df11),
            ("PTIMER_CVAL", 0x6030_0000_0013_df12),
            ("PTIMER_CNT", 0x6030_0000_0013_df01),
            ("CNTKCTL_EL1", 0x6030_0000_0013_c708),
            ("CNTVOFF_EL2", 0x6030_0000_0013_e703),
            ("CNTHCTL_EL2", 0x6030_0000_0013_e708),
            ("CNTHP_CTL_EL2", 0x6030_0000_0013_e711),
            ("CNTHP_CVAL_EL2", 0x6030_0000_0013_e712),
            ("CNTHV_CTL_EL2", 0x6030_0000_0013_e719),
            ("CNTHV_CVAL_EL2", 0x6030_0000_0013_e71a),
        ] {
            let row = Sysreg::with_kvm_name(name).unwrap();
            assert_eq!(row.one_reg_id(), Some(id), "{name}");
            assert_eq!(Sysreg::with_one_reg_id(id), Some(row), "{name}");
        }
    }

    #[test]
    fn a_role_belongs_to_the_plain_register() {
        for row in &SYSREGS {
            let plain = Sysreg::of(row.role).unwrap();
            assert!(!["SS_EL0", "_EL02", "_EL12"].iter().any(|twin| plain.name.ends_with(twin)), "{}", plain.name);
        }
    }

    #[test]
    fn encodings_are_in_order_and_unique() {
        assert!(SYSREGS.is_sorted_by_key(|row| row.encoding.one_reg_id()));
        for pair in SYSREGS.windows(2) {
            assert_ne!(pair[0].encoding, pair[1].encoding);
        }
    }
}
