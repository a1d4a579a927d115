"""A save that is stopped, at any moment and in any way, leaves the old file or the new one."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import killed_writer
import pytest

from padst_fx.atomic_file import write_whole


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What killed children left."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, str(Path(killed_writer.__file__)), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(output.stdout)


@pytest.mark.parametrize("stage", killed_writer.STAGES)
def test_a_kill_at_each_stage_leaves_the_old_file_or_the_new_one(seen, stage):
    wanted = 2.0 if stage == "after the move" else 1.0
    killed, asked = seen["killed"][stage], seen["asked"][stage]
    assert killed["status"] == -signal.SIGTERM and asked["status"] == 3
    assert killed["value"] == asked["value"] == wanted
    assert killed["left"] <= 1 and asked["left"] == 0


def test_kills_at_any_moment_leave_a_whole_file(seen):
    assert len(seen["random"]) == killed_writer.KILLS
    assert len(set(seen["random"])) > 1, "no save was ever finished"


def test_a_full_disk_leaves_the_old_file_alone(seen):
    assert seen["full"] == {"status": 1, "value": 1.0, "left": 0}


def test_file_and_folder_are_flushed_in_order(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", flush)
    monkeypatch.setattr("os.replace", lambda a, b: (events.append("move"), replace(a, b)))
    write_whole(tmp_path / "file", b"content")
    written, moved, folder = events
    assert Path(written).parent == tmp_path and Path(written).name.startswith(".file.")
    assert (moved, folder) == ("move", str(tmp_path))
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize(("code", "fatal"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, code, fatal):
    fsync, calls = os.fsync, []

    def flush(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", flush)
    if fatal:
        with pytest.raises(OSError, match=os.strerror(code)):
            write_whole(tmp_path / "file", b"content")
    else:
        write_whole(tmp_path / "file", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
