//! What the tests of the format share: checkpoints of every shape, and a way to make bytes that `encode` wouldn't.

#![allow(dead_code, reason = "each test takes what it needs")]

use guestclock_core::arch::arm64::{Encoding, Timer};
use guestclock_core::checkpoint::{
    Backlog, Checkpoint, CheckpointSet, Column, CtlColumn, RegisterColumn, TimerColumns, UnknownKey, VmGroup,
};
use guestclock_core::time::{Frequency, GuestCount, HostCount, Leap, Quality, SourceName, Stamp, SyncBound};
use minicbor::Encoder;
use minicbor::data::Tag;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use std::cmp::Ordering;

pub(crate) mod target;

/// The least that a checkpoint can say, as in tests/golden/make.py.
pub(crate) fn bare() -> Checkpoint {
    Checkpoint {
        cntfrq_hz: 62_500_000,
        cntvct: GuestCount(200),
        cntpct: GuestCount(200),
        opted_in: true,
        width_ticks: 0,
        host: Stamp {
            count: HostCount(300),
            frequency: Frequency::new(62_500_000).unwrap(),
            source: SourceName::MANUAL,
            realtime_ns: 0,
            width_ns: 0,
            tai_offset_s: None,
            synchronized: None,
            max_error_ns: None,
            sync: None,
            rate_ppb: None,
            leap: Leap::Unknown,
            machine_id: None,
            boot_id: None,
        },
        stopped_at: None,
        backlog: None,
        vcpus: 1,
        cntvoff: None,
        timers: vec![timer(Timer::Vtimer, &[1], &[1000])],
        others: Vec::new(),
        unknown: Vec::new(),
    }
}

pub(crate) fn timer(timer: Timer, ctl: &[u64], cval: &[u64]) -> TimerColumns {
    TimerColumns { timer, cval: cval.to_vec(), ctl: CtlColumn::new(ctl.iter().copied()) }
}

/// A checkpoint with everything in it.
pub(crate) fn full(vcpus: usize) -> Checkpoint {
    let count = |first: u64| (0..vcpus as u64).map(|n| first + n).collect::<Vec<_>>();
    let mut timers: Vec<_> = Timer::ALL.iter().map(|&t| timer(t, &vec![3; vcpus], &count(1 << 40))).collect();
    timers[3].ctl = CtlColumn::new(count(1 << 20).iter().map(|ctl| ctl << 3));
    Checkpoint {
        host: Stamp {
            tai_offset_s: Some(37),
            synchronized: Some(true),
            max_error_ns: Some(500_000),
            sync: Some(SyncBound {
                max_error_ns: 50_000,
                age_ns: 1_000_000_000,
                holdover_ppb: 50_000,
                quality: Quality::Chrony,
                tai_offset_s: Some(37),
            }),
            rate_ppb: Some(-3_820),
            machine_id: Some([0x5a; 16]),
            boot_id: Some([0xa5; 16]),
            ..bare().host
        },
        stopped_at: Some(299),
        backlog: Backlog::new(1 << 35, 5_000_000_000, 10_000_000_000),
        vcpus,
        cntvoff: Some(count(7)),
        timers,
        unknown: vec![UnknownKey { key: "later".into(), value: vec![0x82, 0x01, 0x61, b'x'] }],
        ..bare()
    }
}

/// So many VMs of two vCPUs with two timers, of the host's own frequency, in one group.
pub(crate) fn plain_set(vms: usize) -> CheckpointSet {
    let count = |first: u64, rows: usize| (0..rows as u64).map(|n| first + 3 * n).collect::<Vec<_>>();
    let rows = 2 * vms;
    let timers = [Timer::Vtimer, Timer::Ptimer].map(|t| timer(t, &vec![1; rows], &count(1 << 40, rows)));
    let group = VmGroup {
        cntfrq_hz: 62_500_000,
        names: count(1 << 31, vms),
        vcpus: Column::Same(2),
        cntvct: count(1 << 36, vms),
        cntpct: None,
        opted_in: Column::Same(true),
        backlogs: Vec::new(),
        cntvoff: None,
        timers: timers.into(),
    };
    CheckpointSet { host: bare().host, stopped_at: None, groups: vec![group], unknown: Vec::new() }
}

