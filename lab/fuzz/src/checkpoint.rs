//! A fuzz target for the checkpoint reader: `make fuzz`.
//!
//! An input that begins as a file does is a file, and its last four bytes become the checksum of the others. Every other
//! input is a payload, and gets the envelope. So a mutation isn't refused for its checksum alone, and those inside a
//! payload aren't refused for the payload's length. The fuzzer stops at a panic.

#![no_main]

use guestclock_fuzz::{START, check, enveloped, sealed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    check(bytes, true);
    check(&if bytes.starts_with(START) { sealed(bytes.to_vec()) } else { enveloped(bytes) }, true);
});
