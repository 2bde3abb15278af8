"""The testbed: arm64 kernels with a real /dev/kvm, booted on any x86 machine."""
