//! What payloads are written with: sinks, and the parts that both kinds have.

use crate::arch::arm64::Timer;
use crate::checkpoint::backlog::Backlog;
use crate::checkpoint::codec::terms::{U8_ARRAY, U64_LE_ARRAY};
use crate::checkpoint::columns::{CtlColumn, TimerColumns, UnknownKey};
use crate::time::{Stamp, SyncBound};
use alloc::vec::Vec;
use core::cmp::Ordering;
use core::convert::Infallible;
use minicbor::data::Tag;
use minicbor::encode::{self, Encoder, Write};

/// The order of keys in a map: bytewise, by their encodings (RFC 8949, 4.2.1), so that shorter text comes first.
pub(super) fn key_order(one: &str, other: &str) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

/// The timers in the order of their keys.
pub(super) const TIMERS: [Timer; 4] = [Timer::Ptimer, Timer::Vtimer, Timer::Hptimer, Timer::Hvtimer];

/// What writing into a sink gives.
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
            && key.is_none_or(|key| key_order(&first.key, key).is_lt())
        {
            self.e.str(&first.key)?.writer_mut().write_all(&first.value).map_err(encode::Error::write)?;
            self.unknown = rest;
        }
        Ok(())
    }
}

pub(super) fn write_host<W: Write>(e: &mut Encoder<W>, host: &Stamp) -> Written<W> {
    let optional = usize::from(host.boot_id.is_some())
        + usize::from(host.machine_id.is_some())
        + usize::from(host.max_error_ns.is_some())
        + usize::from(host.synchronized.is_some())
        + usize::from(host.tai_offset_s.is_some());
    e.map((6 + optional) as u64)?;
    e.str("leap")?.str(host.leap.name())?;
    e.str("count")?.u64(host.count.0)?;
    e.str("source")?.str(host.source.as_str())?;
    if let Some(boot_id) = &host.boot_id {
        e.str("boot_id")?.bytes(boot_id)?;
    }
    e.str("width_ns")?.u64(host.width_ns)?;
    if let Some(machine_id) = &host.machine_id {
        e.str("machine_id")?.bytes(machine_id)?;
    }
    e.str("realtime_ns")?.i64(host.realtime_ns)?;
    e.str("frequency_hz")?.u64(host.frequency.hz())?;
    if let Some(max_error_ns) = host.max_error_ns {
        e.str("max_error_ns")?.u64(max_error_ns)?;
    }
    if let Some(synchronized) = host.synchronized {
        e.str("synchronized")?.bool(synchronized)?;
    }
    if let Some(tai_offset_s) = host.tai_offset_s {
        e.str("tai_offset_s")?.i32(tai_offset_s)?;
    }
    Ok(())
}

pub(super) fn write_debt<W: Write>(e: &mut Encoder<W>, backlog: &Backlog) -> Written<W> {
    e.map(3)?;
    e.str("step_ns")?.u64(backlog.step_ns.get())?;
    e.str("owed_ticks")?.u64(backlog.remaining_ticks.get())?;
    e.str("interval_ns")?.u64(backlog.interval_ns.get())?.ok()
}

pub(super) fn write_sync<W: Write>(e: &mut Encoder<W>, sync: &SyncBound) -> Written<W> {
    e.map(4 + u64::from(sync.tai_offset_s.is_some()))?;
    e.str("age_ns")?.u64(sync.age_ns)?;
    e.str("quality")?.str(sync.quality.name())?;
    e.str("holdover_ppb")?.u64(sync.holdover_ppb)?;
    e.str("max_error_ns")?.u64(sync.max_error_ns)?;
    if let Some(tai_offset_s) = sync.tai_offset_s {
        e.str("tai_offset_s")?.i32(tai_offset_s)?;
    }
    Ok(())
}

pub(super) fn write_timers<S: Sink>(e: &mut Encoder<S>, timers: &[TimerColumns]) -> Written<S> {
    e.map(timers.len() as u64)?;
    for timer in TIMERS {
        for columns in timers.iter().filter(|columns| columns.timer == timer) {
            e.str(timer.name())?.map(2)?.str("ctl")?;
            match &columns.ctl {
                CtlColumn::Bits(bits) => e.tag(U8_ARRAY)?.bytes(bits)?.ok()?,
                CtlColumn::Wide(wide) => write_u64s(e, wide)?,
            }
            write_u64s(e.str("cval")?, &columns.cval)?;
        }
    }
    Ok(())
}

pub(super) fn write_u64s<S: Sink>(e: &mut Encoder<S>, column: &[u64]) -> Written<S> {
    write_elements(e, U64_LE_ARRAY, column, |value| value.to_le_bytes())
}

/// A typed array of N bytes an element.
pub(super) fn write_elements<T, const N: usize, S: Sink>(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::codec::terms::KEYS;

    #[test]
    fn keys_are_listed_in_their_order() {
        assert!(KEYS.is_sorted_by(|one, next| key_order(one, next).is_lt()));
        assert!(TIMERS.is_sorted_by(|one, next| key_order(one.name(), next.name()).is_lt()));
        assert_eq!(TIMERS.len(), Timer::ALL.len());
    }
}
