"""Other VMMs' files: each read independently, planted faults refused, and what the command line says of them."""

from __future__ import annotations

import copy
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from guestclock import (
    Advance,
    CatchUp,
    Checkpoint,
    Elapsed,
    Fleet,
    Freeze,
    ManualCounter,
    ModelVm,
    Reg,
    Timer,
    inspection,
    snapshots,
)
from guestclock.cli.app import app
from guestclock.cli.shared import duration_ns
from guestclock.errors import InvalidFile, Refused, TooLarge, TopologyMismatch
from guestclock.model import ClockBank
from test_interchange import LATER_REG, vms
from vms import HZ, SECOND, host, owned

GOLDEN = Path(__file__).parent / "golden" / "snapshots"
NOW_NS = 1_750_000_000_123_456_789
CLOUD_HZ = 121_875_000
CLOCK = {"cntvct": 7_694_581_610, "host_realtime_ns": 1_785_410_403_592_885_342, "cntfrq": CLOUD_HZ}
# Arm's encodings of CNTV_CTL_EL0 and so on, and as KVM has them: written out from the kernel's header.
CTL, CVAL, CNT = 0x6030_0000_0013_DF19, 0x6030_0000_0013_DF02, 0x6030_0000_0013_DF1A
PCTL, PCVAL, PCNT = 0x6030_0000_0013_DF11, 0x6030_0000_0013_DF12, 0x6030_0000_0013_DF01
CNTFRQ = 0x6030_0000_0013_DF00
CLOUD_VCPUS = [
    {CNT: 7_695_435_486, CVAL: 7_699_059_328, CTL: 1, PCNT: 304_111_079_172, PCVAL: 0, PCTL: 4},
    {CNT: 7_695_481_433, CVAL: 7_712_331_096, CTL: 1, PCNT: 304_111_125_129, PCVAL: 0, PCTL: 4},
]
"""Registers of a real snapshot, read 853 876 and 899 823 ticks after its clock."""
PSTATE = 0x6030_0000_0010_0042
"""A core register, which is no timer's."""


def cloud_hypervisor(vcpus: list[dict[int, int]], clock: dict[str, int] | None) -> dict[str, Any]:
    """A state.json as cloud-hypervisor writes it: states as JSON in strings, registers as arrays of bytes."""

    def state(registers: dict[int, int]) -> dict[str, Any]:
        packed = [list(struct.pack("<QQ", reg, value)) for reg, value in {PSTATE: 5, **registers}.items()]
        return {"snapshot_data": {"state": json.dumps({"Kvm": {"mp_state": 0, "sys_regs": packed}})}, "snapshots": {}}

    cpus = {str(number): state(registers) for number, registers in enumerate(vcpus)}
    whole: dict[str, Any] = {"config": {}} | ({} if clock is None else {"clock": clock})
    return {
        "snapshot_data": {"state": json.dumps(whole)},
        "snapshots": {"cpu-manager": {"snapshots": cpus}, "memory-manager": {"snapshots": {}}},
    }


def written(document: object, path: Path) -> str:
    path.write_text(json.dumps(document))
    return str(path)


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "240", "NO_COLOR": "1"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.output
    return done


def test_a_stream_of_the_emulator_is_the_guests_own_log() -> None:
    """The guest logged its counter and its alarms in its memory, which was dumped at the same stop."""
    snapshot = snapshots.read(GOLDEN / "qemu-tcg.json")
    guest = json.loads((GOLDEN / "qemu-tcg.guest.json").read_text())["vcpus"]
    assert (snapshot.format, snapshot.ids, snapshot.vcpus) == ("qemu", "arm", len(guest))
    assert [lack.name for lack in snapshot.lacks] == ["realtime_ns"]
    saved = snapshot.checkpoint()
    assert {vcpu["frequency_hz"] for vcpu in guest} == {saved.frequency_hz}
    last = max(vcpu["last_cntvct"] for vcpu in guest)
    # From the last line of the log to the stop: less than an alarm's period of 20 ms.
    assert 0 <= saved.cntvct - last < saved.frequency_hz // 50
    assert saved.cntpct == saved.cntvct
    (latest,) = (vcpu["armed_cval"] for vcpu in guest if vcpu["armed_cval"] > saved.cntvct)
    assert latest in saved.cval(Timer.VTIMER).tolist()
    # The interrupt that the stop came in the middle of.
    assert [timer["state"] for timer in inspection.timers(saved)].count("overdue") == 1
    # CNTPS_CTL_EL1 and CNTPS_CVAL_EL1, which the guest can't reach.
    assert snapshot.left_out == [0x6030_0000_0013_FF11, 0x6030_0000_0013_FF12]


