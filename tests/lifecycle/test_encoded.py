# SPDX-License-Identifier: Apache-2.0
"""An index that has grown a codec: encoding, operating points, reproducibility; and windows."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import weft
from helpers import assert_ranking, exact, names, ragged_docs, stored, unit_rows
from reference import maxsim
from weft import errors
from weft.lifecycle.manifest import load
from weft.types import defaults

# ---- windows -------------------------------------------------------------------------------------


def windowed(make_index, rng, n_docs=20):
    """An index of long documents, and the definition's score of each: its best window."""
    index = make_index()
    counts = [1 + i % 4 for i in range(n_docs)]
    windows = ragged_docs(rng, sum(counts), 8)
    parents = np.repeat(np.arange(n_docs), counts).tolist()
    ids = [f"long{i}" for i in range(n_docs)]
    index.add(ids, windows, parents=parents, texts=[f"text {i}" for i in range(n_docs)])

    def scores(query):
        per_window = [float(maxsim(query.astype(np.float64), rows)) for rows in stored(windows)]
        return {
            doc_id: max(s for s, p in zip(per_window, parents, strict=True) if p == number)
            for number, doc_id in enumerate(ids)
        }

    return index, ids, windows, parents, scores


@pytest.mark.parametrize("k", [1, 3, 10, 19, 20, 50])
def test_k_counts_documents_not_windows(make_index, rng, k):
    index, ids, _, _, scores = windowed(make_index, rng)
    query = unit_rows(rng, 3, 8)
    hits = index.search(query, k=k)
    assert len(hits) == min(k, len(ids))
    assert hits.n_matching == len(ids)
    assert_ranking(hits, scores(query))
    (batch,) = index.search_batch([query], k=k)
    assert batch.hits == hits.hits


def test_the_best_passage_is_named(make_index, rng):
    index, ids, windows, parents, _ = windowed(make_index, rng)
    for window, parent in enumerate(parents):
        hit = index.search(windows[window], k=1)[0]
        assert hit.id == ids[parent]
        number = window - parents.index(parent)
        assert hit.passage == (number if parents.count(parent) > 1 else None)
        found = index.explain(windows[window], hit.id)
        assert found.passage == hit.passage
        assert found.score == pytest.approx(hit.score, rel=1e-5)


def test_windows_share_a_document(make_index, rng):
    index, ids, _, _, _ = windowed(make_index, rng)
    assert [d.text for d in index.documents(ids)] == [f"text {i}" for i in range(20)]
    query = unit_rows(rng, 3, 8)
    hits = index.search(query, k=20)
    assert np.allclose(index.score(query, hits.ids), hits.scores)
    assert (index.info.n_docs, index.info.n_windows) == (20, 50)
    with pytest.raises(errors.InvalidArgumentError, match="'long3': in the index already"):
        index.add(["long3"], [unit_rows(rng, 1, 8)])
    assert index.verify(deep=True) == ()


@pytest.mark.parametrize(
    "parents", [[0, 0], [1, 0], [0, 2], [0, 1, 1], [0, -1], [0, 1.0], [0, True]]
)
def test_parents_that_cannot_be(make_index, rng, parents):
    index = make_index()
    with pytest.raises(errors.InvalidArgumentError, match=r"parents|embeddings"):
        index.add(["a", "b"], ragged_docs(rng, 2, 8), parents=parents)
    assert index.generation == 1


# ---- with a codec --------------------------------------------------------------------------------


@pytest.fixture
def coded(make_index, small_codec, rng):
    """Two commits: rows first, then the one that trains the codec and re-encodes."""
    docs = ragged_docs(rng, 150, 16, shortest=1, longest=9)
    ids = [f"d{i}" for i in range(150)]
    index = make_index(dim=16)
    texts = [f"text {i}".ljust(9) for i in range(150)]
    metadata = [{"number": i} for i in range(150)]
    spans = [[[j, j + 1] for j in range(len(doc))] for doc in docs]
    for part in (slice(0, 40), slice(40, 150)):
        assert index.info.n_fine is None
        index.add(
            ids[part], docs[part], texts=texts[part], metadata=metadata[part], spans=spans[part]
        )
    return index, ids, docs


