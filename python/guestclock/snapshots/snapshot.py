"""Contents of another VMM's file, as far as they are about time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from guestclock._core import Checkpoint
from guestclock.registers import Reg
from guestclock.types import Reading

if TYPE_CHECKING:
    from guestclock.types import Stamp

Ids: TypeAlias = Literal["kvm", "arm"]
"""Naming of the registers: KVM's ids, or those that follow from Arm's encodings."""

_PHYSICAL: Final = frozenset({Reg.PTIMER_CNT, Reg.PTIMER_CVAL, Reg.PTIMER_CTL})
_NEEDED: Final = ("frequency_hz", "ids", "cntvct", "cntpct")


class Lack(NamedTuple):
    """A fact that a file doesn't have."""

    name: str
    """Keyword of `Snapshot.checkpoint` that supplies it: frequency_hz, ids, cntvct, cntpct or realtime_ns."""
    text: str
    """Reason why it isn't there, and what needs it."""

    @property
    def needed(self) -> bool:
        """True if there is no checkpoint without it; else only an `Advance` or `CatchUp` needs it."""
        return self.name in _NEEDED


class Contradiction(ValueError):
    """A fact that is given, and that the file has otherwise."""

    def __init__(self, name: str, said: object, found: object) -> None:
        super().__init__(name, said, found)
        self.name = name
        """Keyword of the fact."""
        self.said = said
        self.found = found

    def __str__(self) -> str:
        return f"{self.name} is given as {self.said}, and the file has {self.found}: leave it out"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Saved time of one VM in another VMM's file: registers, and the facts beside them."""

    format: str
    """Kind that was recognised: "cloud-hypervisor", "qemu" or "registers"."""
    registers: list[dict[int, int]] = field(repr=False)
    """Each vCPU's registers, by their ids."""
    ids: Ids | None = "kvm"
    """Naming of the ids; None where the file leaves it open."""
    frequency_hz: int | None = None
    """The guest's CNTFRQ_EL0, in Hz."""
    cntvct: int | None = None
    """CNTVCT_EL0 at the save, where the registers have no such count."""
    cntpct: int | None = None
    """CNTPCT_EL0 at the save, where the registers have no such count."""
    reading: Reading | None = None
    """A count of CNTVCT_EL0 and the host's wall clock of one instant."""
    realtime_ns: int | None = None
    """The host's wall clock when the counts were read, nanoseconds since 1970."""
    width_ticks: int = 0
    """Ticks by which the counts may be off, besides their distance between the vCPUs."""
    name: str = ""
    """The VM's name."""
    left_out: list[int] = field(default_factory=list)
    """Timer registers that guestclock doesn't know and that read 0 on every vCPU, by id: they aren't carried."""

    @property
    def vcpus(self) -> int:
        """Number of vCPUs."""
        return len(self.registers)

    @property
    def lacks(self) -> list[Lack]:
        """Facts that the file doesn't have, and the keywords that supply them."""
        lacks = []
        if self.frequency_hz is None:
            lacks.append(Lack("frequency_hz", "the guest's CNTFRQ_EL0 isn't in the file: KVM doesn't list it"))
        if self.ids is None:
            said = "the registers are neither certainly KVM's nor Arm's encodings as they stand"
            lacks.append(Lack("ids", f"{said}: kvm or arm"))
        else:
            # Under KVM's ids and Arm's alike, the physical count has its own encoding; the virtual one KVM exchanges.
            virtual = Reg.TIMER_CNT if self.ids == "kvm" else Reg.TIMER_CVAL
            has = {reg for registers in self.registers for reg in registers}
            # With EL2 there is one counter for both, and one count is enough.
            either = Reg.CNTVOFF_EL2 in has and (self.cntvct is not None or self.cntpct is not None)
            if virtual not in has and self.cntvct is None and not either:
                lacks.append(Lack("cntvct", "no count of CNTVCT_EL0 is in the file"))
            if Reg.PTIMER_CNT not in has and self.cntpct is None and not either:
                why = "" if has & _PHYSICAL else ", which was the host's own counter on Linux before 6.4"
                lacks.append(Lack("cntpct", f"no count of CNTPCT_EL0 is in the file{why}"))
        if self.reading is None and self.realtime_ns is None:
            why = "no wall clock of the save is in the file: Advance and CatchUp need it, or the time that has passed"
            lacks.append(Lack("realtime_ns", why))
        return lacks

    def given(
        self,
        *,
        frequency_hz: int | None = None,
        ids: Ids | None = None,
        cntvct: int | None = None,
        cntpct: int | None = None,
        realtime_ns: int | None = None,
        name: str | None = None,
    ) -> Snapshot:
        """Return the snapshot with facts that its owner knows.

        Contradiction for a fact that the file has too, and otherwise: a file isn't overruled.
        """
        said = {
            "frequency_hz": frequency_hz,
            "ids": ids,
            "cntvct": cntvct,
            "cntpct": cntpct,
            "realtime_ns": realtime_ns,
        }
        new = {fact: value for fact, value in said.items() if value is not None}
        for fact, value in new.items():
            found = getattr(self, fact)
            if found is not None and found != value:
                raise Contradiction(fact, value, found)
        if realtime_ns is not None and self.reading is not None:
            raise Contradiction("realtime_ns", realtime_ns, f"a count at {self.reading.realtime_ns}")
        # Field by field for mypy; the names are those above.
        made = replace(self, **new)  # type: ignore[arg-type]
        return made if name is None else replace(made, name=name)

    def checkpoint(
        self,
        *,
        frequency_hz: int | None = None,
        ids: Ids | None = None,
        cntvct: int | None = None,
        cntpct: int | None = None,
        realtime_ns: int | None = None,
        name: str | None = None,
        host: Stamp | None = None,
        counter_offset: int | None = None,
    ) -> Checkpoint:
        """Return the guest's time as a checkpoint, with the facts that the file lacks.

        `host` and `counter_offset` are as `Checkpoint.from_one_regs` has them: the host's stamp of the save, and the
        offset of a VM that had opted in. ValueError where something is missing (`lacks`) or contradicts the file.
        """
        made = self.given(
            frequency_hz=frequency_hz, ids=ids, cntvct=cntvct, cntpct=cntpct, realtime_ns=realtime_ns, name=name
        )
        # The host's stamp is worth a count of CNTPCT_EL0, and with the offset both.
        counted = {"cntvct", "cntpct"} if counter_offset is not None else {"cntpct"} if host is not None else set()
        missing = [lack for lack in made.lacks if lack.needed and lack.name not in counted]
        if missing or made.frequency_hz is None:
            raise ValueError("; ".join(f"{lack.text}: give {lack.name}=" for lack in missing))
        hz = made.frequency_hz

        def of(reading: Reading | None) -> Checkpoint:
            return Checkpoint.from_one_regs(
                made.registers,
                frequency_hz=hz,
                host=host,
                counter_offset=counter_offset,
                width_ticks=made.width_ticks,
                reading=reading,
                name=made.name,
                ids=made.ids,
                cntvct=made.cntvct,
                cntpct=made.cntpct,
            )

        saved = of(made.reading)
        if made.realtime_ns is None or host is not None:
            return saved
        return of(Reading(saved.cntvct, made.realtime_ns))
