"""Time of an import in a fresh process, and numpy's share of it."""

from __future__ import annotations


class Import:
    def timeraw_guestclock(self) -> str:
        return "import guestclock"

    def timeraw_guestclock_after_numpy(self) -> tuple[str, str]:
        return "import guestclock", "import numpy"

    def timeraw_numpy(self) -> str:
        return "import numpy"

    def timeraw_nothing(self) -> str:
        return "pass"
