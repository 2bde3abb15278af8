//! The stamp: read and written by one table of its keys.

#![expect(clippy::unit_arg, reason = "a setter is an assignment that may fail before it")]

use crate::checkpoint::codec::reader::{Reader, Value};
use crate::checkpoint::codec::terms::WireError;
use crate::checkpoint::codec::writer::{Sink, Written, write_value};
use crate::time::{BootTime, Frequency, Leap, Quality, SourceName, Stamp, StampCount, SyncBound};
use minicbor::encode::Encoder;

/// A key of the stamp, or of the map in it.
#[expect(clippy::struct_field_names, reason = "the text of a key is a key too, as it is of a field")]
pub(super) struct Key {
    pub(super) key: &'static str,
    presence: Presence,
    /// Fault of a value that `set` doesn't take: a predicate.
    what: &'static str,
    pub(super) get: fn(&Stamp) -> Option<Value<'_>>,
    set: fn(&mut Stamp, Value<'_>) -> Option<()>,
}

/// Rule when a key is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// It is there, where its map is.
    Always,
    /// It is there where its value is known.
    Known,
    /// It is there with the others that are so, or none is.
    Together,
}

/// Entry of the stamp.
pub(super) enum Entry {
    /// A plain value.
    Plain(Key),
    /// A map of plain values, which is there where somebody vouches for the wall clock.
    Sync(&'static [Key]),
}

const U64: &str = "isn't an unsigned integer";
const I64: &str = "isn't an integer of 64 bits";
const I32: &str = "isn't an integer of 32 bits";
const ID: &str = "isn't a byte string of 16 bytes";

const TOGETHER: &str = "goes with slept_ns, boottime_ns and slept_width_ns: all are there, or none";

/// A bound whose every part is still to be read.
const NO_BOUND: SyncBound =
    SyncBound { max_error_ns: 0, age_ns: 0, holdover_ppb: 0, quality: Quality::Declared, tai_offset_s: None };

/// The keys of the stamp, in their order.
pub(super) static STAMP: [Entry; 16] = [
    Entry::Plain(Key {
        key: "leap",
        presence: Presence::Always,
        what: "isn't none, insert, delete, in-progress, passed or unknown",
        get: |stamp| Some(Value::Text(stamp.leap.name())),
        set: |stamp, value| Some(stamp.leap = Leap::from_name(value.text()?)?),
    }),
    Entry::Sync(&SYNC),
    Entry::Plain(Key {
        key: "count",
        presence: Presence::Always,
        what: U64,
        get: |stamp| Some(Value::Unsigned(stamp.count.0)),
        set: |stamp, value| Some(stamp.count = StampCount(value.unsigned()?)),
    }),
    Entry::Plain(Key {
        key: "source",
        presence: Presence::Always,
        what: "isn't 1 to 32 characters of a-z, 0-9 and _",
        get: |stamp| Some(Value::Text(stamp.source.as_str())),
        set: |stamp, value| Some(stamp.source = SourceName::new(value.text()?)?),
    }),
    Entry::Plain(Key {
        key: "boot_id",
        presence: Presence::Known,
        what: ID,
        get: |stamp| stamp.boot_id.as_ref().map(|id| Value::Bytes(id)),
        set: |stamp, value| Some(stamp.boot_id = Some(value.id()?)),
    }),
    Entry::Plain(Key {
        key: "rate_ppb",
        presence: Presence::Known,
        what: I64,
        get: |stamp| stamp.rate_ppb.map(Value::from_signed),
        set: |stamp, value| Some(stamp.rate_ppb = Some(value.signed()?)),
    }),
    Entry::Plain(Key {
        key: "slept_ns",
        presence: Presence::Together,
        what: U64,
        get: |stamp| stamp.boot_time.map(|boot| Value::Unsigned(boot.slept_ns)),
        set: |stamp, value| Some(boot_time(stamp).slept_ns = value.unsigned()?),
    }),
    Entry::Plain(Key {
        key: "width_ns",
        presence: Presence::Always,
        what: U64,
        get: |stamp| Some(Value::Unsigned(stamp.width_ns)),
        set: |stamp, value| Some(stamp.width_ns = value.unsigned()?),
    }),
    Entry::Plain(Key {
        key: "machine_id",
        presence: Presence::Known,
        what: ID,
        get: |stamp| stamp.machine_id.as_ref().map(|id| Value::Bytes(id)),
        set: |stamp, value| Some(stamp.machine_id = Some(value.id()?)),
    }),
    Entry::Plain(Key {
        key: "boottime_ns",
        presence: Presence::Together,
        what: U64,
        get: |stamp| stamp.boot_time.map(|boot| Value::Unsigned(boot.boottime_ns)),
        set: |stamp, value| Some(boot_time(stamp).boottime_ns = value.unsigned()?),
    }),
    Entry::Plain(Key {
        key: "realtime_ns",
        presence: Presence::Always,
        what: I64,
        get: |stamp| Some(Value::from_signed(stamp.realtime_ns)),
        set: |stamp, value| Some(stamp.realtime_ns = value.signed()?),
    }),
    Entry::Plain(Key {
        key: "frequency_hz",
        presence: Presence::Always,
        what: "isn't an unsigned integer above 0",
        get: |stamp| Some(Value::Unsigned(stamp.frequency.hz())),
        set: |stamp, value| Some(stamp.frequency = Frequency::new(value.unsigned()?)?),
    }),
    Entry::Plain(Key {
        key: "max_error_ns",
        presence: Presence::Known,
        what: U64,
        get: |stamp| stamp.max_error_ns.map(Value::Unsigned),
        set: |stamp, value| Some(stamp.max_error_ns = Some(value.unsigned()?)),
    }),
    Entry::Plain(Key {
        key: "synchronized",
        presence: Presence::Known,
        what: "isn't true or false",
        get: |stamp| stamp.synchronized.map(Value::Bool),
        set: |stamp, value| Some(stamp.synchronized = Some(value.bool()?)),
    }),
    Entry::Plain(Key {
        key: "tai_offset_s",
        presence: Presence::Known,
        what: I32,
        get: |stamp| stamp.tai_offset_s.map(|s| Value::from_signed(s.into())),
        set: |stamp, value| Some(stamp.tai_offset_s = Some(i32::try_from(value.signed()?).ok()?)),
    }),
    Entry::Plain(Key {
        key: "slept_width_ns",
        presence: Presence::Together,
        what: U64,
        get: |stamp| stamp.boot_time.map(|boot| Value::Unsigned(boot.width_ns)),
        set: |stamp, value| Some(boot_time(stamp).width_ns = value.unsigned()?),
    }),
];

/// The keys of who vouches for the wall clock, in their order.
static SYNC: [Key; 5] = [
    Key {
        key: "age_ns",
        presence: Presence::Always,
        what: U64,
        get: |stamp| Some(Value::Unsigned(stamp.sync.as_ref()?.age_ns)),
        set: |stamp, value| Some(bound(stamp).age_ns = value.unsigned()?),
    },
    Key {
        key: "quality",
        presence: Presence::Always,
        what: "isn't declared, chrony, clockbound or kernel-unverified",
        get: |stamp| Some(Value::Text(stamp.sync.as_ref()?.quality.name())),
        set: |stamp, value| {
            let (_, quality) = Quality::NAMES.into_iter().find(|(name, _)| Some(*name) == value.text())?;
            Some(bound(stamp).quality = quality)
        },
    },
    Key {
        key: "holdover_ppb",
        presence: Presence::Always,
        what: U64,
        get: |stamp| Some(Value::Unsigned(stamp.sync.as_ref()?.holdover_ppb)),
        set: |stamp, value| Some(bound(stamp).holdover_ppb = value.unsigned()?),
    },
    Key {
        key: "max_error_ns",
        presence: Presence::Always,
        what: U64,
        get: |stamp| Some(Value::Unsigned(stamp.sync.as_ref()?.max_error_ns)),
        set: |stamp, value| Some(bound(stamp).max_error_ns = value.unsigned()?),
    },
    Key {
        key: "tai_offset_s",
        presence: Presence::Known,
        what: I32,
        get: |stamp| stamp.sync.as_ref()?.tai_offset_s.map(|s| Value::from_signed(s.into())),
        set: |stamp, value| Some(bound(stamp).tai_offset_s = Some(i32::try_from(value.signed()?).ok()?)),
    },
];

fn bound(stamp: &mut Stamp) -> &mut SyncBound {
    stamp.sync.get_or_insert(NO_BOUND)
}

fn boot_time(stamp: &mut Stamp) -> &mut BootTime {
    stamp.boot_time.get_or_insert(BootTime { boottime_ns: 0, slept_ns: 0, width_ns: 0 })
}

impl Entry {
    pub(super) const fn key(&self) -> &'static str {
        match self {
            Self::Plain(key) => key.key,
            Self::Sync(_) => "sync",
        }
    }

