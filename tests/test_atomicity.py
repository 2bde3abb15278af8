"""An error leaves everything as it was: each that an operation can raise, with the whole state before and after."""

from __future__ import annotations

import copy
import errno
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cbor2
import pytest

from golden import make
from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Elapsed,
    Fleet,
    Freeze,
    ManualCounter,
    ModelVm,
    Plan,
    Reg,
    Restore,
    SyncBound,
    Timer,
)
from guestclock.errors import (
    CapabilityMissing,
    ClocksDisagree,
    ClockWentBackwards,
    CounterSkew,
    CountersMoved,
    DeadlineMissed,
    ElapsedTooLong,
    ElapsedUnknown,
    FleetRefused,
    FrequencyMismatch,
    GuestClockError,
    KvmError,
    Misuse,
    NamesDiffer,
    NoBacklog,
    NoSuchVm,
    NotACheckpoint,
    OtherInstant,
    OutOfOrder,
    Refused,
    RestoreOpen,
    StalePlan,
    SysregTrap,
    TopologyMismatch,
    UnknownRegister,
    UnknownState,
    VcpuRunning,
)
from guestclock.model import sysreg
from vms import HZ, SECOND, START_NS, busy, host, owned, state

ANYTHING: Any = object()
NO_SUCH_REG = Reg.TIMER_CTL + 4
EL2_REG = 0x603000000013E703
"""CNTVOFF_EL2."""
EL2_SYSREG = sysreg("CNTVOFF_EL2")
CTL_SYSREG = sysreg("CNTV_CTL_EL0")
NOTHING = (3, 3, 14, 2, 7)
"""An encoding among the timer's that no register has."""
TOO_FAR = 10**12 + 2**63
"""A host count at which nobody can tell the wall clock."""


@dataclass
class Scene:
    """A VM in some state, and what an operation on it needs."""

    vm: ModelVm
    counter: ManualCounter
    running: Any = None
    """The context manager of vCPU 1, which is in the guest."""
    plan: Any = None
    """A restore that was planned and not entered, beside `steps`."""
    steps: Any = None
    older: Any = None
    """A restore or pause that a newer restore took over from."""
    pause: Any = None
    closed: bool = False
    """Whether vCPUs may not run."""

    def finish(self) -> None:
        """Goes on to where every vCPU can be entered, and enters it."""
        if self.running:
            self.running.__exit__(None, None, None)
        if self.closed:
            with pytest.raises(RestoreOpen), self.vm.running(0):
                pass
        if self.steps and self.closed:
            with suppress(OutOfOrder):
                self.steps.apply()
            self.steps.release()
        if self.pause and self.closed:
            self.pause.resume()
        for vcpu in range(min(self.vm.vcpus, 4)):
            with self.vm.running(vcpu):
                pass


def stopped(kernel: str = "6.12") -> Scene:
    counter = host()
    return Scene(busy(ModelVm(2, counter=counter, kernel=kernel)), counter)


def stopped_61() -> Scene:
    return stopped("6.1")


def stopped_73() -> Scene:
    return stopped("7.3")


def opted_in() -> Scene:
    counter = host()
    return Scene(busy(owned(counter)), counter)


def full() -> Scene:
    counter = host()
    return Scene(ModelVm(512, counter=counter), counter)


def inside(make: Callable[[], Scene]) -> Callable[[], Scene]:
    """The scene with vCPU 1 in the guest, under other offsets than those that it would be loaded with now."""

    def running() -> Scene:
        scene = make()
        scene.plan = scene.vm.restoring(checkpoint())
        scene.running = scene.vm.running(1)
        scene.running.__enter__()
        scene.vm.set_one_reg(0, Reg.TIMER_CNT, 12345)
        scene.counter.advance(10)
        return scene

    running.__name__ = f"{make.__name__}, vCPU 1 inside"
    return running


RUNNING = [inside(make) for make in (stopped, stopped_61, stopped_73, opted_in)]
STOPPED = [stopped, stopped_61, stopped_73, opted_in]


def checkpoint(**changes: Any) -> Checkpoint:
    """Of a guest of two vCPUs that reads 1 000 on both counters, from the scenes' counter."""
    return busy(owned(host(**changes))).checkpoint()


