"""Types of what a `Fleet` returns: plans, reports and looks by name, and a restore or a pause that is going on.

`Fleet` itself stands at the top.
"""

from __future__ import annotations

from guestclock.fleet.names import By
from guestclock.fleet.outcomes import OnFailure
from guestclock.fleet.results import FleetPlan, FleetReport, FleetVerified
from guestclock.fleet.stepwise import FleetPause, FleetRestore

__all__ = ["By", "FleetPause", "FleetPlan", "FleetReport", "FleetRestore", "FleetVerified", "OnFailure"]
