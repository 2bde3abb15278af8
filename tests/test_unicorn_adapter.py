from __future__ import annotations

import struct
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import keystone
import pytest
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc, UcError, arm64_const, unicorn_const

from guestclock import HostCounter, ManualCounter, ModelVm, MonotonicCounter, Timer
from guestclock.adapters import _a64
from guestclock.adapters.unicorn import Mode, Reason, Stop, UnhandledException, UnicornTimer, attach
from guestclock.errors import CapabilityMissing, RestoreOpen, SysregTrap
from guestclock.model import sysreg

if TYPE_CHECKING:
    from collections.abc import Callable

CODE, VECTORS, DATA, STACK_EL0, STACK_EL1 = 0x1_0000, 0x2_0000, 0x3_0000, 0x4_0000, 0x5_0000
IRQ_FROM_EL0, IRQ_FROM_EL1 = VECTORS + 0x480, VECTORS + 0x280
OFFSET = 1_000

MOST_VALUE = 0xFFFF_FFFF_FFFF_FFFF

COUNT_AND_QUIET = """
    add  x20, x20, #1
    mrs  x21, spsr_el1
    mrs  x22, cntv_ctl_el0
    msr  cntv_ctl_el0, xzr
    msr  cntp_ctl_el0, xzr
    eret
"""
EVERY_READ = """
    mrs  x0, cntfrq_el0
    mrs  x1, cntvct_el0
    mrs  x2, cntpct_el0
    mrs  x3, cntv_ctl_el0
    mrs  x4, cntv_cval_el0
    mrs  x5, cntv_tval_el0
    mrs  x6, cntp_ctl_el0
    mrs  x7, cntp_cval_el0
    mrs  x8, cntp_tval_el0
    hvc  #7
"""


def assemble(source: str, address: int) -> bytes:
    words, _ = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN).asm(source, address, as_bytes=True)
    return bytes(words)


class Guest:
    """A guest of one vCPU, whose VM has opted in with an offset of 1 000."""

    def __init__(
        self,
        source: str,
        *,
        mode: Mode = "exact",
        counter: ManualCounter | MonotonicCounter | HostCounter | None = None,
        irq: str = COUNT_AND_QUIET,
        install_hooks: bool = True,
        now: Callable[[], int] | None = None,
    ) -> None:
        self.uc: Any = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.uc.mem_map(CODE, 0x1_0000 * 4)
        self.uc.mem_write(CODE, assemble(source, CODE))
        for vector in (IRQ_FROM_EL0, IRQ_FROM_EL1):
            self.uc.mem_write(vector, assemble(irq, vector))
        self.uc.cpr_write(*_a64.VBAR_EL1, VECTORS)
        self.counter = counter or (ManualCounter(5_000) if mode == "exact" else MonotonicCounter())
        self.vm = ModelVm(vcpus=1, counter=self.counter)
        self.vm.set_counter_offset(OFFSET if isinstance(self.counter, ManualCounter) else self.counter.read())
        self.timer: UnicornTimer = attach(self.uc, self.vm, 0, mode=mode, install_hooks=install_hooks, now=now)
        self.uc.reg_write(arm64_const.UC_ARM64_REG_SP, STACK_EL1)
        self.uc.reg_write(arm64_const.UC_ARM64_REG_PC, CODE)

    def x(self, number: int) -> int:
        return int(self.uc.reg_read(arm64_const.UC_ARM64_REG_X0 + number))

    @property
    def pc(self) -> int:
        return int(self.uc.reg_read(arm64_const.UC_ARM64_REG_PC))

    @property
    def pstate(self) -> int:
        return int(self.uc.reg_read(arm64_const.UC_ARM64_REG_PSTATE))


def test_exact_mode_answers_every_register_from_the_vm() -> None:
    guest = Guest(
        """
        mov  x10, #0x2000
        msr  cntv_cval_el0, x10
        mov  x10, #3                // ENABLE, IMASK
        msr  cntv_ctl_el0, x10
        mov  x10, #0x7ff
        msr  cntp_cval_el0, x10
        mov  x10, #2                // IMASK
        msr  cntp_ctl_el0, x10
        """
        + EVERY_READ
    )
    assert guest.timer.run_until(step=lambda _: None) == Stop(Reason.HVC, 7)
    count = 5_000 - OFFSET
    assert [guest.x(n) for n in range(9)] == [
        62_500_000,
        count,
        count,
        0b011,
        0x2000,
        0x2000 - count,
        0b110,
        0x7FF,
        (0x7FF - count) % 2**32,
    ]
    state = guest.vm.timer(0, Timer.VTIMER)
    assert (state.ctl, state.cval) == (0b011, 0x2000)


