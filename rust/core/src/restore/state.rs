//! Values that a plan is made of, from which the same plan is made again.

use crate::checkpoint::{GuestTime, SavedVm};
use crate::restore::plan::Plan;
use crate::restore::planning::{self, look_again};
use crate::restore::policy::Request;
use crate::restore::refusal::Refusal;
use crate::restore::saved::Saved;
use crate::restore::target::Target;
use crate::time::Stamp;
use alloc::vec::Vec;

/// Values that a plan was made of, besides the checkpoint of a VM that is restored. Nothing that the plan concludes is among
/// them, so whatever they are read from, no plan contradicts itself.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PlanState {
    /// The request.
    pub request: Request,
    /// The VM that is restored into.
    pub target: Target,
    /// The plan's sample.
    pub sample: Stamp,
    /// Stamps of the looks since.
    pub looks: Vec<Stamp>,
    /// Instant and guest time of a VM that stayed where it was; `None` for one that is restored.
    pub in_place: Option<(Stamp, GuestTime)>,
}

impl PlanState {
    /// Returns the values that this plan was made of.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            request: plan.request,
            target: plan.target.clone(),
            sample: plan.planned_at,
            looks: plan.looks.clone(),
            in_place: plan.request.in_place.then_some((plan.saved.host, plan.saved.time)),
        }
    }

    /// Returns the guest time that the plan starts from; `None` unless it is of a VM that stayed where it was, or its saved
    /// VM is given.
    #[must_use]
    pub fn saved<'a>(&self, vm: Option<&SavedVm<'a>>) -> Option<Saved<'a>> {
        match (self.request.in_place, self.in_place, vm) {
            (true, Some((stamp, time)), None) => Some(Saved::in_place(stamp, time)),
            (false, None, Some(vm)) => Some(Saved::from(vm)),
            _ => None,
        }
    }

    /// Makes the plan again.
    pub fn plan(&self, saved: &Saved<'_>) -> Result<Plan, Refusal> {
        let mut plan = planning::plan(saved, &self.target, self.sample, self.request)?;
        for look in &self.looks {
            look_again(&mut plan, *look);
        }
        Ok(plan)
    }
}
