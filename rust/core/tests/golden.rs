//! The golden files, which tests/golden/make.py made with another encoder: their values, and their bytes again.

mod common;

use common::{Contents, Doc, Vm, bare, full_host, full_vm, plain_host};
use guestclock_core::arch::arm64::Timer;
use guestclock_core::checkpoint::codec::{VERSION, WireError, decode, encode, encoded_len};
use guestclock_core::checkpoint::{Backlog, Interrupts, Reading, UnknownKey, VmName};
use guestclock_core::time::{BootTime, Frequency, GuestCount, Leap, Quality, SourceName, Stamp, StampCount, SyncBound};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", ".."].iter().collect()
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(root().join("tests/golden").join(name).with_extension("cbor")).unwrap()
}

/// The one instant of a real host that some of them have.
fn stamp() -> Stamp {
    let (count, frequency) = (StampCount(0xe8_d4a5_1000), Frequency::new(1_000_000_000).unwrap());
    let source = SourceName::fixed("clock_monotonic_raw");
    Stamp { leap: Leap::None, ..Stamp::unvouched(count, frequency, source, 1_750_000_000_123_456_789, 84) }
}

fn stamp_24_mhz() -> Stamp {
    Stamp {
        source: SourceName::fixed("cntvct_el0"),
        frequency: Frequency::new(24_000_000).unwrap(),
        tai_offset_s: Some(37),
        synchronized: Some(true),
        max_error_ns: Some(1_500_000),
        leap: Leap::Insert,
        machine_id: Some([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        boot_id: Some([0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff]),
        ..stamp()
    }
}

/// Somebody vouches for the wall clock.
fn vouched(stamp: Stamp) -> Stamp {
    let sync = SyncBound {
        max_error_ns: 250_000,
        age_ns: 64_000_000_000,
        holdover_ppb: 1_000,
        quality: Quality::Chrony,
        tai_offset_s: None,
    };
    let boot_time = BootTime { boottime_ns: 45_266_666_666_666, slept_ns: 3_600_000_000_000, width_ns: 120 };
    Stamp { sync: Some(sync), rate_ppb: Some(-3_820), boot_time: Some(boot_time), ..stamp }
}

fn two_vcpus() -> Contents {
    let vm = Vm::plain("web-1", 2, 24_000_000, 1 << 32)
        .timer(Timer::Vtimer, &[1, 3], &[0x1_0000_1000, u64::MAX])
        .timer(Timer::Ptimer, &[0, 2], &[0, 0x1_0000_2000]);
    Contents { stamp: stamp_24_mhz(), vms: vec![vm], unknown: Vec::new() }
}

fn by_value() -> Contents {
    let stamp = Stamp { synchronized: Some(false), leap: Leap::InProgress, ..stamp_24_mhz() };
    two_vcpus().at(stamp).time(|time| {
        (time.opted_in, time.timeline) = (false, GuestCount(5_000_000));
        (time.virtual_width_ticks, time.physical_width_ticks) = (17, 2_000);
        time.physical_displacement_ticks = 0xe8_d4a5_1000 - 5_000_000;
    })
}

fn backlog() -> Contents {
    two_vcpus().at(vouched(stamp_24_mhz())).time(|time| {
        time.backlog = Backlog::new(0x10_0000_0000, 5_000_000_000, 10_000_000_000);
        time.stopped_at = Some(StampCount(0xe8_d4a5_0f00));
        time.interrupts = Some(Interrupts([27, 30, 0, 0]));
    })
}

/// The VM with four timers.
fn four_timers(vm: Vm) -> Vm {
    vm.timer(Timer::Vtimer, &[1, 0], &[10, 11])
        .timer(Timer::Ptimer, &[2, 1], &[20, 21])
        .timer(Timer::Hvtimer, &[3, 2], &[30, 31])
        .timer(Timer::Hptimer, &[0, 3], &[40, 41])
}

fn nested() -> Contents {
    two_vcpus().with(|vm| four_timers(vm).cntvoff(&[0, 4096u64.wrapping_neg()]))
}

fn wide_ctl() -> Contents {
    two_vcpus().with(|vm| {
        vm.timer(Timer::Vtimer, &[1, 0xffff_ffff_ffff_fff8], &[100, 200]).timer(Timer::Ptimer, &[0xfb, 0], &[300, 400])
    })
}

fn unknown_keys() -> Contents {
    let keys: [(&str, &[u8]); 5] = [
        ("a", b"\x20"),
        ("crib", b"\xf6"),
        (
            "dusk",
            b"\x87\xf5\xf4\x3b\xff\xff\xff\xff\xff\xff\xff\xff\x1b\xff\xff\xff\xff\xff\xff\xff\xff\x42\x00\xff\x64Zeit\
              \xa2\x01\x80\x41k\xa0",
        ),
        ("zzzzzz", b"\xd9\x03\xe8\xd8\x47\x48\x07\0\0\0\0\0\0\0"),
        ("an unknown key longer than any known one", b"\x1b\0\0\0\x01\0\0\0\0"),
    ];
    let unknown = keys.map(|(key, value)| UnknownKey { key: key.into(), value: value.into() });
    Contents { unknown: unknown.into(), ..bare() }
}

fn other_regs() -> Contents {
    two_vcpus().with(|vm| {
        vm.register(0x6030_0000_0013_e706, &[0, u64::MAX])
            .register(0x6030_0000_0013_e730, &[5, 6])
            .register(0x6030_0000_0013_e731, &[1 << 40, 1 << 40])
    })
}

fn min() -> Contents {
    let sync = SyncBound {
        max_error_ns: 0,
        age_ns: 0,
        holdover_ppb: 0,
        quality: Quality::Declared,
        tai_offset_s: Some(i32::MIN),
    };
    let frequency = Frequency::new(1).unwrap();
    let stamp = Stamp {
        boot_time: Some(BootTime { boottime_ns: 0, slept_ns: 0, width_ns: 0 }),
        tai_offset_s: Some(i32::MIN),
        synchronized: Some(false),
        max_error_ns: Some(0),
        sync: Some(sync),
        rate_ppb: Some(i64::MIN),
        leap: Leap::Delete,
        machine_id: Some([0; 16]),
        boot_id: Some([0; 16]),
        ..Stamp::unvouched(StampCount(0), frequency, SourceName::fixed("a"), i64::MIN, 0)
    };
    let vm = Vm::plain("", 1, 1, 0).cntvoff(&[0]).time(|time| {
        time.opted_in = false;
        time.backlog = Backlog::new(1, 1, 1);
        time.reading = Some(Reading { count: GuestCount(0), realtime_ns: 0, width_ns: 0 });
        time.vmclock_address = Some(0);
        time.stopped_at = Some(StampCount(0));
        time.interrupts = Some(Interrupts([0; 4]));
    });
    let vm = Timer::ALL.iter().fold(vm, |vm, &timer| vm.timer(timer, &[0], &[0]));
    Contents { stamp, vms: vec![Vm { stolen_time: vec![Some(0)], ..vm }], unknown: Vec::new() }
}

fn max() -> Contents {
    const MAX: u64 = u64::MAX;
    let sync = SyncBound {
        max_error_ns: MAX,
        age_ns: MAX,
        holdover_ppb: MAX,
        quality: Quality::KernelUnverified,
        tai_offset_s: Some(i32::MAX),
    };
    let source = SourceName::fixed("abcdefghijklmnopqrstuvwxyz_01239");
    let stamp = Stamp {
        boot_time: Some(BootTime { boottime_ns: MAX, slept_ns: MAX, width_ns: MAX }),
        tai_offset_s: Some(i32::MAX),
        synchronized: Some(true),
        max_error_ns: Some(MAX),
        sync: Some(sync),
        rate_ppb: Some(i64::MAX),
        leap: Leap::Passed,
        machine_id: Some([0xff; 16]),
        boot_id: Some([0xff; 16]),
        ..Stamp::unvouched(StampCount(MAX), Frequency::new(MAX).unwrap(), source, i64::MAX, MAX)
    };
    let vm = Vm::plain(&"\u{10ffff}".repeat(16), 1, u32::MAX, MAX).cntvoff(&[MAX]).time(|time| {
        (time.virtual_width_ticks, time.physical_width_ticks) = (MAX, MAX);
        time.physical_displacement_ticks = MAX;
        time.backlog = Backlog::new(MAX, MAX, MAX);
        time.reading = Some(Reading { count: GuestCount(MAX), realtime_ns: MAX, width_ns: MAX });
        time.vmclock_address = Some(MAX);
        time.stopped_at = Some(StampCount(MAX));
        time.interrupts = Some(Interrupts([u32::MAX; 4]));
    });
    let vm = Timer::ALL.iter().fold(vm, |vm, &timer| vm.timer(timer, &[MAX & !4], &[MAX]));
    Contents { stamp, vms: vec![Vm { stolen_time: vec![Some(MAX)], ..vm }], unknown: Vec::new() }
}

fn host_plain() -> Contents {
    let vm = |name, timeline, ctl: [u64; 2], cval: [u64; 2], ptimer: [u64; 2]| {
        Vm::plain(name, 2, 24_000_000, timeline)
            .timer(Timer::Vtimer, &ctl, &cval)
            .timer(Timer::Ptimer, &[0, 0], &ptimer)
            .time(|time| time.stopped_at = Some(StampCount(0xe8_d4a5_0f00)))
    };
    // In another order than the file's.
    let vms = vec![
        vm("web-2", u64::MAX, [1, 1], [7, 8], [0, 9]),
        vm("db", 1 << 32, [1, 3], [0x1_0000_1000, u64::MAX], [0, 0x1_0000_2000]),
        vm("web-1", 5, [1, 0], [6, 0], [0, 0]),
    ];
    Contents { stamp: stamp_24_mhz(), vms, unknown: Vec::new() }
}

fn host_mixed() -> Contents {
    let a = Vm::plain("a", 1, 24_000_000, 10)
        .timer(Timer::Vtimer, &[1], &[100])
        .timer(Timer::Ptimer, &[1], &[500])
        .time(|time| {
            time.backlog = Backlog::new(0x10_0000_0000, 5_000_000_000, 10);
            time.vmclock_address = Some(0x4000_0000);
            time.interrupts = Some(Interrupts([27, 30, 0, 0]));
        });
    let dns = Vm::plain("dns", 2, 1_000_000_000, 20)
        .timer(Timer::Vtimer, &[0xffff_ffff_ffff_fff8, 0], &[200, 300])
        .timer(Timer::Ptimer, &[0, 0], &[600, 700])
        .time(|time| {
            time.opted_in = false;
            (time.virtual_width_ticks, time.physical_width_ticks) = (90, 300);
            time.physical_displacement_ticks = u64::MAX;
            let realtime_ns = 1_749_999_999_000_000_000;
            time.reading = Some(Reading { count: GuestCount(19), realtime_ns, width_ns: 250 });
            time.interrupts = Some(Interrupts([27, 30, 0, 0]));
        });
    let zurich = Vm::plain("zürich", 1, 62_500_000, u64::MAX)
        .timer(Timer::Vtimer, &[3], &[400])
        .timer(Timer::Ptimer, &[0], &[800])
        .time(|time| {
            time.backlog = Backlog::new(u64::MAX, 1, 10);
            time.vmclock_address = Some(0x8000_0000);
            time.stopped_at = Some(StampCount(999_999_999_744));
            time.interrupts = Some(Interrupts([11, 30, 0, 0]));
        });
    let b = four_timers(Vm::plain("b", 2, 1_000_000_000, 40)).cntvoff(&[0, 4096u64.wrapping_neg()]).time(|time| {
        time.opted_in = false;
        (time.virtual_width_ticks, time.physical_width_ticks) = (1, 1);
        time.interrupts = Some(Interrupts([27, 30, 28, 26]));
    });
    let vms = vec![
        Vm { stolen_time: vec![None, Some(0x4000_0040)], ..b },
        Vm { stolen_time: vec![Some(0x8100_0040)], ..zurich },
        dns,
        Vm { stolen_time: vec![Some(0x4100_0000)], ..a },
    ];
    let unknown = vec![UnknownKey { key: "later".into(), value: b"\x82\x01\x61x".to_vec() }];
    let stamp = vouched(stamp());
    let boot_time = stamp.boot_time.map(|boot| BootTime { boottime_ns: 4_600_000_000_000, ..boot });
    Contents { stamp: Stamp { boot_time, ..stamp }, vms, unknown }
}

fn host_same_cntvoff() -> Contents {
    let vm = |name, timeline, row: usize| {
        let vm = four_timers(Vm::plain(name, 2, 62_500_000, timeline)).cntvoff(&[1 << 40, 1 << 40]);
        let registers = vm.registers.iter().map(|(id, values)| (*id, vec![values[row]])).collect();
        Vm { registers, ..Vm::plain(name, 1, 62_500_000, timeline) }
    };
    Contents { vms: vec![vm("", 200, 0), vm("el2", 300, 1)], ..bare() }
}

#[test]
fn each_golden_file_is_read_and_written_again() {
    let expected = [
        ("bare", bare()),
        ("two-vcpus", two_vcpus()),
        ("by-value", by_value()),
        ("backlog", backlog()),
        ("nested", nested()),
        ("wide-ctl", wide_ctl()),
        ("unknown-keys", unknown_keys()),
        ("other-regs", other_regs()),
        ("min", min()),
        ("max", max()),
        ("host-plain", host_plain()),
        ("host-mixed", host_mixed()),
        ("host-none", Contents { vms: Vec::new(), ..bare() }),
        ("host-same-cntvoff", host_same_cntvoff()),
    ];
    for (name, contents) in &expected {
        let bytes = golden(name);
        let checkpoint = contents.made();
        assert_eq!(decode(&bytes).as_ref(), Ok(&checkpoint), "{name}");
        assert_eq!(Contents::of(&checkpoint), contents.clone().in_order(), "{name}");
        assert_eq!((encode(&checkpoint), encoded_len(&checkpoint)), (bytes.clone(), bytes.len()), "{name}");
    }
    let refused = [
        ("version-2", WireError::UnsupportedVersion { found: 2, supported: VERSION }),
        ("crit", WireError::UnsupportedFeature { feature: "scaling".into() }),
        ("arch", WireError::UnsupportedArch { found: "x86_64".into() }),
    ];
    for (name, error) in &refused {
        assert_eq!(decode(&golden(name)).as_ref(), Err(error), "{name}");
    }
    let tried: BTreeSet<String> =
        expected.iter().map(|(name, _)| *name).chain(refused.iter().map(|(name, _)| *name)).map(String::from).collect();
    let there: BTreeSet<String> = fs::read_dir(root().join("tests/golden"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cbor"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(tried, there);
}

#[test]
fn a_vm_of_a_golden_file_is_found_by_its_name() {
    let checkpoint = host_mixed().made();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "dns", "zürich", "b"]);
    for (index, name) in checkpoint.names().enumerate() {
        assert_eq!(checkpoint.find(name), Some(index));
        assert_eq!(VmName::new(name).unwrap().as_str(), checkpoint.vm(index).unwrap().name());
    }
    assert_eq!((checkpoint.find("c"), checkpoint.find(""), checkpoint.find("a\ndns")), (None, None, None));
    assert!(checkpoint.vm(4).is_none());
}

/// Seeds of the fuzz target: payloads without their envelope, whose length a mutation may change. RENEW_SEEDS=1 writes
/// them again, after a change of the format.
#[test]
fn the_seeds_of_the_fuzz_target_are_payloads() {
    let three = ["a", "b", "c"].map(|name| full_vm(name, 2));
    let stopped = bare().time(|time| {
        time.stopped_at = Some(StampCount(260));
        time.backlog = Backlog::new(50, 160, 320);
    });
    let el2 = Contents { vms: vec![four_timers(Vm::plain("el2", 2, 62_500_000, 5)).cntvoff(&[7, 9])], ..bare() };
    let mixed = ["", "1 GHz"].map(|name| {
        let hz = if name.is_empty() { 24_000_000 } else { 1_000_000_000 };
        Vm::plain(name, 1, hz, 200).timer(Timer::Ptimer, &[3], &[300]).time(|time| {
            (time.opted_in, time.physical_displacement_ticks) = (false, 700);
            (time.virtual_width_ticks, time.physical_width_ticks) = (1, 2);
            time.stopped_at = (hz == 24_000_000).then_some(StampCount(299));
        })
    });
    let seeds = [
        ("bare", bare()),
        ("stopped", stopped),
        ("el2", el2),
        ("plain-host", plain_host(2)),
        ("by-value-host", Contents { vms: mixed.into(), ..bare() }),
        ("facts-of-some", full_host(3)),
        ("facts-of-all", Contents { vms: three.into(), ..full_host(0) }),
    ];
    let folder = root().join("lab/fuzz/corpus/checkpoint");
    let renew = std::env::var_os("RENEW_SEEDS").is_some();
    for (name, contents) in &seeds {
        let (seed, payload) = (folder.join(name), Doc::payload_of(&contents.made()).bytes());
        if renew {
            fs::write(&seed, &payload).unwrap();
        }
        assert_eq!(fs::read(&seed).unwrap(), payload, "{name}");
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), seeds.len());
}
