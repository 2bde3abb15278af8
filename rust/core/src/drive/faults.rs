//! Faults on purpose, to test a VMM's restore: a backend that fails, delays or crashes where a script says.
//!
//! Everything above [`Backend`] is generic over it, so the restore that runs under faults is the one that runs on KVM.
//! For a VM that is shared between threads, `LockedVm::operate` of guestclock-model gives the backend to wrap.

use crate::arch::Abilities;
use crate::arch::arm64::{Registers, Sysreg};
use crate::checkpoint::Interrupts;
use crate::drive::backend::{Backend, retry_busy};
use crate::time::{Counter, Offset};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

/// EBUSY: the generic number, the same on every architecture of Linux.
const EBUSY: i32 = 16;

/// Kind of call that a fault can hit. In KVM each is an ioctl.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CallKind {
    /// KVM_GET_REG_LIST on a vCPU.
    RegList,
    /// The look whether all vCPUs are stopped.
    Stopped,
    /// KVM_GET_ONE_REG of a register on a vCPU.
    GetOneReg,
    /// KVM_SET_ONE_REG of a register on a vCPU.
    SetOneReg,
    /// KVM_ARM_SET_COUNTER_OFFSET.
    SetCounterOffset,
}

impl CallKind {
    /// All kinds with their names.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("reg_list", Self::RegList),
        ("stopped", Self::Stopped),
        ("get_one_reg", Self::GetOneReg),
        ("set_one_reg", Self::SetOneReg),
        ("set_counter_offset", Self::SetCounterOffset),
    ];
}

/// A call, or a pattern of calls: `None` for the vCPU or the register matches any.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// Kind of the call.
    pub kind: CallKind,
    /// The vCPU.
    pub vcpu: Option<usize>,
    /// KVM id of the register.
    pub reg: Option<u64>,
}

impl Call {
    const fn on_vm(kind: CallKind) -> Self {
        Self { kind, vcpu: None, reg: None }
    }

    const fn on_reg(kind: CallKind, vcpu: usize, reg: u64) -> Self {
        Self { kind, vcpu: Some(vcpu), reg: Some(reg) }
    }

    /// Returns whether this pattern matches the call `other`.
    fn covers(self, other: Self) -> bool {
        self.kind == other.kind
            && (self.vcpu.is_none() || self.vcpu == other.vcpu)
            && (self.reg.is_none() || self.reg == other.reg)
    }
}

/// Formats a call as `set_one_reg 0 TIMER_CVAL`: the kind, the vCPU, and KVM's name for the register.
impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = CallKind::NAMES.iter().find(|(_, kind)| *kind == self.kind).map_or("", |(name, _)| name);
        f.write_str(name)?;
        if let Some(vcpu) = self.vcpu {
            write!(f, " {vcpu}")?;
        }
        match self.reg.map(|id| (id, Sysreg::with_one_reg_id(id).and_then(|row| row.kvm))) {
            None => Ok(()),
            Some((_, Some(name))) => write!(f, " {name}"),
            Some((id, None)) => write!(f, " {id:#018x}"),
        }
    }
}

/// Operation that a fault can precede.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Taking a checkpoint.
    Checkpoint,
    /// Planning a restore.
    Plan,
    /// The first step of a restore.
    Prepare,
    /// The second step.
    Apply,
    /// The last step.
    Release,
    /// The beginning of a pause in place.
    Pause,
    /// The end of a pause in place.
    Resume,
    /// A step of a backlog.
    CatchUp,
    /// The opt-in.
    OptIn,
    /// A restore that is given up.
    GiveUp,
}

impl Step {
    /// All operations with their names.
    pub const NAMES: [(&'static str, Self); 10] = [
        ("checkpoint", Self::Checkpoint),
        ("plan", Self::Plan),
        ("prepare", Self::Prepare),
        ("apply", Self::Apply),
        ("release", Self::Release),
        ("pause", Self::Pause),
        ("resume", Self::Resume),
        ("catch_up", Self::CatchUp),
        ("opt_in", Self::OptIn),
        ("give_up", Self::GiveUp),
    ];
}

/// Place of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    /// Any call.
    AnyCall,
    /// Calls of this pattern.
    Call(Call),
    /// Before this operation's first call.
    Step(Step),
}

