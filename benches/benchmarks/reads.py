"""A VMM's calls at every guest exit: read a counter, read a timer."""

from __future__ import annotations

from typing import Any


class GuestCounter:
    """`vm.cntvct(0)` over each counter, and with the host's count passed in."""

    params = ("host", "monotonic", "manual")
    param_names = ("counter",)

    def setup(self, counter: str) -> None:
        import guestclock

        kinds: dict[str, Any] = {
            "host": guestclock.HostCounter,
            "monotonic": guestclock.MonotonicCounter,
            "manual": guestclock.ManualCounter,
        }
        self.counter = kinds[counter]()
        self.vm = guestclock.ModelVm(vcpus=4, counter=self.counter)
        self.vm.set_counter_offset(2**63)
        self.now = self.counter.read()

    def time_cntvct(self, counter: str) -> None:
        self.vm.cntvct(0)

    def time_cntpct(self, counter: str) -> None:
        self.vm.cntpct(0)

    def time_cntvct_of_now(self, counter: str) -> None:
        self.vm.cntvct(0, now=self.now)

    def time_counter_alone(self, counter: str) -> None:
        self.counter.read()


class GuestTimer:
    """An armed virtual timer: its state, one register, and when it goes off."""

    def setup(self) -> None:
        import guestclock

        self.vm = guestclock.ModelVm(vcpus=4, counter=guestclock.ManualCounter(10**9))
        self.cval, self.ctl = guestclock.Reg.TIMER_CVAL, guestclock.Reg.TIMER_CTL
        self.vtimer = guestclock.Timer.VTIMER
        self.vm.set_counter_offset(12345)
        self.vm.set_one_reg(0, self.cval, 10**10)
        self.vm.set_one_reg(0, self.ctl, 1)

    def time_timer(self) -> None:
        self.vm.timer(0, self.vtimer)

    def time_get_one_reg(self) -> None:
        self.vm.get_one_reg(0, self.cval)

    def time_set_one_reg(self) -> None:
        self.vm.set_one_reg(0, self.cval, 10**10)

    def time_next_deadline(self) -> None:
        self.vm.next_deadline(0)