def test_a_tval_write_counts_from_the_guests_now() -> None:
    guest = Guest("mov w0, #-5\n msr cntv_tval_el0, x0\n mov x0, #300\n msr cntp_tval_el0, x0\n hvc #1")
    guest.timer.run_until(step=lambda _: None)
    count = 5_000 - OFFSET
    assert guest.vm.timer(0, Timer.VTIMER).cval == count - 5
    assert guest.vm.timer(0, Timer.PTIMER).cval == count + 300


@pytest.mark.parametrize("register", ["x0", "x28", "x29", "x30", "xzr"])
def test_every_general_register_can_be_the_target(register: str) -> None:
    guest = Guest(f"mrs {register}, cntvct_el0\n msr cntv_cval_el0, {register}\n hvc #1")
    guest.timer.run_until(step=lambda _: None)
    assert guest.vm.timer(0, Timer.VTIMER).cval == (0 if register == "xzr" else 5_000 - OFFSET)


@pytest.mark.parametrize("register", ["x0", "x28", "x29", "x30", "xzr"])
def test_every_general_register_can_be_the_target_of_a_trapped_access(register: str) -> None:
    # Without an MSR hook the write traps too, as for a VMM whose own hooks leave it to on_intr.
    guest = Guest(
        f"mrs {register}, cntpct_el0\n msr cntp_cval_el0, {register}\n mrs x1, cntp_cval_el0\n hvc #1",
        mode="fast",
        install_hooks=False,
    )
    guest.uc.hook_add(unicorn_const.UC_HOOK_INTR, guest.timer.on_intr)
    before = guest.vm.cntpct(0)
    assert guest.timer.run_until().hvc == 1
    after = guest.vm.cntpct(0)
    assert guest.vm.timer(0, Timer.PTIMER).cval == guest.x(1)
    assert guest.x(1) == 0 if register == "xzr" else before <= guest.x(1) <= after


def test_now_is_called_once_for_each_access_and_answers_it() -> None:
    given: list[int] = []

    def now() -> int:
        given.append(1_000_000 + 10 * len(given))
        return given[-1]

    guest = Guest(
        "mrs x0, cntvct_el0\n mrs x1, cntpct_el0\n mrs x2, midr_el1\n msr cntp_tval_el0, xzr\n hvc #1", now=now
    )
    guest.timer.run_until(step=lambda _: None)
    assert given == [1_000_000, 1_000_010, 1_000_020]
    assert guest.x(0) == 1_000_000 - OFFSET
    assert guest.x(1) == 1_000_010 - OFFSET
    assert guest.vm.timer(0, Timer.PTIMER).cval == 1_000_020 - OFFSET


def test_fast_mode_reads_lie_between_the_vms_own() -> None:
    guest = Guest(
        "mov x10, #-1\n msr cntv_cval_el0, x10\n mov x10, #1\n msr cntv_ctl_el0, x10\n" + EVERY_READ, mode="fast"
    )
    low = guest.vm.cntvct(0)
    assert guest.timer.run_until() == Stop(Reason.HVC, 7)
    high = guest.vm.cntvct(0)
    assert low <= guest.x(1) <= guest.x(2) <= high
    assert guest.x(0) == 62_500_000
    assert guest.x(3) == 1
    assert guest.x(4) == MOST_VALUE
    assert guest.x(2) <= (MOST_VALUE - guest.x(5)) % 2**32 <= high
    assert guest.x(6) == guest.vm.timer(0, Timer.PTIMER).ctl


def test_fast_mode_follows_a_new_offset_after_sync() -> None:
    guest = Guest("again: mrs x0, cntvct_el0\n mrs x1, cntpct_el0\n hvc #1\n b again", mode="fast")
    guest.timer.run_until()
    guest.vm.set_counter_offset(guest.counter.read() - 10**15)
    guest.timer.sync()
    guest.timer.run_until()
    assert 10**15 <= guest.x(0) <= guest.x(1) <= guest.vm.cntvct(0)


