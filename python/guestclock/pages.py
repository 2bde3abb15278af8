"""A guest's pages, found by its checkpoint, and a thread that keeps its vmclock page up to date."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from guestclock._core import ClockEquation, StolenTime, VmClock
from guestclock.errors import GuestClockError, PageOverwritten
from guestclock.live import live
from guestclock.units import S

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer

    from guestclock._core import Checkpoint
    from guestclock.types import GuestVm, Stamp


Page = TypeVar("Page")


class GuestPages(NamedTuple):
    """The pages of one guest that tell it about its time."""

    vmclock: VmClock | None
    """The vmclock page; None where the checkpoint knows of none, or the guest has overwritten it."""
    stolen_time: list[StolenTime | None]
    """The stolen-time record of each vCPU; None where the checkpoint knows of none, or the guest has overwritten it."""
    overwritten: list[PageOverwritten]
    """Pages and records that aren't where the checkpoint has them: the guest can write there, so that is no error."""


def find_pages(checkpoint: Checkpoint, memory: Buffer, *, base: int) -> GuestPages:
    """Finds the pages of the one VM of a checkpoint in the VMM's mapping of the guest's memory.

    `base` is the guest's physical address of the first byte of `memory`. The checkpoint has the addresses that
    `checkpoint(vmclock_address=, stolen_time=)` was given. ValueError for an address outside of `memory`; nothing that
    the guest has written there is an error.
    """
    size = memoryview(memory).nbytes

    def place(address: int, what: str) -> int:
        if not base <= address < base + size:
            raise ValueError(
                f"the {what} at {address:#x} isn't in this memory, which is the guest's from {base:#x} to "
                f"{base + size - 1:#x}: give the region that has it"
            )
        return address - base

    overwritten: list[PageOverwritten] = []

    def found(kind: Callable[[Buffer, int], Page], address: int | None, what: str) -> Page | None:
        if address is None:
            return None
        try:
            return kind(memory, place(address, what))
        except PageOverwritten as error:
            overwritten.append(error)
            return None

    return GuestPages(
        found(VmClock, checkpoint.vmclock_address, "vmclock page"),
        [
            found(StolenTime, record, f"stolen-time record of vCPU {vcpu}")
            for vcpu, record in enumerate(checkpoint.stolen_time)
        ],
        overwritten,
    )


@live("its thread renews the page here")
class keep_fresh:  # noqa: N801 - called like a function, as `suppress` is
    """Renews the clock of a guest's vmclock page in a thread, for as long as a `with` block lasts.

    Each `every_ns` (one second by default) the page gets a new `ClockEquation`: a stamp of the VM's counter, and the
    guest's CNTVCT_EL0 at that instant. The caller vouches for the errors as for an equation, in nanoseconds and parts
    per billion. A restore, a pause and the steps of a backlog update the page themselves, so a closed VM is left
    alone. An update takes microseconds, and another thread's `page.update()` waits for it.

    Where the host has no honest clock (it isn't synchronised, a leap second is being inserted), the page says
    "unreliable" until it has one again, and `problem` says why. `notify` is called after each change of a page whose
    guest expects an interrupt.

    The first renewal is made on entering the block, in the caller's thread. ValueError there for a VM whose count can't
    be told without stopping its vCPUs: one on KVM that hasn't opted in. Leaving the block ends the thread.
    """

    def __init__(
        self,
        page: VmClock,
        vm: GuestVm,
        *,
        every_ns: int = S,
        est_error_ns: int | None = None,
        max_error_ns: int | None = None,
        rate_est_error_ppb: int | None = None,
        rate_max_error_ppb: int | None = None,
        notify: Callable[[], None] | None = None,
    ) -> None:
        if every_ns <= 0:
            raise ValueError(f"every_ns is {every_ns}: a page is renewed after some time, S for a second")
        self._page = page
        self._vm = vm
        self._every_ns = every_ns
        self._errors = (est_error_ns, max_error_ns, rate_est_error_ppb, rate_max_error_ppb)
        self._notify = notify
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed: Stamp | None = None
        self.problem: str | None = None
        """Reason why the latest renewal gave the page no clock; None where it did."""
        self.renewals = 0
        """Number of renewals that gave the page a clock."""

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("this keep_fresh was entered before: make another one")
        # A count that can't be told is refused before the page is touched.
        self._sample()
        self.renew()
        self._thread = threading.Thread(target=self._run, name="guestclock-vmclock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def age_ns(self) -> int | None:
        """Age of the page's clock in nanoseconds, by the VM's counter; None before it has one."""
        renewed = self._renewed
        if renewed is None:
            return None
        return (self._vm.counter.stamp().count - renewed.count) % 2**64 * S // renewed.frequency_hz

    def renew(self) -> bool:
        """Gives the page a clock of this moment, and returns whether it has one: what the thread does each time.

        False for a VM that is closed, which is left alone, and where the host has no honest clock.
        """
        with self._page.update() as update:
            # Read in the update: no step of a backlog can come between the count and its equation.
            here, cntvct = self._sample()
            if cntvct is None:
                return False
            try:
                est_ns, max_ns, rate_est_ppb, rate_max_ppb = self._errors
                update.clock(
                    ClockEquation(
                        here,
                        cntvct=cntvct,
                        time_type=self._page.time_type,
                        est_error_ns=est_ns,
                        max_error_ns=max_ns,
                        rate_est_error_ppb=rate_est_ppb,
                        rate_max_error_ppb=rate_max_ppb,
                    )
                )
            except ValueError as refused:
                update.no_clock()
                self.problem, self._renewed = str(refused), None
            else:
                self.problem, self._renewed = None, here
                self.renewals += 1
        if self._notify is not None:
            self._notify()
        return self.problem is None

    def _sample(self) -> tuple[Stamp, int | None]:
        """A stamp and the guest's count at it; None for a count that is about to change."""
        here = self._vm.counter.stamp()
        cntvct = self._vm.cntvct(0, now=here)
        # In this order: whatever closes the VM does so before it changes an offset.
        return here, cntvct if self._vm.state == "open" else None

    def _run(self) -> None:
        while not self._stopping.wait(self._every_ns / S):
            try:
                self.renew()
            except (GuestClockError, ValueError) as error:
                # The update that failed has left the page unreliable.
                self.problem, self._renewed = str(error), None
