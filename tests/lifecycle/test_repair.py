# SPDX-License-Identifier: Apache-2.0
"""Damage is found wherever it is, and what is whole goes on without it."""

import json
import re
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import weft
from faults import Disk, FaultyDirectory
from helpers import names, ragged_docs
from weft import _native, errors, sources
from weft.index import Index
from weft.lifecycle.repair import repair

pytestmark = pytest.mark.usefixtures("unmerged", "small_codec")


@pytest.fixture
def docs(rng):
    return ragged_docs(rng, 160, 8, shortest=4)


@pytest.fixture
def index(make_index, docs):
    """Three segments with codes: d0..d99 with tombstones, long documents l0..l9, e0..e19."""

    def texts(ids):
        return [f"text of {i}" for i in ids]

    ids = [f"d{i}" for i in range(100)]
    made = make_index(docs[:100], texts=texts(ids), metadata=[{"n": i} for i in range(100)])
    long = [f"l{i}" for i in range(10)]
    made.add(long, docs[100:120], parents=np.repeat(range(10), 2).tolist(), texts=texts(long))
    ids = [f"e{i}" for i in range(20)]
    made.add(ids, docs[120:140], texts=texts(ids))
    made.delete(["d3"])
    made.upsert(["d7"], [docs[150]], texts=["text of d7"])
    return made


def flip(path, at, bit=0):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def payload(path, array):
    """Where an array begins in a container, by the format: a table of 128 bytes an array."""
    data = path.read_bytes()
    for start in range(64, len(data), 128):
        name = data[start : start + 48].rstrip(b"\0").decode()
        if name == array:
            arrays = _native.read_arrays(str(path))
            return data.index(arrays[array].tobytes(), 64)
    raise AssertionError(array)


def segment_of(index, doc_id):
    snapshot = index.searcher()._snapshot
    return snapshot.segments[snapshot.find(doc_id).segment].entry


def contents(index):
    """{id: (best token similarities, text)}: everything that can be asked of a document."""
    searcher = index.searcher()
    query = np.eye(8, dtype=np.float32)
    hits = searcher.exact_search(query, k=1_000)
    found = searcher.documents(hits.ids)
    return {hit.id: (hit.score, document.text) for hit, document in zip(hits, found, strict=True)}


def damaged_files(path):
    """What `verify` names, or the manifest that keeps an index from being opened."""
    try:
        return [problem.file for problem in weft.Index.open(path).verify(deep=True)]
    except (errors.CorruptIndexError, errors.IncompatibleIndexError) as error:
        return re.findall(r"manifest-\d{6}\.json", str(error))[:1]


def repaired(index):
    """Repair it: (report, the index as it is then), which must be sound."""
    done = Index.repair(index.path)
    fresh = weft.Index.open(index.path)
    assert fresh.generation == done.generation
    assert fresh.verify(deep=True) == ()
    assert len(fresh) == done.n_docs
    assert Index.repair(index.path) == weft.Repair(done.generation, (), done.n_docs, 0, None)
    return done, fresh


def open_lost(done):
    return Path(done.folder) / "lost.jsonl"


def test_nothing_to_repair(index):
    before = names(index.path)
    assert Index.repair(index.path) == weft.Repair(index.generation, (), 129, 0, None)
    assert names(index.path) == before


def test_a_lost_segment_is_named_and_the_rest_kept(index):
    before = contents(index)
    entry = segment_of(index, "e3")
    path = index.path / entry.file
    flip(path, payload(path, "codes"))
    (problem,) = weft.Index.open(index.path).verify(deep=True)
    assert (problem.file, problem.loss) == (entry.file, "20 documents")
    damaged = path.read_bytes()
    done, fresh = repaired(index)
    assert (done.n_docs, done.n_lost, done.problems) == (109, 20, (problem,))
    lost = {f"e{i}" for i in range(20)}
    assert contents(fresh) == {i: found for i, found in before.items() if i not in lost}
    # the list can be read as a source of texts, and everything is there for another try
    folder = index.path / f"damaged-{done.generation:06d}"
    assert done.folder == str(folder)
    assert {d.id: d.text for d in sources.read(folder / "lost.jsonl")} == {
        i: f"text of {i}" for i in lost
    }
    assert (folder / entry.file).read_bytes() == damaged
    for _ in range(3):  # however many generations come
        fresh.delete([next(iter(contents(fresh)))])
    assert names(folder) == sorted(["lost.jsonl", entry.file, entry.documents_file])


