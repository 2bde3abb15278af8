//! The guest time of any number of VMs at one instant as plain data.

use crate::arch::arm64::{Offsets, Timer};
use crate::checkpoint::column::{Column, Iter};
use crate::checkpoint::group::{Group, Held};
use crate::checkpoint::guest_time::GuestTime;
use crate::time::{GuestCount, HostCount, NamespaceTicks, Offset, Ratio, Stamp, StampCount};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// The most vCPUs of a checkpoint. It bounds what a reader unpacks of a file.
pub const MAX_VCPUS: usize = 1 << 18;

/// The most groups of a checkpoint. It bounds what a decoded checkpoint's bookkeeping adds to the bytes themselves.
pub const MAX_GROUPS: usize = 64;

/// The guest time of any number of VMs at one instant.
///
/// A VM's index is its place in the groups, one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    pub(crate) stamp: Stamp,
    /// In the order of the ids of their registers, each list once.
    pub(crate) groups: Vec<Group>,
    pub(crate) unknown: Vec<UnknownKey>,
}

/// A key of a file that this version doesn't know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnknownKey {
    /// The key.
    pub key: String,
    /// CBOR of the value, as it stood.
    pub value: Vec<u8>,
}

/// Something in a checkpoint that this version doesn't know.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unknown {
    /// A key of the file.
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

/// Error of asking a checkpoint of none or many VMs for the one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the checkpoint is of {vms} VMs: take one of them, by its name or its index")]
pub struct NotOneVm {
    /// Number of VMs.
    pub vms: usize,
}

/// Reason why groups don't make a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Unfit {
    Groups,
    Vcpus { vcpus: usize },
    Order,
    SameName { name: String },
}

impl Checkpoint {
    /// Puts groups together that are in the order of their registers.
    pub(crate) fn assembled(stamp: Stamp, groups: Vec<Group>, unknown: Vec<UnknownKey>) -> Result<Self, Unfit> {
        if groups.len() > MAX_GROUPS {
            return Err(Unfit::Groups);
        }
        if !groups.is_sorted_by(|one, next| one.kind().lt(next.kind())) {
            return Err(Unfit::Order);
        }
        let vcpus = groups.iter().map(Group::vcpus).sum();
        if vcpus > MAX_VCPUS {
            return Err(Unfit::Vcpus { vcpus });
        }
        for (place, group) in groups.iter().enumerate() {
            if let Some(name) = groups[..place].iter().find_map(|other| other.names.meet(&group.names)) {
                return Err(Unfit::SameName { name: name.into() });
            }
        }
        Ok(Self { stamp, groups, unknown })
    }

    /// The instant, by the host's counter and wall clock.
    #[must_use]
    pub const fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// VMs with the same registers.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Keys of the file that this version doesn't know.
    #[must_use]
    pub fn unknown(&self) -> &[UnknownKey] {
        &self.unknown
    }

