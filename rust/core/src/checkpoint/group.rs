//! A group: VMs whose vCPUs have the same registers, as columns.

use crate::arch::RegId;
use crate::arch::arm64::{CTL_ISTATUS, Role, Sysreg, Timer, is_unknown_timers};
use crate::checkpoint::column::{Column, Iter};
use crate::checkpoint::fields::{
    Entry, GROUP, TIMELINE, VCPUS, VM_FACTS, VM_FIELDS, VmFact, VmField, vm_facts, vm_fields,
};
use crate::checkpoint::guest_time::GuestTime;
use crate::checkpoint::names::Names;
use crate::checkpoint::sparse::Sparse;
use crate::time::GuestCount;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::Range;

/// The most registers of a group that this version doesn't know. It bounds what a decoded checkpoint's bookkeeping adds
/// to the bytes themselves.
pub const MAX_OTHER_REGS: usize = 64;

/// Registers that this version knows: two of each timer, and CNTVOFF_EL2.
pub(crate) const KNOWN_REGS: usize = 2 * Timer::ALL.len() + 1;

/// Fault of more than [`MAX_OTHER_REGS`]: a predicate.
pub(crate) const MANY_OTHER_REGS: &str = "have more than 64 that this version doesn't know";

/// VMs whose vCPUs have the same registers, as columns: a row each VM, or each vCPU.
///
/// The VMs are in the order of their names; the rows of vCPUs are those of the first VM, then those of the next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    pub(crate) names: Names,
    /// In the order of [`vm_fields`].
    pub(crate) vms: [Column; VM_FIELDS],
    /// In the order of [`vm_facts`].
    pub(crate) facts: [Option<Sparse>; VM_FACTS],
    pub(crate) stolen_time: Option<Sparse>,
    pub(crate) registers: Vec<RegisterColumn>,
    /// The guest time, as far as all VMs have the same.
    same: GuestTime,
    /// Where VMs differ: places in [`GROUP`], each with that among the columns or facts.
    differ: Vec<(usize, usize)>,
}

/// A register of every vCPU of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegisterColumn {
    id: RegId,
    held: Option<Held>,
    values: Column,
}

/// Column of a group's VMs.
#[derive(Clone, Copy, Debug)]
pub enum VmColumn<'a> {
    /// A number that each VM has.
    All {
        /// The number.
        field: &'static VmField,
        /// The values, one a VM.
        values: &'a Column,
    },
    /// A fact that is known of some VMs.
    Known {
        /// The fact.
        fact: &'static VmFact,
        /// The values.
        known: &'a Sparse,
    },
}

/// Meaning of a register that a checkpoint holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// A timer's compare value.
    Cval(Timer),
    /// A timer's control, without ISTATUS: that is computed, not saved.
    Ctl(Timer),
    /// A guest hypervisor's virtual counter offset.
    Cntvoff,
    /// A timer register that isn't in the table: carried as it is.
    Unknown,
}

impl Held {
    /// Returns the meaning of this register; `None` for one that a checkpoint doesn't hold. Counts follow from the
    /// timeline, and the VMM restores everything that isn't a timer's.
    #[must_use]
    pub fn of(id: RegId) -> Option<Self> {
        match Sysreg::with_one_reg_id(id.0).map(|row| row.role) {
            Some(Role::Cval(timer)) => Some(Self::Cval(timer)),
            Some(Role::Ctl(timer)) => Some(Self::Ctl(timer)),
            Some(Role::Cntvoff) => Some(Self::Cntvoff),
            Some(_) => None,
            None => is_unknown_timers(id.0).then_some(Self::Unknown),
        }
    }

    /// Returns whether a column has eight bytes a row whatever its values are. Every guest has such a register, so each
    /// vCPU takes eight bytes of a file, and a reader never unpacks many times the file's size.
    pub(crate) const fn is_whole(self) -> bool {
        matches!(self, Self::Cval(_))
    }
}

