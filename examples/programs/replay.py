"""A restore beside a replay: a VMM writes every register back itself, and its guest's clocks are right all the same."""

from collections.abc import Sequence

from guestclock import Advance, Checkpoint, Interrupted, ManualCounter, ModelVm, Reg, Report, S
from guestclock.types import GuestVm

Registers = Sequence[dict[int, int]]


def registers_of(clock: GuestVm) -> Registers:
    """Reads the timer registers of every vCPU, as a VMM's own snapshot has them."""
    return [{reg: clock.get_one_reg(vcpu, reg) for reg in clock.reg_list(vcpu)} for vcpu in range(clock.vcpus)]


def replay(clock: GuestVm, saved: Registers) -> None:
    """Writes them back, the counter included: with an offset in place its value has no effect."""
    for vcpu, registers in enumerate(saved):
        for reg, value in registers.items():
            clock.set_one_reg(vcpu, reg, value)


def restore(clock: GuestVm, checkpoint: Checkpoint, saved: Registers) -> Report:
    """Restores the clocks around the replay. No vCPU can run before the block has released them all."""
    with clock.restoring(checkpoint, Advance(max_ns=10 * S)) as restoring:
        replay(clock, saved)
        restoring.apply()
        try:
            return restoring.release()
        except Interrupted as error:
            print(f"{error.step} failed, and the VM is {error.state}: call {error.retry}() again")
            raise


def main() -> None:
    """Restores a model beside a replay, a minute later."""
    host = ManualCounter()
    clock = ModelVm(counter=host)
    clock.opt_in()
    clock.set_one_reg(0, Reg.TIMER_CVAL, clock.cntvct(0) + 62_500_000)
    clock.set_one_reg(0, Reg.TIMER_CTL, 1)
    saved, checkpoint = registers_of(clock), clock.checkpoint()
    host.advance_ns(60 * S)

    target = ModelVm(counter=host)
    target.opt_in()
    report = restore(target, checkpoint, saved)
    (timer,) = (status for status in report.timers() if status.ctl)
    print("the guest sees", report.added_ns // S, "s of a minute, and its timer's line is", timer.line)


if __name__ == "__main__":
    main()
