//! Verbs of many VMs: the interpreter's lock is given up once, and threads share the work. `guestclock.fleet` orders them.

use crate::any_vm::Started;
use crate::arguments::{Int, at_least_1};
use crate::checkpoint::{PyCheckpoint, saving, vm_name};
use crate::guest::PyPause;
use crate::observe;
use crate::policy::AnyPolicy;
use crate::process::detached;
use crate::records::{self, AnyNow, AnyStamp, AnySyncBound, named};
use crate::restore::{AnyGiven, PyPlan, PyRestore, Stage, Stepped, Wishes};
use crate::verbs::PyGuestVm;
use crate::vouching::Asks;
use guestclock_core::restore::Report;
use guestclock_linux::clock::monotonic_ns;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Results and errors by the VM's place. A VM that has neither wasn't worked on.
type Sorted<'py> = (Bound<'py, PyDict>, Bound<'py, PyDict>);

/// Carries verbs out on so many threads, each verb once and whole on one of them, begun in their order. With `stop` none
/// is begun once one has failed.
fn spread<T: Send>(
    py: Python<'_>,
    threads: NonZeroUsize,
    stop: bool,
    started: Vec<PyResult<Started<'_, T>>>,
) -> Vec<Option<PyResult<T>>> {
    let work: Vec<_> = started.into_iter().map(|started| Mutex::new(Some(started))).collect();
    let done: Vec<_> = work.iter().map(|_| Mutex::new(None)).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = || {
        while !(stop && failed.load(Ordering::Relaxed)) {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(started) = work.get(at) else { break };
            let result = match started.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(Ok(verb)) => verb(),
                Some(Err(error)) => Err(Box::new(|| error) as _),
                None => break,
            };
            if result.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            *done[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    detached(py, || {
        thread::scope(|scope| {
            for _ in 1..threads.get().min(work.len()) {
                // A host that has no thread to give has this one.
                let _ = thread::Builder::new().spawn_scoped(scope, worker);
            }
            worker();
        });
    });
    let results = done.into_iter().map(|done| done.into_inner().unwrap_or_else(PoisonError::into_inner));
    results.map(|result| result.map(|result| result.map_err(|failure| failure()))).collect()
}

/// The results as Python has them: `object_of` makes an object of each.
fn sorted<T>(
    py: Python<'_>,
    results: Vec<Option<PyResult<T>>>,
    mut object_of: impl FnMut(usize, T) -> PyResult<Py<PyAny>>,
) -> PyResult<Sorted<'_>> {
    let (made, failed) = (PyDict::new(py), PyDict::new(py));
    for (at, result) in results.into_iter().enumerate() {
        match result.map(|result| result.and_then(|result| object_of(at, result))) {
            None => {}
            Some(Ok(object)) => made.set_item(at, object)?,
            Some(Err(error)) => failed.set_item(at, error.into_value(py))?,
        }
    }
    Ok((made, failed))
}

/// A VM to be saved: its name, stop, vmclock page and stolen-time records.
type Saved<'py> =
    (Bound<'py, PyGuestVm>, Bound<'py, PyString>, Option<Int<u64>>, Option<Int<u64>>, Option<Vec<Option<Int<u64>>>>);

/// Saves VMs, until one fails.
#[pyfunction]
pub(crate) fn _each_checkpoint<'py>(
    py: Python<'py>,
    vms: Vec<Saved<'py>>,
    now: Option<AnyNow>,
    sync: Option<AnySyncBound>,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
) -> PyResult<Sorted<'py>> {
    let now = now.map(|now| now.0);
    let saved = vms.iter().map(|(vm, name, stopped_at, address, records)| {
        let name = vm_name(name.to_str()?)?;
        let saving = saving(&name, *stopped_at, sync.clone(), *address, records.clone())?;
        if saving.asks(now.as_ref()) {
            vm.get().vm.ask(py)?;
        }
        Ok(saving)
    });
    let savings = saved.collect::<PyResult<Vec<_>>>()?;
    let started = vms.iter().zip(&savings).map(|((vm, ..), saving)| vm.get().vm.checkpoint(py, saving, now.clone()));
    let results = spread(py, threads, true, started.collect());
    sorted(py, results, |_, made| Ok(Py::new(py, PyCheckpoint::from(made))?.into_any()))
}

/// Plans the restore of each checkpoint into its VM: a `Plan` each, or with `restoring` a `Restore`.
#[pyfunction]
#[pyo3(signature = (vms, checkpoints, policy, options, now, keywords, restoring, threads))]
pub(crate) fn _each_plan<'py>(
    py: Python<'py>,
    vms: Vec<Bound<'py, PyGuestVm>>,
    checkpoints: Vec<Bound<'py, PyCheckpoint>>,
    policy: Option<AnyPolicy>,
    options: Option<Bound<'py, PyAny>>,
    now: Option<AnyNow>,
    keywords: Option<Bound<'py, PyDict>>,
    restoring: bool,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
) -> PyResult<Sorted<'py>> {
    let request = Wishes::new(py, options, keywords.filter(|keywords| !keywords.is_empty()))?.request(policy)?;
    let now = now.map(|now| now.0);
    let asks = request.asks(now.as_ref());
    let started = vms.iter().zip(&checkpoints).map(|(vm, checkpoint)| {
        let vm = &vm.get().vm;
        if asks {
            vm.ask(py)?;
        }
        vm.plan(py, &checkpoint.get().0, request, now.clone())
    });
    let results = spread(py, threads, false, started.collect());
    sorted(py, results, |at, plan| {
        let checkpoint = Arc::clone(&checkpoints[at].get().0);
        Ok(if restoring {
            Py::new(py, PyRestore::new(plan, checkpoint, Arc::clone(&vms[at].get().vm), now.clone()))?.into_any()
        } else {
            Py::new(py, PyPlan::new(plan, checkpoint))?.into_any()
        })
    })
}

