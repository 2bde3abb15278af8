//! Columns without a bank: conversions, and the offsets of many VMs.

use crate::arguments::Int;
use crate::arrays::{Input, extent, input, output, same_rows, writable};
use crate::errors::went_backwards;
use guestclock_core::time::{Frequency, HostCount};
use guestclock_model::bank::{
    Added, Isa, Rate, Saved, Scale, WentBackwards, convert, convert_mixed, recompute_offsets,
};
use numpy::PyArrayDyn;
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use std::collections::HashMap;

/// The environment variable that names an instruction set.
const ISA: &str = "GUESTCLOCK_ISA";

/// The instruction set of batch calls: the widest that the CPU has, or the one that the environment names.
pub(crate) fn chosen_isa(py: Python<'_>) -> PyResult<Isa> {
    static CHOSEN: PyOnceLock<Isa> = PyOnceLock::new();
    let chosen = CHOSEN.get_or_try_init(py, || match std::env::var(ISA) {
        Ok(name) => Isa::named(&name).map_err(|error| PyValueError::new_err(format!("{ISA}: {error}"))),
        Err(_) => Ok(Isa::best()),
    });
    chosen.copied()
}

/// The instruction set that batches are computed on: "baseline", "avx2" or "avx512".
///
/// By default the widest that the CPU has. The environment variable GUESTCLOCK_ISA names another, and is read once;
/// ValueError for a set that the CPU hasn't.
#[pyfunction]
pub(crate) fn isa(py: Python<'_>) -> PyResult<&'static str> {
    Ok(chosen_isa(py)?.name())
}

fn frequency(hz: u64) -> PyResult<Frequency> {
    Frequency::new(hz).ok_or_else(|| PyValueError::new_err("a frequency must be at least 1 Hz"))
}

/// One number for all rows, or an array with one each.
pub(crate) enum OneOrEach<'py> {
    One(u64),
    Each(Bound<'py, PyAny>),
}

impl<'py> FromPyObject<'_, 'py> for OneOrEach<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(object.extract().map_or_else(|_: PyErr| Self::Each(object.to_owned()), |Int(number)| Self::One(number)))
    }
}

/// Numbers the distinct values of a column, by a table that is indexed by a product's upper bits.
///
/// Looking a number up in the standard library's map takes longer than converting it. A map is used only for values
/// that the table has no room for.
struct Distinct {
    values: Vec<u64>,
    table: [(u64, u16); 1 << Self::BITS],
    others: HashMap<u64, u16>,
}

impl Distinct {
    const BITS: u32 = 6;
    /// Odd, and near 2^64 divided by the golden ratio: numbers that are near each other land far apart.
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

    fn new() -> Self {
        Self { values: Vec::new(), table: [(0, 0); 1 << Self::BITS], others: HashMap::new() }
    }

    /// The number of a value, which isn't 0; `None` where there are no more numbers.
    #[inline]
    fn number_of(&mut self, value: u64) -> Option<u16> {
        let place = (value.wrapping_mul(Self::FACTOR) >> (u64::BITS - Self::BITS)) as usize;
        if self.table[place].0 == value { Some(self.table[place].1) } else { self.other(place, value) }
    }

    #[cold]
    fn other(&mut self, place: usize, value: u64) -> Option<u16> {
        if let Some(number) = self.others.get(&value) {
            return Some(*number);
        }
        let number = u16::try_from(self.values.len()).ok()?;
        self.values.push(value);
        if self.table[place].0 == 0 {
            self.table[place] = (value, number);
        } else {
            self.others.insert(value, number);
        }
        Some(number)
    }
}

