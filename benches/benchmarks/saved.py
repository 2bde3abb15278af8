"""VMs to restore at one instant: of five frequencies, a third each frozen, advanced, and advanced up to a cap.

Of those that are advanced, half go by the counter, and half by the time that was told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOW = 1 << 50
FREQUENCIES = (24_000_000, 25_000_000, 62_500_000, 100_000_000, 1_000_000_000)


class Columns:
    """A row each VM; `policy` is numbered as in the baselines."""

    def __init__(self, vms: int) -> None:
        import numpy as np

        from guestclock.model import recompute_offsets

        self.recompute_offsets = recompute_offsets
        chance = np.random.default_rng(20261122)
        self.guest = chance.integers(0, 1 << 60, vms, np.uint64)
        self.host = np.uint64(NOW) - chance.integers(0, 1 << 34, vms, np.uint64)
        self.policy = chance.permutation(np.resize(np.array([0, 0, 1, 3, 2, 4], np.uint8), vms))
        self.elapsed_ns, self.max_ns = chance.integers(0, 20 * 10**9, (2, vms), np.uint64)
        self.frequencies_hz = np.array(FREQUENCIES, np.uint64)
        self.frequency = chance.integers(0, len(FREQUENCIES), vms, np.uint16)
        self.frequency_hz = self.frequencies_hz[self.frequency]
        self.columns = (*self.all()[:5], self.frequency, self.frequencies_hz)
        self.out = np.empty(vms, np.uint64), np.empty(vms, np.uint64)

    def all(self) -> tuple[NDArray[Any], ...]:
        """In the order in which the baselines take them."""
        return self.guest, self.host, self.policy, self.elapsed_ns, self.max_ns, self.frequency_hz

    def recompute(self, now: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Recomputes the offsets with guestclock, into arrays allocated before."""
        return self.recompute_offsets(now, *self.columns, out=self.out)
