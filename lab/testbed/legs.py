"""The machines that the suite runs on: each a kernel, and how it is started."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Leg:
    """One machine: a Debian release's kernel on an emulated processor."""

    name: str
    release: str
    backports: bool = False
    cpu: str = "neoverse-n1"
    arguments: str = ""


LEGS = {
    leg.name: leg
    for leg in (
        Leg("6.1", "bookworm"),
        Leg("6.12", "trixie"),
        Leg("newest", "trixie", backports=True),
        Leg("nvhe", "trixie", arguments="kvm-arm.mode=nvhe"),
        # Nested virtualisation needs FEAT_NV2, which no named processor of the emulator's has.
        Leg("nested", "trixie", backports=True, cpu="max,pauth-impdef=on,lpa2=off", arguments="kvm-arm.mode=nested"),
    )
}