def vouched(**changes: Any) -> Checkpoint:
    return busy(owned(host(**changes))).checkpoint(sync=SyncBound(1))


def of_three() -> Checkpoint:
    """Of a guest of three vCPUs."""
    return ModelVm(3, counter=host()).checkpoint()


def skewed() -> Checkpoint:
    """Of a guest whose counters differ."""
    counter = host()
    vm = ModelVm(2, counter=counter)
    counter.advance(5)
    return vm.checkpoint()


def unknown() -> Checkpoint:
    """Of a guest with something that this version doesn't know."""
    _, _, payload, _ = cbor2.loads(checkpoint().to_bytes())
    said = cbor2.loads(payload.value)
    return Checkpoint.from_bytes(make.seal(cbor2.dumps(said | {"later": 1}, canonical=True)))


def planned() -> Scene:
    scene = stopped()
    scene.plan = scene.vm.restoring(checkpoint(), Advance())
    return scene


def stale() -> Scene:
    scene = planned()
    scene.vm.set_one_reg(0, Reg.TIMER_CVAL, 1)
    return scene


def prepared() -> Scene:
    scene = planned()
    scene.steps = scene.vm.restoring(checkpoint(), Advance()).__enter__()
    scene.closed = True
    return scene


def applied() -> Scene:
    scene = prepared()
    scene.steps.apply()
    return scene


def released() -> Scene:
    scene = applied()
    scene.steps.release()
    scene.closed = False
    return scene


def taken_over() -> Scene:
    scene = prepared()
    scene.vm.restore(checkpoint())
    scene.closed = False
    return scene


def being_taken_over() -> Scene:
    scene = applied()
    scene.older = scene.steps
    scene.steps = scene.vm.restoring(checkpoint()).__enter__()
    return scene


def pause_being_taken_over() -> Scene:
    scene = paused()
    scene.older, scene.pause = scene.pause, None
    scene.steps = scene.vm.restoring(checkpoint()).__enter__()
    return scene


def taken_over_before_the_release() -> Scene:
    scene = applied()
    scene.vm.restore(checkpoint())
    scene.closed = False
    return scene


def paused() -> Scene:
    scene = stopped()
    scene.pause = scene.vm.pause(Advance())
    scene.closed = True
    return scene


def resumed() -> Scene:
    scene = paused()
    scene.pause.resume()
    scene.closed = False
    return scene


def given_up() -> Scene:
    """Of a restore by value, which has written nothing: the VM goes on."""
    scene = stopped()
    with scene.vm.restoring(skewed()) as scene.steps:
        pass
    return scene


def paused_and_taken_over() -> Scene:
    scene = paused()
    scene.vm.restore(checkpoint())
    scene.closed = False
    return scene


def rewound(act: Callable[[Scene], object]) -> Callable[[Scene], object]:
    """The act, while the counter reads less than at the checkpoint."""

    def at_an_earlier_count(scene: Scene) -> None:
        scene.counter.rewind(1)
        try:
            act(scene)
        finally:
            scene.counter.advance(1)

    return at_an_earlier_count


def msr(name: str) -> Callable[[Scene], object]:
    """Writes a register of vCPU 0 as the guest would."""
    return lambda scene: scene.vm.write_sysreg(0, *sysreg(name), 7)


Setup = Callable[[], Scene]
Act = Callable[[Scene], object]
Row = tuple[str, list[Setup], Act, type[BaseException], int | None]

