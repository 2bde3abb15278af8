"""Guest time for an arm64 guest under Unicorn: every CNT* register answered from a `ModelVm`.

The `ModelVm` has the rules of the timer. This module has only Unicorn's side: hooks, traps, its native CNTVOFF_EL2, and
taking an interrupt by hand. `docs/unicorn.md` says register by register what each mode does and what it costs.
"""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

try:
    from unicorn import UcError, arm64_const, unicorn_const
except ImportError as missing:
    _HOW = "guestclock.adapters.unicorn needs Unicorn: pip install 'guestclock[unicorn]'"
    raise ImportError(_HOW, name=missing.name) from missing

from guestclock import ManualCounter, MonotonicCounter, Timer
from guestclock.adapters import _a64
from guestclock.errors import CapabilityMissing, GuestClockError
from guestclock.model import sysreg

if TYPE_CHECKING:
    from collections.abc import Callable

    from guestclock import ModelVm

Mode: TypeAlias = Literal["fast", "exact"]

# Unicorn ships no annotations for its hooks' arguments and builds `Uc`'s class at run time, so `Any` stands at this
# boundary, and nowhere behind it.
Engine: TypeAlias = Any
CpReg: TypeAlias = Any

UNICORN_HZ: Final = 62_500_000
"""The rate of Unicorn's own counter: CLOCK_MONOTONIC in nanoseconds // 16. Writing CNTFRQ_EL0 doesn't change it."""

_U64: Final = (1 << 64) - 1
_NOWHERE: Final = 0xFFFF_FFFF_FFFF_FFF0
"""An `until` that is never reached: reaching one under trapped WFI raises a spurious trap."""

_EXCP_UDEF: Final = 1
"""Unicorn's number for an undefined instruction and for every trap to EL2."""
_EXCP_HVC: Final = 11

_CNTFRQ: Final = sysreg("CNTFRQ_EL0")
_CNTVCT: Final = sysreg("CNTVCT_EL0")
_CNTPCT: Final = sysreg("CNTPCT_EL0")
_CNTV_CTL: Final = sysreg("CNTV_CTL_EL0")
_CNTV_CVAL: Final = sysreg("CNTV_CVAL_EL0")
_CNTKCTL: Final = sysreg("CNTKCTL_EL1")
_CNTVOFF: Final = sysreg("CNTVOFF_EL2")
_CNTHCTL: Final = sysreg("CNTHCTL_EL2")
_VTIMER: Final = frozenset({_CNTV_CTL, _CNTV_CVAL, sysreg("CNTV_TVAL_EL0")})
_PTIMER: Final = frozenset(sysreg(f"CNTP_{part}_EL0") for part in ("CTL", "CVAL", "TVAL"))
_TIMERS: Final = _VTIMER | _PTIMER
_WRITABLE: Final = _TIMERS | {_CNTKCTL}
_READABLE: Final = _WRITABLE | {_CNTFRQ, _CNTVCT, _CNTPCT}
_TRAPPED: Final = _PTIMER | {_CNTPCT}

_EL1_TIMERS: Final = (Timer.VTIMER, Timer.PTIMER)

_CNTHCTL_EL1_FREE: Final = 0b11
"""EL1PCTEN and EL1PCEN: the physical counter and timer don't trap."""

_GENERAL: Final = (
    *range(arm64_const.UC_ARM64_REG_X0, arm64_const.UC_ARM64_REG_X0 + 29),
    arm64_const.UC_ARM64_REG_X29,
    arm64_const.UC_ARM64_REG_X30,
    arm64_const.UC_ARM64_REG_XZR,
)
"""Unicorn's number of each general register, by the field Rt of an instruction."""


class UnhandledException(GuestClockError):
    """The guest took an exception that is neither its timer's nor the VMM's.

    With an INTR hook Unicorn passes no exception to the guest's own vectors, so it would be taken again for ever.
    """

    intno: int
    pc: int
    instruction: int | None


class Reason(enum.StrEnum):
    """The reason why `run_until` came back."""

    HVC = "hvc"
    """The guest rang the doorbell."""
    DEADLINE = "deadline"
    """The host's count reached the deadline given."""
    IDLE = "idle"
    """The guest sleeps in WFI and no timer will wake it."""
    REQUESTED = "requested"
    """`stop()` was called."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The reason why the guest isn't running, and with `Reason.HVC` the immediate of its HVC."""

    reason: Reason
    hvc: int | None = None