    /// Returns the rule when the entry is there.
    const fn presence(&self) -> Presence {
        match self {
            Self::Plain(key) => key.presence,
            Self::Sync(_) => Presence::Known,
        }
    }

    /// Returns whether the entry is there in the file of this stamp.
    fn is_in(&self, stamp: &Stamp) -> bool {
        match self {
            Self::Plain(key) => (key.get)(stamp).is_some(),
            Self::Sync(_) => stamp.sync.is_some(),
        }
    }
}

pub(super) fn read_stamp(r: &mut Reader<'_>) -> Result<Stamp, WireError> {
    r.of("stamp");
    let mut stamp = Stamp::unvouched(StampCount(0), const { Frequency::new(1).unwrap() }, SourceName::UNKNOWN, 0, 0);
    let mut keys = r.keys()?;
    // The others of those that are together, once the first was looked for.
    let mut together = None;
    for entry in &STAMP {
        let there = keys.next_is(r, entry.key())?;
        match entry.presence() {
            Presence::Always if !there => return Err(r.malformed(keys.start(), "is missing")),
            Presence::Together if *together.get_or_insert(there) != there => {
                return Err(r.malformed(keys.start(), TOGETHER));
            }
            _ => {}
        }
        if !there {
            continue;
        }
        match entry {
            Entry::Plain(key) => read_key(r, key, &mut stamp)?,
            Entry::Sync(sync) => {
                let mut keys = r.keys()?;
                for key in *sync {
                    if keys.next_is(r, key.key)? {
                        read_key(r, key, &mut stamp)?;
                    } else if key.presence == Presence::Always {
                        return Err(r.malformed(keys.start(), "is missing"));
                    }
                }
                keys.finish()?;
            }
        }
    }
    keys.finish()?;
    Ok(stamp)
}

