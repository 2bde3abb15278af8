//! The golden files, which tests/golden/make.py made with another encoder: their values, and their bytes again.

mod common;

use common::{bare, timer};
use guestclock_core::arch::arm64::Timer;
use guestclock_core::checkpoint::codec::{VERSION, WireError, decode, decode_set, encode, encode_set};
use guestclock_core::checkpoint::{
    Backlog, Checkpoint, CheckpointSet, Column, CtlColumn, RegisterColumn, TimerColumns, UnknownKey, VmGroup,
};
use guestclock_core::time::{Frequency, GuestCount, HostCount, Leap, Quality, SourceName, Stamp, SyncBound};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", ".."].iter().collect()
}

fn golden(name: &str) -> Vec<u8> {
    fs::read(root().join("tests/golden").join(name).with_extension("cbor")).unwrap()
}

/// The one instant of a real host that most of them have.
fn host() -> Stamp {
    Stamp {
        count: HostCount(0xe8_d4a5_1000),
        frequency: Frequency::new(1_000_000_000).unwrap(),
        source: SourceName::fixed("clock_monotonic_raw"),
        realtime_ns: 1_750_000_000_123_456_789,
        width_ns: 84,
        tai_offset_s: None,
        synchronized: None,
        max_error_ns: None,
        sync: None,
        rate_ppb: None,
        leap: Leap::None,
        machine_id: None,
        boot_id: None,
    }
}

