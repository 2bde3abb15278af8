"""SECURITY.md: each thing that its rows say can't be caused has tests, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

# A claim of the column "may not cause", and the tests that broke when it was broken.
CLAIMS: dict[str, list[str]] = {
    "memory beyond a small multiple of the file (16 MiB at most)": [
        "rust/core/tests/memory.rs::decoding_takes_no_more_than_the_bytes",
        "rust/core/tests/hostile.rs::promised_lengths_are_not_believed",
    ],
    "a wait for a FIFO or a device": ["tests/test_files.py::test_a_special_file_is_refused_at_once"],
    "work that grows faster than the file": [
        "tests/test_inspect.py::test_the_work_of_a_reader_grows_as_its_file",
        "rust/core/tests/hostile.rs::groups_and_vcpus_are_few",
    ],
    "text that acts on a terminal": ["tests/test_refusals.py::test_no_command_lets_a_text_act"],
    "a control, a mark of direction or a line of its own on the terminal": [
        "tests/test_refusals.py::test_nothing_in_a_text_acts",
        "tests/test_refusals.py::test_no_text_acts_on_a_real_terminal",
    ],
    "a counter taken for a compare value without the caller's word": [
        "tests/test_snapshots.py::test_straight_encodings_are_recognised_and_never_swapped",
    ],
    "a panic": [
        "tests/test_format.py::test_mended_checksums_dont_help",
        "tests/test_snapshots.py::test_a_document_from_anywhere_is_read_or_refused",
        "tests/test_interchange.py::test_what_is_refused",
    ],
    "a traceback": [
        "tests/test_refusals.py::test_a_number_of_the_hosts_that_is_none",
        "tests/test_refusals.py::test_no_file_of_the_corpora_is_a_traceback",
    ],
    "the whole dump in memory": ["tests/test_refusals.py::test_a_large_dump_is_not_read_whole"],
    "an error in a restore": ["tests/test_guest_pages.py::test_a_page_that_the_guest_has_overwritten_is_no_error"],
    "a page that stays odd for the VMM's next update": ["tests/test_pages.py::test_a_guest_cannot_keep_an_update_open"],
    "a store outside of the page": [
        "tests/test_pages.py::test_a_page_has_to_fit_and_to_be_aligned",
        "tests/test_nightly.py::test_each_part_of_stress_runs_and_counts",
    ],
    "a timer of another VM": ["tests/test_deadline_queue.py::AgainstTheModel"],
    "a loop that never gets to its other tasks": [
        "tests/test_aio.py::test_a_guest_that_sets_its_timers_into_the_past_leaves_others_their_turn",
    ],
    "a bound that a call can't take": [
        "tests/test_sync.py::test_a_number_that_no_stamp_could_carry_is_refused",
        "tests/test_sync.py::test_the_largest_numbers_are_taken_by_every_call",
    ],
    "a wait without end": ["tests/test_sync.py::test_a_command_that_fails_is_refused"],
    "a guest's clock that goes back unless that was asked for": [
        "tests/test_elapsed.py::test_a_step_of_the_wall_clock_is_never_taken_for_time",
    ],
}


def rows() -> list[list[str]]:
    """The cells of the table's rows, without its head."""
    lines = (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return cells[2:]


def test_each_claim_has_tests_that_are_there() -> None:
    assert set(CLAIMS) == {claim for row in rows() for claim in row[3].split("; ")}
    for tests in CLAIMS.values():
        assert tests
        for test in tests:
            file, name = test.split("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^\s*(async def|def|fn|class) {name}\b", text, re.MULTILINE), test


def test_each_row_names_what_is_there() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for row in rows():
        named = re.findall(r"`([^`]+)`", row[4])
        assert named, row
        for name in named:
            assert name.removeprefix("make ") in targets if name.startswith("make ") else (ROOT / name).exists(), name
