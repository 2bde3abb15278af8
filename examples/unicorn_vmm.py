"""A small VMM in Python: a guest of two vCPUs under Unicorn that is saved by one process and restored by another.

    python examples/unicorn_vmm.py save saved-vm --mode fast
    python examples/unicorn_vmm.py restore saved-vm --policy advance

On each vCPU the guest reads its counters, sets an alarm, sleeps, and is woken by the timer's interrupt, round after
round. It is saved with alarms set, so that the interrupts of alarms set in the first process are taken in the second.

The VMM reads time from the host's clock, outside guestclock: immediately around the guest's reads, around the release
and each step of a catch-up, and before it looks for an interrupt. `host.json` has those readings, for a judge
(docs/payload.md), and `restored.json` the guest's own log.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import struct
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, UC_PROT_ALL, Uc
from unicorn import arm64_const as a64

from guestclock import Advance, CatchUp, Checkpoint, Freeze, ModelVm, MonotonicCounter, Reg
from guestclock.adapters.unicorn import Mode, Reason, UnicornTimer, attach

Kept = Literal["offset", "value", "replayed"]
"""The way in which the guest's time is kept: by one offset for the VM, by value, or without guestclock."""
Policy = Freeze | Advance | CatchUp

VCPUS = 2
HZ = 62_500_000
"""Unicorn's own frequency."""
RAM, RAM_SIZE = 0x4000_0000, 0x10_0000
VECTORS = RAM + 0x1000
IRQ_VECTOR = VECTORS + 0x280
LAST = RAM + 0x2000
"""The last CNTVCT that any vCPU read."""
STACKS = [RAM + 0x8000 * (1 + vcpu) for vcpu in range(VCPUS)]
LOGS = [RAM + 0x2_0000 + 0x6_0000 * vcpu for vcpu in range(VCPUS)]
LOG_SIZE = 0x6_0000
RECORDS_AT = 0x40
RECORD = struct.Struct("<4Q")
"""Kind and CNTV_CTL (bits 31:24), CNTVCT, CNTPCT; the deadline, or for a sample a count that a vCPU had read before."""

ROUND = 8
"""Samples that a vCPU takes in a row."""
MAX_ROUNDS = (LOG_SIZE - RECORDS_AT) // (RECORD.size * (ROUND + 2))
ALARM_NS = 20_000_000
PATIENCE_S = 10
"""Time after which a vCPU that still sleeps has lost its alarm's interrupt."""
LOOK_EVERY_S = 0.002
"""The longest that a vCPU sleeps before the VMM looks for its interrupt again."""

SAMPLE_BEGINS, SAMPLE_ENDS, ALARM_SET = 1, 2, 3
"""The guest's doorbells: the immediates of its HVCs."""
SAMPLED, ARMED, FIRED = 1, 2, 3
"""The kinds of its records."""

# x19: vectors. x20: log (frequency, records, interrupts). x21: the next record. x24: the last count that any vCPU read.
GUEST = f"""
    mrs   x0, cntfrq_el0
    str   x0, [x20]
    mov   x1, #{1_000_000_000 // ALARM_NS}
    udiv  x22, x0, x1               // ticks to an alarm
    msr   vbar_el1, x19
    msr   daifclr, #2               // take interrupts
next_round:
    mov   x9, #{ROUND}
sample:
    hvc   #{SAMPLE_BEGINS}
    ldr   x3, [x24]
    mrs   x1, cntvct_el0
    mrs   x2, cntpct_el0
    hvc   #{SAMPLE_ENDS}
    str   x1, [x24]
    mov   x0, #{SAMPLED}
    bl    append
    subs  x9, x9, #1
    b.ne  sample
    ldr   x23, [x20, #16]           // interrupts so far
    mrs   x1, cntvct_el0
    mrs   x2, cntpct_el0
    add   x3, x1, x22
    mov   x0, #{ARMED}
    bl    append
    msr   cntv_cval_el0, x3
    mov   x1, #1                    // ENABLE
    msr   cntv_ctl_el0, x1
    hvc   #{ALARM_SET}
asleep:
    msr   daifset, #2               // else the alarm could ring between the look and the wfi, and never again
    ldr   x2, [x20, #16]
    cmp   x2, x23
    b.ne  awake
    wfi                             // wakes for a masked interrupt too
    msr   daifclr, #2               // and takes it here
    b     asleep
awake:
    msr   daifclr, #2
    b     next_round
append:
    msr   daifset, #2
    stp   x0, x1, [x21], #16
    stp   x2, x3, [x21], #16
    ldr   x4, [x20, #8]
    add   x4, x4, #1
    str   x4, [x20, #8]
    msr   daifclr, #2
    ret
"""
GUEST_IRQ = f"""
    stp   x0, x1, [sp, #-16]!
    stp   x2, x3, [sp, #-16]!
    mrs   x1, cntvct_el0
    mrs   x2, cntpct_el0
    mrs   x3, cntv_cval_el0
    mrs   x0, cntv_ctl_el0
    lsl   x0, x0, #24
    add   x0, x0, #{FIRED}
    stp   x0, x1, [x21], #16
    stp   x2, x3, [x21], #16
    msr   cntv_ctl_el0, xzr         // the line goes low
    ldp   x0, x1, [x20, #8]         // records, interrupts
    add   x0, x0, #1
    add   x1, x1, #1
    stp   x0, x1, [x20, #8]
    ldp   x2, x3, [sp], #16
    ldp   x0, x1, [sp], #16
    eret
"""