impl FromStr for On {
    type Err = ScriptError;

    /// Parses an operation's name, or a call as displayed, or the beginning of one: `set_one_reg`, `set_one_reg 0`.
    fn from_str(place: &str) -> Result<Self, ScriptError> {
        if let Some((_, step)) = Step::NAMES.iter().find(|(name, _)| *name == place) {
            return Ok(Self::Step(*step));
        }
        call(place).map(Self::Call).ok_or(ScriptError::NoSuchPlace)
    }
}

fn call(place: &str) -> Option<Call> {
    let mut words = place.split(' ');
    let kind = words.next()?;
    let (_, kind) = *CallKind::NAMES.iter().find(|(name, _)| *name == kind)?;
    let (vcpu, reg) = match kind {
        CallKind::Stopped | CallKind::SetCounterOffset => (None, None),
        CallKind::RegList => (words.next(), None),
        CallKind::GetOneReg | CallKind::SetOneReg => (words.next(), words.next()),
    };
    let vcpu = vcpu.map(str::parse).transpose().ok()?;
    let reg = reg.map(|name| register(name).ok_or(())).transpose().ok()?;
    words.next().is_none().then_some(Call { kind, vcpu, reg })
}

fn register(name: &str) -> Option<u64> {
    match name.strip_prefix("0x") {
        Some(id) => u64::from_str_radix(id, 16).ok(),
        None => Sysreg::with_kvm_name(name)?.one_reg_id(),
    }
}

/// A fault: a place and its effects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Place of the fault.
    pub on: On,
    /// Number of matching places that are passed before the fault.
    pub nth: usize,
    /// Number of matching places in a row that it hits; `None` for all from there on.
    pub times: Option<usize>,
    /// Errno that the call answers, without being made.
    pub errno: Option<i32>,
    /// Ticks by which the host's counter moves forward.
    pub delay_ticks: u64,
    /// Step of the host's wall clock, in nanoseconds.
    pub step_realtime_ns: i64,
    /// True if the process crashes: neither this call nor any later one is made.
    pub crash: bool,
}

/// Error of a fault that makes no sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptError {
    /// The place doesn't exist.
    #[error("`on` is a step, or a call as the log of calls shows it, or the beginning of one")]
    NoSuchPlace,
    /// The fault gives an errno to an operation, which answers nothing.
    #[error("a step has no errno: put the fault on one of its calls")]
    ErrnoOfAStep,
    /// The errno isn't positive.
    #[error("an errno is at least 1")]
    NoErrno,
    /// The fault has no effect.
    #[error("it does nothing: give it an errno, a delay, a step of the wall clock or a crash, and at least one time")]
    Nothing,
    /// The fault moves a counter or a clock that can't be moved.
    #[error("it moves time, which only a counter moved by hand allows")]
    NotManual,
}

impl Fault {
    /// Returns a fault without an effect yet, which hits the first of these places once.
    #[must_use]
    pub const fn on(on: On) -> Self {
        Self { on, nth: 0, times: Some(1), errno: None, delay_ticks: 0, step_realtime_ns: 0, crash: false }
    }

    const fn moves_time(&self) -> bool {
        self.delay_ticks != 0 || self.step_realtime_ns != 0
    }

    /// Checks that the fault makes sense. `movable`: the VM's counter can be moved.
    pub fn check(self, movable: bool) -> Result<Self, ScriptError> {
        let does = self.errno.is_some() || self.moves_time() || self.crash;
        match self.errno {
            _ if !does || self.times == Some(0) => Err(ScriptError::Nothing),
            Some(_) if matches!(self.on, On::Step(_)) => Err(ScriptError::ErrnoOfAStep),
            Some(..=0) => Err(ScriptError::NoErrno),
            _ if self.moves_time() && !movable => Err(ScriptError::NotManual),
            _ => Ok(self),
        }
    }

