//! Verbs of many VMs: the interpreter's lock is given up once, and threads share the work. `guestclock.fleet` matches
//! them by name.

use crate::any_vm::{Failure, SharedVm, Verbs};
use crate::arguments::{Int, at_least_1};
use crate::checkpoint::{PyCheckpoint, saving, vm_name};
use crate::counters::Asks;
use crate::guest::{PyPause, is_over};
use crate::observe;
use crate::plan::PyPlan;
use crate::policy::AnyPolicy;
use crate::process::detached;
use crate::records::{self, AnyNow, AnyStamp, AnySyncBound, named};
use crate::report::{AnyGiven, PyReport};
use crate::restore::{Progress, PyRestore, Stage};
use crate::system::monotonic_ns;
use crate::verbs::PyGuestVm;
use crate::wishes::Wishes;
use guestclock_core::restore::{Plan, Report, Request};
use guestclock_core::time::Stamp;
use guestclock_model::locked::Now;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Results and errors by the VM's place. A VM that has neither wasn't worked on.
type Sorted<'py> = (Bound<'py, PyDict>, Bound<'py, PyDict>);

/// Does jobs on so many threads, each whole on one of them, begun in their order. `work` returns whether a job went well;
/// with `stop` none is begun once one hasn't.
fn spread<J: Send>(threads: NonZeroUsize, stop: bool, jobs: &mut [J], work: impl Fn(&mut J) -> bool + Sync) {
    let jobs: Vec<_> = jobs.iter_mut().map(Mutex::new).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let worker = || {
        while !(stop && failed.load(Ordering::Relaxed)) {
            let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            if !work(&mut **job.lock().unwrap_or_else(PoisonError::into_inner)) {
                failed.store(true, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.get().min(jobs.len()) {
            // A host that has no thread to give has this one.
            let _ = thread::Builder::new().spawn_scoped(scope, worker);
        }
        worker();
    });
}

/// Verbs of one VM of many, one after the other until one fails, and the result of the last.
struct Job<'a, T> {
    /// None once a verb has failed.
    vm: Option<Box<dyn Verbs + 'a>>,
    /// None before the first.
    made: Option<Result<T, Failure>>,
}

impl<'a, T> Job<'a, T> {
    fn new(py: Python<'_>, vm: &'a SharedVm, now: Option<&Now>) -> Self {
        match vm.at_hand(py, now.cloned()) {
            Ok(vm) => Self { vm: Some(vm), made: None },
            Err(error) => Self { vm: None, made: Some(Err(Box::new(|| error))) },
        }
    }

    /// Carries a verb out, unless one has failed. Returns whether none has.
    fn carry_out(&mut self, verb: impl FnOnce(&dyn Verbs) -> Result<T, Failure>) -> bool {
        if let Some(vm) = &self.vm {
            let made = verb(&**vm);
            if made.is_err() {
                self.vm = None;
            }
            self.made = Some(made);
        }
        self.vm.is_some()
    }
}

/// The results, with exceptions for failures.
fn raised<T>(made: impl IntoIterator<Item = Option<Result<T, Failure>>>) -> Vec<Option<PyResult<T>>> {
    made.into_iter().map(|made| made.map(|made| made.map_err(|failure| failure()))).collect()
}

/// Carries a verb out for each VM, by its place.
fn each<'a, T: Send>(
    py: Python<'_>,
    threads: NonZeroUsize,
    stop: bool,
    vms: impl IntoIterator<Item = &'a SharedVm>,
    now: Option<&Now>,
    verb: impl Fn(&dyn Verbs, usize) -> Result<T, Failure> + Send + Sync,
) -> Vec<Option<PyResult<T>>> {
    all(py, threads, stop, jobs(py, vms, now), verb)
}

/// A job for each VM, with its place.
fn jobs<'a, T>(
    py: Python<'_>,
    vms: impl IntoIterator<Item = &'a SharedVm>,
    now: Option<&Now>,
) -> Vec<(usize, Job<'a, T>)> {
    vms.into_iter().map(|vm| Job::new(py, vm, now)).enumerate().collect()
}

