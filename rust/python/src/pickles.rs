//! Plans and reports as pickles: the values that they were made of, from which they are made again.

use crate::arguments::quoted;
use crate::checkpoint::PyCheckpoint;
use crate::errors::{IntoPyErr, OrRaise};
use guestclock_core::checkpoint::{Checkpoint, codec};
use guestclock_core::drive::OperationError;
use guestclock_core::restore::{Plan, PlanState, Released};
use guestclock_model::error::VmError;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::sync::Arc;

/// Version whose pickles can be read: any other may conclude something else from the same values.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Version, values, their CRC-32C, and the checkpoint of a VM that was restored.
pub(crate) type State<'py> = (&'static str, Bound<'py, PyBytes>, u32, Option<PyCheckpoint>);

/// Values of a plan, and what its report says besides.
type Values = (PlanState, Option<Released>);

/// Returns the arguments of [`again`].
pub(crate) fn state<'py>(
    py: Python<'py>,
    plan: &Plan,
    released: Option<Released>,
    checkpoint: Option<&Arc<Checkpoint>>,
) -> PyResult<State<'py>> {
    let values: Values = (PlanState::of(plan), released);
    let values = minicbor_serde::to_vec(&values).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let checkpoint = checkpoint.map(|checkpoint| PyCheckpoint(Arc::clone(checkpoint)));
    Ok((VERSION, PyBytes::new(py, &values), codec::crc32c(&values), checkpoint))
}

/// Makes a plan again. ValueError for the values of another version, and for damaged ones.
pub(crate) fn again(
    version: &str,
    values: &[u8],
    checksum: u32,
    checkpoint: Option<&Checkpoint>,
) -> PyResult<(Plan, Option<Released>)> {
    if version != VERSION {
        return Err(PyValueError::new_err(format!(
            "the pickle is of guestclock {}, and this is {VERSION}: plans and reports are read by the version that wrote \
             them, checkpoints and to_dict() by any",
            quoted(version)
        )));
    }
    let damaged = || PyValueError::new_err("the pickle of a plan or report is damaged");
    if codec::crc32c(values) != checksum {
        return Err(damaged());
    }
    let (state, released): Values = minicbor_serde::from_slice(values).map_err(|_| damaged())?;
    let vm = checkpoint.map(Checkpoint::only).transpose().or_raise()?;
    let saved = state.saved(vm.as_ref()).ok_or_else(damaged)?;
    let plan = state.plan(&saved).map_err(|refusal| OperationError::<VmError>::from(refusal).into_pyerr())?;
    Ok((plan, released))
}
