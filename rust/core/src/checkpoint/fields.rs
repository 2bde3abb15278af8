//! The one table of a checkpoint's fields.
//!
//! Reader, writer, keys, plain values, limits and the order of the bytes follow from it. A field that is added is a row
//! here, and a field of [`GuestTime`].

use crate::checkpoint::backlog::Backlog;
use crate::checkpoint::guest_time::{GuestTime, Interrupts, MAX_VM_VCPUS, Reading};
use crate::time::{GuestCount, StampCount};
use core::num::NonZeroU32;
use core::ops::RangeInclusive;

/// A number of a checkpoint: its key, and the values that are allowed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Field {
    /// Key, in the file and of plain values.
    pub key: &'static str,
    /// Values that are allowed.
    pub values: RangeInclusive<u64>,
    /// True if the number stands for a truth value: 0 or 1.
    pub flag: bool,
    /// True if the file leaves the column out where it is 0 in every row.
    pub often_0: bool,
}

/// A number that each VM has.
#[derive(Debug)]
pub struct VmField {
    /// Key and values.
    pub field: Field,
    pub(crate) get: fn(&GuestTime) -> u64,
    pub(crate) set: fn(&mut GuestTime, u64),
}

/// Numbers of a fact, in the order of its parts; the rest is 0.
pub(crate) type Parts = [u64; 4];

/// A fact that is known of some VMs, and not of others.
#[derive(Debug)]
pub struct VmFact {
    /// Key, in the file and of plain values.
    pub key: &'static str,
    /// Numbers that it consists of.
    pub parts: &'static [Field],
    pub(crate) get: fn(&GuestTime) -> Option<Parts>,
    pub(crate) set: fn(&mut GuestTime, Parts),
}

/// Entry of a group of VMs.
#[derive(Debug)]
pub enum Entry {
    /// Names of the VMs, one a line.
    Names,
    /// A column that every VM has.
    Vm(VmField),
    /// A fact that is known of some VMs.
    Fact(VmFact),
    /// Addresses of the vCPUs' stolen-time records, where they are known.
    StolenTime,
    /// Registers of the vCPUs, by their ids.
    Registers,
}

/// Number of columns that every VM has.
pub(crate) const VM_FIELDS: usize = 7;

/// Number of facts.
pub(crate) const VM_FACTS: usize = 5;

/// Place of the number of vCPUs among the columns of VMs.
pub(crate) const VCPUS: usize = 0;

/// Place of the timeline among the columns of VMs.
pub(crate) const TIMELINE: usize = 2;

/// Parts of a fact that is one address.
pub const ADDRESS: &[Field] = &[any("address")];

