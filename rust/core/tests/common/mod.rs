//! Parts shared by the tests of checkpoints: checkpoints of every shape as plain data, and a way to make bytes that `encode`
//! wouldn't.

#![allow(dead_code, reason = "each test takes what it needs")]

use guestclock_core::arch::RegId;
use guestclock_core::arch::arm64::{Encoding, Role, Timer, one_reg_id};
use guestclock_core::checkpoint::codec::{decode, encode};
use guestclock_core::checkpoint::{
    Backlog, BuildError, Checkpoint, GroupBuilder, GuestTime, Interrupts, Name, Reading, UnknownKey, VmName,
};
use guestclock_core::time::{BootTime, Frequency, GuestCount, Leap, Quality, SourceName, Stamp, StampCount, SyncBound};
use minicbor::data::{Tag, Type};
use minicbor::{Decoder, Encoder};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

pub(crate) mod target;

/// A VM of a checkpoint as plain data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Vm {
    pub(crate) name: VmName,
    pub(crate) time: GuestTime,
    /// Values of the registers, one a vCPU, by their ids.
    pub(crate) registers: BTreeMap<u64, Vec<u64>>,
    /// Addresses of the stolen-time records, one a vCPU.
    pub(crate) stolen_time: Vec<Option<u64>>,
}

impl Vm {
    /// A VM of so many vCPUs that has opted in, with registers of the virtual timer alone: CTL is 1, CVAL is 1000.
    pub(crate) fn plain(name: &str, vcpus: u16, hz: u32, timeline: u64) -> Self {
        let vm = Self {
            name: VmName::new(name).unwrap(),
            time: GuestTime::opted_in(vcpus, NonZeroU32::new(hz).unwrap(), GuestCount(timeline)),
            registers: BTreeMap::new(),
            stolen_time: vec![None; vcpus.into()],
        };
        vm.timer(Timer::Vtimer, &vec![1; vcpus.into()], &vec![1000; vcpus.into()])
    }

    /// The VM with registers of a timer.
    pub(crate) fn timer(self, timer: Timer, ctl: &[u64], cval: &[u64]) -> Self {
        self.register(one_reg_id(Role::Ctl(timer)), ctl).register(one_reg_id(Role::Cval(timer)), cval)
    }

    /// The VM with CNTVOFF_EL2.
    pub(crate) fn cntvoff(self, values: &[u64]) -> Self {
        self.register(one_reg_id(Role::Cntvoff), values)
    }

    /// The VM with a register.
    pub(crate) fn register(mut self, id: u64, values: &[u64]) -> Self {
        self.registers.insert(id, values.to_vec());
        self
    }

    /// The VM with its time changed.
    pub(crate) fn time(mut self, change: impl FnOnce(&mut GuestTime)) -> Self {
        change(&mut self.time);
        self
    }

    /// The registers as `Checkpoint::of_one` takes them.
    pub(crate) fn columns(&self) -> Vec<(RegId, Vec<u64>)> {
        self.registers.iter().map(|(id, values)| (RegId(*id), values.clone())).collect()
    }

    /// Place among the VMs of a file: groups by their registers, names by their length.
    fn order(&self) -> (Vec<u64>, usize, &str) {
        (self.registers.keys().copied().collect(), self.name.as_str().len(), self.name.as_str())
    }
}

/// A checkpoint as plain data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Contents {
    pub(crate) stamp: Stamp,
    pub(crate) vms: Vec<Vm>,
    pub(crate) unknown: Vec<UnknownKey>,
}

impl Contents {
    /// The contents of a checkpoint, VM by VM.
    pub(crate) fn of(checkpoint: &Checkpoint) -> Self {
        let vms = checkpoint.vms().map(|vm| Vm {
            name: VmName::new(vm.name()).unwrap(),
            time: vm.time(),
            registers: (vm.group().0.registers().iter())
                .map(|column| (column.id().0, column.values().values(vm.rows())))
                .collect(),
            stolen_time: (0..vm.vcpus()).map(|vcpu| vm.stolen_time(vcpu)).collect(),
        });
        Self { stamp: *checkpoint.stamp(), vms: vms.collect(), unknown: checkpoint.unknown().to_vec() }
    }

