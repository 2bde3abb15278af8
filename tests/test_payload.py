"""The payload as an image, and as a guest: under Unicorn, which has no interrupt controller and one vCPU."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner
from unicorn import UC_ARCH_ARM64, UC_MODE_ARM, UC_TLB_VIRTUAL, Uc
from unicorn import arm64_const as a64

from guestclock.cli.app import app
from guestclock.payload import Command, Doorbell, Guest, Kind, check_log, elf, image, layout, read_log

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "python/guestclock/payload/guest.s"
DOORBELL = 0x0900_0000


def check_binary(*arguments: str | Path) -> int:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/assemble_payload.py", "--check", *arguments], capture_output=True, check=False
    )
    return done.returncode


def test_the_binary_is_what_the_source_assembles_to(tmp_path: Path) -> None:
    assert check_binary() == 0
    changed = tmp_path / "guest.s"
    changed.write_text(SOURCE.read_text().replace("cntvct_el0", "cntpct_el0", 1))
    assert check_binary(changed, SOURCE.with_suffix(".bin")) == 1


def test_the_layout_is_the_sources() -> None:
    known: dict[str, int] = {}
    for name, terms in re.findall(r"^\.equ (\w+),\s+([^/\n]+?)\s*(?://.*)?$", SOURCE.read_text(), re.MULTILINE):
        known[name] = sum(known[term] if term in known else int(term, 0) for term in terms.split(" + "))
    for name, value in {
        "PARAMETERS": layout.PARAMETERS,
        "P_COMMANDS": layout.COMMANDS,
        "P_INTID": layout.PARAMETERS + layout.PARAMETERS_FORMAT.size - 4,
        "LOG": layout.LOG,
        "AREAS": layout.AREAS,
        "AREA_SIZE": layout.AREA_SIZE,
        "MAX_VCPUS": layout.MAX_VCPUS,
        "A_FAULT_AT": layout.AREA_FORMAT.size - 16,
        "A_RECORDS": layout.RECORDS_AT,
        "RECORDS": layout.RECORDS,
        "FAULT": layout.FAULTED_STATE,
        **{command.name: command for command in Command},
        **{bell.name: bell for bell in Doorbell},
        **{kind.name: kind for kind in Kind},
    }.items():
        assert known[name] == value, name
    assert layout.IMAGE_SIZE == layout.AREAS + layout.MAX_VCPUS * layout.AREA_SIZE
    assert layout.RECORDS_AT + layout.RECORDS * layout.RECORD_FORMAT.size == layout.AREA_SIZE
    raw = image()
    shape = (layout.LOG_MAGIC, layout.MAX_VCPUS, layout.AREA_SIZE, layout.RECORDS, layout.RECORD_FORMAT.size)
    assert layout.LOG_FORMAT.unpack_from(raw, layout.LOG) == shape


def test_the_parameters_are_in_the_image() -> None:
    raw = image(
        vcpus=3,
        samples=5,
        doorbell=0x1000,
        gicd=0x2000,
        gicr=0x3000,
        period_ticks=77,
        psci="smc",
        timer_irq=20,
        command=Command.SPIN,
    )
    parameters = layout.PARAMETERS_FORMAT.unpack_from(raw, layout.PARAMETERS)
    assert parameters == (b"gcparam1", 3, 5, 0x1000, 0x2000, 0x3000, 77, 2, 20)
    assert struct.unpack_from("<8Q", raw, layout.COMMANDS) == (Command.SPIN,) * 8
    # All else is as the assembler left it, and without parameters everything is.
    assert image() == SOURCE.with_suffix(".bin").read_bytes()
    assert raw[: layout.PARAMETERS] == image()[: layout.PARAMETERS]
    assert raw[layout.COMMANDS + 64 :] == image()[layout.COMMANDS + 64 :]


def test_the_image_has_a_boot_header() -> None:
    offset, size, flags = struct.unpack_from("<3Q", image(), 8)
    assert (offset, size, flags) == (0, layout.IMAGE_SIZE, 0b1010)
    assert image()[0x38:0x3C] == b"ARM\x64"


@pytest.mark.parametrize(
    "wrong",
    [
        {"vcpus": 0},
        {"vcpus": 9},
        {"samples": 0},
        {"doorbell": -4},
        {"gicd": 2**39},
        {"gicr": 2**39},
        {"period_ticks": 2**63},
        {"timer_irq": 15},
        {"timer_irq": 32},
    ],
)
def test_parameters_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        image(**wrong)  # type: ignore[arg-type]


def test_the_elf_file_loads_the_image() -> None:
    wrapped = elf(image(), 0x8_0000_0000)
    assert wrapped[:7] == b"\x7fELF\x02\x01\x01"
    kind, machine, _, entry, headers = struct.unpack_from("<2HI2Q", wrapped, 16)
    assert (kind, machine, entry) == (2, 183, 0x8_0000_0000)
    assert struct.unpack_from("<2H", wrapped, 54) == (56, 1)
    load, rights, at, virtual, physical, in_file, in_memory, align = struct.unpack_from("<2I6Q", wrapped, headers)
    assert (load, rights, virtual, physical, align) == (1, 7, entry, entry, 0x1000)
    assert wrapped[at : at + in_file] == image()
    assert in_memory == layout.IMAGE_SIZE
    with pytest.raises(ValueError, match="4 KiB"):
        elf(image(), 0x8_0000_0010)


class Board:
    """One vCPU under Unicorn with the payload at an address, run for so many instructions at a time."""

    def __init__(self, address: int, command: Command, samples: int = 8) -> None:
        self.address = address
        self.bells: list[int] = []
        self.uc = Uc(UC_ARCH_ARM64, UC_MODE_ARM)
        # The guest's map is the identity, and this Unicorn can't fetch through it. KVM does.
        self.uc.ctl_set_tlb_mode(UC_TLB_VIRTUAL)
        self.uc.mem_map(address, 0x10_0000)
        raw = image(vcpus=1, gicd=0, doorbell=DOORBELL, psci="none", command=command, samples=samples)
        self.uc.mem_write(address, raw)
        self.uc.mmio_map(DOORBELL, 0x1000, None, None, self._rung, None)
        self.uc.reg_write(a64.UC_ARM64_REG_PC, address)

    def run(self, instructions: int = 5_000) -> bytearray:
        """Let it go on; its memory."""
        self.uc.emu_start(self.uc.reg_read(a64.UC_ARM64_REG_PC), 0, count=instructions)
        return bytearray(self.uc.mem_read(self.address, layout.IMAGE_SIZE))

    def command(self, command: Command) -> None:
        self.uc.mem_write(self.address + layout.COMMANDS, struct.pack("<Q", command))

    def _rung(self, _uc: Uc, offset: int, size: int, value: int, _data: object) -> None:
        assert (offset, size) == (0, 4)
        self.bells.append(value)


@pytest.mark.parametrize("address", [0x4000_0000, 0x8020_1000])
def test_it_logs_its_samples_wherever_it_is_loaded(address: int) -> None:
    board = Board(address, Command.SAMPLE)
    memory = board.run()
    assert Guest(memory).state(0) == Command.SAMPLE
    log = read_log(memory)
    (vcpu,) = log.vcpus
    assert vcpu is not None
    assert vcpu.fault is None
    assert vcpu.frequency_hz > 0
    assert vcpu.written == len(vcpu.samples) > 20
    assert vcpu.damaged == 0
    for before, sample in pairwise(vcpu.samples):
        assert before.cntvct < sample.cntvct <= sample.cntpct
        assert sample.last_cntvct == before.cntvct
    # Each sample is between two bells.
    assert board.bells[:40] == [Doorbell.SAMPLE_BEGINS, Doorbell.SAMPLE_ENDS] * 20
    assert 0 <= board.bells.count(Doorbell.SAMPLE_ENDS) - vcpu.written <= 1
    # This counter is the host's, and a busy host may let the guest wait for as long as it likes.
    assert check_log(log, grace_ns=3_600_000_000_000).ok


def test_without_an_interrupt_controller_an_alarm_is_a_round_of_samples() -> None:
    vcpu = read_log(Board(0x4000_0000, Command.ALARM).run()).vcpus[0]
    assert vcpu is not None
    assert vcpu.written > 20
    assert {record.kind for record in vcpu.records} == {Kind.SAMPLED}


def test_the_log_keeps_the_newest_records() -> None:
    board = Board(0x4000_0000, Command.SAMPLE)
    vcpu = read_log(board.run(120_000)).vcpus[0]
    assert vcpu is not None
    assert vcpu.written > layout.RECORDS
    assert layout.RECORDS - len(vcpu.records) == vcpu.damaged <= 1  # One may have been half written.
    assert vcpu.records == sorted(vcpu.records, key=lambda record: record.cntvct)


def test_it_does_what_it_is_told() -> None:
    board = Board(0x4000_0000, Command.IDLE)
    guest = Guest(board.run())
    assert (guest.state(0), set(board.bells)) == (Command.IDLE, {Doorbell.PARKED})
    board.command(Command.SPIN)
    guest = Guest(board.run())
    beats, cntvct, cntpct = guest.beat(0)
    assert guest.state(0) == Command.SPIN
    assert beats > 20
    assert 0 < cntvct <= cntpct
    rung = len(board.bells)
    later = Guest(board.run()).beat(0)
    assert all(now > before for now, before in zip(later, (beats, cntvct, cntpct), strict=True))
    assert len(board.bells) == rung
    board.command(Command.SAMPLE)
    memory = board.run()
    assert Guest(memory).state(0) == Command.SAMPLE
    assert Guest(memory).log().vcpus == read_log(memory).vcpus


def test_a_vmm_tells_each_vcpu_what_to_do() -> None:
    memory = bytearray(layout.IMAGE_SIZE)
    guest = Guest(memory)
    guest.command(3, Command.SPIN)
    assert struct.unpack_from("<8Q", memory, layout.COMMANDS) == (0, 0, 0, Command.SPIN, 0, 0, 0, 0)
    assert guest.state(3) == 0
    for wrong in (-1, layout.MAX_VCPUS):
        with pytest.raises(IndexError):
            guest.command(wrong, Command.SPIN)


def test_a_beat_is_the_pair_that_was_written_last() -> None:
    memory = bytearray(layout.IMAGE_SIZE)
    for beats, pair in ((6, (10, 11)), (7, (20, 21))):
        words = (layout.AREA_MAGIC, Command.SPIN, 0, 0, 0, beats, 10, 11, 20, 21, 0, 0, 0, 0)
        layout.AREA_FORMAT.pack_into(memory, layout.AREAS, *words)
        assert Guest(memory).beat(0) == (beats, *pair)


def test_the_command_writes_both_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    assert run(app, ["payload", "--vcpus", "3", "--doorbell", "0x9000000"]).exit_code == 0
    assert Path("guestclock-payload.bin").read_bytes() == image(vcpus=3, doorbell=DOORBELL)
    done = run(app, ["payload", "--format", "elf", "--out", "guest", "--address", "0x80000000", "--psci", "smc"])
    assert done.exit_code == 0
    assert Path("guest").read_bytes() == elf(image(psci="smc"), 0x8000_0000)
    for wrong in (["--vcpus", "9"], ["--format", "elf", "--address", "1"], ["--out", "no/such/folder"]):
        assert run(app, ["payload", *wrong]).exit_code == 2
