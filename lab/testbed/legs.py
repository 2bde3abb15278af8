"""The machines that the suite runs on: each a kernel, and how it is started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """The kind of processor that a machine has, by Debian's name for it, and how the emulator makes such a machine."""

    debian: str
    emulator: tuple[str, ...]
    """Packages of the emulator, and of what unpacks the kernel."""
    program: str
    machine: tuple[str, ...]
    console: str
    """The two serial lines, for the console and for files."""
    files: str
    modules: tuple[str, ...] = ()
    """Modules of the kernel that make /dev/kvm, in the order in which they are loaded."""
    python: bool = True
    """True if the machine has Python, the wheel and the work tree."""


ARM64 = Architecture(
    debian="arm64",
    emulator=("qemu-system-arm", "base-files"),
    program="qemu-system-aarch64",
    machine=("-machine", "virt,virtualization=on,gic-version=3"),
    console="ttyAMA0",
    files="ttyAMA1",
)

AMD64 = Architecture(
    debian="amd64",
    emulator=("qemu-system-x86", "base-files", "zstd"),
    program="qemu-system-x86_64",
    # A firmware that only starts the kernel. The usual one takes longer than the kernel does.
    machine=("-machine", "q35,accel=tcg", "-bios", "qboot.rom"),
    console="ttyS0",
    files="ttyS1",
    modules=("irqbypass", "kvm", "kvm-amd"),
    python=False,
)


@dataclass(frozen=True)
class Leg:
    """One machine: a Debian release's kernel on an emulated processor."""

    name: str
    release: str
    backports: bool = False
    architecture: Architecture = ARM64
    cpu: str = "neoverse-n1"
    arguments: str = ""
    guests: tuple[str, ...] = ()
    """The legs whose kernels are in the machine as guests, each as /guest/<leg>; with them goes /guest/probe."""
    timeout_s: int = 1800
    """Time that its tests may take, on a machine with other things to do."""
    icount: int | None = None
    """Nanoseconds of an instruction, as a power of 2, where its machine counts instructions: the load of this machine
    changes nothing then."""


LEGS = {
    leg.name: leg
    for leg in (
        Leg("6.1", "bookworm"),
        Leg("6.12", "trixie"),
        Leg("newest", "trixie", backports=True),
        Leg("nvhe", "trixie", arguments="kvm-arm.mode=nvhe"),
        # Nested virtualisation needs FEAT_NV2, which no named processor of the emulator's has.
        Leg("nested", "trixie", backports=True, cpu="max,pauth-impdef=on,lpa2=off", arguments="kvm-arm.mode=nested"),
        Leg("linux", "trixie", guests=("6.12", "newest"), icount=3, timeout_s=3600),
        # The kernel's watchdog takes an emulated TSC for an unstable one now and then, and KVM then keeps no offset.
        Leg("x86", "trixie", architecture=AMD64, cpu="max,+svm", arguments="tsc=reliable"),
    )
}