def test_fast_mode_refreshes_istatus_for_a_guest_that_polls() -> None:
    guest = Guest(
        """
        mrs  x0, cntvct_el0
        add  x0, x0, #100, lsl #12  // 6.5 ms
        msr  cntv_cval_el0, x0
        mov  x0, #3                 // no interrupt, so nothing but the slice's end says so
        msr  cntv_ctl_el0, x0
        poll:
        mrs  x1, cntv_ctl_el0
        tbz  x1, #2, poll
        hvc  #1
        """,
        mode="fast",
    )
    assert guest.timer.run_until(deadline=guest.counter.read() + 10 * 62_500_000).reason is Reason.HVC
    assert guest.x(1) == 0b111


class ListReader:
    """A guest that follows a ring of pointers, each by the register that it came in: done twice, a load skips one."""

    LENGTH = 1_000

    def __init__(self) -> None:
        self.guest = Guest("follow:\n ldr x0, [x0]\n add x1, x1, #1\n b follow", mode="fast")
        ring = [DATA + 8 * ((number + 1) % self.LENGTH) for number in range(self.LENGTH)]
        self.guest.uc.mem_write(DATA, struct.pack(f"<{self.LENGTH}Q", *ring))
        self.guest.uc.reg_write(arm64_const.UC_ARM64_REG_X0, DATA)

    def assert_nothing_was_skipped(self) -> None:
        loads = self.guest.x(1) + (self.guest.pc == CODE + 4)
        assert self.guest.x(0) == DATA + 8 * (loads % self.LENGTH)


def test_no_load_is_done_twice_at_a_slices_end() -> None:
    reader = ListReader()
    for _ in range(50):
        stop = reader.guest.timer.run_until(deadline=reader.guest.counter.read() + 6_250, slice_us=20)
        assert stop == Stop(Reason.DEADLINE)
        reader.assert_nothing_was_skipped()


def test_no_load_is_done_twice_where_another_thread_stops_the_guest() -> None:
    reader = ListReader()
    for _ in range(20):
        caller = threading.Timer(0.001, reader.guest.timer.stop)
        caller.start()
        assert reader.guest.timer.run_until() == Stop(Reason.REQUESTED)
        caller.join()
        reader.assert_nothing_was_skipped()


def test_a_slice_of_slow_instructions_ends_in_a_hook() -> None:
    guest = Guest("poll:\n mrs x0, cntpct_el0\n b poll", mode="fast")
    guest.timer._pace = 10**12, 1
    assert guest.timer.run_until(deadline=guest.counter.read() + 6_250) == Stop(Reason.DEADLINE)


def test_no_block_is_done_twice_in_a_loop_of_the_vmms_own() -> None:
    """Another thread of it stops the guest, at any instruction of the blocks that follow a trapped read."""
    guest = Guest(
        """
        mrs  x5, cntpct_el0         // trapped
        again:
        add  x1, x1, #1
        b    other
        other:
        add  x2, x2, #1
        b    again
        """,
        mode="fast",
    )
    over = threading.Event()

    def stop_again_and_again() -> None:
        while not over.wait(0.000_1):
            guest.uc.emu_stop()

    stopper = threading.Thread(target=stop_again_and_again)
    stopper.start()
    try:
        for _ in range(50):
            guest.timer.sync()
            with guest.vm.running(0):
                guest.uc.emu_start(CODE, 0xFFFF_FFFF_FFFF_FFF0)
            guest.timer.check()
            ahead = guest.x(1) - guest.x(2)
            assert ahead == (guest.pc in (CODE + 8, CODE + 12))
            guest.uc.reg_write(arm64_const.UC_ARM64_REG_X1, guest.x(2))
    finally:
        over.set()
        stopper.join()


ALARM = """
    mrs  x0, cntvct_el0
    add  x0, x0, #2000
    msr  cntv_cval_el0, x0
    mov  x0, #1
    msr  cntv_ctl_el0, x0
"""


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_sleeping_guest_is_woken_by_its_timer(mode: Mode) -> None:
    guest = Guest(ALARM + "wfi\n msr daifclr, #2\n mrs x1, cntvct_el0\n hvc #1", mode=mode)
    delivered: list[int] = []
    stop = guest.timer.run_until(on_irq=lambda: delivered.append(guest.pc))
    assert stop.hvc == 1
    assert delivered == [IRQ_FROM_EL1]
    assert guest.x(20) == 1
    assert guest.x(21) & 0xF == 0b0101
    assert guest.x(22) == 0b101
    assert guest.x(1) >= guest.vm.timer(0, Timer.VTIMER).cval


