//! Laws of a checkpoint: what was put in is in it; its bytes are read again, and damaged ones aren't; parts of it; joins.

mod common;

use common::target::not_opted_in;
use common::{Contents, Doc, UNNAMED, Vm, bare, cbor, contents, counted, full, full_host, plain_host, reseal, seal};
use guestclock_core::arch::RegId;
use guestclock_core::arch::arm64::{Encoding, Role, Timer, View, count_reg, one_reg_id};
use guestclock_core::checkpoint::codec::{MAX_BYTES, VERSION, WireError, decode, encode, encoded_len};
use guestclock_core::checkpoint::{
    BuildError, Checkpoint, GroupBuilder, GuestTime, Held, JoinError, MAX_GROUPS, MAX_OTHER_REGS, MAX_VCPUS, Name,
    NotOneVm, UnknownKey, VmName,
};
use guestclock_core::restore::{Plan, Policy, Refusal, Request, Saved, Target, plan};
use guestclock_core::time::{BootTime, Frequency, GuestCount, Ratio, Sleep, SourceName, Stamp, StampCount};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::FileFailurePersistence;
use std::num::NonZeroU32;

/// Checkpoints whose every bit is flipped and every truncation tried.
fn samples() -> Vec<Vec<u8>> {
    let none = Contents { vms: Vec::new(), ..bare() };
    [none, bare(), full(3), plain_host(2), full_host(3)].map(|contents| encode(&contents.made())).into()
}

fn with_blob(blob: usize) -> Contents {
    let value = cbor(|e| drop(e.bytes(&vec![0; blob])));
    Contents { unknown: vec![UnknownKey { key: "later".into(), value }], ..bare() }
}

#[test]
fn every_single_bit_flip_is_refused() {
    for whole in samples() {
        let mut bytes = whole.clone();
        for byte in 0..bytes.len() {
            for bit in 0..8 {
                bytes[byte] ^= 1 << bit;
                match decode(&bytes) {
                    Err(WireError::NotACheckpoint) => assert!(byte < 15, "byte {byte} isn't in the mark"),
                    Err(WireError::Corrupt { stored, computed }) => assert_ne!(stored, computed),
                    other => panic!("bit {bit} of byte {byte}: {other:?}"),
                }
                bytes[byte] ^= 1 << bit;
            }
        }
        assert_eq!(encode(&decode(&bytes).unwrap()), whole);
    }
}

#[test]
fn every_truncation_is_refused() {
    for bytes in samples() {
        for len in 0..bytes.len() {
            match decode(&bytes[..len]) {
                Err(WireError::NotACheckpoint) => assert!(len < 15, "{len} bytes have the mark"),
                Err(WireError::Corrupt { .. }) => {}
                other => panic!("{len} bytes: {other:?}"),
            }
            // Cut short by someone who mends the checksum: the lengths tell.
            let mended = reseal(bytes[..len].to_vec());
            match decode(&mended) {
                Err(WireError::Malformed { .. }) => {}
                // The new checksum stands where the mark or the version was.
                Err(WireError::NotACheckpoint | WireError::UnsupportedVersion { .. }) if len < 24 => {}
                other => panic!("{len} bytes, resealed: {other:?}"),
            }
        }
    }
}

#[test]
fn a_file_of_the_most_bytes_is_read() {
    // Lengths above 2^16 have heads of one size.
    let room = MAX_BYTES - encoded_len(&with_blob(1 << 20).made()) + (1 << 20);
    let checkpoint = with_blob(room).made();
    let bytes = encode(&checkpoint);
    assert_eq!((bytes.len(), encoded_len(&checkpoint)), (MAX_BYTES, MAX_BYTES));
    assert!(decode(&bytes).is_ok_and(|read| read == checkpoint));
    let key = cbor(|e| drop(e.str("later")));
    let value = cbor(|e| drop(e.bytes(&vec![0; room + 1])));
    let larger = Doc::payload_of(&bare().made()).with_key(key, value).seal();
    assert_eq!(decode(&larger), Err(WireError::TooLarge { size: MAX_BYTES + 1, limit: MAX_BYTES }));
}

#[test]
fn nothing_may_follow() {
    let bytes = encode(&bare().made());
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(matches!(decode(&longer), Err(WireError::Corrupt { .. })));
    let mut resealed = bytes.clone();
    resealed.extend([0; 4]);
    let (offset, key, what) = (bytes.len(), "the file", "goes on after the checksum");
    assert_eq!(decode(&reseal(resealed)), Err(WireError::Malformed { offset, key, what }));
}

#[test]
fn bytes_without_the_mark_are_no_checkpoint() {
    for bytes in [&b""[..], b"\xd9\xd9\xf7", b"PK\x03\x04 a zip file", b"\xd9\xd9\xf7\x84\x6aguestcloc"] {
        assert_eq!(decode(bytes), Err(WireError::NotACheckpoint));
    }
}

