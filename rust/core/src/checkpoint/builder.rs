//! Checkpoints in the making: VMs are added to groups, and the groups make a checkpoint.

use crate::arch::RegId;
use crate::arch::arm64::CTL_ISTATUS;
use crate::checkpoint::codec::{MAX_BYTES, encoded_len};
use crate::checkpoint::column::Growing;
use crate::checkpoint::fields::{TIMELINE, VCPUS, VM_FACTS, VM_FIELDS, vm_facts, vm_fields};
use crate::checkpoint::group::{Group, Held, RegisterColumn, check_registers};
use crate::checkpoint::guest_time::{GuestTime, MAX_VM_VCPUS};
use crate::checkpoint::names::{Lines, Names, VmName, text_order};
use crate::checkpoint::sparse::Gathered;
use crate::checkpoint::vms::{Checkpoint, MAX_GROUPS, MAX_VCPUS, Unfit};
use crate::time::Stamp;
use alloc::string::String;
use alloc::vec::Vec;

/// Reason why VMs don't make a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two VMs of one name.
    #[error("two VMs of the checkpoint have the name {name:?}: give each a name of its own")]
    SameName {
        /// The name.
        name: String,
    },
    /// A VM without vCPUs, which has no counter.
    #[error("the VM {name:?} has no vCPUs, and so no time to save: leave it out")]
    NoVcpus {
        /// The VM's name.
        name: String,
    },
    /// A VM of more vCPUs than KVM allows.
    #[error("the VM {name:?} has {vcpus} vCPUs, and a checkpoint holds VMs of at most {MAX_VM_VCPUS}")]
    ManyVcpus {
        /// The VM's name.
        name: String,
        /// Number of its vCPUs.
        vcpus: usize,
    },
    /// More vCPUs than a checkpoint holds.
    #[error("the VMs have {vcpus} vCPUs together, and a checkpoint holds at most {MAX_VCPUS}: save fewer VMs at once")]
    TooManyVcpus {
        /// Number of all vCPUs.
        vcpus: usize,
    },
    /// More kinds of VMs than a checkpoint holds.
    #[error("the VMs have {groups} different lists of registers, and a checkpoint holds at most {MAX_GROUPS}")]
    TooManyGroups {
        /// Number of lists.
        groups: usize,
    },
    /// More bytes than a file holds.
    #[error("the VMs take {size} bytes, and a file holds at most {MAX_BYTES}: save fewer VMs at once")]
    TooLarge {
        /// Number of bytes.
        size: usize,
    },
    /// Another number of stolen-time records than of vCPUs.
    #[error("{given} addresses of stolen-time records are given for {vcpus} vCPUs: give one for each, or none")]
    StolenTime {
        /// Number of vCPUs.
        vcpus: usize,
        /// Number of addresses.
        given: usize,
    },
    /// Registers that aren't those of a guest.
    #[error("the registers of the vCPUs {0}")]
    Registers(&'static str),
}

/// Name of a VM that is added: text, or a number that stands for it.
#[derive(Clone, Copy, Debug)]
pub enum Name<'a> {
    /// A name.
    Text(&'a VmName),
    /// The decimal digits of a number.
    Number(u64),
}

/// A group in the making: VMs whose vCPUs have the same registers.
#[derive(Debug)]
pub struct GroupBuilder {
    names: Lines,
    vms: [Growing; VM_FIELDS],
    facts: [Gathered; VM_FACTS],
    stolen_time: Gathered,
    registers: Vec<(RegId, Vec<u64>)>,
    vcpus: usize,
    /// Guest time of the VM that was added last.
    last: Option<GuestTime>,
    /// Number of VMs, the last ones, that are alike but for their timelines: only those stand in columns yet.
    alike: usize,
}

impl GroupBuilder {
    /// An empty group of VMs with these registers; the reason, if they aren't those of a guest.
    pub fn new(registers: impl IntoIterator<Item = RegId>) -> Result<Self, BuildError> {
        let mut ids: Vec<RegId> = registers.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        let columns: Vec<_> = ids.iter().map(|id| RegisterColumn::new(*id, Vec::new())).collect();
        check_registers(&columns).map_err(BuildError::Registers)?;
        let parts: Vec<usize> = vm_facts().map(|fact| fact.parts.len()).collect();
        Ok(Self {
            names: Lines::default(),
            vms: Default::default(),
            facts: core::array::from_fn(|fact| Gathered::new(parts[fact])),
            stolen_time: Gathered::new(1),
            registers: ids.into_iter().map(|id| (id, Vec::new())).collect(),
            vcpus: 0,
            last: None,
            alike: 0,
        })
    }

