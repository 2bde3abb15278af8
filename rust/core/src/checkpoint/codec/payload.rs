//! The payload: the map of a checkpoint's keys, unknown ones kept.

use crate::checkpoint::codec::groups::{read_groups, write_groups};
use crate::checkpoint::codec::reader::Reader;
use crate::checkpoint::codec::stamp::{read_stamp, write_stamp};
use crate::checkpoint::codec::terms::{ARCH, KEYS, MAX_KEY_BYTES, MAX_KEYS, WireError, malformed};
use crate::checkpoint::codec::writer::{Keys, Sink, Written};
use crate::checkpoint::vms::{Checkpoint, Unfit, UnknownKey};
use alloc::vec::Vec;
use minicbor::encode::Encoder;

/// Reads the payload from a map that [`deterministic::check`](super::deterministic::check) has passed.
pub(super) fn read(mut r: Reader<'_>) -> Result<Checkpoint, WireError> {
    let start = r.position();
    check_terms(r.fork())?;
    let (mut stamp, mut groups, mut unknown) = (None, None, Vec::new());
    for _ in 0..r.map()? {
        r.of("a key of the payload");
        match r.text()? {
            "arch" => drop(r.skip()?),
            "stamp" => stamp = Some(read_stamp(&mut r)?),
            "groups" => groups = Some(read_groups(&mut r)?),
            key => unknown.push(UnknownKey { key: key.into(), value: r.skip()?.into() }),
        }
    }
    let missing = |key| malformed(start, key, "is missing");
    let stamp = stamp.ok_or_else(|| missing("stamp"))?;
    let groups = groups.ok_or_else(|| missing("groups"))?;
    Checkpoint::assembled(stamp, groups, unknown).map_err(|unfit| {
        malformed(
            start,
            "groups",
            match unfit {
                Unfit::Groups => "has more than 64 groups",
                Unfit::Vcpus { .. } => "has more than 262 144 vCPUs",
                Unfit::Order => "isn't in the order of the registers' ids, each list once",
                Unfit::SameName { .. } => "has a name twice",
            },
        )
    })
}

pub(super) fn write<S: Sink>(e: &mut Encoder<S>, checkpoint: &Checkpoint) -> Written<S> {
    let mut keys = Keys::of(e, KEYS.len() - 1, &checkpoint.unknown)?;
    keys.next("arch")?.str(ARCH)?;
    write_stamp(keys.next("stamp")?, &checkpoint.stamp)?;
    write_groups(keys.next("groups")?, &checkpoint.groups)?;
    keys.finish()
}

/// Checks `crit` and `arch`, before any other key is taken for what it was.
fn check_terms(mut r: Reader<'_>) -> Result<(), WireError> {
    let start = r.position();
    let keys = r.map()?;
    if keys > MAX_KEYS as u64 {
        return Err(r.malformed(start, "has too many keys"));
    }
    let mut arch = None;
    for _ in 0..keys {
        let at = r.position();
        r.of("a key of the payload");
        match r.text()? {
            "crit" => return Err(read_crit(&mut r)),
            "arch" => {
                r.of("arch");
                let at = r.position();
                let name = r.text()?;
                let plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_');
                if !(1..=32).contains(&name.len()) || !name.bytes().all(plain) {
                    return Err(r.malformed(at, "isn't 1 to 32 characters of a-z, 0-9 and _"));
                }
                arch = Some(name);
            }
            key if key.len() > MAX_KEY_BYTES => return Err(r.malformed(at, "is too long")),
            _ => drop(r.skip()?),
        }
    }
    match arch {
        Some(ARCH) => Ok(()),
        Some(found) => Err(WireError::UnsupportedArch { found: found.into() }),
        None => Err(malformed(start, "arch", "is missing")),
    }
}

/// Reads `crit`. Version 1 has nothing to put into it, so where it is there, the file is refused: for the key that it
/// names, or for naming none that a reader of version 1 may miss.
fn read_crit(r: &mut Reader<'_>) -> WireError {
    r.of("crit");
    let at = r.position();
    let names = match r.array() {
        Ok(names) => names,
        Err(error) => return error,
    };
    for _ in 0..names {
        let at = r.position();
        match r.text() {
            Ok(name) if name.len() > MAX_KEY_BYTES => return r.malformed(at, "has a name that is too long for a key"),
            Ok(name) if !KEYS.contains(&name) => return WireError::UnsupportedFeature { feature: name.into() },
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    r.malformed(at, "names no key beyond those of version 1, which every reader knows")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::names::text_order;

    #[test]
    fn keys_are_listed_in_their_order() {
        assert!(KEYS.is_sorted_by(|one, next| text_order(one, next).is_lt()));
    }
}
