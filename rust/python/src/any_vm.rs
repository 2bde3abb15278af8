//! A VM of any kind: the primitive operations that the verbs are made of.

use crate::records::AnyCount;
use guestclock_core::arch::arm64::{Timer, TimerState, View};
use guestclock_core::checkpoint::{Checkpoint, VmName};
use guestclock_core::drive::{Condition, OpenPause, OpenRestore, Saving};
use guestclock_core::restore::{Plan, Report, Request, State, Step};
use guestclock_core::time::{Counter, HostCount, Offset};
use guestclock_model::locked::Now;
use pyo3::prelude::*;
use std::sync::Arc;

/// The operations on a VM's guest time, for the model, for KVM's VMs, and for the model under faults.
///
/// Each is documented at the method of `GuestVm` that calls it.
pub(crate) trait AnyVm: Send + Sync {
    fn name(&self) -> &VmName;

    fn vcpus(&self, py: Python<'_>) -> PyResult<usize>;

    /// The counter, as Python has it.
    fn counter_object(&self, py: Python<'_>) -> Py<PyAny>;

    fn counter(&self) -> &dyn Counter;

    /// Asks whoever vouches for the counter's wall clock, before a stamp is taken. Called with no lock held.
    fn ask(&self, py: Python<'_>) -> PyResult<()>;

    fn nested(&self, py: Python<'_>) -> PyResult<bool>;

    fn opted_in(&self) -> PyResult<bool>;

    fn state(&self, py: Python<'_>) -> PyResult<State>;

    fn capabilities<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>>;

    fn set_counter_offset(&self, py: Python<'_>, offset: Offset) -> PyResult<()>;

    fn count(&self, py: Python<'_>, vcpu: usize, view: View, now: Option<AnyCount>) -> PyResult<u64>;

    fn get_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, now: Option<HostCount>) -> PyResult<u64>;

    fn set_one_reg(&self, py: Python<'_>, vcpu: usize, reg: u64, value: u64, now: Option<HostCount>) -> PyResult<()>;

    fn reg_list(&self, py: Python<'_>, vcpu: usize) -> PyResult<Vec<u64>>;

    fn timer(&self, py: Python<'_>, vcpu: usize, timer: Timer, now: Option<HostCount>) -> PyResult<TimerState>;

    fn next_deadline(&self, py: Python<'_>, vcpu: usize, now: Option<HostCount>) -> PyResult<u64>;

    fn enter(&self, py: Python<'_>, vcpu: usize) -> PyResult<()>;

    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()>;

    fn opt_in(&self, py: Python<'_>, offset: Option<Offset>) -> PyResult<()>;

    fn checkpoint(&self, py: Python<'_>, saving: &Saving, now: Option<Now>) -> PyResult<Checkpoint>;

    fn plan(&self, py: Python<'_>, checkpoint: &Checkpoint, request: Request, now: Option<Now>) -> PyResult<Plan>;

    fn prepare(
        &self,
        py: Python<'_>,
        plan: Plan,
        checkpoint: Arc<Checkpoint>,
        now: Option<Now>,
    ) -> PyResult<OpenRestore>;

    fn apply(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<()>;

    fn release(&self, py: Python<'_>, open: &mut OpenRestore, now: Option<Now>) -> PyResult<Report>;

    fn give_up(&self, py: Python<'_>, open: &mut OpenRestore) -> PyResult<Condition>;

    /// Gives a restore up without waiting. Returns false where the VM stays closed.
    fn abandon(&self, open: &OpenRestore) -> bool;

    fn pause(&self, py: Python<'_>, request: Request) -> PyResult<OpenPause>;

    fn resume(&self, py: Python<'_>, pause: &OpenPause) -> PyResult<Report>;

    /// Returns whether the VM is still in this pause, without waiting.
    fn holds(&self, pause: &OpenPause) -> bool;

    fn next_step(&self, py: Python<'_>) -> PyResult<Option<Step>>;

    fn step(&self, py: Python<'_>, step: Step, now: Option<Now>) -> PyResult<u64>;
}

/// A VM of any kind, shared.
pub(crate) type SharedVm = Arc<dyn AnyVm>;
