"""These tests need a machine of the testbed with Linux guests in it: `make kvm-test LEGS=linux`. Elsewhere none is
collected. A snapshot is removed after its tests: the machine's disk is its memory, and has no room for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

GUESTS = sorted(path for path in Path("/guest").glob("*") if path.name != "probe") if Path("/guest").is_dir() else []
if not GUESTS:
    collect_ignore_glob = ["test_*.py"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" in metafunc.fixturenames:
        # All guests take long: a short run has the oldest.
        guests = [
            pytest.param(path, marks=[pytest.mark.nightly] if number else []) for number, path in enumerate(GUESTS)
        ]
        metafunc.parametrize("kernel", guests, ids=[path.name for path in GUESTS], scope="session")
