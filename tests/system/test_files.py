"""Atomic writes: at any failure or kill the file is the old one or the new one."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from collapsemeter import ClassMoments
from collapsemeter.system.files import write_atomically

OLD, NEW = b"old" * 1000, b"new" * 2000


def fail_at(monkeypatch, name: str, nth: int) -> None:
    real, calls = getattr(os, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, f"{name} number {nth} fails")
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, failing)


def test_writes_makes_folders_and_replaces(tmp_path):
    target = tmp_path / "a" / "b" / "file"
    write_atomically(target, OLD)
    write_atomically(str(target), NEW)
    assert target.read_bytes() == NEW
    assert os.listdir(target.parent) == ["file"]


@pytest.mark.parametrize(("call", "nth"), [("fsync", 1), ("fsync", 2), ("replace", 1)])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failing_system_call_leaves_the_old_file_or_the_new(
    tmp_path, monkeypatch, call, nth, exists
):
    target = tmp_path / "file"
    if exists:
        target.write_bytes(OLD)
    fail_at(monkeypatch, call, nth)
    with pytest.raises(OSError, match=f"{call} number {nth} fails"):
        write_atomically(target, NEW)
    renamed = (call, nth) == ("fsync", 2)  # of the folder, after the rename
    expected = NEW if renamed else OLD if exists else None
    assert (target.read_bytes() if target.exists() else None) == expected
    assert os.listdir(tmp_path) == (["file"] if expected else [])


def test_a_temporary_file_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    fail_at(monkeypatch, "fsync", 1)
    write_atomically(tmp_path / "file", NEW, lasting=False)
    assert (tmp_path / "file").read_bytes() == NEW
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, error):
    import builtins

    target = tmp_path / "file"
    target.write_bytes(OLD)
    real = builtins.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            raise error

    monkeypatch.setattr(builtins, "open", lambda path, mode: Full(real(path, mode)))
    with pytest.raises(type(error)):
        write_atomically(target, NEW)
    monkeypatch.undo()
    assert target.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_enospc_from_the_system_itself(tmp_path):
    """The write to the temporary file goes to a full device: the error arrives, the old file stays."""
    import builtins
    from unittest import mock

    target, real = tmp_path / "file", builtins.open
    target.write_bytes(OLD)
    with (
        mock.patch.object(builtins, "open", return_value=real("/dev/full", "wb")),
        pytest.raises(OSError, match="No space left"),
    ):
        write_atomically(target, NEW)
    assert target.read_bytes() == OLD


def test_the_mode_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_a_folder_that_cannot_be_made_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(OSError, match="file"):
        write_atomically(tmp_path / "file" / "under", NEW)
    assert (tmp_path / "file").read_bytes() == OLD


def test_a_long_name_leaves_room_for_the_temporary_one(tmp_path):
    target = tmp_path / ("n" * 250)
    write_atomically(target, NEW)
    assert target.read_bytes() == NEW


SAVER = """
import sys, numpy as np
from collapsemeter import ClassMoments
a, b = (ClassMoments.from_batch(np.full((k, 64), 1.0 * k), np.zeros(k, int), 40) for k in (2, 3))
a.save(sys.argv[1])
print("ready", flush=True)
while True:
    b.save(sys.argv[1])
    a.save(sys.argv[1])
"""


def test_sigkill_in_the_middle_of_saving_leaves_a_whole_state(tmp_path):
    path = tmp_path / "state.npz"
    seen = set()
    for attempt in range(12):
        process = subprocess.Popen([sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.003 + 0.0037 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        seen.add(ClassMoments.load(path).rows)
    assert seen <= {2, 3}
