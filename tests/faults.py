# SPDX-License-Identifier: Apache-2.0
"""Folders on bad disks: one that fails at the n-th step, and one whose power is cut after it."""

import errno
import os
import shutil

from helpers import names
from weft.lifecycle.storage import Directory


class Disk:
    """Counts the steps of every folder that shares it, and ends at the n-th."""

    def __init__(self, n=None, number=errno.ENOSPC):
        self.n = n
        self.number = number
        self.steps = []

    @property
    def failed(self):
        return self.n is not None and len(self.steps) >= self.n


class FaultyDirectory(Directory):
    """Every step is counted; the n-th fails once, with ENOSPC or another error."""

    def __init__(self, path, disk):
        super().__init__(path)
        self.disk = disk

    def before(self, operation, name):
        self.disk.steps.append((operation, name))
        if len(self.disk.steps) == self.disk.n:
            raise OSError(self.disk.number, os.strerror(self.disk.number))


class PowerCutDirectory(Directory):
    """The power goes after the n-th step: nothing works any more, what was not synced is gone.

    A file's contents survive once it was synced, a name once the folder was. `lose` brings the
    folder to the state that the disk would have.
    """

    def __init__(self, path, disk):
        super().__init__(path)
        self.disk = disk
        self.synced = {}  # name -> contents at its last sync
        self.durable = set(names(path)) if path.is_dir() else set()
        for name in self.durable:
            if (path / name).is_file():
                self.synced[name] = (path / name).read_bytes()

    def before(self, operation, name):
        if self.disk.failed:
            raise OSError(errno.EIO, "the power is off")

    def after(self, operation, name):
        self.disk.steps.append((operation, name))
        path = self.path / name
        if operation == "sync":
            self.synced[name] = path.read_bytes()
        elif operation == "publish":
            # a second name of a file that was synced under its first
            contents = path.read_bytes()
            assert contents in self.synced.values(), f"{name} was published before it was synced"
            self.synced[name] = contents
        elif operation == "sync folder":
            self.durable = set(names(self.path))

    def lose(self):
        """Leave what would still be there when the power is back."""
        for name in set(names(self.path)) - {"LOCK"}:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)  # a build folder: never synced, of no use
            elif name not in self.durable:
                path.unlink()
            else:
                path.write_bytes(self.synced.get(name, b""))
        for name in self.durable - set(names(self.path)):
            if name in self.synced:
                (self.path / name).write_bytes(self.synced[name])