#[test]
fn the_size_is_looked_at_first() {
    let size = MAX_BYTES + 1;
    assert_eq!(decode(&vec![0; size]), Err(WireError::TooLarge { size, limit: MAX_BYTES }));
    assert_eq!(decode(&vec![0; MAX_BYTES]), Err(WireError::NotACheckpoint));
}

#[test]
fn another_version_is_named_before_anything_in_it_is_read() {
    let bytes = encode(&bare().made());
    for version in [0u8, 2, 23] {
        let mut other = bytes.clone();
        other[15] = version;
        assert!(matches!(decode(&other), Err(WireError::Corrupt { .. })), "a damaged version is damage");
        let found = u64::from(version);
        assert_eq!(decode(&reseal(other)), Err(WireError::UnsupportedVersion { found, supported: VERSION }));
    }
    let huge = [&bytes[..15], b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff", b"anything", &[0; 4]].concat();
    assert_eq!(decode(&reseal(huge)), Err(WireError::UnsupportedVersion { found: u64::MAX, supported: VERSION }));
}

#[test]
fn a_feature_that_must_be_known_is_named_before_any_other_key_is_used() {
    let crit = cbor(|e| drop(e.encode(["stamp", "scaling"])));
    let payload = Doc::payload_of(&bare().made()).with("crit", crit).with("scaling", vec![1]);
    let refused = Err(WireError::UnsupportedFeature { feature: "scaling".into() });
    assert_eq!(decode(&payload.seal()), refused);
    // A later version may change the keys that this one knows, and the architecture.
    for (key, value) in [("stamp", vec![0]), ("groups", vec![0]), ("arch", b"\x63ppc".to_vec())] {
        assert_eq!(decode(&payload.clone().with(key, value).seal()), refused);
    }
}

#[test]
fn another_architecture_is_named_before_its_stamp_and_groups_are_read() {
    let payload = Doc::payload_of(&bare().made()).with("arch", b"\x66x86_64".to_vec());
    let refused = Err(WireError::UnsupportedArch { found: "x86_64".into() });
    assert_eq!(decode(&payload.seal()), refused);
    assert_eq!(decode(&payload.clone().with("stamp", vec![0]).seal()), refused);
    assert_eq!(decode(&payload.with("groups", vec![0]).seal()), refused);
}

#[test]
fn messages_say_both_sides_and_the_way_out() {
    let message = decode(&reseal([encode(&bare().made()), vec![0; 4]].concat())).unwrap_err().to_string();
    assert!(message.contains("byte 224") && message.contains("docs/checkpoint-format.md"), "{message}");
    let version = WireError::UnsupportedVersion { found: 7, supported: VERSION }.to_string();
    assert!(version.contains("version 7") && version.contains("version 1"), "{version}");
    let corrupt = WireError::Corrupt { stored: 0xab, computed: 0xcd }.to_string();
    assert!(corrupt.contains("000000ab") && corrupt.contains("000000cd"), "{corrupt}");
    let arch = WireError::UnsupportedArch { found: "x86_64".into() }.to_string();
    assert!(arch.contains("\"x86_64\"") && arch.contains("arm64"), "{arch}");
    // A name out of a file isn't printed raw.
    let feature = WireError::UnsupportedFeature { feature: "\u{1b}[2J".into() }.to_string();
    assert!(!feature.contains('\u{1b}'), "{feature}");
}

/// Panics unless the bytes are refused, or are those that the checkpoint in them is written as.
fn refused_or_the_same(bytes: &[u8]) {
    if let Ok(checkpoint) = decode(bytes) {
        assert_eq!(encode(&checkpoint), bytes);
    }
}

/// A change of some bytes: a byte set, a bit flipped, a byte put in or taken out.
fn change(bytes: &mut Vec<u8>, place: Index, value: u8, kind: u8) {
    let at = place.index(bytes.len());
    match kind {
        0 => bytes[at] = value,
        1 => bytes[at] ^= 1 << (value % 8),
        2 => bytes.insert(at, value),
        _ => drop(bytes.remove(at)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::Off))]

    #[test]
    fn each_vm_that_is_put_in_is_in_it(contents in contents()) {
        let checkpoint = contents.made();
        let read = Contents::of(&checkpoint);
        prop_assert_eq!(&read, &contents.in_order());
        prop_assert_eq!((checkpoint.len(), checkpoint.is_empty()), (read.vms.len(), read.vms.is_empty()));
        prop_assert_eq!(checkpoint.vcpus(), read.vms.iter().map(|vm| usize::from(vm.time.vcpus)).sum::<usize>());
        for (index, expected) in read.vms.iter().enumerate() {
            let vm = checkpoint.vm(index).unwrap();
            prop_assert_eq!(vm.name(), expected.name.as_str());
            prop_assert_eq!(checkpoint.find(vm.name()), Some(index));
            prop_assert_eq!(vm.time(), expected.time);
            prop_assert_eq!((vm.cntvct(), vm.cntpct()), (expected.time.timeline, expected.time.physical()));
            for (id, values) in &expected.registers {
                match Held::of(RegId(*id)).unwrap() {
                    Held::Unknown => {
                        let (_, found) = vm.others().find(|(other, _)| other == id).unwrap();
                        prop_assert_eq!(found.iter().collect::<Vec<_>>(), &values[..]);
                    }
                    held => prop_assert_eq!(vm.register(held).unwrap().iter().collect::<Vec<_>>(), &values[..]),
                }
            }
            let has = |role| expected.registers.contains_key(&one_reg_id(role));
            prop_assert_eq!(vm.is_nested(), has(Role::Cntvoff));
            let timers: Vec<_> = Timer::ALL.into_iter().filter(|timer| has(Role::Cval(*timer))).collect();
            prop_assert_eq!(vm.timers().map(|saved| saved.timer).collect::<Vec<_>>(), timers);
        }
        prop_assert!(checkpoint.vm(checkpoint.len()).is_none());
        let only = checkpoint.only().map(|vm| vm.rows()).map_err(|error| error.vms);
        prop_assert_eq!(only.is_ok(), checkpoint.len() == 1);
    }

    #[test]
    fn a_checkpoint_that_is_written_is_read(contents in contents()) {
        let checkpoint = contents.made();
        let bytes = encode(&checkpoint);
        prop_assert_eq!(encoded_len(&checkpoint), bytes.len());
        let read = decode(&bytes);
        prop_assert_eq!(read.as_ref(), Ok(&checkpoint));
        prop_assert_eq!(encode(&read.unwrap()), bytes);
    }

    #[test]
    fn the_order_in_which_vms_are_added_makes_no_difference(contents in contents()) {
        prop_assert_eq!(contents.made(), contents.in_order().made());
    }

    #[test]
    fn a_part_is_the_checkpoint_of_its_vms(contents in contents(), kept in prop::collection::vec(any::<bool>(), 8)) {
        let whole = contents.made();
        let part = whole.part(|index| kept[index]);
        let Contents { stamp, vms, unknown } = Contents::of(&whole);
        let all = vms.len();
        let vms: Vec<Vm> = vms.into_iter().zip(&kept).filter(|(_, kept)| **kept).map(|(vm, _)| vm).collect();
        let unknown = if vms.len() == all { unknown } else { Vec::new() };
        prop_assert_eq!(&part, &Contents { stamp, vms, unknown }.made());
        prop_assert!(decode(&encode(&part)).as_ref() == Ok(&part));
        prop_assert_eq!(&whole.part(|_| true), &whole);
    }

    #[test]
    fn each_vm_by_itself_is_what_of_one_makes(contents in contents()) {
        let whole = contents.made();
        for (index, vm) in Contents::of(&whole).vms.iter().enumerate() {
            let alone = Checkpoint::of_one(*whole.stamp(), &vm.name, &vm.time, &vm.columns(), &vm.stolen_time).unwrap();
            prop_assert_eq!(Contents::of(&alone).vms, std::slice::from_ref(vm));
            if whole.len() > 1 {
                prop_assert_eq!(whole.part(|other| other == index), alone);
            }
        }
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(decode(&bytes).is_err());
        refused_or_the_same(&seal(&bytes));
        refused_or_the_same(&reseal([&encode(&bare().made())[..15], &bytes, &[0; 4]].concat()));
    }

    #[test]
    fn mutations_with_the_checksum_mended_are_refused_or_the_same(
        contents in contents(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..4_u8), 1..6),
    ) {
        let mut bytes = encode(&contents.made());
        for (place, value, kind) in changes {
            change(&mut bytes, place, value, kind);
        }
        refused_or_the_same(&reseal(bytes));
    }

    /// As above, in the payload alone, so that the envelope's lengths don't catch every change of its length.
    #[test]
    fn mutated_payloads_are_refused_or_the_same(
        contents in contents(),
        changes in prop::collection::vec((any::<Index>(), any::<u8>(), 0..4_u8), 1..4),
    ) {
        let mut payload = Doc::payload_of(&contents.made()).bytes();
        for (place, value, kind) in changes {
            change(&mut payload, place, value, kind);
        }
        refused_or_the_same(&seal(&payload));
    }
}

