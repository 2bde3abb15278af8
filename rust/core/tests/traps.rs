//! `traps::check` against the architecture's own text, for every register, access, exception level and control.

// The pseudocode's branches stay as they are, one to one.
#![allow(clippy::if_same_then_else, clippy::match_same_arms)]

use guestclock_core::arch::arm64::traps::{check, counts_cntvoff, kvm_counts_cntvoff};
use guestclock_core::arch::arm64::{Access, Controls, El, SYSREGS, Sysreg};

/// The state that the pseudocode asks for, in its own words.
struct Pe {
    el: El,
    write: bool,
    controls: Controls,
}

/// End of the pseudocode: the register that is accessed, by name, or an exception.
#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    Register(&'static str),
    SystemAccessTrap(u8),
    Undefined,
}
use End::{Register, SystemAccessTrap, Undefined};

/// A field of CNTKCTL_EL1, or of CNTHCTL_EL2 in the layout for HCR_EL2.E2H, from the tables of fields on their pages.
fn field(register: u64, name: &str, e2h: bool) -> bool {
    let bit = match (name, e2h) {
        ("EL0PCTEN", _) => 0,
        ("EL0VCTEN", _) => 1,
        ("EL0VTEN", _) => 8,
        ("EL0PTEN", _) => 9,
        ("EL1PCTEN", false) => 0,
        ("EL1PCEN", false) => 1,
        ("EL1PCTEN", true) => 10,
        ("EL1PTEN", true) => 11,
        ("EL1TVT", _) => 13,
        ("EL1TVCT", _) => 14,
        _ => panic!("{name} isn't there with E2H {e2h}"),
    };
    register >> bit & 1 == 1
}

impl Pe {
    fn el2_enabled(&self) -> bool {
        self.controls.nested
    }

    fn tge(&self) -> bool {
        self.controls.tge
    }

    /// ELIsInHost(): EL2 with E2H, EL0 with E2H and TGE; EL1 never is.
    fn in_host(&self, el: El) -> bool {
        self.el2_enabled()
            && match el {
                El::El0 => self.controls.e2h && self.controls.tge,
                El::El1 => false,
                El::El2 => self.controls.e2h,
            }
    }

    fn cntkctl(&self, name: &str) -> bool {
        field(self.controls.cntkctl, name, self.controls.e2h)
    }

    fn cnthctl(&self, name: &str) -> bool {
        field(self.controls.cnthctl, name, self.controls.e2h)
    }

    /// CNTFRQ_EL0. KVM's guests are never at the highest exception level: IsHighestEL() is FALSE.
    fn frequency(&self) -> End {
        if self.write {
            return Undefined;
        }
        if self.el == El::El0 {
            if !self.in_host(El::El0) && !self.cntkctl("EL0PCTEN") && !self.cntkctl("EL0VCTEN") {
                return if self.el2_enabled() && self.tge() { SystemAccessTrap(2) } else { SystemAccessTrap(1) };
            } else if self.in_host(El::El0) && !self.cnthctl("EL0PCTEN") && !self.cnthctl("EL0VCTEN") {
                return SystemAccessTrap(2);
            }
        }
        Register("CNTFRQ_EL0")
    }

    /// CNTPCT_EL0 and CNTPCTSS_EL0.
    fn physical_count(&self) -> End {
        if self.write {
            return Undefined;
        }
        match self.el {
            El::El0 => {
                if !self.in_host(El::El0) && !self.cntkctl("EL0PCTEN") {
                    if self.el2_enabled() && self.tge() { SystemAccessTrap(2) } else { SystemAccessTrap(1) }
                } else if self.el2_enabled() && !self.in_host(El::El2) && !self.cnthctl("EL1PCTEN") {
                    SystemAccessTrap(2)
                } else if self.in_host(El::El2) && !self.tge() && !self.cnthctl("EL1PCTEN") {
                    SystemAccessTrap(2)
                } else if self.in_host(El::El0) && !self.cnthctl("EL0PCTEN") {
                    SystemAccessTrap(2)
                } else {
                    Register("CNTPCT_EL0")
                }
            }
            El::El1 if self.el2_enabled() && !self.cnthctl("EL1PCTEN") => SystemAccessTrap(2),
            _ => Register("CNTPCT_EL0"),
        }
    }

