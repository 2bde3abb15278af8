//! A guest's time as plain data: what is saved, apart from anything alive.

use crate::counter::{CrossTimestamp, GuestCount};
use crate::debt::Debt;
use crate::sysreg::is_unknown_timers;
use crate::timer::{CTL_ISTATUS, Timer};
use alloc::string::String;
use alloc::vec::Vec;

/// The guest time of one VM at one instant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// The guest's CNTFRQ_EL0, in Hz; never 0.
    pub cntfrq_hz: u32,
    /// The VM's virtual counter when the host's read `host.count`. On nested vCPUs CNTVOFF_EL2 has been added back.
    pub cntvct: GuestCount,
    /// The VM's physical counter at the same instant.
    pub cntpct: GuestCount,
    /// Whether the VM owned its offset (`KVM_ARM_SET_COUNTER_OFFSET`): then both counters are exact at `host.count`.
    pub owned: bool,
    /// How far, in ticks, the two counters above may be from the truth at `host.count`: 0 where they were computed,
    /// the width of the bracket where they were read.
    pub width_ticks: u64,
    /// The instant, by the host's counter and wall clock.
    pub host: CrossTimestamp,
    /// The host's count when the last vCPU left the guest, from a VMM that knows it.
    pub stopped_at: Option<u64>,
    /// What the guest is owed, where it was on its way back to real time.
    pub debt: Option<Debt>,
    /// How many vCPUs: the length of every column.
    pub vcpus: usize,
    /// A nested guest's CNTVOFF_EL2, one a vCPU; `None` for a guest without EL2.
    pub cntvoff: Option<Vec<u64>>,
    /// The timers, in the order of [`Timer::ALL`], without those the guest doesn't have.
    pub timers: Vec<TimerColumns>,
    /// Timer registers that KVM listed and this version doesn't know, by id: carried as they are.
    pub others: Vec<RegisterColumn>,
    /// Keys that this version doesn't know, byte for byte, to be written again.
    pub unknown: Vec<UnknownKey>,
}

impl Checkpoint {
    /// Whether its parts fit together, as [`wire`](crate::wire) wants them; what is wrong, if they don't.
    ///
    /// `unknown` isn't looked at: it is whatever [`wire::decode`](crate::wire::decode) found.
    pub fn validate(&self) -> Result<(), &'static str> {
        validate_frequency(self.cntfrq_hz)?;
        self.debt.iter().try_for_each(validate_debt)?;
        validate_host(&self.host)?;
        if self.cntvoff.as_ref().is_some_and(|column| column.len() != self.vcpus) {
            return Err("cntvoff hasn't one value a vCPU");
        }
        validate_timers(&self.timers, self.vcpus)?;
        if !self.others.is_sorted_by(|one, next| one.id < next.id) {
            return Err("other_regs aren't in their ids' order, each once");
        }
        for column in &self.others {
            if column.values.len() != self.vcpus {
                return Err("a column of other_regs hasn't one value a vCPU");
            }
            if !is_unknown_timers(column.id) {
                return Err("other_regs has a register that is known, or no timer's");
            }
        }
        Ok(())
    }
}

pub(crate) const fn validate_frequency(cntfrq_hz: u32) -> Result<(), &'static str> {
    if cntfrq_hz == 0 { Err("cntfrq_hz is 0") } else { Ok(()) }
}

pub(crate) const fn validate_debt(debt: &Debt) -> Result<(), &'static str> {
    if debt.owed_ticks == 0 || debt.step_ns == 0 || debt.interval_ns == 0 { Err("debt has a 0") } else { Ok(()) }
}

pub(crate) fn validate_host(host: &CrossTimestamp) -> Result<(), &'static str> {
    if is_source_name(&host.source) { Ok(()) } else { Err("host.source isn't 1 to 32 characters of a-z, 0-9 and _") }
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

/// Names of counters are printed as they are, so a file must not bring its own escape sequences.
fn is_source_name(name: &str) -> bool {
    (1..=32).contains(&name.len()) && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
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
        let mut narrow = Vec::new();
        let mut values = values.into_iter().map(|ctl| ctl & !CTL_ISTATUS);
        while let Some(ctl) = values.next() {
            match u8::try_from(ctl) {
                Ok(bits) if bits < 4 => narrow.push(bits),
                _ => {
                    let mut wide: Vec<u64> = narrow.into_iter().map(u64::from).collect();
                    wide.push(ctl);
                    wide.extend(values);
                    return Self::Wide(wide);
                }
            }
        }
        Self::Bits(narrow)
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