GENERAL = {f"x{n}": getattr(a64, f"UC_ARM64_REG_X{n}") for n in range(31)}
VECTOR = {f"q{n}": getattr(a64, f"UC_ARM64_REG_Q{n}") for n in range(32)}
# The order matters: the stack pointers come before PSTATE, which says which of them SP is.
SPECIAL = {
    name.lower(): getattr(a64, f"UC_ARM64_REG_{name}") for name in ("SP_EL0", "SP_EL1", "PSTATE", "SP", "FPCR", "FPSR")
}
SYSTEM = {
    "sctlr_el1": (3, 0, 1, 0, 0),
    "cpacr_el1": (3, 0, 1, 0, 2),
    "ttbr0_el1": (3, 0, 2, 0, 0),
    "ttbr1_el1": (3, 0, 2, 0, 1),
    "tcr_el1": (3, 0, 2, 0, 2),
    "spsr_el1": (3, 0, 4, 0, 0),
    "elr_el1": (3, 0, 4, 0, 1),
    "afsr0_el1": (3, 0, 5, 1, 0),
    "afsr1_el1": (3, 0, 5, 1, 1),
    "esr_el1": (3, 0, 5, 2, 0),
    "far_el1": (3, 0, 6, 0, 0),
    "par_el1": (3, 0, 7, 4, 0),
    "mair_el1": (3, 0, 10, 2, 0),
    "amair_el1": (3, 0, 10, 3, 0),
    "vbar_el1": (3, 0, 12, 0, 0),
    "contextidr_el1": (3, 0, 13, 0, 1),
    "tpidr_el1": (3, 0, 13, 0, 4),
    "csselr_el1": (3, 2, 0, 0, 0),
    "tpidr_el0": (3, 3, 13, 0, 2),
    "tpidrro_el0": (3, 3, 13, 0, 3),
    "mdscr_el1": (2, 0, 0, 2, 2),
}


def host_ticks() -> int:
    """The host's clock as the VMM reads it by itself: Unicorn's 62.5 MHz."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 16


@dataclass
class Vcpu:
    """One vCPU: its engine, and the VMM's own readings."""

    uc: Any
    timer: UnicornTimer
    samples: list[list[int]] = field(default_factory=list)
    """The host's clock just before and just after each of its samples."""
    looks: list[list[int | None]] = field(default_factory=list)
    """The host's clock before the last look that found no interrupt due, and before the one that did, by alarm."""
    lost: bool = False
    """It sleeps, and no interrupt came."""
    looking: int = 0
    """The host's clock before the next look."""
    sampling: int | None = None
    """The host's clock before the sample that it is taking."""


