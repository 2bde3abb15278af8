"""A probe of this host's KVM. `KvmVm` itself stands at the top of the package."""

from guestclock._core import kvm_probe as probe

__all__ = ["probe"]
