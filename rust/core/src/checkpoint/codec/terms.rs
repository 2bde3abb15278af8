//! The format's constants and limits, and the reasons why bytes are refused.

use alloc::string::String;
use minicbor::data::Tag;

/// The version that is written and read.
pub const VERSION: u64 = 1;

/// The most bytes that are looked at: 64 for each of as many vCPUs as a checkpoint may have, and little enough to read
/// into memory from a stranger.
pub const MAX_BYTES: usize = 16 << 20;

/// The most keys the payload may have. It bounds what a decoded checkpoint's bookkeeping adds to the bytes themselves.
pub const MAX_KEYS: usize = 64;

/// The longest key of the payload, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 64;

/// Deepest nesting of values, counting the payload's own map and each tag.
pub const MAX_DEPTH: usize = 16;

/// Beginning of every checkpoint: tag 55799 (self-described CBOR), an array of four, and the text "guestclock".
pub(super) const MAGIC: &[u8] = b"\xd9\xd9\xf7\x84\x6aguestclock";

/// The checksum's value: the last bytes of the file, big endian as CBOR's own numbers are.
pub(super) const CRC_BYTES: usize = 4;

/// Encoded CBOR in a byte string (RFC 8949, 3.4.5.1).
pub(super) const ENCODED_CBOR: Tag = Tag::new(24);

/// A typed array of u8 (RFC 8746, 2.1).
pub(super) const U8_ARRAY: Tag = Tag::new(64);

/// A typed array of u64, little endian (RFC 8746, 2.1).
pub(super) const U64_LE_ARRAY: Tag = Tag::new(71);

/// The architecture whose guests this version reads.
pub const ARCH: &str = "arm64";

/// The payload's keys in version 1, in their order. `crit` may name none of them.
pub(super) const KEYS: [&str; 4] = ["arch", "crit", "stamp", "groups"];

/// Why bytes aren't a checkpoint that this version reads. The steps are tried in this order.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// More bytes than a checkpoint may have.
    #[error(
        "too large for a checkpoint: {size} bytes, and at most {limit} are read; \
         check that this is the right file, or save fewer VMs at once"
    )]
    TooLarge {
        /// Number of bytes.
        size: usize,
        /// [`MAX_BYTES`].
        limit: usize,
    },
    /// Another beginning than a checkpoint's.
    #[error(
        "not a guestclock checkpoint: it doesn't begin with d9d9f7846a and the text \"guestclock\"; \
         check that this is the right file"
    )]
    NotACheckpoint,
    /// The checksum doesn't match.
    #[error(
        "corrupt checkpoint: its CRC-32C is stored as {stored:08x} and computed as {computed:08x}, so it was damaged or \
         cut short; take another copy"
    )]
    Corrupt {
        /// Checksum in the last four bytes.
        stored: u32,
        /// Checksum of the bytes before them.
        computed: u32,
    },
    /// Another version of the format.
    #[error(
        "checkpoint format version {found}, and this guestclock reads version {supported}; \
         read it with the guestclock that wrote it, or a newer one"
    )]
    UnsupportedVersion {
        /// The file's.
        found: u64,
        /// [`VERSION`].
        supported: u64,
    },
    /// Intact bytes that break the format's rules.
    #[error(
        "malformed checkpoint at byte {offset}: {key} {what}; the bytes are as they were written, so the fault is its \
         writer's: compare it with docs/checkpoint-format.md"
    )]
    Malformed {
        /// Where in the file: the value at fault, or the payload where the fault lies between several.
        offset: usize,
        /// Key of the value, or what else it is.
        key: &'static str,
        /// The fault: a predicate of the key.
        what: &'static str,
    },
    /// A checkpoint of guests of another architecture.
    #[error("the checkpoint is of guests of {found:?}, and this guestclock reads those of {ARCH}")]
    UnsupportedArch {
        /// The architecture in the file.
        found: String,
    },
    /// A key in `crit` that this version doesn't know.
    #[error(
        "the checkpoint needs {feature:?}, which this guestclock doesn't know; \
         read it with the guestclock that wrote it, or a newer one"
    )]
    UnsupportedFeature {
        /// The key.
        feature: String,
    },
}

pub(super) const NOT_DETERMINISTIC: &str = "isn't in the one encoding that RFC 8949, 4.2.1, leaves for its value";

pub(super) const fn malformed(offset: usize, key: &'static str, what: &'static str) -> WireError {
    WireError::Malformed { offset, key, what }
}