fn two_vcpus() -> Checkpoint {
    Checkpoint {
        cntfrq_hz: 24_000_000,
        cntvct: GuestCount(1 << 32),
        cntpct: GuestCount(1 << 32),
        opted_in: true,
        width_ticks: 0,
        host: Stamp {
            source: SourceName::fixed("cntvct_el0"),
            frequency: Frequency::new(24_000_000).unwrap(),
            tai_offset_s: Some(37),
            synchronized: Some(true),
            max_error_ns: Some(1_500_000),
            leap: Leap::Insert,
            machine_id: Some([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
            boot_id: Some([
                0xf0, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa, 0xfb, 0xfc, 0xfd, 0xfe, 0xff,
            ]),
            ..host()
        },
        stopped_at: Some(0xe8_d4a5_0f00),
        backlog: None,
        vcpus: 2,
        cntvoff: None,
        timers: vec![
            timer(Timer::Vtimer, &[1, 3], &[0x1_0000_1000, u64::MAX]),
            timer(Timer::Ptimer, &[0, 2], &[0, 0x1_0000_2000]),
        ],
        others: Vec::new(),
        unknown: Vec::new(),
    }
}

fn unowned() -> Checkpoint {
    Checkpoint {
        opted_in: false,
        cntvct: GuestCount(5_000_000),
        cntpct: GuestCount(0xe8_d4a5_1000),
        width_ticks: 17,
        host: Stamp { synchronized: Some(false), leap: Leap::InProgress, ..host() },
        ..two_vcpus()
    }
}

fn owing() -> Checkpoint {
    let sync = SyncBound {
        max_error_ns: 250_000,
        age_ns: 64_000_000_000,
        holdover_ppb: 1_000,
        quality: Quality::Chrony,
        tai_offset_s: None,
    };
    Checkpoint {
        backlog: Backlog::new(0x10_0000_0000, 5_000_000_000, 10_000_000_000),
        host: Stamp { sync: Some(sync), rate_ppb: Some(-3_820), ..two_vcpus().host },
        ..two_vcpus()
    }
}

fn nested() -> Checkpoint {
    Checkpoint {
        cntvoff: Some(vec![0, 4096u64.wrapping_neg()]),
        timers: vec![
            timer(Timer::Vtimer, &[1, 0], &[10, 11]),
            timer(Timer::Ptimer, &[2, 1], &[20, 21]),
            timer(Timer::Hvtimer, &[3, 2], &[30, 31]),
            timer(Timer::Hptimer, &[0, 3], &[40, 41]),
        ],
        ..two_vcpus()
    }
}

fn wide_ctl() -> Checkpoint {
    let wide = CtlColumn::Wide(vec![1, 0xffff_ffff_ffff_fff8]);
    Checkpoint {
        timers: vec![
            TimerColumns { timer: Timer::Vtimer, cval: vec![100, 200], ctl: wide },
            TimerColumns { timer: Timer::Ptimer, cval: vec![300, 400], ctl: CtlColumn::Bits(vec![1, 0]) },
        ],
        ..two_vcpus()
    }
}

fn unknown_keys() -> Checkpoint {
    let known: [(&str, &[u8]); 5] = [
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
    let unknown = known.map(|(key, value)| UnknownKey { key: key.into(), value: value.into() });
    Checkpoint { unknown: unknown.into(), ..bare() }
}

fn min() -> Checkpoint {
    Checkpoint {
        cntfrq_hz: 1,
        cntvct: GuestCount(0),
        cntpct: GuestCount(0),
        opted_in: false,
        width_ticks: 0,
        host: Stamp {
            count: HostCount(0),
            frequency: Frequency::new(1).unwrap(),
            source: SourceName::fixed("a"),
            realtime_ns: i64::MIN,
            width_ns: 0,
            tai_offset_s: Some(i32::MIN),
            synchronized: Some(false),
            max_error_ns: Some(0),
            sync: Some(SyncBound {
                max_error_ns: 0,
                age_ns: 0,
                holdover_ppb: 0,
                quality: Quality::Declared,
                tai_offset_s: Some(i32::MIN),
            }),
            rate_ppb: Some(i64::MIN),
            leap: Leap::Delete,
            machine_id: Some([0; 16]),
            boot_id: Some([0; 16]),
        },
        stopped_at: Some(0),
        backlog: Backlog::new(1, 1, 1),
        vcpus: 1,
        cntvoff: Some(vec![0]),
        timers: Timer::ALL.iter().map(|&name| timer(name, &[0], &[0])).collect(),
        others: Vec::new(),
        unknown: Vec::new(),
    }
}

fn max() -> Checkpoint {
    Checkpoint {
        cntfrq_hz: u32::MAX,
        cntvct: GuestCount(u64::MAX),
        cntpct: GuestCount(u64::MAX),
        opted_in: true,
        width_ticks: u64::MAX,
        host: Stamp {
            count: HostCount(u64::MAX),
            frequency: Frequency::new(u64::MAX).unwrap(),
            source: SourceName::fixed("abcdefghijklmnopqrstuvwxyz_01239"),
            realtime_ns: i64::MAX,
            width_ns: u64::MAX,
            tai_offset_s: Some(i32::MAX),
            synchronized: Some(true),
            max_error_ns: Some(u64::MAX),
            sync: Some(SyncBound {
                max_error_ns: u64::MAX,
                age_ns: u64::MAX,
                holdover_ppb: u64::MAX,
                quality: Quality::KernelUnverified,
                tai_offset_s: Some(i32::MAX),
            }),
            rate_ppb: Some(i64::MAX),
            leap: Leap::Passed,
            machine_id: Some([0xff; 16]),
            boot_id: Some([0xff; 16]),
        },
        stopped_at: Some(u64::MAX),
        backlog: Backlog::new(u64::MAX, u64::MAX, u64::MAX),
        vcpus: 1,
        cntvoff: Some(vec![u64::MAX]),
        timers: Timer::ALL.iter().map(|&name| timer(name, &[u64::MAX], &[u64::MAX])).collect(),
        others: Vec::new(),
        unknown: Vec::new(),
    }
}

fn other_regs() -> Checkpoint {
    let others = [(0x6030_0000_0013_e706, [0, u64::MAX]), (0x6030_0000_0013_e730, [5, 6])];
    Checkpoint {
        others: others.map(|(id, values)| RegisterColumn { id, values: values.to_vec() }).to_vec(),
        ..two_vcpus()
    }
}

fn set_plain() -> CheckpointSet {
    let Checkpoint { host, stopped_at, .. } = two_vcpus();
    let group = VmGroup {
        cntfrq_hz: 24_000_000,
        names: vec![0x8000_0000, 0x8000_0200, 0x8000_0400],
        vcpus: Column::Same(2),
        cntvct: vec![1 << 32, 5, u64::MAX],
        cntpct: None,
        opted_in: Column::Same(true),
        backlogs: Vec::new(),
        cntvoff: None,
        timers: vec![
            timer(Timer::Vtimer, &[1, 3, 1, 0, 1, 1], &[0x1_0000_1000, u64::MAX, 6, 0, 7, 8]),
            timer(Timer::Ptimer, &[0, 2, 0, 0, 0, 1], &[0, 0x1_0000_2000, 0, 0, 0, 9]),
        ],
    };
    CheckpointSet { host, stopped_at, groups: vec![group], unknown: Vec::new() }
}

fn set_mixed() -> CheckpointSet {
    let backlog = owing().backlog.unwrap();
    let other = VmGroup {
        cntfrq_hz: 24_000_000,
        names: vec![1, 3, u64::MAX],
        vcpus: Column::Each(vec![1, 2, 1]),
        cntvct: vec![10, 20, 30],
        cntpct: Some(vec![10, 21, 30]),
        opted_in: Column::Each(vec![true, false, true]),
        backlogs: vec![(0, backlog), (2, Backlog::new(u64::MAX, 1, 2).unwrap())],
        cntvoff: None,
        timers: vec![
            timer(Timer::Vtimer, &[1, 0xffff_ffff_ffff_fff8, 0, 3], &[100, 200, 300, 400]),
            timer(Timer::Ptimer, &[1, 0, 0, 0], &[500, 600, 700, 800]),
        ],
    };
    let nested = nested();
    let own = VmGroup {
        cntfrq_hz: 1_000_000_000,
        names: vec![2],
        vcpus: Column::Same(2),
        cntvct: vec![40],
        cntpct: None,
        opted_in: Column::Same(false),
        backlogs: Vec::new(),
        cntvoff: nested.cntvoff.map(Column::Each),
        timers: nested.timers,
    };
    let Stamp { sync, rate_ppb, .. } = owing().host;
    CheckpointSet {
        host: Stamp { sync, rate_ppb, ..host() },
        stopped_at: None,
        groups: vec![other, own],
        unknown: vec![UnknownKey { key: "later".into(), value: b"\x82\x01\x61x".to_vec() }],
    }
}

fn set_same_cntvoff() -> CheckpointSet {
    let own = set_mixed().groups.remove(1);
    let group = VmGroup { cntfrq_hz: 62_500_000, cntvoff: Some(Column::Same(0)), ..own };
    CheckpointSet { host: bare().host, stopped_at: None, groups: vec![group], unknown: Vec::new() }
}

#[test]
fn each_golden_file_is_read_and_written_again() {
    let no_vcpus = Checkpoint { vcpus: 0, timers: vec![timer(Timer::Vtimer, &[], &[])], ..bare() };
    let expected = [
        ("bare", bare()),
        ("two-vcpus", two_vcpus()),
        ("unowned", unowned()),
        ("owing", owing()),
        ("nested", nested()),
        ("wide-ctl", wide_ctl()),
        ("unknown-keys", unknown_keys()),
        ("other-regs", other_regs()),
        ("no-vcpus", no_vcpus),
        ("min", min()),
        ("max", max()),
    ];
    for (name, checkpoint) in &expected {
        let bytes = golden(name);
        assert_eq!(decode(&bytes).as_ref(), Ok(checkpoint), "{name}");
        assert_eq!(encode(checkpoint), bytes, "{name}");
    }
    let sets = [
        ("set-plain", set_plain()),
        ("set-mixed", set_mixed()),
        ("set-none", CheckpointSet { host: bare().host, stopped_at: None, groups: Vec::new(), unknown: Vec::new() }),
        ("set-same-cntvoff", set_same_cntvoff()),
    ];
    for (name, set) in &sets {
        let bytes = golden(name);
        assert_eq!(decode_set(&bytes).as_ref(), Ok(set), "{name}");
        assert_eq!(encode_set(set), Ok(bytes), "{name}");
    }
    let refused = [
        ("version-2", WireError::UnsupportedVersion { found: 2, supported: VERSION }),
        ("crit", WireError::UnsupportedFeature { feature: "scaling".into() }),
    ];
    for (name, error) in &refused {
        assert_eq!(decode(&golden(name)).as_ref(), Err(error), "{name}");
    }
    let tried: BTreeSet<String> = (expected.iter().map(|(name, _)| *name))
        .chain(sets.iter().map(|(name, _)| *name))
        .chain(refused.iter().map(|(name, _)| *name))
        .map(String::from)
        .collect();
    let there: BTreeSet<String> = fs::read_dir(root().join("tests/golden"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cbor"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(tried, there);
}

#[test]
fn the_worked_example_of_the_specification_is_a_checkpoint() {
    let page = fs::read_to_string(root().join("docs/checkpoint-format.md")).unwrap();
    let (_, block) = page.split_once("```hex\n").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let digits: String =
        block.lines().filter_map(|line| line.split('#').next()).collect::<String>().split_whitespace().collect();
    let bytes: Vec<u8> = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    assert_eq!(decode(&bytes), Ok(bare()));
    assert_eq!(bytes, golden("bare"));
}
