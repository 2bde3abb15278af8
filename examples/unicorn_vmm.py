"""A small VMM in Python: an arm64 guest under Unicorn that is saved by one process and restored by another.

    python examples/unicorn_vmm.py save saved-vm --mode fast
    python examples/unicorn_vmm.py restore saved-vm --policy advance

The guest reads its counters, sets an alarm, sleeps, and is woken by the timer's interrupt, round after round. It is
saved with an alarm set, so that the interrupt of an alarm set in the first process is taken in the second.

The VMM reads time from the host's clock, outside guestclock, immediately around the guest's reads and around the
checkpoint and the release. `vm.json` and `restored.json` hold those readings, for a judge.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from pathlib import Path
from typing import Any

from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, Uc
from unicorn import arm64_const as a64

from guestclock import Advance, Checkpoint, Freeze, ModelVm, MonotonicCounter, Reg, plan
from guestclock.adapters.unicorn import Mode, UnicornTimer, attach

RAM, RAM_SIZE = 0x4000_0000, 0x1_0000
VECTORS = RAM + 0x1000
IRQ_VECTOR = VECTORS + 0x280
LOG = RAM + 0x2000
SAMPLES = LOG + 0x40
STACK = RAM + RAM_SIZE

ROUND = 8
"""Samples that the guest takes in a row: the VMM uses the one that it bracketed most tightly."""
MAX_ROUNDS = (STACK - 0x1000 - SAMPLES) // (16 * ROUND)

SAMPLE_BEGINS, SAMPLE_ENDS, ALARM_SET = 1, 2, 3
"""The guest's doorbells: the immediates of its HVCs."""

# x19: vectors. x20: log (frequency, samples taken, interrupts taken, CTL at the last one). x21: the next sample.
GUEST = f"""
    mrs   x0, cntfrq_el0
    str   x0, [x20]
    mov   x1, #50
    udiv  x22, x0, x1               // an alarm every 20 ms
    msr   vbar_el1, x19
    msr   daifclr, #2               // take interrupts
next_round:
    mov   x9, #{ROUND}
sample:
    hvc   #{SAMPLE_BEGINS}
    mrs   x0, cntvct_el0
    mrs   x1, cntpct_el0
    hvc   #{SAMPLE_ENDS}
    stp   x0, x1, [x21], #16
    ldr   x2, [x20, #8]
    add   x2, x2, #1
    str   x2, [x20, #8]
    subs  x9, x9, #1
    b.ne  sample
    ldr   x23, [x20, #16]           // interrupts so far
    add   x0, x0, x22
    msr   cntv_cval_el0, x0
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
"""
GUEST_IRQ = """
    stp   x0, x1, [sp, #-16]!
    mrs   x0, cntv_ctl_el0
    str   x0, [x20, #24]
    msr   cntv_ctl_el0, xzr         // the line goes low
    ldr   x0, [x20, #16]
    add   x0, x0, #1
    str   x0, [x20, #16]
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


class Vmm:
    """One virtual machine: an engine with its memory, a `ModelVm` with its time, and the VMM's own readings."""

    def __init__(self, mode: Mode) -> None:
        self.mode: Mode = mode
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        self.uc.mem_map(RAM, RAM_SIZE)
        self.vm = ModelVm(vcpus=1, counter=MonotonicCounter())
        self.timer: UnicornTimer = attach(self.uc, self.vm, 0, mode=mode, now=self._now if mode == "exact" else None)
        self.samples: list[list[list[int]]] = []
        """The host's clock just before and just after each of the guest's samples, for CNTVCT and CNTPCT."""
        self.irqs = 0
        self._before = 0
        self._answered: list[int] = []

    def boot(self) -> None:
        """Assembles the guest, and starts both of its counters at zero together."""
        import keystone

        assembler = keystone.Ks(keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN)
        for address, source in ((RAM, GUEST), (IRQ_VECTOR, GUEST_IRQ)):
            words, _ = assembler.asm(source, address, as_bytes=True)
            self.uc.mem_write(address, words)
        for name, value in (("x19", VECTORS), ("x20", LOG), ("x21", SAMPLES)):
            self.uc.reg_write(GENERAL[name], value)
        self.uc.reg_write(a64.UC_ARM64_REG_SP, STACK)
        self.uc.reg_write(a64.UC_ARM64_REG_PC, RAM)
        self.vm.set_counter_offset(host_ticks())
        self.timer.sync()

    def run(self, rounds: int) -> None:
        """Lets the guest go until it has set its alarm `rounds` times."""
        for _ in range(rounds):
            stop = self.timer.run_until(on_hvc=self._on_hvc, on_irq=self._on_irq)
            if stop.hvc != ALARM_SET:
                msg = f"the guest stopped unexpectedly: {stop}"
                raise RuntimeError(msg)

    def log(self) -> dict[str, Any]:
        """The log that the guest wrote to its memory."""
        frequency, count, irqs, ctl = struct.unpack("<4Q", self.uc.mem_read(LOG, 32))
        pairs = struct.iter_unpack("<2Q", self.uc.mem_read(SAMPLES, 16 * count))
        return {"cntfrq": frequency, "samples": [list(pair) for pair in pairs], "irqs": irqs, "last_irq_ctl": ctl}

    def now(self) -> int | None:
        """The sample that guestclock is to use in exact mode; in fast mode None, as it takes its own."""
        return host_ticks() if self.mode == "exact" else None

    def registers(self) -> dict[str, str]:
        """Every register that the guest can tell apart, except counters and timers: those are in the checkpoint."""
        plain = {**GENERAL, **VECTOR, **SPECIAL, "pc": a64.UC_ARM64_REG_PC}
        values = {name: self.uc.reg_read(number) for name, number in plain.items()}
        values |= {name: self.uc.cpr_read(*encoding) for name, encoding in SYSTEM.items()}
        values["cntkctl_el1"] = self.vm.get_one_reg(0, Reg.CNTKCTL_EL1)
        return {name: hex(value) for name, value in values.items()}

    def set_registers(self, saved: dict[str, str]) -> None:
        """Sets the registers: the inverse of `registers`."""
        for name, number in (GENERAL | VECTOR | SPECIAL).items():
            self.uc.reg_write(number, int(saved[name], 16))
        for name, encoding in SYSTEM.items():
            self.uc.cpr_write(*encoding, int(saved[name], 16))
        self.vm.set_one_reg(0, Reg.CNTKCTL_EL1, int(saved["cntkctl_el1"], 16))
        self.uc.reg_write(a64.UC_ARM64_REG_PC, int(saved["pc"], 16))

    def _now(self) -> int:
        self._answered.append(host_ticks())
        return self._answered[-1]

    def _on_hvc(self, immediate: int) -> bool:
        if immediate == SAMPLE_BEGINS:
            self._answered.clear()
            self._before = host_ticks()
            return True
        if immediate == SAMPLE_ENDS:
            after = host_ticks()
            if self.mode == "exact":
                self.samples.append([[at, at] for at in self._answered])
            else:
                self.samples.append([[self._before, after]] * 2)
            return True
        return False

    def _on_irq(self) -> None:
        self.irqs += 1


