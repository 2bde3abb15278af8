//! Groups of VMs: read and written by the table of [`fields`](crate::checkpoint::fields).

use crate::arch::RegId;
use crate::checkpoint::codec::reader::Reader;
use crate::checkpoint::codec::terms::{U8_ARRAY, U64_LE_ARRAY, WireError};
use crate::checkpoint::codec::writer::{Sink, Written, write_column, write_words};
use crate::checkpoint::column::{Column, Form};
use crate::checkpoint::fields::{ADDRESS, Entry, Field, GROUP, VCPUS, VM_FACTS, VM_FIELDS, vm_fields};
use crate::checkpoint::group::{
    Group, Held, KNOWN_REGS, MANY_OTHER_REGS, MAX_OTHER_REGS, RegisterColumn, check_registers,
};
use crate::checkpoint::names::Names;
use crate::checkpoint::sparse::Sparse;
use crate::checkpoint::vms::{MAX_GROUPS, MAX_VCPUS};
use alloc::vec::Vec;
use minicbor::data::Type;
use minicbor::encode::Encoder;

const COLUMN: &str = "is neither one number for all rows, nor a u8 column (tag 64), nor a u64 column (tag 71)";
const ROWS: &str = "aren't a u64 column (tag 71)";

pub(super) fn read_groups(r: &mut Reader<'_>) -> Result<Vec<Group>, WireError> {
    r.of("groups");
    let at = r.position();
    let count = r.array()?;
    if count > MAX_GROUPS as u64 {
        return Err(r.malformed(at, "has more than 64 groups"));
    }
    let mut groups = Vec::new();
    for _ in 0..count {
        groups.push(read_group(r)?);
    }
    Ok(groups)
}

fn read_group(r: &mut Reader<'_>) -> Result<Group, WireError> {
    r.of("a group");
    let mut keys = r.keys()?;
    let (mut names, mut registers, mut stolen_time) = (None, None, None);
    let (mut columns, mut facts) = (Vec::with_capacity(VM_FIELDS), Vec::with_capacity(VM_FACTS));
    let (mut vms, mut vcpus) = (0, 0);
    for entry in &GROUP {
        let there = keys.next_is(r, entry.key())?;
        match entry {
            Entry::Fact(fact) => facts.push(if there { Some(read_fact(r, fact.parts, vms)?) } else { None }),
            Entry::StolenTime if there => stolen_time = Some(read_fact(r, ADDRESS, vcpus)?),
            Entry::StolenTime => {}
            Entry::Vm(vm_field) if !there && vm_field.field.often_0 => columns.push(Column::ZERO),
            _ if !there => return Err(r.malformed(keys.start(), "is missing")),
            Entry::Names => {
                let at = r.position();
                let read = Names::new(r.text()?.into()).map_err(|(_, what)| r.malformed(at, what))?;
                vms = read.count();
                names = Some(read);
            }
            Entry::Vm(vm_field) => {
                let at = r.position();
                let read = read_column(r, vms, &vm_field.field)?;
                if columns.len() == VCPUS {
                    vcpus = usize::try_from(read.sum(vms)).unwrap_or(usize::MAX);
                    if vcpus > MAX_VCPUS {
                        return Err(r.malformed(at, "are more than 262 144"));
                    }
                }
                columns.push(read);
            }
            Entry::Registers => registers = Some(read_registers(r, vcpus)?),
        }
    }
    keys.finish()?;
    let missing = || r.malformed(keys.start(), "is missing");
    Ok(Group::new(
        names.ok_or_else(missing)?,
        columns.try_into().map_err(|_| missing())?,
        facts.try_into().map_err(|_| missing())?,
        stolen_time,
        registers.ok_or_else(missing)?,
    ))
}

/// Reads a column of so many rows.
fn read_column(r: &mut Reader<'_>, rows: usize, field: &Field) -> Result<Column, WireError> {
    let at = r.position();
    let column = column_of(r, rows, false)?;
    if !column.is_within(&field.values) {
        return Err(r.malformed(at, "is out of range"));
    }
    if field.is_left_out(&column) { Err(r.malformed(at, "is 0 in every row, and left out then")) } else { Ok(column) }
}

fn column_of(r: &mut Reader<'_>, rows: usize, whole: bool) -> Result<Column, WireError> {
    let at = r.position();
    let (form, count) = if r.next_type() == Some(Type::Tag) {
        match r.tag(COLUMN)? {
            U8_ARRAY => {
                let values = r.bytes(COLUMN)?;
                (Form::Bytes(values.into()), values.len())
            }
            U64_LE_ARRAY => {
                let values = r.elements(COLUMN)?;
                (Form::Words(values.iter().copied().map(u64::from_le_bytes).collect()), values.len())
            }
            _ => return Err(r.malformed(at, COLUMN)),
        }
    } else {
        (Form::Same(r.u64()?), rows)
    };
    if count != rows {
        return Err(r.malformed(at, "hasn't one value a row"));
    }
    Column::of_form(form, whole).ok_or_else(|| r.malformed(at, "isn't in the one form that its values have"))
}