fn converted<'py>(
    py: Python<'py>,
    what: &str,
    column: &Bound<'py, PyAny>,
    hz: OneOrEach<'py>,
    out: Option<&Bound<'py, PyAny>>,
    scale: impl Fn(Frequency) -> Scale,
) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
    let (isa, from) = (chosen_isa(py)?, input::<u64>(column, what)?);
    let rows = from.as_slice().len();
    let (mut scales, mut of, mut taken) = (Vec::new(), Vec::new(), vec![from.bytes.clone()]);
    match hz {
        OneOrEach::One(hz) => scales.push(scale(frequency(hz)?)),
        OneOrEach::Each(array) => {
            let each = input::<u64>(&array, "frequency_hz (or one int)")?;
            same_rows(what, rows, "frequency_hz", each.as_slice().len())?;
            taken.push(each.bytes.clone());
            let mut distinct = Distinct::new();
            let many = || PyValueError::new_err("more than 65 536 different frequencies: convert the column in parts");
            of.reserve(rows);
            for &hz in each.as_slice() {
                frequency(hz)?;
                of.push(distinct.number_of(hz).ok_or_else(many)?);
            }
            scales = distinct.values.into_iter().map(|hz| frequency(hz).map(&scale)).collect::<PyResult<_>>()?;
        }
    }
    let array = output::<u64>(py, out, &[rows], &taken)?;
    let mut column = writable(&array)?;
    let to = column.as_slice_mut()?;
    if of.is_empty() && !scales.is_empty() {
        convert(isa, scales[0], from.as_slice(), to);
    } else {
        convert_mixed(isa, &scales, &of, from.as_slice(), to);
    }
    Ok(array)
}

/// `floor(ticks * 10^9 / frequency_hz)`, exact, held at 2^64 - 1: uint64 columns of shape (n,).
///
/// `frequency_hz` is one int for all rows, or a uint64 array, one a row. `out` is as in `ClockBank`.
#[pyfunction]
#[pyo3(signature = (ticks, frequency_hz, *, out=None))]
pub(crate) fn ticks_to_ns<'py>(
    py: Python<'py>,
    ticks: Bound<'py, PyAny>,
    frequency_hz: OneOrEach<'py>,
    out: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
    converted(py, "ticks", &ticks, frequency_hz, out.as_ref(), Scale::ticks_to_ns)
}

/// `floor(ns * frequency_hz / 10^9)`, exact, held at 2^64 - 1: uint64 columns of shape (n,).
///
/// `frequency_hz` is one int for all rows, or a uint64 array, one a row. `out` is as in `ClockBank`.
#[pyfunction]
#[pyo3(signature = (ns, frequency_hz, *, out=None))]
pub(crate) fn ns_to_ticks<'py>(
    py: Python<'py>,
    ns: Bound<'py, PyAny>,
    frequency_hz: OneOrEach<'py>,
    out: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyArrayDyn<u64>>> {
    converted(py, "ns", &ns, frequency_hz, out.as_ref(), Scale::ns_to_ticks)
}

type Recomputed<'py> = (Bound<'py, PyArrayDyn<u64>>, Bound<'py, PyArrayDyn<u64>>);

