//! Register lists, which other VMMs keep in their snapshots, as checkpoints, and back.
//!
//! A list has the registers of one vCPU by their KVM ids, as KVM_GET_REG_LIST and KVM_GET_ONE_REG give them. What it
//! doesn't say is when it was read: neither the host's counter nor its wall clock is in it. Each count in it is of
//! another instant, the one at which KVM was asked for it.
//!
//! A VMM that isn't on KVM lists the registers by Arm's encodings, under which KVM's id of the virtual counter is that of
//! its timer's compare value. No list is taken for the other kind by its values.

use crate::arch::RegId;
use crate::arch::arm64::{Encoding, Role, Sysreg, Timer, View, count_reg, is_unknown_timers, one_reg_id};
use crate::checkpoint::builder::BuildError;
use crate::checkpoint::group::{Held, MAX_OTHER_REGS};
use crate::checkpoint::guest_time::{GuestTime, MAX_VM_VCPUS, Reading};
use crate::checkpoint::names::VmName;
use crate::checkpoint::vms::{Checkpoint, SavedTimer, SavedVm};
use crate::time::{Frequency, GuestCount, NamespaceTicks, Offset, Stamp};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::num::NonZeroU32;

/// Naming of the registers in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ids {
    /// KVM's ids, with those of the virtual counter and of its timer's compare value exchanged.
    Kvm,
    /// The ids that follow from Arm's encodings, without an exchange.
    Arm,
}

impl Ids {
    /// Each with its name.
    pub const NAMES: [(&'static str, Self); 2] = [("kvm", Self::Kvm), ("arm", Self::Arm)];
}

/// Facts that aren't in the lists, and that their owner knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known<'a> {
    /// Name of the VM.
    pub name: &'a VmName,
    /// The guest's CNTFRQ_EL0, in Hz.
    pub frequency_hz: NonZeroU32,
    /// The host's counter and wall clock when the lists were read; `None` where nobody looked.
    pub host: Option<Stamp>,
    /// The offset that the VMM had set with `KVM_ARM_SET_COUNTER_OFFSET`: then the counts follow from it and from
    /// `host`, exactly, and those in the lists aren't used. `None` for a VM that hadn't opted in.
    pub counter_offset: Option<Offset>,
    /// A count and the wall clock of another instant than the lists', where the other VMM saved them.
    pub reading: Option<Reading>,
    /// Ticks between `host` and the reading of the lists' counts, at most.
    pub width_ticks: u64,
    /// The naming of the lists' registers; `None` for KVM's ids, unless a list shows that it isn't KVM's.
    pub ids: Option<Ids>,
    /// CNTVCT_EL0 at the save, where the lists have no virtual counter.
    pub cntvct: Option<GuestCount>,
    /// CNTPCT_EL0 at the save, where the lists have no physical counter.
    pub cntpct: Option<GuestCount>,
}

/// Why lists aren't a guest's time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterchangeError {
    /// No lists.
    #[error("there are no vCPUs, so there is no counter: give one register list a vCPU")]
    NoVcpus,
    /// A register that has to be there.
    #[error(
        "vCPU {vcpu}'s list has no {} ({id:#018x}): give every vCPU's registers as KVM lists them. CVAL, CTL and counter of \
         the virtual timer have to be there, and of another timer all or nothing, on all vCPUs alike; with EL2 CNTVOFF_EL2 too",
        kvm_name(*id)
    )]
    Missing {
        /// The vCPU of the list.
        vcpu: usize,
        /// KVM's id of the register.
        id: u64,
    },
    /// A list that has no register of the generic timer.
    #[error("vCPU {vcpu}'s list has no timer register at all: check that its ids are those of 64-bit system registers")]
    NoTimers {
        /// The vCPU.
        vcpu: usize,
    },
    /// A list that isn't KVM's, and that nobody has said to be of another kind.
    #[error(
        "vCPU {vcpu}'s list has {why}, so its ids aren't certainly KVM's, which exchanges those of the virtual counter \
         ({:#018x}) and of its compare value ({:#018x}): say whether they are KVM's, or follow from Arm's encodings as \
         they stand",
        count_reg(View::Virtual),
        one_reg_id(Role::Cval(Timer::Vtimer))
    )]
    NotKvms {
        /// The vCPU.
        vcpu: usize,
        /// The evidence.
        why: &'static str,
    },
    /// A count that is both in the lists and given.
    #[error("the lists have {name}, and a count of it is given too: leave one of them out")]
    CountedTwice {
        /// Name of the counter's register.
        name: &'static str,
    },
    /// A list with another CNTFRQ_EL0 than the given one.
    #[error(
        "vCPU {vcpu}'s list has a CNTFRQ_EL0 of {listed_hz} Hz, and the guest's is given as {cntfrq_hz} Hz: it has one, so \
         give the list's"
    )]
    OtherFrequency {
        /// The vCPU.
        vcpu: usize,
        /// The list's, in Hz.
        listed_hz: u64,
        /// The given one, in Hz.
        cntfrq_hz: u32,
    },
    /// More unknown registers than a checkpoint carries.
    #[error(
        "the lists have {found} timer registers that this guestclock doesn't know, and a checkpoint carries at most \
         {MAX_OTHER_REGS}: check that the ids are KVM's, or leave those registers out"
    )]
    TooManyUnknown {
        /// Number of unknown registers.
        found: usize,
    },
    /// The host's counter is needed, and nobody knows it.
    #[error("the host's counter at the save isn't known, and {why}: give the host's stamp of that moment")]
    HostUnknown {
        /// The use that needs it.
        why: &'static str,
    },
    /// Two frequencies.
    #[error(
        "the guest's CNTFRQ_EL0 is given as {cntfrq_hz} Hz and the host's counter as {host_hz} Hz: KVM can't rescale, so \
         they were one; give the host's own"
    )]
    TwoFrequencies {
        /// The guest's.
        cntfrq_hz: u32,
        /// The host's.
        host_hz: u64,
    },
    /// Two counters that are apart, of a VM that is said to have had one offset for both.
    #[error(
        "vCPU {vcpu}'s CNTVCT_EL0 is {cntvct} and its CNTPCT_EL0 {cntpct}, and a counter offset is given, which is for \
         both: more than the {width} ticks within which they were read lie between. Leave the offset out, and both are \
         kept as they were read"
    )]
    TwoOffsets {
        /// The vCPU.
        vcpu: usize,
        /// The vCPU's virtual counter.
        cntvct: u64,
        /// The vCPU's physical counter.
        cntpct: u64,
        /// Ticks between the earliest read of all lists and the latest, by each counter, and the caller's.
        width: u64,
    },
    /// VMs that don't make a checkpoint.
    #[error(transparent)]
    Build(#[from] BuildError),
}

