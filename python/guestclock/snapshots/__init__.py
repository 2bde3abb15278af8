"""Saved guest time in other VMMs' files, as checkpoints: `snapshots.read("state.json").checkpoint()`.

`read` recognises a file by its contents, and refuses what it doesn't: cloud-hypervisor's `state.json`, a QEMU migration
stream as QEMU's `analyze-migration.py` prints it, and plain JSON of registers (docs/snapshots.md), which anything else
can be brought into. A `Snapshot` says what the file has, and what it lacks; `checkpoint` makes a `Checkpoint` of it, to
inspect, plan with and restore. `export` writes a checkpoint of one VM as plain JSON of registers.

Files may come from anywhere: a file over 16 MiB isn't read, and a broken one raises InvalidFile.
"""

from __future__ import annotations

from guestclock.snapshots.recognised import export, parse, read
from guestclock.snapshots.snapshot import Contradiction, Ids, Lack, Snapshot

__all__ = ["Contradiction", "Ids", "Lack", "Snapshot", "export", "parse", "read"]