def test_wfi_waits_for_the_very_deadline() -> None:
    guest = Guest(ALARM + "msr daifclr, #2\n wfi\n mrs x1, cntvct_el0\n hvc #1")
    waits: list[int] = []

    def wait(ticks: int) -> None:
        waits.append(ticks)
        assert isinstance(guest.counter, ManualCounter)
        guest.counter.advance(ticks)

    guest.timer.run_until(wait=wait, step=lambda _: None)
    assert waits == [2_000]
    assert guest.x(1) == guest.vm.timer(0, Timer.VTIMER).cval


def test_the_physical_timer_interrupts_too() -> None:
    guest = Guest(
        "mov x0, #500\n msr cntp_tval_el0, x0\n mov x0, #1\n msr cntp_ctl_el0, x0\n msr daifclr, #2\n wfi\n hvc #1"
    )
    assert guest.timer.run_until().hvc == 1
    assert guest.x(20) == 1
    assert guest.counter.read() >= 5_500


def test_a_masked_interrupt_wakes_wfi_and_is_taken_at_the_unmasking_instruction() -> None:
    guest = Guest(
        ALARM
        + """
        wfi
        mov  x10, x20               // 0: not taken yet
        msr  daifclr, #2
        mov  x11, x20               // 1
        msr  daifset, #2
        hvc  #1
        """,
        irq=COUNT_AND_QUIET.replace("mrs  x21, spsr_el1", "mrs  x21, elr_el1"),
    )
    assert guest.timer.run_until().hvc == 1
    assert (guest.x(10), guest.x(11), guest.x(20)) == (0, 1, 1)
    words = bytes(guest.uc.mem_read(guest.x(21) - 4, 4))
    assert words == assemble("msr daifclr, #2", 0)


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_a_window_of_one_instruction_is_enough(mode: Mode) -> None:
    guest = Guest(
        ALARM
        + """
        again:
        msr  daifclr, #2
        msr  daifset, #2
        cbz  x20, again
        hvc  #1
        """,
        mode=mode,
    )
    deadline = guest.counter.read() + 10 * 62_500_000
    assert guest.timer.run_until(deadline=deadline).hvc == 1
    assert guest.x(20) == 1
    if mode == "exact":
        # The unmasking instruction, six of the handler, and the three that leave the loop and end the run.
        assert guest.counter.read() - OFFSET - guest.vm.timer(0, Timer.VTIMER).cval == 10


def test_a_spinning_guest_is_interrupted_at_the_very_instruction() -> None:
    guest = Guest(ALARM + "msr daifclr, #2\n spin: add x5, x5, #1\n b spin", irq="mrs x1, cntvct_el0\n hvc #2")
    # One tick for each instruction of a full slice.
    assert guest.timer.run_until().hvc == 2
    assert guest.x(1) == guest.vm.timer(0, Timer.VTIMER).cval
    assert guest.x(5) > 0


POLL = """
    mrs  x0, cntvct_el0
    add  x0, x0, #2500
    msr  cntv_cval_el0, x0
    mov  x1, #3                     // ENABLE and IMASK: nothing but a look says so
    msr  cntv_ctl_el0, x1
    poll:
    mrs  x2, cntv_ctl_el0
    tbz  x2, #2, poll
    mrs  x3, cntvct_el0
    hvc  #1
"""
DELAY = """
    mrs  x0, cntvct_el0
    add  x1, x0, #100
    again:
    mrs  x3, cntvct_el0
    cmp  x3, x1
    b.lo again
    hvc  #1
"""


@pytest.mark.parametrize(("source", "ticks", "loop"), [(POLL, 2_500, 2), (DELAY, 100, 3)], ids=["ISTATUS", "CNTVCT"])
def test_a_guest_that_polls_sees_time_go_on(source: str, ticks: int, loop: int) -> None:
    guest = Guest(source)
    assert guest.timer.run_until().hvc == 1
    # By no more than one turn of its loop is it late, and the read that says so.
    assert ticks <= guest.x(3) - (5_000 - OFFSET) <= ticks + loop + 1
    coarse = Guest(source)
    assert coarse.timer.run_until(coarse=True).hvc == 1
    assert coarse.x(3) - (5_000 - OFFSET) > ticks + 10_000


MIXED = """
    mrs  x0, cntvct_el0
    mov  x19, #200
    loop:
    add  x10, x10, #1
    tbz  x19, #0, even
    hvc  #2
    mrs  x1, cntpct_el0
    even:
    mrs  x2, spsr_el1               // not the model's
    bl   sub
    add  x3, x2, #8
    msr  cntv_cval_el0, x3
    mov  x4, #1
    msr  cntv_ctl_el0, x4
    msr  daifclr, #2
    mrs  x5, cntv_ctl_el0
    nop
    msr  daifset, #2
    subs x19, x19, #1
    b.ne loop
    msr  daifclr, #2
    self:
    b    self
    sub:
    mrs  x2, cntvct_el0
    ret
"""


