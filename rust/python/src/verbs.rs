//! The functions of the package: plan and restore, for a VM of any kind.

use crate::any_vm::AnyVm;
use crate::checkpoint::PyCheckpoint;
use crate::elapsed::PyElapsed;
use crate::faulty::PyFaultyVm;
use crate::kvm::PyKvmVm;
use crate::policy::AnyPolicy;
use crate::records::{AnyNow, AnySyncBound};
use crate::restore::{PyPlan, PyReport, Wishes};
use crate::vm::PyModelVm;
use pyo3::prelude::*;
use std::sync::Arc;

/// A VM as an argument.
#[derive(FromPyObject)]
pub(crate) enum VmArgument {
    /// The model.
    Model(Py<PyModelVm>),
    /// KVM's.
    Kvm(Py<PyKvmVm>),
    /// The model under faults.
    Faulty(Py<PyFaultyVm>),
}

impl VmArgument {
    fn any(self) -> AnyVm {
        match self {
            Self::Model(vm) => Arc::new(vm),
            Self::Kvm(vm) => Arc::new(vm),
            Self::Faulty(vm) => Arc::new(vm),
        }
    }
}

/// Plans the restore of `checkpoint` into `vm` under `policy`, without touching anything.
///
/// `views` decides what becomes of two counters that differ: "preserve" sets each by value, "adopt-virtual" gives both
/// the virtual counter's offset, "refuse" raises CounterSkew.
///
/// `elapsed` is the caller's word on the time that has passed, an `Elapsed`; without it the evidence of both stamps
/// decides. On one counter the counter tells the time, on another the wall clocks: `sync` says how far the one here may
/// be off, as `checkpoint(sync=)` did there; without it the counter's own `sync` does, else the bound is only the
/// kernel's claim. Where nobody knows, an `Advance` or `CatchUp` is refused (ElapsedUnknown), and where a counter and two
/// vouched wall clocks contradict each other (ClocksDisagree). More than 366 days by two wall clocks is refused too
/// (ElapsedTooLong), unless `Advance` has a cap of its own.
///
/// `rate_error_ppb` accepts a counter here whose frequency differs from the guest's by so many parts per billion of it,
/// at most 250 000; otherwise any difference is refused (FrequencyMismatch). The guest's clock is wrong by as much from
/// then on, and the plan says so.
///
/// `timers="relative"` keeps each timer's remaining time, instead of its deadline. `intent` is the reason of the
/// restore: "live-migration", "live-update", "snapshot" or "clone". `strict` refuses a checkpoint with something that
/// this version doesn't know; otherwise the plan warns of it. `now` injects an instant of the VM's counter: a count
/// as its `read` gives it, or a whole Stamp, which is host-wide. A RestoreRefused names both sides and the way out.
#[pyfunction]
#[pyo3(signature = (
    checkpoint, vm, *, policy=None, views="preserve", elapsed=None, sync=None, rate_error_ppb=0,
    timers="absolute", intent=None, strict=false, now=None
))]
pub(crate) fn plan(
    py: Python<'_>,
    checkpoint: &Bound<'_, PyCheckpoint>,
    vm: VmArgument,
    policy: Option<AnyPolicy>,
    views: &str,
    elapsed: Option<PyElapsed>,
    sync: Option<AnySyncBound>,
    rate_error_ppb: u32,
    timers: &str,
    intent: Option<&str>,
    strict: bool,
    now: Option<AnyNow>,
) -> PyResult<PyPlan> {
    let wishes = Wishes { policy, views, elapsed, sync, rate_error_ppb, timers, intent, strict };
    let checkpoint = Arc::clone(&checkpoint.get().0);
    let vm = vm.any();
    let plan = vm.plan(py, &checkpoint, wishes.request()?, now.map(|now| now.0))?;
    Ok(PyPlan::new(plan, checkpoint, vm))
}

/// Restores `checkpoint` into `vm`: `plan`, `prepare`, `apply` and `release` in one, with `plan`'s arguments. The guest
/// may run when it returns.
#[pyfunction]
#[pyo3(signature = (
    checkpoint, vm, *, policy=None, views="preserve", elapsed=None, sync=None, rate_error_ppb=0,
    timers="absolute", intent=None, strict=false, now=None
))]
pub(crate) fn restore(
    py: Python<'_>,
    checkpoint: &Bound<'_, PyCheckpoint>,
    vm: VmArgument,
    policy: Option<AnyPolicy>,
    views: &str,
    elapsed: Option<PyElapsed>,
    sync: Option<AnySyncBound>,
    rate_error_ppb: u32,
    timers: &str,
    intent: Option<&str>,
    strict: bool,
    now: Option<AnyNow>,
) -> PyResult<PyReport> {
    let planned =
        plan(py, checkpoint, vm, policy, views, elapsed, sync, rate_error_ppb, timers, intent, strict, now.clone())?;
    planned.carry_out(py, now)
}
