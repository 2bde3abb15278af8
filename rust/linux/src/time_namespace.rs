//! The time namespace of this process, which shifts the kernel's monotonic clocks (time_namespaces(7)).
//!
//! The kernel adds one offset to CLOCK_MONOTONIC, its coarse form and CLOCK_MONOTONIC_RAW, and another to CLOCK_BOOTTIME
//! and its alarm (`timens_add_monotonic` and `timens_add_boottime`, include/linux/time_namespace.h). CLOCK_REALTIME, the
//! TSC and CNTVCT_EL0 have none. The offsets are constant for a process: they can be written only before the first
//! process is in the namespace. Only a process that enters another namespace (setns(2), or a child after unshare(2)) has
//! others, and opens its counters anew.

use guestclock_core::time::{Frequency, NS_PER_S, NamespaceTicks};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::{fs, path::Path};

/// The initial time namespace: PROC_TIME_INIT_INO of include/linux/proc_ns.h.
const INITIAL: &str = "time:[4026531834]";

/// Nanoseconds that a time namespace adds to the clocks of its processes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct TimeNamespace {
    /// Nanoseconds added to CLOCK_MONOTONIC and CLOCK_MONOTONIC_RAW.
    pub monotonic_ns: i64,
    /// Nanoseconds added to CLOCK_BOOTTIME.
    pub boottime_ns: i64,
}

impl TimeNamespace {
    /// The initial namespace, which adds nothing.
    pub const INITIAL: Self = Self { monotonic_ns: 0, boottime_ns: 0 };