@pytest.mark.parametrize("slice_instructions", [1, 7, 1_000, 20_000])
def test_every_access_is_of_its_own_instruction(slice_instructions: int) -> None:
    """Counted by a hook for each instruction, apart from the adapter."""
    seen: list[tuple[int, int]] = []
    executed = 0

    def now() -> int:
        # The instruction that asks has been counted, and isn't over.
        seen.append((guest.counter.read(), executed - 1))
        return seen[-1][0]

    def on_hvc(_immediate: int) -> bool:
        seen.append((guest.counter.read(), executed))
        return True

    def count(*_: object) -> None:
        nonlocal executed
        executed += 1

    guest = Guest(MIXED, now=now)
    guest.uc.hook_add(unicorn_const.UC_HOOK_CODE, count)
    stop = guest.timer.run_until(deadline=12_000, on_hvc=on_hvc, slice_instructions=slice_instructions)
    assert stop.reason is Reason.DEADLINE
    assert len(seen) > 1_000
    assert guest.x(20) > 100
    assert {at - before for at, before in seen} == {5_000}
    assert (guest.counter.read(), executed) == (12_000, 7_000)


def test_who_moves_time_himself_is_told_of_every_instruction() -> None:
    guest = Guest(DELAY.replace("#100", "#50"))
    told: list[int] = []

    def step(instructions: int) -> None:
        told.append(instructions)
        assert isinstance(guest.counter, ManualCounter)
        guest.counter.advance(5 * instructions)

    assert guest.timer.run_until(step=step).hvc == 1
    # Twice up to a read of the counter, thrice a turn of the loop, and what is left up to the HVC.
    assert told[0] == 2
    assert set(told[1:-1]) == {3}
    assert guest.counter.read() == 5_000 + 5 * sum(told)


@pytest.mark.parametrize(
    ("mode", "access", "gates"),
    [
        ("exact", "mrs x9, cntvct_el0", 1 << 1),
        ("exact", "mrs x9, cntv_cval_el0", 1 << 8),
        ("exact", "msr cntv_cval_el0, x9", 1 << 8),
        ("fast", "msr cntv_cval_el0, x9", 1 << 8),
    ],
)
def test_el0_gets_what_cntkctl_allows(mode: Mode, access: str, gates: int) -> None:
    for allowed in (True, False):
        guest = Guest(
            f"""
            mov  x0, #{gates if allowed else 0x3FF & ~gates}
            msr  cntkctl_el1, x0
            adr  x0, user
            msr  elr_el1, x0
            msr  spsr_el1, xzr          // EL0, nothing masked
            eret
            user:
            {access}
            mov  x7, #1
            stop:
            b    stop
            """,
            mode=mode,
        )
        if allowed:
            # In fast mode a deadline is real time, in which a busy host may let the guest do nothing at all.
            while not guest.x(7):
                deadline = guest.counter.read() + 60_000
                assert guest.timer.run_until(deadline=deadline).reason is Reason.DEADLINE
        else:
            # In fast mode that is real time: far more than a guest needs that has to wait for its CPU.
            deadline = guest.counter.read() + 10 * 62_500_000
            with pytest.raises(SysregTrap) as caught:
                guest.timer.run_until(deadline=deadline)
            assert caught.value.to_el == 1


def test_an_interrupt_from_el0_swaps_the_stacks_and_eret_swaps_them_back() -> None:
    guest = Guest(
        f"""
        mov  x0, #{STACK_EL0}
        msr  sp_el0, x0
        mov  x0, #3                 // EL0 may read the counters
        msr  cntkctl_el1, x0
        mov  x0, #500
        msr  cntv_tval_el0, x0
        mov  x0, #1
        msr  cntv_ctl_el0, x0
        adr  x0, user
        msr  elr_el1, x0
        msr  spsr_el1, xzr          // EL0, nothing masked
        eret
        user:
        mrs  x9, cntvct_el0
        mov  x10, sp
        spin:
        cbz  x20, spin
        mov  x11, sp
        stop:
        b    stop
        """,
        irq="mov x12, sp\n mrs x13, sp_el0\n" + COUNT_AND_QUIET,
    )
    assert guest.timer.run_until(deadline=20_000).reason is Reason.DEADLINE
    assert guest.x(20) == 1
    assert guest.x(21) & 0xF == 0
    assert [guest.x(n) for n in (10, 11, 12, 13)] == [STACK_EL0, STACK_EL0, STACK_EL1, STACK_EL0]
    assert guest.pstate & 0xF == 0


