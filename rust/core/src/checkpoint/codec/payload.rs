//! The trait of the two payloads.

use crate::checkpoint::codec::read::Reader;
use crate::checkpoint::codec::terms::{PayloadKind, WireError};
use crate::checkpoint::codec::write::{Sink, Written};
use core::fmt::Debug;
use minicbor::encode::Encoder;

/// Content of the envelope.
pub(super) trait Payload: Sized + PartialEq + Debug {
    const KIND: PayloadKind;

    /// From a map that [`deterministic::check`] and [`payload_kind`] have passed.
    fn read(reader: Reader<'_>) -> Result<Self, WireError>;

    fn validate(&self) -> Result<(), &'static str>;

    /// As a map, in the order of its keys.
    fn write<S: Sink>(&self, encoder: &mut Encoder<S>) -> Written<S>;
}