/// Carries a verb out for each job, by its place.
fn all<T: Send>(
    py: Python<'_>,
    threads: NonZeroUsize,
    stop: bool,
    mut jobs: Vec<(usize, Job<'_, T>)>,
    verb: impl Fn(&dyn Verbs, usize) -> Result<T, Failure> + Send + Sync,
) -> Vec<Option<PyResult<T>>> {
    detached(py, || spread(threads, stop, &mut jobs, |(at, job)| job.carry_out(|vm| verb(vm, *at))));
    raised(jobs.into_iter().map(|(_, job)| job.made))
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

fn shared<'a>(vms: &'a [Bound<'_, PyGuestVm>]) -> impl Iterator<Item = &'a SharedVm> + Clone {
    vms.iter().map(|vm| &vm.get().vm)
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
    let vms = vms.iter().map(|(vm, ..)| &vm.get().vm);
    let results = each(py, threads, true, vms, now.as_ref(), |vm, at| vm.checkpoint(&savings[at]));
    sorted(py, results, |_, made| Ok(Py::new(py, PyCheckpoint::from(made))?.into_any()))
}

/// Takes the arguments of a plan, and asks whoever vouches for the counters of the VMs.
fn request<'a>(
    py: Python<'_>,
    vms: impl Iterator<Item = &'a SharedVm>,
    policy: Option<AnyPolicy>,
    options: Option<Bound<'_, PyAny>>,
    now: Option<&Now>,
    keywords: Option<Bound<'_, PyDict>>,
) -> PyResult<Request> {
    let request = Wishes::new(py, options, keywords.filter(|keywords| !keywords.is_empty()))?.request(policy)?;
    if request.asks(now) {
        vms.into_iter().try_for_each(|vm| vm.ask(py))?;
    }
    Ok(request)
}

/// Plans the restore of each checkpoint into its VM: a `Plan` each.
#[pyfunction]
pub(crate) fn _each_plan<'py>(
    py: Python<'py>,
    vms: Vec<Bound<'py, PyGuestVm>>,
    checkpoints: Vec<Bound<'py, PyCheckpoint>>,
    policy: Option<AnyPolicy>,
    options: Option<Bound<'py, PyAny>>,
    now: Option<AnyNow>,
    keywords: Option<Bound<'py, PyDict>>,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
) -> PyResult<Sorted<'py>> {
    let (vms, now) = (shared(&vms), now.map(|now| now.0));
    let request = request(py, vms.clone(), policy, options, now.as_ref(), keywords)?;
    let checkpoints: Vec<_> = checkpoints.iter().map(|checkpoint| &checkpoint.get().0).collect();
    let plan = |vm: &dyn Verbs, at: usize| vm.plan(checkpoints[at], request);
    let results = each(py, threads, false, vms, now.as_ref(), plan);
    sorted(py, results, |at, plan| Ok(Py::new(py, PyPlan::new(plan, Arc::clone(checkpoints[at])))?.into_any()))
}

/// Steps of one of many restores.
struct Steps<'a, 'b> {
    of: &'b PyRestore,
    progress: &'b mut Progress,
    job: Job<'a, Option<Box<Report>>>,
}

/// Makes steps, each for all restores before the next, and none for one that has failed. After a failed `close`, and with
/// `stop` after any failure, no step is begun. Returns the last that was.
fn make(threads: NonZeroUsize, stop: bool, all: &mut [Steps<'_, '_>], stages: &[Stage], at: Option<Stamp>) -> Stage {
    let mut last = Stage::Close;
    for stage in stages {
        last = *stage;
        let stop = stop || last == Stage::Close;
        spread(threads, stop, all, |Steps { of, progress, job }| job.carry_out(|vm| progress.step(of, vm, last, at)));
        if stop && all.iter().any(|steps| steps.job.vm.is_none()) {
            break;
        }
    }
    last
}

/// Results of steps by the restore's place: a report each after the release.
type Made = Vec<Option<PyResult<Option<Py<PyReport>>>>>;

