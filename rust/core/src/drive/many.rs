//! Restores and pauses of many VMs as one machine each: the VMs of one counter, saved and restored at one instant.
//!
//! Many are restored as a whole or not at all: whatever can be refused is, before anything is written. The steps are those
//! of one VM, in the same order, each once for all: an operation on a block is a copy or a comparison of columns for a
//! driver that has them.

use crate::drive::machine::{Block, Failed, Io};
use crate::drive::operations::OperationError;
use crate::restore::{ManyFacts, Origins, Plans, Refusal, Request};
use crate::time::{HostCount, Stamp};
use alloc::rc::Rc;
use alloc::vec::Vec;

/// Error of one of many VMs, as it would be if it were alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfOne<E> {
    /// Place of the VM; `None` where the driver's error names it.
    pub vm: Option<usize>,
    /// The error.
    pub error: OperationError<E>,
}

impl<E> From<Failed<E>> for OfOne<E> {
    fn from(failed: Failed<E>) -> Self {
        Self { vm: None, error: failed.into() }
    }
}

impl<E> From<(usize, Refusal)> for OfOne<E> {
    fn from((vm, refusal): (usize, Refusal)) -> Self {
        Self { vm: Some(vm), error: refusal.into() }
    }
}

/// Many VMs that were restored or went on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restored {
    /// The plans.
    pub plans: Plans,
    /// The counter's count that all counters were set for.
    pub count: HostCount,
    /// The counter's count once all counters were set.
    pub returned_at: HostCount,
    /// Ticks by which each plan's CVALs were moved.
    pub cval_shifts: Vec<u64>,
}

/// The machine of a pause of many: looks whether all are stopped, and returns the stamp of the pause.
pub async fn pausing_many<E>(io: &Io<'_, E>) -> Result<Stamp, OfOne<E>> {
    io.look().await?;
    Ok(io.stamp().await?)
}

/// The machine of a plan of many: looks whether all are stopped, and plans. Nothing is touched.
pub async fn planning_many<E>(
    io: &Io<'_, E>,
    facts: &ManyFacts,
    origins: Origins<'_>,
    request: Request,
) -> Result<Plans, OfOne<E>> {
    io.look().await?;
    let stamp = io.stamp().await?;
    Ok(Plans::new(facts, origins, stamp, request)?)
}

/// The machine of a restore of many, or of the end of a pause of many: look, plan, the registers, both counters for one
/// sample, and the comparison of all that was written.
pub async fn restoring_many<'a, E>(
    io: &Io<'a, E>,
    facts: &ManyFacts,
    origins: Origins<'a>,
    request: Request,
) -> Result<Restored, OfOne<E>> {
    let plans = Rc::new(planning_many(io, facts, origins, request).await?);
    let now = io.sample().await?;
    let outcomes = plans.outcomes(now, facts.frequency);
    let cval_shifts: Vec<u64> =
        plans.plans.iter().zip(outcomes).map(|(plan, outcome)| plan.cval_shift(&outcome)).collect();
    let block = match origins {
        Origins::Saved(checkpoint) => {
            let shifted = plans.plans.iter().zip(&cval_shifts).map(|(plan, shift)| (plan.method, *shift));
            Some(Block::of_many(checkpoint, &shifted.collect::<Vec<_>>(), &plans.plan_of))
        }
        Origins::InPlace { .. } => None,
    };
    if let Some(block) = &block {
        io.write(block.clone()).await?;
    }
    let count = io.set_each_late(Rc::clone(&plans)).await?;
    if let Some(block) = block {
        io.read_back(block).await?;
    }
    let returned_at = io.sample().await?;
    let plans = Rc::try_unwrap(plans).unwrap_or_else(|plans| Plans::clone(&plans));
    Ok(Restored { plans, count, returned_at, cval_shifts })
}