fn kvm_name(id: u64) -> &'static str {
    Sysreg::with_one_reg_id(id).and_then(|row| row.kvm).unwrap_or("such register")
}

/// A checkpoint from one register list a vCPU. What isn't the timers' is passed over, and CNTKCTL_EL1 and CNTHCTL_EL2,
/// which the VMM restores itself.
///
/// All vCPUs of a VM have one counter, so counts that differ were read at different times: the latest is taken, under
/// which a guest may find itself further on and never back, and `width_ticks` has the whole distance between them. With
/// EL2 CNTVOFF_EL2 is added back, and then the virtual and the physical counter are one too. Lists without the physical
/// timer are of Linux before 6.4, where the physical counter is the host's.
pub fn from_one_regs(lists: &[BTreeMap<u64, u64>], known: Known<'_>) -> Result<Checkpoint, InterchangeError> {
    let frequency = Frequency::from(known.frequency_hz);
    if let Some(host) = known.host.as_ref().filter(|host| host.frequency != frequency) {
        let (cntfrq_hz, host_hz) = (known.frequency_hz.get(), host.frequency.hz());
        return Err(InterchangeError::TwoFrequencies { cntfrq_hz, host_hz });
    }
    if lists.is_empty() {
        return Err(InterchangeError::NoVcpus);
    }
    same_frequency(lists, known.frequency_hz)?;
    let by_kvm;
    let lists = match known.ids {
        Some(Ids::Arm) => {
            by_kvm = lists.iter().map(by_kvms_ids).collect::<Vec<_>>();
            &by_kvm
        }
        Some(Ids::Kvm) => lists,
        None => {
            certainly_kvms(lists)?;
            lists
        }
    };
    let vcpus = u16::try_from(lists.len()).ok().filter(|vcpus| *vcpus <= MAX_VM_VCPUS);
    let vcpus = vcpus.ok_or_else(|| BuildError::ManyVcpus { name: known.name.as_str().into(), vcpus: lists.len() })?;
    let mut registers = Vec::new();
    let mut timers = Vec::new();
    for timer in Timer::ALL {
        if timer == Timer::Vtimer || parts(timer).into_iter().any(|id| has(lists, id)) {
            for role in [Role::Cval(timer), Role::Ctl(timer)] {
                registers.push((RegId(one_reg_id(role)), column(lists, one_reg_id(role))?));
            }
            timers.push(timer);
        }
    }
    let cntvoff = one_reg_id(Role::Cntvoff);
    let nested = has(lists, cntvoff) || timers.contains(&Timer::Hvtimer) || timers.contains(&Timer::Hptimer);
    let cntvoff = if nested { Some(column(lists, cntvoff)?) } else { None };
    // KVM's offsets are from CNTVCT_EL0, which no time namespace shifts.
    let own = |host: &Stamp| host.count.own(NamespaceTicks::NONE);
    let host_count = |why| known.host.as_ref().map(own).ok_or(InterchangeError::HostUnknown { why });

    let (virt, phys) = if let Some(offset) = known.counter_offset {
        let count = host_count("the counters follow from the VM's offset by it")?.guest(offset);
        if !nested {
            one_offset(lists, frequency, known.width_ticks)?;
        }
        (Readings::exact(count), Readings::exact(count))
    } else {
        let virt = counts(lists, View::Virtual, known.cntvct);
        let phys = || counts(lists, View::Physical, known.cntpct);
        if let Some(cntvoff) = &cntvoff {
            // One counter for both. Where the lists have none, one of the two is enough; a given virtual one is vCPU 0's.
            let [listed_virt, listed_phys] = [View::Virtual, View::Physical].map(|view| has(lists, count_reg(view)));
            let mut both = Vec::new();
            if listed_virt || known.cntvct.is_some() || known.cntpct.is_none() {
                let read = virt?.into_iter().zip(cntvoff).map(|(count, offset)| count.after(*offset));
                both.extend(read.take(if listed_virt { lists.len() } else { 1 }));
            }
            if listed_phys || known.cntpct.is_some() || known.cntvct.is_none() {
                both.extend(phys()?);
            }
            (Readings::of(&both), Readings::of(&both))
        } else if timers.contains(&Timer::Ptimer) || known.cntpct.is_some() {
            (Readings::of(&virt?), Readings::of(&phys()?))
        } else {
            let why = "the lists have no physical counter, which makes it the host's (Linux before 6.4)";
            (Readings::of(&virt?), Readings::exact(host_count(why)?.guest(Offset(0))))
        }
    };
    registers.extend(cntvoff.map(|cntvoff| (RegId(one_reg_id(Role::Cntvoff)), cntvoff)));
    registers.extend(others(lists)?);
    let time = GuestTime {
        opted_in: known.counter_offset.is_some(),
        virtual_width_ticks: virt.spread.saturating_add(known.width_ticks),
        physical_displacement_ticks: phys.latest.since(virt.latest),
        physical_width_ticks: phys.spread.saturating_add(known.width_ticks),
        reading: known.reading,
        ..GuestTime::opted_in(vcpus, known.frequency_hz, virt.latest)
    };
    let stamp = known.host.unwrap_or_else(|| Stamp::of_unknown_host(frequency));
    Ok(Checkpoint::of_one(stamp, known.name, &time, &registers, &[])?)
}

