//! Interrupt ids of the timers, and the timer lines of a VM whose interrupt controller is in user space.
//!
//! The rules are those of `KVM_ARM_VCPU_TIMER_CTRL`: `kvm_arm_timer_set_attr`, `kvm_arm_timer_get_attr` and
//! `timer_irqs_are_valid` in arch/arm64/kvm/arch_timer.c, since Linux 6.4; Documentation/virt/kvm/devices/vcpu.rst, 2.
//! The attributes are set on a vCPU, and the ids hold for the whole VM.

use crate::arch::arm64::timer::Timer;
use core::ops::RangeInclusive;

/// Valid interrupt ids of a timer: the PPIs, which each vCPU has for itself.
pub const PPI: RangeInclusive<i32> = 16..=31;

/// Interrupt ids of a new VM, in the order of [`Timer::ALL`] (`default_ppi` in arch_timer.c).
pub const DEFAULT_IDS: [u8; 4] = [27, 30, 28, 26];

/// Bit of the virtual timer in `kvm_run.s.regs.device_irq_level` (KVM_ARM_DEV_EL1_VTIMER).
pub const DEV_EL1_VTIMER: u64 = 1 << 0;

/// Bit of the physical timer (KVM_ARM_DEV_EL1_PTIMER).
pub const DEV_EL1_PTIMER: u64 = 1 << 1;

/// Returns the two lines as bits of `device_irq_level`, for a vCPU whose VM has no interrupt controller in the kernel
/// (KVM_CAP_ARM_USER_IRQ; `kvm_timer_update_run`).
///
/// KVM exits the guest whenever they change. Bit 2 is the PMU's, which isn't covered here.
#[must_use]
pub const fn device_irq_level(vtimer: bool, ptimer: bool) -> u64 {
    (if vtimer { DEV_EL1_VTIMER } else { 0 }) | (if ptimer { DEV_EL1_PTIMER } else { 0 })
}

/// Error of setting an interrupt id, or of the first KVM_RUN.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IrqError {
    /// An interrupt controller in user space has no use for the ids (EINVAL).
    #[error("the VM has no interrupt controller in the kernel: create it before the timers' interrupt ids are set")]
    NoIrqchip,
    /// The id isn't a PPI (EINVAL).
    #[error("interrupt id {id} isn't a PPI: take one from 16 to 31")]
    NotPpi {
        /// The requested id.
        id: i32,
    },
    /// A vCPU has run (EBUSY).
    #[error("a vCPU has run: the timers' interrupt ids are set before that")]
    HasRun,
    /// The attribute doesn't exist (ENXIO).
    #[error("KVM_ARM_VCPU_TIMER_CTRL has no attribute {attribute} here")]
    NoSuchAttribute {
        /// The requested attribute.
        attribute: u64,
    },
    /// Two timers have the same id at the first KVM_RUN of a vCPU (EINVAL).
    #[error("{} and {} have both interrupt id {id}: give each its own", first.name(), second.name())]
    Shared {
        /// One timer.
        first: Timer,
        /// The other timer.
        second: Timer,
        /// The id of both.
        id: u8,
    },
}

impl IrqError {
    /// Returns the errno of KVM's answer: the generic number, the same on every architecture of Linux.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::NoSuchAttribute { .. } => 6,
            Self::HasRun => 16,
            Self::NoIrqchip | Self::NotPpi { .. } | Self::Shared { .. } => 22,
        }
    }
}

/// Interrupt ids of a VM's timers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IrqIds {
    ids: [u8; 4],
    /// The attributes below this number exist.
    attributes: u8,
    /// KVM_ARCH_FLAG_TIMER_PPIS_IMMUTABLE: the first run that passes the check sets it, and nothing clears it.
    immutable: bool,
}

impl IrqIds {
    /// Returns the ids of a new VM.
    ///
    /// `el2_attributes`: the kernel knows HVTIMER and HPTIMER, as Linux does since 6.4; then a guest without EL2 has
    /// them too (the constants are in 6.12's UAPI, but not in its documentation). Older kernels answer ENXIO.
    #[must_use]
    pub const fn new(el2_attributes: bool) -> Self {
        Self { ids: DEFAULT_IDS, attributes: if el2_attributes { 4 } else { 2 }, immutable: false }
    }

    /// Returns the timer's interrupt id.
    #[must_use]
    pub const fn of(&self, timer: Timer) -> u8 {
        self.ids[timer.index()]
    }

    /// Gets an id (KVM_GET_DEVICE_ATTR): works with any interrupt controller, at any time.
    pub fn get(&self, attribute: u64) -> Result<u8, IrqError> {
        Ok(self.of(self.timer(attribute)?))
    }

    /// Sets an id (KVM_SET_DEVICE_ATTR), with the checks in KVM's order.
    ///
    /// An id that another timer has is accepted here, and refused by [`first_run`](Self::first_run).
    pub fn set(&mut self, attribute: u64, id: i32, in_kernel_irqchip: bool) -> Result<(), IrqError> {
        if !in_kernel_irqchip {
            return Err(IrqError::NoIrqchip);
        }
        let ppi = u8::try_from(id).ok().filter(|_| PPI.contains(&id)).ok_or(IrqError::NotPpi { id })?;
        if self.immutable {
            return Err(IrqError::HasRun);
        }
        let timer = self.timer(attribute)?;
        self.ids[timer.index()] = ppi;
        Ok(())
    }