def test_deliver_irq_does_nothing_while_the_guest_masks_it() -> None:
    guest = Guest("nop")
    before = guest.pc, guest.pstate
    assert guest.pstate & _a64.PSTATE_I
    assert not guest.timer.deliver_irq()
    assert (guest.pc, guest.pstate) == before


@pytest.mark.parametrize(
    ("pstate", "vector"),
    [(0x0, 0x480), (0x4, 0x080), (0x5, 0x280)],
    ids=["EL0", "EL1t", "EL1h"],
)
def test_the_vector_follows_level_and_stack(pstate: int, vector: int) -> None:
    guest = Guest("nop")
    flags = 0x6000_0000
    guest.uc.reg_write(arm64_const.UC_ARM64_REG_PSTATE, flags | pstate)
    assert guest.timer.deliver_irq()
    assert guest.pc == VECTORS + vector
    assert guest.pstate & 0x3CF == 0x3C5
    assert guest.uc.cpr_read(*_a64.ELR_EL1) == CODE
    assert guest.uc.cpr_read(*_a64.SPSR_EL1) == flags | pstate


def test_lines_and_deadlines_are_the_vms() -> None:
    guest = Guest(ALARM + "hvc #1")
    assert guest.timer.next_deadline() is None
    guest.timer.run_until(step=lambda _: None)
    assert guest.timer.next_deadline() == 7_000
    assert not guest.timer.line()
    assert isinstance(guest.counter, ManualCounter)
    guest.counter.advance(2_000)
    assert guest.timer.line()
    assert guest.timer.line(Timer.VTIMER)
    assert not guest.timer.line(Timer.PTIMER)


def test_two_runs_with_a_manual_counter_are_identical() -> None:
    source = (
        ALARM
        + """
        msr  daifclr, #2
        mov  x19, #30000
        busy:
        mrs  x9, cntvct_el0
        add  x10, x10, x9
        eor  x11, x9, x11, ror #3
        subs x19, x19, #1
        b.ne busy
        hvc  #1
        """
    )
    rearm = COUNT_AND_QUIET.replace("msr  cntv_ctl_el0, xzr", "mov x23, #777\n msr cntv_tval_el0, x23")

    def state() -> tuple[object, ...]:
        guest = Guest(source, irq=rearm)
        assert guest.timer.run_until().hvc == 1
        return guest.counter.read(), guest.vm.timer(0, Timer.VTIMER), *(guest.x(n) for n in range(29))

    first = state()
    assert first[2 + 20] != 0
    assert first == state()


def test_hvcs_go_to_the_callback_until_it_says_stop() -> None:
    guest = Guest("hvc #1\n hvc #2\n hvc #65535\n hvc #4")
    heard: list[int] = []

    def on_hvc(immediate: int) -> bool:
        heard.append(immediate)
        return immediate != 65_535

    assert guest.timer.run_until(on_hvc=on_hvc) == Stop(Reason.HVC, 65_535)
    assert heard == [1, 2, 65_535]
    assert guest.timer.run_until() == Stop(Reason.HVC, 4)


def test_a_guest_that_nothing_will_wake_is_idle() -> None:
    guest = Guest("wfi\n mov x0, #1\n hvc #1")
    assert guest.timer.run_until() == Stop(Reason.IDLE)
    assert guest.timer.asleep
    assert guest.x(0) == 0
    assert guest.timer.run_until() == Stop(Reason.HVC, 1)
    assert not guest.timer.asleep


@pytest.mark.parametrize("source", ["spin: b spin", "wfi", ALARM + "wfi\n spin: wfi\n b spin"])
def test_the_deadline_ends_the_run(source: str) -> None:
    guest = Guest(source)
    assert guest.timer.run_until(deadline=6_500) == Stop(Reason.DEADLINE)
    assert guest.counter.read() == 6_500
    assert guest.timer.run_until(deadline=100) == Stop(Reason.DEADLINE)


def test_begin_is_where_it_starts() -> None:
    guest = Guest("hvc #1\n hvc #2")
    assert guest.timer.run_until(CODE + 4).hvc == 2


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_stop_is_heard_from_a_callback_and_from_before_the_run(mode: Mode) -> None:
    guest = Guest("hvc #1\n spin: b spin", mode=mode)

    def on_hvc(_immediate: int) -> bool:
        guest.timer.stop()
        return True

    assert guest.timer.run_until(on_hvc=on_hvc) == Stop(Reason.REQUESTED)
    guest.timer.stop()
    assert guest.timer.run_until() == Stop(Reason.REQUESTED)


