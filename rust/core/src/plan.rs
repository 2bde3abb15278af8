//! Policy -> plan: what a restore would do here, computed without touching anything.

use crate::backend::{Abilities, Backend, Registers};
use crate::checkpoint::{Checkpoint, TimerColumns};
use crate::counter::{CrossTimestamp, Frequency, GuestCount, HostCount, NS_PER_S, Offset};
use crate::manual::ManualCounter;
use crate::sysreg::{Role, View};
use crate::timer::{CTL_ENABLE, Timer};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// What the guest is to see of the time it didn't run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Policy {
    /// Nothing: its counters go on from where they stopped.
    #[default]
    Freeze,
    /// All of it, or at most `max_ns` nanoseconds.
    Advance {
        /// The most guest time that is added.
        max_ns: Option<u64>,
    },
}

/// What becomes of a guest's two counters where one offset can't reproduce both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Views {
    /// Each is set by value.
    #[default]
    Preserve,
    /// The virtual counter's offset is used for both, and the physical counter jumps.
    AdoptVirtual,
    /// Nothing is restored.
    Refuse,
}

impl Views {
    /// All, by the names that people use.
    pub const NAMES: [(&'static str, Self); 3] =
        [("preserve", Self::Preserve), ("adopt-virtual", Self::AdoptVirtual), ("refuse", Self::Refuse)];
}

/// What the caller asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Request {
    /// What the guest is to see of the pause.
    pub policy: Policy,
    /// What becomes of two counters that differ.
    pub views: Views,
    /// Whether this is the counter that the checkpoint was taken by; `None` to decide it from the evidence.
    pub same_counter: Option<bool>,
    /// How far apart the wall clocks of the two hosts may be, in nanoseconds: the caller's word.
    pub assume_error_ns: Option<u64>,
    /// Refuse a checkpoint that has something this version doesn't know, rather than warn of it.
    pub strict: bool,
    /// The VM stays where it was: it isn't opted in where it wasn't, unless `views` asks for it.
    pub in_place: bool,
}

/// How the counters are set.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// One offset for the whole VM.
    Offset,
    /// Each counter by its value.
    ByValue,
    /// The virtual counter by its value; the physical one can't be set here.
    VirtualOnly,
}

impl Method {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offset => "offset",
            Self::ByValue => "by-value",
            Self::VirtualOnly => "virtual-only",
        }
    }
}

/// The VM that is restored into, as far as a plan depends on it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// How many vCPUs.
    pub vcpus: usize,
    /// What timer registers they have.
    pub registers: Registers,
    /// Its CNTFRQ_EL0 in Hz.
    pub cntfrq_hz: u32,
    /// What can be done.
    pub abilities: Abilities,
    /// Whether its offset is owned already.
    pub owned: bool,
    /// Its state's number: the plan is stale when that has changed.
    pub generation: u64,
}

impl Target {
    /// The backend's VM as it is now.
    pub fn of<B: Backend + ?Sized>(backend: &mut B) -> Result<Self, B::Error> {
        Ok(Self {
            vcpus: backend.vcpus(),
            registers: Registers::of(backend)?,
            cntfrq_hz: backend.cntfrq_hz(),
            abilities: backend.abilities(),
            owned: backend.owned_offset().is_some(),
            generation: backend.generation(),
        })
    }
}