/// Makes one step of each restore ("close", "prepare", "apply" or "release"): a `Report` each after the last, else None.
#[pyfunction]
#[pyo3(signature = (restores, stage, threads, *, stop, at=None, now=None))]
pub(crate) fn _each_step<'py>(
    py: Python<'py>,
    restores: Vec<Bound<'py, PyRestore>>,
    stage: &str,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
    stop: bool,
    at: Option<AnyStamp>,
    now: Option<AnyNow>,
) -> PyResult<Sorted<'py>> {
    let stage = named("stage", stage, &Stage::NAMES)?;
    let (at, now) = (at.map(|at| at.stamp("at")).transpose()?, now.map(|now| now.0));
    let mut progress: Vec<_> = restores.iter().map(|restore| restore.get().lock(py)).collect();
    let started = progress.iter_mut().zip(&restores);
    let started = started.map(|(progress, restore)| progress.start(restore.get(), py, stage, now.clone(), at));
    let closing_ns = monotonic_ns();
    let results = spread(py, threads, stop, started.collect()).into_iter().enumerate();
    let took = |(at, result): (usize, Option<PyResult<Stepped>>)| {
        result.map(|result| result.and_then(|stepped| progress[at].took(restores[at].get(), py, stepped, closing_ns)))
    };
    let results: Vec<_> = results.map(took).collect();
    drop(progress);
    let results = results.into_iter().zip(&restores);
    let results = results.map(|(result, restore)| result.map(|result| restore.get().watched(py, result)));
    sorted(py, results.collect(), |_, report| Ok(report.map_or_else(|| py.None(), Py::into_any)))
}

/// Pauses VMs, until one fails: a `Pause` each.
#[pyfunction]
pub(crate) fn _each_pause<'py>(
    py: Python<'py>,
    vms: Vec<Bound<'py, PyGuestVm>>,
    policy: Option<AnyPolicy>,
    views: &str,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
) -> PyResult<Sorted<'py>> {
    let request = Wishes::of_views(views).request(policy)?;
    let closing_ns = monotonic_ns();
    let started = vms.iter().map(|vm| vm.get().vm.pause(py, request));
    let results = spread(py, threads, true, started.collect());
    for (result, vm) in results.iter().zip(&vms) {
        if let Some(Err(error)) = result {
            observe::failed(py, &vm.get().vm, "pause", error);
        }
    }
    sorted(py, results, |at, pause| {
        Ok(Py::new(py, PyPause::new(Arc::clone(&vms[at].get().vm), pause, closing_ns))?.into_any())
    })
}

/// Ends pauses: a `Report` each.
#[pyfunction]
pub(crate) fn _each_resume<'py>(
    py: Python<'py>,
    pauses: Vec<Bound<'py, PyPause>>,
    policy: Option<AnyPolicy>,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
) -> PyResult<Sorted<'py>> {
    let policy = policy.map(AnyPolicy::policy);
    let mut states: Vec<_> = pauses.iter().map(|pause| pause.get().lock(py)).collect();
    let started = states.iter_mut().zip(&pauses).map(|(state, pause)| state.start(&pause.get().vm, py, policy));
    let results = spread(py, threads, false, started.collect()).into_iter().enumerate();
    let took = |(at, result): (usize, Option<PyResult<Report>>)| {
        result.map(|result| result.and_then(|report| states[at].took(py, report)))
    };
    let results: Vec<_> = results.map(took).collect();
    drop(states);
    let results = results.into_iter().zip(&pauses);
    let results = results.map(|(result, pause)| result.map(|result| pause.get().watched(py, result)));
    sorted(py, results.collect(), |_, report| Ok(report.into_any()))
}

/// Looks at the clocks of VMs, each compared with what is given of it: a `Verified` each.
#[pyfunction]
pub(crate) fn _each_verify<'py>(
    py: Python<'py>,
    vms: Vec<Bound<'py, PyGuestVm>>,
    given: Vec<Option<AnyGiven<'py>>>,
    now: Option<AnyNow>,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
) -> PyResult<Sorted<'py>> {
    let now = now.map(|now| now.0);
    let started = vms.iter().zip(&given);
    let started = started.map(|(vm, given)| vm.get().vm.verify(py, AnyGiven::expected(given.as_ref()), now.clone()));
    let results = spread(py, threads, false, started.collect());
    sorted(py, results, |_, verified| Ok(records::verified(py, &verified)?.unbind()))
}