    /// Returns whether the fault hits a place, after `seen` of its places.
    fn happens(&self, seen: usize) -> bool {
        let late = seen.checked_sub(self.nth);
        late.is_some_and(|late| self.times.is_none_or(|times| late < times))
    }
}

/// Clocks of a host that a program can move.
pub trait MovableHost: Send + Sync + fmt::Debug {
    /// Moves the counter forward, and the wall clock with it.
    fn pass(&self, ticks: u64);

    /// Steps the wall clock alone.
    fn step_realtime(&self, ns: i64);
}

/// Error of a call under faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultyError<E> {
    /// The backend failed.
    #[error(transparent)]
    Backend(E),
    /// An errno was injected, and the call wasn't made.
    #[error("{call}: errno {errno}, injected at call {number}")]
    Injected {
        /// The call.
        call: Call,
        /// Number of the call, from 0.
        number: usize,
        /// The injected errno.
        errno: i32,
    },
    /// The process that held the VM has crashed.
    #[error(
        "the process that held this VM is gone, by an injected crash: build a new VM, and restore the checkpoint into it"
    )]
    Crashed,
}

/// A script of faults and its progress: the state that lasts from one operation to the next.
#[derive(Debug)]
pub struct Faults {
    /// Each fault with the number of its places that have been passed.
    script: Vec<(Fault, usize)>,
    host: Option<Arc<dyn MovableHost>>,
    busy_retries: u32,
    calls: Vec<Call>,
    crashed: bool,
}

impl Faults {
    /// Returns a script of these faults, each of them checked.
    ///
    /// `host` is the VM's counter, if it can be moved. `busy_retries` is the number of times that a call is repeated
    /// after EBUSY, if KVM's backend repeats it.
    #[must_use]
    pub fn new(script: Vec<Fault>, host: Option<Arc<dyn MovableHost>>, busy_retries: u32) -> Self {
        let script = script.into_iter().map(|fault| (fault, 0)).collect();
        Self { script, host, busy_retries, calls: Vec::new(), crashed: false }
    }

    /// The calls so far, including those that failed.
    #[must_use]
    pub fn calls(&self) -> &[Call] {
        &self.calls
    }

    /// Refuses after the crash.
    pub const fn alive<E>(&self) -> Result<(), FaultyError<E>> {
        if self.crashed { Err(FaultyError::Crashed) } else { Ok(()) }
    }

    /// Begins an operation.
    pub fn step<E>(&mut self, step: Step) -> Result<(), FaultyError<E>> {
        self.alive()?;
        self.happen(|on| on == On::Step(step))?;
        Ok(())
    }

    fn call<E>(&mut self, call: Call) -> Result<(), FaultyError<E>> {
        self.alive()?;
        let number = self.calls.len();
        self.calls.push(call);
        let errno = self.happen(|on| match on {
            On::AnyCall => true,
            On::Call(calls) => calls.covers(call),
            On::Step(_) => false,
        })?;
        errno.map_or(Ok(()), |errno| Err(FaultyError::Injected { call, number, errno }))
    }

    /// Applies the faults that are due at a place, and returns the first errno among them.
    fn happen<E>(&mut self, is_here: impl Fn(On) -> bool) -> Result<Option<i32>, FaultyError<E>> {
        let mut errno = None;
        for (fault, seen) in self.script.iter_mut().filter(|(fault, _)| is_here(fault.on)) {
            let happens = fault.happens(*seen);
            *seen += 1;
            if !happens {
                continue;
            }
            if let Some(host) = &self.host {
                host.pass(fault.delay_ticks);
                host.step_realtime(fault.step_realtime_ns);
            }
            self.crashed |= fault.crash;
            errno = errno.or(fault.errno);
        }
        self.alive()?;
        Ok(errno)
    }
}

/// A backend under faults.
#[expect(missing_debug_implementations, reason = "a backend needn't have one")]
pub struct Faulty<'a, E> {
    /// The VM.
    pub backend: &'a mut dyn Backend<Error = E>,
    /// The faults.
    pub faults: &'a mut Faults,
}

