//! The offer of /dev/kvm, for people (Documentation/virt/kvm/api.rst). No VM is created for it.

use crate::kvm::capability::{api_version, check_extension};
use kvm_bindings::{KVM_API_VERSION, KVM_CAP_ARM_USER_IRQ, KVM_CAP_COUNTER_OFFSET};
use std::env::consts::ARCH;
use std::fs::File;
use std::io;
use std::path::Path;

/// Number that kvm-bindings 0.14 lacks, since its headers are older (include/uapi/linux/kvm.h, Linux 6.16).
const KVM_CAP_ARM_EL2: u32 = 240;

/// Availability of a feature, with the reason.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct Support {
    /// `None` where it can't be found out.
    pub ok: Option<bool>,
    /// A sentence for people.
    pub reason: String,
}

impl Support {
    fn yes(reason: impl Into<String>) -> Self {
        Self { ok: Some(true), reason: reason.into() }
    }

    fn no(reason: impl Into<String>) -> Self {
        Self { ok: Some(false), reason: reason.into() }
    }

    fn unknown(reason: impl Into<String>) -> Self {
        Self { ok: None, reason: reason.into() }
    }
}

/// KVM's answers.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct KvmProbe {
    /// The architecture this program was built for, which is that of its KVM: `aarch64`, `x86_64`.
    pub arch: &'static str,
    /// KVM_GET_API_VERSION; `None` where KVM couldn't be asked. It is 12 for good.
    pub api_version: Option<i32>,
    /// /dev/kvm can be opened, and answers as KVM.
    pub device: Support,
    /// KVM_CAP_COUNTER_OFFSET: one VM-wide offset for both counters.
    pub counter_offset: Support,
    /// KVM_CAP_ARM_EL2: guests may have EL2, and with it a CNTVOFF_EL2 of their own.
    pub el2: Support,
    /// KVM_CAP_ARM_USER_IRQ: timer lines are reported to a VMM that has its own interrupt controller.
    pub user_irq: Support,
}

/// Asks /dev/kvm.
#[must_use]
pub fn probe() -> KvmProbe {
    probe_at(Path::new("/dev/kvm"), ARCH)
}

