//! Checkpoints of one host counter as one.

use crate::arch::RegId;
use crate::checkpoint::builder::{BuildError, GroupBuilder, Name};
use crate::checkpoint::guest_time::GuestTime;
use crate::checkpoint::names::VmName;
use crate::checkpoint::vms::Checkpoint;
use crate::time::{Evidence, Ratio, Sleep, Stamp};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

/// Reason why checkpoints can't be joined.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// No checkpoints.
    #[error("there is no checkpoint to join")]
    Nothing,
    /// Two checkpoints that aren't shown to be of one host counter.
    #[error("checkpoints {first} and {second} aren't shown to be of one host counter ({evidence}): restore them apart")]
    OtherCounter {
        /// Index of the earlier checkpoint.
        first: usize,
        /// Index of the latest checkpoint.
        second: usize,
        /// The evidence about the counter.
        evidence: Box<Evidence>,
    },
    /// A checkpoint with a key that this version doesn't know: joined, its meaning could be another.
    #[error(
        "checkpoint {index} has the key {key:?}, which this guestclock doesn't know: join it with the guestclock that \
         wrote it, or a newer one"
    )]
    UnknownKey {
        /// Index of the checkpoint.
        index: usize,
        /// The key.
        key: String,
    },
    /// VMs that don't make a checkpoint.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl Checkpoint {
    /// Joins checkpoints of one host counter into one, of the latest of their instants.
    ///
    /// Each VM's timeline is moved to that instant, by the ticks that the counter took: they are known exactly. A VM
    /// that was saved earlier, and whose stop isn't known, has stopped at its own checkpoint. So a restore gives each VM
    /// what its own checkpoint would have given it, under every policy.
    pub fn join(parts: &[&Self]) -> Result<Self, JoinError> {
        let first = *parts.first().ok_or(JoinError::Nothing)?;
        if parts.len() == 1 {
            return Ok(first.clone());
        }
        let origin = first.stamp.count;
        let (latest, _) = parts
            .iter()
            .enumerate()
            .max_by_key(|(_, part)| part.stamp.count.since(origin).cast_signed())
            .ok_or(JoinError::Nothing)?;
        let stamp = parts[latest].stamp;
        let mut groups: BTreeMap<Vec<RegId>, GroupBuilder> = BTreeMap::new();
        for (index, part) in parts.iter().enumerate() {
            if let Some(unknown) = part.unknown.first() {
                return Err(JoinError::UnknownKey { index, key: unknown.key.clone() });
            }
            if index != latest {
                one_counter(&part.stamp, &stamp).map_err(|evidence| JoinError::OtherCounter {
                    first: index,
                    second: latest,
                    evidence: Box::new(evidence),
                })?;
            }
            for vm in part.vms() {
                let (group, _) = vm.group();
                let ids: Vec<RegId> = group.kind().collect();
                if !groups.contains_key(&ids) {
                    groups.insert(ids.clone(), GroupBuilder::new(ids.iter().copied())?);
                }
                let Some(builder) = groups.get_mut(&ids) else { continue };
                let name = VmName::new(vm.name()).unwrap_or_default();
                let time = moved(vm.time(), &part.stamp, &stamp);
                builder.push(Name::Text(&name), &time, |id, values| {
                    let column = group.registers().iter().find(|column| column.id() == id);
                    if let Some(column) = column {
                        column.values().append_to(values, vm.rows());
                    }
                });
                for vcpu in 0..vm.vcpus() {
                    if let Some(address) = vm.stolen_time(vcpu) {
                        builder.stolen_time(vcpu, address);
                    }
                }
            }
        }
        Ok(Self::of(stamp, groups.into_values())?)
    }
}

/// Returns the same guest time at a later instant of the same counter.
fn moved(time: GuestTime, from: &Stamp, to: &Stamp) -> GuestTime {
    if from.count == to.count {
        return time;
    }
    let at = |stamp: &Stamp| Ratio::new(stamp.frequency, time.frequency()).stamp(*stamp).count;
    GuestTime {
        timeline: time.timeline.after(at(to).since(at(from))),
        stopped_at: time.stopped_at.or(Some(from.count)),
        ..time
    }
}

/// Checks that both stamps are shown to be of one counter: the evidence, if they aren't.
fn one_counter(earlier: &Stamp, later: &Stamp) -> Result<(), Evidence> {
    let evidence = Evidence::between(earlier, later);
    // Parts of one checkpoint.
    if earlier == later && !earlier.is_of_unknown_host() {
        return Ok(());
    }
    let awake = matches!(evidence.sleep, Sleep::Unknown | Sleep::Absent);
    let one = evidence.one_boot() && evidence.forward && awake && !evidence.contradicted();
    if one { Ok(()) } else { Err(evidence) }
}
