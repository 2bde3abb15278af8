//! The payload of one VM.

use crate::checkpoint::codec::payload::Payload;
use crate::checkpoint::codec::read::{Reader, read_debt, read_host, read_sync, read_timers};
use crate::checkpoint::codec::terms::{PayloadKind, WireError, malformed};
use crate::checkpoint::codec::write::{
    Keys, Sink, Written, write_debt, write_host, write_sync, write_timers, write_u64s,
};
use crate::checkpoint::columns::{MAX_OTHER_REGS, RegisterColumn, UnknownKey};
use crate::checkpoint::vm::Checkpoint;
use crate::time::{GuestCount, Stamp};
use alloc::vec::Vec;
use minicbor::decode::Decoder;
use minicbor::encode::Encoder;

impl Payload for Checkpoint {
    const KIND: PayloadKind = PayloadKind::Vm;

    fn read(mut r: Reader<'_>) -> Result<Self, WireError> {
        let start = r.position();
        let missing = |what| move || malformed(start, what);
        let (mut cntfrq_hz, mut virtual_count, mut physical_count, mut opted_in, mut width_ticks) =
            (None, None, None, None, None);
        let (mut host, mut stopped_at, mut vcpus, mut cntvoff, mut timers) = (None, None, None, None, None);
        let (mut backlog, mut sync, mut rate_ppb) = (None, None, None);
        let (mut others, mut unknown) = (Vec::new(), Vec::new());

        for _ in 0..r.map("the payload isn't a map")? {
            match r.text("a key of the payload isn't text")? {
                "debt" => backlog = Some(read_debt(&mut r)?),
                "host" => host = Some(read_host(&mut r)?),
                "sync" => sync = Some(read_sync(&mut r)?),
                "owned" => opted_in = Some(r.bool("owned isn't true or false")?),
                "vcpus" => {
                    let what = "vcpus isn't an unsigned integer that a column could be as long as";
                    let at = r.position();
                    vcpus = Some(usize::try_from(r.u64(what)?).map_err(|_| malformed(at, what))?);
                }
                "cntpct" => physical_count = Some(r.u64("cntpct isn't an unsigned integer")?),
                "cntvct" => virtual_count = Some(r.u64("cntvct isn't an unsigned integer")?),
                "timers" => timers = Some(read_timers(&mut r)?),
                "cntvoff" => cntvoff = Some(r.u64s("cntvoff isn't a u64 array (tag 71)")?),
                "rate_ppb" => rate_ppb = Some(r.get("rate_ppb isn't an integer of 64 bits", Decoder::i64)?),
                "cntfrq_hz" => {
                    cntfrq_hz = Some(r.get("cntfrq_hz isn't an unsigned integer of 32 bits", Decoder::u32)?);
                }
                "other_regs" => others = read_other_regs(&mut r)?,
                "stopped_at" => stopped_at = Some(r.u64("stopped_at isn't an unsigned integer")?),
                "width_ticks" => width_ticks = Some(r.u64("width_ticks isn't an unsigned integer")?),
                key => unknown.push(UnknownKey { key: key.into(), value: r.value()?.into() }),
            }
        }
        Ok(Self {
            cntfrq_hz: cntfrq_hz.ok_or_else(missing("cntfrq_hz is missing"))?,
            cntvct: GuestCount(virtual_count.ok_or_else(missing("cntvct is missing"))?),
            cntpct: GuestCount(physical_count.ok_or_else(missing("cntpct is missing"))?),
            opted_in: opted_in.ok_or_else(missing("owned is missing"))?,
            width_ticks: width_ticks.ok_or_else(missing("width_ticks is missing"))?,
            host: Stamp { sync, rate_ppb, ..host.ok_or_else(missing("host is missing"))? },
            stopped_at,
            backlog,
            vcpus: vcpus.ok_or_else(missing("vcpus is missing"))?,
            cntvoff,
            timers: timers.ok_or_else(missing("timers is missing"))?,
            others,
            unknown,
        })
    }

    fn validate(&self) -> Result<(), &'static str> {
        self.validate()
    }

    fn write<S: Sink>(&self, e: &mut Encoder<S>) -> Written<S> {
        let known = 8
            + usize::from(self.backlog.is_some())
            + usize::from(self.host.sync.is_some())
            + usize::from(self.cntvoff.is_some())
            + usize::from(self.host.rate_ppb.is_some())
            + usize::from(!self.others.is_empty())
            + usize::from(self.stopped_at.is_some());
        let mut keys = Keys::of(e, known, &self.unknown)?;
        if let Some(backlog) = &self.backlog {
            write_debt(keys.next("debt")?, backlog)?;
        }
        write_host(keys.next("host")?, &self.host)?;
        if let Some(sync) = &self.host.sync {
            write_sync(keys.next("sync")?, sync)?;
        }
        keys.next("owned")?.bool(self.opted_in)?;
        keys.next("vcpus")?.u64(self.vcpus as u64)?;
        keys.next("cntpct")?.u64(self.cntpct.0)?;
        keys.next("cntvct")?.u64(self.cntvct.0)?;
        write_timers(keys.next("timers")?, &self.timers)?;
        if let Some(cntvoff) = &self.cntvoff {
            write_u64s(keys.next("cntvoff")?, cntvoff)?;
        }
        if let Some(rate_ppb) = self.host.rate_ppb {
            keys.next("rate_ppb")?.i64(rate_ppb)?;
        }
        keys.next("cntfrq_hz")?.u32(self.cntfrq_hz)?;
        if !self.others.is_empty() {
            let e = keys.next("other_regs")?;
            e.map(self.others.len() as u64)?;
            for column in &self.others {
                write_u64s(e.u64(column.id)?, &column.values)?;
            }
        }
        if let Some(stopped_at) = self.stopped_at {
            keys.next("stopped_at")?.u64(stopped_at)?;
        }
        keys.next("width_ticks")?.u64(self.width_ticks)?;
        keys.finish()
    }
}

fn read_other_regs(r: &mut Reader<'_>) -> Result<Vec<RegisterColumn>, WireError> {
    let at = r.position();
    let columns = r.map("other_regs isn't a map")?;
    if columns == 0 || columns > MAX_OTHER_REGS as u64 {
        return Err(malformed(at, "other_regs has no columns, or too many"));
    }
    let mut others = Vec::new();
    for _ in 0..columns {
        let id = r.u64("a key of other_regs isn't an unsigned integer")?;
        others.push(RegisterColumn { id, values: r.u64s("a column of other_regs isn't a u64 array (tag 71)")? });
    }
    Ok(others)
}