class Vmm:
    """One virtual machine: an engine a vCPU over one memory, and a `ModelVm` with its time.

    kept: "offset" opts the VM in when it boots. Otherwise its two counters keep the offsets that they were born with.
    """

    def __init__(self, mode: Mode, kept: Kept) -> None:
        self.mode: Mode = mode
        self.kept: Kept = kept
        self.vm = ModelVm(vcpus=VCPUS, counter=MonotonicCounter())
        self.ram = mmap.mmap(-1, RAM_SIZE)
        self.vcpus = [self._vcpu(vcpu) for vcpu in range(VCPUS)]
        self.stopped_at = 0
        """The host's clock after the last vCPU had stopped."""
        self.steps: list[list[int]] = []
        """The host's clock around each step of a catch-up."""

    def _vcpu(self, number: int) -> Vcpu:
        uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        uc.mem_map_ptr(RAM, RAM_SIZE, UC_PROT_ALL, ctypes.addressof(ctypes.c_char.from_buffer(self.ram)))
        now = (lambda: self._answer(number)) if self.mode == "exact" else None
        return Vcpu(uc, attach(uc, self.vm, number, mode=self.mode, now=now))

    def boot(self) -> None:
        """Assembles the guest and, if the VM is to opt in, starts both of its counters at zero together."""
        import keystone

        assembler = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)
        for address, source in ((RAM, GUEST), (IRQ_VECTOR, GUEST_IRQ)):
            words, _ = assembler.asm(source, address, as_bytes=True)
            self.ram[address - RAM : address - RAM + len(words)] = words
        for vcpu, log, stack in zip(self.vcpus, LOGS, STACKS, strict=True):
            for name, value in (("x19", VECTORS), ("x20", log), ("x21", log + RECORDS_AT), ("x24", LAST)):
                vcpu.uc.reg_write(GENERAL[name], value)
            vcpu.uc.reg_write(a64.UC_ARM64_REG_SP, stack)
            vcpu.uc.reg_write(a64.UC_ARM64_REG_PC, RAM)
        if self.kept == "offset":
            self.vm.opt_in(offset=host_ticks())
        self.sync()

    def sync(self) -> None:
        """Tells each engine of the VM's offset and timers."""
        for vcpu in self.vcpus:
            vcpu.timer.sync()

    def run(self, rounds: int) -> None:
        """Lets the vCPUs take turns until each has set its alarm `rounds` times, and a catch-up owes nothing more."""
        done = 0
        while done < rounds or (self.vm.backlog_ticks and not any(vcpu.lost for vcpu in self.vcpus)):
            self._pay()
            for number, vcpu in enumerate(self.vcpus):
                if len(vcpu.looks) >= MAX_ROUNDS:
                    msg = f"the guest's log is full, with {self.vm.backlog_ticks} ticks still owed"
                    raise RuntimeError(msg)
                if not vcpu.lost:
                    self._run_to_alarm(number, vcpu)
            done += 1
        self.stopped_at = host_ticks()

    def _pay(self) -> None:
        """Takes the next step of a catch-up if it is due."""
        for step in self.vm.catch_up():
            now = self.now()
            if step.wait_ns(now=now):
                break
            before = host_ticks()
            step.apply(now=now)
            self.steps.append([before, host_ticks()] if now is None else [now, now])
            self.sync()
            break

    def _run_to_alarm(self, number: int, vcpu: Vcpu) -> None:
        vcpu.looking = host_ticks()
        stop = vcpu.timer.run_until(
            deadline=vcpu.looking + PATIENCE_S * HZ,
            on_hvc=lambda immediate: self._on_hvc(vcpu, immediate),
            on_irq=lambda: self._on_irq(vcpu),
            wait=lambda ticks: self._wait(vcpu, ticks),
        )
        if stop.hvc == ALARM_SET:
            vcpu.looks.append([None, None])
            return
        if stop.reason is not Reason.DEADLINE:
            msg = f"vCPU {number} stopped unexpectedly: {stop}"
            raise RuntimeError(msg)
        vcpu.looking = host_ticks()
        if not vcpu.timer.line():
            vcpu.looks[-1][0] = vcpu.looking
        vcpu.lost = True

    def _wait(self, vcpu: Vcpu, ticks: int) -> None:
        # The look before this wait found nothing due.
        if vcpu.looks:
            vcpu.looks[-1][0] = vcpu.looking
        time.sleep(min(ticks / HZ, LOOK_EVERY_S))
        vcpu.looking = host_ticks()

    def _on_irq(self, vcpu: Vcpu) -> None:
        if vcpu.looks:
            vcpu.looks[-1][1] = vcpu.looking

    def _on_hvc(self, vcpu: Vcpu, immediate: int) -> bool:
        if immediate == SAMPLE_BEGINS:
            vcpu.sampling = host_ticks()
            return True
        if immediate == SAMPLE_ENDS and vcpu.sampling is not None:
            # In exact mode both counters were answered as of the one instant.
            after = vcpu.sampling if self.mode == "exact" else host_ticks()
            vcpu.samples.append([vcpu.sampling, after])
            vcpu.sampling = None
            return True
        return False

    def _answer(self, number: int) -> int:
        """The host's clock by which an access in exact mode is answered."""
        sampling = self.vcpus[number].sampling
        return host_ticks() if sampling is None else sampling

    def now(self) -> int | None:
        """The sample that guestclock is to use in exact mode; in fast mode None, as it takes its own."""
        return host_ticks() if self.mode == "exact" else None

    def log(self) -> list[dict[str, Any]]:
        """The log that each vCPU wrote to memory."""
        logs = []
        for at in LOGS:
            frequency, count, irqs = struct.unpack_from("<3Q", self.ram, at - RAM)
            begin = at - RAM + RECORDS_AT
            records = RECORD.iter_unpack(self.ram[begin : begin + RECORD.size * count])
            logs.append({"cntfrq": frequency, "irqs": irqs, "records": [list(record) for record in records]})
        return logs

    def registers(self, number: int) -> dict[str, str]:
        """Every register that the guest can tell apart, except counters and timers: those are in the checkpoint."""
        uc = self.vcpus[number].uc
        plain = {**GENERAL, **VECTOR, **SPECIAL, "pc": a64.UC_ARM64_REG_PC}
        values = {name: uc.reg_read(register) for name, register in plain.items()}
        values |= {name: uc.cpr_read(*encoding) for name, encoding in SYSTEM.items()}
        values["cntkctl_el1"] = self.vm.get_one_reg(number, Reg.CNTKCTL_EL1)
        return {name: hex(value) for name, value in values.items()}

    def set_registers(self, number: int, saved: dict[str, str]) -> None:
        """Sets the registers: the inverse of `registers`."""
        uc = self.vcpus[number].uc
        for name, register in (GENERAL | VECTOR | SPECIAL).items():
            uc.reg_write(register, int(saved[name], 16))
        for name, encoding in SYSTEM.items():
            uc.cpr_write(*encoding, int(saved[name], 16))
        self.vm.set_one_reg(number, Reg.CNTKCTL_EL1, int(saved["cntkctl_el1"], 16))
        uc.reg_write(a64.UC_ARM64_REG_PC, int(saved["pc"], 16))

    def timers(self, number: int) -> dict[str, str]:
        """A vCPU's counters and timers as KVM lists them: what a VMM without guestclock has."""
        return {hex(reg): hex(self.vm.get_one_reg(number, reg)) for reg in self.vm.reg_list(number)}

    def set_timers(self, number: int, saved: dict[str, str]) -> None:
        """Replays them in their order: the inverse of `timers`, but for the time in between."""
        for reg, value in saved.items():
            self.vm.set_one_reg(number, int(reg, 16), int(value, 16))


