//! The envelope: magic, version, payload and checksum, written and read.

use crate::checkpoint::codec::checksum::crc32c;
use crate::checkpoint::codec::deterministic;
use crate::checkpoint::codec::payload::Payload;
use crate::checkpoint::codec::read::{Reader, payload_kind};
use crate::checkpoint::codec::terms::{
    CRC_BYTES, ENCODED_CBOR, MAGIC, MAX_BYTES, NOT_DETERMINISTIC, VERSION, WireError, malformed,
};
use crate::checkpoint::codec::write::{Count, Same, Sink, Written};
use crate::checkpoint::set::CheckpointSet;
use crate::checkpoint::vm::Checkpoint;
use alloc::vec::Vec;
use minicbor::encode::{self, Encoder};

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

/// The checkpoint in these bytes, which [`encode`](encode()) gives back to the byte.
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
    let found = payload_kind(Reader::new(bytes, start))?;
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

/// Everything before the checksum's four bytes.
fn write_body<S: Sink>(e: &mut Encoder<S>, value: &impl Payload, payload: usize) -> Written<S> {
    e.writer_mut().write_all(MAGIC).map_err(encode::Error::write)?;
    e.u64(VERSION)?.tag(ENCODED_CBOR)?.bytes_len(payload as u64)?;
    value.write(e)?;
    e.bytes_len(CRC_BYTES as u64)?.ok()
}