VM_ROWS: list[Row] = [
    ("offset, running", RUNNING[0:1] + RUNNING[2:], lambda s: s.vm.set_counter_offset(7), VcpuRunning, errno.EBUSY),
    ("offset, Linux 6.1", [stopped_61, RUNNING[1]], lambda s: s.vm.set_counter_offset(7), KvmError, errno.EINVAL),
    ("offset 2^64", STOPPED, lambda s: s.vm.set_counter_offset(2**64), OverflowError, None),
    ("offset below -2^63", STOPPED, lambda s: s.vm.set_counter_offset(-(2**63) - 1), OverflowError, None),
    ("offset 2^200", STOPPED, lambda s: s.vm.set_counter_offset(2**200), OverflowError, None),
    ("stopped after the checkpoint", STOPPED, lambda s: s.vm.checkpoint(stopped_at=10**12 + 1), ValueError, None),
    ("offset, reserved", STOPPED, lambda s: s.vm.set_counter_offset(7, reserved=1), KvmError, errno.EINVAL),
    ("interrupt 15", STOPPED, lambda s: s.vm.set_irq(Timer.VTIMER, 15), KvmError, errno.EINVAL),
    ("interrupt of no timer", STOPPED, lambda s: s.vm.set_irq(4, 20), KvmError, errno.ENXIO),
    ("interrupt of no timer, read", STOPPED, lambda s: s.vm.irq(4), KvmError, errno.ENXIO),
    ("interrupt, running", RUNNING[0:1], lambda s: s.vm.set_irq(Timer.VTIMER, 20), KvmError, errno.EBUSY),
    ("mrs, user space", STOPPED, lambda s: s.vm.read_sysreg(0, *CTL_SYSREG, el=0), SysregTrap, None),
    ("msr, user space", STOPPED, lambda s: s.vm.write_sysreg(0, *CTL_SYSREG, 1, el=0), SysregTrap, None),
    ("mrs, no EL2", STOPPED, lambda s: s.vm.read_sysreg(0, *CTL_SYSREG, el=2), UnknownRegister, errno.ENOENT),
    ("mrs at EL3", STOPPED, lambda s: s.vm.read_sysreg(0, *CTL_SYSREG, el=3), ValueError, None),
    ("WFIT until -1", STOPPED, lambda s: s.vm.wfi_wake(0, timeout=-1), OverflowError, None),
    ("WFI, no such vCPU", STOPPED, lambda s: s.vm.wfi_wake(2), IndexError, None),
    ("offset of the wrong type", STOPPED, lambda s: s.vm.set_counter_offset(ANYTHING), TypeError, None),
    ("a 513th vCPU", [full], lambda s: s.vm.create_vcpu(), KvmError, errno.EINVAL),
    ("a vCPU created at -1", STOPPED, lambda s: s.vm.create_vcpu(now=-1), OverflowError, None),
    ("a vCPU created at 2^64", STOPPED, lambda s: s.vm.create_vcpu(now=2**64), OverflowError, None),
    ("a vCPU created whenever", STOPPED, lambda s: s.vm.create_vcpu(now=ANYTHING), TypeError, None),
    ("init, running", RUNNING, lambda s: s.vm.init_vcpu(1), VcpuRunning, errno.EBUSY),
    ("init, no such vCPU", STOPPED, lambda s: s.vm.init_vcpu(2), IndexError, None),
    ("init of -1", STOPPED, lambda s: s.vm.init_vcpu(-1), IndexError, None),
    ("init of the wrong type", STOPPED, lambda s: s.vm.init_vcpu(ANYTHING), TypeError, None),
    ("cntvct, no such vCPU", STOPPED, lambda s: s.vm.cntvct(2), IndexError, None),
    ("cntvct, far beyond any vCPU", STOPPED, lambda s: s.vm.cntvct(2**63), IndexError, None),
    ("cntpct, no such vCPU", STOPPED, lambda s: s.vm.cntpct(2), IndexError, None),
    ("cntvct at -1", STOPPED, lambda s: s.vm.cntvct(0, -1), OverflowError, None),
    ("cntpct at 2^64", STOPPED, lambda s: s.vm.cntpct(0, 2**64), OverflowError, None),
    ("get, running", RUNNING, lambda s: s.vm.get_one_reg(1, Reg.TIMER_CTL), VcpuRunning, errno.EBUSY),
    ("get of nothing, running", RUNNING, lambda s: s.vm.get_one_reg(1, NO_SUCH_REG), VcpuRunning, errno.EBUSY),
    ("get, no such vCPU", STOPPED, lambda s: s.vm.get_one_reg(2, Reg.TIMER_CTL), IndexError, None),
    ("get, no such register", STOPPED, lambda s: s.vm.get_one_reg(0, NO_SUCH_REG), UnknownRegister, errno.ENOENT),
    ("get, no EL2", STOPPED, lambda s: s.vm.get_one_reg(0, EL2_REG), UnknownRegister, errno.ENOENT),
    ("get, Linux 6.1", [stopped_61], lambda s: s.vm.get_one_reg(0, Reg.PTIMER_CTL), UnknownRegister, errno.ENOENT),
    ("get of -1", STOPPED, lambda s: s.vm.get_one_reg(0, -1), OverflowError, None),
    ("get at -1", STOPPED, lambda s: s.vm.get_one_reg(0, Reg.TIMER_CNT, now=-1), OverflowError, None),
    ("get of the wrong type", STOPPED, lambda s: s.vm.get_one_reg(0, ANYTHING), TypeError, None),
    ("set, running", RUNNING, lambda s: s.vm.set_one_reg(1, Reg.TIMER_CNT, 7), VcpuRunning, errno.EBUSY),
    ("set of nothing, running", RUNNING, lambda s: s.vm.set_one_reg(1, NO_SUCH_REG, 7), VcpuRunning, errno.EBUSY),
    ("set, no such vCPU", STOPPED, lambda s: s.vm.set_one_reg(2, Reg.TIMER_CNT, 7), IndexError, None),
    ("set, no such register", STOPPED, lambda s: s.vm.set_one_reg(0, NO_SUCH_REG, 7), UnknownRegister, errno.ENOENT),
    ("set, no EL2", STOPPED, lambda s: s.vm.set_one_reg(0, EL2_REG, 7), UnknownRegister, errno.ENOENT),
    ("set, Linux 6.1", [stopped_61], lambda s: s.vm.set_one_reg(0, Reg.PTIMER_CNT, 7), UnknownRegister, errno.ENOENT),
    ("set to 2^64", STOPPED, lambda s: s.vm.set_one_reg(0, Reg.TIMER_CVAL, 2**64), OverflowError, None),
    ("set below -2^63", STOPPED, lambda s: s.vm.set_one_reg(0, Reg.TIMER_CVAL, -(2**63) - 1), OverflowError, None),
    ("set at 2^64", STOPPED, lambda s: s.vm.set_one_reg(0, Reg.TIMER_CNT, 7, now=2**64), OverflowError, None),
    ("set to the wrong type", STOPPED, lambda s: s.vm.set_one_reg(0, Reg.TIMER_CNT, ANYTHING), TypeError, None),
    ("list, no such vCPU", STOPPED, lambda s: s.vm.reg_list(2), IndexError, None),
    ("mrs, no such vCPU", STOPPED, lambda s: s.vm.read_sysreg(2, *sysreg("CNTVCT_EL0")), IndexError, None),
    ("mrs, no such register", STOPPED, lambda s: s.vm.read_sysreg(0, *NOTHING), UnknownRegister, errno.ENOENT),
    ("mrs, no EL2", STOPPED, lambda s: s.vm.read_sysreg(0, *EL2_SYSREG), UnknownRegister, errno.ENOENT),
    ("mrs of 256", STOPPED, lambda s: s.vm.read_sysreg(0, 256, 3, 14, 0, 2), OverflowError, None),
    ("msr, no such vCPU", STOPPED, lambda s: s.vm.write_sysreg(2, *sysreg("CNTV_CVAL_EL0"), 7), IndexError, None),
    ("msr, no such register", STOPPED, lambda s: s.vm.write_sysreg(0, *NOTHING, 7), UnknownRegister, errno.ENOENT),
    ("msr CNTVCT_EL0", STOPPED, msr("CNTVCT_EL0"), UnknownRegister, errno.ENOENT),
    ("msr CNTPCT_EL0", STOPPED, msr("CNTPCT_EL0"), UnknownRegister, errno.ENOENT),
    ("msr CNTVCTSS_EL0", STOPPED, msr("CNTVCTSS_EL0"), UnknownRegister, errno.ENOENT),
    ("msr CNTFRQ_EL0", STOPPED, msr("CNTFRQ_EL0"), UnknownRegister, errno.ENOENT),
    ("msr CNTVOFF_EL2", STOPPED, msr("CNTVOFF_EL2"), UnknownRegister, errno.ENOENT),
    ("msr of -1", STOPPED, lambda s: s.vm.write_sysreg(0, *sysreg("CNTV_CVAL_EL0"), -1), OverflowError, None),
    ("msr of 2^64", STOPPED, lambda s: s.vm.write_sysreg(0, *sysreg("CNTV_CVAL_EL0"), 2**64), OverflowError, None),
    ("timer, no such vCPU", STOPPED, lambda s: s.vm.timer(2, Timer.VTIMER), IndexError, None),
    ("timer 4", STOPPED, lambda s: s.vm.timer(0, 4), ValueError, None),
    ("timer, no EL2", STOPPED, lambda s: s.vm.timer(0, Timer.HVTIMER), UnknownRegister, errno.ENOENT),
    ("deadline, no such vCPU", STOPPED, lambda s: s.vm.next_deadline(2), IndexError, None),
    ("deadline at -1", STOPPED, lambda s: s.vm.next_deadline(0, now=-1), OverflowError, None),
    ("enter, running", RUNNING, lambda s: s.vm.running(1).__enter__(), VcpuRunning, errno.EBUSY),
    ("enter, no such vCPU", STOPPED, lambda s: s.vm.running(2).__enter__(), IndexError, None),
    ("enter, closed", [prepared, applied, paused], lambda s: s.vm.running(0).__enter__(), RestoreOpen, None),
    ("leave, no such vCPU", STOPPED, lambda s: s.vm.running(2).__exit__(None, None, None), IndexError, None),
    ("checkpoint, running", RUNNING, lambda s: s.vm.checkpoint(), VcpuRunning, errno.EBUSY),
    ("checkpoint in a restore", [prepared, applied], lambda s: s.vm.checkpoint(), RestoreOpen, None),
    ("checkpoint too far", STOPPED, lambda s: s.vm.checkpoint(now=TOO_FAR), OverflowError, None),
    ("checkpoint at -1", STOPPED, lambda s: s.vm.checkpoint(now=-1), OverflowError, None),
    ("checkpoint stopped at -1", STOPPED, lambda s: s.vm.checkpoint(stopped_at=-1), OverflowError, None),
    ("pause, running", RUNNING, lambda s: s.vm.pause(), VcpuRunning, errno.EBUSY),
    ("pause, closed", [prepared, applied, paused], lambda s: s.vm.pause(), RestoreOpen, None),
    ("pause, no such views", STOPPED, lambda s: s.vm.pause(views=ANYTHING), TypeError, None),
    ("pause by no policy", STOPPED, lambda s: s.vm.pause(ANYTHING), TypeError, None),
    ("a pause that is over", [resumed], lambda s: s.pause.__enter__(), Misuse, None),
    ("a pause that is over, resumed", [resumed], lambda s: s.pause.resume(), Misuse, None),
    ("a report too early", [paused], lambda s: s.pause.report, Misuse, None),
    ("resume, taken over", [paused_and_taken_over], lambda s: s.pause.resume(), Misuse, None),
    (
        "leaving a pause, taken over",
        [paused_and_taken_over],
        lambda s: s.pause.__exit__(None, None, None),
        Misuse,
        None,
    ),
    ("resume by no policy", [paused], lambda s: s.pause.resume(ANYTHING), TypeError, None),
    ("resume by what is refused", [paused], lambda s: s.pause.resume(CatchUp(1, 1)), CapabilityMissing, None),
    ("opt in, running", RUNNING[0:1] + RUNNING[2:3], lambda s: s.vm.opt_in(), VcpuRunning, errno.EBUSY),
    ("opt in, Linux 6.1", [stopped_61], lambda s: s.vm.opt_in(), CapabilityMissing, None),
    ("opt in again", [opted_in], lambda s: s.vm.opt_in(), Misuse, None),
    ("opt in, closed", [prepared, applied, paused], lambda s: s.vm.opt_in(), RestoreOpen, None),
    ("opt in with 2^64", STOPPED, lambda s: s.vm.opt_in(offset=2**64), OverflowError, None),
    ("opt in with a bool", STOPPED, lambda s: s.vm.opt_in(offset=True), TypeError, None),
    ("no vCPU -1", STOPPED, lambda s: s.vm.cntvct(-1), IndexError, None),
    ("leave, vCPU -1", STOPPED, lambda s: s.vm.running(-1), IndexError, None),
]