/// 300 ticks at 62.5 MHz are 115.2 at 24 MHz, and a tick more may hide 42 ns.
#[test]
fn a_vm_of_another_frequency_has_its_own_instant() {
    let host = full_host(1).made();
    let of = |name: &str| host.vm(host.find(name).unwrap()).unwrap();
    let (own, other) = (of("vm-000000"), of("nested-000000"));
    assert_eq!((own.stamp(), own.stopped_at(), own.hidden_ticks()), (*host.stamp(), None, 0));
    let stamp = other.stamp();
    assert_eq!((stamp.count, stamp.frequency.hz(), stamp.width_ns), (StampCount(115), 24_000_000, 42));
    // 299 are 114.8.
    assert_eq!((other.stopped_at(), other.hidden_ticks()), (Some(StampCount(114)), 1));
    assert_eq!(other.instant().1.virt.0, 115_u64.wrapping_sub(1 << 40));
    assert_eq!(other.instant().1.phys.0, 115_u64.wrapping_sub((1 << 40) + 5));
}

#[test]
fn none_or_two_vms_arent_one() {
    assert_eq!(Contents { vms: Vec::new(), ..bare() }.made().only().unwrap_err(), NotOneVm { vms: 0 });
    assert_eq!(plain_host(2).made().only().unwrap_err(), NotOneVm { vms: 2 });
    assert_eq!(bare().made().only().unwrap().name(), "");
}

