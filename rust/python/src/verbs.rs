//! The functions of the package: plan and restore, for a VM of any kind.

use crate::any_vm::AnyVm;
use crate::checkpoint::PyCheckpoint;
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
/// the virtual counter's offset, "refuse" raises CounterSkew. `same_counter` overrides the decision by the evidence.
///
/// On another counter the wall clocks tell the time: `sync` says how far the one here may be off, as
/// `checkpoint(sync=)` did there; without it the counter's own `sync` does, else the bound is only the kernel's claim. `assume_error_ns` says instead how
/// far apart the two may be. `elapsed_ns` gives the elapsed time instead, off by at most `assume_error_ns`. Without any
/// of these an `Advance` or `CatchUp` is refused (ElapsedUnknown). More than `max_elapsed_ns`, by default 366 days, is
/// refused too, unless `Advance` has a cap of its own.
///
/// `timers="relative"` keeps each timer's remaining time, instead of its deadline. `intent` is the reason of the
/// restore: "live-migration", "live-update", "snapshot" or "clone". `strict` refuses a checkpoint with something that
/// this version doesn't know; otherwise the plan warns of it. `now` injects an instant of the VM's counter: a count
/// as its `read` gives it, or a whole Stamp, which is host-wide. A RestoreRefused names both sides and the way out.
#[pyfunction]
#[pyo3(signature = (
    checkpoint, vm, *, policy=None, views="preserve", same_counter=None, assume_error_ns=None, sync=None, elapsed_ns=None,
    max_elapsed_ns=None, timers="absolute", intent=None, strict=false, now=None
))]
pub(crate) fn plan(
    py: Python<'_>,
    checkpoint: &Bound<'_, PyCheckpoint>,
    vm: VmArgument,
    policy: Option<AnyPolicy>,
    views: &str,
    same_counter: Option<bool>,
    assume_error_ns: Option<u64>,
    sync: Option<AnySyncBound>,
    elapsed_ns: Option<u64>,
    max_elapsed_ns: Option<u64>,
    timers: &str,
    intent: Option<&str>,
    strict: bool,
    now: Option<AnyNow>,
) -> PyResult<PyPlan> {
    let wishes = Wishes {
        policy,
        views,
        same_counter,
        assume_error_ns,
        sync,
        elapsed_ns,
        max_elapsed_ns,
        timers,
        intent,
        strict,
    };
    let checkpoint = Arc::clone(&checkpoint.get().0);
    let vm = vm.any();
    let plan = vm.plan(py, &checkpoint, wishes.request()?, now.map(|now| now.0))?;
    Ok(PyPlan::new(plan, checkpoint, vm))
}

/// Restores `checkpoint` into `vm`: `plan`, `prepare`, `apply` and `release` in one, with `plan`'s arguments. The guest
/// may run when it returns.
#[pyfunction]
#[pyo3(signature = (
    checkpoint, vm, *, policy=None, views="preserve", same_counter=None, assume_error_ns=None, sync=None, elapsed_ns=None,
    max_elapsed_ns=None, timers="absolute", intent=None, strict=false, now=None
))]
pub(crate) fn restore(
    py: Python<'_>,
    checkpoint: &Bound<'_, PyCheckpoint>,
    vm: VmArgument,
    policy: Option<AnyPolicy>,
    views: &str,
    same_counter: Option<bool>,
    assume_error_ns: Option<u64>,
    sync: Option<AnySyncBound>,
    elapsed_ns: Option<u64>,
    max_elapsed_ns: Option<u64>,
    timers: &str,
    intent: Option<&str>,
    strict: bool,
    now: Option<AnyNow>,
) -> PyResult<PyReport> {
    let planned = plan(
        py,
        checkpoint,
        vm,
        policy,
        views,
        same_counter,
        assume_error_ns,
        sync,
        elapsed_ns,
        max_elapsed_ns,
        timers,
        intent,
        strict,
        now.clone(),
    )?;
    planned.carry_out(py, now)
}