PLAN_ROWS: list[Row] = [
    ("another frequency", STOPPED, lambda s: s.vm.plan(checkpoint(hz=HZ + 1)), FrequencyMismatch, None),
    ("another number of vCPUs", STOPPED, lambda s: s.vm.plan(of_three()), TopologyMismatch, None),
    ("two counters, one offset", [opted_in], lambda s: s.vm.plan(skewed()), CounterSkew, None),
    ("two counters, refused", STOPPED, lambda s: s.vm.plan(skewed(), views="refuse"), CounterSkew, None),
    (
        "adopting without the ioctl",
        [stopped_61],
        lambda s: s.vm.plan(skewed(), views="adopt-virtual"),
        CapabilityMissing,
        None,
    ),
    (
        "nobody vouches",
        STOPPED,
        lambda s: s.vm.plan(checkpoint(boot_id=None), Advance()),
        ElapsedUnknown,
        None,
    ),
    (
        "a counter and two vouched clocks that disagree",
        STOPPED,
        lambda s: s.vm.plan(vouched(realtime_ns=START_NS - SECOND), Advance(), sync=SyncBound(1)),
        ClocksDisagree,
        None,
    ),
    (
        "more time than is believed",
        STOPPED,
        lambda s: s.vm.plan(checkpoint(realtime_ns=0), Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0)),
        ElapsedTooLong,
        None,
    ),
    (
        "a deadline too short",
        [opted_in],
        lambda s: s.vm.plan(checkpoint(), CatchUp(1, SECOND, within_ns=1), elapsed=Elapsed.given(SECOND, error_ns=0)),
        DeadlineMissed,
        None,
    ),
    (
        "owing by value",
        [stopped_61],
        lambda s: s.vm.plan(checkpoint(), CatchUp(1, 1), elapsed=Elapsed.by_counter()),
        CapabilityMissing,
        None,
    ),
    (
        "a rate that is off by too much",
        STOPPED,
        lambda s: s.vm.plan(checkpoint(), rate_error_ppb=250_001),
        ValueError,
        None,
    ),
    ("no such intent", STOPPED, lambda s: s.vm.plan(checkpoint(), intent="kexec"), ValueError, None),  # type: ignore[arg-type]
    ("no such timers", STOPPED, lambda s: s.vm.plan(checkpoint(), timers="both"), ValueError, None),  # type: ignore[arg-type]
    (
        "the wall clock went backwards",
        STOPPED,
        lambda s: s.vm.plan(
            checkpoint(realtime_ns=START_NS + SECOND), Advance(), elapsed=Elapsed.by_wall_clocks(error_ns=0)
        ),
        ClockWentBackwards,
        None,
    ),
    (
        "the counter went backwards",
        STOPPED,
        rewound(lambda s: s.vm.plan(checkpoint(), Advance(), elapsed=Elapsed.by_counter())),
        ClockWentBackwards,
        None,
    ),
    ("strict, and unknown", STOPPED, lambda s: s.vm.plan(unknown(), strict=True), UnknownState, None),
    ("an instant too far", STOPPED, lambda s: s.vm.plan(checkpoint(), now=TOO_FAR), OverflowError, None),
    ("an instant of -1", STOPPED, lambda s: s.vm.plan(checkpoint(), now=-1), OverflowError, None),
    (
        "an error of -1",
        STOPPED,
        lambda s: s.vm.plan(checkpoint(), elapsed=Elapsed.by_wall_clocks(error_ns=-1)),
        OverflowError,
        None,
    ),
    ("no such views", STOPPED, lambda s: s.vm.plan(checkpoint(), views="both"), ValueError, None),  # type: ignore[arg-type]
    ("no checkpoint", STOPPED, lambda s: s.vm.plan(ANYTHING), TypeError, None),
    ("no policy", STOPPED, lambda s: s.vm.plan(checkpoint(), ANYTHING), TypeError, None),
    ("no word", STOPPED, lambda s: s.vm.plan(checkpoint(), elapsed=ANYTHING), TypeError, None),
    ("restore of another frequency", STOPPED, lambda s: s.vm.restore(checkpoint(hz=1)), FrequencyMismatch, None),
    ("restore of another name", STOPPED, lambda s: Fleet({"other": s.vm}).restore(checkpoint()), NamesDiffer, None),
    ("restore, running", RUNNING, lambda s: s.vm.restore(checkpoint()), VcpuRunning, errno.EBUSY),
    ("verify, running", RUNNING, lambda s: s.vm.verify(), VcpuRunning, errno.EBUSY),
    ("restore too far", STOPPED, lambda s: s.vm.restore(checkpoint(), now=TOO_FAR), OverflowError, None),
]