#[test]
fn names_are_short_and_printable() {
    let longest = "ä".repeat(32);
    for name in ["", "web-1", " a b ", "~", "Zürich", "日本", &longest, "\u{202f}", "\u{2065}", "\u{200e}"] {
        assert_eq!(VmName::new(name).unwrap().as_str(), name);
        assert_eq!(bare().with(|vm| Vm { name: VmName::new(name).unwrap(), ..vm }).made().find(name), Some(0));
    }
    let too_long = "a".repeat(65);
    for name in ["\n", "a\nb", "\u{1b}[2J", "\u{7f}", "\u{85}", "\u{9f}", "\u{2028}", "\u{2029}", &too_long] {
        assert_eq!(VmName::new(name), None, "{name:?}");
    }
    for mark in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
        assert_eq!(VmName::new(&format!("a{mark}b")), None, "{mark:?}");
    }
}

#[test]
fn shorter_names_come_first() {
    let vms = ["10", "9", "b", "aa", "", "ä", "zzz"].map(|name| Vm::plain(name, 1, 62_500_000, 1));
    let checkpoint = Contents { vms: vms.into(), ..bare() }.made();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["", "9", "b", "10", "aa", "ä", "zzz"]);
    assert_eq!(checkpoint.groups()[0].names().get(5), Some("ä"));
    assert_eq!(checkpoint.find("a"), None);
}

/// As numbers these ids are in another order than those of the timers' names.
#[test]
fn groups_are_in_the_order_of_their_registers() {
    let vm = |name| Vm::plain(name, 1, 1, 0);
    let kinds = [
        vm("v"),
        vm("v n").cntvoff(&[1]),
        vm("v n hp").cntvoff(&[1]).timer(Timer::Hptimer, &[0], &[0]),
        vm("v x").register(UNNAMED, &[1]),
        vm("v p").timer(Timer::Ptimer, &[0], &[0]),
    ];
    let order: Vec<Vec<u64>> = kinds.iter().map(|vm| vm.registers.keys().copied().collect()).collect();
    let [v, n, n_hp, x, p] = &order[..] else { panic!() };
    let mut sorted = vec![p, v, n, n_hp, x];
    sorted.sort();
    let checkpoint = Contents { vms: kinds.to_vec(), ..bare() }.made();
    let found: Vec<Vec<u64>> = checkpoint
        .groups()
        .iter()
        .map(|group| group.registers().iter().map(|column| column.id().0).collect())
        .collect();
    assert_eq!(found.iter().collect::<Vec<_>>(), sorted);
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["v p", "v", "v n", "v n hp", "v x"]);
}

#[test]
fn istatus_isnt_saved() {
    for (timer, role) in Timer::ALL.map(|timer| (timer, Role::Ctl(timer))) {
        let contents = bare().with(|vm| {
            let vm = Timer::ALL.iter().fold(vm, |vm, &timer| vm.timer(timer, &[1], &[4]));
            vm.register(one_reg_id(role), &[0xff]).cntvoff(&[4]).register(UNNAMED, &[4])
        });
        let checkpoint = contents.made();
        let vm = checkpoint.only().unwrap();
        let one = |held| vm.register(held).unwrap().get(0);
        assert_eq!((one(Held::Ctl(timer)), one(Held::Cval(timer)), one(Held::Cntvoff)), (Some(0xfb), Some(4), Some(4)));
        assert_eq!(vm.others().map(|(_, values)| values.get(0)).collect::<Vec<_>>(), [Some(4)]);
    }
}

