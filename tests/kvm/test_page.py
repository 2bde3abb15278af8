"""The pages whose code asks KVM, each run as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from blocks import KVM_PAGES, run


@pytest.mark.parametrize("page", KVM_PAGES, ids=lambda page: page.name)
def test_the_pages_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(page)
