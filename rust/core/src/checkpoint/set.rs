//! The guest time of many VMs at one instant as plain data: columns, a row each VM or vCPU.

use crate::checkpoint::backlog::Backlog;
use crate::checkpoint::columns::{Column, CtlColumn, TimerColumns, UnknownKey, validate_frequency, validate_timers};
use crate::checkpoint::vm::Checkpoint;
use crate::time::{Frequency, GuestCount, HostCount, Ratio, Stamp};
use alloc::vec::Vec;
use core::ops::Range;

/// The most vCPUs of a VM in a set: what KVM allows an arm64 VM (`KVM_MAX_VCPUS`).
pub const MAX_VCPUS: u16 = 512;

/// The most groups of a set. It bounds what a decoded set's bookkeeping adds to the bytes themselves.
pub const MAX_GROUPS: usize = 64;

/// The guest time of many VMs at one instant.
///
/// A VM's index is its place in the groups, one after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointSet {
    /// The one instant, by the counter that all VMs are over and the wall clock.
    pub host: Stamp,
    /// That counter's count when the last vCPU of all left its guest, from a VMM that knows it.
    pub stopped_at: Option<u64>,
    /// VMs that are alike: in the order of frequency, timers and CNTVOFF_EL2, each combination once.
    pub groups: Vec<VmGroup>,
    /// Keys that this version doesn't know, byte for byte, to be written again.
    pub unknown: Vec<UnknownKey>,
}

/// VMs of one frequency and with the same timers. They are in the order of their names, and so are their vCPUs' rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VmGroup {
    /// Their CNTFRQ_EL0, in Hz; never 0. Of another frequency than the host's counter, theirs is the one that a
    /// [`Ratio`] makes of it.
    pub cntfrq_hz: u32,
    /// Who each VM is, ascending: numbers that the set's maker chose, each once in the whole set.
    pub names: Vec<u64>,
    /// How many vCPUs each VM has: 1 to [`MAX_VCPUS`].
    pub vcpus: Column<u16>,
    /// Each VM's virtual counter at the instant, exactly. For nested vCPUs CNTVOFF_EL2 has been added back.
    pub cntvct: Vec<u64>,
    /// Each VM's physical counter at the instant, exactly; `None` where it is as the virtual one for all.
    pub cntpct: Option<Vec<u64>>,
    /// Whether each VM owned its offset.
    pub opted_in: Column<bool>,
    /// What is owed, by the VM's place in the group: ascending, without those that are owed nothing.
    pub backlogs: Vec<(usize, Backlog)>,
    /// CNTVOFF_EL2, one a vCPU; `None` for guests without EL2.
    pub cntvoff: Option<Column<u64>>,
    /// The timers, in the order of [`Timer::ALL`](crate::arch::arm64::Timer::ALL), without those that the guests don't
    /// have; a row each vCPU.
    pub timers: Vec<TimerColumns>,
}

impl CheckpointSet {
    /// How many VMs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.iter().map(VmGroup::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// How many vCPUs they have together.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.groups.iter().map(VmGroup::total_vcpus).sum()
    }

    /// The index of the VM of that name.
    #[must_use]
    pub fn find(&self, name: u64) -> Option<usize> {
        let mut before = 0;
        for group in &self.groups {
            if let Ok(vm) = group.names.binary_search(&name) {
                return Some(before + vm);
            }
            before += group.len();
        }
        None
    }

    /// One VM's checkpoint, equal to what the VM's own would be at that instant; `None` past the end.
    ///
    /// For a VM of another frequency the instant is that of its own counter, so that a restore over a
    /// [`Ratio`] compares like with like. Keys that aren't known
    /// belong to the set, and stay there. It takes time by the place in the group where VMs differ in their numbers of
    /// vCPUs.
    ///
    /// # Panics
    ///
    /// Perhaps, where the set isn't [valid](Self::validate).
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Checkpoint> {
        let mut vm = index;
        for group in &self.groups {
            if vm < group.len() {
                return Some(group.checkpoint(vm, &self.host, self.stopped_at));
            }
            vm -= group.len();
        }
        None
    }

    /// Whether its parts fit together, as [`codec`](crate::checkpoint::codec) wants them; what is wrong, if
    /// they don't.
    ///
    /// `unknown` isn't looked at: it is whatever [`wire::decode_set`](crate::checkpoint::codec::decode_set) found.
    pub fn validate(&self) -> Result<(), &'static str> {
        if self.groups.len() > MAX_GROUPS {
            return Err("there are too many groups");
        }
        self.groups.iter().try_for_each(VmGroup::validate)?;
        if !self.groups.is_sorted_by(|one, next| one.kind() < next.kind()) {
            return Err("groups aren't in the order of frequency, timers and cntvoff, each once");
        }
        for (place, group) in self.groups.iter().enumerate() {
            if self.groups[..place].iter().any(|other| meet(&group.names, &other.names)) {
                return Err("two groups have a VM of the same name");
            }
        }
        Ok(())
    }
}

impl VmGroup {
    /// How many VMs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none: then it is no group of a set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// How many vCPUs they have together: the rows of the columns of vCPUs.
    #[must_use]
    pub fn total_vcpus(&self) -> usize {
        self.rows_before(self.len())
    }

