//! A [`Checkpoint`] or a [`CheckpointSet`] as bytes: deterministic CBOR with a checksum, specified in
//! docs/checkpoint-format.md.
//!
//! What is read comes from anywhere. Nothing here panics, recurses without a limit, or allocates by a length that was
//! only declared: what a decoded checkpoint holds was there in the bytes. The checksum finds damage, not forgery.

mod checksum;
mod deterministic;
mod read;
mod set;
mod vm;
mod write;

pub use checksum::crc32c;

use crate::checkpoint::Checkpoint;
use crate::checkpoint_set::CheckpointSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Debug, Display};
use minicbor::data::Tag;
use minicbor::encode::Encoder;
use read::{Reader, read_kind};
use write::{Count, Same, Sink, Written, write_body};

/// The version that is written and read.
pub const VERSION: u64 = 1;

/// The most bytes that are looked at.
///
/// A vCPU takes 72 bytes at most (CNTVOFF_EL2, and CVAL and a wide CTL of four timers). KVM allows an arm64 VM 512
/// vCPUs, which makes 37 kB; this is room for 200 000 of one VM, or of many (with a VM's own columns 99 bytes), and
/// little enough to read into memory from a stranger.
pub const MAX_BYTES: usize = 16 << 20;

/// The most keys the payload may have. It bounds what a decoded checkpoint's bookkeeping adds to the bytes themselves.
pub const MAX_KEYS: usize = 64;

/// The longest key of the payload, in bytes of UTF-8.
pub const MAX_KEY_BYTES: usize = 64;

/// The most columns in `other_regs`, for the same reason.
pub const MAX_OTHER_REGS: usize = 64;

/// How deep values may nest, counting the payload's own map and each tag.
pub const MAX_DEPTH: usize = 16;

/// How every checkpoint begins: tag 55799 (self-described CBOR), an array of four, and the text "guestclock".
const MAGIC: &[u8] = b"\xd9\xd9\xf7\x84\x6aguestclock";

/// The checksum's value: the last bytes of the file, big endian as CBOR's own numbers are.
const CRC_BYTES: usize = 4;

/// Encoded CBOR in a byte string (RFC 8949, 3.4.5.1).
const ENCODED_CBOR: Tag = Tag::new(24);
/// A typed array of u8 (RFC 8746, 2.1).
const U8_ARRAY: Tag = Tag::new(64);
/// A typed array of u16, little endian (RFC 8746, 2.1).
const U16_LE_ARRAY: Tag = Tag::new(69);
/// A typed array of u64, little endian (RFC 8746, 2.1).
const U64_LE_ARRAY: Tag = Tag::new(71);

/// The payload's keys in version 1, of either kind, in their order. `crit` may name none of them.
const KEYS: [&str; 16] = [
    "crit",
    "debt",
    "host",
    "sync",
    "owned",
    "vcpus",
    "cntpct",
    "cntvct",
    "groups",
    "timers",
    "cntvoff",
    "rate_ppb",
    "cntfrq_hz",
    "other_regs",
    "stopped_at",
    "width_ticks",
];

/// What a checkpoint is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One VM: a [`Checkpoint`].
    Vm,
    /// A set of VMs: a [`CheckpointSet`].
    Set,
}

impl Kind {
    /// What holds it, here and in Python: `Checkpoint` or `CheckpointSet`.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self {
            Self::Vm => "Checkpoint",
            Self::Set => "CheckpointSet",
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vm => "one VM",
            Self::Set => "a set of VMs",
        })
    }
}

