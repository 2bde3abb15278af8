"""The table's rows, in its order."""

from __future__ import annotations

from measure import Ratio
from rows import bank, checkpoints, queue, reads

ROWS: tuple[Ratio, ...] = (
    *reads.ROWS,
    *bank.ROWS,
    *queue.ROWS,
    *checkpoints.ROWS,
)