/// A set with everything in it: two groups, the other one nested, of three VMs or more.
pub(crate) fn full_set(vms: usize) -> CheckpointSet {
    let plain = plain_set(vms);
    let Checkpoint { host, stopped_at, backlog, cntvoff, timers, unknown, .. } = full(3 * vms - 1);
    let group = VmGroup {
        cntfrq_hz: 24_000_000,
        names: plain.groups[0].names.iter().map(|name| name + 1).collect(),
        vcpus: Column::new((0..vms).map(|vm| if vm == 0 { 2 } else { 3 }).collect()),
        cntpct: Some(plain.groups[0].names.clone()),
        opted_in: Column::new((0..vms).map(|vm| vm > 0).collect()),
        backlogs: (1..vms).map(|vm| (vm, backlog.unwrap())).collect(),
        cntvoff: cntvoff.map(Column::new),
        timers,
        ..plain.groups[0].clone()
    };
    CheckpointSet { host, stopped_at, groups: vec![group, plain.groups[0].clone()], unknown }
}

/// The checksum, over what stands before it: after a change, so that the parser is reached.
pub(crate) fn reseal(mut bytes: Vec<u8>) -> Vec<u8> {
    let Some(end) = bytes.len().checked_sub(4) else { return bytes };
    let crc = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The file round these bytes as its payload.
pub(crate) fn seal(payload: &[u8]) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    e.tag(Tag::new(55799)).unwrap().array(4).unwrap().str("guestclock").unwrap().u64(1).unwrap();
    e.tag(Tag::new(24)).unwrap().bytes(payload).unwrap().bytes(&[0; 4]).unwrap();
    reseal(e.into_writer())
}

/// A value's CBOR.
pub(crate) fn cbor(write: impl FnOnce(&mut Encoder<Vec<u8>>)) -> Vec<u8> {
    let mut e = Encoder::new(Vec::new());
    write(&mut e);
    e.into_writer()
}

pub(crate) fn u64s(values: &[u64]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    cbor(|e| {
        e.tag(Tag::new(71)).unwrap().bytes(&bytes).unwrap();
    })
}

pub(crate) fn u16s(values: &[u16]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    cbor(|e| {
        e.tag(Tag::new(69)).unwrap().bytes(&bytes).unwrap();
    })
}

pub(crate) fn u8s(values: &[u8]) -> Vec<u8> {
    cbor(|e| {
        e.tag(Tag::new(64)).unwrap().bytes(values).unwrap();
    })
}

/// A map of text keys, for taking valid ones apart and putting them together wrong.
#[derive(Clone, Default)]
pub(crate) struct Map(pub(crate) Vec<(String, Vec<u8>)>);