class _Exit(enum.Enum):
    """The end of one run of the emulator."""

    SLICE = enum.auto()
    TIMER_WRITTEN = enum.auto()
    UNMASKED = enum.auto()
    WFI = enum.auto()
    HVC = enum.auto()
    RECALLED = enum.auto()
    FAILED = enum.auto()


def setup(uc: Engine, mode: Mode) -> None:
    """Prepares Unicorn's EL2 and EL3, before any guest code runs. `attach` calls it.

    EL1 and below are AArch64, HVC is enabled, WFI traps; in fast mode the physical counter and timer trap too.
    """
    uc.cpr_write(*_a64.SCR_EL3, _a64.SCR_RW_HCE_NS)
    uc.cpr_write(*_a64.HCR_EL2, _a64.HCR_RW_TWI)
    uc.cpr_write(*_CNTHCTL, 0 if mode == "fast" else _CNTHCTL_EL1_FREE)


def attach(
    uc: Engine,
    vm: ModelVm,
    vcpu: int,
    *,
    mode: Mode,
    install_hooks: bool = True,
    now: Callable[[], int] | None = None,
) -> UnicornTimer:
    """Gives the guest in `uc` the counters and timers of `vm`'s vCPU `vcpu`.

    fast: CNTVCT_EL0 is Unicorn's own, through CNTVOFF_EL2. The VM's counter must be `MonotonicCounter` at 62.5 MHz,
    which is Unicorn's clock. exact: the `ModelVm` answers every access, over any counter.

    `now` (exact mode) is called once for each guest access, and the access is answered as of the host count that it
    returns. So a VMM that records the results of `now` knows the very sample behind each value that its guest read.

    `install_hooks=False` is for a VMM with hooks of its own: it calls `on_mrs` (exact mode), `on_msr` and `on_intr`
    from them. With two MRS hooks on one instruction Unicorn runs only the first.

    Raises `CapabilityMissing` for fast mode over another counter; ValueError for an unknown mode, or `now` in fast
    mode; IndexError for a vCPU that isn't there.
    """
    if mode not in ("fast", "exact"):
        msg = f"mode is 'fast' or 'exact', not {mode!r}"
        raise ValueError(msg)
    if mode == "fast":
        _require_unicorns_clock(vm)
        if now is not None:
            msg = "now= needs mode='exact': in fast mode Unicorn reads its own clock, and nobody is asked"
            raise ValueError(msg)
    vm.timer(vcpu, Timer.VTIMER)  # IndexError here rather than in the guest
    return UnicornTimer(uc, vm, vcpu, mode=mode, install_hooks=install_hooks, now=now)


def _require_unicorns_clock(vm: ModelVm) -> None:
    counter = vm.counter
    if isinstance(counter, MonotonicCounter) and counter.frequency_hz == UNICORN_HZ:
        return
    msg = (
        f"mode='fast' reads Unicorn's own clock, MonotonicCounter(frequency_hz={UNICORN_HZ:_}), but this VM's counter "
        f"is {type(counter).__name__} ({counter.source}, {counter.frequency_hz:_} Hz): make the ModelVm over "
        "MonotonicCounter(), or attach with mode='exact'"
    )
    raise CapabilityMissing(msg, capability="unicorn-fast-mode")