def test_deleted_documents_are_not_listed_as_lost(index):
    entry = segment_of(index, "d9")
    path = index.path / entry.file
    flip(path, payload(path, "steps"))
    done, _ = repaired(index)
    lost = [json.loads(line) for line in open_lost(done).read_text().splitlines()]
    gone = {"d3", "d7"}
    assert {found["id"] for found in lost} == {f"d{i}" for i in range(100)} - gone
    assert lost[0] == {"id": "d0", "text": "text of d0", "metadata": {"n": 0}}
    assert done.n_lost == 98


def test_ids_that_are_damaged_are_counted_only(index):
    entry = segment_of(index, "l3")
    path = index.path / entry.file
    flip(path, payload(path, "id_bytes"))
    done, fresh = repaired(index)
    assert (done.n_lost, len(fresh)) == (10, 119)
    assert open_lost(done).read_text() == ""


@pytest.mark.parametrize("doc_id", ["d9", "l3"])
def test_damaged_lists_are_made_again(index, doc_id):
    before = contents(index)
    entry = segment_of(index, doc_id)
    path = index.path / entry.file
    flip(path, payload(path, "postings"))
    (problem,) = weft.Index.open(index.path).verify(deep=True)
    assert problem.loss.startswith("nothing")
    done, fresh = repaired(index)
    assert done.n_lost == 0
    assert contents(fresh) == before
    assert entry.file not in {s.entry.file for s in fresh.searcher()._snapshot.segments}


@pytest.mark.parametrize("doc_id", ["d9", "l3"])
def test_damaged_texts_are_left_out(index, doc_id):
    before = contents(index)
    entry = segment_of(index, doc_id)
    flip(index.path / entry.documents_file, 5_000)
    (problem,) = weft.Index.open(index.path).verify(deep=True)
    assert problem.loss == f"texts and metadata of {entry.live('n_docs')} documents"
    done, fresh = repaired(index)
    assert done.n_lost == 0
    inside = {i for i in before if i[0] == doc_id[0] and i != "d7"}
    expected = {i: (score, None if i in inside else text) for i, (score, text) in before.items()}
    assert contents(fresh) == expected
    # its long documents are still known as such
    fresh.delete(["l4"])
    fresh.compact()
    assert fresh.verify(deep=True) == ()
    assert fresh.info.n_windows == 130 - 1 + 10 - 2 - 1 + 1
    assert set(contents(fresh)) == before.keys() - {"l4"}


def test_lost_tombstones(index):
    """What was deleted last comes back, what was replaced does not."""
    before = contents(index)
    index.add(["other"], [np.eye(8)])
    entry = segment_of(index, "d9")
    (path,) = index.path.glob(f"{entry.name}.del-*")
    flip(path, 70)
    (problem,) = weft.Index.open(index.path).verify()
    assert problem.loss == "which documents are deleted, of 100"
    done, fresh = repaired(index)
    assert done.n_lost == 0
    found = contents(fresh)
    assert found.keys() == before.keys() | {"other", "d3"}
    assert found["d7"] == before["d7"]


def test_older_tombstones_are_better_than_none(index):
    index.delete(["d4"])
    entry = segment_of(index, "d9")
    newest = index.path / index._manifest.segments[0].tombstones.file
    assert newest.name.startswith(entry.name)
    flip(newest, 70)
    _, fresh = repaired(index)
    assert "d3" not in contents(fresh)
    assert "d4" in contents(fresh)


