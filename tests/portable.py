"""Tests on the build that other systems than Linux have: whatever that build refuses is skipped, in this one place.

A test that reaches `HostCounter()`, `KvmVm(...)` or their like there gets CapabilityMissing of "linux", and is skipped.
So that no mistake skips what has to run, only the files listed here have such tests, and fewer are skipped than pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import pytest

from guestclock.errors import CapabilityMissing

FILES = {
    "backends",
    "catch_up",
    "clock_bank",
    "counters",
    "elapsed",
    "evidence",
    "faults",
    "files",
    "inspect",
    "restore",
    "scaled",
    "testing",
    "trace",
}
"""Files with tests that need Linux, without `test_` and `.py`."""

OF_LINUX = {
    "a_special_file_is_refused_at_once": "the kind of a file is told on Linux alone",
    "a_folder_that_cant_be_listed_takes_files": "Linux alone syncs a folder that can't be read",
    "an_owner_that_cant_be_kept_is_refused": "the refusal's sentence is Linux's",
    "wrong_usage_exits_2_and_says_why": "a plan without --elapsed is by this host's counter",
    "a_signal_ends_the_wait_for_a_file": "leases are Linux's",
}
"""Tests of what needs Linux and doesn't raise its refusal, without `test_`, and the reason."""


def refused(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, CapabilityMissing) and error.capability == "linux":
            return True
        error = error.__cause__ or error.__context__
    return False


REFUSED = "refused without Linux"
"""The property of a test whose skip is that build's refusal: reports alone reach the process that counts them."""


class Portable:
    def __init__(self) -> None:
        self.passed = 0
        self.refused: Counter[str] = Counter()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if reason := OF_LINUX.get(item.name.removeprefix("test_")):
                item.add_marker(pytest.mark.skip(reason=reason))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.excinfo and refused(call.excinfo.value):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"Skipped: {call.excinfo.value}")
            report.user_properties.append((REFUSED, item.path.stem.removeprefix("test_")))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and REFUSED in (told := dict(report.user_properties)):
            self.refused[str(told[REFUSED])] += 1
        elif report.when == "call" and report.passed:
            self.passed += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused.keys() - FILES or self.refused.total() > self.passed:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("without Linux")
        terminalreporter.line(f"refused: {self.refused.total()} tests, of {dict(sorted(self.refused.items()))}")
        for name in sorted(self.refused.keys() - FILES):
            terminalreporter.line(
                f"FAILED: a test of test_{name}.py is refused, and the file isn't listed in {__file__}"
            )
