# SPDX-License-Identifier: Apache-2.0
"""Delete, upsert and compact: what they do to documents, files and readers."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import weft
from helpers import assert_ranking, exact, names, ragged_docs, unit_rows
from weft import _native, errors

pytestmark = pytest.mark.usefixtures("unmerged")

PRUNED = weft.SearchParams(ncandidates=300, nskim=300, nrefine=300, nrerank=0)


@pytest.fixture
def docs(rng):
    return ragged_docs(rng, 150, 8, shortest=4)


def stored(index):
    """{id: every array of its tokens}, as the segments hold them, without what is deleted."""
    found = {}
    for segment in index.searcher()._snapshot.segments:
        path = index.path / segment.entry.file
        arrays = _native.read_arrays(str(path))
        ids = _native.Segment.open(str(path), index.searcher()._snapshot.codec).ids(
            np.arange(segment.entry.n_windows, dtype=np.uint32)
        )
        tokens = {n: a for n, a in arrays.items() if len(a) == segment.entry.n_tokens}
        gone = segment.deleted
        for window, (first, last) in enumerate(pairwise(arrays["doc_offsets"].tolist())):
            if gone is None or not int(gone[window // 64]) >> window % 64 & 1:
                found[ids[window]] = {n: a[first:last].tobytes() for n, a in tokens.items()}
    return found


def test_a_deleted_document_is_nowhere(make_index, docs):
    index = make_index(docs[:40], texts=[f"t{i}" for i in range(40)])
    gone = ["d3", "d17", "d39"]
    assert index.delete(gone) == 3
    for opened in (index, weft.Index.open(index.path)):
        assert (len(opened), opened.info.n_deleted, opened.info.n_windows) == (37, 3, 37)
        assert 0 < opened.info.n_deleted_bytes < opened.info.n_bytes / 4
        left = [i for i in range(40) if f"d{i}" not in gone]
        scores = exact(docs[3], [docs[i] for i in left], [f"d{i}" for i in left])
        hits = opened.exact_search(docs[3], k=40)
        assert (len(hits), hits.n_matching) == (37, 37)
        assert_ranking(hits, scores)
        for use in (opened.documents, lambda ids, o=opened: o.score(docs[3], ids)):
            with pytest.raises(errors.NotFoundError, match="'d17'"):
                use(["d5", "d17"])
        with pytest.raises(errors.NotFoundError, match="'d3'"):
            opened.explain(docs[3], "d3")


@pytest.mark.parametrize("params", [PRUNED, weft.SearchParams(exhaustive=True, nrerank=0)])
def test_a_search_by_codes_leaves_out_what_is_deleted(make_index, docs, small_codec, params):
    index = make_index(docs)
    before = index.search(docs[0], k=150, params=params)
    gone = {hit.id for hit in before[:60]}
    assert index.delete(sorted(gone)) == 60
    after = index.search(docs[0], k=90, params=params)
    assert after.n_matching == 90
    assert [(h.id, h.score) for h in after] == [(h.id, h.score) for h in before if h.id not in gone]


def test_deleting_twice_and_what_never_was(make_index, docs):
    index = make_index(docs[:5])
    assert index.delete(["d1", "nobody", "d1"]) == 1
    generation = index.generation
    assert index.delete(["d1", "nobody"]) == 0
    assert index.generation == generation
    with index.writer() as writer:
        for wrong in (["d2", 7], ["d2", ""], ["d2", "a\x1f0"], "d2", ["x" * 2_000]):
            with pytest.raises(errors.InvalidArgumentError, match="id"):
                writer.delete(wrong)
    assert len(index) == 4


def test_an_id_comes_back(make_index, docs):
    index = make_index(docs[:5], texts=list("abcde"))
    index.delete(["d1"])
    index.add(["d1"], [docs[9]], texts=["new"])
    assert index.documents(["d1"])[0].text == "new"
    assert index.exact_search(docs[9], k=1).ids == ("d1",)
    with pytest.raises(errors.InvalidArgumentError, match="'d1': in the index already"):
        index.add(["d1"], [docs[9]])
    index.upsert(["d1", "d7"], [docs[10], docs[11]], texts=["newer", None])
    assert (len(index), index.info.n_deleted) == (6, 1)  # an empty segment goes
    assert [d.text for d in index.documents(["d1", "d7", "d0"])] == ["newer", None, "a"]


def test_within_one_commit_the_last_word_counts(make_index, docs):
    index = make_index(docs[:3])
    with index.writer() as writer:
        writer.add(["a", "b", "c"], docs[3:6], texts=["a1", "b1", "c1"], metadata=[{"n": 1}] * 3)
        writer.upsert(["b", "d0"], docs[6:8], texts=["b2", "d2"], metadata=[{"n": 2.5}, {}])
        with pytest.raises(errors.InvalidArgumentError, match="'b': added before"):
            writer.add(["b"], docs[8:9])
        assert writer.delete(["a", "d1"]) == 2
        writer.add(["a"], [docs[8]], texts=["a3"], spans=[np.zeros((len(docs[8]), 2), int)])
    assert len(index) == 5
    found = index.documents(["a", "b", "c", "d0", "d2"])
    assert [d.text for d in found] == ["a3", "b2", "c1", "d2", None]
    assert [d.metadata for d in found] == [{}, {"n": 2.5}, {"n": 1}, {}, {}]
    assert index.explain(docs[8], "a").matches[0].end == 0
    newest = [docs[8], docs[6], docs[5], docs[7], docs[2]]
    assert_ranking(
        index.exact_search(docs[6], k=9), exact(docs[6], newest, ["a", "b", "c", "d0", "d2"])
    )
    assert names(index.path, "build-") == []


def test_a_refused_upsert_replaces_nothing(make_index, docs):
    index = make_index(docs[:3])
    with index.writer() as writer:
        writer.add(["a"], [docs[3]], texts=["a1"])
        for ids in (["a", "d0"], ["d0", "a"]):
            with pytest.raises(errors.InvalidArgumentError, match="NaN"):
                writer.upsert(ids, [docs[4], np.full((1, 8), np.nan)])
        with pytest.raises(errors.InvalidArgumentError, match="'d1': twice"):
            writer.upsert(["d1", "d1"], docs[4:6])
    assert (len(index), index.info.n_deleted) == (4, 0)
    assert index.documents(["a"])[0].text == "a1"


def test_windows_go_and_come_together(make_index, docs):
    parents = [0, 0, 0, 0, 1, 1]
    index = make_index(docs[:6], ids=["long", "short"], parents=parents, texts=["l", "s"])
    assert index.upsert(["long"], docs[6:8], parents=[0, 0], texts=["l2"]) == 3
    assert (len(index), index.info.n_windows) == (2, 4)
    scores = {"long": max(exact(docs[2], docs[6:8], "ab").values()),
              "short": max(exact(docs[2], docs[4:6], "ab").values())}  # fmt: skip
    assert_ranking(index.exact_search(docs[2], k=5), scores)
    index.upsert(["long"], [docs[9]])
    assert (index.info.n_windows, index.exact_search(docs[9], k=1)[0].passage) == (3, None)
    index.compact()
    assert (index.info.n_windows, index.info.n_segments, index.info.n_deleted) == (3, 1, 0)
    assert index.exact_search(docs[5], k=1)[0].passage == 1
    assert index.delete(["short", "long"]) == 2
    assert (len(index), len(index.search(docs[0]))) == (0, 0)


@pytest.mark.parametrize("config", [{}, {"rerank": "f16"}, {"nbits": 2}, {"nbits": 8}])
@pytest.mark.parametrize("coded", [True, False])
def test_compact_keeps_every_bit(make_index, docs, request, config, coded):
    if coded:
        request.getfixturevalue("small_codec")
    index = make_index(docs[:100], config=weft.IndexConfig(dim=8, **config),
                       metadata=[{"n": i} for i in range(100)])  # fmt: skip
    index.add([f"e{i}" for i in range(20)], docs[100:140], parents=np.repeat(range(20), 2).tolist(),
              texts=[f"e{i}" for i in range(20)])  # fmt: skip
    index.add([f"f{i}" for i in range(5)], docs[140:145])
    index.delete(["d0", *(f"d{i}" for i in range(30, 60)), "e0", "e7", "e19", "f2"])
    codec = index.info.n_fine
    assert (codec is not None) == coded
    before, ids = stored(index), ["d1", "d29", "d60", "d99", "e1", "e18", "f4"]
    answers = [index.exact_search(query, k=200) for query in docs[:3]]
    held = index.documents(ids)
    n_bytes, freed = index.info.n_bytes, index.info.n_deleted_bytes
    assert index.compact() == 6
    assert (index.info.n_segments, index.info.n_deleted, index.info.n_fine) == (1, 0, codec)
    assert stored(index) == before
    assert index.documents(ids) == held
    assert index.verify(deep=True) == ()
    for query, answer in zip(docs, answers, strict=False):
        assert index.exact_search(query, k=200).hits == answer.hits
    if not coded:  # tables of a fixed size count for most of a small index
        assert abs(n_bytes - freed - index.info.n_bytes) < 0.3 * n_bytes
    assert index.compact() == 6


def test_compact_with_changes_in_the_same_commit(make_index, docs, small_codec):
    index = make_index(docs[:100])
    index.add(["x", "y"], docs[100:102])
    with index.writer() as writer:
        writer.delete(["d5", "x"])
        writer.upsert(["y", "z"], docs[102:104])
        writer.compact()
    assert (len(index), index.info.n_segments, index.info.n_deleted) == (101, 2, 0)
    with index.writer() as writer:
        writer.compact()
        writer.rollback()
    assert index.info.n_segments == 2


def test_segments_are_merged_up_to_their_limit(make_index, docs, monkeypatch):
    index = make_index()
    for i in range(9):
        index.add([f"d{i}"], [docs[i]])
    total = index.info.n_tokens
    monkeypatch.setattr("weft.lifecycle.compaction.segment_limits", lambda _: (total // 3, 1 << 30))
    monkeypatch.setattr("weft.lifecycle.planning.segment_limits", lambda _: (total // 3, 1 << 30))
    index.compact()
    assert 3 <= index.info.n_segments <= 5
    generation = index.generation
    assert index.compact() == generation
    assert_ranking(index.exact_search(docs[4], k=9),
                   exact(docs[4], docs[:9], [f"d{i}" for i in range(9)]))  # fmt: skip


def test_damage_is_not_carried_over(make_index, docs, small_codec):
    index = make_index(docs, texts=["some text"] * 150)
    index.delete(["d4"])
    for pattern, at in (("*.multi.weft", -900), ("*.docs.sqlite", -20)):
        (path,) = index.path.glob(pattern)
        good = path.read_bytes()
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(errors.CorruptIndexError, match=path.name):
            weft.Index.open(index.path).compact()
        path.write_bytes(good)
    assert index.compact() == 4


READER = """
import sys
import numpy as np
import weft

