//! Registers and their ids, as their users ask for them: by encoding, by KVM's id and by name.

use guestclock_core::arch::arm64::timer::can_raise;
use guestclock_core::arch::arm64::{
    Behaviours, CTL_ENABLE, CTL_IMASK, CTL_ISTATUS, Encoding, KERNELS, Registers, Role, SYSREGS, Sysreg, Timer, View,
    count_reg, is_timers, is_unknown_timers, one_reg_id,
};

/// The last system register: every field of its id is full.
const FULL: Encoding = Encoding(3, 7, 15, 15, 7);

#[test]
fn an_encoding_and_its_id_are_one() {
    for op0 in 0..4 {
        for crm in [0, 1, 8, 15] {
            for encoding in [Encoding(op0, 5, 14, crm, 2), Encoding(op0, 2, 9, crm, 5), Encoding(op0, 7, 1, crm, 0)] {
                assert_eq!(Encoding::from_one_reg_id(encoding.one_reg_id()), Some(encoding));
            }
        }
    }
    assert_eq!(FULL.one_reg_id(), 0x6030_0000_0013_ffff);
    assert_eq!(Encoding::from_one_reg_id(0x6030_0000_0013_ffff), Some(FULL));
    // A core register, one of 32 bits, another architecture's, and a bit more than the fields have.
    for id in [0x6030_0000_0010_0000, 0x6020_0000_0013_df1a, 0x2030_0000_0013_df1a, 0x6030_0000_0017_df1a, 0] {
        assert_eq!(Encoding::from_one_reg_id(id), None, "{id:#x}");
    }
}

#[test]
fn the_timers_lie_below_the_pmu() {
    for row in &SYSREGS {
        assert!(row.encoding.is_generic_timer(), "{}", row.name);
        assert_eq!(Sysreg::at(row.encoding), Some(row));
        assert_eq!(Sysreg::named(row.name), Some(row));
    }
    let timers = |encoding: Encoding| (encoding.is_generic_timer(), is_timers(encoding.one_reg_id()));
    assert_eq!(timers(Encoding(3, 3, 14, 7, 0)), (true, true));
    assert_eq!(timers(Encoding(3, 3, 14, 8, 0)), (false, false), "PMEVCNTR0_EL0");
    assert_eq!(timers(Encoding(3, 3, 14, 9, 0)), (false, false));
    assert_eq!(timers(Encoding(3, 3, 13, 0, 2)), (false, false), "TPIDR_EL0");
    assert_eq!(timers(Encoding(2, 3, 14, 0, 1)), (false, false));
    assert!(!is_timers(0x6030_0000_0010_0000));
    assert_eq!((Sysreg::at(FULL), Sysreg::named("CNTVCT")), (None, None));
}

#[test]
fn a_timers_register_without_a_row_is_unknown() {
    let new = Encoding(3, 4, 14, 6, 0).one_reg_id();
    assert!(is_unknown_timers(new));
    assert!(!is_unknown_timers(one_reg_id(Role::Cval(Timer::Vtimer))));
    assert!(!is_unknown_timers(FULL.one_reg_id()));
    assert!(!is_unknown_timers(Sysreg::of(Role::Frequency).unwrap().encoding.one_reg_id()));
    // TVAL has an encoding, and KVM has no id for it.
    assert!(is_unknown_timers(Sysreg::of(Role::Tval(Timer::Ptimer)).unwrap().encoding.one_reg_id()));
}

#[test]
fn a_list_of_registers_says_what_a_vm_has() {
    let (later, new) = (Encoding(3, 4, 14, 7, 0).one_reg_id(), Encoding(3, 4, 14, 6, 0).one_reg_id());
    let list = [later, one_reg_id(Role::Cval(Timer::Hptimer)), new, one_reg_id(Role::Cntvoff), FULL.one_reg_id()];
    let registers = Registers::from(list.to_vec());
    assert!(registers.has(Role::Cntvoff) && !registers.has(Role::Cnthctl));
    assert!(list.iter().all(|id| registers.has_id(*id)));
    assert!(!registers.has_id(one_reg_id(Role::Cnthctl)));
    assert_eq!(registers.others(), [new, later], "in their order");
    assert_eq!(registers.timers().collect::<Vec<_>>(), [Timer::Vtimer, Timer::Hptimer]);
    // The kernel's names for them are exchanged: TIMER_CNT has the id of CNTV_CVAL_EL0.
    assert_eq!([View::Virtual, View::Physical].map(count_reg), [0x6030_0000_0013_df1a, 0x6030_0000_0013_df01]);
}

#[test]
fn a_timer_raises_its_line_if_enabled_and_not_masked() {
    let raising = (0..16).filter(|ctl| can_raise(*ctl)).collect::<Vec<_>>();
    assert_eq!(raising, [1, 5, 9, 13]);
    assert_eq!((CTL_ENABLE, CTL_IMASK, CTL_ISTATUS), (1, 2, 4));
}

#[test]
fn a_kernel_is_found_by_its_name() {
    for (name, behaviours) in KERNELS {
        assert_eq!(Behaviours::named(name), Some(behaviours));
    }
    assert_eq!(Behaviours::named("6.2"), None);
}