    /// Reads the offsets of this process's own namespace; `None` where they can't be known.
    ///
    /// They can't where /proc isn't mounted or may not be read, and in a process whose children are in another namespace
    /// (`unshare(CLONE_NEWTIME)`) unless its own is the initial one: /proc/self/timens_offsets has the children's.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        Self::known(
            fs::read_link("/proc/self/ns/time"),
            || Path::new("/proc/self/ns").is_dir(),
            || fs::read_link("/proc/self/ns/time_for_children"),
            || fs::read_to_string("/proc/self/timens_offsets"),
        )
    }

    /// Returns the namespace, from the two links and the text of the offsets. `namespaces` says whether the kernel shows
    /// namespaces at all.
    fn known(
        own: io::Result<PathBuf>,
        namespaces: impl FnOnce() -> bool,
        children: impl FnOnce() -> io::Result<PathBuf>,
        offsets: impl FnOnce() -> io::Result<String>,
    ) -> Option<Self> {
        let own = match own {
            Ok(own) => own,
            // A kernel before 5.6, or without CONFIG_TIME_NS: it has one set of clocks.
            Err(error) if error.kind() == ErrorKind::NotFound && namespaces() => return Some(Self::INITIAL),
            Err(_) => return None,
        };
        if own.as_os_str() == INITIAL {
            return Some(Self::INITIAL);
        }
        if children().ok()? != own {
            return None;
        }
        Self::parse(&offsets().ok()?)
    }

    /// Parses the text of /proc/self/timens_offsets: lines of a clock's name, seconds and nanoseconds.
    fn parse(text: &str) -> Option<Self> {
        let (mut monotonic, mut boottime) = (None, None);
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace();
            let (clock, s, ns) = (fields.next()?, fields.next()?, fields.next()?);
            let offset = match clock {
                "monotonic" => &mut monotonic,
                "boottime" => &mut boottime,
                _ => return None,
            };
            let (s, ns) = (s.parse::<i64>().ok()?, ns.parse::<i64>().ok()?);
            let sum = s.checked_mul(NS_PER_S.cast_signed())?.checked_add(ns)?;
            if fields.next().is_some() || offset.replace(sum).is_some() {
                return None;
            }
        }
        Some(Self { monotonic_ns: monotonic?, boottime_ns: boottime? })
    }

    /// Returns the ticks that the namespace adds to CLOCK_MONOTONIC at this frequency, rounded down.
    #[must_use]
    pub fn ticks(self, frequency: Frequency) -> NamespaceTicks {
        #[expect(clippy::cast_possible_truncation, reason = "a count is modulo 2^64, and so is a distance of counts")]
        NamespaceTicks(self.scaled(frequency).div_euclid(i128::from(NS_PER_S)) as i64)
    }

    /// Returns whether those ticks are whole, so that nothing was rounded.
    #[must_use]
    pub fn is_whole(self, frequency: Frequency) -> bool {
        self.scaled(frequency).rem_euclid(i128::from(NS_PER_S)) == 0
    }

    /// Returns the product, in billionths of a tick.
    fn scaled(self, frequency: Frequency) -> i128 {
        i128::from(self.monotonic_ns) * i128::from(frequency.hz())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OWN: &str = "time:[4026532290]";
    const OFFSETS: &str = "monotonic        1000         0\nboottime         -2 500000000\n";
    const SHIFTED: TimeNamespace = TimeNamespace { monotonic_ns: 1_000 * 1_000_000_000, boottime_ns: -1_500_000_000 };

    fn link(text: &str) -> PathBuf {
        PathBuf::from(text)
    }

    fn failed<T>(kind: ErrorKind) -> io::Result<T> {
        Err(kind.into())
    }

    fn known(own: io::Result<PathBuf>, children: &str, offsets: &str) -> Option<TimeNamespace> {
        TimeNamespace::known(own, || true, || Ok(link(children)), || Ok(offsets.to_owned()))
    }

    #[test]
    fn offsets_are_those_of_the_own_namespace() {
        assert_eq!(known(Ok(link(OWN)), OWN, OFFSETS), Some(SHIFTED));
        // The offsets are the children's, and the initial namespace has none.
        assert_eq!(known(Ok(link(INITIAL)), OWN, OFFSETS), Some(TimeNamespace::INITIAL));
        assert_eq!(known(Ok(link(OWN)), "time:[4026532291]", OFFSETS), None);
        assert_eq!(known(Ok(link(OWN)), INITIAL, OFFSETS), None);
    }

    #[test]
    fn a_kernel_without_time_namespaces_has_none() {
        let without = |kind, namespaces| {
            TimeNamespace::known(failed(kind), || namespaces, || failed(kind), || failed(ErrorKind::NotFound))
        };
        assert_eq!(without(ErrorKind::NotFound, true), Some(TimeNamespace::INITIAL));
        assert_eq!(without(ErrorKind::NotFound, false), None, "/proc isn't mounted");
        assert_eq!(without(ErrorKind::PermissionDenied, true), None);
    }

    #[test]
    fn offsets_that_cannot_be_read_are_unknown() {
        let with = |children: io::Result<PathBuf>, offsets: io::Result<String>| {
            TimeNamespace::known(Ok(link(OWN)), || true, || children, || offsets)
        };
        assert_eq!(with(Ok(link(OWN)), failed(ErrorKind::PermissionDenied)), None);
        assert_eq!(with(failed(ErrorKind::NotFound), Ok(OFFSETS.to_owned())), None);
        for text in [
            "",
            "monotonic 1 0\n",
            "monotonic 1 0\nmonotonic 1 0\n",
            "monotonic 1 0\nboottime 1\n",
            "monotonic 1 0\nboottime 1 0 0\n",
            "monotonic 1 0\nboottime 1 x\n",
            "monotonic 1 0\nboottime 1 0\nrealtime 1 0\n",
            "monotonic 9223372037 0\nboottime 1 0\n",
        ] {
            assert_eq!(TimeNamespace::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn ticks_are_rounded_down() {
        let hz = |hz| Frequency::new(hz).unwrap();
        let of = |monotonic_ns| TimeNamespace { monotonic_ns, ..TimeNamespace::INITIAL };
        for (ns, frequency, ticks, whole) in [
            (1_000, 1_000_000_000, 1_000, true),
            (-1, 1_000_000_000, -1, true),
            (32, 62_500_000, 2, true),
            (47, 62_500_000, 2, false),
            (-1, 62_500_000, -1, false),
            (-16, 62_500_000, -1, true),
        ] {
            let namespace = of(ns);
            assert_eq!((namespace.ticks(hz(frequency)).0, namespace.is_whole(hz(frequency))), (ticks, whole), "{ns}");
        }
    }

    proptest! {
        #[test]
        fn a_stamps_count_is_less_than_a_tick_ahead_of_the_host_wide_clocks(
            host_ns in 0..1_u64 << 62,
            offset_ns in -(1_i64 << 61)..1 << 61,
            hz in prop::sample::select(vec![1, 1_000, 24_000_000, 62_500_000, 83_333_333, 1_000_000_000]),
        ) {
            // The kernel allows no offset that makes a clock negative.
            let own_ns = i128::from(host_ns) + i128::from(offset_ns);
            prop_assume!(own_ns >= 0);
            let frequency = Frequency::new(hz).unwrap();
            let count = |ns: i128| ns * i128::from(hz) / i128::from(NS_PER_S);
            let namespace = TimeNamespace { monotonic_ns: offset_ns, ..TimeNamespace::INITIAL };
            let stamped = count(own_ns) - i128::from(namespace.ticks(frequency).0);
            let ahead = stamped - count(host_ns.into());
            prop_assert!(ahead == 0 || ahead == 1 && !namespace.is_whole(frequency), "{ahead}");
        }
    }

    #[test]
    fn this_process_is_in_a_namespace() {
        // Whatever the kernel, /proc is mounted where tests run.
        assert!(TimeNamespace::of_this_process().is_some());
    }
}
