"""Restores and pauses of many VMs that last for more than one call."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from guestclock._core import Freeze, _each_resume, _each_step
from guestclock.errors import FleetInterrupted, Interrupted, Misuse, NoSuchVm, OtherInstant, OutOfOrder
from guestclock.fleet.names import in_order, listed
from guestclock.fleet.outcomes import first_of, named_outcomes, raise_first
from guestclock.fleet.results import FleetPlan, FleetReport
from guestclock.live import live

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

    from guestclock._core import GuestVm, Pause, Report, Restore
    from guestclock.fleet.outcomes import OnFailure, Outcomes
    from guestclock.types import Policy, Stamp


@live("take its plan, or the report of its release()")
class FleetRestore:
    """A restore of many VMs around what the VMM restores itself: the result of `Fleet.restoring`.

    Inside its `with` block: every VM's registers and vGIC, then `apply()`, then `release()`. Leaving the block without
    `release()`, by whatever way, gives up every VM that isn't released: see `Restore`.
    """

    def __init__(
        self, policy: Policy | None, restores: dict[str, Restore], on_failure: OnFailure, threads: int
    ) -> None:
        self.failed: dict[str, Exception] = {}
        """The error of each VM that has failed so far: it is given up, and the error says the state it is in."""
        self._policy = policy or Freeze()
        self._restores = restores
        self._open = dict(restores)
        self._reports: dict[str, Report] = {}
        self._on_failure = on_failure
        self._threads = threads
        self._entered = False
        self._over: str | None = None
        """The way in which it ended."""

    @cached_property
    def plan(self) -> FleetPlan:
        """The plan."""
        plans = {name: restore.plan for name, restore in self._restores.items()}
        return FleetPlan(self._policy, list(plans), plans, {})

    def __enter__(self) -> Self:
        """Closes all VMs, then makes each one's first step. VcpuRunning or StalePlan before anything is written."""
        if self._entered:
            raise Misuse("a restore is entered once: call restoring() again")
        self._entered = True
        try:
            self._step("close", "prepare")
        except BaseException as error:
            self._give_up(error)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Gives up every VM that isn't released."""
        self._give_up(exc)

    def apply(self, *, now: int | Stamp | None = None) -> None:
        """The second step, of every VM: its vCPUs' timers, CVAL before CTL, read back.

        Misuse, before anything is done, where it can't come now: so does `release`.
        """
        self._can_come("apply")
        self._step("apply", now=now)

    def release(self, *, at: Stamp | None = None, now: int | Stamp | None = None) -> FleetReport:
        """The last step, of every VM: each one's own sample, then its counters; its vCPUs may run.

        With `at` all go on from the instant of that stamp: see `Restore.release`.
        OtherInstant where it can't be for `at`: call it again, for the VMs that aren't released yet.
        FleetInterrupted where a VM has failed in this step or before: `reports` has what the others got.
        """
        self._can_come("release")
        self._step("release", at=at, now=now)
        self._over = "release() has ended this restore"
        if self.failed:
            raise self._interrupted()
        return FleetReport(self._reports)

    def _can_come(self, called: str) -> None:
        """Raises Misuse outside of the block, and after the release."""
        if not self._entered:
            raise Misuse(f"{called}() comes inside the block: with fleet.restoring(...) as r")
        if self._over is not None:
            raise Misuse(f"{called}() can't come now: {self._over}")

    def _step(self, *stages: str, at: Stamp | None = None, now: int | Stamp | None = None) -> None:
        restores, stop = list(self._open.values()), self._on_failure == "stop"
        self._took(*_each_step(restores, stages, self._threads, stop=stop, at=at, now=now))

    def _took(self, outcomes: Outcomes, last: str) -> None:
        """Takes note of steps up to this one."""
        made, failed = named_outcomes(list(self._open), outcomes)
        if failed and last == "close":
            self._open = {name: self._open[name] for name in made}
            raise_first(list(failed), dict(enumerate(failed.values())))
        for name, report in made.items():
            if report is not None:
                del self._open[name]
                self._reports[name] = report
        # A stamp that isn't right for a VM, and a step out of order, are no failure of the VM's: it can go on.
        refused = {name: error for name, error in failed.items() if isinstance(error, OtherInstant | OutOfOrder)}
        failed = {name: error for name, error in failed.items() if name not in refused}
        for name, error in failed.items():
            self._open.pop(name).__exit__(type(error), error, error.__traceback__)
            self.failed[name] = error
        if failed and self._on_failure == "stop":
            name, error = next(iter(failed.items()))
            self._stop(last, name)
            raise self._interrupted() from error
        raise_first(list(refused), dict(enumerate(refused.values())))

    def _ended(self, outcomes: Outcomes, last: str) -> FleetReport:
        """The reports of a restore whose steps were all made in one call."""
        try:
            self._took(outcomes, last)
        except BaseException as error:
            self._give_up(error)
            raise
        if self.failed:
            raise self._interrupted()
        return FleetReport(self._reports)

    def _stop(self, step: str, failed: str) -> None:
        """Gives up the VMs that aren't released, since one has failed: each gets an error that says its state."""
        for name, restore in self._open.items():
            why = f"{step}: given up, since VM {failed!r} failed"
            error = Interrupted(why, state="as-it-was", step=step, retry="restore")
            restore.__exit__(Interrupted, error, None)
            self.failed[name] = error
        self._open.clear()

    def _give_up(self, error: BaseException | None) -> None:
        """Gives up the VMs that aren't released. `error`, on its way, gets a note of each that stays closed."""
        if self._over is None:
            self._over = "the restore was given up with its block: restoring() again"
        opened, self._open = self._open, {}
        for restore in opened.values():
            restore.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)

    def _interrupted(self) -> FleetInterrupted:
        return FleetInterrupted(
            f"{len(self.failed)} of {len(self._restores)} VMs aren't restored ({first_of(self.failed)})",
            state="partly",
            step="restore",
            retry="restore",
            failed=self.failed,
            _reports=FleetReport(self._reports),
        )

    def __repr__(self) -> str:
        return f"<FleetRestore of {listed(self._restores)}>"