def test_a_stream_with_icount_has_no_count() -> None:
    document = json.loads((GOLDEN / "qemu-tcg.json").read_text())
    document["timer (0)"]["timer/icount"] = {"qemu_icount": "0x0000000000000001"}
    snapshot = snapshots.parse(document)
    assert [lack.name for lack in snapshot.lacks if lack.needed] == ["cntvct", "cntpct"]
    assert snapshot.checkpoint(cntvct=7, cntpct=9).cntpct == 9


@pytest.mark.parametrize("elapsed_ns", [0, 30 * SECOND])
def test_a_clock_of_one_instant_and_registers_of_a_later_one(elapsed_ns: int, tmp_path: Path) -> None:
    path = written(cloud_hypervisor(CLOUD_VCPUS, CLOCK), tmp_path / "state.json")
    saved = snapshots.read(path).checkpoint()
    assert (saved.cntvct, saved.cntpct) == (7_695_481_433, 304_111_125_129)
    vm = ModelVm(2, counter=ManualCounter(5, frequency_hz=CLOUD_HZ))
    report = vm.restore(saved, Advance(), elapsed=Elapsed.given(elapsed_ns, error_ns=0))
    right = max(CLOCK["cntvct"] + elapsed_ns * CLOUD_HZ // SECOND, 7_695_481_433)
    assert abs(report.cntvct - right) <= report.error_bound_ticks
    assert report.error_bound_ticks <= 46_000
    planned = run("plan", path, "--policy", "advance", "--elapsed", f"{elapsed_ns}ns", "--json")
    assert json.loads(planned.stdout)["plan"]["cntvct"] == report.cntvct


def test_a_snapshot_without_a_clock_says_what_is_missing(tmp_path: Path) -> None:
    path = written(cloud_hypervisor(CLOUD_VCPUS, None), tmp_path / "state.json")
    assert [lack.name for lack in snapshots.read(path).lacks] == ["frequency_hz", "realtime_ns"]
    with pytest.raises(ValueError, match="give frequency_hz="):
        snapshots.read(path).checkpoint()
    done = run("inspect", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "give --cntfrq-hz" in done.stderr
    known = ("--cntfrq-hz", CLOUD_HZ)
    assert "lacks" in run("inspect", path, *known).stdout
    (row,) = run("plan", path, "--policy", "advance", "--elapsed", "30s", *known, "--csv").stdout.splitlines()[1:]
    assert row.split(",")[1] == "true"
    refused = run("plan", path, "--policy", "advance", *known)
    assert refused.exit_code == 1
    assert "--elapsed" in refused.stdout
    at = ("--saved-at", CLOCK["host_realtime_ns"], "--elapsed-by", "wall-clocks", "--elapsed-error", "1ms")
    by_clock = json.loads(run("plan", path, "--policy", "advance", *known, *at, "--max", "1h", "--json").stdout)
    assert by_clock["plan"]["elapsed_by"] == "wall-clocks"


def test_what_the_file_has_is_not_overruled(tmp_path: Path) -> None:
    path = written(cloud_hypervisor(CLOUD_VCPUS, CLOCK), tmp_path / "state.json")
    done = run("inspect", path, "--cntfrq-hz", HZ)
    assert done.exit_code == 2
    assert f"--cntfrq-hz is given as {HZ}, and the file has {CLOUD_HZ}" in done.stderr
    with pytest.raises(snapshots.Contradiction):
        snapshots.read(path).checkpoint(realtime_ns=5)
    with pytest.raises(ValueError, match="and a count of it is given too"):
        snapshots.read(path).checkpoint(cntvct=5)
    checkpoint = tmp_path / "web-1.time"
    owned(host()).checkpoint().save(checkpoint)
    assert "is a checkpoint" in run("inspect", checkpoint, "--cntfrq-hz", HZ).stderr


def test_pairs_of_sixteen_bit_encodings() -> None:
    """As a VMM on Hypervisor.framework may keep them: 57114 is CNTV_CVAL_EL0, 57864 is no timer's; no count."""
    manifest = {
        "format": "guestclock.registers/1",
        "ids": "arm",
        "frequency_hz": 24_000_000,
        "vcpus": [[[57114, 5000], [57113, "0x1"], [57864, 2**70]]],
        "cntvct": 4000,
        "cntpct": 9000,
    }
    saved = snapshots.parse(manifest).checkpoint()
    assert (saved.cntvct, saved.cntpct, saved.cval(Timer.VTIMER).tolist()) == (4000, 9000, [5000])
    for missing in ("cntvct", "cntpct"):
        snapshot = snapshots.parse({key: value for key, value in manifest.items() if key != missing})
        assert [lack.name for lack in snapshot.lacks if lack.needed] == [missing]


def test_straight_encodings_are_recognised_and_never_swapped() -> None:
    straight = {CTL: 1, CNT: 5000}
    asked: dict[str, Any] = {"frequency_hz": HZ, "host": None}
    with pytest.raises(ValueError, match='with ids="kvm" or ids="arm"'):
        Checkpoint.from_one_regs([straight], **asked)
    # With the virtual counter among them the ids alone can't tell, but KVM has no CNTFRQ_EL0.
    whole = straight | {CVAL: 4000, CNTFRQ: HZ}
    with pytest.raises(ValueError, match="has CNTFRQ_EL0, which KVM doesn't list"):
        Checkpoint.from_one_regs([whole], **asked)
    arm = Checkpoint.from_one_regs([whole], **asked, ids="arm", cntpct=1)
    kvm = Checkpoint.from_one_regs([whole], **asked, ids="kvm", cntpct=1)
    assert (arm.cntvct, arm.cval(Timer.VTIMER).tolist()) == (4000, [5000])
    assert (kvm.cntvct, kvm.cval(Timer.VTIMER).tolist()) == (5000, [4000])
    with pytest.raises(ValueError, match=rf"CNTFRQ_EL0 of {HZ} Hz, and the guest's is given as {HZ + 1} Hz"):
        Checkpoint.from_one_regs([whole], frequency_hz=HZ + 1, host=None, ids="arm", cntpct=1)
    with pytest.raises(ValueError, match="no timer register at all"):
        Checkpoint.from_one_regs([{PSTATE: 5}], **asked)


def test_a_physical_count_that_would_trap_is_not_handed_out() -> None:
    counter = host()
    # KVM's default: the guest's physical counter is the host's.
    own = ModelVm(1, counter=counter).checkpoint()
    assert Reg.PTIMER_CNT not in own.to_one_regs()[0]
    assert own.to_one_regs(physical_count=True)[0][Reg.PTIMER_CNT] == counter.read()
    displaced = ModelVm(1, counter=counter)
    displaced.set_one_reg(0, Reg.PTIMER_CNT, 77)
    for vm in (displaced, owned(counter), ModelVm(1, counter=counter, kernel="7.3", nested=True)):
        assert Reg.PTIMER_CNT in vm.checkpoint().to_one_regs()[0]
        assert Reg.PTIMER_CNT not in vm.checkpoint().to_one_regs(physical_count=False)[0]
    nobody = Checkpoint.from_one_regs(own.to_one_regs(physical_count=True), frequency_hz=HZ, host=None)
    with pytest.raises(ValueError, match="nobody can tell whether CNTPCT_EL0 was the host's own"):
        nobody.to_one_regs()
    # A replay without it leaves the counter of the host that it comes to.
    twin = ModelVm(1, counter=counter)
    for reg, value in own.to_one_regs()[0].items():
        twin.set_one_reg(0, reg, value)
    assert twin.cntpct(0) == counter.read()


def test_an_unknown_register_has_a_way_out(tmp_path: Path) -> None:
    registers = CLOUD_VCPUS[0] | {LATER_REG: 42}
    saved = snapshots.parse(cloud_hypervisor([registers], CLOCK)).checkpoint()
    vm = ModelVm(1, counter=ManualCounter(5, frequency_hz=CLOUD_HZ))
    with pytest.raises(TopologyMismatch, match=r"checkpoint\.without_unknown\(\)"):
        vm.plan(saved)
    assert vm.restore(saved.without_unknown()).cntvct == saved.cntvct
    path = written(cloud_hypervisor([registers], CLOCK), tmp_path / "state.json")
    refused = run("plan", path, "--policy", "freeze")
    assert refused.exit_code == 1
    assert "leave them out: --leave-out-unknown" in refused.stdout
    assert run("plan", path, "--policy", "freeze", "--leave-out-unknown").exit_code == 0


@given(vms())
def test_what_is_exported_and_imported_again_is_the_same_guest_time(vm: ModelVm) -> None:
    saved = vm.checkpoint(name="web-1")
    document = json.loads(json.dumps(snapshots.export(saved)))
    again = snapshots.parse(document).checkpoint()

    def time(checkpoint: Checkpoint) -> tuple[object, ...]:
        columns = {name: column.tolist() for name, column in checkpoint.vcpu_columns().items()}
        return checkpoint.name, checkpoint.frequency_hz, checkpoint.cntvct, checkpoint.cntpct, columns

    assert time(again) == time(saved)
    assert snapshots.export(again) == document


@pytest.mark.parametrize("hz", [HZ, 25_000_000])
@pytest.mark.parametrize("opted_in", [True, False])
def test_a_guest_that_stopped_earlier_goes_on_from_its_stop_again(hz: int, *, opted_in: bool) -> None:
    base = ManualCounter(10**12 + 7, frequency_hz=HZ, realtime_ns=NOW_NS)
    bank = ClockBank(base)
    handle = bank.add(2, frequency_hz=hz)
    if opted_in:
        bank.vm(handle).opt_in()
    base.advance(5 * HZ + 1)
    stopped_at = base.read()
    base.advance(HZ + 3)
    (saved,) = Fleet(bank).checkpoint(stopped_at={str(handle): stopped_at})
    again = snapshots.parse(json.loads(json.dumps(snapshots.export(saved)))).checkpoint()
    elapsed = Elapsed.given(2 * SECOND, error_ns=0)

    def ends(checkpoint: Checkpoint, policy: Freeze | Advance, **keywords: Any) -> tuple[int, int]:
        target = ModelVm(2, counter=ManualCounter(10**9, frequency_hz=hz))
        report = target.restore(checkpoint, policy, **keywords)
        return report.cntvct, report.cntpct

    assert ends(again, Freeze()) == ends(saved, Freeze()) != (saved.cntvct, saved.cntpct)
    assert ends(again, Advance(), elapsed=elapsed) == ends(saved, Advance(), elapsed=elapsed)
    assert again.reading is not None
    assert (again.reading.count, again.reading.realtime_ns) == (saved.cntvct, saved.stamp.realtime_ns)
    assert snapshots.parse(snapshots.export(saved)).lacks == []


def test_a_backlog_is_refused() -> None:
    base = ManualCounter(10**12, frequency_hz=HZ, realtime_ns=NOW_NS)
    vm = ModelVm(1, counter=base)
    vm.opt_in()
    with vm.pause(CatchUp(10**6, 10**9)):
        base.advance_ns(SECOND)
    saved = vm.checkpoint()
    with pytest.raises(Refused, match=f"a backlog of {HZ} ticks"):
        snapshots.export(saved)
    # The ways out.
    for policy, added in ((Advance(), HZ), (Advance(0), 0)):
        model = ModelVm(1, counter=ManualCounter(base.read(), frequency_hz=HZ))
        model.restore(saved, policy, elapsed=Elapsed.given(0, error_ns=0))
        assert snapshots.parse(snapshots.export(model.checkpoint())).checkpoint().cntvct == saved.cntvct + added


@pytest.mark.parametrize("number", ["1_0", " 5 ", "5 ", "+1", "-1", "٣", "", "0x", "0x_1", "0X1", "1" * 21, "0b1"])
def test_a_number_is_of_decimal_or_hexadecimal_digits(number: str) -> None:
    registers = {f"{reg:#x}": str(value) for reg, value in CLOUD_VCPUS[0].items()}
    for vcpu in ({**registers, number: "1"}, {**registers, next(iter(registers)): number}):
        with pytest.raises(InvalidFile, match="hasn't the shape"):
            snapshots.parse({**PLAIN, "vcpus": [vcpu]})
    for name in ("frequency_hz", "cntvct", "width_ticks"):
        with pytest.raises(InvalidFile, match="hasn't the shape"):
            snapshots.parse({**PLAIN, name: number})


PLAIN = {
    "format": "guestclock.registers/1",
    "name": "web-1",
    "ids": "kvm",
    "frequency_hz": CLOUD_HZ,
    "vcpus": [{f"{reg:#x}": str(value) for reg, value in registers.items()} for registers in CLOUD_VCPUS],
    "reading": {"count": 1, "realtime_ns": 2, "width_ns": 3},
    "width_ticks": 4,
}
DOCUMENTS = [PLAIN, cloud_hypervisor(CLOUD_VCPUS, CLOCK), json.loads((GOLDEN / "qemu-tcg.json").read_text())]


def test_plain_json_has_each_field() -> None:
    snapshot = snapshots.parse(PLAIN)
    saved = snapshot.checkpoint()
    assert (saved.name, saved.frequency_hz, saved.virtual_width_ticks) == ("web-1", CLOUD_HZ, 45_947 + 4)
    assert saved.reading is not None
    assert (saved.reading.count, saved.reading.realtime_ns, saved.reading.width_ns) == (1, 2, 3)
    assert snapshots.parse({**PLAIN, "reading": None, "realtime_ns": 7}).checkpoint().reading is not None


@pytest.mark.parametrize(
    "change",
    [
        {"vcpus": [{f"{CTL:#x}": -1}]},
        {"vcpus": [{f"{CTL:#x}": 2**64}]},
        {"vcpus": [{f"{CTL:#x}": 1.5}]},
        {"vcpus": [{f"{CTL:#x}": True}]},
        {"vcpus": [{"TIMER_CTL": 1}]},
        {"vcpus": [[[CTL, 1], [CTL, 1]]]},
        {"vcpus": [[CTL, 1]]},
        {"vcpus": 5},
        {"vcpus": None},
        {"frequency_hz": 2**32},
        {"ids": "x86"},
        {"name": 5},
        {"later": 1},
        {"reading": {"count": 1}},
        {"reading": {"count": 1, "realtime_ns": 2, "later": 3}},
        {"realtime_ns": 2**63},
    ],
)
def test_a_broken_document_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidFile):
        snapshots.parse(PLAIN | change)


def planted() -> list[dict[str, Any]]:
    faults = []
    for broken in ([1] * 15, [256] * 16, ["a"] * 16, [1.5] * 16, 5):
        document = cloud_hypervisor(CLOUD_VCPUS, CLOCK)
        document["snapshots"]["cpu-manager"]["snapshots"]["0"]["snapshot_data"]["state"] = json.dumps(
            {"Kvm": {"sys_regs": [broken]}}
        )
        faults.append(document)
    document = cloud_hypervisor(CLOUD_VCPUS, CLOCK)
    document["snapshots"]["cpu-manager"]["snapshots"]["5"] = document["snapshots"]["cpu-manager"]["snapshots"].pop("1")
    faults += [document, cloud_hypervisor(CLOUD_VCPUS, {**CLOCK, "cntfrq": -1})]
    for section, key, value in (
        ("cpu (6)", "cpreg_vmstate_values", []),
        ("cpu (6)", "cpreg_vmstate_indexes", ["0x603000000013df00"] * 291),
        ("timer (0)", "cpu_clock_offset", "-0x1"),
    ):
        document = copy.deepcopy(DOCUMENTS[2])
        document[section][key] = value
        faults.append(document)
    other = copy.deepcopy(DOCUMENTS[2])
    at = other["cpu (8)"]["cpreg_vmstate_indexes"].index(f"{CNTFRQ:#018x}")
    other["cpu (8)"]["cpreg_vmstate_values"][at] = "0x1"
    return [*faults, other]


@pytest.mark.parametrize("document", planted())
def test_a_planted_fault_is_found(document: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidFile):
        snapshots.parse(document)
    done = run("inspect", written(document, tmp_path / "state.json"))
    assert (done.exit_code, done.stdout) == (2, "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=settings().max_examples * 3)
@given(st.sampled_from(DOCUMENTS), st.randoms(use_true_random=False), JSON)
def test_a_document_from_anywhere_is_read_or_refused(document: dict[str, Any], random: Any, junk: Any) -> None:
    """One place of a good document is something else: a snapshot of it makes a checkpoint, or says why not."""
    document = copy.deepcopy(document)
    inner: Any = document
    while True:
        key = random.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if isinstance(inner[key], dict | list) and inner[key] and random.random() < 0.8:
            inner = inner[key]
            continue
        inner[key] = junk
        break
    try:
        snapshots.parse(document).checkpoint()
    except (ValueError, OverflowError) as error:
        assert str(error)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 50_000,
        json.dumps(PLAIN).replace("{", '{"name": "other", ', 1),
        json.dumps(PLAIN).replace('"count": 1', '"count": NaN'),
        '{"a": ' + "9" * 5000 + "}",
        "{}",
        "[]",
        "{",
        '{"a": "\x1b]0;x\x07"}',
    ],
)
def test_a_file_from_anywhere_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(InvalidFile):
        snapshots.read(path)
    done = run("inspect", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "\x1b" not in done.stderr


def test_what_is_too_large_or_no_file_is_not_read(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.write(b"{")
        file.truncate(17 << 20)
    with pytest.raises(TooLarge) as caught:
        snapshots.read(large)
    assert (caught.value.size, caught.value.limit) == (17 << 20, 16 << 20)
    assert run("inspect", large).exit_code == 2
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # It would wait for a writer.
    with pytest.raises(InvalidFile, match="isn't a regular file"):
        snapshots.read(fifo)
    with pytest.raises(OSError, match="nowhere"):
        snapshots.read(tmp_path / "nowhere")


def test_a_folder_of_snapshots_is_a_row_each(tmp_path: Path) -> None:
    folder = tmp_path / "host"
    folder.mkdir()
    written(cloud_hypervisor(CLOUD_VCPUS, CLOCK), folder / "web-1.json")
    written(cloud_hypervisor(CLOUD_VCPUS[:1], CLOCK), folder / "web-2.json")
    written(PLAIN | {"name": "db"}, folder / "third.json")
    done = run("plan", folder, "--policy", "advance", "--elapsed", "30s", "--elapsed-error", "1ms", "--csv")
    assert done.exit_code == 0, done.output
    rows = [line.split(",")[:2] for line in done.stdout.splitlines()[1:]]
    assert rows == [["db", "true"], ["web-1", "true"], ["web-2", "true"]]
    one = run("plan", folder, "--vm", "web-2", "--policy", "freeze", "--csv")
    assert [line.split(",")[0] for line in one.stdout.splitlines()[1:]] == ["web-2"]
    assert run("plan", folder, "--vm", "web-9", "--policy", "freeze", "--csv").exit_code == 2
    written(PLAIN | {"name": "db"}, folder / "fourth.json")
    assert "two VMs are named 'db'" in run("plan", folder, "--policy", "freeze", "--csv").stderr


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("30s", 30 * SECOND),
        ("1.5ms", 1_500_000),
        ("2min", 120 * SECOND),
        ("1us", 1000),
        ("7ns", 7),
        ("1d", 86_400 * SECOND),
    ],
)
def test_durations(text: str, ns: int) -> None:
    assert duration_ns(text) == ns


