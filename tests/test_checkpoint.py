"""Checkpoints as values and as files."""

from __future__ import annotations

import copy
import os
import pickle
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guestclock import Checkpoint, ManualCounter, ModelVm, Reg, Timer
from guestclock.errors import NotACheckpoint, TooLarge


@pytest.fixture
def checkpoint() -> Checkpoint:
    vm = ModelVm(3, counter=ManualCounter(10**12, realtime_ns=10**18))
    vm.set_counter_offset(10**12 - 5)
    vm.set_one_reg(2, Reg.TIMER_CVAL, 99)
    return vm.checkpoint()


def test_it_says_what_it_holds(checkpoint: Checkpoint) -> None:
    assert (checkpoint.vcpus, checkpoint.cntvct, checkpoint.cntpct, checkpoint.opted_in) == (3, 5, 5, True)
    assert (checkpoint.frequency_hz, checkpoint.width_ticks, checkpoint.stopped_at) == (62_500_000, 0, None)
    assert checkpoint.cntvoff is None
    cval = checkpoint.cval(Timer.VTIMER)
    assert cval.dtype == np.uint64
    assert cval.tolist() == [0, 0, 99]
    # Its own memory: writing to it changes nothing.
    cval[0] = 1
    assert checkpoint.cval(Timer.VTIMER).tolist() == [0, 0, 99]
    with pytest.raises(KeyError, match="hvtimer"):
        checkpoint.cval(Timer.HVTIMER)
    with pytest.raises(ValueError, match="timer 4"):
        checkpoint.ctl(4)
    said: Any = checkpoint.to_dict()
    assert said["timers"]["vtimer"] == {"cval": [0, 0, 99], "ctl": [0, 0, 0]}
    assert said["host"]["realtime_ns"] == 10**18


def test_it_is_a_value(checkpoint: Checkpoint) -> None:
    for twin in (
        Checkpoint.from_bytes(checkpoint.to_bytes()),
        Checkpoint.from_bytes(bytearray(checkpoint.to_bytes())),
        Checkpoint.from_bytes(memoryview(checkpoint.to_bytes())),
        pickle.loads(pickle.dumps(checkpoint)),
        copy.copy(checkpoint),
        copy.deepcopy(checkpoint),
    ):
        assert twin == checkpoint
        assert twin.to_bytes() == checkpoint.to_bytes()


def test_saving_replaces_whole_files_and_leaves_nothing_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "guest.time"
    path.write_bytes(b"an older file")
    old = os.umask(0o027)
    try:
        checkpoint.save(path)
    finally:
        os.umask(old)
    assert Checkpoint.load(str(path)) == checkpoint
    assert [entry.name for entry in tmp_path.iterdir()] == ["guest.time"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_save_that_fails_leaves_the_old_file(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match=r"taken|directory"):
        checkpoint.save(tmp_path / "taken")
    with pytest.raises(FileNotFoundError):
        checkpoint.save(tmp_path / "nowhere" / "guest.time")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_a_relative_path_is_saved_beside_itself(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save("guest.time")
    assert Checkpoint.load(tmp_path / "guest.time") == checkpoint


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(NotACheckpoint):
        Checkpoint.load(path)
    # Sparse: it takes no room, and must not be read whole.
    os.truncate(path, 2**40)
    with pytest.raises(TooLarge) as caught:
        Checkpoint.load(path)
    assert caught.value.size > caught.value.limit
    with pytest.raises(TypeError):
        Checkpoint.from_bytes("text")  # type: ignore[arg-type]
