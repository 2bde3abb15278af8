//! bindings
use pyo3::prelude::*;

/// The native module.
#[pymodule]
mod _core {
    #[pymodule_export]
    const X: u64 = 1;
}