    /// Number of VMs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.iter().map(Group::len).sum()
    }

    /// Returns whether there is no VM.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Number of all VMs' vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.groups.iter().map(Group::vcpus).sum()
    }

    /// Returns the count of the counter at the guest's frequency when the last vCPU of a VM of this guest time left the
    /// guest.
    fn stop(&self, time: &GuestTime) -> Option<StampCount> {
        let ratio = || Ratio::new(self.stamp.frequency, time.frequency());
        time.stopped_at.map(|stopped| ratio().stamp(Stamp { count: stopped, ..self.stamp }).count)
    }

    /// Ticks of the guest's counters from the stop of the last vCPU of a VM of this guest time to the instant; 0 where the
    /// stop isn't known.
    pub(crate) fn hidden_ticks(&self, time: &GuestTime) -> u64 {
        let Some(stopped) = self.stop(time) else { return 0 };
        let ratio = Ratio::new(self.stamp.frequency, time.frequency());
        let count = if ratio.is_one() { self.stamp.count } else { ratio.stamp(self.stamp).count };
        count.since(stopped)
    }

    /// The VMs in their order.
    pub fn vms(&self) -> impl Iterator<Item = SavedVm<'_>> {
        self.groups.iter().enumerate().flat_map(move |(number, group)| {
            let mut end = 0;
            group.names.iter().enumerate().map(move |(vm, name)| {
                let rows = end..end + group.vcpus_of(vm);
                end = rows.end;
                SavedVm { checkpoint: self, group, number, vm, name, rows }
            })
        })
    }

    /// Names of the VMs, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().flat_map(|group| group.names.iter())
    }

    /// The VM of this index; `None` past the end.
    #[must_use]
    pub fn vm(&self, index: usize) -> Option<SavedVm<'_>> {
        let mut vm = index;
        for (number, group) in self.groups.iter().enumerate() {
            if vm < group.len() {
                let (name, rows) = (group.names.get(vm)?, group.rows(vm));
                return Some(SavedVm { checkpoint: self, group, number, vm, name, rows });
            }
            vm -= group.len();
        }
        None
    }

    /// The one VM of a checkpoint of one.
    pub fn only(&self) -> Result<SavedVm<'_>, NotOneVm> {
        match self.len() {
            1 => self.vm(0).ok_or(NotOneVm { vms: 0 }),
            vms => Err(NotOneVm { vms }),
        }
    }

    /// Returns the index of the VM of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        let mut before = 0;
        for group in &self.groups {
            if let Some(vm) = group.names.find(name) {
                return Some(before + vm);
            }
            before += group.len();
        }
        None
    }

    /// Returns the checkpoint of the VMs whose index `keep` accepts, at the same instant.
    ///
    /// Keys of the file that this version doesn't know stay with the whole: a part of fewer VMs is without them.
    #[must_use]
    pub fn part(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut index = 0;
        let mut groups = Vec::new();
        let mut whole = true;
        for group in &self.groups {
            let kept: Vec<usize> = (0..group.len()).filter(|vm| keep(index + vm)).collect();
            index += group.len();
            whole &= kept.len() == group.len();
            if kept.len() == group.len() {
                groups.push(group.clone());
            } else if !kept.is_empty() {
                groups.push(group.part(&kept));
            }
        }
        let unknown = if whole { self.unknown.clone() } else { Vec::new() };
        Self { stamp: self.stamp, groups, unknown }
    }
}

/// One VM of a checkpoint.
#[derive(Clone, Debug)]
pub struct SavedVm<'a> {
    checkpoint: &'a Checkpoint,
    group: &'a Group,
    number: usize,
    vm: usize,
    name: &'a str,
    rows: Range<usize>,
}

impl<'a> SavedVm<'a> {
    /// Name of the VM; empty if nobody named it.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.name
    }

    /// Returns the checkpoint of this VM alone, at the same instant.
    #[must_use]
    pub fn alone(&self) -> Checkpoint {
        if self.checkpoint.len() == 1 {
            return self.checkpoint.clone();
        }
        let group = self.group.one(self.vm, self.name, self.rows.clone());
        Checkpoint { stamp: self.checkpoint.stamp, groups: alloc::vec![group], unknown: Vec::new() }
    }

    /// Returns the guest time, apart from the registers.
    #[must_use]
    pub fn time(&self) -> GuestTime {
        self.group.time(self.vm)
    }

    /// The instant, by the counter at the guest's frequency.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        let stamp = self.checkpoint.stamp;
        let ratio = Ratio::new(stamp.frequency, self.time().frequency());
        if ratio.is_one() { stamp } else { ratio.stamp(stamp) }
    }

    /// Ticks of the guest's counters from the stop of the last vCPU to the instant; 0 where the stop isn't known.
    #[must_use]
    pub fn hidden_ticks(&self) -> u64 {
        self.checkpoint.hidden_ticks(&self.time())
    }

    /// The checkpoint.
    #[must_use]
    pub const fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The VM's group, and the group's number.
    #[must_use]
    pub const fn group(&self) -> (&'a Group, usize) {
        (self.group, self.number)
    }

    /// Rows of the vCPUs in the group's columns.
    #[must_use]
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.rows.len()
    }

    /// The registers of the vCPUs.
    #[must_use]
    pub fn registers(&self) -> SavedRows<'a> {
        SavedRows { group: self.group, rows: self.rows.clone() }
    }

    /// The values of a register, one a vCPU; `None` if the guest doesn't have it.
    #[must_use]
    pub fn register(&self, held: Held) -> Option<Values<'a>> {
        self.registers().register(held)
    }

    /// Returns whether the guest has EL2.
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.group.register(Held::Cntvoff).is_some()
    }

    /// The timers that the guest has, in their order.
    pub fn timers(&self) -> impl Iterator<Item = SavedTimer<'a>> + use<'a> {
        self.registers().timers()
    }

    /// The registers that this version doesn't know, with their ids.
    pub fn others(&self) -> impl Iterator<Item = (u64, Values<'a>)> + use<'a> {
        self.registers().others()
    }

    /// Keys and registers that this version doesn't know.
    pub fn unknowns(&self) -> impl Iterator<Item = Unknown> + use<'a> {
        let keys = self.checkpoint.unknown.iter().map(|unknown| Unknown::Key(unknown.key.clone()));
        keys.chain(self.others().map(|(id, _)| Unknown::Register(id)))
    }

    /// The guest-physical address of a vCPU's stolen-time record, where the VMM named it.
    #[must_use]
    pub fn stolen_time(&self, vcpu: usize) -> Option<u64> {
        let row = self.rows.clone().nth(vcpu)?;
        self.group.stolen_time.as_ref()?.get(row).map(|[address, ..]| address)
    }

    /// The checkpoint's count and the offsets from it, of the counter at the guest's frequency, as a process in the
    /// initial time namespace has them. The guest's counters are the same in every namespace.
    #[must_use]
    pub fn instant(&self) -> (HostCount, Offsets) {
        let (count, time) = (self.stamp().count.own(NamespaceTicks::NONE), self.time());
        (count, Offsets { virt: Offset::between(count, time.timeline), phys: Offset::between(count, time.physical()) })
    }
}