    /// The rows of a VM's vCPUs.
    ///
    /// # Panics
    ///
    /// Past the last VM.
    #[must_use]
    pub fn rows(&self, vm: usize) -> Range<usize> {
        self.rows_before(vm)..self.rows_before(vm + 1)
    }

    fn rows_before(&self, vm: usize) -> usize {
        match &self.vcpus {
            Column::Same(vcpus) => vm * usize::from(*vcpus),
            Column::Each(vcpus) => vcpus[..vm].iter().copied().map(usize::from).sum(),
        }
    }

    /// Both counters of a VM.
    #[must_use]
    pub fn counts(&self, vm: usize) -> (GuestCount, GuestCount) {
        let cntvct = self.cntvct[vm];
        (GuestCount(cntvct), GuestCount(self.cntpct.as_ref().map_or(cntvct, |cntpct| cntpct[vm])))
    }

    /// What a VM is owed.
    #[must_use]
    pub fn backlog(&self, vm: usize) -> Option<Backlog> {
        let owed = self.backlogs.binary_search_by_key(&vm, |(owed, _)| *owed);
        owed.ok().map(|place| self.backlogs[place].1)
    }

    /// What makes VMs alike, in the order of groups.
    fn kind(&self) -> (u32, u8, bool) {
        let timers = self.timers.iter().fold(0, |timers, columns| timers | 1 << columns.timer.index());
        (self.cntfrq_hz, timers, self.cntvoff.is_some())
    }

    fn checkpoint(&self, vm: usize, host: &Stamp, stopped_at: Option<u64>) -> Checkpoint {
        let rows = self.rows(vm);
        let guest = Frequency::new(self.cntfrq_hz.into()).expect("a valid set has frequencies above 0");
        let ratio = Ratio::new(host.frequency, guest);
        let (virt, phys) = self.counts(vm);
        let timer = |columns: &TimerColumns| TimerColumns {
            timer: columns.timer,
            cval: columns.cval[rows.clone()].to_vec(),
            ctl: CtlColumn::new(rows.clone().filter_map(|row| columns.ctl.get(row))),
        };
        Checkpoint {
            cntfrq_hz: self.cntfrq_hz,
            cntvct: virt,
            cntpct: phys,
            opted_in: self.opted_in.get(vm).expect("one a VM"),
            width_ticks: 0,
            host: ratio.instant(*host),
            stopped_at: stopped_at.map(|count| ratio.at(HostCount(count)).0),
            backlog: self.backlog(vm),
            vcpus: rows.len(),
            cntvoff: self.cntvoff.as_ref().map(|cntvoff| rows.clone().filter_map(|row| cntvoff.get(row)).collect()),
            timers: self.timers.iter().map(timer).collect(),
            others: Vec::new(),
            unknown: Vec::new(),
        }
    }

    fn validate(&self) -> Result<(), &'static str> {
        let vms = self.len();
        validate_frequency(self.cntfrq_hz)?;
        if vms == 0 {
            return Err("a group has no VMs");
        }
        if !self.names.is_sorted_by(|one, next| one < next) {
            return Err("names aren't ascending, each once");
        }
        if !self.vcpus.is_canonical(vms) {
            return Err("vcpus is neither one number for all VMs nor one a VM, of which some differ");
        }
        let vcpus = 1..=MAX_VCPUS;
        if !match &self.vcpus {
            Column::Same(all) => vcpus.contains(all),
            Column::Each(each) => each.iter().all(|one| vcpus.contains(one)),
        } {
            return Err("a VM hasn't 1 to 512 vCPUs");
        }
        if self.cntvct.len() != vms {
            return Err("cntvct hasn't one value a VM");
        }
        if self.cntpct.as_ref().is_some_and(|cntpct| cntpct.len() != vms) {
            return Err("cntpct hasn't one value a VM");
        }
        if self.cntpct.as_ref() == Some(&self.cntvct) {
            return Err("cntpct is there and as cntvct for all VMs");
        }
        if !self.opted_in.is_canonical(vms) {
            return Err("owned is neither one for all VMs nor one a VM, of which some differ");
        }
        if !self.backlogs.is_sorted_by(|(one, _), (next, _)| one < next)
            || self.backlogs.last().is_some_and(|(vm, _)| *vm >= vms)
        {
            return Err("the rows of backlogs aren't VMs' places in the group, ascending, each once");
        }
        let rows = self.total_vcpus();
        if self.cntvoff.as_ref().is_some_and(|cntvoff| !cntvoff.is_canonical(rows)) {
            return Err("cntvoff is neither one for all vCPUs nor one a vCPU, of which some differ");
        }
        validate_timers(&self.timers, rows)
    }
}

/// Whether two ascending columns have a value in common.
fn meet(one: &[u64], other: &[u64]) -> bool {
    let (mut i, mut j) = (0, 0);
    // Without a branch on the values: names of two groups are mixed as a coin falls.
    while let (Some(a), Some(b)) = (one.get(i), other.get(j)) {
        if a == b {
            return true;
        }
        i += usize::from(a < b);
        j += usize::from(b < a);
    }
    false
}
