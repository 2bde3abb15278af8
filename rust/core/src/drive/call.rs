//! The primitive calls of a VM and the operations that make them, by name.

use crate::arch::arm64::Sysreg;
use core::fmt;

/// Kind of a primitive call. In KVM each is an ioctl, or a few.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CallKind {
    /// KVM_GET_REG_LIST on a vCPU.
    RegList,
    /// The look whether all vCPUs are stopped.
    Stopped,
    /// KVM_GET_ONE_REG of a register on a vCPU.
    GetOneReg,
    /// KVM_SET_ONE_REG of a register on a vCPU.
    SetOneReg,
    /// KVM_ARM_SET_COUNTER_OFFSET.
    SetCounterOffset,
    /// KVM_GET_DEVICE_ATTR of KVM_ARM_VCPU_TIMER_CTRL, for each of the guest's timers.
    Interrupts,
    /// KVM_GET_DEVICE_ATTR of a vGICv3's GICD_CTLR, and where that is off of a GICR_ISENABLER0.
    Forwards,
}

impl CallKind {
    /// All kinds with their names.
    pub const NAMES: [(&'static str, Self); 7] = [
        ("reg_list", Self::RegList),
        ("stopped", Self::Stopped),
        ("get_one_reg", Self::GetOneReg),
        ("set_one_reg", Self::SetOneReg),
        ("set_counter_offset", Self::SetCounterOffset),
        ("interrupts", Self::Interrupts),
        ("forwards", Self::Forwards),
    ];

    /// Returns the name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// Returns the place among [`CallKind::NAMES`].
    pub(crate) fn place(self) -> usize {
        Self::NAMES.iter().position(|(_, kind)| *kind == self).unwrap_or(0)
    }
}

/// A call, or a pattern of calls: `None` for the vCPU or the register matches any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Kind of the call.
    pub kind: CallKind,
    /// The vCPU.
    pub vcpu: Option<usize>,
    /// KVM id of the register.
    pub reg: Option<u64>,
}

impl Call {
    pub(crate) const fn on_vm(kind: CallKind) -> Self {
        Self { kind, vcpu: None, reg: None }
    }

    pub(crate) const fn on_reg(kind: CallKind, vcpu: usize, reg: u64) -> Self {
        Self { kind, vcpu: Some(vcpu), reg: Some(reg) }
    }

    /// Returns whether this pattern matches the call `other`.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.kind == other.kind
            && (self.vcpu.is_none() || self.vcpu == other.vcpu)
            && (self.reg.is_none() || self.reg == other.reg)
    }

    /// Parses a call as it is displayed, or the beginning of one: `set_one_reg`, `set_one_reg 0`.
    #[must_use]
    pub fn named(place: &str) -> Option<Self> {
        let mut words = place.split(' ');
        let kind = words.next()?;
        let (_, kind) = *CallKind::NAMES.iter().find(|(name, _)| *name == kind)?;
        let (vcpu, reg) = match kind {
            CallKind::Stopped | CallKind::SetCounterOffset | CallKind::Interrupts | CallKind::Forwards => (None, None),
            CallKind::RegList => (words.next(), None),
            CallKind::GetOneReg | CallKind::SetOneReg => (words.next(), words.next()),
        };
        let vcpu = vcpu.map(str::parse).transpose().ok()?;
        let reg = reg.map(|name| register(name).ok_or(())).transpose().ok()?;
        words.next().is_none().then_some(Self { kind, vcpu, reg })
    }
}

fn register(name: &str) -> Option<u64> {
    match name.strip_prefix("0x") {
        Some(id) => u64::from_str_radix(id, 16).ok(),
        None => Sysreg::with_kvm_name(name)?.one_reg_id(),
    }
}

/// Formats a call as `set_one_reg 0 TIMER_CVAL`: the kind, the vCPU, and KVM's name for the register.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.name())?;
        if let Some(vcpu) = self.vcpu {
            write!(f, " {vcpu}")?;
        }
        match self.reg.map(|id| (id, Sysreg::with_one_reg_id(id).and_then(|row| row.kvm))) {
            None => Ok(()),
            Some((_, Some(name))) => write!(f, " {name}"),
            Some((id, None)) => write!(f, " {id:#018x}"),
        }
    }
}

/// Operation that calls are made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Taking a checkpoint.
    Checkpoint,
    /// Planning a restore.
    Plan,
    /// The first step of a restore.
    Prepare,
    /// The second step.
    Apply,
    /// The last step.
    Release,
    /// The beginning of a pause in place.
    Pause,
    /// The end of a pause in place.
    Resume,
    /// A step of a backlog.
    CatchUp,
    /// The opt-in.
    OptIn,
    /// A restore that is given up, or a pause that is taken back.
    GiveUp,
    /// A look at the clocks.
    Verify,
}

impl Verb {
    /// All operations with their names.
    pub const NAMES: [(&'static str, Self); 11] = [
        ("checkpoint", Self::Checkpoint),
        ("plan", Self::Plan),
        ("prepare", Self::Prepare),
        ("apply", Self::Apply),
        ("release", Self::Release),
        ("pause", Self::Pause),
        ("resume", Self::Resume),
        ("catch_up", Self::CatchUp),
        ("opt_in", Self::OptIn),
        ("give_up", Self::GiveUp),
        ("verify", Self::Verify),
    ];

    /// Returns the name.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, verb)| *verb == self).map_or("", |(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_call_is_parsed_as_it_is_shown() {
        for place in [
            "reg_list",
            "reg_list 0",
            "stopped",
            "get_one_reg",
            "get_one_reg 7",
            "set_one_reg 1 TIMER_CVAL",
            "get_one_reg 0 CNTVOFF_EL2",
            "set_one_reg 0 0x603000000013e730",
            "set_counter_offset",
            "interrupts",
            "forwards",
        ] {
            assert_eq!(Call::named(place).map(|call| call.to_string()).as_deref(), Some(place));
        }
        for place in ["", "ioctl", "stopped 0", "reg_list 0 TIMER_CVAL", "get_one_reg x", "set_one_reg 0 CNTV_CVAL_EL0"]
        {
            assert_eq!(Call::named(place), None, "{place}");
        }
    }

    #[test]
    fn a_call_is_covered_by_the_beginning_of_its_name() {
        let whole = Call::named("set_one_reg 1 TIMER_CVAL").unwrap();
        for (place, covers) in [
            ("set_one_reg", true),
            ("set_one_reg 1", true),
            ("set_one_reg 1 TIMER_CVAL", true),
            ("set_one_reg 0", false),
            ("set_one_reg 1 TIMER_CTL", false),
            ("get_one_reg", false),
        ] {
            assert_eq!(Call::named(place).unwrap().covers(whole), covers, "{place}");
        }
    }
}