impl Map {
    /// The map in these bytes.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut d = minicbor::Decoder::new(bytes);
        let mut map = Self::default();
        for _ in 0..d.map().unwrap().unwrap() {
            let key = d.str().unwrap().to_owned();
            let at = d.position();
            d.skip().unwrap();
            map.0.push((key, bytes[at..d.position()].to_vec()));
        }
        map
    }

    /// The payload of a checkpoint.
    pub(crate) fn payload_of(checkpoint: &Checkpoint) -> Self {
        Self::payload_in(&guestclock_core::checkpoint::codec::encode(checkpoint))
    }

    /// The payload of a set.
    pub(crate) fn payload_of_set(set: &CheckpointSet) -> Self {
        Self::payload_in(&guestclock_core::checkpoint::codec::encode_set(set).unwrap())
    }

    /// The payload in a file.
    pub(crate) fn payload_in(bytes: &[u8]) -> Self {
        let mut d = minicbor::Decoder::new(&bytes[16..]);
        d.tag().unwrap();
        Self::read(d.bytes().unwrap())
    }

    /// The map with the key set, in its place.
    pub(crate) fn with(mut self, key: &str, value: Vec<u8>) -> Self {
        self = self.without(key);
        let order = |other: &str| other.len().cmp(&key.len()).then_with(|| other.cmp(key)) == Ordering::Less;
        let place = self.0.partition_point(|(other, _)| order(other));
        self.0.insert(place, (key.to_owned(), value));
        self
    }

    pub(crate) fn without(mut self, key: &str) -> Self {
        self.0.retain(|(other, _)| other != key);
        self
    }

    /// The maps in the array of this one with that key.
    pub(crate) fn each(&self, key: &str) -> Vec<Self> {
        let (_, bytes) = self.0.iter().find(|(other, _)| other == key).unwrap();
        let mut d = minicbor::Decoder::new(bytes);
        let count = d.array().unwrap().unwrap();
        let mut next = |_| {
            let at = d.position();
            d.skip().unwrap();
            Self::read(&bytes[at..d.position()])
        };
        (0..count).map(&mut next).collect()
    }

    /// An array of maps, as a value.
    pub(crate) fn array(maps: &[Self]) -> Vec<u8> {
        [cbor(|e| drop(e.array(maps.len() as u64))), maps.iter().flat_map(Self::bytes).collect()].concat()
    }

    /// The map in this one with that key.
    pub(crate) fn inner(&self, key: &str) -> Self {
        Self::read(&self.0.iter().find(|(other, _)| other == key).unwrap().1)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        cbor(|e| {
            e.map(self.0.len() as u64).unwrap();
            for (key, value) in &self.0 {
                e.str(key).unwrap();
                e.writer_mut().extend_from_slice(value);
            }
        })
    }

    /// The file with it as its payload.
    pub(crate) fn seal(&self) -> Vec<u8> {
        seal(&self.bytes())
    }
}

/// A number where it is most likely to go wrong: at an end of its range, at a power of two, or anywhere.
fn edgy() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        any::<u64>(),
        (0u32..64, -1i64..=1).prop_map(|(bit, by)| (1u64 << bit).wrapping_add_signed(by)),
    ]
}

fn sync() -> impl Strategy<Value = SyncBound> {
    (edgy(), edgy(), edgy(), 0..Quality::NAMES.len(), any::<Option<i32>>()).prop_map(
        |(max_error_ns, age_ns, holdover_ppb, quality, tai_offset_s)| {
            let (_, quality) = Quality::NAMES[quality];
            SyncBound { max_error_ns, age_ns, holdover_ppb, quality, tai_offset_s }
        },
    )
}

fn backlog() -> impl Strategy<Value = Backlog> {
    let part = || edgy().prop_map(|part| part.max(1));
    (part(), part(), part()).prop_map(|(remaining_ticks, step_ns, interval_ns)| {
        Backlog::new(remaining_ticks, step_ns, interval_ns).unwrap()
    })
}

fn host() -> impl Strategy<Value = Stamp> {
    (
        // Boxed, since the whole would need too much of a test's stack.
        (option::of(sync().boxed()), option::of(edgy().prop_map(u64::cast_signed).boxed())),
        (edgy(), edgy().prop_map(|hz| hz.max(1)), "[a-z0-9_]{1,32}", edgy(), edgy()),
        (any::<Option<i32>>(), any::<Option<bool>>(), option::of(edgy()), 0..Leap::ALL.len()),
        (any::<Option<[u8; 16]>>(), any::<Option<[u8; 16]>>()),
    )
        .prop_map(
            |(
                (sync, rate_ppb),
                (count, hz, source, realtime, width_ns),
                (tai_offset_s, synchronized, max_error_ns, leap),
                ids,
            )| {
                Stamp {
                    count: HostCount(count),
                    frequency: Frequency::new(hz).unwrap(),
                    source: SourceName::new(&source).unwrap(),
                    realtime_ns: realtime.cast_signed(),
                    width_ns,
                    tai_offset_s,
                    synchronized,
                    max_error_ns,
                    sync,
                    rate_ppb,
                    leap: Leap::ALL[leap],
                    machine_id: ids.0,
                    boot_id: ids.1,
                }
            },
        )
}

