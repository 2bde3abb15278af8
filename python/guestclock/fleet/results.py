"""Plans, reports and looks of many VMs: one each, by name, and all of them as columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from guestclock._core import Plan, Report
from guestclock.types import Verified

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from guestclock.types import Mismatch, Policy

_Value = TypeVar("_Value")

PLAN_COLUMNS: Final = {
    "name": "U",
    "accepted": "bool",
    "refused": "U",
    "method": "U",
    "evidence": "U",
    "assumptions": "U",
    "warnings": "U",
    "limits": "U",
    "added_ticks": "uint64",
    "added_ns": "uint64",
    "backlog_ticks": "uint64",
    "behind_ns": "uint64",
    "behind_error_ns": "uint64",
    "error_bound_ticks": "uint64",
    "error_bound_ns": "uint64",
    "overdue": "uint64",
}
"""Columns of a plan, with their dtypes."""

REPORT_COLUMNS: Final = {
    "name": "U",
    "method": "U",
    "evidence": "U",
    "assumptions": "U",
    "warnings": "U",
    "limits": "U",
    "capped": "bool",
    "released_at": "uint64",
    "cntvct": "uint64",
    "cntpct": "uint64",
    "added_ticks": "uint64",
    "added_ns": "uint64",
    "backlog_ticks": "uint64",
    "behind_ns": "uint64",
    "behind_error_ns": "uint64",
    "error_bound_ticks": "uint64",
    "error_bound_ns": "uint64",
}
"""Columns of a report, with their dtypes."""


class ByName(Mapping[str, _Value], Generic[_Value]):
    """A value each VM, in the fleet's order."""

    def __init__(self, values: Mapping[str, _Value]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> _Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class FleetPlan(ByName[Plan]):
    """A plan each VM that can be restored, by name, and the refusals of the others: a dry run."""

    def __init__(
        self,
        policy: Policy,
        names: Sequence[str],
        plans: Mapping[str, Plan],
        refused: Mapping[str, Exception],
    ) -> None:
        super().__init__(plans)
        self._names = list(names)
        self.policy = policy
        """The policy."""
        self.refused: dict[str, Exception] = dict(refused)
        """The error of each VM that can't be restored so: Refused, or a KvmError."""

    @property
    def accepted(self) -> list[str]:
        """Names of the VMs that can be restored so: for `only=`."""
        return list(self)

    def columns(self) -> dict[str, NDArray[Any]]:
        """One column for each fact, a row each VM: arrays of shape (VMs,), in the fleet's order.

        "name" (str), "accepted" (bool), "refused" (str: the error's class), "method", "evidence" (the clock that tells
        the time), "assumptions", "warnings" and "limits" (str: codes, and the limits of a Linux guest that the jump
        crosses, with commas between), "added_ticks" and "backlog_ticks" (guest ticks), "added_ns", "behind_ns",
        "behind_error_ns", "error_bound_ticks", "error_bound_ns" and "overdue" (timers that the guest finds overdue),
        all uint64, 2**64 - 1 for more. A number that isn't known of some VMs is a masked array.
        """
        return columns_of([self._row(name) for name in self._names], PLAN_COLUMNS)

    def to_dict(self) -> dict[str, object]:
        """All of it as plain Python values, for JSON."""
        refused = {name: {"error": type(error).__name__, "message": str(error)} for name, error in self.refused.items()}
        return {"accepted": {name: plan.to_dict() for name, plan in self.items()}, "refused": refused}

    def _row(self, name: str) -> dict[str, Any]:
        if name in self.refused:
            return {"name": name, "accepted": False, "refused": type(self.refused[name]).__name__}
        said: dict[str, Any] = self[name].to_dict()
        return {
            **said,
            "name": name,
            "accepted": True,
            "evidence": said["elapsed_by"],
            "assumptions": _codes(said["assumptions"]),
            "warnings": _codes(said["warnings"]),
            "limits": _crossed(said["limits"]),
            "backlog_ticks": (said["backlog"] or {"remaining_ticks": 0})["remaining_ticks"],
            "overdue": len(said["overdue"]),
        }

    def __str__(self) -> str:
        """For people."""
        lines = [f"{name}: {type(error).__name__}: {error}" for name, error in self.refused.items()]
        lines += [f"{name}:\n{plan}" for name, plan in self.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<FleetPlan {self.policy!r}: {len(self)} accepted, {len(self.refused)} refused>"


class FleetReport(ByName[Report]):
    """A report each VM, by name, of a restore or a pause's end."""

    def columns(self) -> dict[str, NDArray[Any]]:
        """One column for each fact, a row each VM: arrays of shape (VMs,), in the fleet's order.

        "name", "method", "evidence" (the clock that told the time), "assumptions", "warnings" and "limits" (codes, and
        the limits of a Linux guest that the jump crossed, with commas between), all str; "capped" (bool); "released_at"
        (the host's count), "cntvct", "cntpct", "added_ticks" and "backlog_ticks" (guest ticks), "added_ns",
        "behind_ns", "behind_error_ns", "error_bound_ticks" and "error_bound_ns", all uint64, 2**64 - 1 for more. A
        number that isn't known of some VMs is a masked array.
        """
        return columns_of([self._row(name) for name in self], REPORT_COLUMNS)

    def to_dict(self) -> dict[str, object]:
        """All of it as plain Python values, for JSON."""
        return {name: report.to_dict() for name, report in self.items()}

    def _row(self, name: str) -> dict[str, Any]:
        report = self[name]
        kinds = REPORT_COLUMNS.items()
        row = {column: getattr(report, column) for column, kind in kinds if kind != "U" or column == "method"}
        said: dict[str, Any] = report.to_dict()
        return row | {
            "name": name,
            "evidence": report.elapsed_by,
            "assumptions": _codes(said["assumptions"]),
            "warnings": _codes(said["warnings"]),
            "limits": _crossed(said["limits"]),
        }

    def __str__(self) -> str:
        """For people."""
        return "\n".join(f"{name}:\n{report}" for name, report in self.items())

    def __repr__(self) -> str:
        return f"<FleetReport of {len(self)} VMs>"


class FleetVerified(ByName[Verified]):
    """A `Verified` each VM that could be looked at, by name."""

    def __init__(self, verified: Mapping[str, Verified], failed: Mapping[str, Exception]) -> None:
        super().__init__(verified)
        self.failed: dict[str, Exception] = dict(failed)
        """The error of each VM that couldn't be looked at."""

    def __bool__(self) -> bool:
        """True where every VM was looked at, and is as it is to be."""
        return not self.failed and all(self.values())

    @property
    def mismatches(self) -> dict[str, tuple[Mismatch, ...]]:
        """The clocks that aren't where they are to be, of each VM that has one."""
        return {name: verified.mismatches for name, verified in self.items() if not verified}

    def __str__(self) -> str:
        """For people."""
        lines = [f"{name}: {type(error).__name__}: {error}" for name, error in self.failed.items()]
        return "\n".join(lines + [f"{name}: {verified}" for name, verified in self.items()])

    def __repr__(self) -> str:
        return f"<FleetVerified of {len(self)} VMs: {len(self.mismatches)} off, {len(self.failed)} failed>"


def _crossed(limits: Iterable[Mapping[str, str]]) -> str:
    return ",".join(limit["name"] for limit in limits if limit["reached"] != "not crossed")


def _codes(diagnostics: Iterable[Mapping[str, str]]) -> str:
    return ",".join(diagnostic["code"] for diagnostic in diagnostics)


def columns_of(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """Returns a column for each of these names, and a row for each VM."""
    return {column: column_of([row.get(column) for row in rows], kind) for column, kind in kinds.items()}


def column_of(values: Sequence[Any], kind: str) -> NDArray[Any]:
    """Returns an array of this dtype, and a masked one where a number is None."""
    import numpy as np

    missing = [value is None for value in values]
    filled = [("" if kind == "U" else 0) if value is None else value for value in values]
    if kind == "uint64":
        filled = [min(value, 2**64 - 1) for value in filled]
    array: NDArray[Any] = np.array(filled, kind)
    return np.ma.MaskedArray(array, missing) if kind == "uint64" and any(missing) else array