/// Why a restore is refused. Nothing was touched.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The guest was saved at another frequency.
    #[error(
        "the guest was saved with CNTFRQ_EL0 = {saved_hz} Hz, and this VM's counter runs at {host_hz} Hz: the guest would \
         take each second for {} ms, a drift of {:+} ppm. KVM can't rescale: restore it on a host with a counter of \
         {saved_hz} Hz, or into the model over ScaledCounter(counter, frequency_hz={saved_hz})",
        second_in_ms(*saved_hz, *host_hz),
        drift_ppm(*saved_hz, *host_hz)
    )]
    FrequencyMismatch {
        /// The checkpoint's.
        saved_hz: u64,
        /// The target's.
        host_hz: u64,
    },
    /// Two counters that one offset can't reproduce.
    #[error(
        "the guest's counters differ (CNTVCT_EL0 {cntvct}, CNTPCT_EL0 {cntpct}), and {why}: views=\"preserve\" into a VM \
         that never opted in keeps both, views=\"adopt-virtual\" gives up the physical one"
    )]
    CounterSkew {
        /// The virtual counter.
        cntvct: u64,
        /// The physical counter.
        cntpct: u64,
        /// What stands in the way.
        why: &'static str,
    },
    /// A clock reads less than it did.
    #[error(
        "the {clock} read {saved} at the checkpoint and {host} here: it went backwards, so the time that has passed isn't \
         known. Put the clock right, or restore with Freeze()"
    )]
    ClockWentBackwards {
        /// Which clock, and its unit.
        clock: &'static str,
        /// The checkpoint's reading.
        saved: i128,
        /// The reading here.
        host: i128,
    },
    /// Nobody vouches for the time that has passed.
    #[error(
        "this isn't the counter that the checkpoint was taken by ({evidence}), and nobody says how far the wall clocks of \
         the two hosts may be apart: give assume_error_ns=, or same_counter=True if it is the same counter after all, or \
         restore with Freeze()"
    )]
    ElapsedUnknown {
        /// What the decision rests on.
        evidence: String,
    },
    /// The VM isn't built like the checkpoint's.
    #[error("the checkpoint has {saved} {what} and this VM has {host}: build the VM as it was when it was saved")]
    TopologyMismatch {
        /// What is counted.
        what: &'static str,
        /// In the checkpoint.
        saved: usize,
        /// In the target.
        host: usize,
    },
    /// The checkpoint has something this version doesn't know, and the caller was strict about it.
    #[error(
        "the checkpoint has {what}, which this guestclock doesn't know: restore it without strict=True, or with a newer one"
    )]
    Unknown {
        /// What it has.
        what: String,
    },
    /// The target changed after the plan was made.
    #[error("the VM has changed since this plan was made: make a new plan")]
    StalePlan,
    /// The steps of a restore were taken out of order.
    #[error("{called}() can't come now: a restore is prepare(), apply(), release(), once each")]
    OutOfOrder {
        /// The step that was tried.
        called: &'static str,
    },
    /// The backend can't do it.
    #[error("{capability}: {reason}")]
    CapabilityMissing {
        /// What is missing.
        capability: &'static str,
        /// What follows and what to do.
        reason: &'static str,
    },
}

/// What a guest of `saved` Hz takes for a second's worth of ticks at `host` Hz, in milliseconds.
fn second_in_ms(saved_hz: u64, host_hz: u64) -> u128 {
    u128::from(host_hz) * 1000 / u128::from(saved_hz.max(1))
}

/// How fast that guest's clock would run, in parts per million of `(host - saved) / saved`: rounded away from zero, so that
/// no mismatch looks like none.
fn drift_ppm(saved_hz: u64, host_hz: u64) -> i128 {
    let size = (u128::from(host_hz.abs_diff(saved_hz)) * 1_000_000).div_ceil(saved_hz.max(1).into()).cast_signed();
    if host_hz < saved_hz { -size } else { size }
}

/// What speaks for and against this being the counter that the checkpoint was taken by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// The same kind of counter.
    pub source: bool,
    /// At the same frequency.
    pub frequency: bool,
    /// On the same installation; `None` where a machine id is missing.
    pub machine: Option<bool>,
    /// In the same boot. Shown, but neither necessary (kexec) nor sufficient (a host that was itself restored).
    pub boot: Option<bool>,
    /// It hasn't gone backwards.
    pub forward: bool,
    /// How far the time that it counted is from the wall clock's, in nanoseconds.
    pub disagreement_ns: u128,
    /// How far it may be.
    pub allowed_ns: u128,
}

/// How much faster or slower than the wall clock an honest counter may run: the kernel's limit on slewing
/// (MAXFREQ in include/linux/timex.h).
pub const RATE_TOLERANCE_PPM: u128 = 500;

