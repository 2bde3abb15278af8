"""Time of an import in a fresh process: by itself, and over numpy's own."""

from __future__ import annotations


class Import:
    def timeraw_guestclock(self) -> str:
        return "import guestclock"

    def timeraw_guestclock_after_numpy(self) -> tuple[str, str]:
        return "import guestclock", "import numpy"
