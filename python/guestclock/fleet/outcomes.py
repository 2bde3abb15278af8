"""Outcomes of a step that was made for many VMs: one VM's error, and which of them ends the call."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from guestclock._core import _each_resume
from guestclock.errors import FleetRefused, GuestClockError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guestclock._core import Report

_Made = TypeVar("_Made")

OnFailure: TypeAlias = Literal["finish", "stop"]
"""Fate of the other VMs where one fails: they finish, or they are given up."""

FAILURES: Final = (GuestClockError, OSError)
"""Errors that are one VM's: any other is the caller's, and ends the whole call."""

Outcomes: TypeAlias = "tuple[dict[int, Report | None], dict[int, Exception]]"
"""Reports of VMs that were released, and None of others; and the errors: each by the VM's place."""


def checked_on_failure(on_failure: str) -> None:
    """Raises ValueError for another word than these two."""
    if on_failure not in ("finish", "stop"):
        raise ValueError(f"no on_failure={reprlib.repr(on_failure)}: finish or stop")


def checked_threads(threads: int) -> None:
    """Raises as the native module does for what is no number of threads."""
    _each_resume([], None, threads)


def refusal(accepted: list[str], refused: dict[str, Exception]) -> FleetRefused:
    """Returns the error of a restore in which a VM is refused."""
    return FleetRefused(
        f"{len(refused)} of {len(accepted) + len(refused)} VMs are refused, and nothing was written "
        f"({first_of(refused)}): restore the others with only=, or mend these",
        accepted=accepted,
        refused=refused,
    )


def raise_first(names: Sequence[str], failed: Mapping[int, Exception]) -> None:
    """Raises the first error, if there is one, with a note that names its VM."""
    for at, error in failed.items():
        error.add_note(f"VM {names[at]!r} of the fleet")
        raise error


def named_outcomes(
    names: Sequence[str], outcomes: tuple[Mapping[int, _Made], Mapping[int, Exception]]
) -> tuple[dict[str, _Made], dict[str, Exception]]:
    """Returns the result of each VM by its name, and the errors of those that failed."""
    made, failed = outcomes
    for error in failed.values():
        if not isinstance(error, FAILURES):
            raise error
    return {names[at]: one for at, one in made.items()}, {names[at]: error for at, error in failed.items()}


def first_of(errors: Mapping[str, Exception]) -> str:
    """The first error, and how many there are besides."""
    name, error = next(iter(errors.items()))
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{name!r}: {type(error).__name__}: {error}{more}"
