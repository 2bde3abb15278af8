//! Identity of a vCPU's register.

/// Identity of a vCPU's register: on arm64 KVM's ONE_REG id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegId(pub u64);
