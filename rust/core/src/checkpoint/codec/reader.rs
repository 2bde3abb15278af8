//! Typed values of a payload, read.

use crate::checkpoint::codec::terms::{WireError, malformed};
use crate::checkpoint::names::text_order;
use core::cmp::Ordering;
use minicbor::data::{Tag, Type};
use minicbor::decode::{self, Decoder};

/// A decoder whose errors say what was expected, of which key, and where.
pub(super) struct Reader<'b> {
    d: Decoder<'b>,
    /// Key of the value that is read.
    key: &'static str,
}

/// A plain value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Negative(i64),
    Bool(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8], start: usize) -> Self {
        let mut d = Decoder::new(bytes);
        d.set_position(start);
        Self { d, key: "the payload" }
    }

    /// Another reader of the same bytes, at the same place.
    pub(super) fn fork(&self) -> Self {
        Self { d: self.d.clone(), key: self.key }
    }

    pub(super) fn position(&self) -> usize {
        self.d.position()
    }

    /// Names what is read next, for errors.
    pub(super) const fn of(&mut self, key: &'static str) {
        self.key = key;
    }

    pub(super) const fn malformed(&self, at: usize, what: &'static str) -> WireError {
        malformed(at, self.key, what)
    }

    fn get<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Decoder<'b>) -> Result<T, decode::Error>,
    ) -> Result<T, WireError> {
        let at = self.position();
        read(&mut self.d).map_err(|_| malformed(at, self.key, what))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.get("isn't an unsigned integer", Decoder::u64)
    }

    pub(super) fn text(&mut self) -> Result<&'b str, WireError> {
        self.get("isn't text", Decoder::str)
    }

    pub(super) fn bytes(&mut self, what: &'static str) -> Result<&'b [u8], WireError> {
        self.get(what, Decoder::bytes)
    }

    pub(super) fn tag(&mut self, what: &'static str) -> Result<Tag, WireError> {
        self.get(what, Decoder::tag)
    }

    /// Reads the head of a map: the number of pairs.
    pub(super) fn map(&mut self) -> Result<u64, WireError> {
        let at = self.position();
        self.get("isn't a map", Decoder::map)?.ok_or_else(|| self.malformed(at, "isn't a map"))
    }

    /// Reads the head of a map whose keys are looked for in their order.
    pub(super) fn keys(&mut self) -> Result<Keys<'b>, WireError> {
        let start = self.position();
        Ok(Keys { start, left: self.map()?, next: None })
    }

    /// Reads the head of an array: the number of items.
    pub(super) fn array(&mut self) -> Result<u64, WireError> {
        let at = self.position();
        self.get("isn't an array", Decoder::array)?.ok_or_else(|| self.malformed(at, "isn't an array"))
    }

    /// Reads the elements of a typed array of N bytes each, its tag already read.
    pub(super) fn elements<const N: usize>(&mut self, what: &'static str) -> Result<&'b [[u8; N]], WireError> {
        let at = self.position();
        let (elements, rest) = self.bytes(what)?.as_chunks();
        if rest.is_empty() { Ok(elements) } else { Err(self.malformed(at, what)) }
    }

    /// Type of the value that is next; `None` at the end of the bytes.
    pub(super) fn next_type(&self) -> Option<Type> {
        self.d.datatype().ok()
    }

    /// Reads a value that is no array, map or tag.
    pub(super) fn value(&mut self) -> Result<Value<'b>, WireError> {
        const WHAT: &str = "is a value of another type";
        let at = self.position();
        match self.next_type() {
            Some(Type::U8 | Type::U16 | Type::U32 | Type::U64) => Ok(Value::Unsigned(self.u64()?)),
            Some(Type::I8 | Type::I16 | Type::I32 | Type::I64 | Type::Int) => {
                self.get("is below -2^63", Decoder::i64).map(Value::Negative)
            }
            Some(Type::Bool) => self.get(WHAT, Decoder::bool).map(Value::Bool),
            Some(Type::String) => self.text().map(Value::Text),
            Some(Type::Bytes) => self.bytes(WHAT).map(Value::Bytes),
            _ => Err(self.malformed(at, WHAT)),
        }
    }

    /// Skips a value of any kind: its bytes, as they stand.
    pub(super) fn skip(&mut self) -> Result<&'b [u8], WireError> {
        let at = self.position();
        self.get("isn't CBOR", Decoder::skip)?;
        Ok(&self.d.input()[at..self.position()])
    }

    pub(super) fn finish(self) -> Result<(), WireError> {
        let at = self.position();
        if at == self.d.input().len() { Ok(()) } else { Err(malformed(at, "the file", "goes on after the checksum")) }
    }
}

/// Keys of a map that are looked for in their order.
pub(super) struct Keys<'b> {
    start: usize,
    left: u64,
    next: Option<&'b str>,
}

impl<'b> Keys<'b> {
    /// Place of the map in the file.
    pub(super) const fn start(&self) -> usize {
        self.start
    }

    /// Returns whether the next key is this one. If it is, its value comes next; if not, the key is looked at again.
    /// Refuses a key that comes before this one: it wasn't looked for.
    pub(super) fn next_is(&mut self, r: &mut Reader<'b>, key: &'static str) -> Result<bool, WireError> {
        if self.next.is_none() && self.left > 0 {
            r.of("a key");
            self.next = Some(r.text()?);
            self.left -= 1;
        }
        r.of(key);
        match self.next.map(|next| text_order(next, key)) {
            Some(Ordering::Less) => Err(self.unknown()),
            Some(Ordering::Equal) => {
                self.next = None;
                Ok(true)
            }
            Some(Ordering::Greater) | None => Ok(false),
        }
    }

    /// Refuses a key that wasn't looked for.
    pub(super) const fn finish(&self) -> Result<(), WireError> {
        if self.next.is_none() && self.left == 0 { Ok(()) } else { Err(self.unknown()) }
    }

    const fn unknown(&self) -> WireError {
        malformed(self.start, "the map", "has a key that version 1 hasn't")
    }
}

impl<'a> Value<'a> {
    pub(super) const fn unsigned(self) -> Option<u64> {
        if let Self::Unsigned(value) = self { Some(value) } else { None }
    }

    pub(super) fn signed(self) -> Option<i64> {
        match self {
            Self::Unsigned(value) => i64::try_from(value).ok(),
            Self::Negative(value) => Some(value),
            _ => None,
        }
    }

    pub(super) const fn bool(self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(value) } else { None }
    }

    pub(super) const fn text(self) -> Option<&'a str> {
        if let Self::Text(value) = self { Some(value) } else { None }
    }

    /// A machine or boot id.
    pub(super) fn id(self) -> Option<[u8; 16]> {
        if let Self::Bytes(value) = self { value.try_into().ok() } else { None }
    }

    pub(super) const fn from_signed(value: i64) -> Self {
        if value < 0 { Self::Negative(value) } else { Self::Unsigned(value.unsigned_abs()) }
    }
}
