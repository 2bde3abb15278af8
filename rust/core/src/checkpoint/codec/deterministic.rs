//! Check that CBOR is in the one encoding that its value has.

use crate::checkpoint::codec::terms::{MAX_DEPTH, NOT_DETERMINISTIC, WireError, malformed};
use crate::checkpoint::codec::writer::{Differs, Same};
use core::cmp::Ordering;
use minicbor::data::Type;
use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder};

/// Refuses what isn't one value from `start` to the end of `bytes`, in its deterministic encoding (RFC 8949, 4.2.1).
///
/// The value, the unknown ones in it included, is made of integers, byte strings, text, arrays, maps, tags, true, false
/// and null: there is no floating point, as there is none on any path of time.
pub(super) fn check(bytes: &[u8], start: usize) -> Result<(), WireError> {
    let mut d = Decoder::new(bytes);
    d.set_position(start);
    let mut check = Deterministic { d, same: Encoder::new(Same { expected: bytes, at: start }) };
    check.value(MAX_DEPTH)?;
    let at = check.d.position();
    if at == bytes.len() { Ok(()) } else { Err(malformed(at, "the payload", "goes on after its map")) }
}

/// Reads values and writes them again onto the bytes that they came from.
struct Deterministic<'b> {
    d: Decoder<'b>,
    same: Encoder<Same<'b>>,
}

impl Deterministic<'_> {
    fn value(&mut self, depth: usize) -> Result<(), WireError> {
        let start = self.d.position();
        let Some(depth) = depth.checked_sub(1) else {
            return Err(malformed(start, "a value", "is nested too deep"));
        };
        let items = self.head().map_err(|flaw| malformed(start, "a value", flaw.0))?;
        match items {
            Items::None => Ok(()),
            // However many were declared, each takes a byte at least: the loop ends with the input.
            Items::Values(count) => (0..count).try_for_each(|_| self.value(depth)),
            Items::Pairs(count) => {
                let input = self.d.input();
                let mut last: &[u8] = &[];
                for _ in 0..count {
                    let at = self.d.position();
                    self.value(depth)?;
                    let key = &input[at..self.d.position()];
                    match last.cmp(key) {
                        Ordering::Less => last = key,
                        Ordering::Equal => return Err(malformed(at, "a key", "is there twice")),
                        Ordering::Greater => return Err(malformed(at, "a key", "isn't in bytewise order")),
                    }
                    self.value(depth)?;
                }
                Ok(())
            }
        }
    }

    /// Reads a value up to its items, and writes it again.
    fn head(&mut self) -> Result<Items, Flaw> {
        let (d, same) = (&mut self.d, &mut self.same);
        match d.datatype()? {
            Type::U8 | Type::U16 | Type::U32 | Type::U64 => same.u64(d.u64()?)?.ok()?,
            Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int => same.int(d.int()?)?.ok()?,
            // Only their head can have been written in more than one way.
            Type::Bytes => {
                let bytes = d.bytes()?.len();
                same.bytes_len(bytes as u64)?.writer_mut().skip(bytes)?;
            }
            Type::String => same.str(d.str()?)?.ok()?,
            Type::Bool => same.bool(d.bool()?)?.ok()?,
            Type::Null => {
                d.null()?;
                same.null()?;
            }
            Type::Tag => {
                same.tag(d.tag()?)?;
                return Ok(Items::Values(1));
            }
            Type::Array => {
                let count = d.array()?.ok_or(INDEFINITE)?;
                same.array(count)?;
                return Ok(Items::Values(count));
            }
            Type::Map => {
                let count = d.map()?.ok_or(INDEFINITE)?;
                same.map(count)?;
                return Ok(Items::Pairs(count));
            }
            Type::BytesIndef | Type::StringIndef | Type::ArrayIndef | Type::MapIndef | Type::Break => {
                return Err(INDEFINITE);
            }
            Type::F16 | Type::F32 | Type::F64 => return Err(Flaw("is floating point, and a checkpoint has none")),
            Type::Undefined | Type::Simple | Type::Unknown(_) => {
                return Err(Flaw("is a simple value other than true, false and null"));
            }
        }
        Ok(Items::None)
    }
}

/// Items that follow the head of a value.
enum Items {
    None,
    Values(u64),
    Pairs(u64),
}

/// Fault of the value at hand: a predicate.
struct Flaw(&'static str);

const INDEFINITE: Flaw = Flaw("has no definite length");

impl From<decode::Error> for Flaw {
    fn from(_: decode::Error) -> Self {
        Self("isn't CBOR, or the payload ends in it")
    }
}

impl From<Differs> for Flaw {
    fn from(Differs: Differs) -> Self {
        Self(NOT_DETERMINISTIC)
    }
}

impl From<encode::Error<Differs>> for Flaw {
    fn from(_: encode::Error<Differs>) -> Self {
        Self(NOT_DETERMINISTIC)
    }
}