    /// CNTVCT_EL0 and CNTVCTSS_EL0.
    fn virtual_count(&self) -> End {
        if self.write {
            return Undefined;
        }
        match self.el {
            El::El0 => {
                if !self.in_host(El::El0) && !self.cntkctl("EL0VCTEN") {
                    if self.el2_enabled() && self.tge() { SystemAccessTrap(2) } else { SystemAccessTrap(1) }
                } else if self.in_host(El::El0) && !self.cnthctl("EL0VCTEN") {
                    SystemAccessTrap(2)
                } else if self.el2_enabled() && !self.in_host(El::El0) && self.cnthctl("EL1TVCT") {
                    SystemAccessTrap(2)
                } else {
                    Register("CNTVCT_EL0")
                }
            }
            El::El1 if self.el2_enabled() && self.cnthctl("EL1TVCT") => SystemAccessTrap(2),
            _ => Register("CNTVCT_EL0"),
        }
    }

    /// CNTP_CTL_EL0, and CNTP_CVAL_EL0 and CNTP_TVAL_EL0 like it: which it is, and what it is at EL2.
    fn physical_timer(&self, own: &'static str, host: &'static str) -> End {
        match self.el {
            El::El0 => {
                if !self.in_host(El::El0) && !self.cntkctl("EL0PTEN") {
                    if self.el2_enabled() && self.tge() { SystemAccessTrap(2) } else { SystemAccessTrap(1) }
                } else if self.el2_enabled() && !self.in_host(El::El2) && !self.cnthctl("EL1PCEN") {
                    SystemAccessTrap(2)
                } else if self.in_host(El::El2) && !self.tge() && !self.cnthctl("EL1PTEN") {
                    SystemAccessTrap(2)
                } else if self.in_host(El::El0) && !self.cnthctl("EL0PTEN") {
                    SystemAccessTrap(2)
                } else if self.in_host(El::El0) {
                    Register(host)
                } else {
                    Register(own)
                }
            }
            El::El1 => {
                if self.el2_enabled() && !self.in_host(El::El2) && !self.cnthctl("EL1PCEN") {
                    SystemAccessTrap(2)
                } else if self.in_host(El::El2) && !self.cnthctl("EL1PTEN") {
                    SystemAccessTrap(2)
                } else {
                    Register(own)
                }
            }
            El::El2 if self.in_host(El::El2) => Register(host),
            El::El2 => Register(own),
        }
    }

    /// CNTV_CTL_EL0, CNTV_CVAL_EL0 and CNTV_TVAL_EL0.
    fn virtual_timer(&self, own: &'static str, host: &'static str) -> End {
        match self.el {
            El::El0 => {
                if !self.in_host(El::El0) && !self.cntkctl("EL0VTEN") {
                    if self.el2_enabled() && self.tge() { SystemAccessTrap(2) } else { SystemAccessTrap(1) }
                } else if self.in_host(El::El0) && !self.cnthctl("EL0VTEN") {
                    SystemAccessTrap(2)
                } else if self.el2_enabled() && !self.in_host(El::El0) && self.cnthctl("EL1TVT") {
                    SystemAccessTrap(2)
                } else if self.in_host(El::El0) {
                    Register(host)
                } else {
                    Register(own)
                }
            }
            El::El1 if self.el2_enabled() && self.cnthctl("EL1TVT") => SystemAccessTrap(2),
            El::El1 => Register(own),
            El::El2 if self.in_host(El::El2) => Register(host),
            El::El2 => Register(own),
        }
    }

    /// CNTKCTL_EL1.
    fn kernel_control(&self) -> End {
        match self.el {
            El::El0 => Undefined,
            El::El1 => Register("CNTKCTL_EL1"),
            El::El2 if self.in_host(El::El2) => Register("CNTHCTL_EL2"),
            El::El2 => Register("CNTKCTL_EL1"),
        }
    }

    /// CNTVOFF_EL2, CNTHCTL_EL2, CNTHP_*_EL2: EffectiveHCR_EL2_NVx() is 000.
    fn at_el2(&self, own: &'static str) -> End {
        if self.el == El::El2 { Register(own) } else { Undefined }
    }

    /// CNTHV_*_EL2 are there only with FEAT_VHE, and a guest of KVM's has that just where it has E2H set.
    fn at_el2_with_vhe(&self, own: &'static str) -> End {
        if self.controls.e2h { self.at_el2(own) } else { Undefined }
    }

