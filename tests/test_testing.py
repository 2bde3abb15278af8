"""Counters that Python objects are, recording and replaying counters, and a live run that runs again."""

from __future__ import annotations

import pickle
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc, arm64_const

from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Fleet,
    Freeze,
    HostCounter,
    KvmVm,
    ManualCounter,
    ModelVm,
    MonotonicCounter,
    Reg,
    Stamp,
    Timer,
)
from guestclock.adapters import _a64
from guestclock.adapters.unicorn import Reason, attach
from guestclock.errors import Misuse, VcpuRunning
from guestclock.model import ClockBank, DeadlineAlarm, ScaledCounter, sysreg
from guestclock.pacing import moves_by_itself
from guestclock.testing import Fault, FaultyVm, RecordingCounter, ReplayCounter
from test_unicorn_adapter import CODE, DATA, IRQ_FROM_EL1, STACK_EL1, VECTORS, assemble
from vms import HZ, SECOND, host

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestclock.types import Counter


class Plain:
    """A counter of three attributes, that counts how often it is asked."""

    def __init__(self, counter: ManualCounter) -> None:
        self.counter = counter
        self.asked: list[str] = []

    @property
    def frequency_hz(self) -> int:
        return self.counter.frequency_hz

    def read(self) -> int:
        self.asked.append("read")
        return self.counter.read()

    def stamp(self) -> Stamp:
        self.asked.append("stamp")
        return self.counter.stamp()


def plain(counter: ManualCounter) -> Any:
    return Plain(counter)


TIME = (3, 3, 14, 0, 2)
"""CNTVCT_EL0's encoding."""


def life(vm: ModelVm, at: ManualCounter) -> list[Any]:
    """Whatever a VM is asked for that a counter answers."""
    seen: list[Any] = []
    vm.opt_in(offset=500)
    for vcpu in range(vm.vcpus):
        vm.set_one_reg(vcpu, Reg.TIMER_CVAL, at.read() + 100)
        vm.set_one_reg(vcpu, Reg.TIMER_CTL, 1)
        seen += [vm.get_one_reg(vcpu, reg) for reg in vm.reg_list(vcpu)]
    vm.write_sysreg(0, *sysreg("CNTV_TVAL_EL0"), 70)
    seen += [vm.read_sysreg(0, *TIME), vm.cntvct(0), vm.cntpct(1), vm.timer(0, Timer.VTIMER), vm.next_deadline(0)]
    seen += [vm.wfi_wake(0), vm.device_irq_level(0), vm.create_vcpu()]
    with vm.running(0):
        at.advance(10)
    checkpoint = vm.checkpoint()
    seen.append(checkpoint.to_bytes())
    at.advance_ns(SECOND)
    for policy in (Freeze(), Advance(), CatchUp(SECOND // 4, SECOND)):
        seen.append(vm.plan(checkpoint, policy).to_dict())
        with vm.restoring(checkpoint, policy) as steps:
            at.advance(3)
            steps.apply()
            at.advance(4)
            seen.append(steps.release().to_dict())
    at.advance_ns(2 * SECOND)
    step = vm.next_step()
    assert step is not None
    seen += [step.wait_ns(), step.apply(), vm.restore(checkpoint, now=at.read()).to_dict()]
    with vm.pause(Advance()) as pause:
        at.advance(5)
    seen.append(pause.report.to_dict())
    return seen


def test_a_python_counter_is_a_counter_and_is_asked_once_a_call() -> None:
    native, asked = host(), plain(host())
    assert life(ModelVm(2, counter=native), native) == life(ModelVm(2, counter=asked), asked.counter)
    vm = ModelVm(1, counter=asked)
    calls: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: vm.cntvct(0), ["read"]),
        (lambda: vm.timer(0, Timer.VTIMER), ["read"]),
        (lambda: vm.cntvct(0, 5), []),
        (lambda: vm.timer(0, Timer.VTIMER, now=5), []),
        (vm.checkpoint, ["stamp"]),
        (lambda: vm.checkpoint(now=9), ["stamp"]),
        (lambda: vm.checkpoint(now=asked.counter.stamp()), []),
        (lambda: vm.frequency_hz, []),
    ]
    for call, expected in calls:
        asked.asked.clear()
        call()
        assert asked.asked == expected
    assert vm.counter is asked