/// Returns whether the guest's physical counter isn't that of its host, so that it has an offset already; `None` where
/// nobody knows the host's count.
///
/// KVM's own offset of the physical counter is 0, and that of a VM which has opted in, or has EL2, is the virtual
/// counter's too.
#[must_use]
pub fn has_physical_offset(saved: &SavedVm<'_>) -> Option<bool> {
    let time = saved.time();
    if time.opted_in || saved.is_nested() {
        return Some(true);
    }
    if saved.checkpoint().stamp().is_of_unknown_host() {
        return None;
    }
    let (_, offsets) = saved.instant();
    Some(offsets.phys.0.cast_signed().unsigned_abs() > time.physical_width_ticks)
}

/// The registers of a VM as one list a vCPU, in an order in which they can be set: CVAL before CTL, and the counts last,
/// the physical one after the virtual. Under KVM that order sets both counters of a guest with EL2 too, which that of
/// KVM's own list doesn't, since each count moves both and none looks at CNTVOFF_EL2.
///
/// The counts are those of the checkpoint's instant. A guest without the physical timer's registers has no count for it
/// either. With `physical` false the physical count is left out: setting it gives the VM an offset, by which CNTPCT_EL0
/// traps from then on where the CPU has no CNTPOFF_EL2.
#[must_use]
pub fn to_one_regs(saved: &SavedVm<'_>, physical: bool) -> Vec<Vec<(u64, u64)>> {
    let time = saved.time();
    let cntvoff = saved.register(Held::Cntvoff);
    let physical = physical && saved.register(Held::Cval(Timer::Ptimer)).is_some();
    let list = |vcpu: usize| {
        let mut list = Vec::new();
        let cntvoff = cntvoff.as_ref().and_then(|column| column.get(vcpu));
        list.extend(cntvoff.map(|cntvoff| (one_reg_id(Role::Cntvoff), cntvoff)));
        for SavedTimer { timer, cval, ctl } in saved.timers() {
            list.extend(cval.get(vcpu).map(|cval| (one_reg_id(Role::Cval(timer)), cval)));
            list.extend(ctl.get(vcpu).map(|ctl| (one_reg_id(Role::Ctl(timer)), ctl)));
        }
        list.extend(saved.others().filter_map(|(id, values)| Some((id, values.get(vcpu)?))));
        // As KVM_GET_ONE_REG of TIMER_CNT has it: less CNTVOFF_EL2.
        list.push((count_reg(View::Virtual), time.timeline.0.wrapping_sub(cntvoff.unwrap_or(0))));
        if physical {
            list.push((count_reg(View::Physical), time.physical().0));
        }
        list
    };
    (0..saved.vcpus()).map(list).collect()
}

