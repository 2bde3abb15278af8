//! The payload of a set of VMs.

use crate::checkpoint::backlog::Backlog;
use crate::checkpoint::codec::payload::Payload;
use crate::checkpoint::codec::read::{Reader, read_host, read_sync, read_timers};
use crate::checkpoint::codec::terms::{KEYS, PayloadKind, U8_ARRAY, U16_LE_ARRAY, U64_LE_ARRAY, WireError, malformed};
use crate::checkpoint::codec::write::{
    Keys, Sink, Written, write_elements, write_host, write_sync, write_timers, write_u64s,
};
use crate::checkpoint::columns::{Column, UnknownKey};
use crate::checkpoint::set::{CheckpointSet, MAX_GROUPS, VmGroup};
use crate::time::Stamp;
use alloc::vec::Vec;
use minicbor::decode::Decoder;
use minicbor::encode::Encoder;

impl Payload for CheckpointSet {
    const KIND: PayloadKind = PayloadKind::Set;

    fn read(mut r: Reader<'_>) -> Result<Self, WireError> {
        let start = r.position();
        let (mut host, mut sync, mut rate_ppb, mut stopped_at) = (None, None, None, None);
        let (mut groups, mut unknown) = (Vec::new(), Vec::new());
        for _ in 0..r.map("the payload isn't a map")? {
            let at = r.position();
            match r.text("a key of the payload isn't text")? {
                "host" => host = Some(read_host(&mut r)?),
                "sync" => sync = Some(read_sync(&mut r)?),
                "groups" => groups = read_groups(&mut r)?,
                "rate_ppb" => rate_ppb = Some(r.get("rate_ppb isn't an integer of 64 bits", Decoder::i64)?),
                "stopped_at" => stopped_at = Some(r.u64("stopped_at isn't an unsigned integer")?),
                key if KEYS.contains(&key) => {
                    return Err(malformed(at, "a set has a key that only a checkpoint of one VM has"));
                }
                key => unknown.push(UnknownKey { key: key.into(), value: r.value()?.into() }),
            }
        }
        let host = host.ok_or_else(|| malformed(start, "host is missing"))?;
        Ok(Self { host: Stamp { sync, rate_ppb, ..host }, stopped_at, groups, unknown })
    }

    fn validate(&self) -> Result<(), &'static str> {
        self.validate()
    }

    fn write<S: Sink>(&self, e: &mut Encoder<S>) -> Written<S> {
        let known = 2
            + usize::from(self.host.sync.is_some())
            + usize::from(self.host.rate_ppb.is_some())
            + usize::from(self.stopped_at.is_some());
        let mut keys = Keys::of(e, known, &self.unknown)?;
        write_host(keys.next("host")?, &self.host)?;
        if let Some(sync) = &self.host.sync {
            write_sync(keys.next("sync")?, sync)?;
        }
        let e = keys.next("groups")?.array(self.groups.len() as u64)?;
        self.groups.iter().try_for_each(|group| write_group(e, group))?;
        if let Some(rate_ppb) = self.host.rate_ppb {
            keys.next("rate_ppb")?.i64(rate_ppb)?;
        }
        if let Some(stopped_at) = self.stopped_at {
            keys.next("stopped_at")?.u64(stopped_at)?;
        }
        keys.finish()
    }
}

fn read_groups(r: &mut Reader<'_>) -> Result<Vec<VmGroup>, WireError> {
    let what = "groups isn't an array of at most 64 maps";
    let at = r.position();
    let count = r.get(what, Decoder::array)?.and_then(|count| usize::try_from(count).ok());
    let count = count.filter(|&count| count <= MAX_GROUPS).ok_or(malformed(at, what))?;
    let mut groups = Vec::with_capacity(count);
    for _ in 0..count {
        groups.push(read_group(r)?);
    }
    Ok(groups)
}

fn read_group(r: &mut Reader<'_>) -> Result<VmGroup, WireError> {
    let start = r.position();
    let missing = |what| move || malformed(start, what);
    let (mut names, mut opted_in, mut vcpus, mut virtual_counts, mut timers) = (None, None, None, None, None);
    let (mut backlogs, mut physical_counts, mut cntvoff, mut cntfrq_hz) = (Vec::new(), None, None, None);
    for _ in 0..r.map("groups isn't an array of maps")? {
        let at = r.position();
        match r.text("a key of a group isn't text")? {
            "debts" => backlogs = read_debts(r)?,
            "names" => names = Some(r.u64s("names isn't a u64 array (tag 71)")?),
            "owned" => opted_in = Some(read_owned(r)?),
            "vcpus" => vcpus = Some(read_vcpus(r)?),
            "cntpct" => physical_counts = Some(r.u64s("cntpct isn't a u64 array (tag 71)")?),
            "cntvct" => virtual_counts = Some(r.u64s("cntvct isn't a u64 array (tag 71)")?),
            "timers" => timers = Some(read_timers(r)?),
            "cntvoff" => {
                let what = "cntvoff is neither an unsigned integer nor a u64 array (tag 71)";
                let each = r.tag_is_next();
                cntvoff = Some(if each { Column::Each(r.u64s(what)?) } else { Column::Same(r.u64(what)?) });
            }
            "cntfrq_hz" => {
                cntfrq_hz = Some(r.get("cntfrq_hz isn't an unsigned integer of 32 bits", Decoder::u32)?);
            }
            _ => return Err(malformed(at, "a group has a key that version 1 hasn't")),
        }
    }
    Ok(VmGroup {
        cntfrq_hz: cntfrq_hz.ok_or_else(missing("cntfrq_hz is missing"))?,
        names: names.ok_or_else(missing("names is missing"))?,
        vcpus: vcpus.ok_or_else(missing("vcpus is missing"))?,
        cntvct: virtual_counts.ok_or_else(missing("cntvct is missing"))?,
        cntpct: physical_counts,
        opted_in: opted_in.ok_or_else(missing("owned is missing"))?,
        backlogs,
        cntvoff,
        timers: timers.ok_or_else(missing("timers is missing"))?,
    })
}

