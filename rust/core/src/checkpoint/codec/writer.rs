//! Typed values of a payload, written.

use crate::checkpoint::codec::reader::Value;
use crate::checkpoint::codec::terms::{U8_ARRAY, U64_LE_ARRAY};
use crate::checkpoint::column::{Column, Form};
use crate::checkpoint::names::text_order;
use crate::checkpoint::vms::UnknownKey;
use alloc::vec::Vec;
use core::convert::Infallible;
use minicbor::data::Tag;
use minicbor::encode::{self, Encoder, Write};

/// Result of writing into a sink.
pub(super) type Written<W> = Result<(), encode::Error<<W as Write>::Error>>;

/// The payload's keys in their order, the unknown ones written where they belong among the known.
pub(super) struct Keys<'a, W> {
    e: &'a mut Encoder<W>,
    unknown: &'a [UnknownKey],
}

impl<'a, W: Write> Keys<'a, W> {
    /// Begins the map, which has so many keys that are known.
    pub(super) fn of(
        e: &'a mut Encoder<W>,
        known: usize,
        unknown: &'a [UnknownKey],
    ) -> Result<Self, encode::Error<W::Error>> {
        e.map((known + unknown.len()) as u64)?;
        Ok(Self { e, unknown })
    }

    pub(super) fn next(&mut self, key: &str) -> Result<&mut Encoder<W>, encode::Error<W::Error>> {
        self.unknown_before(Some(key))?;
        self.e.str(key)
    }

    /// The unknown keys that come after all known ones.
    pub(super) fn finish(mut self) -> Written<W> {
        self.unknown_before(None)
    }

    fn unknown_before(&mut self, key: Option<&str>) -> Written<W> {
        while let Some((first, rest)) = self.unknown.split_first()
            && key.is_none_or(|key| text_order(&first.key, key).is_lt())
        {
            self.e.str(&first.key)?.writer_mut().write_all(&first.value).map_err(encode::Error::write)?;
            self.unknown = rest;
        }
        Ok(())
    }
}

pub(super) fn write_value<W: Write>(e: &mut Encoder<W>, value: Value<'_>) -> Written<W> {
    match value {
        Value::Unsigned(value) => e.u64(value)?,
        Value::Negative(value) => e.i64(value)?,
        Value::Bool(value) => e.bool(value)?,
        Value::Text(value) => e.str(value)?,
        Value::Bytes(value) => e.bytes(value)?,
    }
    .ok()
}

pub(super) fn write_column<S: Sink>(e: &mut Encoder<S>, column: &Column) -> Written<S> {
    match column.form() {
        Form::Same(value) => e.u64(*value)?.ok(),
        Form::Bytes(values) => write_elements(e, U8_ARRAY, values, |value| [*value]),
        Form::Words(values) => write_words(e, values),
    }
}

pub(super) fn write_words<S: Sink>(e: &mut Encoder<S>, values: &[u64]) -> Written<S> {
    write_elements(e, U64_LE_ARRAY, values, |value| value.to_le_bytes())
}

/// A typed array of N bytes an element.
fn write_elements<T, const N: usize, S: Sink>(
    e: &mut Encoder<S>,
    tag: Tag,
    column: &[T],
    bytes: impl Fn(&T) -> [u8; N],
) -> Written<S> {
    e.tag(tag)?.bytes_len((N * column.len()) as u64)?;
    e.writer_mut().elements(column, bytes).map_err(encode::Error::write)
}

/// Where a payload is written to.
pub(super) trait Sink: Write {
    /// Takes a column, N bytes an element.
    fn elements<T, const N: usize>(&mut self, column: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Result<(), Self::Error>;
}

impl Sink for Vec<u8> {
    fn elements<T, const N: usize>(&mut self, column: &[T], bytes: impl Fn(&T) -> [u8; N]) -> Result<(), Infallible> {
        // In blocks that stay in the nearest cache: element by element it would look for room each time.
        const AT_ONCE: usize = 256;
        let mut block = [[0; N]; AT_ONCE];
        for elements in column.chunks(AT_ONCE) {
            for (written, element) in block.iter_mut().zip(elements) {
                *written = bytes(element);
            }
            self.extend_from_slice(block[..elements.len()].as_flattened());
        }
        Ok(())
    }
}

/// A sink that only counts.
pub(super) struct Count(pub(super) usize);

impl Write for Count {
    type Error = Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0 += bytes.len();
        Ok(())
    }
}

impl Sink for Count {
    fn elements<T, const N: usize>(&mut self, column: &[T], _: impl Fn(&T) -> [u8; N]) -> Result<(), Infallible> {
        self.0 += N * column.len();
        Ok(())
    }
}

/// A sink that already knows what it should be given, and fails at the first byte that differs.
///
/// Of a column only the length is compared: its elements were copied from these bytes, each in the one form that it
/// has.
pub(super) struct Same<'b> {
    pub(super) expected: &'b [u8],
    pub(super) at: usize,
}

/// The first byte that differs is at the sink's `at`.
pub(super) struct Differs;

impl Same<'_> {
    /// Takes so many bytes as they are expected.
    pub(super) fn skip(&mut self, bytes: usize) -> Result<(), Differs> {
        if self.expected.len() - self.at < bytes {
            return Err(Differs);
        }
        self.at += bytes;
        Ok(())
    }
}

impl Write for Same<'_> {
    type Error = Differs;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Differs> {
        let expected = &self.expected[self.at..];
        if expected.starts_with(bytes) {
            self.at += bytes.len();
            return Ok(());
        }
        self.at += expected.iter().zip(bytes).take_while(|(one, other)| one == other).count();
        Err(Differs)
    }
}

impl Sink for Same<'_> {
    fn elements<T, const N: usize>(&mut self, column: &[T], _: impl Fn(&T) -> [u8; N]) -> Result<(), Differs> {
        self.skip(N * column.len())
    }
}