/// Takes note of releases, and tells whoever watches.
fn took(
    py: Python<'_>,
    restores: &[&PyRestore],
    made: impl IntoIterator<Item = Option<Result<Option<Box<Report>>, Failure>>>,
) -> Made {
    let made = raised(made).into_iter().zip(restores);
    let took: Vec<_> = made
        .map(|(made, restore)| made.map(|made| made.and_then(|report| restore.lock(py).took(restore, py, report))))
        .collect();
    let took = took.into_iter().zip(restores);
    took.map(|(made, restore)| made.map(|made| restore.watched(py, made))).collect()
}

/// Makes steps of restores: all without the interpreter's lock in between, unless a counter is read in Python before each.
fn make_steps(
    py: Python<'_>,
    threads: NonZeroUsize,
    stop: bool,
    restores: &[&PyRestore],
    stages: &[Stage],
    at: Option<Stamp>,
    now: Option<&Now>,
) -> (Made, Stage) {
    let in_python = restores.iter().any(|restore| restore.vm.samples_in_python(now));
    let mut made: Vec<_> = restores.iter().map(|_| None).collect();
    let mut last = Stage::Close;
    for stages in stages.chunks(if in_python { 1 } else { stages.len().max(1) }) {
        // Before the locks, since it may run Python code of a counter.
        let jobs = restores.iter().zip(made).map(|(of, made)| match made {
            Some(Err(_)) => Job { vm: None, made },
            _ => Job::new(py, &of.vm, if stages[0].begins() { of.now.as_ref() } else { now }),
        });
        let jobs: Vec<_> = jobs.collect();
        let mut progress: Vec<_> = restores.iter().map(|restore| restore.lock(py)).collect();
        let steps = restores.iter().zip(&mut progress).zip(jobs);
        let mut steps: Vec<_> = steps.map(|((of, progress), job)| Steps { of, progress, job }).collect();
        last = detached(py, || make(threads, stop, &mut steps, stages, at));
        let failed = steps.iter().any(|steps| steps.job.vm.is_none());
        made = steps.into_iter().map(|steps| steps.job.made).collect();
        if (stop || last == Stage::Close) && failed {
            break;
        }
    }
    (took(py, restores, made), last)
}

fn stages(names: &[String]) -> PyResult<Vec<Stage>> {
    names.iter().map(|name| named("stage", name, &Stage::NAMES)).collect()
}

fn reports(py: Python<'_>, (made, last): (Made, Stage)) -> PyResult<(Sorted<'_>, &'static str)> {
    let sorted = sorted(py, made, |_, report| Ok(report.map_or_else(|| py.None(), Py::into_any)))?;
    Ok((sorted, last.name()))
}