/// A CTL column of either width.
fn ctl(vcpus: usize) -> impl Strategy<Value = CtlColumn> {
    prop_oneof![vec(0u64..4, vcpus), vec(edgy(), vcpus)].prop_map(CtlColumn::new)
}

fn timers(vcpus: usize) -> impl Strategy<Value = Vec<TimerColumns>> {
    (0u8..8).prop_flat_map(move |others| timers_of(others, vcpus))
}

/// vtimer, and the others as the bits say.
fn timers_of(others: u8, vcpus: usize) -> impl Strategy<Value = Vec<TimerColumns>> {
    vec((vec(edgy(), vcpus), ctl(vcpus)), 4).prop_map(move |columns| {
        let present = others << 1 | 1;
        Timer::ALL
            .into_iter()
            .zip(columns)
            .filter(|(timer, _)| present >> timer.index() & 1 == 1)
            .map(|(timer, (cval, ctl))| TimerColumns { timer, cval, ctl })
            .collect()
    })
}

/// Deterministic CBOR of any kind that a checkpoint may hold.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        edgy().prop_map(|n| cbor(|e| drop(e.u64(n)))),
        any::<i64>().prop_map(|n| cbor(|e| drop(e.i64(n)))),
        vec(any::<u8>(), 0..30).prop_map(|bytes| cbor(|e| drop(e.bytes(&bytes)))),
        ".{0,10}".prop_map(|text| cbor(|e| drop(e.str(&text)))),
        any::<bool>().prop_map(|b| cbor(|e| drop(e.bool(b)))),
        Just(vec![0xf6]),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            (edgy(), inner.clone()).prop_map(|(tag, value)| [cbor(|e| drop(e.tag(Tag::new(tag)))), value].concat()),
            vec(inner.clone(), 0..5)
                .prop_map(|values| [cbor(|e| drop(e.array(values.len() as u64))), values.concat()].concat()),
            btree_map(inner.clone(), inner, 0..5).prop_map(|pairs| {
                let mut bytes = cbor(|e| drop(e.map(pairs.len() as u64)));
                for (key, value) in pairs {
                    bytes.extend(key);
                    bytes.extend(value);
                }
                bytes
            }),
        ]
    })
}

const KNOWN: [&str; 16] = [
    "crit",
    "debt",
    "host",
    "sync",
    "owned",
    "vcpus",
    "cntpct",
    "cntvct",
    "groups",
    "timers",
    "cntvoff",
    "rate_ppb",
    "cntfrq_hz",
    "other_regs",
    "stopped_at",
    "width_ticks",
];

fn unknown() -> impl Strategy<Value = Vec<UnknownKey>> {
    btree_map("[a-zA-Zäß_]{0,14}".prop_filter("known", |key| !KNOWN.contains(&key.as_str())), value(), 0..6).prop_map(
        |pairs| {
            let mut keys: Vec<_> = pairs.into_iter().map(|(key, value)| UnknownKey { key, value }).collect();
            keys.sort_by(|one, other| one.key.len().cmp(&other.key.len()).then_with(|| one.key.cmp(&other.key)));
            keys
        },
    )
}

/// Registers of the timer's that nobody knows, in their order.
fn others(vcpus: usize) -> impl Strategy<Value = Vec<RegisterColumn>> {
    // op1 and op2 vary, CRm is 4: nothing known is there.
    btree_map(0u8..64, vec(edgy(), vcpus), 0..4).prop_map(|columns| {
        let id = |which| Encoding(3, which >> 3, 14, 4, which & 7).one_reg_id();
        columns.into_iter().map(|(which, values)| RegisterColumn { id: id(which), values }).collect()
    })
}