impl Group {
    /// Makes a group of these columns.
    pub(crate) fn new(
        names: Names,
        vms: [Column; VM_FIELDS],
        facts: [Option<Sparse>; VM_FACTS],
        stolen_time: Option<Sparse>,
        registers: Vec<RegisterColumn>,
    ) -> Self {
        let mut same = GuestTime::opted_in(0, NonZeroU32::MIN, GuestCount(0));
        let mut differ = Vec::new();
        let (mut columns, mut known) = (vms.iter().enumerate(), facts.iter().enumerate());
        for (at, entry) in GROUP.iter().enumerate() {
            match entry {
                Entry::Vm(field) => match columns.next().map(|(place, column)| (place, column.same())) {
                    Some((_, Some(value))) => (field.set)(&mut same, value),
                    Some((place, None)) => differ.push((at, place)),
                    None => {}
                },
                Entry::Fact(fact) => match known.next().map(|(place, known)| (place, known.as_ref().map(Sparse::same)))
                {
                    Some((_, Some(Some(parts)))) => (fact.set)(&mut same, parts),
                    Some((place, Some(None))) => differ.push((at, place)),
                    _ => {}
                },
                Entry::Names | Entry::StolenTime | Entry::Registers => {}
            }
        }
        Self { names, vms, facts, stolen_time, registers, same, differ }
    }

    /// Number of VMs.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.names.count()
    }

    /// Returns false: a group has one VM at least.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Names of the VMs.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Registers of the vCPUs, in the order of their ids.
    #[must_use]
    pub fn registers(&self) -> &[RegisterColumn] {
        &self.registers
    }

    /// The columns of the VMs and what is known of some, as the table of fields has them.
    pub fn vm_columns(&self) -> impl Iterator<Item = VmColumn<'_>> {
        let columns = vm_fields().zip(&self.vms).map(|(field, values)| VmColumn::All { field, values });
        let facts = vm_facts().zip(&self.facts);
        columns.chain(facts.filter_map(|(fact, known)| Some(VmColumn::Known { fact, known: known.as_ref()? })))
    }

    /// The addresses of the vCPUs' stolen-time records, where some are known.
    #[must_use]
    pub const fn stolen_time(&self) -> Option<&Sparse> {
        self.stolen_time.as_ref()
    }

    /// Returns the column of a register.
    #[must_use]
    pub fn register(&self, held: Held) -> Option<&Column> {
        self.registers.iter().find(|column| column.held == Some(held)).map(|column| &column.values)
    }

    /// Number of all VMs' vCPUs: the rows of the columns of vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.rows_before(self.len())
    }

    /// Returns the rows of a VM's vCPUs. They take time by the VM's place where VMs have different numbers of vCPUs.
    ///
    /// # Panics
    /// Past the last VM.
    #[must_use]
    pub fn rows(&self, vm: usize) -> Range<usize> {
        let first = self.rows_before(vm);
        first..first + self.vcpus_of(vm)
    }

    fn rows_before(&self, vm: usize) -> usize {
        // Each has at most 512 vCPUs, and fewer VMs than the file has bytes.
        usize::try_from(self.vms[VCPUS].sum(vm)).unwrap_or(usize::MAX)
    }

    /// Number of the vCPUs of these VMs.
    pub(crate) fn vcpus_among(&self, vms: Range<usize>) -> usize {
        self.vms[VCPUS].iter(vms).map(|vcpus| usize::try_from(vcpus).unwrap_or(0)).sum()
    }

    pub(crate) fn vcpus_of(&self, vm: usize) -> usize {
        self.vms[VCPUS].get(vm).and_then(|vcpus| usize::try_from(vcpus).ok()).unwrap_or(0)
    }

    /// Returns the guest time of a VM.
    ///
    /// # Panics
    /// Past the last VM.
    #[must_use]
    pub fn time(&self, vm: usize) -> GuestTime {
        let mut time = self.same;
        for (at, place) in &self.differ {
            match &GROUP[*at] {
                Entry::Vm(field) => (field.set)(&mut time, self.vms[*place].get(vm).expect("one value a VM")),
                Entry::Fact(fact) => {
                    if let Some(parts) = self.facts[*place].as_ref().and_then(|known| known.get(vm)) {
                        (fact.set)(&mut time, parts);
                    }
                }
                Entry::Names | Entry::StolenTime | Entry::Registers => {}
            }
        }
        time
    }

    /// The VMs, those that follow each other and are alike but for their timelines together: the first one's guest time,
    /// and the timelines of all.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (GuestTime, Iter<'_>)> {
        let is_timeline = |(at, place): &(usize, usize)| matches!(GROUP[*at], Entry::Vm(_)) && *place == TIMELINE;
        let vms = if self.differ.iter().all(is_timeline) { self.len() } else { 1 };
        let timelines = &self.vms[TIMELINE];
        (0..self.len()).step_by(vms).map(move |first| (self.time(first), timelines.iter(first..first + vms)))
    }

    /// The ids of the registers, which order the groups of a checkpoint.
    pub(crate) fn kind(&self) -> impl Iterator<Item = RegId> {
        self.registers.iter().map(|column| column.id)
    }

    /// Returns the rows of these VMs, given in the order of their names, as a group of its own.
    ///
    /// # Panics
    /// If `vms` is empty, out of order, or has one past the last.
    pub(crate) fn part(&self, vms: &[usize]) -> Self {
        let names: Vec<&str> = self.names.iter().collect();
        let names: Vec<&str> = vms.iter().map(|vm| names[*vm]).collect();
        self.in_order(vms, Names::new(names.join("\n")).expect("names of a group, in their order"))
    }

    /// Returns one VM, whose vCPUs have these rows, as a group of its own.
    pub(crate) fn one(&self, vm: usize, name: &str, rows: Range<usize>) -> Self {
        let names = Names::new(name.into()).expect("a name of a group");
        self.picked(&[vm], &rows.collect::<Vec<_>>(), names)
    }

    /// Returns the rows of these VMs, in the order given, under these names.
    pub(crate) fn in_order(&self, vms: &[usize], names: Names) -> Self {
        let mut starts = Vec::with_capacity(self.len());
        let mut rows = 0;
        for vm in 0..self.len() {
            starts.push(rows);
            rows += self.vcpus_of(vm);
        }
        let vcpus: Vec<usize> = vms.iter().flat_map(|vm| starts[*vm]..starts[*vm] + self.vcpus_of(*vm)).collect();
        self.picked(vms, &vcpus, names)
    }

    fn picked(&self, vms: &[usize], vcpus: &[usize], names: Names) -> Self {
        let register = |column: &RegisterColumn| RegisterColumn::new(column.id, column.values.picked(vcpus));
        Self::new(
            names,
            self.vms.each_ref().map(|column| Column::new(column.picked(vms))),
            self.facts.each_ref().map(|fact| fact.as_ref()?.part(vms)),
            self.stolen_time.as_ref().and_then(|known| known.part(vcpus)),
            self.registers.iter().map(register).collect(),
        )
    }
}

