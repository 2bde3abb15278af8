//! A VM of any kind, as plans, restores, pauses and steps hold it.

use guestclock_core::checkpoint::Checkpoint;
use guestclock_core::drive::{OpenPause, OpenRestore};
use guestclock_core::restore::{Plan, Report, Request, Step};
use guestclock_core::time::Counter;
use guestclock_model::locked::Now;
use pyo3::prelude::*;
use std::sync::Arc;

/// The operations on a VM's guest time, for the model, for KVM's VMs, and for the model under faults.
pub(crate) trait GuestVm: Send + Sync {
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

    fn pause(&self, py: Python<'_>, request: Request) -> PyResult<OpenPause>;

    fn resume(&self, py: Python<'_>, pause: &OpenPause) -> PyResult<Report>;

    fn next_step(&self, py: Python<'_>) -> Option<Step>;

    fn step(&self, py: Python<'_>, now: Option<Now>) -> PyResult<Step>;

    /// The VM's counter.
    fn counter(&self) -> &dyn Counter;

    fn enter(&self, py: Python<'_>, vcpu: usize) -> PyResult<()>;

    fn exit(&self, py: Python<'_>, vcpu: usize) -> PyResult<()>;
}

/// A VM of any kind.
pub(crate) type AnyVm = Arc<dyn GuestVm>;