#[test]
fn vms_that_dont_make_a_checkpoint_are_refused_by_name() {
    let of = |vms: Vec<Vm>| Contents { vms, ..bare() }.build().unwrap_err();
    let plain = |name: &str, vcpus| Vm::plain(name, vcpus, 1, 0);
    let same = |name: &str| BuildError::SameName { name: name.into() };
    assert_eq!(of(vec![plain("b", 1), plain("a", 1), plain("b", 2)]), same("b"));
    assert_eq!(of(vec![plain("", 1), plain("", 1)]), same(""));
    let nested = plain("c", 1).cntvoff(&[0]);
    assert_eq!(of(vec![plain("c", 1), plain("a", 1), nested]), same("c"), "in two groups");
    assert_eq!(of(vec![plain("a", 1), plain("b", 0)]), BuildError::NoVcpus { name: "b".into() });
    assert_eq!(of(vec![plain("b", 513)]), BuildError::ManyVcpus { name: "b".into(), vcpus: 513 });
    let most: Vec<Vm> = (0..512).map(|vm| plain(&format!("{vm:03}"), 512)).collect();
    assert_eq!(Contents { vms: most.clone(), ..bare() }.build().unwrap().vcpus(), MAX_VCPUS);
    let more = [most, vec![plain("one more", 1)]].concat();
    assert_eq!(of(more), BuildError::TooManyVcpus { vcpus: MAX_VCPUS + 1 });
    // One kind has none of the 64 registers, and each other one of them.
    let other = |n: u8| Encoding(3, n >> 3, 14, 4, n & 7).one_reg_id();
    let groups = |kinds: u8| {
        let vm = |n: u8| plain(&n.to_string(), 1).register(other(n), &[0]);
        (0..kinds - 1).map(vm).chain([plain("none", 1)]).collect::<Vec<_>>()
    };
    assert_eq!(Contents { vms: groups(64), ..bare() }.build().unwrap().groups().len(), MAX_GROUPS);
    assert_eq!(of(groups(65)), BuildError::TooManyGroups { groups: 65 });
}

#[test]
fn a_checkpoint_that_couldnt_be_read_back_isnt_made() {
    let of = |vms: u64| {
        let ids = (0..8)
            .map(|n| UNNAMED + n)
            .chain([one_reg_id(Role::Ctl(Timer::Vtimer)), one_reg_id(Role::Cval(Timer::Vtimer))]);
        let mut group = GroupBuilder::new(ids.map(RegId)).unwrap();
        let time = GuestTime::opted_in(512, NonZeroU32::MIN, GuestCount(0));
        for vm in 0..vms {
            group.push(Name::Number(vm), &time, |_, values| values.extend(vm << 9..(vm + 1) << 9));
        }
        Checkpoint::of(bare().stamp, [group])
    };
    // Ten registers of 8 bytes for each of 512 vCPUs.
    let most = of(409).unwrap();
    assert!((MAX_BYTES - 40_960..=MAX_BYTES).contains(&encode(&most).len()));
    let Err(BuildError::TooLarge { size }) = of(410) else { panic!() };
    assert!((MAX_BYTES + 1..MAX_BYTES + 41_000).contains(&size), "{size}");
}

#[test]
fn registers_that_arent_a_guests_are_refused() {
    let ids = |more: &[u64]| {
        let plain = [one_reg_id(Role::Ctl(Timer::Vtimer)), one_reg_id(Role::Cval(Timer::Vtimer))];
        plain.iter().chain(more).copied().map(RegId).collect::<Vec<_>>()
    };
    let refused = |ids: Vec<RegId>| match GroupBuilder::new(ids) {
        Err(BuildError::Registers(what)) => what,
        other => panic!("{other:?}"),
    };
    assert!(GroupBuilder::new(ids(&[])).is_ok());
    for role in [Role::Count(View::Virtual), Role::Count(View::Physical)] {
        assert!(refused(ids(&[one_reg_id(role)])).contains("follows from the timeline"));
    }
    // CNTFRQ_EL0, CNTKCTL_EL1, CNTHCTL_EL2, X0, and a system register that is no timer's.
    for id in [
        0x6030_0000_0013_df00,
        0x6030_0000_0013_c708,
        0x6030_0000_0013_e708,
        0x6030_0000_0010_0000,
        Encoding(3, 3, 14, 8, 0).one_reg_id(),
        Encoding(3, 3, 13, 4, 0).one_reg_id(),
        0,
    ] {
        assert!(refused(ids(&[id])).contains("no timer's"), "{id:#x}");
    }
    assert!(refused(Vec::new()).contains("without those of the virtual timer"));
    for timer in Timer::ALL {
        for role in [Role::Ctl(timer), Role::Cval(timer)] {
            let mut ids = ids(&[one_reg_id(role)]);
            if timer == Timer::Vtimer {
                ids.retain(|id| id.0 == one_reg_id(role));
            }
            assert!(refused(ids).contains("CVAL without its CTL"), "{role:?}");
        }
    }
    let others = |count: u8| (0..count).map(|n| Encoding(3, n >> 3, 14, 4, n & 7).one_reg_id()).collect::<Vec<_>>();
    assert_eq!(others(64).len(), MAX_OTHER_REGS);
    assert!(GroupBuilder::new(ids(&others(64))).is_ok());
    assert!(refused(ids(&[others(64), vec![0x6030_0000_0013_e706]].concat())).contains("more than 64"));
    // Two groups of the same registers would be two forms of one checkpoint.
    let group = |name: u64| {
        let mut group = GroupBuilder::new(ids(&[])).unwrap();
        group.push(Name::Number(name), &bare().vms[0].time, |_, values| values.push(0));
        group
    };
    let twice = Checkpoint::of(bare().stamp, [group(1), group(2)]).unwrap_err();
    assert_eq!(twice, BuildError::Registers("are those of two groups, which have to be one"));
    let none = GroupBuilder::new(ids(&[])).unwrap();
    assert!(none.is_empty());
    assert_eq!(Checkpoint::of(bare().stamp, [none, group(1)]).unwrap().names().collect::<Vec<_>>(), ["1"]);
}

