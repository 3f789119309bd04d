# SPDX-License-Identifier: Apache-2.0
"""A build that was interrupted goes on where it stopped, and makes the same bytes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

import weft
from helpers import FakeEncoder, heed_interrupts, names, ragged_docs, unit_rows
from weft import errors
from weft.cli import build as cli_build
from weft.cli.options import Resources
from weft.lifecycle.spool import Spool
from weft.lifecycle.storage import Directory
from weft.retriever import Retriever
from weft.types import defaults

DOCUMENTS = [
    weft.Document(f"d{i}", " ".join(f"w{(i * j) % 97}" for j in range(1 + i % 17)), {"n": i})
    for i in range(300)
]


class Interrupted(Exception):  # noqa: N818
    pass


class Counting(FakeEncoder):
    """Counts what it encodes, and is interrupted after so many texts."""

    def __init__(self, stop_after=10**9):
        super().__init__(window=6)
        self.n_texts, self.stop_after = 0, stop_after

    def encode_documents(self, texts):
        self.n_texts += len(texts)
        if self.n_texts > self.stop_after:
            raise Interrupted
        return super().encode_documents(texts)


def small_pieces(patch):
    """Batches of 16 documents, a codec from 400 tokens on, segments of at most 900."""
    small = replace(defaults, codec_tokens=400, tuning_queries=8)
    for module in ("lifecycle.builder", "tuner"):
        patch.setattr(f"weft.{module}.defaults", small)
    patch.setattr("weft.encoding.BATCH_DOCUMENTS", 16)
    patch.setattr("weft.lifecycle.planning.segment_limits", lambda _: (900, 1 << 30))


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    small_pieces(monkeypatch)


def build(path, encoder, documents=DOCUMENTS, progress=None):
    """Build texts as `weft build` does."""
    cli_build.build_texts(
        path, documents, encoder, weft.IndexConfig(dim=16),
        use=Resources(), max_ram="1GiB", progress=progress,
    )  # fmt: skip


def contents(path):
    """Every segment and file of documents, and the codec, by what they hold; names are random."""
    manifest = weft.Index.open(path)._manifest
    files = [manifest.codec.file] + [file for s in manifest.segments for file in s.files]
    return [(path / file).read_bytes() for file in files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a build that nothing interrupts."""
    path = tmp_path_factory.mktemp("whole") / "a.index"
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        build(path, Counting())
        assert weft.Index.open(path).info.n_segments >= 3
        return contents(path)


@pytest.mark.parametrize("stop_after", [16, 40, 160, 299])
def test_encoded_documents_are_not_encoded_again(tmp_path, whole, stop_after, caplog):
    path = tmp_path / "a.index"
    first = Counting(stop_after)
    with pytest.raises(Interrupted):
        build(path, first)
    kept = stop_after // 16 * 16
    second = Counting()
    caplog.set_level("INFO", "weft")
    build(path, second)
    assert second.n_texts == len(DOCUMENTS) - kept
    assert f"going on from {kept} documents" in caplog.text
    assert contents(path) == whole
    assert weft.Index.open(path).verify(deep=True) == ()
    assert names(path, "build-") == []


@pytest.mark.parametrize(
    ("stage", "number", "again"),
    [("coarse", 3, 0), ("write", 1, 1), ("write", 3, 3), ("truth", 1, 4), ("commit", 1, 4)],
)
def test_finished_stages_are_not_done_again(tmp_path, whole, stage, number, again, caplog):
    """The codec and three segments; the last one begun is made anew."""
    path = tmp_path / "a.index"
    stages = []

    def stop(found, _done, _total):
        stages.append(found)
        if stages.count(stage) == number:
            raise Interrupted

    with pytest.raises(Interrupted):
        build(path, Counting(), progress=stop)
    caplog.set_level("INFO", "weft")
    second = Counting()
    build(path, second)
    assert second.n_texts == 0
    assert caplog.text.count("was made before the interruption") == again
    assert contents(path) == whole


@pytest.fixture(params=["grown", "trained anew"])
def growing(request, make_index, unmerged):
    """An index, and how to add what its codec does not fit, or has not been trained for."""
    rng = np.random.default_rng(3)
    docs = ragged_docs(rng, 400, 16, shortest=6)
    index = make_index(docs[:150], dim=16, texts=[f"text {i}" for i in range(150)])
    if request.param == "grown":
        docs[150:] = [unit_rows(rng, 8, 16) for _ in range(40)]

    def add(writer):
        writer.delete(["d7"])
        for first in range(150, len(docs), 45):
            part = range(first, min(first + 45, len(docs)))
            writer.add([f"e{i}" for i in part], [docs[i] for i in part])

    return request.param, index, add