    /// The same VMs in the order that a file has.
    pub(crate) fn in_order(mut self) -> Self {
        self.vms.sort_by(|one, other| one.order().cmp(&other.order()));
        self
    }

    /// The checkpoint, without the unknown keys.
    pub(crate) fn build(&self) -> Result<Checkpoint, BuildError> {
        let mut groups: BTreeMap<Vec<u64>, GroupBuilder> = BTreeMap::new();
        for vm in &self.vms {
            let ids: Vec<u64> = vm.registers.keys().copied().collect();
            if !groups.contains_key(&ids) {
                groups.insert(ids.clone(), GroupBuilder::new(ids.iter().copied().map(RegId))?);
            }
            let group = groups.get_mut(&ids).unwrap();
            group.push(Name::Text(&vm.name), &vm.time, |id, values| values.extend(&vm.registers[&id.0]));
            for (vcpu, address) in vm.stolen_time.iter().enumerate() {
                if let Some(address) = address {
                    group.stolen_time(vcpu, *address);
                }
            }
        }
        Checkpoint::of(self.stamp, groups.into_values())
    }

    /// The checkpoint. Nobody but a later version makes one with unknown keys, so those come by way of its bytes.
    pub(crate) fn made(&self) -> Checkpoint {
        let checkpoint = self.build().unwrap();
        if self.unknown.is_empty() {
            return checkpoint;
        }
        let keys = self.unknown.iter().map(|unknown| (cbor(|e| drop(e.str(&unknown.key))), unknown.value.clone()));
        let payload = keys.fold(Doc::payload_of(&checkpoint), |payload, (key, value)| payload.with_key(key, value));
        decode(&payload.seal()).unwrap()
    }

    /// The same with its first VM changed.
    pub(crate) fn with(mut self, change: impl FnOnce(Vm) -> Vm) -> Self {
        let vm = self.vms.remove(0);
        self.vms.insert(0, change(vm));
        self
    }

    /// The same with its first VM's time changed.
    pub(crate) fn time(self, change: impl FnOnce(&mut GuestTime)) -> Self {
        self.with(|vm| vm.time(change))
    }

    /// The same at another instant.
    pub(crate) fn at(self, stamp: Stamp) -> Self {
        Self { stamp, ..self }
    }
}

/// The least that a checkpoint of one VM can say, as in tests/golden/make.py.
pub(crate) fn bare() -> Contents {
    let frequency = Frequency::new(62_500_000).unwrap();
    let stamp = Stamp::unvouched(StampCount(300), frequency, SourceName::MANUAL, 0, 0);
    Contents { stamp, vms: vec![Vm::plain("", 1, 62_500_000, 200)], unknown: Vec::new() }
}

/// Everything that a stamp can say.
pub(crate) fn full_stamp() -> Stamp {
    Stamp {
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
        boot_time: Some(BootTime { boottime_ns: 4_600_000_000_000, slept_ns: 3_600_000_000_000, width_ns: 120 }),
        ..bare().stamp
    }
}

/// So many numbers from `first` on.
pub(crate) fn counted(first: u64, rows: usize) -> Vec<u64> {
    (0..rows as u64).map(|row| first + 3 * row).collect()
}

/// So many VMs of two vCPUs with two timers, of the host's own frequency.
pub(crate) fn plain_host(vms: usize) -> Contents {
    let vm = |vm: usize| {
        let timeline = (1 << 36) + vm as u64;
        Vm::plain(&format!("vm-{vm:06}"), 2, 62_500_000, timeline)
            .timer(Timer::Vtimer, &[1, 1], &counted(1 << 40, 2))
            .timer(Timer::Ptimer, &[1, 1], &counted(timeline, 2))
    };
    Contents { vms: (0..vms).map(vm).collect(), ..bare() }
}