/// Plans restores, and makes steps of them where none is refused: a `Restore` each and what `_each_step` returns, or what
/// `_each_plan` does.
#[pyfunction]
pub(crate) fn _each_restore<'py>(
    py: Python<'py>,
    vms: Vec<Bound<'py, PyGuestVm>>,
    checkpoints: Vec<Bound<'py, PyCheckpoint>>,
    policy: Option<AnyPolicy>,
    options: Option<Bound<'py, PyAny>>,
    now: Option<AnyNow>,
    keywords: Option<Bound<'py, PyDict>>,
    stages: Vec<String>,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
    stop: bool,
) -> PyResult<(Vec<Py<PyRestore>>, Sorted<'py>, &'static str)> {
    let (stages, now) = (self::stages(&stages)?, now.map(|now| now.0));
    let (vms, now) = (shared(&vms), now.as_ref());
    let request = request(py, vms.clone(), policy, options, now, keywords)?;
    let checkpoints: Vec<_> = checkpoints.iter().map(|checkpoint| &checkpoint.get().0).collect();
    let in_python = vms.clone().any(|vm| vm.samples_in_python(now));
    let mut jobs = jobs(py, vms.clone(), now);
    let shared: Vec<_> = vms.collect();
    let planned = detached(py, || {
        spread(threads, false, &mut jobs, |(at, job)| job.carry_out(|vm| vm.plan(checkpoints[*at], request)));
        if jobs.iter().any(|(_, job)| job.vm.is_none()) {
            return Err(jobs.into_iter().map(|(_, job)| job.made).collect::<Vec<_>>());
        }
        let (mut restores, mut at_hand) = (Vec::new(), Vec::new());
        for (at, job) in jobs {
            if let Some(Ok(plan)) = job.made {
                restores.push(PyRestore::new(plan, Arc::clone(checkpoints[at]), Arc::clone(shared[at]), now.cloned()));
                at_hand.push(Job { vm: job.vm, made: None });
            }
        }
        let steps = if in_python { [].as_slice() } else { &stages };
        let mut progress: Vec<_> = restores.iter().map(PyRestore::progress).collect();
        let all = restores.iter().zip(&mut progress).zip(at_hand);
        let mut all: Vec<_> = all.map(|((of, progress), job)| Steps { of, progress, job }).collect();
        let last = make(threads, stop, &mut all, steps, None);
        let made: Vec<_> = all.into_iter().map(|steps| steps.job.made).collect();
        drop(progress);
        Ok((restores, made, last))
    });
    let (restores, made, last) = match planned {
        Ok(planned) => planned,
        Err(results) => {
            return Ok((Vec::new(), sorted(py, raised(results), |_, _: Plan| Ok(py.None()))?, ""));
        }
    };
    let of: Vec<_> = restores.iter().collect();
    let done =
        if in_python { make_steps(py, threads, stop, &of, &stages, None, now) } else { (took(py, &of, made), last) };
    let (sorted, last) = reports(py, done)?;
    let restores = restores.into_iter().map(|restore| Py::new(py, restore));
    Ok((restores.collect::<PyResult<_>>()?, sorted, last))
}

/// Makes steps of each restore ("close", "prepare", "apply", "release"), one for all before the next: a `Report` each after
/// the release, else None; and the step that was begun last.
#[pyfunction]
#[pyo3(signature = (restores, stages, threads, *, stop, at=None, now=None))]
pub(crate) fn _each_step<'py>(
    py: Python<'py>,
    restores: Vec<Bound<'py, PyRestore>>,
    stages: Vec<String>,
    #[pyo3(from_py_with = at_least_1)] threads: NonZeroUsize,
    stop: bool,
    at: Option<AnyStamp>,
    now: Option<AnyNow>,
) -> PyResult<(Sorted<'py>, &'static str)> {
    let stages = self::stages(&stages)?;
    let (at, now) = (at.map(|at| at.stamp("at")).transpose()?, now.map(|now| now.0));
    let restores: Vec<_> = restores.iter().map(Bound::get).collect();
    reports(py, make_steps(py, threads, stop, &restores, &stages, at, now.as_ref()))
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
    let results = each(py, threads, true, shared(&vms), None, |vm, _| vm.pause(request));
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
    // Before the locks, since it may run Python code of a counter.
    let jobs = jobs(py, pauses.iter().map(|pause| &pause.get().vm), None);
    let mut states: Vec<_> = pauses.iter().map(|pause| pause.get().lock(py)).collect();
    let results = {
        let open: Vec<_> = states.iter().map(|state| state.paused()).collect();
        all(py, threads, false, jobs, |vm, at| vm.resume(open[at].ok_or_else(is_over)?, policy))
    };
    let took = results.into_iter().zip(&mut states);
    let took: Vec<_> =
        took.map(|(result, state)| result.map(|result| result.and_then(|report| state.took(py, report)))).collect();
    drop(states);
    let results = took.into_iter().zip(&pauses);
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
    let expected: Vec<_> = given.iter().map(|given| AnyGiven::expected(given.as_ref())).collect();
    let results = each(py, threads, false, shared(&vms), now.as_ref(), |vm, at| vm.verify(expected[at]));
    sorted(py, results, |_, verified| Ok(records::verified(py, &verified)?.unbind()))
}
