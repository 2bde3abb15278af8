//! A checkpoint as plain values, by the tables that the codec reads and writes by.

use crate::checkpoint::codec::reader::Value;
use crate::checkpoint::codec::stamp::{Entry as StampEntry, Key as StampKey, STAMP};
use crate::checkpoint::codec::terms::ARCH;
use crate::checkpoint::column::Column;
use crate::checkpoint::fields::{ADDRESS, Entry, Field, GROUP};
use crate::checkpoint::group::Group;
use crate::checkpoint::sparse::Sparse;
use crate::checkpoint::vms::Checkpoint;
use crate::time::Stamp;
use alloc::string::String;
use alloc::vec::Vec;

/// A plain value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Plain {
    /// Nothing: what the checkpoint doesn't have.
    Nothing,
    /// A truth value.
    Bool(bool),
    /// A number.
    Unsigned(u64),
    /// A number below 0.
    Negative(i64),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A number a row.
    Numbers(Vec<u64>),
    /// A truth value a row.
    Bools(Vec<bool>),
    /// Values in their order.
    List(Vec<Self>),
    /// Values by their keys.
    Map(Vec<(Key, Self)>),
}

/// Key of a plain value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// A field of the format.
    Field(&'static str),
    /// A register, by its id.
    Register(u64),
}

/// Returns all that a checkpoint says as plain values, under the keys of its file. Columns have one value a row.
#[must_use]
pub fn plain(checkpoint: &Checkpoint) -> Plain {
    let unknown = checkpoint.unknown.iter().map(|unknown| Plain::Text(unknown.key.clone()));
    map([
        ("arch", Plain::Text(ARCH.into())),
        ("stamp", stamp(&checkpoint.stamp)),
        ("groups", Plain::List(checkpoint.groups.iter().map(group).collect())),
        ("unknown", Plain::List(unknown.collect())),
    ])
}

fn map(entries: impl IntoIterator<Item = (&'static str, Plain)>) -> Plain {
    Plain::Map(entries.into_iter().map(|(key, value)| (Key::Field(key), value)).collect())
}

fn stamp(stamp: &Stamp) -> Plain {
    let value = |key: &StampKey| {
        (key.get)(stamp).map_or(Plain::Nothing, |value| match value {
            Value::Unsigned(value) => Plain::Unsigned(value),
            Value::Negative(value) => Plain::Negative(value),
            Value::Bool(value) => Plain::Bool(value),
            Value::Text(value) => Plain::Text(value.into()),
            Value::Bytes(value) => Plain::Bytes(value.into()),
        })
    };
    map(STAMP.iter().map(|entry| {
        let plain = match entry {
            StampEntry::Plain(key) => value(key),
            StampEntry::Sync(_) if stamp.sync.is_none() => Plain::Nothing,
            StampEntry::Sync(keys) => map(keys.iter().map(|key| (key.key, value(key)))),
        };
        (entry.key(), plain)
    }))
}

fn group(group: &Group) -> Plain {
    let (vms, vcpus) = (group.len(), group.vcpus());
    let (mut columns, mut facts) = (group.vms.iter(), group.facts.iter());
    map(GROUP.iter().map(|entry| {
        let plain = match entry {
            Entry::Names => Plain::List(group.names.iter().map(|name| Plain::Text(name.into())).collect()),
            Entry::Vm(vm_field) => columns.next().map_or(Plain::Nothing, |it| column(it, vms, &vm_field.field)),
            Entry::Fact(vm_fact) => fact(facts.next().and_then(Option::as_ref), vms, vm_fact.parts),
            Entry::StolenTime => fact(group.stolen_time.as_ref(), vcpus, ADDRESS),
            Entry::Registers => {
                let values = group.registers.iter().map(|register| {
                    (Key::Register(register.id().0), Plain::Numbers(register.values().values(0..vcpus)))
                });
                Plain::Map(values.collect())
            }
        };
        (entry.key(), plain)
    }))
}

fn column(column: &Column, rows: usize, field: &Field) -> Plain {
    let values = column.values(0..rows);
    if field.flag { Plain::Bools(values.into_iter().map(|value| value != 0).collect()) } else { Plain::Numbers(values) }
}

fn fact(known: Option<&Sparse>, all: usize, parts: &[Field]) -> Plain {
    let Some(known) = known else { return Plain::Nothing };
    let rows = [("rows", Plain::Numbers(known.places(all)))];
    let parts = parts.iter().zip(&known.parts);
    map(rows.into_iter().chain(parts.map(|(part, values)| (part.key, column(values, known.known(all), part)))))
}
