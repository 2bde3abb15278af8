//! Plans of many VMs of one counter: one for all that are alike.
//!
//! VMs that are alike in all that a plan looks at, but for their counters, share one [`Plan`], made by
//! [`plan`](planning::plan()) for the first of them; what it adds and how it sets a counter goes for all.

use crate::checkpoint::column::Iter;
use crate::checkpoint::{Backlog, Checkpoint, GuestTime, GuestTimes};
use crate::restore::plan::{Outcome, Plan};
use crate::restore::planning;
use crate::restore::policy::Request;
use crate::restore::refusal::Refusal;
use crate::restore::saved::Saved;
use crate::restore::target::Target;
use crate::time::{Frequency, GuestCount, HostCount, Instant, NamespaceTicks, Ratio, Stamp};
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::Range;

/// VMs of one counter as an operation on them begins: facts that take no call.
#[derive(Clone, Debug)]
pub struct ManyFacts {
    /// Frequency of the counter.
    pub frequency: Frequency,
    /// Ticks by which the counter's own counts differ from a stamp's.
    pub namespace_ticks: NamespaceTicks,
    /// The VMs, in their order.
    pub vms: Vec<VmFacts>,
    /// Targets by their class, each of one of its VMs.
    pub classes: Vec<Target>,
}

/// Facts about one of many VMs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VmFacts {
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Place of the VM's class among the classes: its VMs are alike as targets, but for what stands here.
    pub class: u32,
    /// True if the VM has opted in.
    pub opted_in: bool,
}

impl ManyFacts {
    /// Returns one of the VMs as the target of a restore.
    fn target(&self, vm: usize) -> Target {
        let VmFacts { vcpus, class, opted_in } = self.vms[vm];
        Target { vcpus, opted_in, ..self.classes[class as usize].clone() }
    }
}

/// Guest times that many VMs go on from, in their order.
#[derive(Clone, Copy, Debug)]
pub enum Origins<'a> {
    /// Those of a checkpoint, with registers.
    Saved(&'a Checkpoint),
    /// Those of VMs that are paused in place, where the registers stay.
    InPlace {
        /// The instant, by the counter of all.
        stamp: &'a Stamp,
        /// The guest times.
        times: &'a GuestTimes,
    },
}

impl<'a> Origins<'a> {
    /// Calls `call` for VMs that follow each other and are alike but for their timelines, until an error: with the number
    /// of their group in the checkpoint, the guest time of one of them, and the timelines of all.
    fn try_each<E>(self, mut call: impl FnMut(usize, &GuestTime, Iter<'_>) -> Result<(), E>) -> Result<(), E> {
        match self {
            Self::Saved(checkpoint) => checkpoint.groups().iter().enumerate().try_for_each(|(number, group)| {
                group.runs().try_for_each(|(time, timelines)| call(number, &time, timelines))
            }),
            Self::InPlace { times, .. } => {
                times.runs().try_for_each(|(time, _, timelines)| call(0, time, Iter::Words(timelines.iter())))
            }
        }
    }

    /// Returns the guest time that a VM goes on from.
    fn saved(self, vm: usize) -> Option<Saved<'a>> {
        match self {
            Self::Saved(checkpoint) => Some(Saved::from(&checkpoint.vm(vm)?)),
            Self::InPlace { stamp, times } => {
                let time = times.get(vm)?;
                Some(Saved::in_place(Ratio::new(stamp.frequency, time.frequency()).stamp(*stamp), time))
            }
        }
    }

    /// Ticks from the stop of a VM's last vCPU to the registers' instant.
    fn hidden_ticks(self, time: &GuestTime) -> u64 {
        match self {
            Self::Saved(checkpoint) => checkpoint.hidden_ticks(time),
            Self::InPlace { .. } => 0,
        }
    }
}

/// Everything that a plan looks at, except for the counters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Alike {
    /// Number of the group in the checkpoint.
    group: usize,
    class: u32,
    opted_in: bool,
    saved_opted_in: bool,
    frequency_hz: NonZeroU32,
    /// Distance of the counters, where it decides: none, or whether it is within what the reads can hide.
    apart: Option<bool>,
    width_ticks: u64,
    hidden_ticks: u64,
    backlog: Option<Backlog>,
}

/// Plans of many VMs: one for all that are alike.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plans {
    /// The plans, each made for the first of its VMs.
    pub plans: Vec<Plan>,
    /// Place of each VM's plan among the plans.
    pub plan_of: Vec<u32>,
    /// Counters that each VM goes on from, virtual and physical, at the registers' instant.
    counters: Vec<(GuestCount, GuestCount)>,
}

