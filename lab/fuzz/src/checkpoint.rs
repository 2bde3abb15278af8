//! A fuzz target for the checkpoint reader: `make fuzz`.
//!
//! An input that begins as a file does is a file, and its last four bytes become the checksum of the others. Every other
//! input is a payload, and gets the envelope. So a mutation isn't refused for its checksum alone, and those inside a
//! payload aren't refused for the payload's length.
//!
//! The fuzzer stops at a panic. Besides the panics of the code itself, this program panics where one of these rules is
//! broken: what is read is valid, and is written again to the byte; an error points into the bytes; no text of the bytes
//! is printed raw; and a restore of what was read gives the guest the counters that its policy says.

#![no_main]

use guestclock_core::arch::arm64::{Behaviours, El2, View};
use guestclock_core::checkpoint::codec::{PayloadKind, WireError, decode, decode_set, encode, encode_set};
use guestclock_core::checkpoint::{Checkpoint, CheckpointSet};
use guestclock_core::restore::{Policy, Request};
use guestclock_core::time::{Frequency, GuestCount};
use guestclock_model::{Config, LockedVm, ManualCounter};
use libfuzzer_sys::fuzz_target;
use minicbor::data::Tag;
use minicbor::encode::Encoder;
use std::sync::Arc;

/// Start of every file: tag 55799, an array of four, and the text "guestclock".
const START: &[u8] = b"\xd9\xd9\xf7\x84\x6aguestclock";

/// Bytes of a checksum.
const CRC_BYTES: usize = 4;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    check(&if bytes.starts_with(START) { sealed(bytes.to_vec()) } else { enveloped(bytes) });
});

/// Reads a file, and panics where a rule is broken.
fn check(file: &[u8]) {
    let read = match decode(file) {
        Ok(checkpoint) => Ok(of_one(&checkpoint)),
        Err(WireError::WrongKind { found: PayloadKind::Set, .. }) => decode_set(file).map(|set| of_set(&set)),
        Err(error) => Err(error),
    };
    match read {
        Ok(written) => assert_eq!(written, file, "other bytes than those that were read"),
        Err(error) => {
            printable(&error.to_string());
            if let WireError::Malformed { offset, .. } = error {
                assert!(offset <= file.len(), "{offset} lies outside of {} bytes", file.len());
            }
        }
    }
}

/// Judges one VM's checkpoint, and returns its bytes.
fn of_one(checkpoint: &Checkpoint) -> Vec<u8> {
    assert_eq!(checkpoint.validate(), Ok(()));
    restored(checkpoint, Policy::FREEZE, 0);
    let backlog = checkpoint.backlog.map_or(0, |backlog| backlog.remaining_ticks.get());
    restored(checkpoint, Policy::ADVANCE, AWAY.wrapping_add(backlog));
    encode(checkpoint)
}

/// Judges a set and each of its VMs, and returns its bytes.
fn of_set(set: &CheckpointSet) -> Vec<u8> {
    assert_eq!(set.validate(), Ok(()));
    for one in (0..set.len().min(4)).filter_map(|index| set.get(index)) {
        of_one(&one);
    }
    encode_set(set).expect("what was read is short enough to be written")
}

/// Ticks between the checkpoint and its restore.
const AWAY: u64 = 1000;

/// Restores a checkpoint into a VM of its shape. The guest has to go on `added` ticks after the saved counters.
fn restored(checkpoint: &Checkpoint, policy: Policy, added: u64) {
    // A plan for more vCPUs or another frequency is refused, which is right too, and takes its time.
    if checkpoint.vcpus > 8 || checkpoint.host.frequency.hz() != u64::from(checkpoint.cntfrq_hz) {
        return;
    }
    let frequency = Frequency::new(checkpoint.cntfrq_hz.into()).expect("a checkpoint that was read has a frequency");
    let el2 = if checkpoint.cntvoff.is_some() { El2::Vhe } else { El2::Absent };
    let counter = ManualCounter::new(checkpoint.host.count, frequency, 0);
    let kernel = Behaviours::named("7.3").expect("the model has it");
    let vm = LockedVm::new(counter, kernel, Config { el2, ..Config::default() }, checkpoint.vcpus)
        .expect("the model has such VMs");
    vm.counter().advance(AWAY);
    let request = Request { policy, same_counter: Some(true), ..Request::default() };
    let Ok(plan) = vm.plan(checkpoint, request, None) else { return };
    printable(&plan.to_string());
    let mut open = vm.prepare(plan, Arc::new(checkpoint.clone()), None).expect("a plan that was made can be prepared");
    vm.apply(&mut open, None).expect("the model takes every value of a register");
    let report = vm.release(&mut open, None).expect("the vCPUs are stopped");
    printable(&report.to_string());
    let expected = |saved: GuestCount| GuestCount(saved.0.wrapping_add(added));
    let (virt, phys) = (expected(checkpoint.cntvct), expected(checkpoint.cntpct));
    assert_eq!((report.outcome.cntvct, report.outcome.cntpct), (virt, phys));
    for vcpu in 0..checkpoint.vcpus {
        assert_eq!(vm.count(vcpu, View::Physical, None), Ok(phys), "vCPU {vcpu}");
        let cntvoff = checkpoint.cntvoff.as_ref().map_or(0, |column| column[vcpu]);
        assert_eq!(vm.count(vcpu, View::Virtual, None), Ok(GuestCount(virt.0.wrapping_sub(cntvoff))), "vCPU {vcpu}");
    }
}

fn printable(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

/// Puts a payload into an envelope.
fn enveloped(payload: &[u8]) -> Vec<u8> {
    let mut e = Encoder::new(START.to_vec());
    let written = (|| e.u64(1)?.tag(Tag::new(24))?.bytes(payload)?.bytes(&[0; CRC_BYTES])?.ok())();
    written.expect("memory takes every byte");
    sealed(e.into_writer())
}

/// Sets a file's checksum.
fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    if let Some((body, checksum)) = file.split_last_chunk_mut::<CRC_BYTES>() {
        *checksum = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI).checksum(body).to_be_bytes();
    }
    file
}