def test_faults_and_scaled_counters_go_over_a_python_counter() -> None:
    def under_faults(counter: Counter, at: ManualCounter) -> list[Any]:
        vm = FaultyVm(ModelVm(2, counter=counter), [Fault("set_counter_offset", errno=16, nth=1)])
        vm.opt_in(offset=7)
        checkpoint = vm.checkpoint()
        at.advance(50)
        with pytest.raises(VcpuRunning):
            vm.restore(checkpoint)
        report, calls = vm.restore(checkpoint, Advance()), [call.text for call in vm.calls]
        return [report.to_dict(), calls, vm.cntvct(0), vm.get_one_reg(0, Reg.TIMER_CNT)]

    def scaled(counter: Counter, at: ManualCounter) -> list[Any]:
        over = ScaledCounter(counter, frequency_hz=24_000_000)
        vm = ModelVm(2, counter=over)
        return [*life_of_scaled(vm, at), over.read(), over.stamp(), over.inner_count(over.read() + 9)]

    for run in (under_faults, scaled):
        native, asked = host(), plain(host())
        assert run(native, native) == run(asked, asked.counter)
    doubly = ScaledCounter(ScaledCounter(plain(host()), frequency_hz=10**9), frequency_hz=10**6)
    assert doubly.read() == host().read() * 10**6 // HZ


def life_of_scaled(vm: ModelVm, at: ManualCounter) -> list[Any]:
    vm.opt_in(offset=500)
    checkpoint = vm.checkpoint()
    at.advance_ns(SECOND)
    return [vm.restore(checkpoint, Advance()).to_dict(), vm.cntvct(0), vm.next_deadline(0)]


def test_a_bank_goes_over_a_python_counter() -> None:
    def run(counter: Counter, at: ManualCounter) -> list[Any]:
        bank = ClockBank(counter)
        vms = bank.add_many(3, 2)
        one = bank.add(1, frequency_hz=24_000_000)
        bank.set_offsets(vms, np.full(3, 40, dtype=np.uint64))
        vcpus = bank.vcpus()
        bank.set_timers(0, vcpus, np.full(len(vcpus), 2**63, dtype=np.uint64), np.ones(len(vcpus), dtype=np.uint8))
        bank.set_timers(0, vcpus[:1], np.array([5], dtype=np.uint64), np.ones(1, dtype=np.uint8))
        seen: list[Any] = [
            bank.cntvct(),
            bank.counts(),
            bank.next_deadlines(),
            bank.next_deadlines_of_vms(),
            *bank.evaluate(),
        ]
        seen += [*bank.expire(), *bank.changes(), bank.next_deadline(), bank.vm(one).cntvct(0), bank.cntpct()]
        fleet, some = Fleet(bank), [str(vm) for vm in vms]
        checkpoint = fleet.checkpoint(only=some)
        seen.append(checkpoint.to_bytes())
        at.advance_ns(SECOND)
        seen.append(fleet.restore(checkpoint, Advance(), only=some).columns()["cntvct"])
        paused = fleet.pause(Advance())
        at.advance(77)
        seen.append(paused.resume().columns()["cntvct"])
        return [it.tolist() if isinstance(it, np.ndarray) else it for it in seen]

    native, asked = host(), plain(host())
    assert run(native, native) == run(asked, asked.counter)


