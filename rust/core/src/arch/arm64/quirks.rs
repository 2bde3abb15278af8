//! What differs between kernels: named behaviours, and the presets that pick them.

/// What GET_ONE_REG of a CTL register answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CtlReadback {
    /// The low 32 bits of what was stored, with ISTATUS where the condition is met, whatever ENABLE says (Linux up to
    /// 6.17).
    Computed,
    /// What is stored, all 64 bits: ISTATUS only as the last run left it (Linux 6.18 and later).
    Stored,
}

/// In what order the timer registers are listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListOrder {
    /// Virtual then physical, each CTL, CNT, CVAL, ahead of the system registers (Linux up to 6.17).
    Grouped,
    /// Among the system registers, in the order of the architecture's encodings (Linux 6.18 and later).
    ByEncoding,
}

/// The differences between kernels that a VMM can see.
#[expect(clippy::struct_excessive_bools, reason = "each is a behaviour of its own")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviours {
    /// KVM_CAP_COUNTER_OFFSET: the VM-wide offset ioctl exists. Without it, EINVAL.
    pub counter_offset: bool,
    /// The KVM_REG_ARM_PTIMER_* registers exist. Without them, ENOENT.
    pub physical_timer: bool,
    /// How CTL is read back.
    pub ctl_readback: CtlReadback,
    /// In what order registers are listed.
    pub list_order: ListOrder,
    /// KVM_ARM_VCPU_INIT zeroes CVAL, and not only CTL.
    pub init_zeroes_cval: bool,
    /// KVM_CAP_ARM_EL2: a guest may have EL2.
    pub el2: bool,
}

/// The presets: a kernel's name and what it does.
pub const KERNELS: [(&str, Behaviours); 3] = [
    (
        "6.1",
        Behaviours {
            counter_offset: false,
            physical_timer: false,
            ctl_readback: CtlReadback::Computed,
            list_order: ListOrder::Grouped,
            init_zeroes_cval: false,
            el2: false,
        },
    ),
    (
        "6.12",
        Behaviours {
            counter_offset: true,
            physical_timer: true,
            ctl_readback: CtlReadback::Computed,
            list_order: ListOrder::Grouped,
            init_zeroes_cval: false,
            el2: false,
        },
    ),
    (
        "7.3",
        Behaviours {
            counter_offset: true,
            physical_timer: true,
            ctl_readback: CtlReadback::Stored,
            list_order: ListOrder::ByEncoding,
            init_zeroes_cval: true,
            el2: true,
        },
    ),
];

impl Behaviours {
    /// The preset of this name.
    #[must_use]
    pub fn named(kernel: &str) -> Option<Self> {
        KERNELS.iter().find(|(name, _)| *name == kernel).map(|(_, behaviours)| *behaviours)
    }
}
