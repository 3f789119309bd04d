# SPDX-License-Identifier: Apache-2.0
"""Sparse vectors: what is kept of them, and searches against a loop over dictionaries."""

import math
import sys

import numpy as np
import pytest
import scipy.sparse

import weft
from weft import errors, sparse
from weft.field_searchers import _candidates
from weft.sparse_vectors import Terms, as_impacts, pack, pruned, sparse_vectors, unpack

N_TERMS = 50


def made(random, n, steps=4):
    """Vectors with few different weights, so that many scores are equal; some are empty."""
    return [
        {
            int(term): float(random.integers(1, steps + 1)) / steps
            for term in random.choice(N_TERMS, random.integers(0, 15), replace=False)
        }
        for _ in range(n)
    ]


def best(documents, query, k, impacts=False):
    """The k best by the definition: (id, score), equal scores by id."""

    def weight(value):
        return math.ceil(100 * np.float64(np.float32(value))) if impacts else np.float32(value)

    found = []
    for doc_id, vector in documents.items():
        score = 0
        for term, value in query.items():
            if term in vector:
                score += weight(value) * weight(vector[term])
        if score > 0:
            found.append((doc_id, score / 10_000 if impacts else float(score)))
    return sorted(found, key=lambda pair: (-pair[1], pair[0].encode()))[:k]


def cut(vector, most):
    """The largest weights, ties by smaller term."""
    kept = sorted(vector.items(), key=lambda item: (-item[1], item[0]))[:most]
    return dict(kept)


@pytest.mark.parametrize("impacts", [False, True], ids=["float", "impacts"])
@pytest.mark.parametrize("n_segments", [1, 3])
def test_search_is_a_loop(make_index, unmerged, rng, impacts, n_segments):
    vectors = made(rng, 120)
    ids = [f"d{i}" for i in rng.permutation(120)]  # places are not in the order of ids
    documents = dict(zip(ids, vectors, strict=True))
    index = make_index(config=weft.IndexConfig(sparse=weft.SparseConfig(impacts=impacts)))
    for part in np.array_split(np.arange(120), n_segments):
        index.add([ids[i] for i in part], sparse=[vectors[i] for i in part])
    assert index.info.n_segments == n_segments
    searcher = index.searcher().sparse
    n_ties = 0
    for query in made(rng, 20):
        if not query:
            continue
        for k in (1, 7, 1_000):
            hits = searcher.search({**query, 10_000: 3.0}, k)
            wanted = best(documents, query, k, impacts=impacts)
            assert hits.ids == tuple(doc_id for doc_id, _ in wanted)
            if impacts:
                assert hits.scores == tuple(score for _, score in wanted)
            assert hits.scores == pytest.approx([score for _, score in wanted], rel=1e-6)
            n_ties += len(set(hits.scores)) < len(hits)
        scores = dict(best(documents, query, 1_000, impacts=impacts))
        expected = [scores.get(doc_id, 0.0) for doc_id in ids]
        assert searcher.score(query, ids) == pytest.approx(expected, rel=1e-6)
    assert n_ties > 5


def test_impacts_are_integers():
    """ceil(100 w) on both sides, an integer product, divided by 10,000."""
    given = Terms(np.arange(4, dtype=np.int32), np.float32([0.001, 0.5, 0.501, 2]))
    vector = as_impacts(given, "query")
    assert vector.weights.tolist() == [1, 50, 51, 200]
    assert vector.weights.dtype == np.int32


def test_a_weight_too_large_for_an_impact(make_index):
    index = make_index(config=weft.IndexConfig(sparse=weft.SparseConfig(impacts=True)))
    with pytest.raises(errors.InvalidArgumentError, match=r"document 'b': weight .*too large"):
        index.add(["a", "b"], sparse=[{1: 2e7}, {1: 1e9}])
    with pytest.raises(errors.InvalidArgumentError, match=r"sparse query: weight .*too large"):
        index.searcher().sparse.search({1: 1e9})


