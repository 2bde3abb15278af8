//! The envelope: magic, version, payload and checksum, written and read.

use crate::checkpoint::codec::checksum::crc32c;
use crate::checkpoint::codec::reader::Reader;
use crate::checkpoint::codec::terms::{
    CRC_BYTES, ENCODED_CBOR, MAGIC, MAX_BYTES, NOT_DETERMINISTIC, VERSION, WireError, malformed,
};
use crate::checkpoint::codec::writer::{Count, Same, Sink, Written};
use crate::checkpoint::codec::{deterministic, payload};
use crate::checkpoint::vms::Checkpoint;
use alloc::vec::Vec;
use minicbor::encode::{self, Encoder};

/// Encodes a checkpoint: equal checkpoints have equal bytes.
///
/// # Panics
/// In a debug build, where the bytes can't be read back: a mistake in this crate, since every checkpoint can be.
#[must_use]
pub fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    let length = Length::of(checkpoint);
    let mut body = Encoder::new(Vec::with_capacity(length.whole));
    write_body(&mut body, checkpoint, length.payload).expect(INFALLIBLE);
    let mut bytes = body.into_writer();
    let crc = crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_be_bytes());
    debug_assert_eq!(decode(&bytes).as_ref(), Ok(checkpoint));
    bytes
}

/// Returns the number of bytes that [`encode`](encode()) makes, without making them.
#[must_use]
pub fn encoded_len(checkpoint: &Checkpoint) -> usize {
    Length::of(checkpoint).whole
}

/// Numbers of bytes to be written.
#[derive(Clone, Copy)]
struct Length {
    payload: usize,
    whole: usize,
}

impl Length {
    fn of(checkpoint: &Checkpoint) -> Self {
        let mut count = Encoder::new(Count(0));
        payload::write(&mut count, checkpoint).expect(INFALLIBLE);
        let payload = count.into_writer().0;
        let mut count = Encoder::new(Count(0));
        write_head(&mut count, payload).expect(INFALLIBLE);
        count.bytes_len(CRC_BYTES as u64).expect(INFALLIBLE);
        Self { payload, whole: count.into_writer().0 + payload + CRC_BYTES }
    }
}

/// Decodes the checkpoint in these bytes, which [`encode`](encode()) gives back to the byte.
pub fn decode(bytes: &[u8]) -> Result<Checkpoint, WireError> {
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
    envelope.of("the version");
    let found = envelope.u64()?;
    if found != VERSION {
        return Err(WireError::UnsupportedVersion { found, supported: VERSION });
    }
    envelope.of("the payload");
    let at = envelope.position();
    if envelope.tag("isn't tagged 24")? != ENCODED_CBOR {
        return Err(envelope.malformed(at, "isn't tagged 24"));
    }
    let payload = envelope.bytes("isn't a byte string that fits in the file")?;
    let end = envelope.position();
    let start = end - payload.len();
    envelope.of("the checksum");
    if envelope.bytes("isn't a byte string that fits in the file")?.len() != CRC_BYTES {
        return Err(envelope.malformed(end, "isn't 4 bytes long"));
    }
    envelope.finish()?;

    // Everything up to the payload's end, so that positions are the file's.
    let bytes = &bytes[..end];
    deterministic::check(bytes, start)?;
    let checkpoint = payload::read(Reader::new(bytes, start))?;
    let mut same = Encoder::new(Same { expected: body, at: 0 });
    let written = write_body(&mut same, &checkpoint, payload.len());
    let at = same.writer().at;
    if written.is_err() || at != body.len() {
        return Err(malformed(at, "a value", NOT_DETERMINISTIC));
    }
    Ok(checkpoint)
}

const INFALLIBLE: &str = "memory takes every byte";

/// Writes everything before the checksum's four bytes.
fn write_body<S: Sink>(e: &mut Encoder<S>, checkpoint: &Checkpoint, payload: usize) -> Written<S> {
    write_head(e, payload)?;
    payload::write(e, checkpoint)?;
    e.bytes_len(CRC_BYTES as u64)?.ok()
}

/// Writes everything before the payload.
fn write_head<S: Sink>(e: &mut Encoder<S>, payload: usize) -> Written<S> {
    e.writer_mut().write_all(MAGIC).map_err(encode::Error::write)?;
    e.u64(VERSION)?.tag(ENCODED_CBOR)?.bytes_len(payload as u64)?.ok()
}
