//! The native module `guestclock._core`: bindings, and nothing else.
#![allow(
    clippy::needless_pass_by_value,
    clippy::unused_self,
    clippy::too_many_arguments,
    reason = "the signatures are Python's"
)]
#![cfg_attr(not(linux), allow(dead_code, reason = "what only Linux's part uses"))]

mod any_vm;
mod arguments;
mod around;
mod arrays;
mod bank;
mod checkpoint;
mod columns;
mod counters;
mod deadline;
mod documents;
mod elapsed;
mod equation;
mod errors;
mod faulty;
mod files;
mod fleet;
mod foreign;
mod guest;
mod interchange;
mod observe;
mod pickles;
mod plan;
mod policy;
mod process;
mod records;
mod registers;
mod report;
mod restore;
mod sets;
mod steps;
mod trace;
mod verbs;
mod vm;
mod wishes;
mod words;

// Off Linux a file of the same name in `elsewhere/` has the same names.
#[cfg_attr(not(linux), path = "elsewhere/alarm.rs")]
mod alarm;
#[cfg_attr(not(linux), path = "elsewhere/alarms.rs")]
mod alarms;
#[cfg_attr(not(linux), path = "elsewhere/host.rs")]
mod host;
#[cfg_attr(not(linux), path = "elsewhere/host_counters.rs")]
mod host_counters;
#[cfg_attr(not(linux), path = "elsewhere/kvm.rs")]
mod kvm;
#[cfg_attr(not(linux), path = "elsewhere/pages.rs")]
mod pages;
#[cfg_attr(not(linux), path = "elsewhere/system.rs")]
mod system;
#[cfg(linux)]
mod vouching;

#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::alarm::{_claim, _release, PyDeadlineAlarm};
    #[pymodule_export]
    use super::bank::PyClockBank;
    #[pymodule_export]
    use super::checkpoint::{_crc32c, _vm_name, PyCheckpoint};
    #[pymodule_export]
    use super::columns::{isa, ns_to_ticks, recompute, ticks_to_ns};
    #[pymodule_export]
    use super::counters::{_counter, PyManualCounter, PyScaledCounter};
    #[pymodule_export]
    use super::deadline::PyDeadlineQueue;
    #[pymodule_export]
    use super::elapsed::PyElapsed;
    #[pymodule_export]
    use super::equation::{PyClockEquation, clock_settime};
    #[pymodule_export]
    use super::faulty::PyFaultyVm;
    #[pymodule_export]
    use super::fleet::{
        _each_checkpoint, _each_pause, _each_plan, _each_restore, _each_resume, _each_step, _each_verify,
    };
    #[pymodule_export]
    use super::guest::{_cancel, PyPause, PyRunning};
    #[pymodule_export]
    use super::host::{kvm_probe, read_cost_ns};
    #[pymodule_export]
    use super::host_counters::{PyHostCounter, PyMonotonicCounter};
    #[pymodule_export]
    use super::kvm::PyKvmVm;
    #[pymodule_export]
    use super::observe::_monitored;
    #[pymodule_export]
    use super::pages::{PyStolenTime, PyVmClock, PyVmClockUpdate};
    #[pymodule_export]
    use super::plan::PyPlan;
    #[pymodule_export]
    use super::policy::{PyAdvance, PyCatchUp, PyFreeze};
    #[pymodule_export]
    use super::records::{_is_unknown_host, _vouched, PyTimerState};
    #[pymodule_export]
    use super::registers::{reg_id, sysreg};
    #[pymodule_export]
    use super::report::PyReport;
    #[pymodule_export]
    use super::restore::PyRestore;
    #[pymodule_export]
    use super::sets::{PyPausedSet, PySetPlan, PySetReport};
    #[pymodule_export]
    use super::steps::PyStep;
    #[pymodule_export]
    use super::trace::PyTracedVm;
    #[pymodule_export]
    use super::verbs::PyGuestVm;
    #[pymodule_export]
    use super::vm::PyModelVm;
    #[pymodule_export]
    use super::words::_speak_flags;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("_LINUX", cfg!(linux))?;
        module.add("_RATE_TOLERANCE_PPM", guestclock_core::time::RATE_TOLERANCE_PPM)?;
        super::process::register(module)?;
        // Called here, so that an unknown instruction set is an error at import.
        super::columns::chosen_isa(module.py())?;
        module.add("NO_DEADLINE", guestclock_core::time::NO_DEADLINE)?;
        // A debug build is slow, so the package warns of it on import.
        module.add("DEBUG_BUILD", cfg!(debug_assertions))
    }
}