def save(directory: Path, mode: Mode, kept: Kept, rounds: int) -> None:
    """Boots the guest, lets it run, and saves it with alarms set."""
    vmm = Vmm(mode, kept)
    vmm.boot()
    vmm.run(rounds)
    directory.mkdir(parents=True, exist_ok=True)
    timers = []
    if kept == "replayed":
        timers = [vmm.timers(number) for number in range(VCPUS)]
    else:
        # A restore goes on from the stop, however long after it the checkpoint is taken.
        vmm.vm.checkpoint(now=vmm.now(), stopped_at=vmm.stopped_at).save(directory / "guest.time")
    (directory / "memory.bin").write_bytes(vmm.ram)
    state = {
        "mode": mode,
        "kept": kept,
        "counter": {"source": vmm.vm.counter.source, "frequency_hz": vmm.vm.frequency_hz},
        "registers": [vmm.registers(number) for number in range(VCPUS)],
        "timers": timers,
        "samples": [vcpu.samples for vcpu in vmm.vcpus],
        "looks": [vcpu.looks for vcpu in vmm.vcpus],
        "stopped_at": vmm.stopped_at,
    }
    (directory / "vm.json").write_text(json.dumps(state, indent=1))


def restore(directory: Path, policy: Policy, rounds: int, *, load_ms: int, verbose: bool) -> None:
    """Restores the guest in this process, lets it go on, and writes down what both sides saw."""
    state = json.loads((directory / "vm.json").read_text())
    vmm = Vmm(state["mode"], state["kept"])
    if vmm.kept == "replayed":
        for number, timers in enumerate(state["timers"]):
            vmm.set_timers(number, timers)
        load(vmm, directory, state, load_ms)
        now = host_ticks()
        released_at, facts = [now, now], {}
    else:
        checkpoint = Checkpoint.load(directory / "guest.time")
        with vmm.vm.restoring(checkpoint, policy, now=vmm.now()) as opened:
            load(vmm, directory, state, load_ms)
            opened.apply(now=vmm.now())
            given = vmm.now()
            before = host_ticks()
            report = opened.release(now=given)
            after = host_ticks()
        released_at = [before, after] if given is None else [given, given]
        facts = {
            "same_counter": opened.plan.same_counter,
            "plan": opened.plan.to_dict(),
            "report": report.to_dict(),
        }
        if verbose:
            print(opened.plan, report, sep="\n", file=sys.stderr)
    vmm.sync()
    for vcpu, looks in zip(vmm.vcpus, state["looks"], strict=True):
        vcpu.looks = looks
    vmm.run(rounds)
    (directory / "restored.json").write_text(json.dumps({"guest": vmm.log(), **facts}, indent=1))
    samples = [before + vcpu.samples for before, vcpu in zip(state["samples"], vmm.vcpus, strict=True)]
    pause = {
        "taken_at": [state["stopped_at"]] * 2,
        "released_at": released_at,
        "policy": policy.name,
        "max_ns": policy.max_ns if isinstance(policy, Advance) else None,
        "step_ns": policy.step_ns if isinstance(policy, CatchUp) else 0,
        "steps": vmm.steps,
    }
    seen = {
        "frequency_hz": state["counter"]["frequency_hz"],
        "vcpus": samples,
        "pauses": [pause],
        "looks": [vcpu.looks for vcpu in vmm.vcpus],
        "ended_at": vmm.stopped_at,
    }
    (directory / "host.json").write_text(json.dumps(seen, indent=1))


