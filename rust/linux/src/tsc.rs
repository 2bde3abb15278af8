//! The x86 time stamp counter, where the kernel trusts it and states its frequency.
//!
//! Stock kernels keep their calibration to themselves: `tsc_freq_khz` comes from kernels patched to show it, or from a
//! module. Without it the frequency could only be measured, and a measured frequency has no place in a checkpoint.
#![expect(unsafe_code, reason = "the counter is read by instructions")]

use core::arch::x86_64::{_mm_lfence, _rdtsc};
use guestclock_core::time::{Frequency, HostCount};
use std::{fs, io};

use crate::opened::Opened;

const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
const FREQUENCY: &str = "/sys/devices/system/cpu/cpu0/tsc_freq_khz";

pub(crate) fn open() -> Result<Opened, String> {
    Ok((frequency(fs::read_to_string(CLOCKSOURCE), fs::read_to_string(FREQUENCY))?, count))
}

/// The frequency, from the text of the two files.
///
/// The kernel uses the TSC as its clock source only after it has found that the counter is invariant, and synchronised
/// between CPUs (arch/x86/kernel/tsc.c, `unsynchronized_tsc`; kernel/time/clocksource.c).
fn frequency(clocksource: io::Result<String>, khz: io::Result<String>) -> Result<Frequency, String> {
    let clocksource = clocksource.map_err(|error| format!("{CLOCKSOURCE}: {error}"))?;
    if clocksource.trim_end() != "tsc" {
        return Err(format!("the kernel itself uses {}, not the TSC", clocksource.trim_end()));
    }
    let khz = khz.map_err(|error| format!("the kernel doesn't show its calibration: {FREQUENCY}: {error}"))?;
    khz.trim_end()
        .parse::<u64>()
        .ok()
        .and_then(|khz| Frequency::new(khz.checked_mul(1000)?))
        .ok_or_else(|| format!("{FREQUENCY} isn't a frequency: {:?}", khz.trim_end()))
}

fn count() -> HostCount {
    // RDTSC may be read ahead of instructions before it, and those after it ahead of it, loads too: LFENCE on either
    // side keeps its place (Intel SDM, RDTSC).
    // SAFETY: LFENCE belongs to SSE2, which every x86-64 CPU has.
    unsafe { _mm_lfence() };
    // SAFETY: every x86-64 CPU has RDTSC, and a process that made it fault (prctl PR_SET_TSC) asked for that.
    let count = unsafe { _rdtsc() };
    // SAFETY: as above.
    unsafe { _mm_lfence() };
    HostCount(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Result of reading a file: this text, or no such file.
    fn file(text: Option<&str>) -> io::Result<String> {
        text.map(str::to_owned).ok_or(io::ErrorKind::NotFound.into())
    }

    #[test]
    fn frequency_is_what_the_kernel_states() {
        let frequency = frequency(file(Some("tsc\n")), file(Some("2899999\n"))).unwrap();
        assert_eq!(frequency.hz(), 2_899_999_000);
    }

    #[test]
    fn refused_with_the_reason() {
        for (clocksource, khz, reason) in [
            (None, Some("2900000"), "current_clocksource"),
            (Some("kvm-clock\n"), Some("2900000"), "kvm-clock"),
            (Some("tsc\n"), None, "doesn't show its calibration"),
            (Some("tsc\n"), Some("0\n"), "isn't a frequency"),
            (Some("tsc\n"), Some("-1\n"), "isn't a frequency"),
            (Some("tsc\n"), Some("2900.5\n"), "isn't a frequency"),
            (Some("tsc\n"), Some("18446744073709551615\n"), "isn't a frequency"),
        ] {
            let refusal = frequency(file(clocksource), file(khz)).unwrap_err();
            assert!(refusal.contains(reason), "{refusal}");
        }
    }

    #[test]
    fn never_measured() {
        if !fs::exists(FREQUENCY).unwrap() {
            assert!(open().unwrap_err().contains("kernel"));
        }
    }

    #[test]
    fn never_backwards() {
        // The kernel vouches for the TSC only where it uses the TSC itself.
        if fs::read_to_string(CLOCKSOURCE).is_ok_and(|clocksource| clocksource == "tsc\n") {
            let counts: Vec<_> = (0..1000).map(|_| count()).collect();
            assert!(counts.is_sorted());
        }
    }
}