/// A VM of whose time everything is known: nested, of another frequency than the host's, with registers that nobody
/// knows. Its columns differ from row to row.
pub(crate) fn full_vm(name: &str, vcpus: u16) -> Vm {
    let rows = usize::from(vcpus);
    let vm = Vm::plain(name, vcpus, 24_000_000, 1 << 40).time(|time| {
        time.opted_in = false;
        (time.virtual_width_ticks, time.physical_width_ticks) = (17, 2_000);
        time.physical_displacement_ticks = 5;
        time.backlog = Backlog::new(1 << 35, 5_000_000_000, 10_000_000_000);
        time.stopped_at = Some(StampCount(299));
        time.interrupts = Some(Interrupts([27, 30, 28, 26]));
        time.vmclock_address = Some(0x4000_0000);
        time.reading = Some(Reading { count: GuestCount(19), realtime_ns: 1_750_000_000_000_000_000, width_ns: 250 });
    });
    let ctl: Vec<u64> = (0..vcpus).map(|vcpu| u64::from(vcpu) % 4).collect();
    let vm = Timer::ALL.iter().fold(vm, |vm, &timer| vm.timer(timer, &ctl, &counted(1 << 40, rows)));
    let vm = vm.cntvoff(&counted(7, rows)).register(UNNAMED, &vec![1 << 40; rows]);
    let stolen_time = (0..u64::from(vcpus)).map(|vcpu| Some(0x8000_0000 + 64 * vcpu)).collect();
    Vm { stolen_time, ..vm.register(UNNAMED + 1, &counted(5, rows)) }
}

/// A register of the generic timer that has no name yet; the next id has none either.
pub(crate) const UNNAMED: u64 = 0x6030_0000_0013_e730;

/// One VM of which everything is known, and an unknown key.
pub(crate) fn full(vcpus: u16) -> Contents {
    let unknown = vec![UnknownKey { key: "later".into(), value: vec![0x82, 0x01, 0x61, b'x'] }];
    Contents { stamp: full_stamp(), vms: vec![full_vm("full", vcpus)], unknown }
}

/// So many VMs of each of two groups. The first group's VMs have 1, 2 and 3 vCPUs in turn, and everything is known of
/// every other VM. The second group's are plain, with the virtual timer alone.
pub(crate) fn full_host(vms: usize) -> Contents {
    let other = |vm: usize| {
        let vcpus = u16::try_from(1 + vm % 3).unwrap();
        let full = full_vm(&format!("nested-{vm:06}"), vcpus);
        if vm.is_multiple_of(2) {
            return full;
        }
        let time = GuestTime::opted_in(vcpus, NonZeroU32::new(1_000_000_000).unwrap(), GuestCount(vm as u64));
        Vm { time, stolen_time: vec![None; vcpus.into()], ..full }
    };
    let plain = plain_host(vms).vms.into_iter().map(|mut vm| {
        vm.registers
            .retain(|id, _| ![Role::Ctl(Timer::Ptimer), Role::Cval(Timer::Ptimer)].map(one_reg_id).contains(id));
        vm
    });
    Contents { vms: (0..vms).map(other).chain(plain).collect(), ..full(1) }
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

pub(crate) fn u8s(values: &[u8]) -> Vec<u8> {
    cbor(|e| {
        e.tag(Tag::new(64)).unwrap().bytes(values).unwrap();
    })
}

/// CBOR taken apart, to be put together wrong: maps and arrays, and every other value as its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Doc {
    Bytes(Vec<u8>),
    Array(Vec<Self>),
    /// The keys are CBOR too.
    Map(Vec<(Vec<u8>, Self)>),
}

/// Keys and numbers of items that lead to a value, as in `groups/0/names`.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|step| !step.is_empty())
}

/// CBOR of a key: of a number, or of text.
fn key(step: &str) -> Vec<u8> {
    match step.parse::<u64>() {
        Ok(id) => cbor(|e| drop(e.u64(id))),
        Err(_) => cbor(|e| drop(e.str(step))),
    }
}

