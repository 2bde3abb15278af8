"""These tests need a real arm64 /dev/kvm: `make kvm-test` brings one. Elsewhere they aren't collected.

On a leg of the testbed they always are: where it has no /dev/kvm, they fail.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

if "GUESTCLOCK_LEG" not in os.environ and not (platform.machine() == "aarch64" and Path("/dev/kvm").exists()):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def both() -> bool:
    """Whether this kernel can set both counters: before 6.4 there is no offset to set, and no way to CNTPCT."""
    from guestclock.demo import kvm_vmm

    machine = kvm_vmm.Machine(0, gic=False)
    capability = machine.check_extension(kvm_vmm.KVM_CAP_COUNTER_OFFSET)
    machine.close()
    return capability == 1