STEP_ROWS: list[Row] = [
    ("enter, stale", [stale, released], lambda s: s.plan.__enter__(), StalePlan, None),
    ("enter, running", RUNNING, lambda s: s.plan.__enter__(), VcpuRunning, errno.EBUSY),
    ("enter a second", [prepared, applied], lambda s: s.plan.__enter__(), StalePlan, None),
    ("enter again", [prepared, applied, released], lambda s: s.steps.__enter__(), Misuse, None),
    ("apply before the block", [planned], lambda s: s.plan.apply(), Misuse, None),
    ("release before the block", [planned], lambda s: s.plan.release(), Misuse, None),
    ("a restore's report too early", [planned, applied], lambda s: (s.steps or s.plan).report, Misuse, None),
    ("restoring too far", STOPPED, lambda s: s.vm.restoring(checkpoint(), now=TOO_FAR), OverflowError, None),
    ("restoring at -1", STOPPED, lambda s: s.vm.restoring(checkpoint(), now=-1), OverflowError, None),
    ("restoring whenever", STOPPED, lambda s: s.vm.restoring(checkpoint(), now=ANYTHING), TypeError, None),
    ("options that are none", STOPPED, lambda s: s.vm.restoring(checkpoint(), options=ANYTHING), TypeError, None),
    ("an unknown option", STOPPED, lambda s: s.vm.restoring(checkpoint(), polcy=None), TypeError, None),  # type: ignore[call-arg]
    ("apply again", [applied], lambda s: s.steps.apply(), OutOfOrder, None),
    ("apply, released", [released], lambda s: s.steps.apply(), Misuse, None),
    ("apply, given up", [given_up], lambda s: s.steps.apply(), Misuse, None),
    ("release, given up", [given_up], lambda s: s.steps.release(), Misuse, None),
    ("apply, taken over", [taken_over], lambda s: s.steps.apply(), Misuse, None),
    ("apply too far", [prepared], lambda s: s.steps.apply(now=TOO_FAR), OverflowError, None),
    ("apply at 2^64", [prepared], lambda s: s.steps.apply(now=2**64), OverflowError, None),
    ("release before apply", [prepared], lambda s: s.steps.release(), OutOfOrder, None),
    ("release again", [released], lambda s: s.steps.release(), Misuse, None),
    ("release, taken over", [taken_over_before_the_release], lambda s: s.steps.release(), Misuse, None),
    ("apply, being taken over", [being_taken_over], lambda s: s.older.apply(), OutOfOrder, None),
    ("release, being taken over", [being_taken_over], lambda s: s.older.release(), Misuse, None),
    (
        "resume, being taken over",
        [pause_being_taken_over],
        lambda s: s.older.resume(),
        Misuse,
        None,
    ),
    ("release too far", [applied], lambda s: s.steps.release(now=TOO_FAR), OverflowError, None),
    ("release at -1", [applied], lambda s: s.steps.release(now=-1), OverflowError, None),
    (
        "release for an instant before the plan",
        [applied],
        lambda s: s.steps.release(at=replace(s.vm.counter.stamp(), count=0)),
        OtherInstant,
        None,
    ),
]