impl Doc {
    /// The value in these bytes.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        Self::next(&mut Decoder::new(bytes))
    }

    fn next(d: &mut Decoder<'_>) -> Self {
        let skipped = |d: &mut Decoder<'_>| {
            let at = d.position();
            d.skip().unwrap();
            d.input()[at..d.position()].to_vec()
        };
        match d.datatype().unwrap() {
            Type::Map => {
                let pairs = d.map().unwrap().unwrap();
                Self::Map((0..pairs).map(|_| (skipped(d), Self::next(d))).collect())
            }
            Type::Array => {
                let items = d.array().unwrap().unwrap();
                Self::Array((0..items).map(|_| Self::next(d)).collect())
            }
            _ => Self::Bytes(skipped(d)),
        }
    }

    /// The payload of a checkpoint.
    pub(crate) fn payload_of(checkpoint: &Checkpoint) -> Self {
        Self::payload_in(&encode(checkpoint))
    }

    /// The payload in a file.
    pub(crate) fn payload_in(file: &[u8]) -> Self {
        let mut d = Decoder::new(&file[16..]);
        d.tag().unwrap();
        Self::read(d.bytes().unwrap())
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::Array(items) => {
                [cbor(|e| drop(e.array(items.len() as u64))), items.iter().flat_map(Self::bytes).collect()].concat()
            }
            Self::Map(pairs) => {
                let both = pairs.iter().flat_map(|(key, value)| [key.clone(), value.bytes()]);
                [cbor(|e| drop(e.map(pairs.len() as u64))), both.collect::<Vec<_>>().concat()].concat()
            }
        }
    }

    /// The file with it as its payload.
    pub(crate) fn seal(&self) -> Vec<u8> {
        seal(&self.bytes())
    }

    fn child(&mut self, step: &str) -> Option<&mut Self> {
        match self {
            Self::Bytes(_) => None,
            Self::Array(items) => items.get_mut(step.parse::<usize>().ok()?),
            Self::Map(pairs) => pairs.iter_mut().find(|(other, _)| *other == key(step)).map(|(_, value)| value),
        }
    }

    /// The value at a path.
    #[track_caller]
    pub(crate) fn at(&mut self, path: &str) -> &mut Self {
        steps(path).fold(self, |doc, step| doc.child(step).unwrap_or_else(|| panic!("no {step} on the way to {path}")))
    }

    /// Place of the value at a path in the bytes of the whole.
    #[track_caller]
    pub(crate) fn place(&self, path: &str) -> usize {
        let (mut doc, mut place) = (self, 0);
        for step in steps(path) {
            let head = |items: usize| cbor(|e| drop(e.array(items as u64))).len();
            match doc {
                Self::Bytes(_) => panic!("no {step} on the way to {path}"),
                Self::Array(items) => {
                    let item: usize = step.parse().unwrap();
                    place += head(items.len()) + items[..item].iter().map(|item| item.bytes().len()).sum::<usize>();
                    doc = &items[item];
                }
                Self::Map(pairs) => {
                    let pair = pairs.iter().position(|(other, _)| *other == key(step));
                    let pair = pair.unwrap_or_else(|| panic!("no {step} on the way to {path}"));
                    let before = pairs[..pair].iter().map(|(key, value)| key.len() + value.bytes().len());
                    place += head(pairs.len()) + before.sum::<usize>() + pairs[pair].0.len();
                    doc = &pairs[pair].1;
                }
            }
        }
        place
    }

    /// Keys of the map at a path, of those that are text.
    pub(crate) fn keys(&self, path: &str) -> Vec<String> {
        let mut doc = self.clone();
        let Self::Map(pairs) = doc.at(path) else { panic!("{path} is no map") };
        pairs.iter().filter_map(|(key, _)| Decoder::new(key).str().ok().map(str::to_owned)).collect()
    }

    /// The map with a key set, in its place.
    pub(crate) fn with_key(mut self, key: Vec<u8>, value: Vec<u8>) -> Self {
        let Self::Map(pairs) = &mut self else { panic!("no map") };
        pairs.retain(|(other, _)| *other != key);
        let place = pairs.partition_point(|(other, _)| *other < key);
        pairs.insert(place, (key, Self::Bytes(value)));
        self
    }

    /// The whole with the value at a path set: in its place, where its map doesn't have it.
    #[track_caller]
    pub(crate) fn with(mut self, path: &str, value: Vec<u8>) -> Self {
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.at(parent);
        match parent {
            Self::Map(_) => *parent = parent.clone().with_key(key(last), value),
            _ => *parent.at(last) = Self::Bytes(value),
        }
        self
    }

    #[track_caller]
    pub(crate) fn without(mut self, path: &str) -> Self {
        let (parent, last) = path.rsplit_once('/').unwrap_or(("", path));
        match self.at(parent) {
            Self::Map(pairs) => pairs.retain(|(other, _)| *other != key(last)),
            Self::Array(items) => drop(items.remove(last.parse().unwrap())),
            Self::Bytes(_) => panic!("{path} is in no map"),
        }
        self
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

pub(crate) fn stamp() -> impl Strategy<Value = Stamp> {
    (
        // Boxed, since the whole would need too much of a test's stack.
        (option::of(sync().boxed()), option::of(edgy().prop_map(u64::cast_signed).boxed())),
        (edgy(), edgy().prop_map(|hz| hz.max(1)), "[a-z0-9_]{1,32}", edgy(), edgy()),
        (any::<Option<i32>>(), any::<Option<bool>>(), option::of(edgy()), 0..Leap::ALL.len()),
        (any::<Option<[u8; 16]>>(), any::<Option<[u8; 16]>>(), option::of((edgy(), edgy(), edgy()))),
    )
        .prop_map(
            |(
                (sync, rate_ppb),
                (count, hz, source, realtime, width_ns),
                (tai_offset_s, synchronized, max_error_ns, leap),
                (machine_id, boot_id, boot_time),
            )| {
                let boot_time =
                    boot_time.map(|(boottime_ns, slept_ns, width_ns)| BootTime { boottime_ns, slept_ns, width_ns });
                let (frequency, source) = (Frequency::new(hz).unwrap(), SourceName::new(&source).unwrap());
                Stamp {
                    tai_offset_s,
                    synchronized,
                    max_error_ns,
                    sync,
                    rate_ppb,
                    leap: Leap::ALL[leap],
                    machine_id,
                    boot_id,
                    boot_time,
                    ..Stamp::unvouched(StampCount(count), frequency, source, realtime.cast_signed(), width_ns)
                }
            },
        )
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

const KNOWN: [&str; 4] = ["arch", "crit", "stamp", "groups"];

pub(crate) fn unknown() -> impl Strategy<Value = Vec<UnknownKey>> {
    btree_map("[a-zA-Zäß_]{0,14}".prop_filter("known", |key| !KNOWN.contains(&key.as_str())), value(), 0..6).prop_map(
        |pairs| {
            let mut keys: Vec<_> = pairs.into_iter().map(|(key, value)| UnknownKey { key, value }).collect();
            keys.sort_by(|one, other| one.key.len().cmp(&other.key.len()).then_with(|| one.key.cmp(&other.key)));
            keys
        },
    )
}

/// A number of a column: often one that other rows have too, so that columns of every form come up.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0), 3 => Just(7), 1 => 0..256_u64, 2 => edgy()]
}

/// Ids of a guest's registers: timers as they may be, CNTVOFF_EL2 or not, and registers that nobody knows.
fn kind() -> impl Strategy<Value = BTreeSet<u64>> {
    // Of those op1 and op2 vary, and CRm is 4: nothing known is there.
    let others = btree_set((0u8..64).prop_map(|which| Encoding(3, which >> 3, 14, 4, which & 7).one_reg_id()), 0..4);
    (0u8..8, any::<bool>(), others).prop_map(|(timers, nested, others)| {
        let there = |timer: &Timer| (timers << 1 | 1) >> timer.index() & 1 == 1;
        let timers = Timer::ALL.into_iter().filter(there);
        let timers = timers.flat_map(|timer| [one_reg_id(Role::Ctl(timer)), one_reg_id(Role::Cval(timer))]);
        timers.chain(nested.then(|| one_reg_id(Role::Cntvoff))).chain(others).collect()
    })
}

/// Knowledge of a fact: of no VM, of all, or of some.
#[derive(Clone, Copy, Debug)]
enum Known {
    None,
    All,
    Some,
}

/// A VM of one of these kinds. The name is given later.
fn vm(kinds: Vec<BTreeSet<u64>>, known: [Known; 6]) -> impl Strategy<Value = Vm> {
    let ids: BTreeSet<u64> = Timer::ALL.iter().map(|timer| one_reg_id(Role::Ctl(*timer))).collect();
    (any::<Index>(), prop_oneof![Just(2_u16), 1..5_u16], vec(number(), 1..60), vec(any::<bool>(), 7)).prop_map(
        move |(kind, vcpus, numbers, flags)| {
            let mut numbers = numbers.iter().copied().cycle();
            let mut number = || numbers.next().unwrap();
            let above_0 = |number: u64| number.max(1);
            let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
            let is = |fact: usize| match known[fact] {
                Known::None => false,
                Known::All => true,
                Known::Some => flags[fact],
            };
            let hz = match number() {
                0 | 7 => 62_500_000,
                other => narrow(other).max(1),
            };
            let time = GuestTime {
                opted_in: flags[6],
                virtual_width_ticks: number(),
                physical_displacement_ticks: number(),
                physical_width_ticks: number(),
                backlog: Backlog::new(above_0(number()), above_0(number()), above_0(number())).filter(|_| is(0)),
                stopped_at: is(1).then_some(StampCount(number())),
                interrupts: is(2).then_some(Interrupts([number(), number(), number(), number()].map(narrow))),
                vmclock_address: is(3).then_some(number()),
                reading: is(4).then_some(Reading {
                    count: GuestCount(number()),
                    realtime_ns: number(),
                    width_ns: number(),
                }),
                ..GuestTime::opted_in(vcpus, NonZeroU32::new(hz).unwrap(), GuestCount(number()))
            };
            let mut column = |id: u64| {
                let istatus = if ids.contains(&id) { 4 } else { 0 };
                (0..vcpus).map(|_| number() & !istatus).collect()
            };
            let registers = kinds[kind.index(kinds.len())].iter().map(|id| (*id, column(*id))).collect();
            let record = |vcpu: u16| match known[5] {
                Known::None => None,
                Known::All => Some(u64::from(vcpu) << 6),
                Known::Some => (flags[5] ^ (vcpu == 1)).then_some(64),
            };
            Vm { name: VmName::default(), time, registers, stolen_time: (0..vcpus).map(record).collect() }
        },
    )
}

/// A name of a VM.
fn name() -> impl Strategy<Value = String> {
    let names = prop_oneof![
        Just(String::new()),
        "[a-c]{0,3}",
        "[0-9]{1,20}",
        "[ -~]{0,64}",
        "[a\u{e4}\u{20ac}\u{10ffff}]{0,16}",
        "\\PC{0,16}",
    ];
    names.prop_filter("not a name", |name| VmName::new(name).is_some())
}

/// Any number of VMs, in any order.
pub(crate) fn vms() -> impl Strategy<Value = Vec<Vm>> {
    let known = || prop_oneof![Just(Known::None), Just(Known::All), Just(Known::Some)];
    let known = [known(), known(), known(), known(), known(), known()];
    let kinds = btree_set(kind(), 1..4).prop_map(|kinds| kinds.into_iter().collect::<Vec<_>>());
    let named = (kinds, known).prop_flat_map(|(kinds, known)| btree_map(name(), vm(kinds, known), 0..8));
    let vms = named.prop_map(|vms| {
        let named = |(name, vm): (String, Vm)| Vm { name: VmName::new(&name).unwrap(), ..vm };
        vms.into_iter().map(named).collect::<Vec<_>>()
    });
    vms.prop_shuffle()
}

/// Contents of any checkpoint, in any order.
pub(crate) fn contents() -> impl Strategy<Value = Contents> {
    (stamp().boxed(), vms().boxed(), unknown().boxed()).prop_map(|(stamp, vms, unknown)| Contents {
        stamp,
        vms,
        unknown,
    })
}