/// Computes the offsets under which many saved guests go on at one instant, and the ticks that are added to their
/// counters: two uint64 arrays of shape (n,). It is the arithmetic of a plan and its release, a row each VM, for each
/// counter of a guest by itself.
///
/// The arguments are columns of n rows. `guest` and `host` (uint64) are the guest's counter and the host's count at the
/// checkpoint. `added` (uint8, of `Added`) says what is added. `elapsed_ns` is the elapsed time in nanoseconds where it
/// is given, and `max_ns` the most that is added (uint64; a row may have anything in a column that it makes no use of).
/// `frequency` (uint16) is the row's index into `frequencies_hz` (uint64). `now` is the count of the host's counter, or
/// a uint64 array with a count for each frequency. `out` is a tuple of two arrays, else as in `ClockBank`.
/// ClockWentBackwards for a row that goes by its counter, if that counter went backwards. `plan` says how far off the
/// time may be.
#[pyfunction]
#[pyo3(signature = (now, guest, host, added, elapsed_ns, max_ns, frequency, frequencies_hz, *, out=None))]
#[pyo3(name = "recompute_offsets")]
pub(crate) fn recompute<'py>(
    py: Python<'py>,
    now: OneOrEach<'py>,
    guest: Bound<'py, PyAny>,
    host: Bound<'py, PyAny>,
    added: Bound<'py, PyAny>,
    elapsed_ns: Bound<'py, PyAny>,
    max_ns: Bound<'py, PyAny>,
    frequency: Bound<'py, PyAny>,
    frequencies_hz: Bound<'py, PyAny>,
    out: Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
) -> PyResult<Recomputed<'py>> {
    let isa = chosen_isa(py)?;
    let (guest, host) = (input::<u64>(&guest, "guest")?, input::<u64>(&host, "host")?);
    let (elapsed_ns, max_ns) = (input::<u64>(&elapsed_ns, "elapsed_ns")?, input::<u64>(&max_ns, "max_ns")?);
    let (added, rate) = (input::<u8>(&added, "added")?, input::<u16>(&frequency, "frequency")?);
    let rows = guest.as_slice().len();
    let others = [("host", &host), ("elapsed_ns", &elapsed_ns), ("max_ns", &max_ns)];
    others.into_iter().try_for_each(|(name, column)| same_rows("guest", rows, name, column.as_slice().len()))?;
    same_rows("guest", rows, "added", added.as_slice().len())?;
    same_rows("guest", rows, "frequency", rate.as_slice().len())?;
    let rates = rates(&now, &frequencies_hz)?;
    if let Some(unknown) = rate.as_slice().iter().copied().max().filter(|last| usize::from(*last) >= rates.len()) {
        let message = format!("frequency {unknown} isn't among the {} of frequencies_hz", rates.len());
        return Err(PyIndexError::new_err(message));
    }
    if let Some(unknown) = added.as_slice().iter().copied().max().filter(|last| Added::numbered(*last).is_none()) {
        return Err(PyValueError::new_err(format!("added has {unknown}, which is no Added")));
    }
    let kinds: Vec<Added> = added.as_slice().iter().map(|it| Added::numbered(*it).unwrap_or(Added::Nothing)).collect();
    let mut taken: Vec<_> = others.iter().map(|(_, column)| column.bytes.clone()).collect();
    taken.extend([guest.bytes.clone(), added.bytes.clone(), rate.bytes.clone()]);
    let offsets = output::<u64>(py, out.as_ref().map(|out| &out.0), &[rows], &taken)?;
    taken.push(extent(&offsets));
    let ticks = output::<u64>(py, out.as_ref().map(|out| &out.1), &[rows], &taken)?;
    let (mut to_offsets, mut to_ticks) = (writable(&offsets)?, writable(&ticks)?);
    let saved = Saved {
        guest: guest.as_slice(),
        host: host.as_slice(),
        added: &kinds,
        elapsed_ns: elapsed_ns.as_slice(),
        max_ns: max_ns.as_slice(),
        rate: rate.as_slice(),
    };
    recompute_offsets(isa, &rates, saved, to_offsets.as_slice_mut()?, to_ticks.as_slice_mut()?).map_err(
        |WentBackwards { row }| {
            let now = rates[usize::from(rate.as_slice()[row])].now();
            went_backwards(row, host.as_slice()[row], now.0)
        },
    )?;
    Ok((offsets, ticks))
}

fn rates(now: &OneOrEach<'_>, frequencies_hz: &Bound<'_, PyAny>) -> PyResult<Vec<Rate>> {
    let hz = input::<u64>(frequencies_hz, "frequencies_hz")?;
    let counts: Input<'_, u64>;
    let counts = match now {
        OneOrEach::One(now) => vec![*now; hz.as_slice().len()],
        OneOrEach::Each(array) => {
            counts = input(array, "now (or one int)")?;
            same_rows("frequencies_hz", hz.as_slice().len(), "now", counts.as_slice().len())?;
            counts.as_slice().to_vec()
        }
    };
    let rates = hz.as_slice().iter().zip(counts);
    rates.map(|(hz, now)| Ok(Rate::new(HostCount(now), frequency(*hz)?))).collect()
}
