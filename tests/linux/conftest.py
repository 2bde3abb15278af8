"""These tests need a machine of the testbed with Linux guests in it: `make kvm-test LEGS=linux`. Elsewhere none is
collected. A snapshot is removed after its tests: the machine's disk is its memory, and has no room for all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

GUESTS = sorted(path for path in Path("/guest").glob("*") if path.name != "probe") if Path("/guest").is_dir() else []
if not GUESTS:
    collect_ignore_glob = ["test_*.py"]

ALL = os.environ.get("GUESTCLOCK_LINUX") == "all"
"""All guests and all rows, which take long; else, in a short run, a row of each kind on the oldest guest."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" in metafunc.fixturenames:
        guests = GUESTS if ALL else GUESTS[:1]
        metafunc.parametrize("kernel", guests, ids=[path.name for path in guests], scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not ALL:
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "nightly: a row that a short run leaves out")