fn probe_at(path: &Path, arch: &'static str) -> KvmProbe {
    let kvm = open(path);
    let capability = |name: &str, number, missing: &str| {
        let answer = match &kvm {
            Ok((device, _)) => check_extension(device, number).map_err(|error| error.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        judge(arch, &format!("{name} ({number})"), answer, missing)
    };
    KvmProbe {
        arch,
        api_version: kvm.as_ref().ok().map(|(_, version)| *version),
        device: match &kvm {
            Ok((_, version)) => Support::yes(format!("{} answers, API version {version}", path.display())),
            Err(reason) => Support::no(reason),
        },
        counter_offset: capability(
            "KVM_CAP_COUNTER_OFFSET",
            KVM_CAP_COUNTER_OFFSET,
            "it needs Linux 6.4; counters can be set by value only",
        ),
        el2: capability(
            "KVM_CAP_ARM_EL2",
            KVM_CAP_ARM_EL2,
            "it needs Linux 6.16, a CPU with FEAT_NV2 and kvm-arm.mode=nested",
        ),
        user_irq: capability(
            "KVM_CAP_ARM_USER_IRQ",
            KVM_CAP_ARM_USER_IRQ,
            "it needs Linux 4.12; timer interrupts need KVM's own interrupt controller",
        ),
    }
}

/// Opens KVM and asks for its API version, or returns the reason why there is no KVM.
fn open(path: &Path) -> Result<(File, i32), String> {
    let device = File::options().read(true).write(true).open(path).map_err(|error| not_opened(path, &error))?;
    match api_version(&device) {
        Ok(version) if u32::try_from(version) == Ok(KVM_API_VERSION) => Ok((device, version)),
        Ok(version) => Err(format!("{} has API version {version}, not {KVM_API_VERSION}", path.display())),
        Err(error) => Err(format!("{} doesn't answer as KVM: {error}", path.display())),
    }
}

/// Judges a capability by the answer to KVM_CHECK_EXTENSION; `missing` names its requirements.
fn judge(arch: &str, capability: &str, answer: Result<i32, String>, missing: &str) -> Support {
    if arch != "aarch64" {
        // Other architectures share the numbers, and answer 0 to those that aren't theirs: not worth showing.
        return Support::no(format!("this KVM isn't arm64's: it is {arch}'s"));
    }
    match answer {
        Ok(0) => Support::no(format!("{capability} is absent: {missing}")),
        Ok(value) => Support::yes(format!("{capability} is {value}")),
        Err(reason) => Support::unknown(format!("{capability} can't be asked for: {reason}")),
    }
}

fn not_opened(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path} doesn't exist: no KVM in this kernel, or not in this container"),
        io::ErrorKind::PermissionDenied => format!("{path} may not be opened: is this user in its group?"),
        _ => format!("{path} can't be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_device_leaves_arm64_unknown() {
        let probe = probe_at(Path::new("/nonexistent/kvm"), "aarch64");
        assert_eq!((probe.device.ok, probe.api_version), (Some(false), None));
        assert!(probe.device.reason.contains("/nonexistent/kvm doesn't exist"), "{}", probe.device.reason);
        for support in [probe.counter_offset, probe.el2, probe.user_irq] {
            assert_eq!(support.ok, None);
            assert!(support.reason.contains("/nonexistent/kvm"), "{}", support.reason);
        }
    }

    #[test]
    fn a_device_that_is_not_kvm_says_so() {
        let probe = probe_at(Path::new("/dev/null"), "aarch64");
        assert_eq!((probe.device.ok, probe.api_version), (Some(false), None));
        assert!(probe.device.reason.contains("doesn't answer as KVM"), "{}", probe.device.reason);
    }

    #[test]
    fn permission_is_told_from_absence() {
        let reason = not_opened(Path::new("/dev/kvm"), &io::ErrorKind::PermissionDenied.into());
        assert!(reason.contains("group"), "{reason}");
    }

    #[test]
    fn other_architectures_have_none_of_it_whatever_the_answer() {
        for answer in [Ok(0), Ok(1), Err("closed".to_owned())] {
            let support = judge("x86_64", "KVM_CAP_COUNTER_OFFSET (227)", answer, "");
            assert_eq!(support.ok, Some(false));
            assert!(support.reason.contains("x86_64"), "{}", support.reason);
        }
    }

    #[test]
    fn arm64_capabilities_carry_the_answer() {
        let judged = |answer| judge("aarch64", "KVM_CAP_COUNTER_OFFSET (227)", answer, "it needs Linux 6.4");
        assert_eq!(judged(Ok(1)), Support::yes("KVM_CAP_COUNTER_OFFSET (227) is 1"));
        assert_eq!(judged(Ok(0)), Support::no("KVM_CAP_COUNTER_OFFSET (227) is absent: it needs Linux 6.4"));
        let unknown = judged(Err("closed".to_owned()));
        assert_eq!(unknown, Support::unknown("KVM_CAP_COUNTER_OFFSET (227) can't be asked for: closed"));
    }

    /// On real kernels, in tests/kvm/test_probe.py.
    #[test]
    fn a_device_that_is_not_kvm_offers_nothing() {
        for path in ["/dev/null", "/dev/no-such-device"] {
            let probe = probe_at(Path::new(path), ARCH);
            assert_eq!((probe.arch, probe.device.ok, probe.api_version), (ARCH, Some(false), None));
            assert!(probe.device.reason.contains(path), "{}", probe.device.reason);
            for support in [&probe.counter_offset, &probe.el2, &probe.user_irq] {
                assert_ne!(support.ok, Some(true), "{path}: {}", support.reason);
            }
        }
    }
}
