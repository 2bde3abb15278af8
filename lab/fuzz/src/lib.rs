//! Rules for the bytes of a checkpoint's file that anyone may have written, for the programs that make such bytes.
//!
//! Besides the panics of the code itself, [`check`] panics where one of these rules is broken:
//!
//! - A checkpoint that was read is written again to the byte.
//! - Each of its VMs is found by its name, and is by itself what it was among the others.
//! - Its parts, joined, are the whole.
//! - A restore gives each VM the counters that the policy says.
//! - An error points into the bytes, and no text of the bytes is printed raw.

pub mod dice;

use guestclock_core::arch::arm64::{Behaviours, El2, View};
use guestclock_core::checkpoint::codec::{WireError, decode, encode, encoded_len, plain};
use guestclock_core::checkpoint::{Checkpoint, Held, JoinError, SavedVm};
use guestclock_core::restore::{Policy, Request, Written};
use guestclock_core::time::{Elapsed, GuestCount, NamespaceTicks};
use guestclock_model::{Config, LockedVm, ManualCounter};
use minicbor::data::Tag;
use minicbor::encode::Encoder;
use std::sync::Arc;

/// Start of every file: tag 55799, an array of four, and the text "guestclock".
pub const START: &[u8] = b"\xd9\xd9\xf7\x84\x6aguestclock";

static CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// Bytes of a checksum.
const CRC_BYTES: usize = 4;

/// Reads a file, and panics where a rule is broken; restores what it reads if `restores`. Returns true for a checkpoint's
/// bytes.
pub fn check(file: &[u8], restores: bool) -> bool {
    match decode(file) {
        Ok(checkpoint) => {
            assert_eq!(encoded_len(&checkpoint), file.len(), "another length than that which was read");
            assert_eq!(encode(&checkpoint), file, "other bytes than those that were read");
            judge(&checkpoint, restores);
            true
        }
        Err(error) => {
            printable(&error.to_string());
            if let WireError::Malformed { offset, .. } = error {
                assert!(offset <= file.len(), "{offset} lies outside of {} bytes", file.len());
            }
            false
        }
    }
}

/// VMs of a file that are looked at by themselves and restored.
const VMS: usize = 4;

/// vCPUs of a VM that is restored, at most: more take their time.
const VCPUS: usize = 8;

/// Judges a checkpoint that was read.
fn judge(checkpoint: &Checkpoint, restores: bool) {
    assert_eq!(checkpoint.vms().count(), checkpoint.len());
    drop(plain(checkpoint));
    for (index, vm) in checkpoint.vms().enumerate().take(VMS) {
        assert_eq!(checkpoint.find(vm.name()), Some(index));
        let part = checkpoint.part(|other| other == index);
        assert_eq!(decode(&encode(&part)).as_ref(), Ok(&part), "a part is a checkpoint");
        let one = part.only().expect("a part of one VM");
        assert_eq!(contents(&one), contents(&vm), "VM {index} by itself");
        if restores && vm.vcpus() <= VCPUS {
            restored(&part, &one);
        }
    }
    match checkpoint.only() {
        Ok(_) => assert_eq!(checkpoint.len(), 1),
        Err(error) => printable(&error.to_string()),
    }
    joined(checkpoint);
}

/// Everything that a checkpoint says of a VM.
fn contents(vm: &SavedVm<'_>) -> impl PartialEq + std::fmt::Debug {
    let (group, _) = vm.group();
    let registers = group.registers().iter().map(|column| (column.id(), column.values().values(vm.rows())));
    let stolen_time: Vec<_> = (0..vm.vcpus()).map(|vcpu| vm.stolen_time(vcpu)).collect();
    (vm.name().to_owned(), vm.time(), vm.stamp(), registers.collect::<Vec<_>>(), stolen_time)
}