/// Any checkpoint.
pub(crate) fn checkpoint() -> impl Strategy<Value = Checkpoint> {
    (0usize..6).prop_flat_map(|vcpus| {
        (
            (edgy(), edgy(), edgy(), any::<bool>(), edgy(), option::of(backlog().boxed())),
            (
                host().boxed(),
                option::of(edgy()),
                option::of(vec(edgy(), vcpus)),
                timers(vcpus).boxed(),
                others(vcpus).boxed(),
                unknown().boxed(),
            ),
        )
            .prop_map(
                move |(
                    (cntfrq, virt, phys, opted_in, width_ticks, backlog),
                    (host, stopped_at, cntvoff, timers, others, unknown),
                )| {
                    Checkpoint {
                        cntfrq_hz: u32::try_from(cntfrq).unwrap_or(u32::MAX).max(1),
                        cntvct: GuestCount(virt),
                        cntpct: GuestCount(phys),
                        opted_in,
                        width_ticks,
                        host,
                        stopped_at,
                        backlog,
                        vcpus,
                        cntvoff,
                        timers,
                        others,
                        unknown,
                    }
                },
            )
    })
}

/// A column of either form.
fn column<T>(value: impl Strategy<Value = T> + Clone, rows: usize) -> impl Strategy<Value = Column<T>>
where
    T: Copy + PartialEq + std::fmt::Debug,
{
    prop_oneof![vec(value.clone(), rows), value.prop_map(move |value| vec![value; rows])].prop_map(Column::new)
}

/// VMs of these names, which aren't none.
fn group((cntfrq_hz, others, nested): (u32, u8, bool), names: Vec<u64>) -> impl Strategy<Value = VmGroup> {
    let vms = names.len();
    column(1u16..=3, vms).prop_flat_map(move |vcpus| {
        let rows = (0..vms).filter_map(|vm| vcpus.get(vm)).map(usize::from).sum();
        let (names, vcpus) = (names.clone(), vcpus.clone());
        (
            (vec(edgy(), vms), option::of(vec(edgy(), vms)), column(any::<bool>(), vms)),
            (vec(option::of(backlog()), vms), column(any::<u64>(), rows), timers_of(others, rows).boxed()),
        )
            .prop_map(move |((cntvct, cntpct, opted_in), (backlogs, cntvoff, timers))| VmGroup {
                cntfrq_hz,
                names: names.clone(),
                vcpus: vcpus.clone(),
                cntpct: cntpct.filter(|cntpct| *cntpct != cntvct),
                cntvct,
                opted_in,
                backlogs: backlogs.into_iter().enumerate().filter_map(|(vm, backlog)| Some((vm, backlog?))).collect(),
                cntvoff: nested.then_some(cntvoff),
                timers,
            })
    })
}

/// Any set.
pub(crate) fn set() -> impl Strategy<Value = CheckpointSet> {
    let frequency = prop_oneof![Just(24_000_000), Just(62_500_000), 1..=u32::MAX];
    let kinds = btree_set((frequency, 0u8..8, any::<bool>()), 1..4);
    // Who is in which of the groups.
    (kinds, btree_map(edgy(), any::<prop::sample::Index>(), 0..9)).prop_flat_map(|(kinds, vms)| {
        let names = |place| {
            let its = |(name, of): (&u64, &prop::sample::Index)| (of.index(kinds.len()) == place).then_some(*name);
            vms.iter().filter_map(its).collect::<Vec<_>>()
        };
        let groups: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(place, kind)| (*kind, names(place)))
            .filter(|(_, names)| !names.is_empty())
            .map(|(kind, names)| group(kind, names).boxed())
            .collect();
        (host().boxed(), option::of(edgy()), groups, unknown().boxed())
            .prop_map(|(host, stopped_at, groups, unknown)| CheckpointSet { host, stopped_at, groups, unknown })
    })
}