/// Registers of some rows of a group: those of a VM's vCPUs, or of VMs that follow each other.
#[derive(Clone, Debug)]
pub struct SavedRows<'a> {
    group: &'a Group,
    rows: Range<usize>,
}

impl<'a> SavedRows<'a> {
    /// Returns the registers of these rows of a group.
    pub(crate) const fn new(group: &'a Group, rows: Range<usize>) -> Self {
        Self { group, rows }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns false: a VM has one vCPU at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The values of a register; `None` if the guests don't have it.
    #[must_use]
    pub fn register(&self, held: Held) -> Option<Values<'a>> {
        self.group.register(held).map(|column| Values { column, rows: self.rows.clone() })
    }

    /// The timers that the guests have, in their order.
    pub fn timers(&self) -> impl Iterator<Item = SavedTimer<'a>> + use<'a> {
        let rows = self.clone();
        Timer::ALL.into_iter().filter_map(move |timer| {
            Some(SavedTimer { timer, cval: rows.register(Held::Cval(timer))?, ctl: rows.register(Held::Ctl(timer))? })
        })
    }

    /// The registers that this version doesn't know, with their ids.
    pub fn others(&self) -> impl Iterator<Item = (u64, Values<'a>)> + use<'a> {
        let rows = self.rows.clone();
        let others = self.group.registers.iter().filter(|column| column.held() == Some(Held::Unknown));
        others.map(move |column| (column.id().0, Values { column: column.values(), rows: rows.clone() }))
    }
}

/// One timer of a VM: its registers, one value a vCPU.
#[derive(Clone, Debug)]
pub struct SavedTimer<'a> {
    /// The timer.
    pub timer: Timer,
    /// The compare values.
    pub cval: Values<'a>,
    /// The controls, without ISTATUS.
    pub ctl: Values<'a>,
}

/// Values of a register, one a vCPU of a VM.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    column: &'a Column,
    rows: Range<usize>,
}

impl Values<'_> {
    /// Number of vCPUs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns false: a VM has one vCPU at least.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The value of a vCPU; `None` past the last.
    #[must_use]
    pub fn get(&self, vcpu: usize) -> Option<u64> {
        let row = self.rows.clone().nth(vcpu)?;
        self.column.get(row)
    }

    /// Returns the values of some of the vCPUs.
    #[must_use]
    pub fn part(&self, vcpus: Range<usize>) -> Self {
        Self { column: self.column, rows: self.rows.start + vcpus.start..self.rows.start + vcpus.end }
    }

    /// The column, and the vCPUs' rows in it.
    #[must_use]
    pub const fn column(&self) -> (&Column, &Range<usize>) {
        (self.column, &self.rows)
    }

    /// The values in the order of the vCPUs.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        self.column.iter(self.rows.clone())
    }
}

impl<'a> IntoIterator for &'a Values<'_> {
    type Item = u64;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl SavedVm<'_> {
    /// The virtual counter at the instant.
    #[must_use]
    pub fn cntvct(&self) -> GuestCount {
        self.time().timeline
    }

    /// The physical counter at the instant.
    #[must_use]
    pub fn cntpct(&self) -> GuestCount {
        self.time().physical()
    }

    /// The count of the counter at the guest's frequency when the last vCPU left the guest, where the VMM knew it.
    #[must_use]
    pub fn stopped_at(&self) -> Option<StampCount> {
        self.checkpoint.stop(&self.time())
    }
}