@pytest.mark.parametrize("again", ["the same writer", "another"])
@pytest.mark.parametrize("stage", ["sample", "write", "truth", "commit"])
def test_a_commit_that_changes_the_codec_goes_on(growing, tmp_path, stage, again, caplog):
    how, index, add = growing
    whole = shutil.copytree(index.path, tmp_path / "whole.index")
    with weft.Index.open(whole).writer() as writer:
        add(writer)
    before, after = (weft.Index.open(path)._manifest for path in (index.path, whole))
    assert after.codec.n_fine > before.codec.n_fine
    segments = [{segment.name for segment in manifest.segments} for manifest in (before, after)]
    assert segments[0] & segments[1] == (segments[0] if how == "grown" else set())
    old = contents(index.path)

    def stop(found, _done, _total):
        if found == stage:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weft.lifecycle.stored.BLOCK_WINDOWS", 40)
        caplog.set_level("INFO", "weft")
        writer = index.writer(resume=True)
        writer._progress = stop
        if stage == "truth" and how == "grown":  # it is not tuned
            writer._progress = lambda found, *_: stop("truth" if found == "commit" else found, 0, 0)
        add(writer)
        with pytest.raises(Interrupted):
            writer.commit()
        assert contents(index.path) == old
        writer._progress = lambda *_: None
        if again == "another":
            writer.close()
            writer = index.writer(resume=True)
            add(writer)
        writer.commit()
        writer.close()
    n_made = caplog.text.count("was made before the interruption")
    assert (n_made >= 1) == (stage != "sample")
    assert contents(index.path) == contents(whole)
    assert weft.Index.open(index.path).verify(deep=True) == ()
    assert names(index.path, "build-") == []


def test_changed_documents_are_encoded_again(tmp_path):
    path, changed = tmp_path / "a.index", list(DOCUMENTS)
    with pytest.raises(Interrupted):
        build(path, Counting(200))
    changed[100] = weft.Document("d100", "another text", {"n": 100})
    second = Counting()
    build(path, second, changed)
    assert second.n_texts == 300 - 96
    build(tmp_path / "b.index", Counting(), changed)
    assert contents(path) == contents(tmp_path / "b.index")


def test_fewer_documents_than_before(tmp_path):
    path = tmp_path / "a.index"
    with pytest.raises(Interrupted):
        build(path, Counting(200))
    second = Counting()
    build(path, second, DOCUMENTS[:90])
    assert second.n_texts == 10
    assert len(weft.Index.open(path)) == 90


@pytest.mark.parametrize("what", ["config", "encoder", "finished"])
def test_what_does_not_fit_is_made_anew(tmp_path, what):
    path = tmp_path / "a.index"
    stopped = Counting(200)
    if what == "encoder":
        stopped.info = weft.EncoderInfo("other", "hash", 16, "other")
    config = weft.IndexConfig(dim=16, nbits=8 if what == "config" else 4)
    retriever = Retriever.create(path, stopped, config=config)
    with pytest.raises(Interrupted):
        retriever.add(DOCUMENTS, resume=True)
    if what == "finished":
        weft.Index.open(path).add(["x"], [np.eye(16)])
    second = Counting()
    build(path, second)
    assert second.n_texts == 300
    assert len(weft.Index.open(path)) == 300


def test_a_writer_without_resume_forgets(make_index, rng):
    index = make_index()
    docs = ragged_docs(rng, 10, 8)
    writer = index.writer(resume=True)
    writer.add(["a", "b"], docs[:2])
    writer.close()
    assert len(names(index.path, "build-")) == 1
    with index.writer() as writer:
        writer.add(["a"], docs[:1])
    assert names(index.path, "build-") == []
    assert len(index) == 1
    # what was meant for an older generation is not gone on from
    writer = index.writer(resume=True)
    writer.add(["b"], docs[1:2])
    writer.close()
    (left,) = names(index.path, "build-")
    saved = index.path.parent / "saved"
    shutil.copytree(index.path / left, saved)
    index.add(["b"], docs[2:3])
    shutil.copytree(saved, index.path / left)
    with index.writer(resume=True) as writer:
        writer.add(["c"], docs[3:4])
    assert len(index) == 3
    assert names(index.path, "build-") == []


def test_rolled_back_is_not_kept(make_index, rng):
    index = make_index()
    with index.writer(resume=True) as writer:
        writer.add(["a"], ragged_docs(rng, 1, 8))
        writer.rollback()
    assert names(index.path, "build-") == []