#[test]
fn of_one_takes_one_value_a_vcpu() {
    let Vm { name, time, .. } = &bare().vms[0];
    let time = GuestTime { vcpus: 2, ..*time };
    let columns = |rows| Vm::plain("", rows, 1, 0).columns();
    let of = |rows, stolen: &[Option<u64>]| Checkpoint::of_one(bare().stamp, name, &time, &columns(rows), stolen);
    assert!(of(2, &[]).is_ok());
    for rows in [0, 1, 3] {
        assert_eq!(of(rows, &[]), Err(BuildError::Registers("haven't one value a vCPU")));
    }
    for given in [1, 3] {
        assert_eq!(of(2, &vec![None; given]), Err(BuildError::StolenTime { vcpus: 2, given }));
    }
    let records = of(2, &[None, Some(64)]).unwrap();
    let vm = records.only().unwrap();
    assert_eq!([0, 1, 2].map(|vcpu| vm.stolen_time(vcpu)), [None, Some(64), None]);
    assert_eq!(of(2, &[None, None]), of(2, &[]));
}

#[test]
#[should_panic(expected = "one value a vCPU of")]
fn a_vm_with_a_value_too_few_is_a_mistake_of_the_caller() {
    let mut group = GroupBuilder::new(bare().vms[0].columns().into_iter().map(|(id, _)| id)).unwrap();
    group.push(Name::Number(1), &GuestTime { vcpus: 2, ..bare().vms[0].time }, |_, values| values.push(0));
}

#[test]
#[should_panic(expected = "vCPU 1 of 1")]
fn a_stolen_time_record_of_no_vcpu_is_a_mistake_of_the_caller() {
    let mut group = GroupBuilder::new(bare().vms[0].columns().into_iter().map(|(id, _)| id)).unwrap();
    group.push(Name::Number(1), &bare().vms[0].time, |_, values| values.push(0));
    group.stolen_time(1, 64);
}

#[test]
fn many_vms_are_found_by_place_and_name() {
    let host = plain_host(3000).made();
    assert_eq!((host.len(), host.vcpus(), host.groups().len()), (3000, 6000, 1));
    let vm = host.vm(2999).unwrap();
    assert_eq!((vm.name(), vm.rows(), host.find("vm-002999")), ("vm-002999", 5998..6000, Some(2999)));
    assert_eq!(
        vm.register(Held::Cval(Timer::Ptimer)).unwrap().iter().collect::<Vec<_>>(),
        counted((1 << 36) + 2999, 2)
    );
}

/// A stamp of one counter of one boot: each ticks at 62.5 MHz, and the wall clock goes with it.
fn one_counter(count: u64) -> Stamp {
    let source = SourceName::fixed("cntvct_el0");
    let frequency = Frequency::new(62_500_000).unwrap();
    let ids = (Some([1; 16]), Some([2; 16]));
    let stamp = Stamp::unvouched(StampCount(1 << 40), frequency, source, 1_750_000_000_000_000_000, 84);
    Stamp { machine_id: ids.0, boot_id: ids.1, ..stamp }.at(StampCount(count)).unwrap()
}