@pytest.mark.parametrize(
    "source",
    ["mrs x0, cntvct_el0\n mov x5, #1\n hvc #1", "msr cntv_ctl_el0, x0\n hvc #1"],
    ids=["mrs", "msr"],
)
def test_what_a_callback_raises_surfaces_from_run_until(source: str) -> None:
    class Mine(Exception):
        pass

    def now() -> int:
        raise Mine

    guest = Guest(source, now=now)
    with pytest.raises(Mine):
        guest.timer.run_until()
    guest.timer.check()


def test_what_on_hvc_raises_surfaces_too() -> None:
    guest = Guest("hvc #1\n spin: b spin")

    def on_hvc(_immediate: int) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guest.timer.run_until(on_hvc=on_hvc)


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize(
    "instruction", [".word 0x00000000", "svc #0", "mrs x0, cntvoff_el2", "msr cnthctl_el2, x0", "msr cntfrq_el0, x0"]
)
def test_an_unhandled_exception_ends_the_run(instruction: str, mode: Mode) -> None:
    guest = Guest("nop\n" + instruction + "\n hvc #1", mode=mode)
    with pytest.raises(UnhandledException) as caught:
        guest.timer.run_until()
    assert caught.value.pc in (CODE + 4, CODE + 8)
    assert f"{caught.value.intno}" in str(caught.value)


def test_unmapped_memory_is_unicorns_own_error() -> None:
    guest = Guest("mov x0, #0\n ldr x1, [x0]")
    with pytest.raises(UcError):
        guest.timer.run_until()


@pytest.mark.parametrize(
    "make",
    [ManualCounter, HostCounter, partial(MonotonicCounter, frequency_hz=1_000_000_000)],
    ids=["manual", "host", "monotonic-1GHz"],
)
def test_fast_mode_refuses_another_clock_than_unicorns(
    make: Callable[[], ManualCounter | HostCounter | MonotonicCounter],
) -> None:
    counter = make()
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    with pytest.raises(CapabilityMissing) as caught:
        attach(uc, ModelVm(vcpus=1, counter=counter), 0, mode="fast")
    assert "MonotonicCounter(frequency_hz=62_500_000)" in str(caught.value)
    assert type(counter).__name__ in str(caught.value)
    assert "exact" in str(caught.value)


def test_wrong_arguments_are_refused() -> None:
    uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
    vm = ModelVm(vcpus=1, counter=MonotonicCounter())
    with pytest.raises(ValueError, match="'fast' or 'exact'"):
        attach(uc, vm, 0, mode="slow")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode='exact'"):
        attach(uc, vm, 0, mode="fast", now=lambda: 0)
    with pytest.raises(IndexError):
        attach(uc, vm, 1, mode="exact")


def test_detach_removes_the_hooks() -> None:
    guest = Guest("again: mrs x0, cntvct_el0\n mrs x1, spsr_el1\n hvc #1\n b again")
    guest.timer.run_until(step=lambda _: None)
    assert guest.x(0) == 5_000 - OFFSET
    guest.timer.detach()
    with pytest.raises(RuntimeError, match="detached"):
        guest.timer.run_until()
    guest.uc.emu_start(CODE, 0xFFFF_FFFF_FFFF_FFF0, count=1)
    # Unicorn's own counter now, which started with the host.
    assert guest.x(0) != 5_000 - OFFSET
    assert "detached" in repr(guest.timer)