/// The ids that speak for a timer.
fn parts(timer: Timer) -> Vec<u64> {
    let mut parts = Vec::from([one_reg_id(Role::Cval(timer)), one_reg_id(Role::Ctl(timer))]);
    if timer == Timer::Ptimer {
        parts.push(count_reg(View::Physical));
    }
    parts
}

fn has(lists: &[BTreeMap<u64, u64>], id: u64) -> bool {
    lists.iter().any(|list| list.contains_key(&id))
}

fn column(lists: &[BTreeMap<u64, u64>], id: u64) -> Result<Vec<u64>, InterchangeError> {
    let value = |(vcpu, list): (usize, &BTreeMap<u64, u64>)| {
        list.get(&id).copied().ok_or(InterchangeError::Missing { vcpu, id })
    };
    lists.iter().enumerate().map(value).collect()
}

/// The lists' counts of one view; the given count for each, where the lists have none.
fn counts(
    lists: &[BTreeMap<u64, u64>],
    view: View,
    given: Option<GuestCount>,
) -> Result<Vec<GuestCount>, InterchangeError> {
    let id = count_reg(view);
    match given {
        Some(_) if has(lists, id) => {
            let name = Sysreg::with_one_reg_id(id).map_or("the counter", |row| row.name);
            Err(InterchangeError::CountedTwice { name })
        }
        Some(count) => Ok(alloc::vec![count; lists.len()]),
        None => Ok(column(lists, id)?.into_iter().map(GuestCount).collect()),
    }
}

/// The id by Arm's encoding of the frequency, which KVM has no register for.
fn cntfrq_id() -> Option<u64> {
    Sysreg::of(Role::Frequency).map(|row| row.encoding.one_reg_id())
}

