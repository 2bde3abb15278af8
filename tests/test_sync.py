"""What chrony and ClockBound vouch for: from what their own programs wrote, and from lines and segments made here."""

from __future__ import annotations

import pickle
import struct
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guestclock
from guestclock import ManualCounter, ModelVm, SyncBound, sync
from guestclock.errors import NotSynchronised
from guestclock.sync import chrony, clockbound

NS = 10**9

# What `chronyc -c tracking` of chrony 4.3 (Debian 12) printed, of three `chronyd -x` on one machine: one synchronised
# to the next over the loopback, that one with `local stratum 1`, and one without any source.
SYNCHRONISED = (
    "7F000001,127.0.0.1,2,1795380476.715644226,-0.000001620,-0.000000145,0.000013312,0.071,-0.003,0.354,"
    "0.000005424,0.000003062,1.0,Normal\n"
)
ITS_OWN = (
    "7F7F0101,,1,1795380464.844160463,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,"
    "0.000000000,0.000000000,0.0,Normal\n"
)
WITHOUT_A_SOURCE = (
    "00000000,,0,0.000000000,0.000000000,0.000000000,0.000000000,0.000,0.000,0.000,"
    "1.000000000,1.000000000,0.0,Not synchronised\n"
)

# A segment as clock-bound-shm 2.0.3's own writer (crates.io, feature "writer") left it after the third write of:
# as_of 1234.500000002 s, void_after 2234.5 s, bound 123 456 ns, marker 0xfeedbeef, 1 000 ppb, Synchronized, with
# support for disruptions. On x86-64, so little endian.
GOLDEN = (Path(__file__).parent / "golden" / "clockbound-2.shm").read_bytes()
AS_OF = 1234 * NS + 500_000_002
VOID_AFTER = 2234 * NS + 500_000_000

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the golden segment is little endian")


def line(
    offset: str = "0.000000000",
    residual: str = "0.000",
    skew: str = "0.000",
    delay: str = "0.000000000",
    dispersion: str = "0.000000000",
    leap: str = "Normal",
    refid: str = "CB00710F",
) -> str:
    return (
        f"{refid},ntp1.example.net,3,1485510557.000000000,{offset},-0.000006747,0.000035822,-3.225,{residual},{skew},"
        f"{delay},{dispersion},64.2,{leap}"
    )


def segment(
    *,
    magic: tuple[int, int] = (0x414D5A4E, 0x43420200),
    size: int = 80,
    version: int = 2,
    generation: int = 6,
    as_of: tuple[int, int] = (1234, 500_000_002),
    void_after: tuple[int, int] = (2234, 500_000_000),
    bound: int = 123_456,
    drift: int = 1_000,
    status: int = 1,
) -> bytes:
    """By docs/PROTOCOL.md of ClockBound, field by field."""
    header = struct.pack("=2I", *magic) + struct.pack("=I", size) + struct.pack("=2H", version, generation)
    times = struct.pack("=2q", *as_of) + struct.pack("=2q", *void_after)
    return header + times + struct.pack("=qQ", bound, 0xFEEDBEEF) + struct.pack("=Ii", drift, status) + b"\1" + bytes(7)


def test_chronyc_by_hand() -> None:
    # |system time| 1620, dispersion 3062 and half of the delay, 5424 / 2, are 7394 ns, and rounding may have hidden
    # 0.5 + 0.5 + 0.25 more. Skew 0.354 and residual 0.003 ppm with half of a digit each are 358 ppb.
    assert chrony(SYNCHRONISED) == SyncBound(max_error_ns=7396, holdover_ppb=358 + 1_000, quality="chrony")


def test_the_manuals_example() -> None:
    # chronyc(1): 6.523 us slow, root delay 13.639022 ms, root dispersion 1.100737 ms, skew 0.129 ppm.
    text = line("0.000006523", "-0.000", "0.129", "0.013639022", "0.001100737")
    assert chrony(text).max_error_ns == 6_523 + 13_639_022 // 2 + 1_100_737 + 2
    assert chrony(text, max_clock_error_ppb=15_000).holdover_ppb == 129 + 1 + 15_000


