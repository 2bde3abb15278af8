"""What all tests share: how many examples are tried, and a tally of the state machines' steps."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from guestclock._core import _LINUX
from portable import Portable
from tally import STEPS

# How long an example takes to draw or to try is the machine's load, and says nothing of what is tested.
UNTIMED = [HealthCheck.too_slow]
# The same examples in every run, so that a run that failed can be repeated, and none fails by luck.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=UNTIMED)
# `make deep-test`: other examples in every run, repeated with --hypothesis-seed.
EXAMPLES = int(os.environ.get("GUESTCLOCK_EXAMPLES") or 3000)
settings.register_profile("deep", deadline=None, database=None, max_examples=EXAMPLES, suppress_health_check=UNTIMED)
# The other build has the same laws in it: what may differ there shows in few examples.
settings.register_profile("few", settings.get_profile("repeatable"), max_examples=20)
settings.load_profile("repeatable" if _LINUX else "few")


def pytest_configure(config: pytest.Config) -> None:
    if not _LINUX:
        config.pluginmanager.register(Portable())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Says how far the state machines went, and whether the model and the reference parted."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    tests = [report for report in reports if isinstance(report, pytest.TestReport)]
    parted = {test.nodeid for test in tests if test.failed and test.when == "call"}
    steps = {test.nodeid: dict(test.user_properties).get(STEPS) for test in tests if test.when == "teardown"}
    counted = {nodeid: count for nodeid, count in steps.items() if isinstance(count, int)}
    if counted:
        terminalreporter.section("model against reference")
        seed = config.getoption("--hypothesis-seed")
        terminalreporter.line(f"profile {settings.get_current_profile_name()}, seed {seed or 'fixed'}")
        for nodeid, count in counted.items():
            found = "a divergence" if nodeid in parted else "0 divergences"
            terminalreporter.line(f"{nodeid}: {count} steps, {found}")