    /// Checks that each of `timers` has an id of its own, and fixes the ids for good, as KVM_RUN does before a vCPU's
    /// first entry. `timers` are the guest's.
    ///
    /// Without an interrupt controller in the kernel nothing is checked or fixed.
    pub fn first_run(&mut self, timers: &[Timer], in_kernel_irqchip: bool) -> Result<(), IrqError> {
        if !in_kernel_irqchip {
            return Ok(());
        }
        for (index, &second) in timers.iter().enumerate() {
            let id = self.of(second);
            if let Some(&first) = timers[..index].iter().find(|&&first| self.of(first) == id) {
                return Err(IrqError::Shared { first, second, id });
            }
        }
        self.immutable = true;
        Ok(())
    }

    fn timer(&self, attribute: u64) -> Result<Timer, IrqError> {
        Timer::ALL
            .into_iter()
            .find(|timer| *timer as u64 == attribute && attribute < self.attributes.into())
            .ok_or(IrqError::NoSuchAttribute { attribute })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::arm64::el2::El2;

    const EINVAL: i32 = 22;
    const EBUSY: i32 = 16;
    const ENXIO: i32 = 6;

    fn errno<T>(result: Result<T, IrqError>) -> i32 {
        result.err().map_or(0, IrqError::errno)
    }

    #[test]
    fn the_defaults_are_kvms() {
        let ids = IrqIds::new(true);
        assert_eq!([0, 1, 2, 3].map(|attribute| ids.get(attribute)), [Ok(27), Ok(30), Ok(28), Ok(26)]);
        assert_eq!(Timer::ALL.map(|timer| ids.of(timer)), [27, 30, 28, 26]);
    }

    #[test]
    fn only_a_ppi_is_taken() {
        for id in [i32::MIN, -1, 0, 15, 32, 27 + 256, 1 << 20, i32::MAX] {
            let mut ids = IrqIds::new(true);
            assert_eq!(ids.set(0, id, true), Err(IrqError::NotPpi { id }));
            assert_eq!(errno(ids.set(0, id, true)), EINVAL);
            assert_eq!(ids, IrqIds::new(true));
        }
        for id in 16..=31_u8 {
            let mut ids = IrqIds::new(true);
            assert_eq!(ids.set(1, id.into(), true), Ok(()));
            assert_eq!((ids.get(1), ids.get(0)), (Ok(id), Ok(27)));
        }
    }

    #[test]
    fn without_an_irqchip_set_is_einval_and_get_works() {
        let mut ids = IrqIds::new(true);
        assert_eq!(errno(ids.set(0, 20, false)), EINVAL);
        assert_eq!(ids.get(0), Ok(27));
    }

    #[test]
    fn unknown_attributes_are_enxio() {
        for attribute in [4, 5, 1 << 32, u64::MAX] {
            let mut ids = IrqIds::new(true);
            assert_eq!((errno(ids.set(attribute, 20, true)), errno(ids.get(attribute))), (ENXIO, ENXIO));
        }
        for attribute in [2, 3] {
            let mut old = IrqIds::new(false);
            assert_eq!((errno(old.set(attribute, 20, true)), errno(old.get(attribute))), (ENXIO, ENXIO));
            assert_eq!(IrqIds::new(true).set(attribute, 20, true), Ok(()));
        }
        assert_eq!(IrqIds::new(false).set(1, 20, true), Ok(()));
    }

    #[test]
    fn ebusy_once_a_vcpu_has_run() {
        let mut ids = IrqIds::new(true);
        ids.set(0, 20, true).unwrap();
        ids.first_run(El2::Absent.timers(), true).unwrap();
        assert_eq!(errno(ids.set(0, 21, true)), EBUSY);
        assert_eq!(ids.get(0), Ok(20));
        // Order of the checks: the id before the state, the state before the attribute.
        assert_eq!((errno(ids.set(0, 40, true)), errno(ids.set(9, 21, true))), (EINVAL, EBUSY));
    }

    #[test]
    fn a_shared_id_is_taken_and_fails_the_first_run() {
        let mut ids = IrqIds::new(true);
        ids.set(1, 27, true).unwrap();
        let shared = IrqError::Shared { first: Timer::Vtimer, second: Timer::Ptimer, id: 27 };
        assert_eq!(ids.first_run(El2::Absent.timers(), true), Err(shared));
        assert_eq!(shared.errno(), EINVAL);
        // A run that failed fixes nothing.
        ids.set(1, 29, true).unwrap();
        assert_eq!(ids.first_run(El2::Absent.timers(), true), Ok(()));
    }

    #[test]
    fn only_the_timers_that_the_guest_has_must_differ() {
        let mut ids = IrqIds::new(true);
        ids.set(3, 30, true).unwrap();
        assert_eq!(errno(ids.clone().first_run(&Timer::ALL, true)), EINVAL);
        assert_eq!(ids.first_run(El2::Absent.timers(), true), Ok(()));
    }

    #[test]
    fn a_run_without_an_irqchip_fixes_nothing() {
        let mut ids = IrqIds::new(true);
        ids.set(1, 27, true).unwrap();
        assert_eq!(ids.first_run(El2::Absent.timers(), false), Ok(()));
        assert_eq!(ids.set(1, 30, true), Ok(()));
    }

    #[test]
    fn lines_are_bits_0_and_1() {
        let levels = [(false, false), (true, false), (false, true), (true, true)];
        assert_eq!(levels.map(|(vtimer, ptimer)| device_irq_level(vtimer, ptimer)), [0, 1, 2, 3]);
    }
}