def test_the_commit_that_crosses_the_line_encodes_everything(coded, rng):
    index, ids, docs = coded
    info = index.info
    assert info.n_coarse >= 16
    assert info.n_fine >= info.n_coarse
    assert (info.n_docs, info.n_segments) == (150, 1)
    assert info.n_tokens == sum(map(len, docs))
    assert index.verify(deep=True) == ()
    query = unit_rows(rng, 5, 16)
    hits = index.exact_search(query, k=150)
    assert_ranking(hits, exact(query, docs, ids), tolerance=0.06)
    found = index.documents(ids)
    assert [d.text for d in found] == [f"text {i}".ljust(9) for i in range(150)]
    assert [d.metadata["number"] for d in found] == list(range(150))
    for number in (3, 77):
        match = index.explain(docs[number][:1], ids[number]).matches[0]
        assert (match.token, match.start, match.end) == (0, 0, 1)


def test_later_commits_use_the_codec(coded, rng):
    index, ids, docs = coded
    first, cells = load(index._directory).segments, index.info.n_coarse
    more = ragged_docs(rng, 25, 16)  # too few to train anew for, though they are of another kind
    index.add([f"e{i}" for i in range(25)], more)
    assert load(index._directory).segments[: len(first)] == first
    assert (index.info.n_coarse, index.info.n_segments) == (cells, 2)
    query = unit_rows(rng, 4, 16)
    expected = exact(query, [*docs, *more], [*ids, *(f"e{i}" for i in range(25))])
    assert_ranking(index.exact_search(query, k=175), expected, tolerance=0.06)
    for number in (0, 24):
        assert index.search(more[number], k=1)[0].id == f"e{number}"


def test_operating_points(coded, rng):
    index, _, docs = coded
    points = index.info.operating_points
    assert [p.target for p in points if p.k == 10] == [*defaults.targets, 1.0]
    for point in points:
        assert 0.0 <= point.measured <= 1.0
        assert point.reached == (point.measured >= point.target)
        assert point.tuned_on == "sampled documents"
    ordered = [p.cost_ms for p in points if p.k == 10]
    assert ordered == sorted(ordered)
    query = docs[0]
    by_target = {p.target: p for p in points if p.k == 10}
    assert index.search(query).operating_point.params == by_target[0.95].params
    assert index.search(query, recall=0.85).operating_point.params == by_target[0.9].params
    assert index.search(query, recall=0.5, k=3).operating_point.params == by_target[0.8].params
    assert index.search(query, recall=1.0).operating_point.path == "exhaustive"
    assert index.search(query, recall=1.0).operating_point.measured == by_target[1.0].measured
    far = index.search(query, k=100_000).operating_point
    assert (far.path, far.measured, far.reached) == ("exhaustive", None, None)


def test_measured_recall_is_recall(coded, rng):
    """The stored figure against one taken from outside, on queries given by hand."""
    index, _, _ = coded
    queries = [unit_rows(rng, 6, 16) for _ in range(12)]
    points = index.tune(queries)
    assert {p.tuned_on for p in points} == {"given queries"}
    for point in points:
        assert point.k == 10
        recalls = []
        for query in queries:
            best = index.exact_search(query, k=10).ids
            found = index.search(query, k=10, params=point.params).ids
            recalls.append(len(set(best) & set(found)) / 10)
        assert np.mean(recalls) == pytest.approx(point.measured, abs=0.05)


def test_points_grow_stale(coded):
    index, _, docs = coded
    assert not index.search(docs[0]).operating_point.stale
    index.add([f"e{i}" for i in range(100)], docs[:100])
    assert index.search(docs[0]).operating_point.stale
    index.tune()
    assert not index.search(docs[0]).operating_point.stale


