"""Eight threads on one VM: nothing torn, nothing mixed, no step back that wasn't ordered, no deadlock.

CPython's lock lets one thread at a time into the native module, and the module never gives it up inside a call but to
make an exception, or to wait for a restore that another thread is in the middle of. So what is shuffled here are whole
calls; what happens inside them is explored by rust/model/tests/loom.rs.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import pytest

from guestclock import Fleet, ManualCounter, ModelVm, Reg, Stamp, Timer
from guestclock.errors import Misuse, NoSuchVm, OutOfOrder, RestoreOpen, StalePlan, VcpuRunning
from guestclock.fleet import FleetPause, FleetRestore
from guestclock.model import ClockBank
from vms import Running

P = ParamSpec("P")
T = TypeVar("T")

ROUNDS = 2000
UNIT = 1 << 40
"""More than a counter is advanced by in a test, so that the bits from here on are the offset's alone."""
EPOCH = 1 << 20
"""More than small advances come to in a test."""


failed = threading.Event()
"""Something failed in one of the threads: nobody need wait for it any longer."""


@pytest.fixture(autouse=True)
def _restless(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Let threads take turns as often as the interpreter can, and end a deadlock by ending the process.

    pytest's own timeout needs the interpreter, and the thread that blocks may hold it.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    with capfd.disabled():
        stderr = os.dup(2)  # So that the threads' tracebacks are seen.
    faulthandler.dump_traceback_later(100, exit=True, file=stderr)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)
    sys.setswitchinterval(before)


