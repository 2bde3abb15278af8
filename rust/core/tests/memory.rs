//! Memory that decoding takes: no more than the bytes themselves and a fixed allowance, whatever they promise.
//!
//! One test in a process of its own, because the allocator counts for the whole of it.

mod common;

use common::{Contents, Doc, Vm, bare, cbor, full, full_host, full_vm, plain_host, seal, u8s, u64s};
use guestclock_core::arch::arm64::{Encoding, Role, Timer, one_reg_id};
use guestclock_core::checkpoint::codec::{MAX_BYTES, MAX_KEYS, decode, encode};
use guestclock_core::checkpoint::fields::GROUP;
use guestclock_core::checkpoint::{Column, Group, MAX_GROUPS, MAX_OTHER_REGS, RegisterColumn, UnknownKey};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Registers that this version knows: two of each timer, and CNTVOFF_EL2.
const KNOWN_REGS: usize = 9;

/// Columns of a group's facts, each of at most four parts.
const FACT_COLUMNS: usize = 4 * GROUP.len();

/// Bookkeeping of as many groups and unknown keys as there may be, apart from what is in the bytes. A vector that grows
/// is there twice for a moment, and has up to twice the room that it needs.
const ALLOWANCE: usize = 3 * MAX_KEYS * size_of::<UnknownKey>()
    + MAX_GROUPS
        * (3 * size_of::<Group>()
            + 2 * (KNOWN_REGS + MAX_OTHER_REGS) * size_of::<RegisterColumn>()
            + FACT_COLUMNS * size_of::<Column>());

/// Decodes, and returns whether it went well: within the input's size and the allowance, at the worst moment.
#[track_caller]
fn measured(name: &str, bytes: &[u8]) -> bool {
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage();
    let result = decode(bytes);
    let peak = ALLOCATOR.peak_usage() - before;
    let kept = ALLOCATOR.current_usage() - before;
    println!("{name}: {} bytes, peak {peak}, kept {kept}", bytes.len());
    assert!(peak <= bytes.len() + ALLOWANCE, "{name}: {} bytes took {peak}", bytes.len());
    if result.is_err() {
        assert!(kept <= 64, "{name}: an error of {kept} bytes");
    }
    result.is_ok()
}

/// So many VMs of the same time and registers.
fn alike(vms: usize, of: impl Fn(&str) -> Vm) -> Vec<u8> {
    let vms = (0..vms).map(|vm| of(&format!("{vm:06}"))).collect();
    encode(&Contents { vms, ..bare() }.made())
}

#[test]
fn decoding_takes_no_more_than_the_bytes() {
    assert!(measured("bare", &encode(&bare().made())));
    assert!(measured("no VMs", &encode(&Contents { vms: Vec::new(), ..bare() }.made())));
    assert!(measured("512 vCPUs", &encode(&full(512).made())));
    assert!(measured("two VMs", &encode(&plain_host(2).made())));
    assert!(measured("50 000 VMs", &encode(&plain_host(50_000).made())));
    assert!(measured("10 000 VMs of two groups", &encode(&full_host(5_000).made())));
    hosts_of_few_bytes_a_vm();
    unknown_keys();
    promises();
    hostile_columns();
}

/// Columns that are the same in every row take no bytes a row, and no memory either.
fn hosts_of_few_bytes_a_vm() {
    assert!(measured("50 000 VMs that are alike", &alike(50_000, |name| Vm::plain(name, 1, 1, 0))));
    assert!(measured("512 VMs of 512 vCPUs", &alike(512, |name| Vm::plain(name, 512, 1, 0))));
    assert!(measured("5 000 VMs that are alike, with everything", &alike(5_000, |name| full_vm(name, 1))));
    // 64 groups, with as many registers as there may be that nobody knows.
    let ids: Vec<u64> = (0..64_u8).map(|n| Encoding(3, n >> 3, 14, 4, n & 7).one_reg_id()).collect();
    let vms = (0..MAX_GROUPS).map(|without| {
        let ids = ids.iter().enumerate().filter(|(place, _)| *place != without);
        ids.fold(full_vm(&format!("{without}"), 1), |vm, (_, id)| {
            let mut vm = vm.register(*id, &[0]);
            vm.registers.retain(|id, _| *id != common::UNNAMED && *id != common::UNNAMED + 1);
            vm
        })
    });
    let most = Contents { vms: vms.collect(), ..bare() }.made();
    assert_eq!((most.groups().len(), most.groups()[0].registers().len()), (MAX_GROUPS, KNOWN_REGS + 63));
    assert!(measured("as many groups and registers as there may be", &encode(&most)));
}