fn read_key(r: &mut Reader<'_>, key: &Key, stamp: &mut Stamp) -> Result<(), WireError> {
    let at = r.position();
    let value = r.value()?;
    (key.set)(stamp, value).ok_or_else(|| r.malformed(at, key.what))
}

pub(super) fn write_stamp<S: Sink>(e: &mut Encoder<S>, stamp: &Stamp) -> Written<S> {
    e.map(STAMP.iter().filter(|entry| entry.is_in(stamp)).count() as u64)?;
    for entry in STAMP.iter().filter(|entry| entry.is_in(stamp)) {
        e.str(entry.key())?;
        match entry {
            Entry::Plain(key) => (key.get)(stamp).map_or(Ok(()), |value| write_value(e, value))?,
            Entry::Sync(sync) => {
                e.map(sync.iter().filter(|key| (key.get)(stamp).is_some()).count() as u64)?;
                for key in *sync {
                    if let Some(value) = (key.get)(stamp) {
                        write_value(e.str(key.key)?, value)?;
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::text_order;

    #[test]
    fn the_table_is_in_the_order_of_its_keys() {
        assert!(STAMP.iter().map(Entry::key).is_sorted_by(|one, next| text_order(one, next).is_lt()));
        assert!(SYNC.iter().map(|key| key.key).is_sorted_by(|one, next| text_order(one, next).is_lt()));
    }
}