    /// The names _EL12 and _EL02.
    fn alias(&self, of: &'static str) -> End {
        match self.el {
            El::El0 | El::El1 => Undefined,
            El::El2 if self.in_host(El::El2) => Register(of),
            El::El2 => Undefined,
        }
    }

    fn access(&self, name: &str) -> End {
        if self.el == El::El2 && !self.el2_enabled() {
            return Undefined;
        }
        match name {
            "CNTFRQ_EL0" => self.frequency(),
            "CNTPCT_EL0" | "CNTPCTSS_EL0" => self.physical_count(),
            "CNTVCT_EL0" | "CNTVCTSS_EL0" => self.virtual_count(),
            "CNTP_CTL_EL0" => self.physical_timer("CNTP_CTL_EL0", "CNTHP_CTL_EL2"),
            "CNTP_CVAL_EL0" => self.physical_timer("CNTP_CVAL_EL0", "CNTHP_CVAL_EL2"),
            "CNTP_TVAL_EL0" => self.physical_timer("CNTP_TVAL_EL0", "CNTHP_TVAL_EL2"),
            "CNTV_CTL_EL0" => self.virtual_timer("CNTV_CTL_EL0", "CNTHV_CTL_EL2"),
            "CNTV_CVAL_EL0" => self.virtual_timer("CNTV_CVAL_EL0", "CNTHV_CVAL_EL2"),
            "CNTV_TVAL_EL0" => self.virtual_timer("CNTV_TVAL_EL0", "CNTHV_TVAL_EL2"),
            "CNTKCTL_EL1" => self.kernel_control(),
            "CNTVOFF_EL2" => self.at_el2("CNTVOFF_EL2"),
            "CNTHCTL_EL2" => self.at_el2("CNTHCTL_EL2"),
            "CNTHP_CTL_EL2" => self.at_el2("CNTHP_CTL_EL2"),
            "CNTHP_CVAL_EL2" => self.at_el2("CNTHP_CVAL_EL2"),
            "CNTHP_TVAL_EL2" => self.at_el2("CNTHP_TVAL_EL2"),
            "CNTHV_CTL_EL2" => self.at_el2_with_vhe("CNTHV_CTL_EL2"),
            "CNTHV_CVAL_EL2" => self.at_el2_with_vhe("CNTHV_CVAL_EL2"),
            "CNTHV_TVAL_EL2" => self.at_el2_with_vhe("CNTHV_TVAL_EL2"),
            "CNTKCTL_EL12" => self.alias("CNTKCTL_EL1"),
            "CNTP_CTL_EL02" => self.alias("CNTP_CTL_EL0"),
            "CNTP_CVAL_EL02" => self.alias("CNTP_CVAL_EL0"),
            "CNTP_TVAL_EL02" => self.alias("CNTP_TVAL_EL0"),
            "CNTV_CTL_EL02" => self.alias("CNTV_CTL_EL0"),
            "CNTV_CVAL_EL02" => self.alias("CNTV_CVAL_EL0"),
            "CNTV_TVAL_EL02" => self.alias("CNTV_TVAL_EL0"),
            // FEAT_ECV_POFF isn't implemented.
            "CNTPOFF_EL2" => Undefined,
            other => panic!("no pseudocode for {other}"),
        }
    }
}

/// The values of a register whose bits are all those given, in every combination.
fn combinations(bits: &'static [u32]) -> impl Iterator<Item = u64> {
    (0..1_u64 << bits.len())
        .map(|choice| bits.iter().enumerate().map(|(index, bit)| (choice >> index & 1) << bit).sum::<u64>())
}

fn levels() -> impl Iterator<Item = (El, Controls)> {
    (0..24).map(|n| {
        let el = [El::El0, El::El1, El::El2][n / 8];
        (el, Controls { e2h: n & 1 != 0, tge: n & 2 != 0, nested: n & 4 != 0, ..Controls::default() })
    })
}