def test_tuning_below_the_line_is_nothing_to_do(make_index, rng):
    index = make_index(ragged_docs(rng, 5, 8))
    assert index.tune() == ()
    assert index.generation == 2


def test_params_by_hand(coded, rng):
    index, _, docs = coded
    params = weft.SearchParams(nprobe=1, budget=1, ncandidates=20, nrefine=10, nrerank=0)
    point = index.search(docs[3], k=5, params=params).operating_point
    assert point.params == params
    assert (point.target, point.measured, point.reached) == (None, None, None)
    with pytest.raises(errors.InvalidArgumentError, match="recall and params"):
        index.search(docs[3], recall=0.9, params=params)
    with pytest.raises(errors.InvalidArgumentError, match="nrefine=10: expected at least k=11"):
        index.search(docs[3], k=11, params=params)
    with pytest.raises(errors.InvalidArgumentError, match=r"params=.*expected weft\.SearchParams"):
        index.search(docs[3], params={"nprobe": 3})


def test_windows_with_a_codec(make_index, small_codec, rng):
    index, ids, windows, parents, scores = windowed(make_index, rng, n_docs=80)
    assert index.info.n_fine is not None
    query = unit_rows(rng, 3, 8)
    assert_ranking(index.exact_search(query, k=80), scores(query), tolerance=0.1)
    hits = index.search(windows[10], k=5)
    assert hits[0].id == ids[parents[10]]
    assert len(set(hits.ids)) == 5
    assert index.verify(deep=True) == ()


def test_windows_of_rows_are_absorbed_whole(make_index, small_codec, rng):
    index, ids, _, _, _ = windowed(make_index, rng)
    before = index.documents(ids)
    index.add([f"e{i}" for i in range(80)], ragged_docs(rng, 80, 8))
    assert index.info.n_fine is not None
    assert (index.info.n_docs, index.info.n_windows) == (100, 130)
    assert index.documents(ids) == before
    with pytest.raises(errors.InvalidArgumentError, match="in the index already"):
        index.add(["long3"], ragged_docs(rng, 1, 8))
    assert index.verify(deep=True) == ()


@pytest.mark.parametrize(
    ("nbits", "rerank"),
    [(1, None), (2, None), (4, None), (4, "plane"), (4, "f16"), (8, None), (8, "f16")],
)
def test_every_kind_of_code(make_index, small_codec, rng, nbits, rerank):
    docs = ragged_docs(rng, 120, 32, shortest=3)
    config = weft.IndexConfig(dim=32, nbits=nbits, rerank=rerank)
    index = make_index(docs, config=config)
    assert index.verify(deep=True) == ()
    found = [index.exact_search(doc, k=1)[0].id for doc in docs[:40]]
    right = np.mean([doc_id == f"d{i}" for i, doc_id in enumerate(found)])
    assert right >= (0.6 if nbits == 1 else 0.9)
    if rerank == "f16":
        query = unit_rows(rng, 4, 32)
        expected = exact(query, docs, [f"d{i}" for i in range(120)])
        assert_ranking(index.exact_search(query, k=120), expected)


def test_the_same_data_gives_the_same_bytes(make_index, small_codec, rng):
    """For any number of threads, and however the documents came in."""
    docs = ragged_docs(rng, 120, 16)
    ids = [f"d{i}" for i in range(120)]
    contents, points = [], []
    for threads, step in ((1, 120), (2, 120), (3, 7)):
        index = make_index(dim=16)
        with index.writer(threads=threads) as writer:
            for at in range(0, 120, step):
                writer.add(ids[at : at + step], docs[at : at + step])
        contents.append([path.read_bytes() for path in sorted(index.path.glob("*-*.weft"))])
        points.append(index.info.operating_points)
    assert contents[0] == contents[1] == contents[2]
    assert points[0] == points[1] == points[2] != ()


def test_progress_is_told(make_index, small_codec, rng):
    told = []
    index = make_index()
    with index.writer(progress=lambda *step: told.append(step)) as writer:
        writer.add([f"d{i}" for i in range(120)], ragged_docs(rng, 120, 8))
    stages = list(dict.fromkeys(stage for stage, _, _ in told))
    assert stages[-1] == "commit"
    assert "tune" in stages
    for stage in stages:
        done, total = [step for step in told if step[0] == stage][-1][1:]
        assert done == total


