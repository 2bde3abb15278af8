//! Physical offsets on the host's CPU: trapped, or not.

/// FEAT_ECV's second step, which brings CNTPOFF_EL2 (Arm ARM DDI 0487, ID_AA64MMFR0_EL1.ECV).
const ECV_CNTPOFF: u64 = 2;

/// Returns whether a physical offset leaves CNTPCT_EL0 and the physical timer untrapped.
///
/// `Some(false)` on a CPU without CNTPOFF_EL2, and `None` on a CPU with it. KVM uses that register only where the
/// host's kernel runs at EL2 (VHE, `has_cntpoff`, arch/arm64/kvm). The kernel of such a CPU nearly always does, and no
/// interface shows it.
#[must_use]
pub fn physical_offset_untrapped() -> Option<bool> {
    judge(ecv())
}

fn judge(ecv: Option<u64>) -> Option<bool> {
    (ecv? < ECV_CNTPOFF).then_some(false)
}

/// ID_AA64MMFR0_EL1.ECV as the kernel shows it to programs, the least of all CPUs' values
/// (Documentation/arch/arm64/cpu-feature-registers.rst).
#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "system registers are read by instructions")]
fn ecv() -> Option<u64> {
    let (hwcap, _) = rustix::param::linux_hwcap();
    if hwcap as u64 & libc::HWCAP_CPUID == 0 {
        return None;
    }
    let features: u64;
    // SAFETY: with HWCAP_CPUID the kernel emulates the read at EL0, and nothing else changes.
    unsafe {
        core::arch::asm!("mrs {}, id_aa64mmfr0_el1", out(reg) features, options(nomem, nostack, preserves_flags));
    }
    Some(features >> 60)
}

#[cfg(not(target_arch = "aarch64"))]
const fn ecv() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cpu_without_the_register_is_certain() {
        let judged = [None, Some(0), Some(1), Some(2), Some(3)].map(judge);
        assert_eq!(judged, [None, Some(false), Some(false), None, None]);
    }
}