fn unknown_keys() {
    let payload = Doc::payload_of(&bare().made());
    let mut keys = payload.clone();
    for n in 0..MAX_KEYS - payload.keys("").len() {
        keys = keys.with(&format!("k{n:02}"), vec![0]);
    }
    assert!(measured("as many keys as there may be", &keys.seal()));
    let blob = cbor(|e| drop(e.bytes(&vec![0; MAX_BYTES - 1000])));
    assert!(measured("one unknown value of 16 MiB", &payload.clone().with("later", blob).seal()));
    let ones = [&[0x9a][..], &10_000_000u32.to_be_bytes(), &vec![1; 10_000_000]].concat();
    assert!(measured("an unknown array of 10 000 000 ones", &payload.clone().with("later", ones).seal()));
    let pairs: Vec<u8> =
        (0..200_000u32).flat_map(|n| [&[0x1a][..], &(n + 65_536).to_be_bytes(), &[0]].concat()).collect();
    let map = [&[0xba][..], &200_000u32.to_be_bytes(), &pairs].concat();
    assert!(!measured("a payload of 200 000 keys", &seal(&map)));
    assert!(measured("an unknown map of 200 000 keys", &payload.clone().with("later", map).seal()));
    assert!(!measured("nested 10 000 000 deep", &payload.clone().with("later", vec![0x81; 10_000_000]).seal()));
    let feature = cbor(|e| drop(e.encode(["k".repeat(1_000_000).as_str()])));
    assert!(!measured("a feature of a million letters", &payload.clone().with("crit", feature).seal()));
    let crit = cbor(|e| drop(e.encode(vec!["stamp"; 1_000_000])));
    assert!(!measured("a million names in crit", &payload.clone().with("crit", crit).seal()));
    let arch = cbor(|e| drop(e.str(&"a".repeat(1_000_000))));
    assert!(!measured("an architecture of a million letters", &payload.with("arch", arch).seal()));
}

/// Lengths without the bytes, and rows without them.
fn promises() {
    let payload = Doc::payload_of(&plain_host(2).made());
    let paths =
        ["groups", "groups/0/names", "groups/0/timeline", "groups/0/vcpus", "groups/0/registers", "stamp/count"];
    for major in [2u8, 3, 4, 5] {
        let huge = [&[major << 5 | 0x1b][..], &(1u64 << 40).to_be_bytes()].concat();
        assert!(!measured("a payload of 2^40", &seal(&huge)));
        for path in paths {
            assert!(!measured("a length of 2^40", &payload.clone().with(path, huge.clone()).seal()));
            let column = [&[0xd8, 71][..], &huge].concat();
            assert!(!measured("a column of 2^40", &payload.clone().with(path, column).seal()));
        }
    }
    // 512 vCPUs of each of 400 000 VMs, of which nothing else takes a byte.
    let names: Vec<String> = (0..400_000).map(|vm| format!("{vm:06}")).collect();
    let many =
        payload.with("groups/0/names", cbor(|e| drop(e.str(&names.join("\n"))))).with("groups/0/timeline", vec![0]);
    for vcpus in [vec![1], vec![0x19, 2, 0]] {
        assert!(!measured(
            "the same number of vCPUs for 400 000 VMs",
            &many.clone().with("groups/0/vcpus", vcpus).seal()
        ));
    }
    let vcpus: Vec<u64> = (0..400_000).map(|vm| 1 + vm % 512).collect();
    assert!(!measured("many vCPUs for 400 000 VMs", &many.with("groups/0/vcpus", u64s(&vcpus)).seal()));
}

/// Much that is there, and refused.
fn hostile_columns() {
    let payload = Doc::payload_of(&plain_host(2).made());
    let cval = format!("groups/0/registers/{}", one_reg_id(Role::Cval(Timer::Vtimer)));
    let ctl = format!("groups/0/registers/{}", one_reg_id(Role::Ctl(Timer::Vtimer)));
    let million = u64s(&vec![1; 1_000_000]);
    for path in [&cval, &ctl, "groups/0/timeline", "groups/0/vcpus"] {
        assert!(!measured("a million rows too many", &payload.clone().with(path, million.clone()).seal()));
        assert!(!measured("a million bytes too many", &payload.clone().with(path, u8s(&vec![1; 1_000_000])).seal()));
    }
    let groups = [&[0x9a][..], &10_000_000u32.to_be_bytes(), &vec![0xa0; 10_000_000]].concat();
    assert!(!measured("10 000 000 groups", &payload.clone().with("groups", groups).seal()));
    // Of no timer, so that none has a form that its column would have to have.
    let registers: Vec<u8> =
        (0..1_000_000_u32).flat_map(|n| [&[0x1a][..], &(n + 65_536).to_be_bytes(), &[0]].concat()).collect();
    let registers = [&[0xba][..], &1_000_000u32.to_be_bytes(), &registers].concat();
    assert!(!measured("a million registers", &payload.clone().with("groups/0/registers", registers).seal()));
    let names = vec!["a"; 1_000_000].join("\n");
    assert!(!measured("a million equal names", &payload.with("groups/0/names", cbor(|e| drop(e.str(&names)))).seal()));
    sparse_rows();
    assert!(!measured("more than is read", &vec![0; MAX_BYTES + 1]));
}

/// Facts of many rows and of few, of many VMs: a fact that is the same in every row takes eight bytes a row for its place.
fn sparse_rows() {
    let host = |known: fn(u64) -> bool| {
        let of = move |name: &str| {
            let vm = Vm::plain(name, 1, 1, 0);
            if known(name.parse().unwrap()) {
                Vm { time: full_vm(name, 1).time, stolen_time: vec![Some(0)], ..vm }
            } else {
                vm
            }
        };
        alike(20_000, of)
    };
    let most = host(|vm| vm > 0);
    assert!(measured("facts of all VMs but one", &most));
    assert!(measured("facts of one VM", &host(|vm| vm == 7)));
    assert!(measured("facts of every second VM", &host(|vm| vm.is_multiple_of(2))));
    let payload = Doc::payload_in(&most);
    for fact in ["backlog", "reading", "vmclock", "interrupts", "stopped_at", "stolen_time"] {
        let path = format!("groups/0/{fact}/rows");
        for rows in [vec![0; 19_999], (0..20_000).collect(), (0..1_000_000).collect(), vec![u64::MAX; 1_000_000]] {
            assert!(!measured("rows that aren't places", &payload.clone().with(&path, u64s(&rows)).seal()));
        }
    }
}