impl Evidence {
    /// Compares two cross-timestamps.
    #[must_use]
    pub fn between(saved: &CrossTimestamp, here: &CrossTimestamp) -> Self {
        let ticks = here.count.since(saved.count).cast_signed();
        let counted = here.frequency.signed_ticks_to_ns(ticks);
        let elapsed = i128::from(here.realtime_ns) - i128::from(saved.realtime_ns);
        let same = |saved: Option<[u8; 16]>, here: Option<[u8; 16]>| Some(saved? == here?);
        Self {
            source: saved.source == here.source,
            frequency: saved.frequency == here.frequency,
            machine: same(saved.machine_id, here.machine_id),
            boot: same(saved.boot_id, here.boot_id),
            forward: ticks >= 0,
            disagreement_ns: counted.abs_diff(elapsed),
            // Both roundings to a nanosecond, both brackets, and the rate.
            allowed_ns: 2
                + u128::from(saved.width_ns)
                + u128::from(here.width_ns)
                + elapsed.unsigned_abs() * RATE_TOLERANCE_PPM / 1_000_000,
        }
    }

    /// Whether it is the same counter. An unknown machine id is enough only for a counter that belongs to no machine.
    #[must_use]
    pub fn decides(&self, source: &str) -> bool {
        self.source
            && self.frequency
            && (self.machine == Some(true) || self.machine.is_none() && source == ManualCounter::SOURCE)
            && self.forward
            && self.disagreement_ns <= self.allowed_ns
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = |same: Option<bool>| same.map_or("unknown", yes);
        write!(
            f,
            "same source: {}, same frequency: {}, same machine: {}, same boot: {}, went forward: {}, off the wall clock by \
             {} ns where {} are allowed",
            yes(self.source),
            yes(self.frequency),
            known(self.machine),
            known(self.boot),
            yes(self.forward),
            self.disagreement_ns,
            self.allowed_ns
        )
    }
}

const fn yes(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// What a restore would do. Its numbers are as of `sample`; the decisions stand until the target's state changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// What was asked for.
    pub request: Request,
    /// How the counters will be set.
    pub method: Method,
    /// Whether it is the same counter, by force or by the evidence.
    pub same_counter: bool,
    /// The evidence.
    pub evidence: Evidence,
    /// The instant that its numbers are for.
    pub sample: CrossTimestamp,
    /// What would be set at that instant.
    pub as_of: Outcome,
    /// What the caller should know before it goes on.
    pub warnings: Vec<String>,
    /// What has to be true for the error bound to hold.
    pub premises: Vec<&'static str>,
    /// The target's state when the plan was made.
    pub generation: u64,
    /// The guest has EL2: both its counters have one offset, CNTVOFF_EL2 apart.
    pub nested: bool,
    frequency: Frequency,
    saved: Saved,
}

/// The instant that a plan starts from.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Saved {
    cntvct: GuestCount,
    cntpct: GuestCount,
    width_ticks: u64,
    host: CrossTimestamp,
}

/// The guest's counters at one instant under a plan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The host's count at the instant.
    pub count: HostCount,
    /// The guest's virtual counter then.
    pub cntvct: GuestCount,
    /// The guest's physical counter then.
    pub cntpct: GuestCount,
    /// The guest time that the policy adds, in ticks, modulo 2^64.
    pub added_ticks: u64,
    /// Whether more time has passed than the policy lets through.
    pub capped: bool,
    /// How far the counters may be from what the policy promises, in ticks.
    pub error_bound_ticks: u64,
}

impl Outcome {
    /// The offset that the virtual counter needs.
    #[must_use]
    pub const fn virtual_offset(&self) -> Offset {
        Offset::between(self.count, self.cntvct)
    }

    /// The offset that the physical counter needs.
    #[must_use]
    pub const fn physical_offset(&self) -> Offset {
        Offset::between(self.count, self.cntpct)
    }
}