def test_a_python_counter_that_fails_leaves_the_vm_as_it_was() -> None:
    class Failing(Plain):
        fails = False

        def read(self) -> int:
            if self.fails:
                raise RuntimeError("no count")
            return super().read()

        def stamp(self) -> Stamp:
            if self.fails:
                raise RuntimeError("no stamp")
            return super().stamp()

    over: Any = Failing(host())
    vm = ModelVm(1, counter=over)
    vm.opt_in(offset=0)
    checkpoint = vm.checkpoint()
    with vm.restoring(checkpoint) as steps:
        steps.apply()
        over.fails = True
        for call in (lambda: vm.cntvct(0), lambda: vm.get_one_reg(0, Reg.TIMER_CNT), steps.release, vm.checkpoint):
            with pytest.raises(RuntimeError, match=r"no (count|stamp)"):
                call()
        over.fails = False
        assert steps.release().cntvct == checkpoint.cntvct
    assert vm.state == "open"


def test_what_is_no_counter_is_refused() -> None:
    class NoStamp:
        frequency_hz = 5

        def read(self) -> int:
            return 5

    class Stopped(Plain):
        frequency_hz = 0

    for wrong in (5, "auto", NoStamp(), object):
        with pytest.raises(
            TypeError, match=r"isn't a counter, since it has no (frequency_hz|stamp).*give a HostCounter"
        ):
            ModelVm(counter=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frequency_hz is 0"):
        ModelVm(counter=Stopped(host()))  # type: ignore[arg-type]

    class Elsewhere(Plain):
        def stamp(self) -> Stamp:
            return replace(super().stamp(), frequency_hz=5)

    vm = ModelVm(counter=Elsewhere(host()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stamp\(\) is at 5 Hz, and its frequency_hz was 62500000 Hz"):
        vm.checkpoint()
    bank = ClockBank(plain(host()))
    for source, counter in ((bank, None), (ClockBank(host()), plain(host()))):
        with pytest.raises(TypeError, match="a DeadlineAlarm takes a HostCounter"):
            DeadlineAlarm(source, counter)
    with pytest.raises(TypeError):
        KvmVm(0, [0], counter=plain(host()))


def test_threads_over_a_python_counter_dont_wait_for_each_other() -> None:
    """A counter that lets another thread go on in the middle of a read, as any Python code may."""

    class Yielding(Plain):
        def read(self) -> int:
            time.sleep(0)
            return super().read()

        def stamp(self) -> Stamp:
            time.sleep(0)
            return super().stamp()

    vm = ModelVm(1, counter=Yielding(host()))  # type: ignore[arg-type]
    vm.opt_in(offset=0)
    done = []

    def work() -> None:
        for _ in range(200):
            vm.set_one_reg(0, Reg.TIMER_CVAL, 5)
            vm.timer(0, Timer.VTIMER)
            vm.checkpoint()
        done.append(1)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 4


# Recording and replaying.


def test_a_replay_gives_out_what_was_recorded() -> None:
    at = host(5)
    recording = RecordingCounter(at)
    assert (recording.counter, recording.source, recording.frequency_hz) == (at, "manual", HZ)
    assert (recording.read(), recording.stamp().count, at.advance(2), recording.read()) == (5, 5, 7, 7)
    assert recording.samples == (5, at.stamp().__class__(**fields(host(5).stamp())), 7)
    replay = recording.replay()
    again = ReplayCounter(pickle.loads(pickle.dumps(recording.samples)), frequency_hz=HZ)
    assert (replay.frequency_hz, replay.source, again.source, replay.left) == (HZ, "manual", "replay", 3)
    for counter in (replay, again):
        assert counter.read() == 5
        with pytest.raises(Misuse, match=r"calls read\(\) where a stamp was recorded, after 1 samples"):
            counter.read()
        assert counter.stamp() == recording.samples[1]
        with pytest.raises(Misuse, match=r"calls stamp\(\) where a count was recorded"):
            counter.stamp()
        assert (counter.read(), counter.left) == (7, 0)
        with pytest.raises(Misuse, match=r"calls read\(\) where nothing more was recorded, after 3 samples"):
            counter.read()
    assert "3 samples" in repr(recording)
    assert "0 left" in repr(replay)


def fields(stamp: Stamp) -> dict[str, Any]:
    return {name: getattr(stamp, name) for name in Stamp.__dataclass_fields__}


def test_nothing_waits_for_a_counter_that_is_moved_by_hand() -> None:
    assert moves_by_itself(RecordingCounter(HostCounter()))
    assert moves_by_itself(plain(host()))
    for still in (RecordingCounter(host()), RecordingCounter(host()).replay()):
        assert not moves_by_itself(still)
        assert not moves_by_itself(ScaledCounter(still, frequency_hz=5))


def test_a_restore_runs_again() -> None:
    def run(counter: Counter) -> list[Any]:
        vm = ModelVm(2, counter=counter)
        vm.opt_in(offset=0)
        checkpoint = Checkpoint.from_bytes(vm.checkpoint().to_bytes())
        return [vm.restore(checkpoint, Advance()).to_dict(), vm.cntvct(1), checkpoint.to_bytes()]

    recording = RecordingCounter(HostCounter())
    live = run(recording)
    replay = recording.replay()
    assert (run(replay), replay.left) == (live, 0)


LIVE = """
    ldr  x19, =0x30000
    mov  x18, #24
    msr  daifset, #2
again:
    mrs  x0, cntvct_el0
    str  x0, [x19], #8
    mov  x1, #400
    msr  cntv_tval_el0, x1
    mov  x1, #1
    msr  cntv_ctl_el0, x1
    mrs  x2, cntpct_el0
    mrs  x3, cntv_tval_el0
    stp  x2, x3, [x19], #16
    wfi                             // An IRQ ends it, masked or not.
    msr  daifclr, #2
    nop
    msr  daifset, #2
    subs x18, x18, #1
    b.ne again
    hvc  #7
"""
"""A guest that stores every time that it reads, and sleeps until its timer's interrupt, two dozen times."""
TOOK = """
    add  x20, x20, #1
    mrs  x21, cntvct_el0
    str  x21, [x19], #8
    msr  cntv_ctl_el0, xzr
    eret
"""


def guest_of(counter: Counter) -> tuple[bytes, list[int]]:
    """Memory and registers of that guest once it is done, over this counter."""
    uc: Any = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    uc.mem_map(CODE, 0x1_0000 * 4)
    uc.mem_write(CODE, assemble(LIVE, CODE))
    uc.mem_write(IRQ_FROM_EL1, assemble(TOOK, IRQ_FROM_EL1))
    uc.cpr_write(*_a64.VBAR_EL1, VECTORS)
    vm = ModelVm(1, counter=counter)
    vm.opt_in(offset=0)
    timer = attach(uc, vm, 0, mode="exact")
    uc.reg_write(arm64_const.UC_ARM64_REG_SP, STACK_EL1)
    uc.reg_write(arm64_const.UC_ARM64_REG_PC, CODE)
    assert timer.run_until(slice_instructions=7).reason is Reason.HVC
    registers = [uc.reg_read(arm64_const.UC_ARM64_REG_X0 + number) for number in range(29)]
    registers += [uc.reg_read(reg) for reg in (arm64_const.UC_ARM64_REG_PC, arm64_const.UC_ARM64_REG_PSTATE)]
    return bytes(uc.mem_read(CODE, 0x1_0000 * 4)), registers


def test_a_live_run_under_unicorn_runs_again_byte_for_byte() -> None:
    recording = RecordingCounter(MonotonicCounter())
    memory, registers = guest_of(recording)
    assert registers[20] >= 24
    read = np.frombuffer(memory[DATA - CODE : DATA - CODE + 8], dtype=np.uint64)
    assert read[0] in [sample for sample in recording.samples if isinstance(sample, int)]
    replay = recording.replay()
    assert guest_of(replay) == (memory, registers)
    assert replay.left == 0
    # Another run has other times, and a recording that was changed is another run.
    assert guest_of(RecordingCounter(MonotonicCounter()))[0] != memory
    longer = [sample + 1 if isinstance(sample, int) else sample for sample in recording.samples]
    assert guest_of(ReplayCounter(longer, frequency_hz=HZ))[0] != memory
