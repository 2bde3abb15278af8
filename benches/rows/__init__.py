"""The table's rows, in its order."""

from __future__ import annotations

from measure import Row
from rows import bank, checkpoints, queue, reads, sizes, update

ROWS: tuple[Row, ...] = (
    *reads.ROWS,
    *bank.ROWS,
    *queue.ROWS,
    *checkpoints.ROWS,
    *sizes.ROWS,
    *update.ROWS,
)
