//! The PV stolen-time record: what the hypervisor tells a guest of the time in which a vCPU could have run and didn't.
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

/// The bytes of a record, and what its address is a multiple of.
pub const SIZE: usize = 64;

/// Where in the record its revision and attributes are: one word of 64 bits.
pub const HEADER: usize = 0x00;

/// Where in the record the stolen time is.
pub const STOLEN_TIME: usize = 0x08;

/// Whether the word at [`HEADER`] is that of a record in this layout: revision 0, attributes 0.
#[must_use]
pub const fn is_known(header: u64) -> bool {
    header == 0
}
