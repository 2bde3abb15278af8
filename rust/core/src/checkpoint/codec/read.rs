//! What payloads are read with: typed values, and the parts that both kinds have.

use crate::arch::arm64::Timer;
use crate::checkpoint::backlog::Backlog;
use crate::checkpoint::codec::terms::{
    KEYS, MAX_KEY_BYTES, MAX_KEYS, PayloadKind, U8_ARRAY, U64_LE_ARRAY, WireError, malformed,
};
use crate::checkpoint::columns::{CtlColumn, TimerColumns};
use crate::time::{Frequency, HostCount, Leap, Quality, SourceName, Stamp, SyncBound};
use alloc::vec::Vec;
use minicbor::data::{Tag, Type};
use minicbor::decode::{self, Decoder};

/// A decoder whose errors say what was expected, and where.
pub(super) struct Reader<'b>(Decoder<'b>);

impl<'b> Reader<'b> {
    pub(super) fn new(bytes: &'b [u8], start: usize) -> Self {
        let mut d = Decoder::new(bytes);
        d.set_position(start);
        Self(d)
    }

    pub(super) fn position(&self) -> usize {
        self.0.position()
    }

    pub(super) fn get<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Decoder<'b>) -> Result<T, decode::Error>,
    ) -> Result<T, WireError> {
        let at = self.position();
        read(&mut self.0).map_err(|_| malformed(at, what))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, WireError> {
        self.get(what, Decoder::u64)
    }

    pub(super) fn bool(&mut self, what: &'static str) -> Result<bool, WireError> {
        self.get(what, Decoder::bool)
    }

    pub(super) fn text(&mut self, what: &'static str) -> Result<&'b str, WireError> {
        self.get(what, Decoder::str)
    }

    pub(super) fn source_name(&mut self) -> Result<SourceName, WireError> {
        let at = self.position();
        let name = SourceName::new(self.text("host.source isn't text")?);
        name.ok_or_else(|| malformed(at, "host.source isn't 1 to 32 characters of a-z, 0-9 and _"))
    }

    pub(super) fn bytes(&mut self, what: &'static str) -> Result<&'b [u8], WireError> {
        self.get(what, Decoder::bytes)
    }

    pub(super) fn any_tag(&mut self, what: &'static str) -> Result<Tag, WireError> {
        self.get(what, Decoder::tag)
    }

    pub(super) fn tag(&mut self, tag: Tag, what: &'static str) -> Result<(), WireError> {
        let at = self.position();
        if self.any_tag(what)? == tag { Ok(()) } else { Err(malformed(at, what)) }
    }

    /// The number of pairs.
    pub(super) fn map(&mut self, what: &'static str) -> Result<u64, WireError> {
        let at = self.position();
        self.get(what, Decoder::map)?.ok_or(malformed(at, what))
    }

    /// A machine or boot id.
    fn id(&mut self, what: &'static str) -> Result<[u8; 16], WireError> {
        let at = self.position();
        self.bytes(what)?.try_into().map_err(|_| malformed(at, what))
    }

    pub(super) fn u64s(&mut self, what: &'static str) -> Result<Vec<u64>, WireError> {
        self.tag(U64_LE_ARRAY, what)?;
        self.u64_elements(what)
    }

    fn u64_elements(&mut self, what: &'static str) -> Result<Vec<u64>, WireError> {
        Ok(self.elements(what)?.iter().copied().map(u64::from_le_bytes).collect())
    }

    /// The elements of a typed array of N bytes each, its tag already read.
    pub(super) fn elements<const N: usize>(&mut self, what: &'static str) -> Result<&'b [[u8; N]], WireError> {
        let at = self.position();
        let (elements, rest) = self.bytes(what)?.as_chunks();
        if rest.is_empty() { Ok(elements) } else { Err(malformed(at, what)) }
    }

    /// Whether a typed array is next: any other value would be that of all rows.
    pub(super) fn tag_is_next(&self) -> bool {
        matches!(self.0.datatype(), Ok(Type::Tag))
    }

    fn ctl(&mut self) -> Result<CtlColumn, WireError> {
        let what = "a timer's ctl is neither a u8 array (tag 64) nor a u64 array (tag 71)";
        let at = self.position();
        match self.any_tag(what)? {
            U8_ARRAY => Ok(CtlColumn::Bits(self.bytes(what)?.into())),
            U64_LE_ARRAY => Ok(CtlColumn::Wide(self.u64_elements(what)?)),
            _ => Err(malformed(at, what)),
        }
    }

    /// A value of any kind, as it stands.
    pub(super) fn value(&mut self) -> Result<&'b [u8], WireError> {
        let at = self.position();
        self.get("this isn't CBOR", Decoder::skip)?;
        Ok(&self.0.input()[at..self.position()])
    }

    pub(super) fn finish(self) -> Result<(), WireError> {
        let at = self.position();
        if at == self.0.input().len() { Ok(()) } else { Err(malformed(at, "the file goes on after the checksum")) }
    }
}

/// What the payload is of, by its keys: those of a set have `groups` among them. `crit` is looked at here, before any
/// other key is taken for what it was.
pub(super) fn payload_kind(mut r: Reader<'_>) -> Result<PayloadKind, WireError> {
    let start = r.position();
    let keys = r.map("the payload isn't a map")?;
    if keys > MAX_KEYS as u64 {
        return Err(malformed(start, "the payload has too many keys"));
    }
    let mut kind = PayloadKind::Vm;
    for _ in 0..keys {
        let at = r.position();
        match r.text("a key of the payload isn't text")? {
            // No known key sorts before it.
            "crit" => return Err(read_crit(&mut r)),
            "groups" => kind = PayloadKind::Set,
            key if key.len() > MAX_KEY_BYTES => return Err(malformed(at, "a key of the payload is too long")),
            _ => {}
        }
        r.value()?;
    }
    Ok(kind)
}

/// Version 1 has nothing to put into `crit`, so where it is there, the file is refused: for the key that it names, or
/// for naming none that a reader of version 1 may miss.
fn read_crit(r: &mut Reader<'_>) -> WireError {
    let at = r.position();
    let names = match r.get("crit isn't an array of text", Decoder::array) {
        Ok(names) => names.unwrap_or(0),
        Err(error) => return error,
    };
    for _ in 0..names {
        let at = r.position();
        match r.text("crit isn't an array of text") {
            Ok(name) if name.len() > MAX_KEY_BYTES => return malformed(at, "a name in crit is too long for a key"),
            Ok(name) if !KEYS.contains(&name) => return WireError::UnsupportedFeature { feature: name.into() },
            Ok(_) => {}
            Err(error) => return error,
        }
    }
    malformed(at, "crit names no key beyond those of version 1, which every reader knows")
}

pub(super) fn read_host(r: &mut Reader<'_>) -> Result<Stamp, WireError> {
    let start = r.position();
    let missing = |what| move || malformed(start, what);
    let (mut count, mut frequency, mut source, mut realtime_ns) = (None, None, None, None);
    let (mut width_ns, mut leap) = (None, None);
    let (mut tai_offset_s, mut synchronized, mut max_error_ns) = (None, None, None);
    let (mut machine_id, mut boot_id) = (None, None);
    for _ in 0..r.map("host isn't a map")? {
        let at = r.position();
        match r.text("a key of host isn't text")? {
            "leap" => {
                let what = "host.leap isn't none, insert, delete, in-progress, passed or unknown";
                let at = r.position();
                leap = Some(Leap::from_name(r.text(what)?).ok_or(malformed(at, what))?);
            }
            "count" => count = Some(r.u64("host.count isn't an unsigned integer")?),
            "source" => source = Some(r.source_name()?),
            "boot_id" => boot_id = Some(r.id("host.boot_id isn't a byte string of 16 bytes")?),
            "width_ns" => width_ns = Some(r.u64("host.width_ns isn't an unsigned integer")?),
            "machine_id" => machine_id = Some(r.id("host.machine_id isn't a byte string of 16 bytes")?),
            "realtime_ns" => {
                realtime_ns = Some(r.get("host.realtime_ns isn't an integer of 64 bits", Decoder::i64)?);
            }
            "frequency_hz" => {
                let what = "host.frequency_hz isn't an unsigned integer above 0";
                let at = r.position();
                frequency = Some(Frequency::new(r.u64(what)?).ok_or(malformed(at, what))?);
            }
            "max_error_ns" => max_error_ns = Some(r.u64("host.max_error_ns isn't an unsigned integer")?),
            "synchronized" => synchronized = Some(r.bool("host.synchronized isn't true or false")?),
            "tai_offset_s" => {
                tai_offset_s = Some(r.get("host.tai_offset_s isn't an integer of 32 bits", Decoder::i32)?);
            }
            _ => return Err(malformed(at, "host has a key that version 1 hasn't")),
        }
    }
    Ok(Stamp {
        count: HostCount(count.ok_or_else(missing("host.count is missing"))?),
        frequency: frequency.ok_or_else(missing("host.frequency_hz is missing"))?,
        source: source.ok_or_else(missing("host.source is missing"))?,
        realtime_ns: realtime_ns.ok_or_else(missing("host.realtime_ns is missing"))?,
        width_ns: width_ns.ok_or_else(missing("host.width_ns is missing"))?,
        tai_offset_s,
        synchronized,
        max_error_ns,
        sync: None,
        rate_ppb: None,
        leap: leap.ok_or_else(missing("host.leap is missing"))?,
        machine_id,
        boot_id,
    })
}

pub(super) fn read_debt(r: &mut Reader<'_>) -> Result<Backlog, WireError> {
    const PARTS: &str = "debt isn't a map of step_ns, owed_ticks and interval_ns, unsigned integers";
    let start = r.position();
    if r.map(PARTS)? != 3 {
        return Err(malformed(start, PARTS));
    }
    let mut part = |key| if r.text(PARTS)? == key { r.u64(PARTS) } else { Err(malformed(start, PARTS)) };
    let (step_ns, remaining_ticks, interval_ns) = (part("step_ns")?, part("owed_ticks")?, part("interval_ns")?);
    Backlog::new(remaining_ticks, step_ns, interval_ns).ok_or_else(|| malformed(start, "debt has a 0"))
}

pub(super) fn read_sync(r: &mut Reader<'_>) -> Result<SyncBound, WireError> {
    const PARTS: &str = "sync isn't a map of age_ns, quality, holdover_ppb, max_error_ns and perhaps tai_offset_s";
    let start = r.position();
    let parts = r.map(PARTS)?;
    if !(4..=5).contains(&parts) {
        return Err(malformed(start, PARTS));
    }
    let key = |r: &mut Reader<'_>, key| if r.text(PARTS)? == key { Ok(()) } else { Err(malformed(start, PARTS)) };
    key(r, "age_ns")?;
    let age_ns = r.u64("sync.age_ns isn't an unsigned integer")?;
    key(r, "quality")?;
    let what = "sync.quality isn't declared, chrony, clockbound or kernel-unverified";
    let at = r.position();
    let name = r.text(what)?;
    let named = Quality::NAMES.into_iter().find(|(known, _)| *known == name);
    let (_, quality) = named.ok_or(malformed(at, what))?;
    key(r, "holdover_ppb")?;
    let holdover_ppb = r.u64("sync.holdover_ppb isn't an unsigned integer")?;
    key(r, "max_error_ns")?;
    let max_error_ns = r.u64("sync.max_error_ns isn't an unsigned integer")?;
    let mut tai_offset_s = None;
    if parts == 5 {
        key(r, "tai_offset_s")?;
        tai_offset_s = Some(r.get("sync.tai_offset_s isn't an integer of 32 bits", Decoder::i32)?);
    }
    Ok(SyncBound { max_error_ns, age_ns, holdover_ppb, quality, tai_offset_s })
}

pub(super) fn read_timers(r: &mut Reader<'_>) -> Result<Vec<TimerColumns>, WireError> {
    // By number, to give the columns back in that order: the keys' own is another.
    let mut columns = Timer::ALL.map(|_| None);
    for _ in 0..r.map("timers isn't a map")? {
        let at = r.position();
        let name = r.text("a key of timers isn't text")?;
        let timer = Timer::ALL
            .into_iter()
            .find(|timer| timer.name() == name)
            .ok_or(malformed(at, "timers has a key that isn't vtimer, ptimer, hvtimer or hptimer"))?;
        columns[timer.index()] = Some(read_timer(r, timer)?);
    }
    Ok(columns.into_iter().flatten().collect())
}

fn read_timer(r: &mut Reader<'_>, timer: Timer) -> Result<TimerColumns, WireError> {
    const PARTS: &str = "a timer isn't a map of ctl and cval";
    let start = r.position();
    if r.map(PARTS)? != 2 || r.text(PARTS)? != "ctl" {
        return Err(malformed(start, PARTS));
    }
    let ctl = r.ctl()?;
    if r.text(PARTS)? != "cval" {
        return Err(malformed(start, PARTS));
    }
    Ok(TimerColumns { timer, cval: r.u64s("a timer's cval isn't a u64 array (tag 71)")?, ctl })
}