def test_an_interrupt_leaves_the_index_as_it_was(make_index, small_codec, rng):
    index = make_index(ragged_docs(rng, 3, 8))
    docs = ragged_docs(rng, 120, 8)

    class Stop(BaseException):
        pass

    def stop(stage, done, total):
        if stage == "tune":
            raise Stop

    writer = index.writer(progress=stop)
    writer.add([f"e{i}" for i in range(120)], docs)
    with pytest.raises(Stop):
        writer.commit()
    assert len(weft.Index.open(index.path)) == 3
    assert len(names(index.path, "seg-")) == 1
    assert names(index.path, "codec-") == []
    writer._progress = lambda *step: None
    assert writer.commit() == 3
    writer.close()
    assert len(index) == 123
    assert index.verify(deep=True) == ()


@pytest.mark.parametrize("kind", [errors.OutOfMemoryError, errors.StorageError])
def test_a_commit_that_cannot_fit_is_refused_before_it_starts(
    make_index, small_codec, rng, monkeypatch, kind
):
    index = make_index(ragged_docs(rng, 3, 8))
    stages = []
    with index.writer(progress=lambda stage, _done, _total: stages.append(stage)) as writer:
        writer.add([f"e{i}" for i in range(120)], ragged_docs(rng, 120, 8))
        with monkeypatch.context() as patch:
            if kind is errors.OutOfMemoryError:
                patch.setattr("weft.lifecycle.planning.FIXED_BYTES", 1 << 50)
            else:
                free = SimpleNamespace(free=1_000)
                patch.setattr("weft.lifecycle.planning.shutil.disk_usage", lambda _folder: free)
            with pytest.raises(kind, match="needs"):
                writer.commit()
        assert stages == []
        assert len(weft.Index.open(index.path)) == 3
        writer.commit()
    assert len(index) == 123


def test_memory_limit_cuts_segments(make_index, rng, monkeypatch):
    monkeypatch.setattr("weft.lifecycle.planning.segment_limits", lambda ram: (50, ram // 2))
    docs = ragged_docs(rng, 60, 8)
    index = make_index(docs, texts=[f"text {i}" for i in range(60)])
    assert index.info.n_segments >= sum(map(len, docs)) // 50
    query = unit_rows(rng, 3, 8)
    assert_ranking(index.search(query, k=60), exact(query, docs, [f"d{i}" for i in range(60)]))
    assert [d.text for d in index.documents(["d0", "d31", "d59"])] == [
        "text 0",
        "text 31",
        "text 59",
    ]
    assert index.verify(deep=True) == ()


def test_a_codec_from_one_hundred_thousand_tokens_on(make_index, rng):
    """The real limit, once."""
    n_docs = 2_600
    lengths = rng.integers(20, 60, n_docs)
    centres = unit_rows(rng, 300, 32)
    values = centres[rng.integers(0, 300, lengths.sum())] + 0.5 * unit_rows(rng, lengths.sum(), 32)
    index = make_index(dim=32)
    planned = index.plan(n_docs=n_docs, n_tokens=int(lengths.sum()))
    index.add([f"d{i}" for i in range(n_docs)], (values, np.concatenate([[0], np.cumsum(lengths)])))
    info = index.info
    assert info.n_tokens >= defaults.codec_tokens
    assert (info.n_coarse, info.n_fine) == (planned.n_coarse, planned.n_fine)
    assert info.n_bytes == pytest.approx(planned.disk_bytes, rel=0.2)
    point = next(p for p in info.operating_points if (p.k, p.target) == (10, 0.95))
    assert point.reached
    hits = index.search(values[: lengths[0]], k=10)
    assert hits[0].id == "d0"
    assert dataclasses.replace(hits.operating_point, path=None, stale=False) == point