/// Plans the restore of `checkpoint` into `target`, as of `sample` of the target's counter.
pub fn plan(
    checkpoint: &Checkpoint,
    target: &Target,
    sample: CrossTimestamp,
    request: Request,
) -> Result<Plan, Refusal> {
    let frequency = same_frequency(checkpoint, target, &sample)?;
    if let Some(what) = unknown(checkpoint).next().filter(|_| request.strict) {
        return Err(Refusal::Unknown { what });
    }
    let method = method(checkpoint, target, request)?;
    let evidence = Evidence::between(&checkpoint.host, &sample);
    let same_counter = request.same_counter.unwrap_or_else(|| evidence.decides(&sample.source));
    let cntpct = match request.views {
        Views::AdoptVirtual => checkpoint.cntvct,
        Views::Preserve | Views::Refuse => checkpoint.cntpct,
    };
    let mut plan = Plan {
        request,
        method,
        same_counter,
        evidence,
        as_of: Outcome {
            count: sample.count,
            cntvct: checkpoint.cntvct,
            cntpct,
            added_ticks: 0,
            capped: false,
            error_bound_ticks: 0,
        },
        sample,
        warnings: Vec::new(),
        premises: Vec::new(),
        generation: target.generation,
        nested: target.registers.has(Role::Cntvoff),
        frequency,
        saved: Saved {
            cntvct: checkpoint.cntvct,
            cntpct,
            width_ticks: checkpoint.width_ticks,
            host: checkpoint.host.clone(),
        },
    };
    plan.as_of = plan.at(&plan.sample)?;
    plan.premises = plan.premises(checkpoint);
    plan.warnings = plan.warnings(checkpoint, target);
    Ok(plan)
}

/// Checks that `target` has the vCPUs, timers and registers of `checkpoint`.
pub fn same_topology(checkpoint: &Checkpoint, target: &Target) -> Result<(), Refusal> {
    let mismatch = |what, saved, host| Err(Refusal::TopologyMismatch { what, saved, host });
    if checkpoint.vcpus != target.vcpus {
        return mismatch("vCPUs", checkpoint.vcpus, target.vcpus);
    }
    let el2 = |nested: bool| if nested { checkpoint.vcpus } else { 0 };
    let (saved, host) = (checkpoint.cntvoff.is_some(), target.registers.has(Role::Cntvoff));
    if saved != host {
        return mismatch("vCPUs with EL2", el2(saved), el2(host));
    }
    let saved = checkpoint.timers.iter().filter(|columns| columns.timer != Timer::Ptimer).count();
    let host = target.registers.timers().filter(|timer| *timer != Timer::Ptimer).count();
    if saved != host {
        return mismatch("timers besides the physical one on each vCPU", saved, host);
    }
    let saved = checkpoint.others.len();
    let host = checkpoint.others.iter().filter(|column| target.registers.has_id(column.id)).count();
    if saved != host {
        return mismatch("timer registers unknown to guestclock", saved, host);
    }
    Ok(())
}

/// What the checkpoint has that this version doesn't know.
fn unknown(checkpoint: &Checkpoint) -> impl Iterator<Item = String> {
    let keys = checkpoint.unknown.iter().map(|unknown| format!("the key {:?}", unknown.key));
    keys.chain(checkpoint.others.iter().map(|column| format!("the register {:#018x}", column.id)))
}

fn same_frequency(checkpoint: &Checkpoint, target: &Target, sample: &CrossTimestamp) -> Result<Frequency, Refusal> {
    let saved_hz = u64::from(checkpoint.cntfrq_hz);
    let mismatch = |host_hz| Refusal::FrequencyMismatch { saved_hz, host_hz };
    if checkpoint.cntfrq_hz != target.cntfrq_hz {
        return Err(mismatch(u64::from(target.cntfrq_hz)));
    }
    if saved_hz != sample.frequency.hz() {
        return Err(mismatch(sample.frequency.hz()));
    }
    Ok(sample.frequency)
}

fn method(checkpoint: &Checkpoint, target: &Target, request: Request) -> Result<Method, Refusal> {
    let skew = |why| Refusal::CounterSkew { cntvct: checkpoint.cntvct.0, cntpct: checkpoint.cntpct.0, why };
    let adopt = request.views == Views::AdoptVirtual;
    let equal = checkpoint.cntvct == checkpoint.cntpct;
    if !target.owned && !adopt && (request.in_place || !equal || !target.abilities.counter_offset) {
        if request.views == Views::Refuse && !equal {
            return Err(skew("views=\"refuse\" was asked for"));
        }
        let physical = target.registers.has(Role::Count(View::Physical));
        return Ok(if physical { Method::ByValue } else { Method::VirtualOnly });
    }
    if !target.abilities.counter_offset {
        return Err(Refusal::CapabilityMissing {
            capability: "counter_offset",
            reason: "this VM has no VM-wide counter offset (KVM_CAP_COUNTER_OFFSET, Linux 6.4 and later), which \
                     views=\"adopt-virtual\" needs: use views=\"preserve\"",
        });
    }
    if equal || adopt { Ok(Method::Offset) } else { Err(skew("this VM has opted in to one offset for both, for good")) }
}

