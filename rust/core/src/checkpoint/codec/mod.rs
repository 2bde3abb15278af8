//! The bytes of a [`Checkpoint`](crate::checkpoint::vm::Checkpoint) or a
//! [`CheckpointSet`](crate::checkpoint::set::CheckpointSet): deterministic CBOR with a checksum, specified in
//! docs/checkpoint-format.md.
//!
//! Input comes from anywhere. Nothing here panics, recurses without a limit, or allocates by a length that was only
//! declared: everything that a decoded checkpoint holds was there in the bytes. The checksum finds damage, not forgery.

mod checksum;
mod deterministic;
mod envelope;
mod payload;
mod read;
mod set;
mod terms;
mod vm;
mod write;

pub use checksum::crc32c;
pub use envelope::{decode, decode_set, encode, encode_set, encoded_len};
pub use terms::{MAX_BYTES, MAX_DEPTH, MAX_KEY_BYTES, MAX_KEYS, PayloadKind, VERSION, WireError};
