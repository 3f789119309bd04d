# SPDX-License-Identifier: Apache-2.0
"""Files are made once, published once, locked by one."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from weft.errors import IndexLockedError, StorageError
from weft.lifecycle.storage import LOCK, Directory


@pytest.fixture
def directory(tmp_path):
    return Directory(tmp_path)


def write(directory, name, data):
    fd = directory.create(name)
    directory.write(fd, data, name)
    directory.sync(fd, name)
    os.close(fd)


def test_a_file_is_made_once(directory):
    write(directory, "a", b"one")
    with pytest.raises(StorageError, match="a: cannot create: File exists") as caught:
        directory.create("a")
    assert caught.value.errno == errno.EEXIST
    assert caught.value.path == str(directory.path / "a")
    assert directory.read("a") == b"one"


def test_publish_never_replaces(directory):
    write(directory, "tmp-1", b"one")
    directory.publish("tmp-1", "final")
    assert directory.list() == ["final"]
    write(directory, "tmp-2", b"two")
    with pytest.raises(StorageError, match="final: cannot publish: File exists"):
        directory.publish("tmp-2", "final")
    assert directory.read("final") == b"one"


def test_truncate_goes_on_where_it_cut(directory):
    fd = directory.create("a")
    directory.write(fd, b"0123456789", "a")
    directory.truncate(fd, 4, "a")
    directory.write(fd, b"x", "a")
    os.close(fd)
    assert directory.read("a") == b"0123x"


def test_remove(directory):
    write(directory, "a", b"")
    directory.make_folder("b")
    write(directory, "b/c", b"")
    for name in ("a", "b", "not there"):
        directory.remove(name)
    assert directory.list() == []


def test_sizes(directory):
    write(directory, "a", b"123")
    assert directory.size("a") == 3
    assert directory.size("b") is None


def test_the_operating_system_says_why(directory):
    with pytest.raises(StorageError, match="absent: cannot read: No such file") as caught:
        directory.read("absent")
    assert caught.value.errno == errno.ENOENT
    fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(StorageError, match="cannot write: No space left") as caught:
        directory.write(fd, b"x", "a")
    os.close(fd)
    assert caught.value.errno == errno.ENOSPC


def test_the_lock_names_its_holder(directory):
    lock = directory.lock()
    with pytest.raises(IndexLockedError) as caught:
        directory.lock()
    assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
    lock.release()
    lock.release()
    directory.lock().release()
    assert directory.list() == [LOCK]


def test_the_lock_of_a_dead_process_is_free(directory):
    code = (
        "import os, sys, pathlib; from weft.lifecycle.storage import Directory;"
        "lock = Directory(pathlib.Path(sys.argv[1])).lock(); print('held', flush=True);"
        "sys.stdin.readline(); os.kill(os.getpid(), 9)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, directory.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(IndexLockedError, match=f"process {holder.pid} on"):
            directory.lock()
        holder.communicate("die\n")
    directory.lock().release()


def test_a_lock_that_nobody_signed(directory):
    (directory.path / LOCK).write_bytes(b"\xff not json")
    directory.lock().release()
    lock = directory.lock()
    (directory.path / LOCK).write_bytes(b"\xff not json")
    with pytest.raises(IndexLockedError, match="not said its name"):
        directory.lock()
    lock.release()
