"""A guest's pages, found by its checkpoint, and a thread that keeps its vmclock page up to date."""

from __future__ import annotations

import operator
import reprlib
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from guestclock._core import ClockEquation, StolenTime, VmClock
from guestclock.errors import PageOverwritten
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
    per billion. A closed VM is left alone, and after its restore or pause the page is wrong until the next renewal: so
    end them inside a `page.update()`, which a step of a backlog takes as an argument. An update takes microseconds, and
    another thread's `page.update()` waits for it.

    Where there is no honest clock (the host isn't synchronised, a leap second is being inserted, the VM can't be
    asked), the page says "unreliable" until there is one again, and `problem` says why. An update that another thread
    has open for longer than 100 ms puts the renewal off until the next turn. `notify` is called after each change of a
    page whose guest expects an interrupt. Nothing that fails in a turn ends the thread.

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
        self._page = page
        self._vm = vm
        self._every_ns = _whole("every_ns", every_ns, least=1, most=2**63 - 1)
        self._est_error_ns = _error("est_error_ns", est_error_ns)
        self._max_error_ns = _error("max_error_ns", max_error_ns)
        self._rate_est_error_ppb = _error("rate_est_error_ppb", rate_est_error_ppb)
        self._rate_max_error_ppb = _error("rate_max_error_ppb", rate_max_error_ppb)
        self._notify = notify
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._renewed: Stamp | None = None
        self.problem: str | None = None
        """Reason why the latest turn gave the page no clock, or failed otherwise; None where all went well."""
        self.renewals = 0
        """Number of renewals that gave the page a clock."""

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("this keep_fresh was entered before: make another one")
        # A count that can't be told is refused before the page is touched.
        self._sample()
        try:
            self.renew()
            thread = threading.Thread(target=self._run, name="guestclock-vmclock", daemon=True)
            thread.start()
        except BaseException:
            # Nobody will renew it. An update that another thread has open isn't waited for again.
            with suppress(RuntimeError), self._page.update() as update:
                update.no_clock()
            raise
        self._thread = thread
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

        False for a VM that is closed, which is left alone, and where there is no honest clock. RuntimeError where an
        update is open, for 100 ms if it is another thread's.
        """
        if self._is_closed():
            return False
        with self._page.update() as update:
            # Read in the update: no step of a backlog can come between the count and its equation.
            try:
                here, cntvct = self._sample()
                if cntvct is None:
                    return False
                update.clock(
                    ClockEquation(
                        here,
                        cntvct=cntvct,
                        time_type=self._page.time_type,
                        est_error_ns=self._est_error_ns,
                        max_error_ns=self._max_error_ns,
                        rate_est_error_ppb=self._rate_est_error_ppb,
                        rate_max_error_ppb=self._rate_max_error_ppb,
                    )
                )
            except Exception as error:  # noqa: BLE001 - a guest doesn't go by a clock that couldn't be renewed
                update.no_clock()
                self.problem, self._renewed = _reason(error), None
            else:
                self.problem, self._renewed = None, here
                self.renewals += 1
        if self._notify is not None:
            self._notify()
        return self.problem is None

    def _is_closed(self) -> bool:
        """Returns whether the VM is closed; False for one that can't be asked, which has no clock to give."""
        try:
            return self._vm.state != "open"
        except Exception:  # noqa: BLE001 - the renewal meets it again
            return False

    def _sample(self) -> tuple[Stamp, int | None]:
        """A stamp and the guest's count at it; None for a count that is about to change."""
        here = self._vm.counter.stamp()
        cntvct = self._vm.cntvct(0, now=here)
        # In this order: whatever closes the VM does so before it changes an offset.
        return here, cntvct if self._vm.state == "open" else None

    def _run(self) -> None:
        every_s = min(self._every_ns / S, threading.TIMEOUT_MAX)
        while not self._stopping.wait(every_s):
            try:
                self.renew()
            except Exception as error:  # noqa: BLE001 - a thread that ended would leave an old clock for good
                self.problem = _reason(error)


def _whole(name: str, value: int, *, least: int, most: int) -> int:
    """Returns an argument, if it is an integer of this range."""
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None:
        raise TypeError(f"{name} is {reprlib.repr(value)}, which isn't an integer")
    if not least <= whole <= most:
        raise ValueError(f"{name} is {whole}: give an integer from {least} to {most}")
    return whole


def _error(name: str, value: int | None) -> int | None:
    """Returns the claim of an error, if it is one that a page can have; None without a claim."""
    return None if value is None else _whole(name, value, least=0, most=2**64 - 1)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
