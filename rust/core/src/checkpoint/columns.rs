//! Columns: one value a vCPU or VM, and the rules that they keep.

use crate::arch::arm64::{CTL_ISTATUS, Timer};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub(crate) const fn validate_frequency(cntfrq_hz: u32) -> Result<(), &'static str> {
    if cntfrq_hz == 0 { Err("cntfrq_hz is 0") } else { Ok(()) }
}

pub(crate) fn validate_timers(timers: &[TimerColumns], vcpus: usize) -> Result<(), &'static str> {
    if !timers.is_sorted_by(|one, next| one.timer < next.timer) {
        return Err("timers aren't in their numbers' order, each once");
    }
    // Every guest has it, and without a column nothing would bound `vcpus`.
    if timers.first().is_none_or(|columns| columns.timer != Timer::Vtimer) {
        return Err("timers is without vtimer");
    }
    for columns in timers {
        if columns.cval.len() != vcpus {
            return Err("a timer's cval hasn't one value a vCPU");
        }
        if columns.ctl.len() != vcpus {
            return Err("a timer's ctl hasn't one value a vCPU");
        }
        if !columns.ctl.is_canonical() {
            return Err("a timer's ctl has ISTATUS set, or isn't in the narrowest column that holds it");
        }
    }
    Ok(())
}

/// One register of every vCPU, by its KVM id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegisterColumn {
    /// The id.
    pub id: u64,
    /// Its values, one a vCPU.
    pub values: Vec<u64>,
}

/// One timer of every vCPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimerColumns {
    /// Which one.
    pub timer: Timer,
    /// CVAL, one a vCPU.
    pub cval: Vec<u64>,
    /// CTL, one a vCPU.
    pub ctl: CtlColumn,
}

/// A column of CTL values, as narrow as its values allow. ISTATUS is never in it: it is computed, not saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CtlColumn {
    /// Only ENABLE and IMASK are set anywhere: bits 1:0.
    Bits(Vec<u8>),
    /// Some value has bits above 2 set, which KVM stores until the vCPU's first run.
    Wide(Vec<u64>),
}

impl CtlColumn {
    /// The column of these values, ISTATUS dropped.
    pub fn new(values: impl IntoIterator<Item = u64>) -> Self {
        let mut column = Self::Bits(Vec::new());
        column.extend(values);
        column
    }

    /// Adds values, as narrow as they allow, ISTATUS dropped.
    pub fn extend(&mut self, values: impl IntoIterator<Item = u64>) {
        for ctl in values.into_iter().map(|ctl| ctl & !CTL_ISTATUS) {
            match (&mut *self, u8::try_from(ctl)) {
                (Self::Bits(bits), Ok(ctl)) if ctl < 4 => bits.push(ctl),
                (Self::Bits(bits), _) => {
                    let mut wide: Vec<u64> = bits.iter().copied().map(u64::from).collect();
                    wide.push(ctl);
                    *self = Self::Wide(wide);
                }
                (Self::Wide(wide), _) => wide.push(ctl),
            }
        }
    }

    /// The vCPU's value; `None` past the end.
    #[must_use]
    pub fn get(&self, vcpu: usize) -> Option<u64> {
        match self {
            Self::Bits(bits) => bits.get(vcpu).copied().map(u64::from),
            Self::Wide(wide) => wide.get(vcpu).copied(),
        }
    }

    /// How many values.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Bits(bits) => bits.len(),
            Self::Wide(wide) => wide.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is as [`CtlColumn::new`] makes it: as narrow as its values allow, and without ISTATUS.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        match self {
            // All bits that are set anywhere: a loop without an early end becomes vector code.
            Self::Bits(bits) => bits.iter().fold(0, |all, ctl| all | ctl) < 4,
            Self::Wide(wide) => {
                let all = wide.iter().fold(0, |all, ctl| all | ctl);
                all & CTL_ISTATUS == 0 && all >= 4
            }
        }
    }
}

/// A key of the payload that this version doesn't know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownKey {
    /// Its name.
    pub key: String,
    /// Its value's CBOR, as it stood.
    pub value: Vec<u8>,
}

/// A value a row: written once where all rows have the same.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Column<T> {
    /// Every row's.
    Same(T),
    /// Each row's own, and some differ.
    Each(Vec<T>),
}

impl<T: Copy + PartialEq> Column<T> {
    /// The column of these values.
    #[must_use]
    pub fn new(values: Vec<T>) -> Self {
        match values.first() {
            Some(&first) if !varies(&values) => Self::Same(first),
            _ => Self::Each(values),
        }
    }

    /// The row's value; `None` past the end of rows that differ.
    #[must_use]
    pub fn get(&self, row: usize) -> Option<T> {
        match self {
            Self::Same(value) => Some(*value),
            Self::Each(values) => values.get(row).copied(),
        }
    }

    /// Whether it is as [`Column::new`] makes it, of so many rows.
    #[must_use]
    pub fn is_canonical(&self, rows: usize) -> bool {
        match self {
            Self::Same(_) => rows > 0,
            Self::Each(values) => values.len() == rows && varies(values),
        }
    }
}

fn varies<T: Copy + PartialEq>(values: &[T]) -> bool {
    values.first().is_some_and(|&first| values.iter().any(|&value| value != first))
}

/// The most columns in `other_regs`, for the same reason.
pub const MAX_OTHER_REGS: usize = 64;

/// Something in a checkpoint that this version doesn't know.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unknown {
    /// A key of the payload.
    Key(String),
    /// A timer register, by its KVM id.
    Register(u64),
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "the key {key:?}"),
            Self::Register(id) => write!(f, "the register {id:#018x}"),
        }
    }
}
