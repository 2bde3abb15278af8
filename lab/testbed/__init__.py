"""The testbed: arm64 and x86-64 kernels with a real /dev/kvm, booted on any x86 machine."""