def test_documents_and_queries_are_pruned_apart(make_index, rng):
    field = weft.SparseConfig(document_terms=5, query_terms=2)
    index = make_index(config=weft.IndexConfig(sparse=field))
    vectors = made(rng, 60, steps=2)
    ids = [f"d{i}" for i in range(60)]
    index.add(ids, sparse=vectors)
    documents = {doc_id: cut(v, 5) for doc_id, v in zip(ids, vectors, strict=True)}
    assert any(len(v) > 5 for v in vectors)
    for query in made(rng, 20, steps=2):
        if query:
            hits = index.searcher().sparse.search(query, 60)
            assert hits.ids == tuple(i for i, _ in best(documents, cut(query, 2), 60))


def test_ties_are_pruned_by_smaller_term():
    vector = Terms(np.array([3, 5, 8, 9], np.int32), np.array([1, 2, 1, 1], np.float32))
    kept = pruned(vector, 3)
    assert kept.terms.tolist() == [3, 5, 8]
    assert kept.weights.tolist() == [1, 2, 1]
    assert pruned(vector, None) is vector
    again = unpack(pack(kept), np.dtype(np.float32))
    assert again.terms.tolist() == [3, 5, 8]
    assert again.weights.tolist() == [1, 2, 1]


def test_forms_of_vectors(rng):
    dense = rng.random((6, 9)).astype(np.float32) * (rng.random((6, 9)) < 0.4)
    mappings = [{i: row[i] for i in range(9)} for row in dense.tolist()]
    digits = [{str(i): value for i, value in mapping.items()} for mapping in mappings]
    forms = [mappings, digits, tuple(mappings)]
    forms += [make(dense) for make in (scipy.sparse.csr_array, scipy.sparse.coo_matrix)]
    for given in forms:
        found = sparse_vectors(given, str)
        for vector, row in zip(found, dense, strict=True):
            assert vector.terms.tolist() == np.flatnonzero(row).tolist()
            assert vector.weights.tolist() == row[row > 0].tolist()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{1: -0.5}], "document 'a': term 1 has weight -0.5, expected a finite number"),
        ([{1: float("nan")}], "document 'a': term 1 has weight nan"),
        ([{1: 1e300}], "document 'a': term 1 has weight 1e"),
        ([{-1: 1.0}], "document 'a': term -1, expected an integer in 0"),
        ([{1.5: 1.0}], "document 'a': term 1.5, expected"),
        ([{True: 1.0}], "document 'a': term True, expected"),
        ([{"the": 1.0}], "document 'a': term 'the', expected an integer"),
        ([{2**31: 1.0}], "document 'a': term 2147483648"),
        ([{1: "x"}], "document 'a': weights: .*expected numbers"),
        ([{1: 1.0, "1": 2.0}], "document 'a': a term comes twice"),
        ([[1.0, 2.0]], "document 'a': found list, expected a mapping"),
        ({1: 1.0}, "sparse: found dict, expected a scipy.sparse matrix"),
        (5, "sparse: found int, expected"),
        ([{1: 1.0}] * 2, "sparse: found 2 vectors, expected 1"),
        (scipy.sparse.csr_array([[0, -1.0]]), "document 'a': term 1 has weight -1.0"),
        (scipy.sparse.coo_array(np.ones(3)), r"sparse: a matrix of shape \(3,\), expected two"),
    ],
)
def test_what_is_no_vector(make_index, given, message):
    index = make_index(config=weft.IndexConfig(sparse=weft.SparseConfig()))
    with pytest.raises(errors.InvalidArgumentError, match=message):
        index.add(["a"], sparse=given)
    assert len(index) == 0


def test_an_empty_query(make_index):
    index = make_index(config=weft.IndexConfig(sparse=weft.SparseConfig()))
    index.add(["a"], sparse=[{1: 1.0}])
    for query in ({}, {1: 0.0}):
        with pytest.raises(errors.InvalidArgumentError, match="sparse query: empty"):
            index.searcher().sparse.search(query)


