//! What decoding takes: no more than the bytes themselves and a fixed allowance, whatever they promise.
//!
//! One test in a process of its own, because the allocator counts for the whole of it.

mod common;

use common::{Map, bare, full, full_set, plain_set, seal, u8s, u16s, u64s};
use guestclock_core::arch::arm64::Timer;
use guestclock_core::checkpoint::codec::{MAX_BYTES, MAX_KEYS, WireError, decode, decode_set, encode, encode_set};
use guestclock_core::checkpoint::{CheckpointSet, MAX_GROUPS, TimerColumns, UnknownKey, VmGroup};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// The structs of a checkpoint with as many unknown keys as there may be, and the vector of them as it grew; errors.
const ALLOWANCE: usize = 3 * MAX_KEYS * size_of::<UnknownKey>();

/// Those of a set: its groups, and the vectors of their timers.
const SETS_ALLOWANCE: usize =
    ALLOWANCE + MAX_GROUPS * (size_of::<VmGroup>() + Timer::ALL.len() * size_of::<TimerColumns>());

/// Decodes, and says whether it went well: within the input's size and the allowance, at the worst moment.
#[track_caller]
fn measured(name: &str, bytes: &[u8]) -> bool {
    within(ALLOWANCE, name, bytes, decode)
}

/// The same of a set.
#[track_caller]
fn measured_set(name: &str, bytes: &[u8]) -> bool {
    within(SETS_ALLOWANCE, name, bytes, decode_set)
}

#[track_caller]
fn within<T>(allowance: usize, name: &str, bytes: &[u8], decode: fn(&[u8]) -> Result<T, WireError>) -> bool {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let result = decode(bytes);
    let peak = ALLOCATOR.peak_usage() - before;
    let kept = ALLOCATOR.current_usage() - before;
    println!("{name}: {} bytes, peak {peak}, kept {kept}", bytes.len());
    assert!(peak <= bytes.len() + allowance, "{name}: {} bytes took {peak}", bytes.len());
    if result.is_err() {
        assert!(kept <= 64, "{name}: an error of {kept} bytes");
    }
    result.is_ok()
}

#[test]
fn decoding_takes_no_more_than_the_bytes() {
    assert!(measured("bare", &encode(&bare())));
    assert!(measured("100 000 vCPUs", &encode(&full(100_000))));

    let payload = Map::payload_of(&bare());
    let mut keys = payload.clone();
    for n in 0..MAX_KEYS - payload.0.len() {
        keys = keys.with(&format!("{n:02}"), vec![0]);
    }
    assert!(measured("as many keys as there may be", &keys.seal()));
    let blob = common::cbor(|e| drop(e.bytes(&vec![0; MAX_BYTES - 1000])));
    assert!(measured("one unknown value of 16 MiB", &payload.clone().with("later", blob).seal()));
    let ones = [&[0x9a][..], &10_000_000u32.to_be_bytes(), &vec![1; 10_000_000]].concat();
    assert!(measured("an unknown array of 10 000 000 ones", &payload.clone().with("later", ones).seal()));

    // Promises without the bytes.
    for major in [2u8, 3, 4, 5] {
        let huge = [&[major << 5 | 0x1b][..], &(1u64 << 40).to_be_bytes()].concat();
        assert!(!measured("a length of 2^40", &payload.clone().with("width_ticks", huge.clone()).seal()));
        assert!(!measured("a payload of 2^40", &seal(&huge)));
    }
    let vcpus = common::cbor(|e| drop(e.u64(1 << 40)));
    assert!(!measured("2^40 vCPUs", &payload.clone().with("vcpus", vcpus).seal()));

    // Much that is there, and refused.
    let columns = u64s(&vec![0; 1_000_000]);
    assert!(!measured("a column too long", &payload.clone().with("cntvoff", columns).seal()));
    let pairs: Vec<u8> =
        (0..200_000u32).flat_map(|n| [&[0x1a][..], &(n + 65_536).to_be_bytes(), &[0]].concat()).collect();
    let map = [&[0xba][..], &200_000u32.to_be_bytes(), &pairs].concat();
    assert!(!measured("a payload of 200 000 keys", &seal(&map)));
    assert!(measured("an unknown map of 200 000 keys", &payload.clone().with("later", map).seal()));
    assert!(!measured("nested 10 000 000 deep", &payload.clone().with("later", vec![0x81; 10_000_000]).seal()));
    let feature = common::cbor(|e| drop(e.encode(["k".repeat(1_000_000).as_str()])));
    assert!(!measured("a feature of a million letters", &payload.clone().with("crit", feature).seal()));
    let names: Vec<&str> = vec!["host"; 1_000_000];
    let crit = common::cbor(|e| drop(e.encode(&names)));
    assert!(!measured("a million names in crit", &payload.with("crit", crit).seal()));
    assert!(!measured("more than is read", &vec![0; MAX_BYTES + 1]));
    sets();
}