def together(*bodies: Callable[[], None]) -> None:
    """Run all at once, each in a thread, and raise what the first that failed raised."""
    start = threading.Barrier(len(bodies))
    failures: list[BaseException] = []

    def run(body: Callable[[], None]) -> None:
        start.wait()
        try:
            body()
        except BaseException as failure:  # noqa: BLE001 - raised below, in the test's own thread.
            failures.append(failure)
            failed.set()

    failed.clear()
    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def insist(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call again until nothing stands in the way: whatever does is bounded, and the call left all as it was."""
    while True:
        try:
            return call(*args, **kwargs)
        except (RestoreOpen, StalePlan, VcpuRunning):
            if failed.is_set():
                raise


class Moving:
    """A VM whose counter and offset move, one thread's work a method.

    The guest's count shows both parts of itself: the offset in force in the upper bits, the host's count in the lower.
    That count shows in turn after which change of the offset it was taken.
    """

    CVAL = 1 << 60

    def __init__(self) -> None:
        self.counter = ManualCounter()
        self.vm = ModelVm(2, counter=self.counter)
        self.vm.set_one_reg(0, Reg.TIMER_CVAL, self.CVAL)
        self.vm.set_one_reg(0, Reg.TIMER_CTL, 1)

    @staticmethod
    def check(units: int, count: int) -> None:
        """This offset was in force at this count: `move` changes the one, then the other."""
        assert units - count // EPOCH in {0, 1}

    def whole(self, read: Callable[..., int], *args: int, least: int = 0) -> int:
        """Take a guest's count: that of a moment between the call's begin and end, and not before `least`."""
        begin = self.counter.read()
        value = read(*args)
        units, count = divmod(value, UNIT)
        assert begin <= count <= self.counter.read()
        self.check(units, count)
        assert value >= least
        return value

    def read_virtual(self) -> None:
        least = 0
        for _ in range(4 * ROUNDS):
            # While vCPU 1 is in its guest no change can pass it by: it is refused.
            least = self.whole(self.vm.cntvct, 1, least=least)
            least = self.whole(self.vm.cntvct, self.vm.vcpus - 1, least=least)

    def read_physical(self) -> None:
        least = 0
        for vcpu in [0, 1] * (4 * ROUNDS):
            least = self.whole(self.vm.cntpct, vcpu, least=least)

    def read_timers(self) -> None:
        for _ in range(2 * ROUNDS):
            begin = self.counter.read()
            state = self.vm.timer(0, Timer.VTIMER)
            assert (state.ctl, state.cval, state.line) == (1, self.CVAL, False)
            assert state.deadline is not None
            units, rest = divmod(self.CVAL - state.deadline, UNIT)
            count = -state.tval % 2**32
            assert rest == 0
            assert begin <= count <= self.counter.read()
            self.check(units, count)
            self.whole(lambda: insist(self.vm.get_one_reg, 1, Reg.TIMER_CNT))

    def move(self) -> None:
        for units in range(1, ROUNDS + 1):
            insist(self.vm.set_counter_offset, -units * UNIT)
            self.counter.advance(EPOCH)

    def advance(self) -> None:
        for _ in range(4 * ROUNDS):
            self.counter.advance(1)

    def save(self) -> None:
        for _ in range(ROUNDS):
            saved = insist(self.vm.checkpoint)
            assert saved.cntvct == saved.cntpct
            units, count = divmod(saved.cntvct, UNIT)
            assert count == saved.stamp.count
            self.check(units, count)
            assert saved.vcpus == len(saved.cval(Timer.VTIMER)) <= self.vm.vcpus

    def create(self) -> None:
        while not (self.vm.opted_in or failed.is_set()):
            pass  # Before, a new vCPU would take the virtual counters back to 0.
        for vcpu in range(2, 100):
            assert self.vm.create_vcpu() == vcpu
            self.whole(self.vm.cntvct, vcpu)

    def run(self) -> None:
        for _ in range(ROUNDS):
            with self.vm.running(1):
                first = self.whole(self.vm.cntvct, 1)
                assert self.whole(self.vm.cntvct, 1, least=first) // UNIT == first // UNIT


def test_every_value_read_belongs_to_one_moment() -> None:
    it = Moving()
    together(it.read_virtual, it.read_physical, it.read_timers, it.move, it.advance, it.save, it.create, it.run)
    assert it.counter.read() == ROUNDS * EPOCH + 4 * ROUNDS
    assert {it.vm.cntvct(vcpu) for vcpu in range(100)} == {ROUNDS * UNIT + it.counter.read()}


def test_a_guest_goes_back_only_by_what_a_restore_takes_away() -> None:
    counter = ManualCounter(10**9)
    vm = ModelVm(2, counter=counter)
    vm.set_counter_offset(10**9)
    inside = [False, False]

    def read(view: Callable[[int], int]) -> None:
        ran = 0
        for _ in range(6 * ROUNDS):
            # Either the pause is being seen, which the restore is about to take away, or it isn't.
            paused, count = divmod(view(0), UNIT)
            assert paused in {0, 1}
            assert ran <= count <= ROUNDS
            ran = count

    def enter(vcpu: int) -> None:
        for _ in range(2 * ROUNDS):
            try:
                with vm.running(vcpu):
                    inside[vcpu] = True
                    first = vm.cntvct(vcpu)
                    assert first <= vm.cntvct(vcpu)
                    inside[vcpu] = False
            except RestoreOpen:
                assert not inside[vcpu]

    def freeze() -> None:
        for _ in range(ROUNDS):
            saved = insist(vm.checkpoint)
            counter.advance(UNIT)
            restore = insist(lambda saved=saved: vm.restoring(saved).__enter__())  # type: ignore[misc]
            assert not any(inside)
            restore.apply()
            assert not any(inside)
            report = restore.release()
            assert report.cntvct == saved.cntvct
            counter.advance(1)

    def save() -> None:
        for _ in range(ROUNDS):
            saved = insist(vm.checkpoint)
            assert saved.cntvct == saved.cntpct
            assert saved.cntvct // UNIT in {0, 1}

    together(
        lambda: read(vm.cntvct),
        lambda: read(vm.cntpct),
        lambda: read(lambda vcpu: vm.read_sysreg(vcpu, 3, 3, 14, 0, 2)),
        lambda: read(lambda vcpu: insist(vm.get_one_reg, vcpu, Reg.TIMER_CNT)),
        lambda: enter(0),
        lambda: enter(1),
        freeze,
        save,
    )
    assert vm.cntvct(0) == vm.cntpct(1) == ROUNDS


def test_threads_that_share_a_restore_or_a_pause_do_not_block_each_other() -> None:
    # An exception is made by Python code, in which another thread may get its turn: no lock may be held then.
    vm = ModelVm(1, counter=ManualCounter())
    restore = vm.restoring(vm.checkpoint()).__enter__()
    applied: list[bool] = []

    def apply() -> None:
        for _ in range(ROUNDS):
            try:
                restore.apply()
                applied.append(True)
            except OutOfOrder:
                pass

    together(*[apply] * 8)
    assert applied == [True]
    restore.release()

    pause = vm.pause()
    ended: list[bool] = []

    def resume() -> None:
        for _ in range(ROUNDS):
            try:
                pause.resume()
                ended.append(True)
            except Misuse:
                pass

    together(*[resume] * 8)
    assert ended == [True]


class Looked(Running):
    """A counter whose reads look at something of guestclock's."""

    look: Callable[[], object] | None = None

    def stamp(self) -> Stamp:
        if self.look is not None:
            self.look()
        return super().stamp()


@pytest.mark.parametrize("fleet", [False, True], ids=["alone", "fleet"])
def test_a_counter_is_read_with_no_lock_held(fleet: bool) -> None:
    """So a counter of a program's own may take the program's locks, and ask a restore or a pause how far it is."""
    counter = Looked()
    vms = {name: ModelVm(1, counter=counter, name=name) for name in "ab"[: 1 + fleet]}
    for vm in vms.values():
        vm.opt_in()
    of: ModelVm | Fleet = Fleet(vms) if fleet else vms["a"]
    looks: list[str] = []

    def opened() -> object:
        return [vm.state for vm in vms.values()]

    restore = of.restoring(Fleet(vms).checkpoint() if fleet else vms["a"].checkpoint())
    own = list(restore._restores.values()) if isinstance(restore, FleetRestore) else [restore]
    counter.look = lambda: looks.append(f"{own!r} {opened()}")
    with restore:
        restore.apply()
        restore.release()
    assert len(looks) >= 3
    with of.restoring(Fleet(vms).checkpoint() if fleet else vms["a"].checkpoint()):
        pass
    pause = of.pause()
    paused = list(pause._pauses.values()) if isinstance(pause, FleetPause) else [pause]

    def report() -> None:
        for one in paused:
            with pytest.raises(Misuse):
                _ = one.report

    counter.look = report
    pause.resume()


def test_a_checkpoint_of_all_beside_vms_that_come_and_go() -> None:
    """It has VMs that were there at one instant, or says which one is gone."""
    bank = ClockBank(ManualCounter(1000))
    kept = {str(vm) for vm in bank.add_many(3)}
    over = threading.Event()
    saved: list[int] = []

    def comes_and_goes() -> None:
        try:
            for _ in range(ROUNDS):
                bank.remove(bank.add_many(2))
        finally:
            over.set()

    def saves() -> None:
        while not over.is_set():
            try:
                checkpoint = Fleet(bank).checkpoint()
            except NoSuchVm as gone:
                assert "removed" in str(gone)
                continue
            names = {vm.name for vm in checkpoint}
            assert kept <= names
            # Two come and go together.
            assert len(names) in {3, 5}
            saved.append(len(names))

    together(comes_and_goes, saves, saves)
    assert len(Fleet(bank).checkpoint()) == 3