@pytest.mark.parametrize("most", [1, 40, 10**9])
def test_lists_are_written_in_any_pieces(tmp_path, monkeypatch, rng, most):
    """In whatever passes postings are sorted and merged, the lists are the same."""
    monkeypatch.setattr(sparse, "LEAST_POSTINGS", most)
    monkeypatch.setattr(sparse, "BLOCK_DOCUMENTS", 7)
    vectors = sparse_vectors(made(rng, 90), str)

    def write(name, chosen):
        path = tmp_path / name
        packed = [
            (i, pack(vectors[doc])) for i, doc in enumerate(chosen) if len(vectors[doc].terms)
        ]
        with path.open("w+b") as file:
            sparse.write_sparse(
                file.fileno(), str(path), len(chosen), lambda: iter(packed),
                integers=False, most=most,
            )  # fmt: skip
        return sparse.SparsePart(path)

    one, two = write("one", range(50)), write("two", range(50, 90))
    for part, first in ((one, 0), (two, 50)):
        part.verify()
        for doc, vector in part.vectors():
            assert vector.terms.tolist() == vectors[first + doc].terms.tolist()
            assert vector.weights.tolist() == vectors[first + doc].weights.tolist()
        assert sum(1 for _ in part.vectors()) == np.count_nonzero(part.lengths())
    runs = [np.array([[0, 3], [10, 30]], np.uint32), np.array([[5, 40]], np.uint32)]
    path = tmp_path / "merged"
    with path.open("w+b") as file:
        sparse.merge_sparse(
            file.fileno(), str(path), [(one, runs[0]), (None, runs[0]), (two, runs[1])]
        )
    merged = sparse.SparsePart(path)
    merged.verify()
    kept = [*range(3), *range(10, 30), *[None] * 23, *range(55, 90)]
    assert merged.n_docs == len(kept)
    found = dict(merged.vectors())
    for place, doc in enumerate(kept):
        wanted = [] if doc is None else vectors[doc].terms.tolist()
        assert (found[place].terms.tolist() if place in found else []) == wanted


def test_a_damaged_list_is_told(make_index, rng):
    index = make_index(config=weft.IndexConfig(sparse=weft.SparseConfig()))
    index.add([f"d{i}" for i in range(20)], sparse=[{1: 1.0, 2: 0.5}] * 20)
    (path,) = index.path.glob("seg-*.sparse.weft")
    good = path.read_bytes()
    at = good.index(np.arange(20, dtype="<i4").tobytes())
    path.write_bytes(good[:at] + np.int32(20_000_000).tobytes() + good[at + 4 :])
    with pytest.raises(errors.CorruptIndexError, match="names a document that is not there"):
        weft.Index.open(index.path).searcher().sparse.search({1: 1.0})
    (problem,) = index.verify(deep=True)
    assert (problem.file, problem.loss) == (path.name, "sparse vectors of 20 documents")


def test_without_scipy(make_index, monkeypatch):
    index = make_index(config=weft.IndexConfig(sparse=weft.SparseConfig()))
    index.add(["a"], sparse=[{1: 1.0}])
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(errors.MissingExtraError, match=r"scipy.*weft\[hybrid\]"):
        index.searcher().sparse.search({1: 1.0})


@pytest.mark.parametrize("n", [0, 1, 63, 64, 640, 5_000])
@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize("kind", ["few", "ties", "zeros", "integers"])
def test_the_best_and_their_ties_are_candidates(rng, n, k, kind):
    scores = {
        "few": rng.gamma(0.5, 1.0, n) * (rng.random(n) < 0.02),
        "ties": rng.integers(0, 4, n) / 4,
        "zeros": np.zeros(n),
        "integers": rng.integers(0, 10**6, n),
    }[kind]
    found = _candidates(scores, k).tolist()
    ranked = sorted((score for score in scores.tolist() if score > 0), reverse=True)
    least = ranked[k - 1] if len(ranked) >= k else min(ranked, default=1)
    assert found == [i for i, score in enumerate(scores.tolist()) if score > 0 and score >= least]
