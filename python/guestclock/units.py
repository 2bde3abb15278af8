"""Units of time, in nanoseconds: `Advance(10 * S)`, `CatchUp(5 * MS, 100 * MS)`."""

from typing import Final

MS: Final = 1_000_000
"""Nanoseconds in a millisecond."""
S: Final = 1_000_000_000
"""Nanoseconds in a second."""
