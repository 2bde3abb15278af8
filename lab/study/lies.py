"""A host that lies: what a study has to find out, or it finds nothing."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal, TypeAlias

from guestclock import Elapsed

About: TypeAlias = Literal["sync", "holdover", "bracket", "counter"]
"""Subject of a lie of the target's host: its wall clock's error when it was last put right, the drift since, the
distance of its two readings, or that its counter is the checkpoint's."""

ABOUT: Final[tuple[About, ...]] = ("sync", "holdover", "bracket", "counter")


@dataclass(frozen=True, slots=True)
class Lie:
    """The factor by which something exceeds its declared value: 1 is no lie."""

    factor: Fraction = Fraction(1)
    about: About = "sync"

    def of(self, about: About) -> Fraction:
        """Return the factor for one of them."""
        return self.factor if about == self.about else Fraction(1)

    @property
    def word(self) -> Elapsed | None:
        """The option `elapsed` for two hosts."""
        return Elapsed.by_counter() if self.about == "counter" and self.factor != 1 else None


TRUTH: Final = Lie()
