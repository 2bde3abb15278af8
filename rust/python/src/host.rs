//! The host's facts for `guestclock doctor`.

use crate::counters::AnyCounter;
use crate::records::support;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Cost of a read of `counter`, in ns: the least of several batches, for people to look at.
#[pyfunction]
pub(crate) fn read_cost_ns(py: Python<'_>, counter: AnyCounter) -> PyResult<u64> {
    let _sample = counter.sampled(py, None)?;
    Ok(guestclock_linux::read_cost::read_cost_ns(&counter))
}

/// KVM's offer on this host: "arch", "api_version", and a `Support` each for "device", "counter_offset", "el2" and
/// "user_irq". No VM is created.
#[pyfunction]
pub(crate) fn kvm_probe(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let probe = guestclock_linux::kvm::offer::probe();
    let facts = PyDict::new(py);
    facts.set_item("arch", probe.arch)?;
    facts.set_item("api_version", probe.api_version)?;
    for (name, fact) in [
        ("device", probe.device),
        ("counter_offset", probe.counter_offset),
        ("el2", probe.el2),
        ("user_irq", probe.user_irq),
    ] {
        facts.set_item(name, support(py, fact.ok, &fact.reason)?)?;
    }
    Ok(facts)
}