/// The plan for one VM of a checkpoint at a later instant of its counter.
fn planned(checkpoint: &Checkpoint, name: &str, now: &Stamp, policy: Policy) -> Result<Plan, Refusal> {
    let vm = checkpoint.vm(checkpoint.find(name).unwrap()).unwrap();
    let cntfrq_hz = vm.time().frequency_hz.get();
    let now = Ratio::new(now.frequency, vm.time().frequency()).stamp(*now);
    let request = Request { policy, ..Request::default() };
    // A VM of the same registers, and both counts.
    let saved = vm.group().0.registers().iter().map(|column| column.id().0);
    let registers: Vec<u64> = saved.chain([View::Virtual, View::Physical].map(count_reg)).collect();
    let target = Target { cntfrq_hz, vcpus: vm.vcpus(), registers: registers.into(), ..not_opted_in() };
    plan(&Saved::from(&vm), &target, now, request)
}

proptest! {
    #![proptest_config(ProptestConfig::with_failure_persistence(FileFailurePersistence::Off))]

    #[test]
    fn joined_parts_are_the_whole(contents in contents(), of in prop::collection::vec(0..3_u8, 8)) {
        let contents = Contents { stamp: one_counter(1 << 40), unknown: Vec::new(), ..contents };
        let whole = contents.made();
        let parts = [0, 1, 2].map(|part| whole.part(|index| of[index] == part));
        prop_assert_eq!(Checkpoint::join(&[&parts[0], &parts[1], &parts[2]]), Ok(whole.clone()));
        prop_assert_eq!(Checkpoint::join(&[&parts[2], &parts[0], &parts[1]]), Ok(whole.clone()));
        prop_assert_eq!(Checkpoint::join(&[&whole]), Ok(whole));
    }

    #[test]
    fn a_joined_vm_is_restored_as_from_its_own_checkpoint(
        vms in common::vms(),
        of in prop::collection::vec(0..3_usize, 8),
        ages in [0..1_u64 << 30, 0..1_u64 << 30, 0..1_u64 << 30],
        stopped in prop::collection::vec(prop::option::of(0..1_u64 << 20), 8),
        later in 0..1_u64 << 32,
    ) {
        let of_part = |part: usize| {
            let stamp = one_counter((1 << 40) + ages[part]);
            let vms = vms.iter().zip(&of).zip(&stopped).filter(|((_, of), _)| **of == part);
            let vms = vms.map(|((vm, _), stopped)| {
                let stopped_at = stopped.map(|before| StampCount(stamp.count.0 - before));
                vm.clone().time(|time| time.stopped_at = stopped_at)
            });
            Contents { stamp, vms: vms.collect(), unknown: Vec::new() }.made()
        };
        let parts = [0, 1, 2].map(of_part);
        let joined = Checkpoint::join(&[&parts[0], &parts[1], &parts[2]]).unwrap();
        prop_assert_eq!(joined.stamp(), &one_counter((1 << 40) + ages.iter().max().unwrap()));
        prop_assert_eq!(joined.len(), vms.len());
        prop_assert!(decode(&encode(&joined)).as_ref() == Ok(&joined));
        let now = one_counter((1 << 41) + later);
        for part in &parts {
            for name in part.names() {
                for policy in [Policy::FREEZE, Policy::ADVANCE, Policy::advance_up_to(5_000_000)] {
                    let (own, whole) = match (planned(part, name, &now, policy), planned(&joined, name, &now, policy)) {
                        (Ok(own), Ok(whole)) => (own, whole),
                        // Guests with EL2 whose counters differ aren't restored by value: their counts are in the refusal.
                        (Err(Refusal::CounterSkew { why, .. }), Err(Refusal::CounterSkew { why: other, .. })) => {
                            prop_assert_eq!(why, other);
                            continue;
                        }
                        (own, whole) => panic!("{own:?} {whole:?}"),
                    };
                    prop_assert_eq!(own.as_of, whole.as_of, "{} {}", name, policy);
                    prop_assert_eq!(own.backlog(&own.as_of), whole.backlog(&whole.as_of));
                    prop_assert_eq!((own.overdue, own.warnings), (whole.overdue, whole.warnings));
                }
                // Nothing but the instant is another.
                let one = |checkpoint: &Checkpoint| {
                    let Contents { vms, .. } = Contents::of(&checkpoint.part(|vm| Some(vm) == checkpoint.find(name)));
                    vms[0].clone().time(|time| (time.timeline, time.stopped_at) = (GuestCount(0), None))
                };
                prop_assert_eq!(one(part), one(&joined));
            }
        }
    }
}