impl RegisterColumn {
    /// Makes the column of a register's values, one a vCPU.
    #[must_use]
    pub fn new(id: RegId, values: Vec<u64>) -> Self {
        let held = Held::of(id);
        let whole = held.is_some_and(Held::is_whole);
        Self { id, held, values: if whole { Column::whole(values) } else { Column::new(values) } }
    }

    pub(crate) fn of_column(id: RegId, values: Column) -> Self {
        Self { id, held: Held::of(id), values }
    }

    /// The register.
    #[must_use]
    pub const fn id(&self) -> RegId {
        self.id
    }

    /// Meaning of the register; `None` only before a group is checked.
    #[must_use]
    pub const fn held(&self) -> Option<Held> {
        self.held
    }

    /// The values, one a vCPU.
    #[must_use]
    pub const fn values(&self) -> &Column {
        &self.values
    }
}

/// Checks the registers of a group: the reason, if they aren't those of a guest.
pub(crate) fn check_registers(registers: &[RegisterColumn]) -> Result<(), &'static str> {
    let mut others = 0;
    let (mut cvals, mut ctls) = (0_u8, 0_u8);
    for column in registers {
        match column.held {
            None => return Err("have one that is no timer's, or that follows from the timeline"),
            Some(Held::Cval(timer)) => cvals |= 1 << timer.index(),
            Some(Held::Ctl(timer)) => {
                ctls |= 1 << timer.index();
                if column.values.bits() & CTL_ISTATUS != 0 {
                    return Err("have a CTL with ISTATUS set");
                }
            }
            Some(Held::Cntvoff) => {}
            Some(Held::Unknown) => others += 1,
        }
    }
    if others > MAX_OTHER_REGS {
        return Err(MANY_OTHER_REGS);
    }
    if cvals != ctls {
        return Err("have a timer's CVAL without its CTL, or its CTL without its CVAL");
    }
    if cvals & 1 << Timer::Vtimer.index() == 0 {
        return Err("are without those of the virtual timer, which every guest has");
    }
    Ok(())
}