def test_a_vmm_with_hooks_and_a_loop_of_its_own() -> None:
    guest = Guest(ALARM + "msr daifclr, #2\n wfi\n hvc #1", install_hooks=False)
    timer = guest.timer
    heard: list[int] = []

    def on_intr(uc: Any, intno: int, _data: object) -> None:
        if intno == 11:
            heard.append(uc.reg_read(arm64_const.UC_ARM64_REG_PC))
            uc.emu_stop()
        else:
            assert timer.on_intr(uc, intno)

    guest.uc.hook_add(unicorn_const.UC_HOOK_INTR, on_intr)
    guest.uc.hook_add(unicorn_const.UC_HOOK_INSN, timer.on_mrs, None, 1, 0, arm64_const.UC_ARM64_INS_MRS)
    guest.uc.hook_add(unicorn_const.UC_HOOK_INSN, timer.on_msr, None, 1, 0, arm64_const.UC_ARM64_INS_MSR)
    assert isinstance(guest.counter, ManualCounter)
    for _ in range(100):
        if heard:
            break
        timer.sync()
        if timer.line():
            timer.deliver_irq()
        with guest.vm.running(0):
            guest.uc.emu_start(guest.pc, 0xFFFF_FFFF_FFFF_FFF0, count=1_000)
        timer.check()
        guest.counter.advance(1_000)
    assert heard
    assert guest.x(20) == 1


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_cntkctl_is_the_vms_and_unicorns(mode: Mode) -> None:
    guest = Guest("mov x0, #3\n msr cntkctl_el1, x0\n mrs x1, cntkctl_el1\n hvc #1", mode=mode)
    guest.timer.run_until()
    assert guest.x(1) == 3
    encoding = sysreg("CNTKCTL_EL1")
    assert guest.vm.read_sysreg(0, *encoding) == guest.uc.cpr_read(*encoding) == 3
    guest.vm.write_sysreg(0, *encoding, 1)
    guest.timer.sync()
    assert guest.uc.cpr_read(*encoding) == 1


def test_code_that_ran_unhooked_is_hooked_again() -> None:
    guest = Guest("mrs x0, cntvct_el0\n mrs x1, cntvct_el0\n hvc #1")
    guest.timer.detach()
    guest.uc.emu_start(CODE, 0xFFFF_FFFF_FFFF_FFF0, count=2)
    timer = attach(guest.uc, guest.vm, 0, mode="exact")
    assert timer.run_until(CODE, step=lambda _: None).hvc == 1
    assert guest.x(0) == guest.x(1) == 5_000 - OFFSET


def test_nothing_runs_while_a_restore_is_open() -> None:
    guest = Guest("hvc #1")
    opened = guest.vm.restoring(guest.vm.checkpoint()).__enter__()
    with pytest.raises(RestoreOpen):
        guest.timer.run_until()
    assert guest.pc == CODE
    opened.apply()
    opened.release()
    assert guest.timer.run_until().hvc == 1


@pytest.mark.parametrize(
    ("source", "move"),
    [
        ("mrs x3, cntvct_el0", _a64.SysregMove(read=True, encoding=(3, 3, 14, 0, 2), rt=3)),
        ("msr cntp_ctl_el0, xzr", _a64.SysregMove(read=False, encoding=(3, 3, 14, 2, 1), rt=31)),
        ("msr mdscr_el1, x30", _a64.SysregMove(read=False, encoding=(2, 0, 0, 2, 2), rt=30)),
        ("msr daifset, #2", None),
        ("dsb sy", None),
        ("wfi", None),
    ],
)
def test_decoding_moves_to_and_from_system_registers(source: str, move: _a64.SysregMove | None) -> None:
    assert _a64.sysreg_move(int.from_bytes(assemble(source, 0), "little")) == move


def test_time_goes_on_for_a_guest_that_ends_every_slice_early() -> None:
    guest = Guest("again: msr cntv_cval_el0, xzr\n mrs x0, cntvct_el0\n b again")
    assert guest.timer.run_until(deadline=5_100) == Stop(Reason.DEADLINE)
    assert guest.x(0) >= 4_090


def test_a_second_vcpu_has_timers_of_its_own() -> None:
    vm = ModelVm(vcpus=2, counter=ManualCounter(100))
    vm.set_counter_offset(0)
    guest = Guest("nop")
    other = attach(guest.uc, vm, 1, mode="exact", install_hooks=False)
    vm.write_sysreg(1, *sysreg("CNTV_CVAL_EL0"), 150)
    vm.write_sysreg(1, *sysreg("CNTV_CTL_EL0"), 1)
    assert other.next_deadline() == 150
    assert vm.next_deadline(0) is None


def test_a_running_vcpu_is_marked_as_such() -> None:
    guest = Guest("hvc #1")
    refused: list[BaseException] = []

    def on_hvc(_immediate: int) -> bool:
        try:
            guest.vm.checkpoint()
        except Exception as error:  # noqa: BLE001 - compared below
            refused.append(error)
        return False

    guest.timer.run_until(on_hvc=on_hvc)
    assert [type(error).__name__ for error in refused] == ["VcpuRunning"]
    guest.vm.checkpoint()


def test_without_unicorn_the_import_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['unicorn'] = None\n"
        "try: import guestclock.adapters.unicorn\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'guestclock[unicorn]'" in done.stdout
