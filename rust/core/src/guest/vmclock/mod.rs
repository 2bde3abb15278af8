//! The vmclock page: the hypervisor's report to a guest of its counter, and of real time by the counter.
//!
//! Linux: include/uapi/linux/vmclock-abi.h, `struct vmclock_abi`; UAPI.13. If the two disagree this module follows
//! Linux's header, as Linux's driver does: VM_GEN_COUNTER_PRESENT is bit 8, and the generation counter is at 0x68. All
//! fields are little endian:
//!
//! ```text
//! 0x00  u32 magic                  0x28  u64 counter_value
//! 0x04  u32 size                   0x30  u64 counter_period_frac_sec
//! 0x08  u16 version                0x38  u64 counter_period_esterror_rate_frac_sec
//! 0x0a  u8  counter_id             0x40  u64 counter_period_maxerror_rate_frac_sec
//! 0x0b  u8  time_type              0x48  u64 time_sec
//! 0x0c  u32 seq_count              0x50  u64 time_frac_sec
//! 0x10  u64 disruption_marker      0x58  u64 time_esterror_nanosec
//! 0x18  u64 flags                  0x60  u64 time_maxerror_nanosec
//! 0x20  u8  pad[2]                 0x68  u64 vm_generation_counter
//! 0x22  u8  clock_status           0x24  s16 tai_offset_sec
//! 0x23  u8  leap_second_smearing_hint
//! 0x26  u8  leap_indicator         0x27  u8  counter_period_shift
//! ```
//!
//! The fields before `seq_count` are constant for the device's life: a guest reads them once. The rest is the [`Body`],
//! which [`Shared`] keeps consistent for readers at any moment.

pub mod body;
pub mod equation;
pub mod layout;
pub mod writer;

pub use body::Body;
pub use equation::{Declared, Equation, EquationError, Period, Time, realtime_at, utc_minus_tai};
pub use layout::{
    ALIGNMENT, BODY, CounterId, Header, IDENTITY, MAGIC, MAGIC_AND_SIZE, SEQ_COUNT, SIZE, Status, TIME_MAXERROR_VALID,
    TimeType, WORDS,
};
pub use writer::Shared;
