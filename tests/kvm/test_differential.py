"""The model against this kernel: docs/differential.md."""

from __future__ import annotations

import os
import platform
import random
from pathlib import Path

import pytest

from differential import trace
from differential.campaign import Outcome, matching, probe, run
from differential.generator import Shape
from differential.machine import Kvm
from guestclock import HostCounter

FIXED_SEED = 641_612_730
SEQUENCES = 220
"""Of each seed: with both, and five legs, more than 2 000."""
LEG = os.environ.get("GUESTCLOCK_LEG", "native")
OUT = Path(os.environ.get("GUESTCLOCK_OUT", "/out" if "GUESTCLOCK_LEG" in os.environ else "out/kvm/native"))
"""Where the traces go."""


def fresh_seed() -> int:
    return int(os.environ.get("GUESTCLOCK_SEED") or random.randrange(2**32))  # noqa: S311


def probed(*, nested: bool, seed: int) -> tuple[trace.Header, tuple[int, ...]]:
    """What this kernel is, by what it does; and the registers that it lists."""
    target = Kvm(nested=nested)
    found = probe(target.do, counter_offset=target.has_counter_offset())
    target.close()
    assert isinstance(found.listed, list)
    kernel = matching(found, nested=nested)
    hz = HostCounter(source="cntvct_el0").frequency_hz
    return trace.Header(LEG, platform.release(), kernel, found.stores_ctl, nested, hz, seed), tuple(found.listed)


def campaign(name: str, shapes: list[dict[str, int]], *, nested: bool, seed: int, sequences: int) -> Outcome:
    """Takes and judges sequences of these shapes, and leaves their trace in `name`."""
    header, regs = probed(nested=nested, seed=seed)
    OUT.mkdir(parents=True, exist_ok=True)
    with trace.write(OUT / f"{name}.jsonl.gz", header) as writer:
        outcome = run(lambda: Kvm(nested=nested), header, [Shape(regs, **shape) for shape in shapes], sequences, writer)  # type: ignore[arg-type]
    print(f"\n{LEG}, {'a guest with EL2' if nested else 'a plain guest'}, Linux {header.release}, as {header.kernel}")
    print(f"seed {seed}: {outcome}")
    return outcome


seeds = pytest.mark.parametrize("seed", [FIXED_SEED, fresh_seed()], ids=["fixed", "fresh"])


@seeds
def test_the_kernel_answers_as_the_model_does(seed: int) -> None:
    outcome = campaign(
        f"differential-{seed}", [{}, {}, {}, {"runs": True}], nested=False, seed=seed, sequences=SEQUENCES
    )
    assert not outcome.divergences, "\n".join(outcome.divergences[:3])
    assert outcome.share <= 0.05
    assert outcome.tally.entered > 0