@live("take its report, after resume()")
class FleetPause:
    """VMs that are paused in place: the result of `Fleet.pause`. A pause that is dropped leaves its VMs closed."""

    def __init__(self, vms: Mapping[str, GuestVm], pauses: dict[str, Pause], threads: int = 1) -> None:
        self._vms = vms
        self._pauses = pauses
        """Those whose VMs are still paused."""
        self._names = list(pauses)
        self._threads = threads
        self._reports: dict[str, Report] = {}
        self._over = self._entered = False

    @property
    def report(self) -> FleetReport:
        """The report of the pause's end, without VMs that had left the pause. Misuse before it."""
        if not self._over:
            raise Misuse("the pause isn't over: there is a report after resume()")
        return self._report()

    def _report(self) -> FleetReport:
        return FleetReport(in_order(self._names, self._reports))

    def resume(self, policy: Policy | None = None) -> FleetReport:
        """Ends the pause of every VM under its policy, or under `policy` instead. The guests may run when it returns.

        A VM that fails stays paused, and the others go on: FleetInterrupted names it, and another `resume()` is about
        the VMs that are still paused. A VM that was restored meanwhile, or removed, has left the pause:
        FleetInterrupted names it once, with an empty `retry` where no other is still paused. Misuse where all of it is
        over.
        """
        if self._over:
            raise Misuse("the pause is over, and its report is at hand (report): pause() again")
        pauses = list(self._pauses.values())
        made, failed = named_outcomes(list(self._pauses), _each_resume(pauses, policy, self._threads))
        self._reports |= made
        left = {name: error for name, error in failed.items() if self._has_left(name, error)}
        self._pauses = {name: pause for name, pause in self._pauses.items() if name in failed and name not in left}
        self._over = not self._pauses
        if failed:
            raise interrupted_pause(len(self._names), failed, left, self._report())
        return self.report

    def _has_left(self, name: str, error: Exception) -> bool:
        """Returns whether a VM for which a pause can't end with this error is in it no more."""
        if isinstance(error, NoSuchVm):
            return True
        # A VM that is closed by what came after the pause is paused again, if that is given up.
        return isinstance(error, Misuse) and self._vms[name].state == "open"

    def __enter__(self) -> Self:
        if self._over:
            raise Misuse("the pause is over: pause() again")
        if self._entered:
            raise Misuse("the pause has a `with` block already, whose end resumes the VMs")
        self._entered = True
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Resumes every VM that is still paused, by its own policy."""
        if self._over:
            return
        try:
            self.resume()
        except BaseException as error:
            # An error of the native module's has none by itself.
            error.__context__ = error.__context__ or exc
            raise

    def __repr__(self) -> str:
        return f"<FleetPause of {listed(self._names)}>"


def interrupted_pause(
    vms: int, failed: dict[str, Exception], left: Mapping[str, Exception], reports: FleetReport
) -> FleetInterrupted:
    """Returns the error of the end of a pause of so many VMs: of those that failed, some have left it."""
    paused = {name: error for name, error in failed.items() if name not in left}
    said = [
        f"{len(of)} of {vms} VMs {what} ({first_of(of)})"
        for what, of in (("are still paused", paused), ("had left the pause", left))
        if of
    ]
    return FleetInterrupted(
        "; ".join(said),
        state="partly",
        step="resume",
        retry="resume" if paused else "",
        failed=failed,
        _reports=reports,
    )