impl Plans {
    /// Plans the restore of each VM, as of `sample` of the counter of all. A refusal comes with the place of its VM.
    ///
    /// # Panics
    /// If there are facts of fewer VMs than guest times.
    pub fn new(
        facts: &ManyFacts,
        origins: Origins<'_>,
        sample: Stamp,
        request: Request,
    ) -> Result<Self, (usize, Refusal)> {
        let sample = Instant { stamp: sample, namespace_ticks: facts.namespace_ticks };
        let mut known: BTreeMap<Alike, u32> = BTreeMap::new();
        // Most VMs are as the one before.
        let mut last: Option<(Alike, u32)> = None;
        let mut plans = Self::default();
        plans.plan_of.reserve_exact(facts.vms.len());
        plans.counters.reserve_exact(facts.vms.len());
        origins.try_each(|group, time, mut timelines| {
            let first = plans.counters.len();
            let apart = time.physical_displacement_ticks.cast_signed().unsigned_abs();
            let hidden_ticks = origins.hidden_ticks(time);
            for here in facts.vms[first..first + timelines.len()].chunk_by(VmFacts::eq) {
                let (vm, VmFacts { vcpus, class, opted_in, .. }) = (plans.counters.len(), here[0]);
                if vcpus != usize::from(time.vcpus) {
                    let (saved, host) = (time.vcpus.into(), vcpus);
                    return Err((vm, Refusal::TopologyMismatch { what: "vCPUs", saved, host }));
                }
                let alike = Alike {
                    group,
                    class,
                    opted_in,
                    saved_opted_in: time.opted_in,
                    frequency_hz: time.frequency_hz,
                    apart: (apart > 0).then_some(apart > time.width_ticks().saturating_mul(2)),
                    width_ticks: time.width_ticks(),
                    hidden_ticks,
                    backlog: time.backlog,
                };
                let before = last.as_ref().filter(|(before, _)| *before == alike).map(|(_, plan)| *plan);
                let plan = if let Some(plan) = before.or_else(|| known.get(&alike).copied()) {
                    plan
                } else {
                    let target = facts.target(vm);
                    let frequency = Frequency::new(target.cntfrq_hz.into()).unwrap_or(facts.frequency);
                    let instant = Ratio::new(facts.frequency, frequency).instant(&sample);
                    let target = Target { namespace_ticks: instant.namespace_ticks, ..target };
                    let saved = origins.saved(vm).expect("a VM whose time was given");
                    let plan = planning::plan(&saved, &target, instant.stamp, request);
                    let number = u32::try_from(plans.plans.len()).unwrap_or(u32::MAX);
                    plans.plans.push(plan.map_err(|refusal| (vm, refusal))?);
                    known.insert(alike, number);
                    number
                };
                last = Some((alike, plan));
                plans.plan_of.resize(vm + here.len(), plan);
                let timelines = timelines.by_ref().take(here.len()).map(GuestCount);
                plans.counters.extend(timelines.map(|virt| (virt, virt.after(time.physical_displacement_ticks))));
            }
            Ok(())
        })?;
        Ok(plans)
    }

    /// Returns the plan of the VM at this place, as it would be alone. `saved` is the guest time that it goes on from.
    ///
    /// No refusal comes here that hasn't come before.
    pub fn alone(&self, vm: usize, saved: &Saved<'_>) -> Result<Plan, Refusal> {
        let number = self.plan_of[vm] as usize;
        let Plan { sample, request, ref target, .. } = self.plans[number];
        // The target is the first VM's, and the number of vCPUs is no part of what makes VMs alike.
        let target = Target { vcpus: saved.time.vcpus.into(), ..target.clone() };
        planning::plan(saved, &target, sample, request)
    }

    /// Returns the outcome of each plan for the first of its VMs, when the counter of all reads `now`.
    pub fn outcomes(&self, now: HostCount, frequency: Frequency) -> impl Iterator<Item = Outcome> {
        self.plans.iter().map(move |plan| plan.at(Ratio::new(frequency, plan.frequency()).at(now)))
    }

    /// The VMs that follow each other and have one plan: their places, the plan, the plan's outcome out of `outcomes`, and
    /// the counters of each VM, virtual and physical, at the outcome's instant.
    pub fn runs<'a>(
        &'a self,
        outcomes: &'a [Outcome],
    ) -> impl Iterator<Item = (Range<usize>, &'a Plan, &'a Outcome, impl Iterator<Item = (GuestCount, GuestCount)>)>
    {
        let mut end = 0;
        self.plan_of.chunk_by(u32::eq).map(move |run| {
            let (number, vms) = (run[0] as usize, end..end + run.len());
            end = vms.end;
            let (plan, outcome) = (&self.plans[number], &outcomes[number]);
            let counters = self.counters[vms.clone()].iter();
            (vms, plan, outcome, counters.map(|counters| plan.counters_of(outcome, *counters)))
        })
    }
}