#[test]
fn every_access_is_as_the_architecture_says() {
    for row in &SYSREGS {
        for (el, levels) in levels() {
            for cntkctl in combinations(&[0, 1, 8, 9]) {
                for cnthctl in combinations(&[0, 1, 8, 9, 10, 11, 13, 14]) {
                    let controls = Controls { cntkctl, cnthctl, ..levels };
                    for write in [false, true] {
                        let expected = match (Pe { el, write, controls }).access(row.name) {
                            Register(name) => Access::Allowed(Sysreg::named(name).unwrap().role),
                            SystemAccessTrap(1) => Access::TrapToEl1,
                            SystemAccessTrap(_) => Access::TrapToEl2,
                            Undefined => Access::Undefined,
                        };
                        assert_eq!(
                            check(row, write, el, &controls),
                            expected,
                            "{} write={write} at {el:?} {controls:?}",
                            row.name
                        );
                    }
                }
            }
        }
    }
}

/// The event stream, the scale, ECV, the run_states for hypervisors below, the realms' masks, and what is reserved.
#[test]
fn no_other_bit_gates_anything() {
    let open = Controls { cntkctl: 0x303, cnthctl: 0xf03, ..Controls::default() };
    for row in &SYSREGS {
        for (el, levels) in levels() {
            for write in [false, true] {
                let clear = Controls { e2h: levels.e2h, tge: levels.tge, nested: levels.nested, ..open };
                let set = Controls { cntkctl: clear.cntkctl | !0x303, cnthctl: clear.cnthctl | !0x6f03, ..clear };
                assert_eq!(check(row, write, el, &clear), check(row, write, el, &set), "{} at {el:?}", row.name);
            }
        }
    }
}

/// A few by hand, as people would say them.
#[test]
fn what_people_expect() {
    let reads = |name, el, controls| check(Sysreg::named(name).unwrap(), false, el, &controls);
    let role = |name| Access::Allowed(Sysreg::named(name).unwrap().role);
    let reset = Controls::default();
    let linux = Controls { cntkctl: 0x2, ..reset };
    assert_eq!(reads("CNTVCT_EL0", El::El0, linux), role("CNTVCT_EL0"));
    assert_eq!(reads("CNTFRQ_EL0", El::El0, linux), role("CNTFRQ_EL0"));
    assert_eq!(reads("CNTPCT_EL0", El::El0, linux), Access::TrapToEl1);
    assert_eq!(reads("CNTV_CTL_EL0", El::El0, linux), Access::TrapToEl1);
    assert_eq!(reads("CNTP_CVAL_EL0", El::El1, reset), role("CNTP_CVAL_EL0"));
    assert_eq!(reads("CNTHP_CVAL_EL2", El::El1, reset), Access::Undefined);

    let nested = Controls { nested: true, ..reset };
    let vhe = Controls { e2h: true, tge: true, ..nested };
    assert_eq!(reads("CNTP_CVAL_EL0", El::El1, nested), Access::TrapToEl2);
    assert_eq!(reads("CNTP_CVAL_EL0", El::El2, vhe), role("CNTHP_CVAL_EL2"));
    assert_eq!(reads("CNTP_CVAL_EL02", El::El2, vhe), role("CNTP_CVAL_EL0"));
    assert_eq!(reads("CNTKCTL_EL1", El::El2, vhe), role("CNTHCTL_EL2"));
    assert_eq!(reads("CNTVCT_EL0", El::El0, vhe), Access::TrapToEl2);
    assert_eq!(reads("CNTVCT_EL0", El::El0, Controls { cnthctl: 0x2, ..vhe }), role("CNTVCT_EL0"));
}

/// CNTVCT_EL0's page: "reads of CNTVCT_EL0 from EL0 and EL1 return ...", with its list of conditions, as a table.
#[test]
fn where_cntvoff_counts() {
    let table = [
        // el, e2h, tge, the architecture, KVM
        (El::El0, false, false, true, true),
        (El::El0, false, true, true, true),
        (El::El0, true, false, true, true),
        (El::El0, true, true, false, false),
        (El::El1, false, false, true, true),
        (El::El1, false, true, true, true),
        (El::El1, true, false, true, true),
        (El::El1, true, true, true, true),
        (El::El2, false, false, true, false),
        (El::El2, false, true, true, false),
        (El::El2, true, false, false, false),
        (El::El2, true, true, false, false),
    ];
    for (el, e2h, tge, architecture, kvm) in table {
        assert_eq!(counts_cntvoff(el, e2h, tge), architecture, "{el:?} {e2h} {tge}");
        assert_eq!(kvm_counts_cntvoff(el, e2h, tge), kvm, "{el:?} {e2h} {tge}");
    }
}
