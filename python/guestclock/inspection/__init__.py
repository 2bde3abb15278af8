"""Looking at checkpoints: what is in one, how two differ, what a restore would do, and how a guest's time went.

`load` reads a file as what it is of: one VM, or a set of them. The other functions return a document, plain JSON values
under a `schema`. `draw` makes a picture of one; it needs matplotlib and raises ImportError without. A checkpoint names
its host, by machine id and boot id, but no document does: they go into bug reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guestclock.inspection.checkpoint import Inspection, inspect
from guestclock.inspection.checkpoint_set import GroupRecord, SetInspection, inspect_set
from guestclock.inspection.difference import Difference, diff
from guestclock.inspection.dry_run import DryRun, dry_run, target
from guestclock.inspection.intact import Verification, load, verify
from guestclock.inspection.timeline import Timeline, timeline
from guestclock.inspection.timers import TimerRecord, timers

if TYPE_CHECKING:
    from os import PathLike

__all__ = [
    "Difference",
    "DryRun",
    "GroupRecord",
    "Inspection",
    "SetInspection",
    "Timeline",
    "TimerRecord",
    "Verification",
    "diff",
    "draw",
    "dry_run",
    "inspect",
    "inspect_set",
    "load",
    "target",
    "timeline",
    "timers",
    "verify",
]


def draw(document: Timeline, path: str | PathLike[str]) -> None:
    """Draw what `timeline` returned, guest time against host time; SVG or PNG by the path's suffix."""
    from guestclock.inspection import picture

    picture.draw(document, path)
