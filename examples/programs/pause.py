"""A pause in place: a backup is taken, and the guest makes up for it in small steps, so that no watchdog barks."""

from guestclock import MS, CatchUp, ManualCounter, ModelVm, S


def back_up(host: ManualCounter) -> None:
    """Stands for a backup that takes a second and a half."""
    host.advance_ns(1500 * MS)


def main() -> None:
    """Pauses a model, and catches up."""
    host = ManualCounter()
    clock = ModelVm(counter=host)
    clock.opt_in()

    with clock.pause():  # Freeze: the guest doesn't see the backup at all.
        back_up(host)
    before = clock.cntvct(0)

    pause = clock.pause()
    back_up(host)
    report = pause.resume(CatchUp(step_ns=100 * MS, interval_ns=S))
    print("behind by", report.backlog_ticks, "ticks after the resume")
    steps = 0
    while step := clock.next_step():
        host.advance(step.wait_ns() * host.frequency_hz // S)
        # Stop all vCPUs here.
        step.apply()
        # And let them go on here.
        steps += 1
    print("caught up in", steps, "steps; the guest's clock went forward by", clock.cntvct(0) - before, "ticks")


if __name__ == "__main__":
    main()
