//! Faults on purpose, to test a VMM's restore: calls that fail, lie, stall or find the process gone where a script says.

use crate::drive::around::{Answer, Around};
use crate::drive::backend::Backend;
use crate::drive::call::{Call, CallKind, Verb};
use crate::drive::trace::Errno;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

/// EBUSY: the generic number, the same on every architecture of Linux.
const EBUSY: i32 = 16;
/// ESRCH: no such process.
const ESRCH: i32 = 3;

/// Place of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    /// Any call.
    AnyCall,
    /// Calls of this pattern.
    Call(Call),
    /// Before this operation's first call.
    Verb(Verb),
}

impl FromStr for On {
    type Err = ScriptError;

    /// Parses an operation's name, or a call as displayed, or the beginning of one: `set_one_reg`, `set_one_reg 0`.
    fn from_str(place: &str) -> Result<Self, ScriptError> {
        if let Some((_, verb)) = Verb::NAMES.iter().find(|(name, _)| *name == place) {
            return Ok(Self::Verb(*verb));
        }
        Call::named(place).map(Self::Call).ok_or(ScriptError::NoSuchPlace)
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
    /// True if a write isn't made, and answers success.
    pub dropped: bool,
    /// Bits of a register that are read wrongly.
    pub flipped: u64,
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
    #[error(
        "it does nothing: give it an errno, a dropped write, flipped bits, a delay, a step of the wall clock or a crash, and \
         at least one time"
    )]
    Nothing,
    /// The fault drops something else than a write.
    #[error("only a write can be dropped: put the fault on set_one_reg or set_counter_offset")]
    NoWrite,
    /// The fault flips bits of something else than a register's value.
    #[error("only a register is read wrongly: put the fault on get_one_reg")]
    NoRead,
    /// The fault moves a counter or a clock that can't be moved.
    #[error("it moves time, which only a counter moved by hand allows")]
    NotManual,
}

impl Fault {
    /// Returns a fault without an effect yet, which hits the first of these places once.
    #[must_use]
    pub const fn on(on: On) -> Self {
        Self {
            on,
            nth: 0,
            times: Some(1),
            errno: None,
            dropped: false,
            flipped: 0,
            delay_ticks: 0,
            step_realtime_ns: 0,
            crash: false,
        }
    }

    fn is_on(&self, kinds: &[CallKind]) -> bool {
        matches!(self.on, On::Call(call) if kinds.contains(&call.kind))
    }

    const fn moves_time(&self) -> bool {
        self.delay_ticks != 0 || self.step_realtime_ns != 0
    }

    /// Checks that the fault makes sense. `movable`: the VM's counter can be moved.
    pub fn check(self, movable: bool) -> Result<Self, ScriptError> {
        let does = self.errno.is_some() || self.dropped || self.flipped != 0 || self.moves_time() || self.crash;
        match self.errno {
            _ if !does || self.times == Some(0) => Err(ScriptError::Nothing),
            Some(_) if matches!(self.on, On::Verb(_)) => Err(ScriptError::ErrnoOfAStep),
            Some(..=0) => Err(ScriptError::NoErrno),
            _ if self.dropped && !self.is_on(&[CallKind::SetOneReg, CallKind::SetCounterOffset]) => {
                Err(ScriptError::NoWrite)
            }
            _ if self.flipped != 0 && !self.is_on(&[CallKind::GetOneReg]) => Err(ScriptError::NoRead),
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

impl<E: Errno> Errno for FaultyError<E> {
    fn errno(&self) -> i32 {
        match self {
            Self::Backend(error) => error.errno(),
            Self::Injected { errno, .. } => *errno,
            Self::Crashed => ESRCH,
        }
    }
}

/// A script of faults and its progress: the state that lasts from one operation to the next.
#[derive(Debug)]
pub struct Faults {
    /// Each fault with the number of its places that have been passed.
    script: Vec<(Fault, usize)>,
    host: Option<Arc<dyn MovableHost>>,
    busy_retries: u32,
    /// Number of calls so far, including those that failed.
    calls: usize,
    crashed: bool,
}

/// Effects of the faults that are due at a place.
#[derive(Default)]
struct Effects {
    errno: Option<i32>,
    dropped: bool,
    flipped: u64,
}

impl Faults {
    /// Returns a script of these faults, each of them checked.
    ///
    /// `host` is the VM's counter, if it can be moved. `busy_retries` is the number of times that a call is repeated
    /// after an injected EBUSY, if KVM's backend repeats it.
    #[must_use]
    pub fn new(script: Vec<Fault>, host: Option<Arc<dyn MovableHost>>, busy_retries: u32) -> Self {
        let script = script.into_iter().map(|fault| (fault, 0)).collect();
        Self { script, host, busy_retries, calls: 0, crashed: false }
    }

    /// Returns whether the process that holds the VM is gone.
    #[must_use]
    pub const fn crashed(&self) -> bool {
        self.crashed
    }

    const fn alive<E>(&self) -> Result<(), FaultyError<E>> {
        if self.crashed { Err(FaultyError::Crashed) } else { Ok(()) }
    }

    /// Applies the faults that are due at a place.
    fn happen<E>(&mut self, is_here: impl Fn(On) -> bool) -> Result<Effects, FaultyError<E>> {
        let mut effects = Effects::default();
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
            effects.errno = effects.errno.or(fault.errno);
            effects.dropped |= fault.dropped;
            effects.flipped ^= fault.flipped;
        }
        self.alive()?;
        Ok(effects)
    }
}

impl<E> Around<E> for Faults {
    type Error = FaultyError<E>;

    fn begin(&mut self, verb: Option<Verb>) -> Result<(), FaultyError<E>> {
        self.alive()?;
        verb.map_or(Ok(()), |verb| self.happen(|on| on == On::Verb(verb)).map(drop))
    }

    fn alive(&self) -> Result<(), FaultyError<E>> {
        Self::alive(self)
    }

    fn call<A: Answer>(
        &mut self,
        call: Call,
        _wrote: Option<u64>,
        make: impl FnOnce() -> Result<A, E>,
    ) -> Result<A, FaultyError<E>> {
        self.alive()?;
        let number = self.calls;
        self.calls += 1;
        let effects = self.happen(|on| match on {
            On::AnyCall => true,
            On::Call(calls) => calls.covers(call),
            On::Verb(_) => false,
        })?;
        if let Some(errno) = effects.errno {
            return Err(FaultyError::Injected { call, number, errno });
        }
        match A::of_a_dropped_write().filter(|_| effects.dropped) {
            Some(answer) => Ok(answer),
            None => make().map(|answer| answer.flipped(effects.flipped)).map_err(FaultyError::Backend),
        }
    }

    fn retries(&mut self, backend: &mut dyn Backend<Error = E>, error: &FaultyError<E>, attempt: u32) -> bool {
        match error {
            FaultyError::Backend(error) => backend.retries(error, attempt),
            FaultyError::Injected { errno: EBUSY, .. } => attempt < self.busy_retries,
            FaultyError::Injected { .. } | FaultyError::Crashed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_an_operation_or_a_call() {
        for (name, verb) in Verb::NAMES {
            assert_eq!(name.parse(), Ok(On::Verb(verb)));
        }
        let place = "set_one_reg 1 TIMER_CVAL";
        assert_eq!(place.parse(), Ok(On::Call(Call::named(place).unwrap())));
        assert_eq!("ioctl".parse::<On>(), Err(ScriptError::NoSuchPlace));
    }
}
