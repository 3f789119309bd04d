# SPDX-License-Identifier: Apache-2.0
"""Whatever fails, whenever the power goes: the index is at the old generation or at the new one."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import weft
from faults import Disk, FaultyDirectory, PowerCutDirectory
from helpers import names, ragged_docs, unit_rows
from weft import errors
from weft.index import Index
from weft.manifest import load
from weft.storage import Directory
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


@pytest.fixture(params=["rows", "codec"])
def start(request, make_index, rng):
    """A small index, and what a commit adds: some rows, or enough of them to train the codec."""
    docs = ragged_docs(rng, 5, 8)
    index = make_index(docs, texts=[f"text of d{i}" for i in range(5)])
    if request.param == "codec":
        request.getfixturevalue("small_codec")
    n_docs = 4 if request.param == "rows" else 90
    ids = [f"n{i}" for i in range(n_docs)]
    return index, ids, ragged_docs(rng, n_docs, 8)


def commit_on(directory, ids, docs):
    """One writer's life on a folder: add twice, commit, close."""
    writer = Writer(directory, load(directory))
    try:
        half = len(ids) // 2
        for part in (slice(0, half), slice(half, None)):
            writer.add(ids[part], docs[part], texts=[f"text of {i}" for i in ids[part]])
        return writer.commit()
    finally:
        writer.close()


def failure_of(work):
    """Give the StorageError that some work ends with, or None."""
    try:
        work()
    except errors.StorageError as error:
        return error
    return None


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_the_disk_fails_at_every_step(start, tmp_path, number):
    index, ids, docs = start
    n = 0
    while True:
        n += 1
        path = tmp_path / f"copy{n}"
        shutil.copytree(index.path, path)
        disk = Disk(n, number)
        before = {file.name: file.read_bytes() for file in path.iterdir() if file.name != "LOCK"}
        error = failure_of(lambda: commit_on(FaultyDirectory(path, disk), ids, docs))  # noqa: B023
        if error is not None:
            assert error.errno == number
            assert os.strerror(number) in str(error)
        generation, found = contents(path)
        assert (generation, found) in [(2, OLD), (3, OLD | set(ids))]
        if generation == 2:
            after = {file.name: file for file in path.iterdir()}
            assert {name: after[name].read_bytes() for name in before} == before
        # the next writer cleans up, and goes on
        Index.open(path).add(["last"], docs[:1], texts=["text of last"])
        assert contents(path) == (generation + 1, found | {"last"})
        assert names(path, "build-") == names(path, "tmp-") == []
        shutil.rmtree(path)
        if not disk.failed:
            break
    assert n > 15


def test_a_failed_commit_can_be_tried_again(start, tmp_path):
    index, ids, docs = start
    disk = Disk()
    commit_on(FaultyDirectory(shutil.copytree(index.path, tmp_path / "dry"), disk), ids, docs)
    first = next(
        i for i, step in enumerate(disk.steps) if step[0] == "create" and "seg-" in step[1]
    )
    last = next(i for i, step in enumerate(disk.steps) if step[0] == "publish")
    for n in range(first + 1, last + 2):
        path = shutil.copytree(index.path, tmp_path / f"copy{n}")
        directory = FaultyDirectory(path, Disk(n))
        writer = Writer(directory, load(directory))
        half = len(ids) // 2
        for part in (slice(0, half), slice(half, None)):
            writer.add(ids[part], docs[part], texts=[f"text of {i}" for i in ids[part]])
        with pytest.raises(errors.StorageError):
            writer.commit()
        assert contents(path) == (2, OLD)
        assert writer.commit() == 3
        writer.close()
        assert contents(path) == (3, OLD | set(ids))
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


def test_the_power_goes_after_every_step(start, tmp_path):
    index, ids, docs = start
    seen = set()
    n = 0
    while True:
        n += 1
        path = tmp_path / f"copy{n}"
        shutil.copytree(index.path, path)
        disk = Disk(n)
        directory = PowerCutDirectory(path, disk)
        try:
            commit_on(directory, ids, docs)
        except errors.StorageError:
            assert disk.failed
        finished = not disk.failed
        directory.lose()
        generation, found = contents(path)
        assert (generation, found) in [(2, OLD), (3, OLD | set(ids))]
        seen.add(generation)
        Index.open(path).add(["last"], docs[:1], texts=["text of last"])
        assert contents(path) == (generation + 1, found | {"last"})
        shutil.rmtree(path)
        if finished:
            assert generation == 3
            break
    assert seen == {2, 3}


def test_a_full_disk_under_the_engine(make_index, small_codec, rng):
    """The engine's own writes meet the limit, wherever in its files that is."""
    docs = ragged_docs(rng, 120, 8)
    index = make_index(docs[:5], texts=[f"text of d{i}" for i in range(5)])
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = index.writer()
    ids = [f"n{i}" for i in range(5, 120)]
    writer.add(ids, docs[5:], texts=[f"text of {i}" for i in ids])
    try:
        for limit in (0, 100, 1_000, 5_000, 10_000, 15_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            error = failure_of(writer.commit)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert error.path is not None
            assert contents(index.path) == (2, OLD)
    finally:
        signal.signal(signal.SIGXFSZ, old)
    assert writer.commit() == 3
    writer.close()
    assert contents(index.path) == (3, OLD | set(ids))


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
    import weft.builder
    weft.builder.checksum_of = die
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