class UnicornTimer:
    """One vCPU's counters and timers inside one Unicorn engine, made by `attach`.

    A VMM calls `run_until`. A VMM with a loop of its own calls `sync()` and `deliver_irq()` before each `emu_start`,
    and `check()` after it. Not thread-safe, as Unicorn isn't; only `stop()` may come from another thread.
    """

    def __init__(
        self,
        uc: Engine,
        vm: ModelVm,
        vcpu: int,
        *,
        mode: Mode,
        install_hooks: bool,
        now: Callable[[], int] | None,
    ) -> None:
        self._uc = uc
        self._vm = vm
        self._vcpu = vcpu
        self._mode: Final = mode
        self._now = now
        self._hooks: list[int] = []
        self._unmask_hook: int | None = None
        self._attached = True
        self._exit = _Exit.SLICE
        self._hvc: int | None = None
        self._on_hvc: Callable[[int], bool] | None = None
        self._error: BaseException | None = None
        self._stop_requested = False
        self._delivered = False
        self._slice_end: int | None = None
        # Instructions of the last whole slice in fast mode, and the ticks that it took.
        self._pace = 1, 1
        self._count_hook: int | None = None
        self._step: Callable[[int], None] | None = None
        # Of the slice that runs: instructions before the block that runs, that block's address and length, and how
        # many of all these the VMM has been told of.
        self._before_block = self._block_at = self._block_length = self._told = 0
        setup(uc, mode)
        if install_hooks:
            self._install()
        self.sync()

    def __repr__(self) -> str:
        state = f"{len(self._hooks)} hooks" if self._attached else "detached"
        return f"<UnicornTimer {self._mode}, vCPU {self._vcpu}, {state}>"

    @property
    def mode(self) -> Mode:
        """`fast` or `exact`."""
        return self._mode

    @property
    def asleep(self) -> bool:
        """True if the last run of the emulator ended in WFI."""
        return self._exit is _Exit.WFI

    # The callbacks. None raises: Unicorn would let the guest run on to the end of its block with a wrong value.

    def on_mrs(self, uc: Engine, register: int, cp: CpReg, _user_data: object = None) -> bool:
        """Callback for a UC_HOOK_INSN of UC_ARM64_INS_MRS: true if it answered the read, else Unicorn answers."""
        encoding = (cp.op0, cp.op1, cp.crn, cp.crm, cp.op2)
        if encoding not in _READABLE:
            return False
        try:
            uc.reg_write(register, self._read(encoding))
            self._look_up()
        except BaseException as error:  # noqa: BLE001 - kept for check()
            self._fail(error)
        return True

    def on_msr(self, _uc: Engine, _register: int, cp: CpReg, _user_data: object = None) -> bool:
        """Callback for a UC_HOOK_INSN of UC_ARM64_INS_MSR: true if it took the write.

        The emulator stops after a write that may have brought the next deadline forward.
        """
        encoding = (cp.op0, cp.op1, cp.crn, cp.crm, cp.op2)
        if encoding not in _WRITABLE:
            return False
        try:
            self._write(encoding, cp.val)
            self._look_up()
        except BaseException as error:  # noqa: BLE001 - kept for check()
            self._fail(error)
        return True

    def on_intr(self, uc: Engine, intno: int, _user_data: object = None) -> bool:
        """Callback for a UC_HOOK_INTR: true if it handled a trapped WFI, a trapped CNT* access or an HVC.

        A VMM with hooks of its own that keeps HVC to itself looks for it (11) before it calls this. An exception for
        which the callback returns False must be injected into the guest or end its run: else it is taken again for
        ever.
        """
        try:
            handled = self._exception(uc, intno)
            self._look_up()
        except BaseException as error:  # noqa: BLE001 - kept for check()
            self._fail(error)
            return True
        return handled

    def check(self) -> None:
        """Raises the exception that a callback caught, if any. Call it after each `emu_start` of your own."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    # The VMM's calls between runs of the emulator.

    def sync(self) -> None:
        """Writes the values that Unicorn answers by itself. Call it after a restore and, in fast mode, before each run.

        Both modes: CNTKCTL_EL1, which decides what Unicorn lets EL0 do. Fast mode: also the virtual counter's offset,
        CNTV_CVAL_EL0, and CNTV_CTL_EL0 with ISTATUS as of now; exact mode answers those when they are read.
        """
        self._uc.cpr_write(*_CNTKCTL, self._vm.read_sysreg(self._vcpu, *_CNTKCTL))
        if self._mode == "exact":
            return
        self._uc.cpr_write(*_CNTVOFF, -self._vm.cntvct(self._vcpu, now=0) & _U64)
        for encoding in (_CNTV_CVAL, _CNTV_CTL):
            self._uc.cpr_write(*encoding, self._vm.read_sysreg(self._vcpu, *encoding))

    def next_deadline(self) -> int | None:
        """The host count at which a timer's line goes high by itself (now, if one is high); None if none ever does."""
        return self._vm.next_deadline(self._vcpu)

    def line(self, timer: Timer | None = None) -> bool:
        """True if a timer's line, a GIC's input, is high. Without a timer: true if either line is."""
        timers = _EL1_TIMERS if timer is None else (timer,)
        return any(self._vm.timer(self._vcpu, each).line for each in timers)

    def deliver_irq(self) -> bool:
        """Makes the guest take an IRQ exception to EL1, as its next step. False, and nothing done, while it masks IRQs.

        Call it only between runs of the emulator, from EL0 or EL1. It asks neither the timers nor a GIC: the VMM does.
        """
        uc = self._uc
        pstate = uc.reg_read(arm64_const.UC_ARM64_REG_PSTATE)
        if pstate & _a64.PSTATE_I:
            return False
        if pstate & _a64.PSTATE_AARCH32 or _a64.exception_level(pstate) > 1:
            msg = f"an IRQ is delivered from AArch64 EL0 or EL1, but PSTATE is {pstate:#x}"
            raise ValueError(msg)
        if _a64.uses_el0_stack(pstate):
            uc.reg_write(arm64_const.UC_ARM64_REG_SP_EL0, uc.reg_read(arm64_const.UC_ARM64_REG_SP))
            uc.reg_write(arm64_const.UC_ARM64_REG_SP, uc.reg_read(arm64_const.UC_ARM64_REG_SP_EL1))
        interrupted = uc.reg_read(arm64_const.UC_ARM64_REG_PC)
        vector = uc.cpr_read(*_a64.VBAR_EL1) + _a64.irq_vector(pstate)
        # PSTATE first: the coprocessor writes after it make Unicorn recompute the flags that it caches from PSTATE.
        uc.reg_write(arm64_const.UC_ARM64_REG_PSTATE, _a64.PSTATE_EL1H_MASKED)
        uc.cpr_write(*_a64.SPSR_EL1, pstate)
        uc.cpr_write(*_a64.ELR_EL1, interrupted)
        uc.reg_write(arm64_const.UC_ARM64_REG_PC, vector)
        return True

    def stop(self) -> None:
        """Makes `run_until` come back, within a slice or a tenth of a second of WFI. From any thread or callback."""
        # Not by emu_stop(): see _run_for().
        self._stop_requested = True

    def detach(self) -> None:
        """Removes the hooks. Unicorn's registers stay as they are."""
        self._watch_mask(watch=False)
        self._count_blocks(count=False)
        for hook in self._hooks:
            self._uc.hook_del(hook)
        self._hooks.clear()
        self._attached = False

    def run_until(
        self,
        begin: int | None = None,
        *,
        deadline: int | None = None,
        on_hvc: Callable[[int], bool] | None = None,
        on_irq: Callable[[], None] | None = None,
        wait: Callable[[int], None] | None = None,
        step: Callable[[int], None] | None = None,
        slice_instructions: int = 20_000,
        slice_us: int = 1_000,
        coarse: bool = False,
    ) -> Stop:
        """Runs the guest, from `begin` or from where it stands, until the VMM has something to decide.

        The timers' interrupt is delivered when a line is high and the guest doesn't mask it; a guest that unmasks it
        takes it before its next instruction. The interrupt is a level: a handler that leaves the line high takes it
        again.

        deadline: the host count at which to come back.
        on_hvc: called with the immediate inside the emulator's own hook, within microseconds of the guest's HVC; it may
            read clocks and guest registers. The guest goes on if it returns True; else it stops with `Reason.HVC`.
        on_irq: called after each interrupt's delivery, before its first instruction.
        wait: called in WFI with the host ticks until the next deadline; it may come back early. By default it sleeps,
            or with a `ManualCounter` advances it.
        step: called with the number of instructions that were executed since it was last called (exact mode): before
            each access to a counter or timer is answered, before `on_hvc`, and after each slice. By default a
            `ManualCounter` advances by a tick for each instruction, and other counters need no help.
        slice_instructions, slice_us: the longest run of the emulator, in exact and in fast mode; at least 1. Fast mode
            takes the microseconds for instructions, at the pace of its last slice.
        coarse: with `step`, don't count instructions within a slice. Code without accesses runs much faster, and time
            stands still in a slice: a guest that polls sees it late by up to a slice, and a slice that the guest ends
            early, by WFI, HVC or a timer write, counts as one instruction.

        Raises the exception of a callback, `UnhandledException`, `UcError`, `SysregTrap` for an access from EL0 that
        CNTKCTL_EL1 doesn't allow, and `RestoreOpen` while a restore isn't done.
        """
        if not self._attached:
            msg = "this timer was detached from its Uc"
            raise RuntimeError(msg)
        if begin is not None:
            self._uc.reg_write(arm64_const.UC_ARM64_REG_PC, begin)
        if isinstance(self._vm.counter, ManualCounter):
            wait, step = wait or self._advance, step or self._advance
        self._on_hvc = on_hvc
        self._step = None if coarse else step
        self._count_blocks(count=self._mode == "exact" and self._step is not None)
        try:
            return self._loop(deadline, on_irq, wait, step, slice_instructions, slice_us)
        finally:
            self._step = None

    # Inside: the loop and its parts.

    def _loop(
        self,
        deadline: int | None,
        on_irq: Callable[[], None] | None,
        wait: Callable[[int], None] | None,
        step: Callable[[int], None] | None,
        slice_instructions: int,
        slice_us: int,
    ) -> Stop:
        asleep = False
        while True:
            now = self._vm.counter.read()
            high = self._interrupt(now, on_irq)
            if reason := self._recalled(now, deadline):
                return Stop(reason)
            pause = self._pause(now, deadline, high=high)
            if asleep and not high:
                if pause is None:
                    return Stop(Reason.IDLE)
                (wait or self._sleep)(pause)
                continue
            if self._mode == "exact":
                self._run_instructions(pause, slice_instructions, step)
            else:
                self._run_for(pause, slice_us)
            if self._exit is _Exit.HVC:
                return Stop(Reason.HVC, self._hvc)
            asleep = self._exit is _Exit.WFI

    def _interrupt(self, now: int, on_irq: Callable[[], None] | None) -> bool:
        """Delivers an interrupt if one is due and unmasked. True if a line was high."""
        high = any(self._vm.timer(self._vcpu, timer, now=now).line for timer in _EL1_TIMERS)
        handling, self._delivered = self._delivered, high and self.deliver_irq()
        if self._delivered and on_irq is not None:
            on_irq()
        # A handler soon lowers the line. A guest that masks it for longer is watched for the unmasking instruction.
        self._watch_mask(watch=high and not self._delivered and not handling)
        return high

    def _recalled(self, now: int, deadline: int | None) -> Reason | None:
        if self._stop_requested:
            self._stop_requested = False
            return Reason.REQUESTED
        return Reason.DEADLINE if deadline is not None and _ticks_left(deadline, now) == 0 else None

    def _pause(self, now: int, deadline: int | None, *, high: bool) -> int | None:
        """Host ticks until the loop has something to do by itself; None if it never will."""
        left = None if deadline is None else _ticks_left(deadline, now)
        # While a line is high that instant is past, and one interrupt serves both timers.
        wake = None if high else self._vm.next_deadline(self._vcpu, now=now)
        if wake is None:
            return left
        due = wake - now & _U64
        return due if left is None else min(due, left)

    def _run_instructions(self, pause: int | None, most: int, step: Callable[[int], None] | None) -> None:
        # Where instructions make the time, the slice ends at the deadline's very instruction.
        count = most if step is None or pause is None else max(min(most, pause), 1)
        self._before_block = self._block_length = self._told = 0
        self._run(count)
        if step is None:
            return
        whole = self._exit is _Exit.SLICE
        if self._step is None:
            # Unicorn doesn't say how far a slice got that ended early. Time must go on all the same.
            step(count if whole else 1)
        else:
            self._tell(count if whole else self._executed())

    def _tell(self, executed: int) -> None:
        """Tells the VMM how many instructions of this slice have been executed, unless it knows."""
        passed, self._told = executed - self._told, executed
        if passed and self._step is not None:
            self._step(passed)

    def _executed(self) -> int:
        """The number of instructions of this slice before PC. Blocks are counted, and PC lies in the one that runs."""
        pc: int = self._uc.reg_read(arm64_const.UC_ARM64_REG_PC)
        return self._before_block + min((pc - self._block_at & _U64) // 4, self._block_length)

    def _run_for(self, pause: int | None, most_us: int) -> None:
        # Instructions bound the slice, not Unicorn's `timeout`. That stops the guest from another thread, as emu_stop()
        # from there does: Unicorn 2.1.4 may then have done an instruction's load, and does it again in the next run. A
        # guest that follows a list by `ldr x0, [x0]` would miss an element.
        self.sync()
        most = most_us * UNICORN_HZ // 1_000_000
        ticks = max(most if pause is None else min(most, pause), 1)
        instructions, took = self._pace
        count = max(ticks * instructions // took, 1)
        begin = self._vm.counter.read()
        self._slice_end = begin + ticks & _U64
        try:
            self._run(count)
        finally:
            self._slice_end = None
        if self._exit is _Exit.SLICE:
            self._pace = count, max(self._vm.counter.read() - begin & _U64, 1)

    def _run(self, count: int) -> None:
        self._exit = _Exit.SLICE
        pc = self._uc.reg_read(arm64_const.UC_ARM64_REG_PC)
        with self._vm.running(self._vcpu):
            try:
                self._uc.emu_start(pc, _NOWHERE, count=count)
            finally:
                self.check()

    def _sleep(self, ticks: int) -> None:
        # Seconds as a float at the operating system's door only: the deadline is compared in ticks when it wakes.
        time.sleep(min(ticks / self._vm.frequency_hz, 0.1))

    def _advance(self, ticks: int) -> None:
        if isinstance(self._vm.counter, ManualCounter):
            self._vm.counter.advance(ticks)

    # Inside: the hooks and their answers.

    def _count_blocks(self, *, count: bool) -> None:
        if count == (self._count_hook is not None):
            return
        if self._count_hook is None:
            self._count_hook = self._uc.hook_add(unicorn_const.UC_HOOK_BLOCK, self._count_block)
        else:
            self._uc.hook_del(self._count_hook)
            self._count_hook = None
        self._uc.ctl_flush_tb()

    def _count_block(self, _uc: Engine, address: int, size: int, _user_data: object) -> None:
        self._before_block += self._block_length
        self._block_at, self._block_length = address, size // 4

    def _leave_block(self) -> None:
        """Ends the block at PC, as an exception does in its middle."""
        self._before_block, self._block_length = self._executed(), 0

    def _watch_mask(self, *, watch: bool) -> None:
        # No hook sees `msr daifclr` itself, but it ends a block, so the next block's hook comes right after it.
        if watch == (self._unmask_hook is not None):
            return
        if self._unmask_hook is None:
            self._unmask_hook = self._uc.hook_add(unicorn_const.UC_HOOK_BLOCK, self._on_block)
            self._uc.ctl_flush_tb()
        else:
            self._uc.hook_del(self._unmask_hook)
            self._unmask_hook = None

    def _on_block(self, uc: Engine, _address: int, _size: int, _user_data: object) -> None:
        if uc.reg_read(arm64_const.UC_ARM64_REG_PSTATE) & _a64.PSTATE_I == 0:
            self._leave(_Exit.UNMASKED)

    def _install(self) -> None:
        hooks: list[tuple[int, Callable[..., object], int]] = [
            (unicorn_const.UC_HOOK_INTR, self._intr_hook, 0),
            (unicorn_const.UC_HOOK_INSN, self.on_msr, arm64_const.UC_ARM64_INS_MSR),
        ]
        # An MRS hook makes every MRS of the guest slow, so fast mode does without.
        if self._mode == "exact":
            hooks.append((unicorn_const.UC_HOOK_INSN, self.on_mrs, arm64_const.UC_ARM64_INS_MRS))
        for kind, callback, instruction in hooks:
            self._hooks.append(self._uc.hook_add(kind, callback, None, 1, 0, instruction))
        # Blocks that were translated before a hook was added never call it.
        self._uc.ctl_flush_tb()

    def _intr_hook(self, uc: Engine, intno: int, user_data: object) -> None:
        if self.on_intr(uc, intno, user_data):
            return
        pc = uc.reg_read(arm64_const.UC_ARM64_REG_PC)
        try:
            instruction = self._fetch(pc)
        except UcError:
            instruction = None
        word = "unreadable" if instruction is None else f"{instruction:#010x}"
        msg = f"the guest took exception {intno} (Unicorn's number) at {pc:#x}, instruction {word}; nothing handles it"
        self._fail(UnhandledException(msg, intno=intno, pc=pc, instruction=instruction))

    def _exception(self, uc: Engine, intno: int) -> bool:
        pc = uc.reg_read(arm64_const.UC_ARM64_REG_PC)
        if intno == _EXCP_HVC:
            self._leave_block()
            self._tick()
            immediate = _a64.hvc_immediate(self._fetch(pc - 4))
            if self._on_hvc is None or not self._on_hvc(immediate):
                self._hvc = immediate
                self._leave(_Exit.HVC)
            return True
        if intno != _EXCP_UDEF:
            return False
        word = self._fetch(pc)
        if word == _a64.WFI:
            self._skip(pc)
            self._leave(_Exit.WFI)
            return True
        move = _a64.sysreg_move(word)
        if move is None or move.encoding not in (_TRAPPED if move.read else _PTIMER):
            return False
        if move.read:
            uc.reg_write(_GENERAL[move.rt], self._read(move.encoding))
        else:
            self._write(move.encoding, uc.reg_read(_GENERAL[move.rt]))
        self._skip(pc)
        return True

    def _skip(self, pc: int) -> None:
        """Goes on behind the instruction at `pc`, which has been done for the guest."""
        # By reg_write(), Unicorn 2.1.4 wouldn't know where the guest is when another thread stops it later in this run,
        # and would execute blocks twice. Here no thread does, but one of a VMM with its own loop may.
        self._uc.reg_write_batch([(arm64_const.UC_ARM64_REG_PC, pc + 4)])
        self._leave_block()

    def _tick(self) -> None:
        """Lets time go on to the instruction that is being executed."""
        if self._count_hook is not None:
            self._tell(self._executed())

    def _fetch(self, address: int) -> int:
        return int.from_bytes(self._uc.mem_read(address, 4), "little")

    def _read(self, encoding: _a64.Encoding) -> int:
        self._tick()
        now = None if self._now is None else self._now()
        return self._vm.read_sysreg(self._vcpu, *encoding, el=self._el(), now=now)

    def _write(self, encoding: _a64.Encoding, value: int) -> None:
        self._tick()
        now = None if self._now is None else self._now()
        self._vm.write_sysreg(self._vcpu, *encoding, value, el=self._el(), now=now)
        self.sync()
        if self._deadline_moved_up():
            self._leave(_Exit.TIMER_WRITTEN)

    def _deadline_moved_up(self) -> bool:
        """True if the run's bound, set before this write, may be too late now."""
        if self._slice_end is None:
            return True
        now = self._vm.counter.read()
        wake = self._vm.next_deadline(self._vcpu, now=now)
        return wake is not None and wake - now & _U64 < _ticks_left(self._slice_end, now)

    def _el(self) -> int:
        # A hook is called before Unicorn looks at permissions, so the ModelVm has to check them.
        pstate: int = self._uc.reg_read(arm64_const.UC_ARM64_REG_PSTATE)
        return _a64.exception_level(pstate)

    def _look_up(self) -> None:
        """Ends the run in a hook if `stop()` was called, or if fast mode's slice takes longer than it should."""
        if self._exit is not _Exit.SLICE:
            return
        end = self._slice_end
        if self._stop_requested or (end is not None and _ticks_left(end, self._vm.counter.read()) == 0):
            self._leave(_Exit.RECALLED)

    def _leave(self, exit_: _Exit) -> None:
        self._exit = exit_
        self._uc.emu_stop()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._leave(_Exit.FAILED)


def _ticks_left(deadline: int, now: int) -> int:
    """Ticks from `now` to `deadline`; 0 for a deadline in the half of all counts that lies behind."""
    ahead = deadline - now & _U64
    return 0 if ahead >> 63 else ahead