impl<E> Backend for Faulty<'_, E> {
    type Error = FaultyError<E>;

    fn counter(&self) -> &dyn Counter {
        self.backend.counter()
    }

    fn cntfrq_hz(&self) -> u32 {
        self.backend.cntfrq_hz()
    }

    fn vcpus(&self) -> usize {
        self.backend.vcpus()
    }

    fn abilities(&self) -> Abilities {
        self.backend.abilities()
    }

    fn reg_list(&mut self, vcpu: usize) -> Result<Vec<u64>, FaultyError<E>> {
        self.faults.call(Call { kind: CallKind::RegList, vcpu: Some(vcpu), reg: None })?;
        self.backend.reg_list(vcpu).map_err(FaultyError::Backend)
    }

    fn nested(&self) -> bool {
        self.backend.nested()
    }

    fn vm_offset(&self) -> Option<Offset> {
        self.backend.vm_offset()
    }

    /// No faults are made of this call: a kernel that doesn't tell leaves the ids unknown.
    fn interrupts(&mut self, registers: &Registers) -> Result<Option<Interrupts>, FaultyError<E>> {
        self.backend.interrupts(registers).map_err(FaultyError::Backend)
    }

    fn generation(&self) -> u64 {
        self.backend.generation()
    }

    fn stopped(&mut self) -> Result<(), FaultyError<E>> {
        retry_busy(self, |this| {
            this.faults.call(Call::on_vm(CallKind::Stopped))?;
            this.backend.stopped().map_err(FaultyError::Backend)
        })
    }

    fn get_one_reg(&mut self, vcpu: usize, id: u64) -> Result<u64, FaultyError<E>> {
        self.faults.call(Call::on_reg(CallKind::GetOneReg, vcpu, id))?;
        self.backend.get_one_reg(vcpu, id).map_err(FaultyError::Backend)
    }

    fn set_one_reg(&mut self, vcpu: usize, id: u64, value: u64) -> Result<(), FaultyError<E>> {
        self.faults.call(Call::on_reg(CallKind::SetOneReg, vcpu, id))?;
        self.backend.set_one_reg(vcpu, id, value).map_err(FaultyError::Backend)
    }

    fn set_counter_offset(&mut self, offset: Offset) -> Result<(), FaultyError<E>> {
        self.faults.call(Call::on_vm(CallKind::SetCounterOffset))?;
        self.backend.set_counter_offset(offset).map_err(FaultyError::Backend)
    }

    fn retries(&mut self, error: &FaultyError<E>, attempt: u32) -> bool {
        matches!(error, FaultyError::Injected { errno: EBUSY, .. }) && attempt < self.faults.busy_retries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn a_place_is_spelled_as_the_call_is_shown() {
        for place in [
            "reg_list",
            "reg_list 0",
            "stopped",
            "get_one_reg",
            "get_one_reg 7",
            "set_one_reg 1 TIMER_CVAL",
            "get_one_reg 0 CNTVOFF_EL2",
            "set_one_reg 0 0x603000000013e730",
            "set_counter_offset",
        ] {
            let Ok(On::Call(call)) = place.parse() else { panic!("{place}") };
            assert_eq!(call.to_string(), place);
        }
        for (name, step) in Step::NAMES {
            assert_eq!(name.parse(), Ok(On::Step(step)));
        }
        for place in ["", "ioctl", "stopped 0", "reg_list 0 TIMER_CVAL", "get_one_reg x", "set_one_reg 0 CNTV_CVAL_EL0"]
        {
            assert_eq!(place.parse::<On>(), Err(ScriptError::NoSuchPlace), "{place}");
        }
    }

    #[test]
    fn a_call_is_covered_by_the_beginning_of_its_name() {
        let whole: Call = call("set_one_reg 1 TIMER_CVAL").unwrap();
        for (place, covers) in [
            ("set_one_reg", true),
            ("set_one_reg 1", true),
            ("set_one_reg 1 TIMER_CVAL", true),
            ("set_one_reg 0", false),
            ("set_one_reg 1 TIMER_CTL", false),
            ("get_one_reg", false),
        ] {
            assert_eq!(call(place).unwrap().covers(whole), covers, "{place}");
        }
    }
}
