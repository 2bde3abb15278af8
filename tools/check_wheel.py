"""Checks built wheels as their user meets them: tags, folders, the glibc that the code needs, an install beside numpy.

The glibc has two witnesses: auditwheel, and the symbols that this program reads itself.

    python tools/check_wheel.py WHEEL...

A wheel for another architecture can't be installed here: `make kvm-test` installs it where it belongs. Prints what it
found, and exits 1 at the first thing that isn't so.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from io import BytesIO
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection

# manylinux_2_17 (PEP 600) is the glibc of RHEL 7, so that every distribution in use is new enough.
NEWEST_GLIBC = (2, 17)

# What a new user does first: a guest's time is saved and restored, in another process's place.
SMOKE = """
import guestclock as gc
host = gc.ManualCounter(1_000_000, frequency_hz=62_500_000)
saved, again = gc.ModelVm(vcpus=2, counter=host), gc.ModelVm(vcpus=2, counter=host)
saved.opt_in()
saved.checkpoint().save("guest.time")
host.advance(62_500_000)
checkpoint = gc.Checkpoint.load("guest.time")
assert again.restore(checkpoint, gc.Advance()).error_bound_ticks == 0
assert again.cntvct(0) == again.cntvct(1) == 62_500_000
assert gc.ModelVm(vcpus=1).counter.frequency_hz > 0
"""

MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}


def main(wheel: Path) -> None:
    """Check one wheel."""
    # manylinux2014 is the older name of manylinux_2_17 (PEP 600), by which an older pip finds the wheel.
    platforms = r"(?:manylinux2014_\w+\.)?manylinux_(\d+)_(\d+)_(x86_64|aarch64)"
    tags = re.fullmatch(rf"guestclock-[^-]+-cp311-abi3-{platforms}\.whl", wheel.name)
    if not tags:
        sys.exit(f"{wheel.name}: not an abi3 manylinux wheel for CPython 3.11 and up")
    promised, architecture = (int(tags[1]), int(tags[2])), tags[3]
    if promised > NEWEST_GLIBC:
        sys.exit(f"{wheel.name}: needs glibc {promised}, newer than {NEWEST_GLIBC}")
    if others := folders(wheel) - {"guestclock", "-".join(wheel.name.split("-")[:2]) + ".dist-info"}:
        sys.exit(f"{wheel.name}: has more in it than guestclock: {', '.join(sorted(others))}")
    code = native_module(wheel, architecture)
    needed = needed_glibc(wheel, code)
    if needed > promised:
        sys.exit(f"{wheel.name}: its code needs glibc {needed}, and the name says {promised}")
    if not has_the_systems_unwinder(wheel, code):
        sys.exit(f"{wheel.name}: has an unwinder of its own, by which a daemon thread's end is a crash")
    if (found := audited(wheel)) != f"manylinux_{promised[0]}_{promised[1]}_{architecture}":
        sys.exit(f"{wheel.name}: auditwheel takes it for {found}")
    here = architecture == platform.machine()
    if here:
        check_install(wheel)
    size = wheel.stat().st_size / 1024
    print(
        f"{wheel.name}: {size:.0f} KiB, abi3 from CPython 3.11, for glibc {promised[0]}.{promised[1]} or newer"
        f" (its newest symbol is of {needed[0]}.{needed[1]})"
        + (", needs only numpy" if here else f"; not installed on this {platform.machine()} machine")
    )


def folders(wheel: Path) -> set[str]:
    """Names at the top of the wheel."""
    with zipfile.ZipFile(wheel) as packed:
        return {name.partition("/")[0] for name in packed.namelist()}


def native_module(wheel: Path, architecture: str) -> ELFFile:
    """The wheel's native module, which is for this architecture."""
    with zipfile.ZipFile(wheel) as packed:
        (module,) = (name for name in packed.namelist() if name.endswith(".so"))
        code = ELFFile(BytesIO(packed.read(module)))
    if code["e_machine"] != MACHINES[architecture]:
        sys.exit(f"{wheel.name}: {module} is for {code['e_machine']}")
    return code


def needed_glibc(wheel: Path, code: ELFFile) -> tuple[int, int]:
    """The newest version of glibc that a symbol of the wheel's native module asks for."""
    section = code.get_section_by_name(".gnu.version_r")
    if not isinstance(section, GNUVerNeedSection):
        sys.exit(f"{wheel.name}: its native module names no version of any library")
    names = [version.name for _, versions in section.iter_versions() for version in versions]
    return max((int(found[1]), int(found[2])) for name in names if (found := re.match(r"GLIBC_(\d+)\.(\d+)", name)))


def has_the_systems_unwinder(wheel: Path, code: ELFFile) -> bool:
    """True if the module unwinds by libgcc, as glibc does where CPython ends a daemon thread (rust/python/build.rs)."""
    dynamic, symbols = code.get_section_by_name(".dynamic"), code.get_section_by_name(".dynsym")
    if not (isinstance(dynamic, DynamicSection) and isinstance(symbols, SymbolTableSection)):
        sys.exit(f"{wheel.name}: its native module names no library and no symbol")
    needed = [getattr(tag, "needed", None) for tag in dynamic.iter_tags()]
    from_elsewhere = {symbol.name for symbol in symbols.iter_symbols() if symbol["st_shndx"] == "SHN_UNDEF"}
    return "libgcc_s.so.1" in needed and {"_Unwind_RaiseException", "_Unwind_GetIPInfo"} <= from_elsewhere


def audited(wheel: Path) -> str:
    """The platform that auditwheel finds the wheel to be for, by its libraries and symbols."""
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    tag = re.search(r'following platform tag:\s+"([a-z0-9_]+)"', told)
    return tag[1] if tag else f"nothing that it names: {told}"


def check_install(wheel: Path) -> None:
    """Install the wheel beside numpy alone, and use it."""
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        program = Path(scratch) / "bin"
        run(program / "python", "-m", "pip", "install", "--quiet", wheel.resolve())
        run(program / "python", "-c", SMOKE, cwd=scratch)
        told = subprocess.run([program / "guestclock", "doctor"], capture_output=True, text=True, check=False)
        if told.returncode != 2 or "pip install 'guestclock[cli]'" not in told.stderr:
            sys.exit(f"`guestclock doctor` without its extra: exit {told.returncode}, {told.stderr}")


def run(*command: str | Path, cwd: str | None = None) -> None:
    """Run a command whose failure is the check's."""
    subprocess.run(command, check=True, cwd=cwd)


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit(__doc__)
    for named in sys.argv[1:]:
        main(Path(named))
