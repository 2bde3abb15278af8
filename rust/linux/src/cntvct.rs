//! CNTVCT_EL0, the Arm generic timer's virtual counter (Arm ARM DDI 0487, D12 "The Generic Timer").
//!
//! The counter's offset is 0 in a host's user space: KVM subtracts a VM's offset from this counter. Where an erratum
//! makes a direct read wrong, the kernel traps and corrects it (drivers/clocksource/arm_arch_timer.c).
#![expect(unsafe_code, reason = "system registers are read by instructions")]

use core::arch::asm;
use guestclock_core::time::{Frequency, HostCount};

use crate::opened::Opened;

pub(crate) fn open() -> Result<Opened, String> {
    let frequency = Frequency::new(cntfrq()).ok_or("the firmware left CNTFRQ_EL0 at 0, so its frequency is unknown")?;
    Ok((frequency, count))
}

/// Reads the counter, ordered as [`Counter::count`](guestclock_core::time::Counter::count) has to be. Reading the
/// register is no memory access, so neither an acquire load before it nor a barrier after it orders it. Two loads from
/// the stack stand in: one whose value the branch before the ISB waits for, and one whose address is made from the
/// count, ahead of a barrier. The second is the kernel's `arch_counter_enforce_ordering`, which came when seqlock
/// readers saw time go backwards.
fn count() -> HostCount {
    let count: u64;
    // Not `nomem`: the compiler too must keep the read in its place among memory accesses.
    // SAFETY: all of it is allowed at EL0; it loads from the top of the stack, which is mapped, and writes only to
    // `count` and a scratch register.
    unsafe {
        asm!(
            "ldr {scratch}, [sp]",
            "cbnz {scratch}, 2f",
            "2: isb",
            "mrs {count}, cntvct_el0",
            "eor {scratch}, {count}, {count}",
            "add {scratch}, sp, {scratch}",
            "ldr xzr, [{scratch}]",
            "dmb ishld",
            count = out(reg) count,
            scratch = out(reg) _,
            options(nostack, preserves_flags),
        );
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