@pytest.mark.parametrize(
    ("setup", "act", "kind", "number"),
    [
        pytest.param(setup, act, kind, number, id=f"{name}: {setup.__name__}")
        for name, setups, act, kind, number in [*VM_ROWS, *PLAN_ROWS, *STEP_ROWS]
        for setup in setups
    ],
)
def test_an_error_leaves_the_vm_as_it_was(
    setup: Setup, act: Act, kind: type[BaseException], number: int | None
) -> None:
    scene = setup()
    before = state(scene.vm)
    fresh = None if scene.closed or scene.running else scene.vm.restoring(scene.vm.checkpoint())
    with pytest.raises(kind) as caught:
        act(scene)
    error = caught.value
    assert type(error) is kind or not issubclass(kind, GuestClockError)
    assert getattr(error, "errno", None) == number
    assert isinstance(error, KvmError) == (number is not None)
    if isinstance(error, GuestClockError):
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert (type(twin), str(twin), twin.__dict__) == (kind, str(error), error.__dict__)
    assert state(scene.vm) == before
    if fresh:
        # What nobody can see but a plan: it isn't stale.
        with fresh:
            fresh.apply()
            fresh.release()
    scene.finish()


def test_a_shared_interrupt_keeps_the_vcpu_out_and_can_be_mended() -> None:
    scene = stopped()
    scene.vm.set_irq(Timer.PTIMER, scene.vm.irq(Timer.VTIMER))
    before = state(scene.vm)
    with pytest.raises(KvmError, match="vtimer and ptimer") as caught, scene.vm.running(0):
        pass
    assert caught.value.errno == errno.EINVAL
    assert state(scene.vm) == before
    scene.vm.set_irq(Timer.PTIMER, 30)
    scene.finish()


