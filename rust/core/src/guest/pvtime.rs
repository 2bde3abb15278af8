//! The PV stolen-time record: the hypervisor's report to a guest of the time in which a vCPU could have run and didn't.
//!
//! Arm DEN0057A, "Paravirtualized Time for Arm-based Systems", 3.2.2; Linux: Documentation/virt/kvm/arm/pvtime.rst. One
//! record for each vCPU, little endian:
//!
//! ```text
//! 0x00  u32  revision     0
//! 0x04  u32  attributes   0
//! 0x08  u64  stolen time  nanoseconds
//! 0x10       padding up to 0x40
//! ```

/// Size of a record in bytes, and alignment of its address.
pub const SIZE: usize = 64;

/// Position of the record's revision and attributes: one word of 64 bits.
pub const HEADER: usize = 0x00;

/// Position of the stolen time in the record.
pub const STOLEN_TIME: usize = 0x08;

/// Returns whether the word at [`HEADER`] belongs to a record in this layout: revision 0, attributes 0.
#[must_use]
pub const fn is_known(header: u64) -> bool {
    header == 0
}
