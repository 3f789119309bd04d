# SPDX-License-Identifier: Apache-2.0
"""Whatever fails, whenever the power goes: the index is at the old generation or at the new one."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import weft
from faults import Disk, FaultyDirectory, PowerCutDirectory
from helpers import names, ragged_docs, unit_rows
from weft import errors
from weft.index import Index
from weft.lifecycle.manifest import load
from weft.lifecycle.storage import Directory
from weft.writer import Writer

OLD = {f"d{i}" for i in range(5)}


def contents(path):
    """Ids of everything that an index holds, found by searching; the index is whole."""
    index = weft.Index.open(path)
    assert index.verify(deep=True) == ()
    query = unit_rows(np.random.default_rng(1), 2, 8)
    ids = set(index.exact_search(query, k=10_000).ids)
    documents = index.documents(sorted(ids))
    assert all(document.text == f"text of {document.id}" for document in documents)
    return index.generation, ids


@dataclass(frozen=True)
class Change:
    """What a writer does to an index, to be tried on copies of it; and ids before and after."""

    index: Index
    work: Callable[[Writer], None]
    old: set[str]
    new: set[str]

    def run(self, directory):
        """One writer's life on a folder: work, commit, close."""
        writer = Writer(directory, load(directory))
        try:
            self.work(writer)
            return writer.commit()
        finally:
            writer.close()

    def outcomes(self):
        """What an index may be after it: the old generation or the next, whole."""
        generation = self.index.generation
        return [(generation, self.old), (generation + 1, self.new)]


@pytest.fixture(
    params=[
        *("rows", "codec", "grow", "retrain", "delete", "upsert", "compact", "everything"),
        "unasked",
    ]
)
def change(request, make_index, rng):
    """Additions to a small index, few or enough to train the codec; changes of a larger one."""
    kind = request.param
    if kind != "unasked":
        request.getfixturevalue("unmerged")
    if kind != "rows":
        request.getfixturevalue("small_codec")
    docs = ragged_docs(rng, 300, 8)

    def texts(ids):
        return [f"text of {i}" for i in ids]

    def given(ids, first):
        return ids, docs[first : first + len(ids)]

    index = make_index(docs[:5], texts=texts(sorted(OLD)))
    if kind in ("rows", "codec"):
        ids = [f"n{i}" for i in range(4 if kind == "rows" else 90)]
        half = len(ids) // 2

        def add(writer):
            for first, part in ((5, ids[:half]), (5 + half, ids[half:])):
                writer.add(*given(part, first), texts=texts(part))

        return Change(index, add, OLD, OLD | set(ids))

    ids = [f"m{i}" for i in range(90)]
    index.add(*given(ids, 5), texts=texts(ids))
    index.add(*given(["last", "least"], 95), texts=texts(["last", "least"]))
    index.delete(["d1", "m0"])
    old = (OLD | {*ids, "last", "least"}) - {"d1", "m0"}
    gone, replaced = {"d2", "m1", "m2", "last", "least"}, ["m3", "m4", "d1", "fresh"]
    many = [f"m{i}" for i in range(10, 60)]
    strange = [f"x{i}" for i in range(20)]
    scattered = [unit_rows(rng, 6, 8) for _ in strange]  # the codec gets more centroids for these
    twice = [f"t{i}" for i in range(120)]  # another codec is trained for these and all others

    def work(writer):
        if kind in ("delete", "everything"):
            assert writer.delete(sorted(gone)) == len(gone)
        if kind in ("upsert", "everything"):
            writer.add(*given(["fresh"], 100), texts=["of no use"])
            writer.upsert(*given(replaced, 101), texts=texts(replaced))
        if kind in ("compact", "everything"):
            writer.compact()
        if kind == "grow":
            assert writer.delete(["d2"]) == 1
            writer.add(strange, scattered, texts=texts(strange))
        if kind == "retrain":
            assert writer.delete(["d2", "m1"]) == 2
            writer.add(*given(twice, 105), texts=texts(twice))
        if kind == "unasked":  # a segment of which more than a fifth is then deleted
            assert writer.delete(many) == len(many)

    new = {
        "delete": old - gone,
        "grow": old - {"d2"} | set(strange),
        "retrain": old - {"d2", "m1"} | set(twice),
        "upsert": old | set(replaced),
        "compact": old,
        "everything": old - gone | set(replaced),
        "unasked": old - set(many),
    }
    return Change(index, work, old, new[kind])