searcher = weft.Index.open(sys.argv[1]).searcher()
for line in sys.stdin:
    hits = searcher.search(np.eye(8), k=1_000)
    texts = {document.text for document in searcher.documents(hits.ids)}
    print(searcher.generation, len(hits), len(texts), flush=True)
"""


def test_readers_keep_their_generation(make_index, docs, small_codec):
    index = make_index(docs, texts=[f"t{i}" for i in range(150)])
    here = index.searcher()
    there = subprocess.Popen(
        [sys.executable, "-c", READER, index.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask():
        there.stdin.write("\n")
        there.stdin.flush()
        return there.stdout.readline().split()

    with there:
        assert ask() == ["2", "150", "150"]
        old = names(index.path, "seg-")
        for i in range(0, 60, 20):
            index.delete([f"d{j}" for j in range(i, i + 20)])
            index.compact()
        index.add(["last"], [docs[0]])
        assert set(old).isdisjoint(names(index.path))
        assert ask() == ["2", "150", "150"]
        assert len(here.search(np.eye(8), k=1_000)) == len(here) == 150
        assert here.documents(["d3"])[0].text == "t3"
        there.stdin.close()
    assert there.returncode == 0
    assert len(names(index.path, "seg-")) == 3  # one with texts, and what was added last
    other = weft.Index.open(index.path, generation=index.generation - 1)
    assert len(other.search(unit_rows(np.random.default_rng(1), 2, 8), k=1_000)) == 90


def test_filters_are_joined_with_tombstones(make_index, docs, small_codec):
    """The engine's own bitmaps: deleted ones per snapshot, allowed ones per query, None for all."""
    index = make_index(docs[:100])
    index.add([f"e{i}" for i in range(50)], docs[100:])
    index.delete([f"d{i}" for i in range(64, 80)])
    searcher = index.searcher()
    allow = [np.array([2**40 - 1, 2**20 - 1], np.uint64), np.array([0b1011], np.uint64)]
    every = {f"d{i}" for i in range(100)} - {f"d{i}" for i in range(64, 80)}
    first = {f"d{i}" for i in [*range(40), *range(80, 84)]}
    for given, expected in (
        (allow, first | {"e0", "e1", "e3"}),
        ([allow[0], None], first | {f"e{i}" for i in range(50)}),
        ([None, allow[1]], every | {"e0", "e1", "e3"}),
    ):
        for exhaustive in (True, False):
            params = _native.SearchParams(
                nprobe=64, budget=100_000, ncandidates=500, nskim=0, nrefine=500, nrerank=0,
                exhaustive=exhaustive, pruned=not exhaustive,
            )  # fmt: skip
            found = searcher._native.search(docs[0], 200, params, given)
            assert found.n_matching == len(expected)
            assert set(found.ids) == expected


def test_damaged_tombstones_are_named(make_index, docs):
    index = make_index(docs[:130])
    index.delete(["d3", "d70"])
    (path,) = index.path.glob("seg-*.del-*.weft")
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
        assert [problem.file for problem in index.verify()] == [path.name], at
    with pytest.raises(errors.CorruptIndexError, match=path.name):
        weft.Index.open(index.path).search(docs[0])
    other = make_index(docs[:130])
    other.delete(["d3", "d71"])
    (foreign,) = other.path.glob("seg-*.del-*.weft")
    path.write_bytes(foreign.read_bytes())
    with pytest.raises(errors.CorruptIndexError, match=rf"{path.name}: checksum"):
        weft.Index.open(index.path).search(docs[0])
    path.unlink()
    with pytest.raises(errors.CorruptIndexError, match="is missing"):
        weft.Index.open(index.path).delete(["d4"])