def test_every_refusal_and_every_errno_is_in_the_table() -> None:
    raised = {kind for _, _, _, kind, _ in [*VM_ROWS, *PLAN_ROWS, *STEP_ROWS] if issubclass(kind, GuestClockError)}
    # No offset of the model's is set elsewhere, a fleet's refusal is those of its VMs (test_fleet.py), and this
    # VM is in no bank that it could be removed from (test_clock_bank.py).
    assert raised >= {*Refused.__subclasses__(), *KvmError.__subclasses__(), *Misuse.__subclasses__()} - {
        CountersMoved,
        FleetRefused,
        NoBacklog,
        NoSuchVm,
    }


def test_the_flag_is_not_latched_by_a_refused_offset() -> None:
    scene = RUNNING[0]()
    with pytest.raises(VcpuRunning) as caught:
        scene.vm.set_counter_offset(7)
    assert caught.value.vcpu == 1
    scene.finish()
    assert not scene.vm.opted_in
    # So a count that is set still moves the counter.
    scene.vm.set_one_reg(0, Reg.TIMER_CNT, 777)
    assert scene.vm.cntvct(0) == 777


def test_an_open_restore_can_be_gone_on_with_after_every_refusal() -> None:
    scene = prepared()
    for step in (scene.steps.apply, scene.steps.release):
        for act in (scene.vm.checkpoint, scene.vm.running(0).__enter__, scene.vm.pause):
            with pytest.raises(RestoreOpen):
                act()
        with pytest.raises(OverflowError):
            step(now=TOO_FAR)
        step()
    assert scene.vm.cntvct(0) == 1000