def failure_of(work):
    """Give the StorageError that some work ends with, or None."""
    try:
        work()
    except errors.StorageError as error:
        return error
    return None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_the_disk_fails_at_every_step(change, tmp_path, number):
    old, new = change.outcomes()
    n = 0
    while True:
        n += 1
        path = tmp_path / f"copy{n}"
        shutil.copytree(change.index.path, path)
        disk = Disk(n, number)
        before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "LOCK"}
        error = failure_of(lambda: change.run(FaultyDirectory(path, disk)))  # noqa: B023
        if error is not None:
            assert error.errno == number
            assert os.strerror(number) in str(error)
        generation, found = contents(path)
        assert (generation, found) in [old, new]
        if generation == old[0]:
            after = {file.name: file for file in path.iterdir()}
            assert {name: after[name].read_bytes() for name in before} == before
        # the next writer cleans up, and goes on
        Index.open(path).add(["end"], [np.eye(8)], texts=["text of end"])
        assert contents(path) == (generation + 1, found | {"end"})
        assert names(path, "build-") == names(path, "tmp-") == []
        shutil.rmtree(path)
        if not disk.failed:
            break
    assert n > 15


def test_a_failed_commit_can_be_tried_again(change, tmp_path):
    old, new = change.outcomes()
    disk = Disk()
    dry = FaultyDirectory(shutil.copytree(change.index.path, tmp_path / "dry"), disk)
    writer = Writer(dry, load(dry))
    change.work(writer)
    first = len(disk.steps) + 1
    writer.commit()
    last = next(i for i, step in enumerate(disk.steps, start=1) if step[0] == "publish")
    writer.close()
    for n in range(first, last + 1):
        if disk.steps[n - 1][0] == "remove":
            continue  # what cannot be removed, stays for later
        path = shutil.copytree(change.index.path, tmp_path / f"copy{n}")
        directory = FaultyDirectory(path, Disk(n))
        writer = Writer(directory, load(directory))
        change.work(writer)
        with pytest.raises(errors.StorageError):
            writer.commit()
        assert contents(path) == old
        assert writer.commit() == new[0]
        writer.close()
        assert contents(path) == new
        assert len(names(path, "build-")) == 0


def test_a_failed_add_adds_nothing(make_index, rng, tmp_path):
    index = make_index(ragged_docs(rng, 5, 8), texts=[f"text of d{i}" for i in range(5)])
    docs = ragged_docs(rng, 3, 8)
    for n in range(1, 100):
        path = shutil.copytree(index.path, tmp_path / f"copy{n}")
        disk = Disk()
        directory = FaultyDirectory(path, disk)
        with Writer(directory, load(directory)) as writer:
            writer.add(["first"], docs[:1], texts=["text of first"])
            disk.n = len(disk.steps) + n
            try:
                writer.add(["a", "b"], docs[1:], texts=["text of a", "text of b"])
            except errors.StorageError:
                writer.add(["b"], docs[1:2], texts=["text of b"])
                expected = {"first", "b"}
            else:
                expected = {"first", "a", "b"}
                disk.n = None
        assert contents(path) == (3, OLD | expected)
        if expected == {"first", "a", "b"}:
            break
    assert n > 1


def test_the_power_goes_after_every_step(change, tmp_path):
    old, new = change.outcomes()
    seen = []
    n = 0
    while True:
        n += 1
        path = tmp_path / f"copy{n}"
        shutil.copytree(change.index.path, path)
        disk = Disk(n)
        directory = PowerCutDirectory(path, disk)
        try:
            change.run(directory)
        except errors.StorageError:
            assert disk.failed
        finished = not disk.failed
        directory.lose()
        generation, found = contents(path)
        assert (generation, found) in [old, new]
        seen.append((generation, found))
        Index.open(path).add(["end"], [np.eye(8)], texts=["text of end"])
        assert contents(path) == (generation + 1, found | {"end"})
        shutil.rmtree(path)
        if finished:
            break
    assert seen[0] == old
    assert seen[-1] == new