/// Checks that no list has another frequency than the guest's. CNTFRQ_EL0 is of 32 bits.
fn same_frequency(lists: &[BTreeMap<u64, u64>], given: NonZeroU32) -> Result<(), InterchangeError> {
    let Some(id) = cntfrq_id() else { return Ok(()) };
    for (vcpu, list) in lists.iter().enumerate() {
        match list.get(&id) {
            Some(&listed_hz) if listed_hz != u64::from(given.get()) => {
                return Err(InterchangeError::OtherFrequency { vcpu, listed_hz, cntfrq_hz: given.get() });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that nothing shows a list to be of another kind than KVM's.
fn certainly_kvms(lists: &[BTreeMap<u64, u64>]) -> Result<(), InterchangeError> {
    // KVM's id of the counter is the encoding of the compare value, which every list of Arm's encodings has.
    let (count, cval) = (count_reg(View::Virtual), one_reg_id(Role::Cval(Timer::Vtimer)));
    for (vcpu, list) in lists.iter().enumerate() {
        if list.is_empty() {
            return Err(InterchangeError::NoTimers { vcpu });
        }
        let why = if cntfrq_id().is_some_and(|id| list.contains_key(&id)) {
            "CNTFRQ_EL0, which KVM doesn't list"
        } else if list.contains_key(&count) && !has(lists, cval) {
            "one of the two ids that KVM exchanges without the other"
        } else {
            continue;
        };
        return Err(InterchangeError::NotKvms { vcpu, why });
    }
    Ok(())
}

/// The list with KVM's ids instead of Arm's encodings.
///
/// Other views of registers that KVM has (TVAL, the self-synchronised counters, the aliases of EL2) are left out, and a
/// CNTPOFF_EL2 that is zero.
fn by_kvms_ids(list: &BTreeMap<u64, u64>) -> BTreeMap<u64, u64> {
    let named = |(&id, &value): (&u64, &u64)| {
        let Some(row) = Encoding::from_one_reg_id(id).and_then(Sysreg::at) else { return Some((id, value)) };
        match row.one_reg_id() {
            Some(kvms) => Some((kvms, value)),
            None => (row.role == Role::Cntpoff && value != 0).then_some((id, value)),
        }
    };
    list.iter().filter_map(named).collect()
}

/// Checks that lists of a VM with one offset show no two: where they have both counts, each vCPU's are as near to each
/// other as the reads were.
fn one_offset(lists: &[BTreeMap<u64, u64>], frequency: Frequency, width_ticks: u64) -> Result<(), InterchangeError> {
    let counts = |view| counts(lists, view, None);
    let (Ok(virt), Ok(phys)) = (counts(View::Virtual), counts(View::Physical)) else { return Ok(()) };
    let spreads = Readings::of(&virt).spread.saturating_add(Readings::of(&phys).spread);
    // A list's two counts are read one after the other: within a second, whatever comes between.
    let width = spreads.saturating_add(width_ticks).saturating_add(frequency.hz());
    for (vcpu, (virt, phys)) in virt.into_iter().zip(phys).enumerate() {
        if phys.since(virt).cast_signed().unsigned_abs() > width {
            return Err(InterchangeError::TwoOffsets { vcpu, cntvct: virt.0, cntpct: phys.0, width });
        }
    }
    Ok(())
}

/// Timer registers that aren't in the table: carried, as from any VM.
fn others(lists: &[BTreeMap<u64, u64>]) -> Result<Vec<(RegId, Vec<u64>)>, InterchangeError> {
    let ids: BTreeSet<u64> =
        lists.iter().flat_map(BTreeMap::keys).copied().filter(|&id| is_unknown_timers(id)).collect();
    if ids.len() > MAX_OTHER_REGS {
        return Err(InterchangeError::TooManyUnknown { found: ids.len() });
    }
    ids.into_iter().map(|id| Ok((RegId(id), column(lists, id)?))).collect()
}

/// One counter, read several times.
#[derive(Clone, Copy)]
struct Readings {
    latest: GuestCount,
    /// The ticks from the earliest reading to the latest.
    spread: u64,
}

impl Readings {
    const fn exact(count: GuestCount) -> Self {
        Self { latest: count, spread: 0 }
    }

    /// A counter may wrap between two reads: so they are compared by their distance from the first, either way.
    fn of(counts: &[GuestCount]) -> Self {
        let first = counts.first().copied().unwrap_or_default();
        let (mut ahead, mut behind) = (0_i64, 0_i64);
        for count in counts {
            let distance = count.since(first).cast_signed();
            ahead = ahead.max(distance);
            behind = behind.min(distance);
        }
        Self { latest: first.after(ahead.unsigned_abs()), spread: ahead.unsigned_abs() + behind.unsigned_abs() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_of_several_reads() {
        for (counts, latest, spread) in [
            (&[5][..], 5, 0),
            (&[5, 9, 7], 9, 4),
            (&[9, 5], 9, 4),
            (&[u64::MAX, 1, u64::MAX - 2], 1, 4),
            (&[1, u64::MAX], 1, 2),
            // The farthest apart that they can be: at 2^63 they can't be told from each other.
            (&[0, 1 << 63], 0, 1 << 63),
        ] {
            let counts: Vec<_> = counts.iter().copied().map(GuestCount).collect();
            let readings = Readings::of(&counts);
            assert_eq!((readings.latest.0, readings.spread), (latest, spread), "{counts:?}");
        }
    }
}