/// The entries of a group, in the order of their keys: deterministic CBOR sorts them (RFC 8949, 4.2.1), so that shorter
/// text comes first.
pub static GROUP: [Entry; 3 + VM_FIELDS + VM_FACTS] = [
    Entry::Names,
    Entry::Vm(VmField {
        field: Field { key: "vcpus", values: 1..=MAX_VM_VCPUS as u64, flag: false, often_0: false },
        get: |time| time.vcpus.into(),
        set: |time, vcpus| time.vcpus = u16::try_from(vcpus).unwrap_or(MAX_VM_VCPUS),
    }),
    Entry::Fact(VmFact {
        key: "backlog",
        parts: &[above_0("step_ns"), above_0("interval_ns"), above_0("remaining_ticks")],
        get: |time| {
            let Backlog { step_ns, interval_ns, remaining_ticks } = time.backlog?;
            Some([step_ns.get(), interval_ns.get(), remaining_ticks.get(), 0])
        },
        set: |time, [step_ns, interval_ns, remaining_ticks, _]| {
            time.backlog = Backlog::new(remaining_ticks, step_ns, interval_ns);
        },
    }),
    Entry::Fact(VmFact {
        key: "reading",
        parts: &[any("count"), any("width_ns"), any("realtime_ns")],
        get: |time| time.reading.map(|Reading { count, width_ns, realtime_ns }| [count.0, width_ns, realtime_ns, 0]),
        set: |time, [count, width_ns, realtime_ns, _]| {
            time.reading = Some(Reading { count: GuestCount(count), width_ns, realtime_ns });
        },
    }),
    Entry::Fact(VmFact {
        key: "vmclock",
        parts: ADDRESS,
        get: |time| time.vmclock_address.map(|address| [address, 0, 0, 0]),
        set: |time, [address, ..]| time.vmclock_address = Some(address),
    }),
    Entry::Vm(VmField {
        field: Field { key: "opted_in", values: 0..=1, flag: true, often_0: false },
        get: |time| time.opted_in.into(),
        set: |time, opted_in| time.opted_in = opted_in != 0,
    }),
    Entry::Vm(VmField {
        field: any("timeline"),
        get: |time| time.timeline.0,
        set: |time, timeline| time.timeline = GuestCount(timeline),
    }),
    Entry::Registers,
    Entry::Fact(VmFact {
        key: "interrupts",
        parts: &[interrupt("ptimer"), interrupt("vtimer"), interrupt("hptimer"), interrupt("hvtimer")],
        get: |time| {
            let Interrupts([vtimer, ptimer, hvtimer, hptimer]) = time.interrupts?;
            Some([ptimer, vtimer, hptimer, hvtimer].map(u64::from))
        },
        set: |time, [ptimer, vtimer, hptimer, hvtimer]| {
            let id = |id| u32::try_from(id).unwrap_or_default();
            time.interrupts = Some(Interrupts([vtimer, ptimer, hvtimer, hptimer].map(id)));
        },
    }),
    Entry::Fact(VmFact {
        key: "stopped_at",
        parts: &[any("count")],
        get: |time| time.stopped_at.map(|StampCount(count)| [count, 0, 0, 0]),
        set: |time, [count, ..]| time.stopped_at = Some(StampCount(count)),
    }),
    Entry::StolenTime,
    Entry::Vm(VmField {
        field: Field { key: "frequency_hz", values: 1..=u32::MAX as u64, flag: false, often_0: false },
        get: |time| time.frequency_hz.get().into(),
        set: |time, hz| {
            time.frequency_hz = u32::try_from(hz).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        },
    }),
    Entry::Vm(VmField {
        field: often_0("virtual_width_ticks"),
        get: |time| time.virtual_width_ticks,
        set: |time, ticks| time.virtual_width_ticks = ticks,
    }),
    Entry::Vm(VmField {
        field: often_0("physical_width_ticks"),
        get: |time| time.physical_width_ticks,
        set: |time, ticks| time.physical_width_ticks = ticks,
    }),
    Entry::Vm(VmField {
        field: often_0("physical_displacement_ticks"),
        get: |time| time.physical_displacement_ticks,
        set: |time, ticks| time.physical_displacement_ticks = ticks,
    }),
];

const fn any(key: &'static str) -> Field {
    Field { key, values: 0..=u64::MAX, flag: false, often_0: false }
}

const fn above_0(key: &'static str) -> Field {
    Field { key, values: 1..=u64::MAX, flag: false, often_0: false }
}

const fn often_0(key: &'static str) -> Field {
    Field { key, values: 0..=u64::MAX, flag: false, often_0: true }
}

const fn interrupt(key: &'static str) -> Field {
    Field { key, values: 0..=u32::MAX as u64, flag: false, often_0: true }
}

impl Entry {
    /// Key of the entry, in the file and of plain values.
    #[must_use]
    pub const fn key(&self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Vm(VmField { field: Field { key, .. }, .. }) | Self::Fact(VmFact { key, .. }) => key,
            Self::StolenTime => "stolen_time",
            Self::Registers => "registers",
        }
    }
}

/// The columns that every VM has, in their order.
pub(crate) fn vm_fields() -> impl Iterator<Item = &'static VmField> {
    GROUP.iter().filter_map(|entry| if let Entry::Vm(field) = entry { Some(field) } else { None })
}

/// The facts that are known of some VMs, in their order.
pub(crate) fn vm_facts() -> impl Iterator<Item = &'static VmFact> {
    GROUP.iter().filter_map(|entry| if let Entry::Fact(fact) = entry { Some(fact) } else { None })
}
