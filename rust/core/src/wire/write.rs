//! From a checkpoint to its payload, in the order of its keys.

use super::{CRC_BYTES, ENCODED_CBOR, MAGIC, U8_ARRAY, U64_LE_ARRAY, VERSION};
use crate::checkpoint::{Checkpoint, CtlColumn, TimerColumns, UnknownKey};
use crate::counter::CrossTimestamp;
use crate::debt::Debt;
use crate::timer::Timer;
use crate::wall_clock::SyncBound;
use core::cmp::Ordering;
use core::convert::Infallible;
use minicbor::encode::{self, Encoder, Write};

/// The order of keys in a map: bytewise, by their encodings (RFC 8949, 4.2.1), so that shorter text comes first.
pub(super) fn key_order(one: &str, other: &str) -> Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

/// The timers in the order of their keys.
pub(super) const TIMERS: [Timer; 4] = [Timer::Ptimer, Timer::Vtimer, Timer::Hptimer, Timer::Hvtimer];

/// What writing into a sink gives.
type Written<W> = Result<(), encode::Error<<W as Write>::Error>>;

/// Everything before the checksum's four bytes.
pub(super) fn write_body<W: Write>(e: &mut Encoder<W>, checkpoint: &Checkpoint, payload: usize) -> Written<W> {
    e.writer_mut().write_all(MAGIC).map_err(encode::Error::write)?;
    e.u64(VERSION)?.tag(ENCODED_CBOR)?.bytes_len(payload as u64)?;
    write_payload(e, checkpoint)?;
    e.bytes_len(CRC_BYTES as u64)?.ok()
}

pub(super) fn write_payload<W: Write>(e: &mut Encoder<W>, checkpoint: &Checkpoint) -> Written<W> {
    let known = 8
        + usize::from(checkpoint.debt.is_some())
        + usize::from(checkpoint.host.sync.is_some())
        + usize::from(checkpoint.cntvoff.is_some())
        + usize::from(checkpoint.host.rate_ppb.is_some())
        + usize::from(!checkpoint.others.is_empty())
        + usize::from(checkpoint.stopped_at.is_some());
    e.map((known + checkpoint.unknown.len()) as u64)?;
    let mut keys = Keys { e, unknown: &checkpoint.unknown };
    if let Some(debt) = &checkpoint.debt {
        write_debt(keys.next("debt")?, debt)?;
    }
    write_host(keys.next("host")?, &checkpoint.host)?;
    if let Some(sync) = &checkpoint.host.sync {
        write_sync(keys.next("sync")?, sync)?;
    }
    keys.next("owned")?.bool(checkpoint.owned)?;
    keys.next("vcpus")?.u64(checkpoint.vcpus as u64)?;
    keys.next("cntpct")?.u64(checkpoint.cntpct.0)?;
    keys.next("cntvct")?.u64(checkpoint.cntvct.0)?;
    write_timers(keys.next("timers")?, &checkpoint.timers)?;
    if let Some(cntvoff) = &checkpoint.cntvoff {
        write_u64s(keys.next("cntvoff")?, cntvoff)?;
    }
    if let Some(rate_ppb) = checkpoint.host.rate_ppb {
        keys.next("rate_ppb")?.i64(rate_ppb)?;
    }
    keys.next("cntfrq_hz")?.u32(checkpoint.cntfrq_hz)?;
    if !checkpoint.others.is_empty() {
        let e = keys.next("other_regs")?;
        e.map(checkpoint.others.len() as u64)?;
        for column in &checkpoint.others {
            write_u64s(e.u64(column.id)?, &column.values)?;
        }
    }
    if let Some(stopped_at) = checkpoint.stopped_at {
        keys.next("stopped_at")?.u64(stopped_at)?;
    }
    keys.next("width_ticks")?.u64(checkpoint.width_ticks)?;
    keys.unknown_before(None)
}

/// The payload's keys in their order, the unknown ones written where they belong among the known.
struct Keys<'a, W> {
    e: &'a mut Encoder<W>,
    unknown: &'a [UnknownKey],
}

impl<W: Write> Keys<'_, W> {
    fn next(&mut self, key: &str) -> Result<&mut Encoder<W>, encode::Error<W::Error>> {
        self.unknown_before(Some(key))?;
        self.e.str(key)
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

fn write_host<W: Write>(e: &mut Encoder<W>, host: &CrossTimestamp) -> Written<W> {
    let optional = usize::from(host.boot_id.is_some())
        + usize::from(host.machine_id.is_some())
        + usize::from(host.max_error_ns.is_some())
        + usize::from(host.synchronized.is_some())
        + usize::from(host.tai_offset_s.is_some());
    e.map((6 + optional) as u64)?;
    e.str("leap")?.str(host.leap.name())?;
    e.str("count")?.u64(host.count.0)?;
    e.str("source")?.str(&host.source)?;
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

fn write_debt<W: Write>(e: &mut Encoder<W>, debt: &Debt) -> Written<W> {
    e.map(3)?;
    e.str("step_ns")?.u64(debt.step_ns)?;
    e.str("owed_ticks")?.u64(debt.owed_ticks)?;
    e.str("interval_ns")?.u64(debt.interval_ns)?.ok()
}

fn write_sync<W: Write>(e: &mut Encoder<W>, sync: &SyncBound) -> Written<W> {
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

fn write_timers<W: Write>(e: &mut Encoder<W>, timers: &[TimerColumns]) -> Written<W> {
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

fn write_u64s<W: Write>(e: &mut Encoder<W>, column: &[u64]) -> Written<W> {
    const AT_ONCE: usize = 64;
    e.tag(U64_LE_ARRAY)?.bytes_len(size_of_val(column) as u64)?;
    let mut buffer = [[0; 8]; AT_ONCE];
    for values in column.chunks(AT_ONCE) {
        for (bytes, value) in buffer.iter_mut().zip(values) {
            *bytes = value.to_le_bytes();
        }
        e.writer_mut().write_all(buffer[..values.len()].as_flattened()).map_err(encode::Error::write)?;
    }
    Ok(())
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

/// A sink that already knows what it should be given, and fails at the first byte that differs.
pub(super) struct Same<'b> {
    pub(super) expected: &'b [u8],
    pub(super) at: usize,
}

/// The first byte that differs is at the sink's `at`.
pub(super) struct Differs;

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
