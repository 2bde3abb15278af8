"""The claims of docs/accuracy.md, each as an interval that has to hold the truth: no figure is judged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from accuracy.measure import by_hand
from guestclock import selftest
from guestclock.selftest.accuracy import DELAYS_MS, KvmBench, Row, holds


@pytest.fixture(scope="module")
def document() -> selftest.Document:
    """The self-test of this kernel, kept with the leg's files."""
    made = selftest.run()
    if out := os.environ.get("GUESTCLOCK_OUT"):
        Path(out, "selftest.json").write_text(json.dumps(made, indent=2))
    return made


def test_every_restore_is_what_its_policy_promises(document: selftest.Document) -> None:
    assert [row for row in document["accuracy"] if row["wrong"]] == []
    assert document["ok"]
    by_offset = document["capabilities"]["counter_offset"]["ok"]
    assert len(document["accuracy"]) == len(DELAYS_MS) * (7 if by_offset else 3)


def test_a_delay_is_hidden_by_freeze_and_given_by_advance(document: selftest.Document) -> None:
    for fields in document["accuracy"]:
        row = Row(**fields)
        if row.policy == "Freeze()" and row.method == "offset":
            # Whatever of the delays the guest saw would be there, less what the calls themselves took.
            assert row.seen[0] <= row.calls
        if row.policy == "Advance()":
            assert row.seen[1] >= row.held_up[0]
        assert row.held_up[0] * 1000 >= 2 * row.delay_ms * document["frequency_hz"]


def test_the_document_is_json_and_names_no_host(document: selftest.Document) -> None:
    text = json.dumps(document)
    assert json.loads(text) == document
    for name in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        if Path(name).exists() and (known := Path(name).read_text().strip()):
            assert known not in text
            assert known.replace("-", "") not in text
    assert {cost["call"] for cost in document["costs"]} >= {"checkpoint", "restore, Advance()", "pause and resume"}
    assert all(0 < cost["least_ns"] <= cost["median_ns"] <= cost["most_ns"] for cost in document["costs"])


@pytest.mark.parametrize("delay_ms", DELAYS_MS)
def test_a_vmm_that_sets_values_loses_its_delay(delay_ms: int) -> None:
    with KvmBench().machine() as probe:
        if not probe.vm.capabilities.physical_timer:
            pytest.skip("this kernel has no physical counter that could be set")
    made = by_hand(delay_ms)
    assert made.behind[0] <= made.held_up[1]
    assert made.held_up[0] <= made.behind[1]
    assert not holds(made.behind), "a delay of a millisecond and more is seen"
    assert holds(made.vcpu_skew), "a counter is the VM's, however it is set"
    assert made.view_skew[1] >= 0, "the physical counter is set later, and so behind"