fn sets() {
    let write = |set: &CheckpointSet| encode_set(set).unwrap();
    assert!(measured_set("no VMs", &write(&CheckpointSet { groups: Vec::new(), ..plain_set(1) })));
    assert!(measured_set("two VMs", &write(&plain_set(2))));
    assert!(measured_set("100 000 VMs", &write(&plain_set(100_000))));
    assert!(measured_set("60 000 VMs that owe, half of them nested", &write(&full_set(30_000))));
    let mut apart = plain_set(1);
    let group = apart.groups.remove(0);
    apart.groups = (1..=64).map(|n| VmGroup { cntfrq_hz: n, names: vec![n.into()], ..group.clone() }).collect();
    assert!(measured_set("as many groups as there may be", &write(&apart)));
    // Read as the other kind, it is refused before anything of it is kept.
    assert!(!measured("a set for one VM", &write(&plain_set(100_000))));
    assert!(!measured_set("one VM for a set", &encode(&full(100_000))));

    let payload = Map::payload_of_set(&plain_set(2));
    let with = |key: &str, value: Vec<u8>| {
        let group = payload.each("groups").remove(0).with(key, value);
        payload.clone().with("groups", Map::array(&[group])).seal()
    };
    for major in [2u8, 4, 5] {
        let huge = [&[major << 5 | 0x1b][..], &(1u64 << 40).to_be_bytes()].concat();
        assert!(!measured_set("a length of 2^40", &with("names", [&[0xd8, 71][..], &huge].concat())));
        assert!(!measured_set("groups of 2^40", &payload.clone().with("groups", huge).seal()));
    }
    let groups = [&[0x9a][..], &10_000_000u32.to_be_bytes(), &vec![0xa0; 10_000_000]].concat();
    assert!(!measured_set("10 000 000 groups", &payload.clone().with("groups", groups).seal()));
    assert!(!measured_set("512 vCPUs a VM", &with("vcpus", vec![0x19, 2, 0])));
    assert!(!measured_set("a million vCPUs too many", &with("vcpus", u16s(&vec![512; 1_000_000]))));
    assert!(!measured_set("a million owners too many", &with("owned", u8s(&vec![1; 1_000_000]))));
    assert!(!measured_set("a million names", &with("names", u64s(&(0..1_000_000).collect::<Vec<_>>()))));
    let million = u64s(&vec![1; 1_000_000]);
    let parts = ["rows", "step_ns", "owed_ticks", "interval_ns"];
    let backlogs = parts.iter().fold(Map::default(), |map, key| {
        map.with(key, if *key == "rows" { u64s(&vec![0; 500_000]) } else { u64s(&vec![1; 500_000]) })
    });
    assert!(!measured_set("half a million backlogs of one VM", &with("debts", backlogs.bytes())));
    assert!(!measured_set("a million offsets", &with("cntvoff", million)));
}