def save(directory: Path, mode: Mode, rounds: int) -> None:
    """Boots the guest, lets it run, and saves it with an alarm set."""
    vmm = Vmm(mode)
    vmm.boot()
    vmm.run(rounds)
    # A checkpoint changes nothing, so several are taken, and the one whose instant is known best is kept.
    tries = []
    for _ in range(1 if mode == "exact" else 8):
        now = vmm.now()
        before = host_ticks()
        checkpoint = vmm.vm.checkpoint(now=now)
        after = host_ticks()
        tries.append(([before, after] if now is None else [now, now], checkpoint))
    taken_at, checkpoint = min(tries, key=lambda each: each[0][1] - each[0][0])
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint.save(directory / "time.guestclock")
    (directory / "memory.bin").write_bytes(vmm.uc.mem_read(RAM, RAM_SIZE))
    state = {
        "mode": mode,
        "round": ROUND,
        "counter": {"source": vmm.vm.counter.source, "frequency_hz": vmm.vm.frequency_hz},
        "registers": vmm.registers(),
        "host": {"samples": vmm.samples, "taken_at": taken_at},
        "irqs": vmm.irqs,
    }
    (directory / "vm.json").write_text(json.dumps(state, indent=1))


def restore(directory: Path, policy: Freeze | Advance, rounds: int, *, plant_fault_ticks: int, verbose: bool) -> None:
    """Restores the guest in this process, lets it go on, and writes down what both sides saw."""
    state = json.loads((directory / "vm.json").read_text())
    checkpoint = Checkpoint.load(directory / "time.guestclock")
    vmm = Vmm(state["mode"])
    the_plan = plan(checkpoint, vmm.vm, policy=policy, now=vmm.now())
    opened = the_plan.prepare(now=vmm.now())
    vmm.uc.mem_write(RAM, (directory / "memory.bin").read_bytes())
    vmm.set_registers(state["registers"])
    opened.apply(now=vmm.now())
    now = vmm.now()
    before = host_ticks()
    report = opened.release(now=now)
    after = host_ticks()
    if plant_fault_ticks:
        vmm.vm.set_counter_offset((plant_fault_ticks - vmm.vm.cntvct(0, now=0)) % 2**64)
    vmm.timer.sync()
    vmm.run(rounds)
    log = vmm.log()
    if log["irqs"] != state["irqs"] + vmm.irqs:
        msg = f"the guest took {log['irqs']} interrupts, but {state['irqs']} + {vmm.irqs} were delivered"
        raise RuntimeError(msg)
    seen = {
        "guest": log,
        "host": {"samples": vmm.samples, "released_at": [before, after] if now is None else [now, now]},
        "irqs": vmm.irqs,
        "same_counter": the_plan.same_counter,
        "plan": the_plan.to_dict(),
        "report": report.to_dict(),
    }
    (directory / "restored.json").write_text(json.dumps(seen, indent=1))
    if verbose:
        print(the_plan, report, sep="\n", file=sys.stderr)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    saver = commands.add_parser("save", help="boot a guest, run it and save it")
    saver.add_argument("--mode", choices=("fast", "exact"), default="fast")
    restorer = commands.add_parser("restore", help="restore the saved guest and run it on")
    restorer.add_argument("--policy", choices=("freeze", "advance"), default="freeze")
    restorer.add_argument("--max-ns", type=int, help="with advance: the most time to add")
    restorer.add_argument("--plant-fault-ticks", type=int, default=0, help="restore wrongly, to see it found")
    restorer.add_argument("--verbose", action="store_true", help="print the plan and the report")
    for command in (saver, restorer):
        command.add_argument("directory", type=Path)
        command.add_argument(
            "--rounds",
            type=int,
            default=20,
            choices=range(1, MAX_ROUNDS // 2),
            metavar="N",
            help="alarms until it stops (20 ms each)",
        )
    options = parser.parse_args()
    if options.command == "save":
        save(options.directory, options.mode, options.rounds)
        return
    policy = Freeze() if options.policy == "freeze" else Advance(max_ns=options.max_ns)
    restore(
        options.directory,
        policy,
        options.rounds,
        plant_fault_ticks=options.plant_fault_ticks,
        verbose=options.verbose,
    )


if __name__ == "__main__":
    main()