def test_without_the_codec_nothing_is_left_but_texts(index):
    (path,) = index.path.glob("codec-*")
    flip(path, -80)
    problems = weft.Index.open(index.path).verify(deep=True)
    assert [(problem.file, problem.loss) for problem in problems] == [
        (path.name, "129 documents, all that are stored as codes")
    ]
    done, fresh = repaired(index)
    assert (done.n_docs, done.n_lost) == (0, 129)
    assert len(open_lost(done).read_text().splitlines()) == 129
    assert path.name in names(done.folder)
    fresh.add(["d0"], [np.eye(8)])
    assert fresh.search(np.eye(8), k=1).ids == ("d0",)


def test_a_damaged_newest_manifest(index):
    index.add(["newest"], [np.eye(8)], texts=["text of newest"])
    (name,) = names(index.path, f"manifest-{index.generation:06d}")
    flip(index.path / name, 30)
    with pytest.raises(errors.CorruptIndexError, match=f"{name}: damaged manifest"):
        weft.Index.open(index.path)
    done, fresh = repaired(index)
    assert [(problem.file, problem.loss) for problem in done.problems] == [
        (name, f"the changes of generation {index.generation}")
    ]
    assert fresh.generation == index.generation + 1
    assert "newest" not in contents(fresh)
    kept = names(done.folder)
    assert name in kept
    assert len([file for file in kept if file.startswith("seg-")]) == 2  # with its documents
    fresh.add(["next"], [np.eye(8)])
    assert "next" in contents(fresh)


def test_a_damaged_older_manifest(index):
    older = names(index.path, "manifest-")[0]
    flip(index.path / older, 30)
    assert [problem.file for problem in index.verify()] == [older]
    done, fresh = repaired(index)
    assert contents(fresh) == contents(index)
    assert older not in names(index.path)
    assert older in names(done.folder)


def test_no_manifest_is_whole(index):
    for name in names(index.path, "manifest-"):
        flip(index.path / name, 30)
    before = names(index.path)
    with pytest.raises(errors.CorruptIndexError, match="every manifest is damaged"):
        Index.repair(index.path)
    assert names(index.path) == before
    with pytest.raises(errors.NotFoundError, match="no index there"):
        Index.repair(index.path / "damaged-000001")


def test_a_writer_at_work(index):
    with index.writer(), pytest.raises(errors.IndexLockedError):
        Index.repair(index.path)


def test_a_newer_weft_wrote_it(index):
    newer = index.path / "manifest-000099.json"
    newer.write_text('{"body":{"format":2},"checksum":"00000000"}\n')
    with pytest.raises(errors.IncompatibleIndexError, match="newer weft"):
        Index.repair(index.path)


def test_a_repair_that_fails_changes_nothing(index, tmp_path):
    """At every step of the disk; then it can be done again."""
    for doc_id, array in (("e3", "codes"), ("l3", "postings")):
        path = index.path / segment_of(index, doc_id).file
        flip(path, payload(path, array))
    damaged = damaged_files(index.path)
    assert len(damaged) == 2
    for n in count(1):
        copy = shutil.copytree(index.path, tmp_path / f"copy{n}")
        disk = Disk(n)
        try:
            repair(FaultyDirectory(copy, disk), lambda *_: None)
        except errors.StorageError:
            fresh = weft.Index.open(copy)
            assert fresh.generation in (index.generation, index.generation + 1)
            if fresh.generation == index.generation:
                assert damaged_files(copy) == damaged
            else:
                assert damaged_files(copy) == []
        _, fresh = repaired(weft.Index.open(copy))
        assert len(fresh) == 109
        shutil.rmtree(copy)
        if not disk.failed:
            break
    assert n > 8


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_any_flipped_byte_of_any_file_is_found(make_index, docs, rng, step):
    """And only what `verify` names is damaged."""
    index = make_index(docs[:90], texts=[f"text {i}" for i in range(90)])
    index.delete(["d2"])
    files = names(index.path, "seg-") + names(index.path, "codec-") + names(index.path, "manifest-")
    assert len(files) == 6
    for name in files:
        path = index.path / name
        good = path.read_bytes()
        for at in range(int(rng.integers(step)), len(good), step):
            flip(path, at, int(rng.integers(8)))
            assert damaged_files(index.path) == [name], (name, at)
            path.write_bytes(good)
    assert weft.Index.open(index.path).verify(deep=True) == ()