/// A host of two VMs whose checkpoints were taken 1000 ticks apart: the counter of the one at 24 MHz took 384.
#[test]
fn a_join_moves_each_timeline_to_the_latest_instant() {
    let early = Contents { vms: vec![Vm::plain("a", 1, 24_000_000, 70)], ..bare() }.at(one_counter(1 << 40));
    let late = Contents { vms: vec![Vm::plain("b", 1, 62_500_000, 80)], ..bare() }.at(one_counter((1 << 40) + 1000));
    let (early, late) = (early.made(), late.made());
    let joined = Checkpoint::join(&[&late, &early]).unwrap();
    assert_eq!(joined, Checkpoint::join(&[&early, &late]).unwrap());
    assert_eq!(joined.stamp(), late.stamp());
    let time = |name: &str| joined.vm(joined.find(name).unwrap()).unwrap().time();
    assert_eq!((time("a").timeline, time("a").stopped_at), (GuestCount(70 + 384), Some(StampCount(1 << 40))));
    assert_eq!((time("b").timeline, time("b").stopped_at), (GuestCount(80), None));
}

#[test]
fn checkpoints_of_two_counters_arent_joined() {
    let stamp = one_counter(1 << 40);
    let named = |name: &str, stamp: Stamp| Contents { vms: vec![Vm::plain(name, 1, 1, 0)], ..bare() }.at(stamp).made();
    let join = |one: Stamp, other: Stamp| Checkpoint::join(&[&named("a", one), &named("b", other)]);
    let later = stamp.at(StampCount((1 << 40) + 1000)).unwrap();
    assert!(join(stamp, later).is_ok());
    let fast = Frequency::new(1_000_000_000).unwrap();
    for other in [
        Stamp { source: SourceName::fixed("clock_monotonic_raw"), ..later },
        Stamp { frequency: fast, ..later },
        Stamp { boot_id: Some([9; 16]), ..later },
        Stamp { boot_id: None, ..later },
        Stamp { realtime_ns: later.realtime_ns + 1_000_000_000, ..later },
    ] {
        let Err(JoinError::OtherCounter { first, second, evidence }) = join(stamp, other) else { panic!("{other:?}") };
        assert_eq!((first, second), (0, 1));
        let message = join(stamp, other).unwrap_err().to_string();
        assert!(message.contains(&evidence.to_string()) && message.contains("restore them apart"), "{message}");
    }
    for machine_id in [None, Some([9; 16])] {
        assert!(join(stamp, Stamp { machine_id, ..later }).is_ok(), "a container's id");
    }
    // Each sum of sleeps is known up to its width.
    let slept = |stamp, slept_ns, width_ns| Stamp {
        boot_time: Some(BootTime { boottime_ns: 1 << 50, slept_ns, width_ns }),
        ..stamp
    };
    assert!(join(slept(stamp, 1000, 7), slept(later, 1007, 5)).is_ok());
    assert!(join(slept(stamp, 1005, 7), slept(later, 1000, 5)).is_ok());
    assert!(join(slept(stamp, 1000, 7), later).is_ok(), "nobody knows of a sleep");
    for slept_ns in [994, 1008] {
        let refused = join(slept(stamp, 1000, 7), slept(later, slept_ns, 5)).unwrap_err();
        assert!(
            matches!(&refused, JoinError::OtherCounter { evidence, .. } if evidence.sleep != Sleep::Absent),
            "{refused}"
        );
    }
    let of_nobody = Stamp { boot_id: None, ..stamp };
    assert!(join(of_nobody, Stamp { boot_id: None, ..later }).is_err(), "of two boots, for all that is known");
    let unknown = Stamp::of_unknown_host(stamp.frequency);
    assert!(join(unknown, unknown).is_err());
}

#[test]
fn whatever_else_cant_be_joined_is_refused() {
    assert_eq!(Checkpoint::join(&[]), Err(JoinError::Nothing));
    let (one, two) = (plain_host(2).made(), plain_host(1).made());
    let same_name = BuildError::SameName { name: "vm-000000".into() };
    assert_eq!(Checkpoint::join(&[&one, &two]), Err(JoinError::Build(same_name)));
    let unknown = full(1).at(bare().stamp).made();
    let unknown_key = JoinError::UnknownKey { index: 1, key: "later".into() };
    assert_eq!(Checkpoint::join(&[&one, &unknown]), Err(unknown_key));
    assert_eq!(Checkpoint::join(&[&unknown]).as_ref(), Ok(&unknown));
    let many = |prefix: &str| {
        let vms = (0..300).map(|vm| Vm::plain(&format!("{prefix}{vm}"), 512, 1, 0)).collect();
        Contents { vms, ..bare() }.made()
    };
    let too_many = BuildError::TooManyVcpus { vcpus: 600 * 512 };
    assert_eq!(Checkpoint::join(&[&many("a"), &many("b")]), Err(JoinError::Build(too_many)));
    let none = Contents { vms: Vec::new(), ..bare() }.made();
    assert_eq!(Checkpoint::join(&[&none, &one, &none]), Ok(one));
}

#[test]
fn a_count_isnt_held() {
    assert_eq!(Held::of(RegId(count_reg(View::Virtual))), None);
    assert_eq!(Held::of(RegId(UNNAMED)), Some(Held::Unknown));
}