@pytest.mark.parametrize("verb", ["plan", "restore", "restoring"])
def test_a_call_without_its_arguments_is_a_typeerror(verb: str) -> None:
    for call in (ModelVm, getattr(ModelVm(counter=host()), verb)):
        with pytest.raises(TypeError):
            call(ANYTHING)


def test_plans_steps_and_checkpoints_are_as_they_were_too(tmp_path: Path) -> None:
    saved = checkpoint()
    whole = saved.to_bytes()
    vm = ModelVm(2, counter=host())
    intended = vm.restoring(saved)
    said = (intended.plan.to_dict(), str(intended.plan))
    errors: list[tuple[Callable[[], object], type[BaseException]]] = [
        (lambda: saved.cval(Timer.HVTIMER), KeyError),
        (lambda: saved.ctl(4), ValueError),
        (lambda: saved.cval(ANYTHING), TypeError),
        (lambda: Checkpoint.from_bytes(whole[:-1]), GuestClockError),
        (lambda: Checkpoint.from_bytes(b""), NotACheckpoint),
        (lambda: saved.save(tmp_path / "nowhere" / "file"), FileNotFoundError),
        (lambda: Checkpoint.load(tmp_path / "nothing"), FileNotFoundError),
    ]
    for act, kind in errors:
        with pytest.raises(kind):
            act()
    assert saved.to_bytes() == whole
    assert (intended.plan.to_dict(), str(intended.plan)) == said
    assert list(tmp_path.iterdir()) == []
    assert isinstance(intended.plan, Plan)
    with intended as steps:
        assert isinstance(steps, Restore)
        steps.apply()
        assert steps.release().policy == Freeze()