@pytest.mark.parametrize("text", ["30", "1.5ns", "-1s", "", "s", "1e9s", "1 s", f"{2**64}ns", "٣s"])
def test_wrong_durations(text: str, tmp_path: Path) -> None:
    path = written(PLAIN, tmp_path / "file.json")
    done = run("plan", path, "--policy", "advance", f"--elapsed={text}")
    assert (done.exit_code, done.stdout) == (2, "")


def test_plans_name_flags_and_not_keywords(tmp_path: Path) -> None:
    """Every refusal and every warning that a dry run of a file can meet, by one VM each."""
    counter = ManualCounter(10**12, frequency_hz=HZ)
    own = tmp_path / "own"
    ModelVm(1, counter=counter).checkpoint().save(own)
    nobody = written(cloud_hypervisor(CLOUD_VCPUS, None), tmp_path / "state.json")
    known = ("--cntfrq-hz", CLOUD_HZ)
    catch_up = ("--policy", "catch-up", "--step", "1ms", "--interval", "2ms")
    later = tmp_path / "later"
    vm = ModelVm(1, counter=counter)
    Checkpoint.from_one_regs(
        [vm.checkpoint().to_one_regs(physical_count=True)[0] | {LATER_REG: 1}], frequency_hz=HZ, host=counter.stamp()
    ).save(later)
    for error, arguments in (
        ("FrequencyMismatch", (own, "--policy", "freeze", "--frequency-hz", HZ + 1)),
        ("CounterSkew", (own, "--policy", "freeze", "--elapsed", "1s", "--views", "refuse")),
        ("ElapsedUnknown", (nobody, *known, "--policy", "advance")),
        (
            "ElapsedTooLong",
            (own, "--policy", "advance", "--elapsed", "400d", "--elapsed-by", "wall-clocks", "--elapsed-error", "1s"),
        ),
        ("CapabilityMissing", (own, *catch_up, "--elapsed", "1s")),
        (
            "CapabilityMissing",
            (own, "--policy", "freeze", "--elapsed", "1s", "--views", "adopt-virtual", "--kernel", "6.1"),
        ),
        ("UnknownState", (later, "--policy", "freeze", "--elapsed", "1s", "--strict")),
        ("TopologyMismatch", (later, "--policy", "freeze", "--elapsed", "1s")),
        (None, (own, "--policy", "advance", "--elapsed", "30s")),
        (
            None,
            (own, "--policy", "advance", "--elapsed", "30s", "--elapsed-by", "wall-clocks", "--elapsed-error", "1s"),
        ),
    ):
        done = run("plan", *arguments)
        assert done.exit_code == (1 if error else 0), (arguments, done.output)
        assert error is None or error in done.stdout
        said = " ".join(done.stdout.split())
        for python in ("elapsed=", "views=", "strict=", "sync=", "error_ns", "Freeze()", "Advance(", "CatchUp(", "(ns"):
            assert python not in said, (arguments, python, said)


def test_frozen_from_a_file_of_an_unknown_host() -> None:
    saved = snapshots.parse(PLAIN).checkpoint()
    assert ModelVm(2, counter=ManualCounter(9, frequency_hz=CLOUD_HZ)).restore(saved, Freeze()).cntvct == saved.cntvct
