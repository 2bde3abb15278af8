//! Errors as `anyhow` prints them: an error that has a source doesn't repeat it in its own text.

use guestclock_core::time::HostCount;
use guestclock_linux::alarm::AlarmError;
use guestclock_linux::counter::{CounterError, Source};
use guestclock_linux::kvm::descriptor::DescriptorKind;
use guestclock_linux::kvm::error::KvmError;
use guestclock_linux::kvm::number::FdNumber;
use guestclock_linux::pages::PageError;
use std::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::{fmt, io};

/// An error of two parts, as a driver or a VMM in Rust may have one.
#[derive(Debug)]
struct Outer(io::Error);

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the outer part")
    }
}

impl Error for Outer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

fn os(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

fn nested() -> io::Error {
    io::Error::other(Outer(os(libc::EMFILE)))
}

#[track_caller]
fn printed_once(error: impl Error + Send + Sync + 'static) {
    let error = anyhow::Error::new(error).context("saving the guest");
    let printed = format!("{error:#}");
    for part in error.chain() {
        let text = part.to_string();
        assert!(!text.is_empty(), "{error:?}");
        assert_eq!(printed.matches(&text).count(), 1, "{text:?} in {printed:?}");
    }
}

#[test]
fn of_alarms() {
    for error in [AlarmError::Closed, AlarmError::InUse, os(libc::EMFILE).into(), nested().into()] {
        printed_once(error);
    }
}

#[test]
fn of_counters() {
    printed_once(CounterError::Unavailable { source: Source::Tsc, reason: "the kernel itself uses hpet".to_owned() });
    printed_once(CounterError::UnknownSource("TSC".to_owned()));
}

#[test]
fn of_kvm() {
    for error in [
        KvmError::NoSuchVcpu { vcpu: 2, vcpus: 1 },
        KvmError::FrequencyTooHigh { hz: 5_000_000_000 },
        KvmError::Running { vcpu: 0 },
        KvmError::Busy { call: "KVM_GET_DEVICE_ATTR", waited_ms: 50 },
        KvmError::NoSuchOneReg { vcpu: 0, id: 0x6030_0000_0013_df1a },
        KvmError::NoCounterOffset,
        KvmError::NoVgic,
        KvmError::NoTimerIrq,
        KvmError::CountersMoved { view: "virtual" },
        KvmError::OnlyNow { count: HostCount(1) },
    ] {
        printed_once(error);
    }
    for errno in [libc::EIO, libc::ENOEXEC, libc::EPERM, libc::EBADF, libc::EINVAL, libc::ENXIO, libc::ENOTTY] {
        printed_once(KvmError::of("KVM_ARM_SET_COUNTER_OFFSET", &os(errno)));
    }
    printed_once(KvmError::of("KVM_GET_ONE_REG", &nested()));
}

#[test]
fn of_descriptors() {
    let null = File::open("/dev/null").unwrap();
    printed_once(FdNumber::new(-1).unwrap_err());
    printed_once(FdNumber::new(null.as_raw_fd()).unwrap().expect(DescriptorKind::Vm).unwrap_err());
}

#[test]
fn of_pages() {
    for error in [
        PageError::OutOfBounds { what: "a vmclock page", size: 112, offset: 4096, len: 4096 },
        PageError::Misaligned { what: "a vmclock page", offset: 4, alignment: 8, over: 4 },
        PageError::NotStolenTime { offset: 0, header: 1 },
        PageError::NotVmClock { offset: 0, magic_and_size: 1, identity: 2 },
        PageError::Region { size: 1, offset: 0, len: 4096 },
    ] {
        printed_once(error);
    }
}