@given(
    offset=st.integers(-(10**18), 10**18),
    delay=st.integers(0, 10**18),
    dispersion=st.integers(0, 10**18),
    skew=st.integers(0, 10**9),
    residual=st.integers(-(10**9), 10**9),
    hidden=st.tuples(*(st.integers(-500, 500) for _ in range(5))),
)
def test_no_clock_that_prints_so_is_beyond_the_bound(
    offset: int, delay: int, dispersion: int, skew: int, residual: int, hidden: tuple[int, int, int, int, int]
) -> None:
    def seconds(ns: int) -> str:
        return f"{'-' if ns < 0 else ''}{abs(ns) // NS}.{abs(ns) % NS:09}"

    def ppm(ppb: int) -> str:
        return f"{'-' if ppb < 0 else ''}{abs(ppb) // 1000}.{abs(ppb) % 1000:03}"

    got = chrony(line(seconds(offset), ppm(residual), ppm(skew), seconds(delay), seconds(dispersion)))
    # What was printed, and what the printing may have rounded away, in thousandths.
    true = [
        abs(1000 * printed + more)
        for printed, more in zip((offset, dispersion, delay, skew, residual), hidden, strict=True)
    ]
    error = Fraction(true[0] + true[1], 1000) + Fraction(true[2], 2000)
    assert error <= got.max_error_ns < abs(offset) + dispersion + Fraction(delay, 2) + 3
    rate = Fraction(true[3] + true[4], 1000) + 1_000
    assert rate <= got.holdover_ppb <= abs(residual) + skew + 1_000 + 1


@pytest.mark.parametrize("leap", ["Normal", "Insert second", "Delete second"])
def test_a_leap_second_is_no_obstacle(leap: str) -> None:
    assert chrony(line(leap=leap)).quality == "chrony"


@pytest.mark.parametrize(
    ("text", "reason"),
    [(WITHOUT_A_SOURCE, "Not synchronised"), (line(leap="Invalid"), "Invalid"), (ITS_OWN, "its own reference")],
)
def test_chrony_that_knows_nothing_is_refused(text: str, reason: str) -> None:
    with pytest.raises(NotSynchronised, match="SyncBound") as caught:
        chrony(text)
    assert caught.value.source == "chrony"
    assert reason in caught.value.reason
    assert reason in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


@pytest.mark.parametrize(
    "text",
    [
        "",
        "506 Cannot talk to daemon",
        SYNCHRONISED + SYNCHRONISED,
        SYNCHRONISED.replace("127.0.0.1", "a,b"),
        *(line(offset=bad) for bad in ("nan", "inf", "1", "1e-6", "1/3", "0.0x", "", "\u0660.\u0660", "+0.0")),
    ],
)
def test_what_is_no_tracking_line_is_said_so(text: str) -> None:
    with pytest.raises(ValueError, match="not a line of"):
        chrony(text)


def test_the_command_is_asked_and_timed() -> None:
    began = time.monotonic_ns()
    bound = chrony(command=[sys.executable, "-c", f"print({SYNCHRONISED!r}, end='')"], tai_offset_s=37, timeout_s=60)
    assert 0 < bound.age_ns <= time.monotonic_ns() - began
    assert (bound.max_error_ns, bound.tai_offset_s) == (7396, 37)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/nonexistent/chronyc"], "there is no /nonexistent/chronyc"),
        (
            [sys.executable, "-c", "print('506 Cannot talk to daemon'); raise SystemExit(1)"],
            "506 Cannot talk to daemon",
        ),
        ([sys.executable, "-c", "import time; time.sleep(600)"], "didn't answer within 0 s"),
    ],
)
def test_a_command_that_fails_is_refused(command: list[str], reason: str) -> None:
    with pytest.raises(NotSynchronised) as caught:
        chrony(command=command, timeout_s=0 if "600" in command[-1] else 60)
    assert reason in caught.value.reason
    assert caught.value.__cause__ is not None


@little_endian
def test_clockbounds_own_segment() -> None:
    assert segment() == GOLDEN
    bound = clockbound(GOLDEN, now_ns=AS_OF + 7 * NS, tai_offset_s=37)
    assert bound == SyncBound(
        max_error_ns=123_456, age_ns=7 * NS, holdover_ppb=1_000, quality="clockbound", tai_offset_s=37
    )