def load(vmm: Vmm, directory: Path, state: dict[str, Any], load_ms: int) -> None:
    """Loads the rest of the guest: its memory, for which it takes as long as a real one's would, and its registers."""
    time.sleep(load_ms / 1_000)
    vmm.ram[:] = (directory / "memory.bin").read_bytes()
    for number, registers in enumerate(state["registers"]):
        vmm.set_registers(number, registers)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    saver = commands.add_parser("save", help="boot a guest, run it and save it")
    saver.add_argument("--mode", choices=("fast", "exact"), default="fast")
    saver.add_argument(
        "--kept",
        choices=("offset", "value", "replayed"),
        default="offset",
        help="how its time is kept: by one offset for the VM, by value, or without guestclock, as KVM lists it",
    )
    restorer = commands.add_parser("restore", help="restore the saved guest and run it on")
    restorer.add_argument("--policy", choices=("freeze", "advance", "catch-up"), default="freeze")
    restorer.add_argument("--max-ns", type=int, help="with advance: the most time to add")
    restorer.add_argument("--step-ns", type=int, default=250_000_000, help="with catch-up: the time in a step")
    restorer.add_argument("--interval-ns", type=int, default=50_000_000, help="with catch-up: the time between steps")
    restorer.add_argument("--load-ms", type=int, default=0, help="how long the guest's memory takes to load")
    restorer.add_argument("--verbose", action="store_true", help="print the plan and the report")
    for command in (saver, restorer):
        command.add_argument("directory", type=Path)
        command.add_argument(
            "--rounds",
            type=int,
            default=20,
            choices=range(1, MAX_ROUNDS // 2),
            metavar="N",
            help="alarms of each vCPU until it stops (20 ms each)",
        )
    options = parser.parse_args()
    if options.command == "save":
        save(options.directory, options.mode, options.kept, options.rounds)
        return
    policies: dict[str, Policy] = {
        "freeze": Freeze(),
        "advance": Advance(max_ns=options.max_ns),
        "catch-up": CatchUp(options.step_ns, options.interval_ns),
    }
    policy = policies[options.policy]
    restore(options.directory, policy, options.rounds, load_ms=options.load_ms, verbose=options.verbose)


if __name__ == "__main__":
    main()