/// Takes a checkpoint into two parts and joins them. Only a known counter's parts are joined, and no unknown keys.
fn joined(checkpoint: &Checkpoint) {
    let parts = [0, 1].map(|half| checkpoint.part(|index| index % 2 == half));
    match Checkpoint::join(&[&parts[1], &parts[0]]) {
        Ok(joined) if checkpoint.unknown().is_empty() => assert_eq!(&joined, checkpoint),
        Ok(joined) => assert_eq!(joined.len(), checkpoint.len()),
        Err(error @ JoinError::OtherCounter { .. }) => printable(&error.to_string()),
        Err(error @ JoinError::UnknownKey { .. }) => {
            printable(&error.to_string());
            assert!(!checkpoint.unknown().is_empty());
        }
        Err(error) => panic!("{error}"),
    }
}

/// Ticks between the checkpoint and its restore.
const AWAY: u64 = 1000;

/// Restores the one VM of a checkpoint, whose stop may lie before it, into a VM of its shape.
fn restored(checkpoint: &Checkpoint, vm: &SavedVm<'_>) {
    let (time, hidden) = (vm.time(), vm.hidden_ticks());
    let backlog = time.backlog.map_or(0, |backlog| backlog.remaining_ticks.get());
    goes_on(checkpoint, vm, Policy::FREEZE, hidden.wrapping_neg());
    goes_on(checkpoint, vm, Policy::ADVANCE, AWAY.wrapping_add(backlog));
}

/// Restores under a policy, by which the guest has to go on `added` ticks after the saved counters.
fn goes_on(checkpoint: &Checkpoint, saved: &SavedVm<'_>, policy: Policy, added: u64) {
    let el2 = if saved.is_nested() { El2::Vhe } else { El2::Absent };
    let counter = ManualCounter::new(saved.stamp().count.own(NamespaceTicks::NONE), saved.time().frequency(), 0);
    let kernel = Behaviours::named("7.3").expect("the model has it");
    let vm = LockedVm::new(counter, kernel, Config { el2, ..Config::default() }, saved.vcpus())
        .expect("the model has such VMs");
    vm.counter().advance(AWAY);
    let request = Request { policy, elapsed: Some(Elapsed::ByCounter), ..Request::default() };
    let plan = match vm.plan(checkpoint, request, None) {
        Ok(plan) => plan,
        Err(refused) => return printable(&refused.to_string()),
    };
    printable(&plan.to_string());
    let mut open = vm.prepare(plan, Arc::new(checkpoint.clone()), None).expect("a plan that was made can be prepared");
    vm.apply(&mut open, None).expect("the model takes every value of a register");
    let report = vm.release(&mut open, None).expect("the vCPUs are stopped");
    printable(&report.to_string());
    let expected = |saved: GuestCount| GuestCount(saved.0.wrapping_add(added));
    let (virt, phys) = (expected(saved.cntvct()), expected(saved.cntpct()));
    assert_eq!((report.outcome.cntvct, report.outcome.cntpct), (virt, phys));
    // By value a guest with EL2 gets the one offset that both its counters have, within what their reads can hide.
    let by_value = matches!(report.written, Written::ByValue { .. });
    let virt = if saved.is_nested() && by_value { phys } else { virt };
    for vcpu in 0..saved.vcpus() {
        assert_eq!(vm.count(vcpu, View::Physical, None), Ok(phys), "vCPU {vcpu}");
        let cntvoff = saved.register(Held::Cntvoff).and_then(|values| values.get(vcpu)).unwrap_or(0);
        assert_eq!(vm.count(vcpu, View::Virtual, None), Ok(GuestCount(virt.0.wrapping_sub(cntvoff))), "vCPU {vcpu}");
    }
}

fn printable(text: &str) {
    assert!(!text.is_empty() && !text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}

/// Puts a payload into an envelope.
pub fn enveloped(payload: &[u8]) -> Vec<u8> {
    let mut e = Encoder::new(START.to_vec());
    let written = (|| e.u64(1)?.tag(Tag::new(24))?.bytes(payload)?.bytes(&[0; CRC_BYTES])?.ok())();
    written.expect("memory takes every byte");
    sealed(e.into_writer())
}

/// Sets a file's checksum.
pub fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    if let Some((body, checksum)) = file.split_last_chunk_mut::<CRC_BYTES>() {
        *checksum = CRC.checksum(body).to_be_bytes();
    }
    file
}
