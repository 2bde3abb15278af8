//! Differences between kernels: named behaviours, and presets of them.

/// Answer of GET_ONE_REG for a CTL register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CtlReadback {
    /// The low 32 bits of the stored value, with ISTATUS set if the condition is met, whatever ENABLE is (Linux up to
    /// 6.17).
    Computed,
    /// All 64 bits of the stored value: ISTATUS is as the last run left it (Linux 6.18 and later).
    Stored,
}

/// Order in which the timer registers are listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListOrder {
    /// Virtual then physical, each as CTL, CNT, CVAL, ahead of the system registers (Linux up to 6.17).
    Grouped,
    /// Among the system registers, in the order of the architecture's encodings (Linux 6.18 and later).
    ByEncoding,
}

/// Differences between kernels that a VMM can observe.
#[expect(clippy::struct_excessive_bools, reason = "each is a behaviour of its own")]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behaviours {
    /// True if the ioctl for the VM-wide offset exists (KVM_CAP_COUNTER_OFFSET). Without it: EINVAL.
    pub counter_offset: bool,
    /// True if the KVM_REG_ARM_PTIMER_* registers exist. Without them: ENOENT.
    pub physical_timer: bool,
    /// Answer of GET_ONE_REG for CTL.
    pub ctl_readback: CtlReadback,
    /// Order in which registers are listed.
    pub list_order: ListOrder,
    /// True if KVM_ARM_VCPU_INIT zeroes CVAL besides CTL.
    pub init_zeroes_cval: bool,
    /// True if a guest may have EL2 (KVM_CAP_ARM_EL2).
    pub el2: bool,
}

/// Presets: the name of a kernel and its behaviours.
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
    /// Returns the preset of this name.
    #[must_use]
    pub fn named(kernel: &str) -> Option<Self> {
        KERNELS.iter().find(|(name, _)| *name == kernel).map(|(_, behaviours)| *behaviours)
    }
}
