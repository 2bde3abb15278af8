"""Takes a migration stream of QEMU's emulator with the payload in it, and what the payload has logged by then.

The stream is printed by QEMU's own `scripts/analyze-migration.py`, out of Debian's source package. The log is read from
a dump of the guest's memory at the same stop, so that a reading of the stream has something to agree with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guestclock import payload
from guestclock.payload.layout import Kind
from testbed import roots
from testbed.debian import Archive
from testbed.legs import ARM64
from testbed.say import give_up, say

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

GOLDEN = Path(__file__).resolve().parent.parent.parent / "tests/golden/snapshots"
MACHINE = ("-M", "virt,gic-version=3", "-cpu", "neoverse-n1", "-smp", "2", "-m", "64M")
RAM = (0x4000_0000, 64 << 20)
RUNS_S = 4
"""Time that the guest gets: some two hundred alarms."""


class Qemu:
    """A machine that runs the payload, and its monitor (QEMU: docs/interop/qmp-spec.rst)."""

    def __init__(self, emulator: Path, image: Path) -> None:
        self._command = roots.command(
            *(emulator, f"/usr/bin/{ARM64.program}", *MACHINE, "-nic", "none", "-display", "none", "-qmp", "stdio"),
            *("-kernel", roots.inside(image)),
        )

    def __enter__(self) -> Self:
        self._running = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.version = json.loads(self._line())["QMP"]["version"]["package"]
        self.ask("qmp_capabilities")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._running.kill()
        self._running.communicate()

    def ask(self, command: str, **arguments: object) -> Any:
        """Run a command, and give its answer."""
        if self._running.stdin is None:
            give_up("the emulator has no monitor")
        self._running.stdin.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._running.stdin.flush()
        while True:
            answer = json.loads(self._line())
            if "error" in answer:
                give_up(f"{command}: {answer['error']}")
            # Events come in between.
            if "return" in answer:
                return answer["return"]

    def _line(self) -> str:
        line = self._running.stdout.readline() if self._running.stdout else ""
        return line or give_up("the emulator has ended")


def main() -> int:
    """Write the stream as printed, and the guest's log beside it."""
    roots.check()
    archive = Archive("trixie")
    emulator = roots.root("emulator", archive, *ARM64.emulator, backports=True)
    script = archive.source("qemu", "scripts/analyze-migration.py")
    with tempfile.TemporaryDirectory(prefix="guestclock-") as scratch:
        image, stream, memory = (Path(scratch, name) for name in ("payload.bin", "stream", "memory"))
        image.write_bytes(payload.image(vcpus=2))
        with Qemu(emulator, image) as qemu:
            time.sleep(RUNS_S)
            qemu.ask("stop")
            qemu.ask("pmemsave", val=RAM[0], size=RAM[1], filename=roots.inside(memory))
            qemu.ask("migrate", uri=f"file:{roots.inside(stream)}")
            while (status := qemu.ask("query-migrate")["status"]) != "completed":
                if status == "failed":
                    give_up("the migration failed")
                time.sleep(0.1)
            say(f"QEMU {qemu.version}")
        printed = subprocess.run(
            [sys.executable, script, "--file", stream, "--dump", "state"], check=True, stdout=subprocess.PIPE
        )
        log = payload.read_log(memory.read_bytes())
    (GOLDEN / "qemu-tcg.json").write_bytes(printed.stdout)
    guest = {"vcpus": [_said(vcpu) for vcpu in log.vcpus if vcpu is not None]}
    (GOLDEN / "qemu-tcg.guest.json").write_text(json.dumps(guest, indent=1) + "\n")
    return 0


def _said(vcpu: payload.VcpuLog) -> dict[str, int]:
    armed = [record.cval for record in vcpu.records if record.kind is Kind.ARMED]
    return {"last_cntvct": vcpu.records[-1].cntvct, "armed_cval": armed[-1], "frequency_hz": vcpu.frequency_hz}


if __name__ == "__main__":
    sys.exit(main())