@pytest.mark.parametrize("damage", ["rows", "torn rows", "last batch", "database"])
def test_what_the_power_cut_is_cut_off(make_index, rng, damage):
    """Rows of the last batches that never reached the disk; a database that did not."""
    docs = ragged_docs(rng, 60, 8, shortest=4)
    index = make_index()
    writer = index.writer(resume=True)
    for first in range(0, 60, 20):
        writer.add([f"d{i}" for i in range(first, first + 20)], docs[first : first + 20])
    writer.close()
    (folder,) = index.path.glob("build-*")
    rows, database = folder / "rows.f16", folder / "documents.sqlite"
    size = rows.stat().st_size
    if damage == "torn rows":
        os.truncate(rows, size - 5)
    elif damage == "last batch":
        os.truncate(rows, size + 1_000)
    else:
        file = rows if damage == "rows" else database
        data = bytearray(file.read_bytes())
        at = size // 2 if damage == "rows" else 40
        data[at : at + 200] = bytes(200)
        file.write_bytes(data)
    taken = Spool.left_behind(Directory(index.path), 8, 1)
    whole = {"rows": 20, "torn rows": 40, "last batch": 60}.get(damage)
    assert (None if taken is None else taken.n_docs) == whole
    if taken is not None:
        taken.close(keep=True)
    with index.writer(resume=True) as writer:
        for first in range(0, 60, 20):
            writer.add([f"d{i}" for i in range(first, first + 20)], docs[first : first + 20])
    assert len(index) == 60
    assert index.verify(deep=True) == ()


def test_documents_that_come_twice(make_index, rng):
    index = make_index()
    docs = ragged_docs(rng, 4, 8)
    writer = index.writer(resume=True)
    writer.add(["a", "b"], docs[:2])
    writer.close()
    with index.writer(resume=True) as writer:
        writer.add(["a", "b"], docs[:2])
        with pytest.raises(errors.InvalidArgumentError, match="'a': added before"):
            writer.add(["a"], docs[2:3])
    assert len(index) == 2


BUILD = """
import dataclasses
import weft.lifecycle.builder
import weft.lifecycle.planning
import weft.sources
import weft.tuner
from weft.cli import main
weft.sources._BLOCK_TOKENS = 1_000
weft.lifecycle.planning.segment_limits = lambda _: (3_000, 1 << 30)
builder, tuner = weft.lifecycle.builder, weft.tuner
small = dataclasses.replace(builder.defaults, codec_tokens=5_000, tuning_queries=8)
builder.defaults = tuner.defaults = small
main()
"""


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    rng = np.random.default_rng(0)
    n = 20_000
    centres = rng.normal(size=(300, 16))
    values = centres[rng.integers(0, 300, n)] + 0.3 * rng.normal(size=(n, 16))
    np.save(folder / "values.npy", values.astype(np.float32))
    np.save(folder / "offsets.npy", np.arange(0, n + 1, 50))
    return folder


@pytest.fixture(scope="module")
def uninterrupted(embeddings, tmp_path_factory):
    """The bytes of a build in a process of its own that nothing stops."""
    path = tmp_path_factory.mktemp("reference") / "a.index"
    assert start(embeddings, path).wait() == 0
    return contents(path)


def start(folder, name):
    words = [sys.executable, "-c", BUILD, "build", name, folder / "values.npy", "--max-ram", "1GiB"]
    return subprocess.Popen(
        [*words, "--threads", "1"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=heed_interrupts,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_at_random_places(embeddings, uninterrupted, tmp_path, number):
    """Again and again after half of the rows are there, with more patience, until it is through."""
    path, rng = tmp_path / "a.index", np.random.default_rng(int(number))
    messages = ""
    for attempt in range(40):
        child = start(embeddings, path)
        while child.poll() is None and not is_at_work(child, path):
            time.sleep(0.01)
        try:
            _, err = child.communicate(timeout=0.03 * 1.6**attempt * rng.random())
        except subprocess.TimeoutExpired:
            child.send_signal(number)
            _, err = child.communicate()
        messages += err
        if path.exists():  # perhaps it was killed when it had done everything
            break
        assert child.returncode in {130, 143, -number}, err
    assert contents(path) == uninterrupted
    assert weft.Index.open(path).verify(deep=True) == ()
    assert [p.name for p in tmp_path.glob("a.index*")] == ["a.index"]
    assert "Traceback" not in messages
    assert "going on from" in messages


def is_at_work(child, path):
    """Whether a build holds its spool, which has half of the rows."""
    for folder in path.parent.glob(f"{path.name}.building/build-*"):
        with contextlib.suppress(OSError):
            holder = (folder / "LOCK").read_text()
            n_rows = (folder / "rows.f16").stat().st_size // 32
            return f'"pid": {child.pid}}}' in holder and n_rows >= 10_000
    return False