    /// Makes room for the registers of so many vCPUs, and for the names of as many VMs.
    pub fn reserve(&mut self, vcpus: usize) {
        self.names.reserve(vcpus);
        self.registers.iter_mut().for_each(|(_, values)| values.reserve(vcpus));
    }

    /// Adds a VM. `registers` is called as by [`fill`](Self::fill).
    ///
    /// # Panics
    /// If `registers` appends another number of values.
    pub fn push(&mut self, name: Name<'_>, time: &GuestTime, registers: impl FnMut(RegId, &mut Vec<u64>)) {
        self.push_times([name], time, &[time.timeline.0]);
        self.fill(registers);
    }

    /// Adds VMs that are alike but for their timelines, without their registers, which [`fill`](Self::fill) adds: `time` is
    /// the guest time of one of them.
    ///
    /// # Panics
    /// If there are fewer names than timelines, or more.
    pub fn push_times<'a>(&mut self, names: impl IntoIterator<Item = Name<'a>>, time: &GuestTime, timelines: &[u64]) {
        let is_alike = self.last.as_mut().is_some_and(|last| {
            last.timeline = time.timeline;
            last == time
        });
        if !is_alike {
            self.add_alike();
            self.last = Some(*time);
        }
        self.alike += timelines.len();
        let before = self.names.count();
        for name in names {
            match name {
                Name::Text(name) => self.names.push(name.as_str()),
                Name::Number(number) => self.names.push_number(number),
            }
        }
        assert_eq!(self.names.count() - before, timelines.len(), "one name a VM");
        self.vms[TIMELINE].extend(timelines);
        self.vcpus += usize::from(time.vcpus) * timelines.len();
    }

    /// Adds the VMs that are alike to the columns.
    fn add_alike(&mut self) {
        let alike = core::mem::take(&mut self.alike);
        let Some(time) = self.last.as_ref().filter(|_| alike > 0) else { return };
        for (place, (field, column)) in vm_fields().zip(&mut self.vms).enumerate() {
            if place != TIMELINE {
                column.push_many((field.get)(time), alike);
            }
        }
        let end = self.names.count();
        for (fact, gathered) in vm_facts().zip(&mut self.facts) {
            if let Some(parts) = (fact.get)(time) {
                gathered.push_many(end - alike..end, parts);
            }
        }
    }

    /// Adds the registers of the VMs that were added without. `registers` is called for each register in the order of the
    /// ids, and appends its values, one a vCPU. ISTATUS is dropped from what it appends to a timer's control: it is
    /// computed, not saved.
    ///
    /// # Panics
    /// If `registers` appends another number of values.
    pub fn fill(&mut self, mut registers: impl FnMut(RegId, &mut Vec<u64>)) {
        for (id, values) in &mut self.registers {
            registers(*id, values);
            assert_eq!(values.len(), self.vcpus, "one value a vCPU of {id:?}");
        }
    }

    /// Says where the stolen-time record of a vCPU of the VM that was added last lies.
    ///
    /// # Panics
    /// If the VM has no such vCPU. The vCPUs come in their order.
    pub fn stolen_time(&mut self, vcpu: usize, address: u64) {
        let vcpus = self.last.map_or(0, |last| last.vcpus.into());
        assert!(vcpu < vcpus, "vCPU {vcpu} of {vcpus}");
        self.stolen_time.push(self.vcpus - vcpus + vcpu, [address, 0, 0, 0]);
    }

    /// Returns whether no VM was added.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.names.count() == 0
    }

    fn group(mut self) -> Result<Group, BuildError> {
        self.add_alike();
        let (vms, vcpus) = (self.names.count(), self.vcpus);
        let text = self.names.into_text();
        let range = 1..=u64::from(MAX_VM_VCPUS);
        let unfit = self.vms[VCPUS].iter().enumerate().find(|(_, vcpus)| !range.contains(vcpus));
        if let Some((vm, vcpus)) = unfit {
            let name = text.split('\n').nth(vm).unwrap_or_default().into();
            let vcpus = usize::try_from(vcpus).unwrap_or(usize::MAX);
            return Err(if vcpus == 0 { BuildError::NoVcpus { name } } else { BuildError::ManyVcpus { name, vcpus } });
        }
        let registers = self.registers.into_iter().map(|(id, mut values)| {
            if let Some(Held::Ctl(_)) = Held::of(id) {
                for ctl in &mut values {
                    *ctl &= !CTL_ISTATUS;
                }
            }
            RegisterColumn::new(id, values)
        });
        let group = |names| {
            let facts = self.facts.map(|fact| fact.sparse(vms));
            let stolen_time = self.stolen_time.sparse(vcpus);
            Group::new(names, self.vms.map(Growing::column), facts, stolen_time, registers.collect())
        };
        let text = match Names::new(text) {
            Ok(names) => return Ok(group(names)),
            Err((text, _)) => text,
        };
        let names: Vec<&str> = text.split('\n').collect();
        let mut order: Vec<usize> = (0..vms).collect();
        order.sort_by(|one, other| text_order(names[*one], names[*other]));
        if let Some(pair) = order.windows(2).find(|pair| names[pair[0]] == names[pair[1]]) {
            return Err(BuildError::SameName { name: names[pair[0]].into() });
        }
        // In the order of the names, as the columns will be.
        let sorted: Vec<&str> = order.iter().map(|vm| names[*vm]).collect();
        let names = Names::new(sorted.join("\n")).expect("names that were sorted");
        Ok(group(names.clone()).in_order(&order, names))
    }
}