@given(
    as_of=st.integers(0, 2**60),
    age=st.integers(-999, 2**50),
    bound=st.integers(0, 2**63 - 1),
    drift=st.integers(0, NS - 1),
    status=st.sampled_from([1, 2]),
    generation=st.integers(1, 2**15 - 1),
)
def test_any_segment(as_of: int, age: int, bound: int, drift: int, status: int, generation: int) -> None:
    now = as_of + age
    data = segment(
        as_of=divmod(as_of, NS),
        void_after=divmod(now + 1, NS),
        bound=bound,
        drift=drift,
        status=status,
        generation=2 * generation,
    )
    got = clockbound(data + b"more", now_ns=now)
    assert (got.max_error_ns, got.age_ns, got.holdover_ppb) == (bound, max(age, 0), drift)


@pytest.mark.parametrize(
    ("data", "now", "reason"),
    [
        (segment(status=0), AS_OF, "Unknown"),
        (segment(status=3), AS_OF, "Disrupted"),
        (segment(status=4), AS_OF, "4"),
        (segment(), VOID_AFTER, "void 0 ns ago"),
        (segment(), VOID_AFTER + 5, "void 5 ns ago"),
        (segment(version=0), AS_OF, "starting"),
        (segment(generation=0), AS_OF, "starting"),
    ],
)
def test_clockbound_that_vouches_for_nothing_is_refused(data: bytes, now: int, reason: str) -> None:
    with pytest.raises(NotSynchronised, match="SyncBound") as caught:
        clockbound(data, now_ns=now)
    assert caught.value.source == "clockbound"
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "80 bytes, not 0"),
        (segment()[:79], "80 bytes, not 79"),
        (segment(magic=(0x414D5A4E, 0x43420201)), "magic"),
        (segment(version=1), "version 1"),
        (segment(version=3), "version 3"),
        (segment(generation=7), "odd generation"),
        (segment(size=79), "out of range"),
        (segment(bound=-1), "out of range"),
        (segment(drift=NS), "out of range"),
        (segment(as_of=(1234, NS)), "out of range"),
        (segment(void_after=(2234, -1)), "out of range"),
        (segment(as_of=(1234, 500_001_002)), "from the future"),
    ],
)
def test_what_is_no_segment_is_said_so(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clockbound(data, now_ns=1234 * NS + 500_000_002)


def test_a_segment_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "shm0"
    now = time.monotonic_ns()
    path.write_bytes(segment(as_of=divmod(now, NS), void_after=divmod(now + 1000 * NS, NS)))
    bound = clockbound(path=path)
    assert (bound.max_error_ns, bound.quality) == (123_456, "clockbound")
    assert 0 <= bound.age_ns <= time.monotonic_ns() - now


def test_no_segment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotSynchronised, match="No such file") as caught:
        clockbound(path=tmp_path / "shm0")
    assert isinstance(caught.value.__cause__, FileNotFoundError)


def test_a_copy_counts_when_nobody_wrote() -> None:
    # A writer in the middle of it, torn copies, and at last two that agree.
    copies = [segment(generation=7), segment(generation=7), segment(bound=1), segment(), segment(), segment(bound=2)]
    assert sync._agreed(iter(copies).__next__) == segment()


def test_a_writer_that_died_is_refused() -> None:
    with pytest.raises(NotSynchronised, match="doesn't finish"):
        sync._agreed(lambda: segment(generation=7))


def test_a_bound_is_what_its_owner_says() -> None:
    assert SyncBound(5) == SyncBound(
        max_error_ns=5, age_ns=0, holdover_ppb=50_000, quality="declared", tai_offset_s=None
    )
    assert guestclock.SyncBound is SyncBound
    with pytest.raises(AttributeError):
        SyncBound(5).max_error_ns = 6  # type: ignore[misc]


@pytest.mark.parametrize(
    "ask",
    [
        lambda: clockbound(segment(as_of=(-(2**62), 0), void_after=(2**62, 0)), now_ns=0),
        lambda: chrony(line(dispersion="9" * 12 + ".0")),
        lambda: chrony(line(skew="9" * 20 + ".0")),
    ],
    ids=["an age", "an error", "a holdover"],
)
def test_a_number_that_no_stamp_could_carry_is_refused(ask: Callable[[], SyncBound]) -> None:
    """Else every call that takes the bound would raise, and a VMM's restore with it."""
    with pytest.raises(NotSynchronised, match="which is absurd"):
        ask()


def test_the_largest_numbers_are_taken_by_every_call() -> None:
    bound = clockbound(segment(as_of=(0, 0), void_after=(2**62, 0), bound=2**63 - 1), now_ns=2**64 - 1)
    host = ManualCounter(0)
    vm = ModelVm(counter=host)
    assert vm.checkpoint(sync=bound).stamp.sync == bound
