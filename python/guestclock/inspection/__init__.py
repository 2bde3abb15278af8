"""Looking at checkpoints: what is in one, how two differ, what a restore would do, and how a guest's time went.

The functions return a document, plain JSON values under a `schema`. `inspect`, `diff` and `verify` take checkpoints of
any number of VMs; `timers`, `dry_run` and `timeline` are about one VM. `draw` makes a picture of a time line; it needs
matplotlib and raises ImportError without. A checkpoint names its host, by machine id and boot id, but no document does:
they go into bug reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestclock.inspection.checkpoint import Inspection, Recognised, VmRecord, inspect
from guestclock.inspection.difference import Difference, Entry, VmDifference, diff
from guestclock.inspection.dry_run import DryRun, Refusal, Target, dry_run, plan_each, target
from guestclock.inspection.intact import FileRecord, Verification, verify
from guestclock.inspection.timeline import Point, Stretch, Timeline, timeline
from guestclock.inspection.timers import TimerRecord, timers

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "Difference",
    "DryRun",
    "Entry",
    "FileRecord",
    "Inspection",
    "Point",
    "Recognised",
    "Refusal",
    "Stretch",
    "Target",
    "Timeline",
    "TimerRecord",
    "Verification",
    "VmDifference",
    "VmRecord",
    "diff",
    "draw",
    "dry_run",
    "inspect",
    "plan_each",
    "target",
    "timeline",
    "timers",
    "verify",
]


def draw(document: Timeline, path: str | PathLike[str]) -> None:
    """Draw what `timeline` returned, guest time against host time; SVG or PNG by the path's suffix."""
    from guestclock.inspection import picture

    picture.draw(document, path)