/// Reads a fact of some of so many rows.
fn read_fact(r: &mut Reader<'_>, parts: &'static [Field], all: usize) -> Result<Sparse, WireError> {
    let mut keys = r.keys()?;
    let mut rows = None;
    if keys.next_is(r, "rows")? {
        let at = r.position();
        if r.tag(ROWS)? != U64_LE_ARRAY {
            return Err(r.malformed(at, ROWS));
        }
        let places: Vec<u64> = r.elements(ROWS)?.iter().copied().map(u64::from_le_bytes).collect();
        let some = (1..all).contains(&places.len());
        if !some
            || !places.is_sorted_by(|one, next| one < next)
            || places.last().is_some_and(|last| *last >= all as u64)
        {
            return Err(r.malformed(at, "aren't places of some rows, ascending, each once"));
        }
        rows = Some(places);
    }
    let known = rows.as_ref().map_or(all, Vec::len);
    let mut columns = Vec::with_capacity(parts.len());
    for part in parts {
        columns.push(match keys.next_is(r, part.key)? {
            true => read_column(r, known, part)?,
            false if part.often_0 => Column::ZERO,
            false => return Err(r.malformed(keys.start(), "is missing")),
        });
    }
    keys.finish()?;
    Ok(Sparse { rows, parts: columns })
}

fn read_registers(r: &mut Reader<'_>, vcpus: usize) -> Result<Vec<RegisterColumn>, WireError> {
    let start = r.position();
    let count = r.map()?;
    // Looked at before any of them is kept: a column that is the same in every row takes more memory than bytes.
    if count > (KNOWN_REGS + MAX_OTHER_REGS) as u64 {
        return Err(r.malformed(start, MANY_OTHER_REGS));
    }
    let mut registers = Vec::new();
    for _ in 0..count {
        r.of("the id of a register");
        let id = RegId(r.u64()?);
        r.of("a register");
        let whole = Held::of(id).is_some_and(Held::is_whole);
        registers.push(RegisterColumn::of_column(id, column_of(r, vcpus, whole)?));
    }
    r.of("registers");
    check_registers(&registers).map_err(|what| r.malformed(start, what))?;
    Ok(registers)
}

pub(super) fn write_groups<S: Sink>(e: &mut Encoder<S>, groups: &[Group]) -> Written<S> {
    e.array(groups.len() as u64)?;
    groups.iter().try_for_each(|group| write_group(e, group))
}

fn write_group<S: Sink>(e: &mut Encoder<S>, group: &Group) -> Written<S> {
    let facts = group.facts.iter().chain([&group.stolen_time]).flatten().count();
    let columns = vm_fields().zip(&group.vms).filter(|(vm_field, column)| !vm_field.field.is_left_out(column)).count();
    e.map((2 + columns + facts) as u64)?;
    let (mut columns, mut facts) = (group.vms.iter(), group.facts.iter());
    for entry in &GROUP {
        let key = entry.key();
        match entry {
            Entry::Names => e.str(key)?.str(group.names.text())?.ok()?,
            Entry::Vm(vm_field) => {
                if let Some(column) = columns.next().filter(|column| !vm_field.field.is_left_out(column)) {
                    write_column(e.str(key)?, column)?;
                }
            }
            Entry::Fact(fact) => {
                if let Some(known) = facts.next().and_then(Option::as_ref) {
                    write_fact(e.str(key)?, fact.parts, known)?;
                }
            }
            Entry::StolenTime => {
                if let Some(known) = &group.stolen_time {
                    write_fact(e.str(key)?, ADDRESS, known)?;
                }
            }
            Entry::Registers => {
                e.str(key)?.map(group.registers.len() as u64)?;
                for register in &group.registers {
                    write_column(e.u64(register.id().0)?, register.values())?;
                }
            }
        }
    }
    Ok(())
}

fn write_fact<S: Sink>(e: &mut Encoder<S>, parts: &[Field], known: &Sparse) -> Written<S> {
    let parts = || parts.iter().zip(&known.parts).filter(|(part, column)| !part.is_left_out(column));
    e.map((parts().count() + usize::from(known.rows.is_some())) as u64)?;
    if let Some(rows) = &known.rows {
        write_words(e.str("rows")?, rows)?;
    }
    for (part, column) in parts() {
        write_column(e.str(part.key)?, column)?;
    }
    Ok(())
}

impl Field {
    /// Returns whether the file has no such column.
    fn is_left_out(&self, column: &Column) -> bool {
        self.often_0 && *column == Column::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::fields::vm_facts;
    use crate::checkpoint::names::text_order;

    fn in_order<'a>(keys: impl IntoIterator<Item = &'a str>) -> bool {
        keys.into_iter().is_sorted_by(|one, next| text_order(one, next).is_lt())
    }

    #[test]
    fn the_table_is_in_the_order_of_its_keys() {
        assert!(in_order(GROUP.iter().map(Entry::key)));
        for fact in vm_facts() {
            assert!(in_order(["rows"].into_iter().chain(fact.parts.iter().map(|part| part.key))), "{}", fact.key);
            assert!(fact.parts.len() <= 4);
        }
        assert_eq!(vm_fields().nth(VCPUS).map(|column| column.field.key), Some("vcpus"));
        assert_eq!((vm_fields().count(), vm_facts().count()), (VM_FIELDS, VM_FACTS));
    }
}