impl Plan {
    /// The guest's counters if it goes on at the instant `now`.
    pub fn at(&self, now: &CrossTimestamp) -> Result<Outcome, Refusal> {
        let (elapsed, error) = match self.request.policy {
            Policy::Freeze => (0, 0),
            Policy::Advance { .. } if self.same_counter => {
                if self.saved.host.count.is_after(now.count) {
                    return Err(Refusal::ClockWentBackwards {
                        clock: "host's counter (ticks)",
                        saved: self.saved.host.count.0.into(),
                        host: now.count.0.into(),
                    });
                }
                (u128::from(now.count.since(self.saved.host.count)), 0)
            }
            Policy::Advance { .. } => self.elapsed_by_the_wall_clock(now)?,
        };
        let cap = match self.request.policy {
            Policy::Advance { max_ns: Some(max_ns) } => Some(self.frequency.ns_to_ticks(max_ns)),
            _ => None,
        };
        let added = cap.map_or(elapsed, |cap| elapsed.min(cap));
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the counter is modulo 2^64, and so is what is added to it"
        )]
        let added_ticks = added as u64;
        Ok(Outcome {
            count: now.count,
            cntvct: self.saved.cntvct.after(added_ticks),
            cntpct: self.saved.cntpct.after(added_ticks),
            added_ticks,
            capped: added < elapsed,
            error_bound_ticks: self.saved.width_ticks.saturating_add(error),
        })
    }

    /// Whether its numbers depend on the wall clock, so that the release needs a whole cross-timestamp.
    #[must_use]
    pub fn needs_the_wall_clock(&self) -> bool {
        !self.same_counter && matches!(self.request.policy, Policy::Advance { .. })
    }

    /// The counters' frequency.
    #[must_use]
    pub const fn frequency(&self) -> Frequency {
        self.frequency
    }

    /// The checkpoint's instant.
    #[must_use]
    pub const fn saved_at(&self) -> &CrossTimestamp {
        &self.saved.host
    }

    fn elapsed_by_the_wall_clock(&self, now: &CrossTimestamp) -> Result<(u128, u64), Refusal> {
        let saved = &self.saved.host;
        let assumed = self
            .request
            .assume_error_ns
            .ok_or_else(|| Refusal::ElapsedUnknown { evidence: format!("{}", self.evidence) })?;
        let elapsed = i128::from(now.realtime_ns) - i128::from(saved.realtime_ns);
        let elapsed = u64::try_from(elapsed).map_err(|_| Refusal::ClockWentBackwards {
            clock: "wall clock (ns)",
            saved: saved.realtime_ns.into(),
            host: now.realtime_ns.into(),
        })?;
        let error_ns = u128::from(saved.width_ns) + u128::from(now.width_ns) + u128::from(assumed);
        // One tick for rounding the elapsed time down.
        let error = (error_ns * u128::from(self.frequency.hz())).div_ceil(NS_PER_S.into()) + 1;
        Ok((self.frequency.ns_to_ticks(elapsed), u64::try_from(error).unwrap_or(u64::MAX)))
    }

    fn premises(&self, checkpoint: &Checkpoint) -> Vec<&'static str> {
        let mut premises = Vec::new();
        if !checkpoint.owned {
            premises.push("the guest's counters didn't move between the reads that measured them");
        }
        if matches!(self.request.policy, Policy::Advance { .. }) {
            if self.same_counter {
                premises.push("it is the same counter, and it has counted all the time");
            } else {
                premises.push("the wall clocks of both hosts are within the assumed error of each other");
                premises.push("both counters run at their nominal frequency");
            }
        }
        premises
    }

    fn warnings(&self, checkpoint: &Checkpoint, target: &Target) -> Vec<String> {
        let mut warnings = Vec::new();
        match self.method {
            Method::Offset if !target.owned => warnings.push(String::from(
                "this opts the VM in to one offset for good: from then on counter values that are set are ignored",
            )),
            Method::Offset => {}
            Method::ByValue => warnings.push(String::from(
                "the counters are set one after the other by value: each is off by a measured interval, and so is their distance",
            )),
            Method::VirtualOnly => warnings.push(String::from(
                "only the virtual counter and timer can be set here: the physical counter stays the host's, and the \
                 physical timer isn't restored",
            )),
        }
        if self.method != Method::Offset {
            warnings.push(String::from(
                "counters set by value don't survive another KVM_CREATE_VCPU: create every vCPU before the restore",
            ));
        }
        if self.request.views == Views::AdoptVirtual && checkpoint.cntvct != checkpoint.cntpct {
            let jump = checkpoint.cntvct.since(checkpoint.cntpct).cast_signed();
            warnings.push(format!(
                "CNTPCT_EL0 jumps by {jump} ticks against the guest's memory of it, and every armed physical timer fires \
                 that much {}",
                if jump < 0 { "later" } else { "earlier" }
            ));
        }
        warnings.extend(self.trapping(checkpoint, target));
        let (bits, stated) = target.abilities.counter_bits.map_or((56, "may have"), |bits| (bits, "has"));
        let reaches = |value: u64| bits < 64 && value >> bits != 0;
        let offset = self.as_of.virtual_offset().0;
        if reaches(self.as_of.cntvct.0) || reaches(self.as_of.cntpct.0) || reaches(offset.min(offset.wrapping_neg())) {
            warnings.push(format!(
                "a counter or its offset reaches 2^{bits}, and the hardware {stated} counters of {bits} bits: KVM compares 64"
            ));
        }
        if self.as_of.capped {
            warnings.push(format!(
                "more time has passed than the policy lets through: the guest gets {} ticks of it",
                self.as_of.added_ticks
            ));
        }
        let physical = |columns: &TimerColumns| columns.timer == Timer::Ptimer;
        let kept = self.method != Method::VirtualOnly && !self.request.in_place;
        if kept && target.registers.has(Role::Cval(Timer::Ptimer)) && !checkpoint.timers.iter().any(physical) {
            warnings.push(String::from("the checkpoint has no physical timer, so this VM's stays as it is"));
        }
        for what in unknown(checkpoint) {
            warnings
                .push(format!("the checkpoint has {what}, which this version doesn't know: it is passed on as it is"));
        }
        warnings
    }

    /// What a physical counter with an offset costs where the hardware can't apply it.
    fn trapping(&self, checkpoint: &Checkpoint, target: &Target) -> Vec<String> {
        let offset = self.as_of.physical_offset();
        let moves = self.method != Method::VirtualOnly && offset != Offset(0);
        if !moves || target.abilities.physical_offset_untrapped == Some(true) {
            return Vec::new();
        }
        let mut warnings = Vec::from([String::from(
            "the physical counter gets an offset: on a CPU without CNTPOFF_EL2 the guest's reads of CNTPCT_EL0 and its \
             physical timer trap from now on",
        )]);
        // There the kernel programs CVAL + offset modulo 2^64, before Linux 7.3 (`timer_apply_offset`). An offset of more than
        // 2^63 stands for a guest that is ahead of its host, and the sum is right unless it leaves [0, 2^64).
        let shift = offset.0.cast_signed();
        for columns in checkpoint.timers.iter().filter(|columns| columns.timer == Timer::Ptimer) {
            for (vcpu, cval) in columns.cval.iter().enumerate() {
                let enabled = columns.ctl.get(vcpu).is_some_and(|ctl| ctl & CTL_ENABLE != 0);
                if enabled && cval.checked_add_signed(shift).is_none() {
                    let fires = if shift < 0 { "never fires, though it is due" } else { "fires at once" };
                    warnings.push(format!(
                        "vCPU {vcpu}'s physical timer is on, and its CVAL {cval} with the offset {shift} isn't within 64 bits: \
                         on a CPU without CNTPOFF_EL2, under kernels before 7.3, it {fires}"
                    ));
                }
            }
        }
        warnings
    }
}
