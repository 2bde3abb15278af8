"""The model against this kernel, by random sequences of operations: lab/README.md."""

from __future__ import annotations

import os
import random

import pytest

from differential.campaign import Outcome
from differential.machine import Kvm
from differential.taking import LEG, take
from kvm_vmm import KVM_CAP_ARM_EL2

FIXED_SEED = 641_612_730
FRESH_SEED = int(os.environ.get("GUESTCLOCK_SEED") or random.randrange(2**32))  # noqa: S311
SEQUENCES = int(os.environ.get("GUESTCLOCK_SEQUENCES") or 260)
"""Of each seed: four legs take more than 2 000 of both, unless the run is a short one."""
WITH_EL2 = min(30, SEQUENCES // 2)
"""It takes the kernel a second to tear such a VM down."""

seeds = pytest.mark.parametrize("seed", [FIXED_SEED, FRESH_SEED], ids=["fixed", "fresh"])


def judged(outcome: Outcome) -> None:
    assert not outcome.divergences, "\n".join(outcome.divergences[:3])
    assert outcome.share <= 0.05
    assert outcome.tally.entered > 0


@seeds
def test_the_kernel_answers_as_the_model_does(
    request: pytest.FixtureRequest, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with capsys.disabled():
        outcome = take(
            f"differential-{request.node.callspec.id}", seed=seed, sequences=WITH_EL2 if LEG == "nested" else SEQUENCES
        )
    judged(outcome)


@seeds
def test_it_does_so_for_guests_with_el2(
    request: pytest.FixtureRequest, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Kvm()
    offers = target.machine.check_extension(KVM_CAP_ARM_EL2)
    target.close()
    if not offers:
        assert LEG != "nested"
        pytest.skip("this kernel offers no EL2 to guests")
    with capsys.disabled():
        outcome = take(f"nested-{request.node.callspec.id}", seed=seed, sequences=WITH_EL2, nested=True, vcpus=2)
    judged(outcome)