def test_a_full_disk_under_the_engine(change):
    """The engine's own writes, and SQLite's, meet the limit, wherever in their files that is."""
    old, new = change.outcomes()
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = change.index.writer()
    change.work(writer)
    n_failures = 0
    try:
        for limit in (0, 100, 1_000, 5_000, 10_000, 15_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            error = failure_of(writer.commit)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            if error is None:
                break
            n_failures += 1
            assert error.path is not None
            assert contents(change.index.path) == old
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert n_failures >= 2
    writer.commit()
    writer.close()
    assert contents(change.index.path) == new


@pytest.mark.parametrize("stage", ["add", "encode", "commit", "published"])
def test_killed(make_index, rng, stage):
    """A process that dies without a word: nothing to repair."""
    index = make_index(ragged_docs(rng, 5, 8), texts=[f"text of d{i}" for i in range(5)])
    code = """
import os, sys
import numpy as np
import weft
path, stage = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), 9)

writer = weft.Index.open(path).writer(
    progress=lambda name, done, total: die() if name == stage and done == 0 else None
)
if stage == "encode":
    import weft.lifecycle.new_files
    weft.lifecycle.new_files.checksum_of = die
if stage == "published":
    import weft.writer
    real = weft.writer.publish
    weft.writer.publish = lambda *given: (real(*given), die())
writer.add(["n0"], [np.eye(8)], texts=["text of n0"])
if stage == "add":
    die()
writer.commit()
"""
    done = subprocess.run([sys.executable, "-c", code, index.path, stage], check=False)
    assert done.returncode == -signal.SIGKILL
    expected = (3, OLD | {"n0"}) if stage == "published" else (2, OLD)
    assert contents(index.path) == expected
    index = weft.Index.open(index.path)
    index.add(["last"], [np.eye(8)], texts=["text of last"])
    assert contents(index.path) == (expected[0] + 1, expected[1] | {"last"})
    assert names(index.path, "build-") == []


@pytest.mark.parametrize("stage", ["verify", "merge", "commit", "published"])
def test_killed_in_a_change(make_index, rng, stage):
    index = make_index(ragged_docs(rng, 5, 8), texts=[f"text of d{i}" for i in range(5)])
    index.add(["x", "y"], ragged_docs(rng, 2, 8), texts=["text of x", "text of y"])
    code = """
import os, sys
import numpy as np
import weft
import weft.writer
path, stage = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), 9)

if stage == "published":
    real = weft.writer.publish
    weft.writer.publish = lambda *given: (real(*given), die())
with weft.Index.open(path).writer(
    progress=lambda name, done, total: die() if name == stage else None
) as writer:
    writer.delete(["d1", "x"])
    writer.upsert(["d2", "z"], [np.eye(8)] * 2, texts=["text of d2", "text of z"])
    writer.compact()
"""
    done = subprocess.run([sys.executable, "-c", code, index.path, stage], check=False)
    assert done.returncode == -signal.SIGKILL
    old, new = OLD | {"x", "y"}, OLD - {"d1"} | {"y", "z"}
    expected = (4, new) if stage == "published" else (3, old)
    assert contents(index.path) == expected
    index = weft.Index.open(index.path)
    index.delete(["y"])
    index.compact()
    assert contents(index.path) == (index.generation, expected[1] - {"y"})
    assert names(index.path, "build-") == []


def test_a_lost_file_is_named(make_index, rng):
    index = make_index(ragged_docs(rng, 5, 8), texts=["t"] * 5)
    for pattern in ("seg-*.multi.weft", "seg-*.docs.sqlite"):
        (path,) = index.path.glob(pattern)
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(errors.CorruptIndexError, match=rf"{path.name}: is missing, expected"):
            weft.Index.open(index.path).search(np.eye(8))
        assert [problem.file for problem in index.verify()] == [path.name]
        path.write_bytes(data[:-1])
        with pytest.raises(errors.CorruptIndexError, match=f"has {len(data) - 1} bytes"):
            weft.Index.open(index.path).search(np.eye(8))
        path.write_bytes(data)
    assert index.verify(deep=True) == ()


def test_a_segment_of_another_index(make_index, rng):
    docs = ragged_docs(rng, 5, 8)
    index, other = make_index(docs), make_index([*docs[1:], docs[0]])
    (path,) = index.path.glob("seg-*.multi.weft")
    (foreign,) = other.path.glob("seg-*.multi.weft")
    path.write_bytes(foreign.read_bytes())
    with pytest.raises(errors.CorruptIndexError, match=r"checksum .*, expected"):
        weft.Index.open(index.path).search(np.eye(8))
    assert len(index.verify()) == 1


def test_every_flipped_byte_is_found(make_index, small_codec, rng):
    """`verify(deep=True)` tells any edit of any file; searching it answers or says what is bad."""
    docs = ragged_docs(rng, 100, 8)
    index = make_index(docs, texts=[f"text {i}" for i in range(100)])
    path = index.path
    files = names(path, "seg-") + names(path, "codec-")
    assert len(files) == 3
    for name in files:
        good = (path / name).read_bytes()
        for at in rng.choice(len(good), 60, replace=False):
            damaged = bytearray(good)
            damaged[at] ^= 1 << int(rng.integers(8))
            (path / name).write_bytes(damaged)
            fresh = weft.Index.open(path)
            found = {problem.file for problem in fresh.verify(deep=True)}
            if name.startswith("codec-"):
                assert found, f"{name}, byte {at}"
            else:
                assert found == {name}, f"byte {at}"
            try:
                hits = fresh.search(docs[0], k=3)
                fresh.documents(hits.ids)
                fresh.explain(docs[0], "d1")
            except errors.WeftError:
                continue
        (path / name).write_bytes(good)
    assert weft.Index.open(path).verify(deep=True) == ()


def test_a_folder_that_cannot_be_written(make_index, rng):
    """Not by mode bits, which do not bind every user: the folder refuses."""

    class ReadOnly(Directory):
        def before(self, operation, name):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    index = make_index(ragged_docs(rng, 5, 8), texts=[f"text of d{i}" for i in range(5)])
    with pytest.raises(errors.StorageError, match="Read-only file system"):
        Writer(ReadOnly(index.path), load(Directory(index.path)))
    assert contents(index.path) == (2, OLD)
    index.writer().close()