/// Why bytes aren't a checkpoint that this version reads. The steps are tried in this order.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// More bytes than a checkpoint may have.
    #[error(
        "too large for a checkpoint: {size} bytes, and at most {limit} are read; \
         check that this is the right file, or make sets of fewer VMs"
    )]
    TooLarge {
        /// How many there are.
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
        /// What the last four bytes say.
        stored: u32,
        /// What the bytes before them have.
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
        "malformed checkpoint at byte {offset}: {what}; the bytes are as they were written, so the fault is its \
         writer's: compare it with docs/checkpoint-format.md"
    )]
    Malformed {
        /// Where in the file: the value at fault, or the payload where the fault lies between several.
        offset: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// An intact checkpoint of the other kind.
    #[error("a checkpoint of {found}, where one of {wanted} is wanted: read it as a {}", found.class())]
    WrongKind {
        /// The file's.
        found: Kind,
        /// What was asked for.
        wanted: Kind,
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

/// The checkpoint's bytes: the same for the same checkpoint, always.
///
/// It must be [valid](Checkpoint::validate), with `unknown` as [`decode`] left it, and small enough for [`MAX_BYTES`];
/// else the bytes can't be read back.
///
/// # Panics
///
/// In a debug build, where the bytes can't be read back.
#[must_use]
pub fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    seal(checkpoint, Length::of(checkpoint))
}

/// The checkpoint in these bytes, which [`encode`] gives back to the byte.
pub fn decode(bytes: &[u8]) -> Result<Checkpoint, WireError> {
    open(bytes)
}

/// The set's bytes: the same for the same set, always. [`WireError::TooLarge`] where they couldn't be read back.
///
/// It must be [valid](CheckpointSet::validate), with `unknown` as [`decode_set`] left it; else the bytes can't be read
/// back either.
///
/// # Panics
///
/// In a debug build, where it isn't valid.
pub fn encode_set(set: &CheckpointSet) -> Result<Vec<u8>, WireError> {
    let length = Length::of(set);
    if length.whole > MAX_BYTES {
        return Err(WireError::TooLarge { size: length.whole, limit: MAX_BYTES });
    }
    Ok(seal(set, length))
}

/// How many bytes [`encode_set`] makes, without making them.
#[must_use]
pub fn encoded_len(set: &CheckpointSet) -> usize {
    Length::of(set).whole
}

/// The set in these bytes, which [`encode_set`] gives back to the byte.
pub fn decode_set(bytes: &[u8]) -> Result<CheckpointSet, WireError> {
    open(bytes)
}

/// What goes into the envelope.
trait Payload: Sized + PartialEq + Debug {
    const KIND: Kind;

    /// From a map that [`deterministic::check`] and [`read_kind`] have passed.
    fn read(reader: Reader<'_>) -> Result<Self, WireError>;

    fn validate(&self) -> Result<(), &'static str>;

    /// As a map, in the order of its keys.
    fn write<S: Sink>(&self, encoder: &mut Encoder<S>) -> Written<S>;
}

/// How many bytes there will be.
#[derive(Clone, Copy)]
struct Length {
    payload: usize,
    whole: usize,
}

impl Length {
    fn of<P: Payload>(value: &P) -> Self {
        let mut count = Encoder::new(Count(0));
        value.write(&mut count).expect(INFALLIBLE);
        let payload = count.into_writer().0;
        let mut count = Encoder::new(Count(0));
        write_body(&mut count, value, payload).expect(INFALLIBLE);
        Self { payload, whole: count.into_writer().0 + CRC_BYTES }
    }
}

fn seal<P: Payload>(value: &P, length: Length) -> Vec<u8> {
    let mut body = Encoder::new(Vec::with_capacity(length.whole));
    write_body(&mut body, value, length.payload).expect(INFALLIBLE);
    let mut bytes = body.into_writer();
    let crc = crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    debug_assert_eq!(open(&bytes).as_ref(), Ok(value));
    bytes
}

fn open<P: Payload>(bytes: &[u8]) -> Result<P, WireError> {
    if bytes.len() > MAX_BYTES {
        return Err(WireError::TooLarge { size: bytes.len(), limit: MAX_BYTES });
    }
    if !bytes.starts_with(MAGIC) {
        return Err(WireError::NotACheckpoint);
    }
    let Some((body, crc)) = bytes.split_last_chunk::<CRC_BYTES>() else {
        return Err(WireError::NotACheckpoint);
    };
    let (stored, computed) = (u32::from_be_bytes(*crc), crc32c(body));
    if stored != computed {
        return Err(WireError::Corrupt { stored, computed });
    }

    let mut envelope = Reader::new(bytes, MAGIC.len());
    let found = envelope.u64("the version isn't an unsigned integer")?;
    if found != VERSION {
        return Err(WireError::UnsupportedVersion { found, supported: VERSION });
    }
    envelope.tag(ENCODED_CBOR, "the payload isn't tagged 24")?;
    let payload = envelope.bytes("the payload isn't a byte string that fits in the file")?;
    let end = envelope.position();
    let start = end - payload.len();
    if envelope.bytes("the checksum isn't a byte string that fits in the file")?.len() != CRC_BYTES {
        return Err(malformed(end, "the checksum isn't 4 bytes long"));
    }
    envelope.finish()?;

    // Everything up to the payload's end, so that positions are the file's.
    let bytes = &bytes[..end];
    deterministic::check(bytes, start)?;
    let found = read_kind(Reader::new(bytes, start))?;
    if found != P::KIND {
        return Err(WireError::WrongKind { found, wanted: P::KIND });
    }
    let value = P::read(Reader::new(bytes, start))?;
    value.validate().map_err(|what| malformed(start, what))?;
    let mut same = Encoder::new(Same { expected: body, at: 0 });
    let written = write_body(&mut same, &value, payload.len());
    let at = same.writer().at;
    if written.is_err() || at != body.len() {
        return Err(malformed(at, NOT_DETERMINISTIC));
    }
    Ok(value)
}

const INFALLIBLE: &str = "memory takes every byte";
const NOT_DETERMINISTIC: &str = "this isn't the one encoding that RFC 8949, 4.2.1, leaves for its value";

fn malformed(offset: usize, what: &'static str) -> WireError {
    WireError::Malformed { offset, what }
}

#[cfg(test)]
mod tests {
    use super::write::key_order;
    use super::*;
    use crate::timer::Timer;

    #[test]
    fn keys_are_listed_in_their_order() {
        assert!(KEYS.is_sorted_by(|one, next| key_order(one, next).is_lt()));
        assert!(write::TIMERS.is_sorted_by(|one, next| key_order(one.name(), next.name()).is_lt()));
        assert_eq!(write::TIMERS.len(), Timer::ALL.len());
    }
}