fn read_owned(r: &mut Reader<'_>) -> Result<Column<bool>, WireError> {
    let what = "owned is neither true nor false, nor a u8 array (tag 64) of 0 and 1";
    if !r.tag_is_next() {
        return Ok(Column::Same(r.bool(what)?));
    }
    let at = r.position();
    r.tag(U8_ARRAY, what)?;
    let column = r.bytes(what)?;
    // All bits that are set anywhere: a loop without an early end becomes vector code.
    if column.iter().fold(0, |all, one| all | one) > 1 {
        return Err(malformed(at, what));
    }
    Ok(Column::Each(column.iter().map(|&one| one == 1).collect()))
}

fn read_vcpus(r: &mut Reader<'_>) -> Result<Column<u16>, WireError> {
    let what = "vcpus is neither an unsigned integer of 16 bits nor a u16 array (tag 69)";
    if !r.tag_is_next() {
        return Ok(Column::Same(r.get(what, Decoder::u16)?));
    }
    r.tag(U16_LE_ARRAY, what)?;
    Ok(Column::Each(r.elements(what)?.iter().copied().map(u16::from_le_bytes).collect()))
}

/// Columns here, though few VMs owe: what is allocated is as long as what is there.
fn read_debts(r: &mut Reader<'_>) -> Result<Vec<(usize, Backlog)>, WireError> {
    const PARTS: &str =
        "debts isn't a map of rows, step_ns, owed_ticks and interval_ns, u64 arrays of one length above 0";
    let start = r.position();
    if r.map(PARTS)? != 4 {
        return Err(malformed(start, PARTS));
    }
    let mut part = |key| {
        if r.text(PARTS)? != key {
            return Err(malformed(start, PARTS));
        }
        r.tag(U64_LE_ARRAY, PARTS)?;
        r.elements(PARTS)
    };
    let (rows, step_ns) = (part("rows")?, part("step_ns")?);
    let (remaining_ticks, interval_ns) = (part("owed_ticks")?, part("interval_ns")?);
    if rows.is_empty() || [step_ns, remaining_ticks, interval_ns].iter().any(|column| column.len() != rows.len()) {
        return Err(malformed(start, PARTS));
    }
    let number = |column: &[[u8; 8]], row: usize| u64::from_le_bytes(column[row]);
    let backlog = |row| {
        let vm = usize::try_from(number(rows, row)).map_err(|_| malformed(start, PARTS))?;
        let (step_ns, remaining_ticks) = (number(step_ns, row), number(remaining_ticks, row));
        let backlog = Backlog::new(remaining_ticks, step_ns, number(interval_ns, row));
        Ok((vm, backlog.ok_or_else(|| malformed(start, "debt has a 0"))?))
    };
    let mut backlogs = Vec::with_capacity(rows.len());
    for row in 0..rows.len() {
        backlogs.push(backlog(row)?);
    }
    Ok(backlogs)
}

fn write_group<S: Sink>(e: &mut Encoder<S>, group: &VmGroup) -> Written<S> {
    let optional = usize::from(!group.backlogs.is_empty())
        + usize::from(group.cntpct.is_some())
        + usize::from(group.cntvoff.is_some());
    e.map((6 + optional) as u64)?;
    if !group.backlogs.is_empty() {
        write_debts(e.str("debts")?, &group.backlogs)?;
    }
    write_u64s(e.str("names")?, &group.names)?;
    e.str("owned")?;
    match &group.opted_in {
        Column::Same(opted_in) => e.bool(*opted_in)?.ok()?,
        Column::Each(opted_in) => write_elements(e, U8_ARRAY, opted_in, |&opted_in| [u8::from(opted_in)])?,
    }
    e.str("vcpus")?;
    match &group.vcpus {
        Column::Same(vcpus) => e.u16(*vcpus)?.ok()?,
        Column::Each(vcpus) => write_elements(e, U16_LE_ARRAY, vcpus, |vcpus| vcpus.to_le_bytes())?,
    }
    if let Some(cntpct) = &group.cntpct {
        write_u64s(e.str("cntpct")?, cntpct)?;
    }
    write_u64s(e.str("cntvct")?, &group.cntvct)?;
    write_timers(e.str("timers")?, &group.timers)?;
    if let Some(cntvoff) = &group.cntvoff {
        e.str("cntvoff")?;
        match cntvoff {
            Column::Same(cntvoff) => e.u64(*cntvoff)?.ok()?,
            Column::Each(cntvoff) => write_u64s(e, cntvoff)?,
        }
    }
    e.str("cntfrq_hz")?.u32(group.cntfrq_hz)?.ok()
}

fn write_debts<S: Sink>(e: &mut Encoder<S>, backlogs: &[(usize, Backlog)]) -> Written<S> {
    e.map(4)?;
    let mut part = |key, of: fn(&(usize, Backlog)) -> u64| {
        write_elements(e.str(key)?, U64_LE_ARRAY, backlogs, |backlog| of(backlog).to_le_bytes())
    };
    part("rows", |(vm, _)| *vm as u64)?;
    part("step_ns", |(_, backlog)| backlog.step_ns.get())?;
    part("owed_ticks", |(_, backlog)| backlog.remaining_ticks.get())?;
    part("interval_ns", |(_, backlog)| backlog.interval_ns.get())
}