impl Checkpoint {
    /// Makes the checkpoint of these groups at one instant. Groups with the same registers have to be one.
    pub fn of(stamp: Stamp, groups: impl IntoIterator<Item = GroupBuilder>) -> Result<Self, BuildError> {
        let groups = groups.into_iter().filter(|group| !group.is_empty()).map(GroupBuilder::group);
        let mut groups: Vec<Group> = groups.collect::<Result<_, _>>()?;
        groups.sort_by(|one, other| one.kind().cmp(other.kind()));
        let number = groups.len();
        let checkpoint = Self::assembled(stamp, groups, Vec::new()).map_err(|unfit| match unfit {
            Unfit::Groups => BuildError::TooManyGroups { groups: number },
            Unfit::Vcpus { vcpus } => BuildError::TooManyVcpus { vcpus },
            Unfit::Order => BuildError::Registers("are those of two groups, which have to be one"),
            Unfit::SameName { name } => BuildError::SameName { name },
        })?;
        // A part of it is never larger, so whatever is made of it can be written and read.
        let size = encoded_len(&checkpoint);
        if size > MAX_BYTES { Err(BuildError::TooLarge { size }) } else { Ok(checkpoint) }
    }

    /// Returns the checkpoint without the registers and keys that this version doesn't know.
    pub fn without_unknown(&self) -> Result<Self, BuildError> {
        let mut groups: Vec<(Vec<RegId>, GroupBuilder)> = Vec::new();
        for vm in self.vms() {
            let known = |column: &&RegisterColumn| column.held().is_some_and(|held| held != Held::Unknown);
            let ids: Vec<RegId> = vm.group().0.registers().iter().filter(known).map(RegisterColumn::id).collect();
            let place = if let Some(place) = groups.iter().position(|(other, _)| *other == ids) {
                place
            } else {
                groups.push((ids.clone(), GroupBuilder::new(ids)?));
                groups.len() - 1
            };
            let name = VmName::new(vm.name()).ok_or(BuildError::Registers("are those of a VM without a name"))?;
            let group = &mut groups[place].1;
            group.push(Name::Text(&name), &vm.time(), |id, values| {
                if let Some(column) = Held::of(id).and_then(|held| vm.register(held)) {
                    values.extend(column.iter());
                }
            });
            for vcpu in 0..vm.vcpus() {
                if let Some(address) = vm.stolen_time(vcpu) {
                    group.stolen_time(vcpu, address);
                }
            }
        }
        Self::of(self.stamp, groups.into_iter().map(|(_, group)| group))
    }

    /// Makes the checkpoint of one VM: its registers, each with one value a vCPU, and the addresses of the stolen-time
    /// records, one a vCPU or none.
    pub fn of_one(
        stamp: Stamp,
        name: &VmName,
        time: &GuestTime,
        registers: &[(RegId, Vec<u64>)],
        stolen_time: &[Option<u64>],
    ) -> Result<Self, BuildError> {
        let vcpus = usize::from(time.vcpus);
        if registers.iter().any(|(_, values)| values.len() != vcpus) {
            return Err(BuildError::Registers("haven't one value a vCPU"));
        }
        if !stolen_time.is_empty() && stolen_time.len() != vcpus {
            return Err(BuildError::StolenTime { vcpus, given: stolen_time.len() });
        }
        let mut group = GroupBuilder::new(registers.iter().map(|(id, _)| *id))?;
        group.push(Name::Text(name), time, |id, values| {
            let found = registers.iter().find(|(other, _)| *other == id);
            if let Some((_, column)) = found {
                values.extend_from_slice(column);
            }
        });
        for (vcpu, address) in stolen_time.iter().enumerate() {
            if let Some(address) = address {
                group.stolen_time(vcpu, *address);
            }
        }
        Self::of(stamp, [group])
    }
}
