//! Guest counts of all rows at one instant.

use crate::bank::isa::Isa;
use guestclock_core::time::{HostCount, Offset};

/// Computes the count of each row's counter when the host's reads `now`: [`HostCount::guest`] of its offset, in ticks.
///
/// # Panics
///
/// If the columns differ in length.
pub fn counts(isa: Isa, now: HostCount, offsets: &[u64], out: &mut [u64]) {
    assert_eq!(offsets.len(), out.len(), "rows of the offsets and of the output");
    isa.run(
        #[inline(always)]
        |_| {
            for (out, &offset) in out.iter_mut().zip(offsets) {
                *out = now.guest(Offset(offset)).0;
            }
        },
    );
}

/// Computes both counters of each row at one instant: [`counts`] of the virtual and of the physical offsets.
///
/// # Panics
///
/// If the columns differ in length.
pub fn both_counts(isa: Isa, now: HostCount, virt: &[u64], phys: &[u64], virt_out: &mut [u64], phys_out: &mut [u64]) {
    let rows = [virt.len(), phys.len(), virt_out.len(), phys_out.len()];
    assert_eq!(rows, [virt.len(); 4], "rows of the offsets and of the outputs");
    counts(isa, now, virt, virt_out);
    counts(isa, now, phys, phys_out);
}
