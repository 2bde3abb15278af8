//! The bytes of a [`Checkpoint`](crate::checkpoint::Checkpoint): deterministic CBOR with a checksum, specified in
//! docs/checkpoint-format.md.
//!
//! Input comes from anywhere. Nothing here panics, recurses without a limit, or allocates by a length that was only
//! declared: everything that a decoded checkpoint holds was there in the bytes. The checksum finds damage, not forgery.

mod checksum;
mod deterministic;
mod envelope;
mod groups;
mod payload;
pub mod plain;
mod reader;
mod stamp;
mod terms;
mod writer;

pub use checksum::crc32c;
pub use envelope::{decode, encode, encoded_len};
pub use plain::{Key, Plain, plain};
pub use terms::{ARCH, MAX_BYTES, MAX_DEPTH, MAX_KEY_BYTES, MAX_KEYS, VERSION, WireError};
