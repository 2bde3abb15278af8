//! CNTVCT_EL0, the Arm generic timer's virtual counter (Arm ARM DDI 0487, D12 "The Generic Timer").
//!
//! In a host's user space its offset is 0, so it is the counter that KVM subtracts a VM's offset from. Where an
//! erratum makes a direct read wrong, the kernel traps and corrects it (drivers/clocksource/arm_arch_timer.c). The ISB
//! before the read is the kernel's own ordering (arch/arm64/include/asm/arch_timer.h).
#![expect(unsafe_code, reason = "system registers are read by instructions")]

use core::arch::asm;
use guestclock_core::counter::{Frequency, HostCount};

use crate::counter::Opened;

pub(crate) fn open() -> Result<Opened, String> {
    let frequency = Frequency::new(cntfrq()).ok_or("the firmware left CNTFRQ_EL0 at 0, so its frequency is unknown")?;
    Ok((frequency, count))
}

fn count() -> HostCount {
    let count: u64;
    // Without the ISB the counter may be read speculatively, ahead of instructions before it. Not `nomem`: the compiler
    // too must keep the read in its place among memory accesses.
    // SAFETY: both instructions are allowed at EL0, and neither touches memory, the stack or the flags.
    unsafe {
        asm!("isb", "mrs {count}, cntvct_el0", count = out(reg) count, options(nostack, preserves_flags));
    }
    HostCount(count)
}

fn cntfrq() -> u64 {
    let hz: u64;
    // SAFETY: the register can be read at EL0, and reading it has no effect on anything else.
    unsafe {
        asm!("mrs {hz}, cntfrq_el0", hz = out(reg) hz, options(nomem, nostack, preserves_flags));
    }
    hz
}
