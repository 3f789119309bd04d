# SPDX-License-Identifier: Apache-2.0
"""The folder of an index: the only place where files are made, synced, published and removed.

Every step that the operating system can refuse goes through a method of `Directory`, after
`before(operation, name)`; tests override that to fail at the n-th step or to cut the power.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weft.errors import IndexLockedError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = "LOCK"


@contextlib.contextmanager
def os_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` that says what was tried on which file."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"{path}: cannot {action}: {reason}", str(path), error.errno) from error


class Directory:
    """A folder and the durable operations on it; names may have one folder before them.

    Raises
    ------
    StorageError
        From every method, where the operating system says no.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def before(self, operation: str, name: str) -> None:
        """Do nothing; called before each step, for tests to override."""

    def after(self, operation: str, name: str) -> None:
        """Do nothing; called after each step that succeeded, for tests to override."""

    @contextlib.contextmanager
    def _step(self, operation: str, name: str) -> Iterator[Path]:
        path = self.path / name
        with os_errors(operation, path):
            self.before(operation, name)
            yield path
        self.after(operation, name)

    def create(self, name: str) -> int:
        """Make a new file and give its descriptor, open for reading and writing."""
        with self._step("create", name) as path:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    def open(self, name: str) -> int:
        """Open a file that is there, for reading and writing at its beginning."""
        with self._step("open", name) as path:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, data: bytes | memoryview, name: str) -> None:
        """Write all of `data` at the end of what was written so far."""
        with self._step("write", name):
            view = memoryview(data)
            while len(view):
                view = view[os.write(fd, view) :]

    def truncate(self, fd: int, size: int, name: str) -> None:
        """Cut a file back to `size` bytes and go on writing there."""
        with self._step("truncate", name):
            os.ftruncate(fd, size)
            os.lseek(fd, size, os.SEEK_SET)

    def sync(self, fd: int, name: str) -> None:
        """Wait until the contents of a file are on disk."""
        with self._step("sync", name):
            os.fsync(fd)

    def sync_directory(self, name: str = ".") -> None:
        """Wait until the names in the folder, or in one inside it, are on disk."""
        with self._step("sync folder", name) as path:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def publish(self, temporary: str, final: str) -> None:
        """Give a file its final name, which must not exist, and take the temporary one away.

        Once the final name exists the file is published, so the second half may fail unheard.
        """
        with self._step("publish", final) as path:
            os.link(self.path / temporary, path)
        with contextlib.suppress(StorageError):
            self.remove(temporary)

    def link(self, name: str, second: str) -> None:
        """Give a file a second name, which must not exist."""
        with self._step("link", second) as path:
            os.link(self.path / name, path)

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with everything in it; what is not there is no error."""
        with self._step("remove", name) as path, contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()

    def make_folder(self, name: str) -> None:
        """Make a folder."""
        with self._step("create folder", name) as path:
            path.mkdir()

    def list(self) -> list[str]:
        """Give the names in the folder, sorted."""
        with os_errors("list", self.path):
            return sorted(entry.name for entry in self.path.iterdir())

    def read(self, name: str) -> bytes:
        """Give the contents of a small file."""
        path = self.path / name
        with os_errors("read", path):
            return path.read_bytes()

    def size(self, name: str) -> int | None:
        """Give the size of a file in bytes; None where it does not exist."""
        path = self.path / name
        with os_errors("look at", path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return None

    def lock(self, folder: str = ".") -> Lock:
        """Take the lock of the folder for this process, without waiting.

        Raises
        ------
        IndexLockedError
            Another holds it; names the host and process.
        """
        return Lock(self.path / folder / LOCK)


class Lock:
    """The lock file of a folder, held until `release` or the end of the process.

    The file stays; only its `flock` counts. What it contains is for the message.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        with os_errors("open", path):
            self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with os_errors("lock", path):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, holder.encode(), 0)
        except StorageError as error:
            holder = _holder(self._fd)
            self.release()
            if isinstance(error.__cause__, BlockingIOError):
                raise IndexLockedError(
                    f"{path.parent}: locked by another writer, {holder}; wait until it has closed"
                ) from None
            raise

    def release(self) -> None:
        """Let others have the lock."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __del__(self) -> None:
        """Free the lock of a writer that nobody closed."""
        if getattr(self, "_fd", None) is not None:
            self.release()


def _holder(fd: int) -> str:
    try:
        found: Any = json.loads(os.pread(fd, 4_096, 0))
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, TypeError, KeyError):
        return "which has not said its name yet"
