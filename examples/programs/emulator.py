"""An emulator: a guest's `mrs`, `msr` and `wfi` go to the model, and its timer interrupts come from there.

The guest is three instructions a turn, in Python: it arms its timer, waits, and takes the interrupt.
"""

from guestclock import ManualCounter, ModelVm, Reg, Timer
from guestclock.errors import SysregTrap
from guestclock.model import sysreg

CNTVCT, CVAL, CTL = sysreg("CNTVCT_EL0"), sysreg("CNTV_CVAL_EL0"), sysreg("CNTV_CTL_EL0")
TURN = 625_000
"""Ticks that the guest waits: 10 ms."""


class Emulator:
    """One vCPU, and the host time that it is given."""

    def __init__(self) -> None:
        self.host = ManualCounter()
        self.clock = ModelVm(counter=self.host)
        self.taken: list[int] = []

    def mrs(self, register: tuple[int, int, int, int, int]) -> int:
        """Reads a register as the guest does at EL1."""
        return self.clock.read_sysreg(0, *register)

    def msr(self, register: tuple[int, int, int, int, int], value: int) -> None:
        """Writes a register as the guest does."""
        self.clock.write_sysreg(0, *register, value)

    def wfi(self) -> bool:
        """Lets host time go by until the vCPU wakes. False if nothing will ever wake it."""
        wake = self.clock.wfi_wake(0)
        if wake is None:
            return False
        self.host.advance(wake - self.host.read())
        return True

    def turn(self) -> None:
        """Runs the guest until its next timer interrupt."""
        with self.clock.running(0):
            self.msr(CVAL, self.mrs(CNTVCT) + TURN)
            self.msr(CTL, 1)
            if self.wfi() and self.clock.timer(0, Timer.VTIMER).line:
                self.taken.append(self.mrs(CNTVCT))
            self.msr(CTL, 0)

    def user_may_read(self) -> bool:
        """True if the guest's EL0 may read the virtual counter, as its kernel says in CNTKCTL_EL1."""
        try:
            self.clock.read_sysreg(0, *CNTVCT, el=0)
        except SysregTrap:
            return False
        return True


def main() -> None:
    """Runs ten turns."""
    emulator = Emulator()
    for _ in range(10):
        emulator.turn()
    print("interrupts at", emulator.taken[0], "and every", emulator.taken[1] - emulator.taken[0], "ticks after")
    emulator.clock.set_one_reg(0, Reg.CNTKCTL_EL1, 2)
    print("the guest's user space may read its counter:", emulator.user_may_read())


if __name__ == "__main__":
    main()
