# SPDX-License-Identifier: Apache-2.0
"""Hybrid search against plain loops over exact scores; and the retriever above it."""

import math

import numpy as np
import pytest

import weft
from helpers import FakeEncoder, ragged_docs, unit_rows
from reference import maxsim
from weft import errors
from weft.encoders.fields import FieldEmbeddings

DIM, DENSE_DIM, N_TERMS, N = 8, 12, 30, 150
WEIGHTS = {"dense": 0.5, "sparse": 0.3, "multi": 0.1}
ROUNDING = 3e-3


class World:
    """Documents with all fields, an index of them, and their exact scores."""

    def __init__(self, make_index, random, **sparse):
        self.random = random
        self.ids = [f"d{i}" for i in range(N)]
        self.rows = ragged_docs(random, N, DIM)
        self.dense = random.normal(size=(N, DENSE_DIM))
        self.sparse = [self.terms(8) for _ in range(N)]
        config = weft.IndexConfig(
            dim=DIM, dense=weft.DenseConfig(DENSE_DIM), sparse=weft.SparseConfig(**sparse)
        )
        self.index = make_index(config=config)
        half = N // 2
        for part in (slice(half), slice(half, N)):
            self.index.add(
                self.ids[part],
                self.rows[part],
                dense=self.dense[part],
                sparse=self.sparse[part],
                metadata=[{"even": i % 2 == 0} for i in range(N)][part],
            )

    def terms(self, n):
        chosen = self.random.choice(N_TERMS, n, replace=False).tolist()
        return {term: float(np.float32(self.random.random() + 0.01)) for term in chosen}

    def query(self):
        return {
            "multi": unit_rows(self.random, 3, DIM),
            "dense": self.random.normal(size=DENSE_DIM),
            "sparse": self.terms(5),
        }

    def exact(self, query):
        """Field -> id -> score, by the definition; of multi the mean."""
        found = {"multi": {}, "dense": {}, "sparse": {}}
        vector = query["dense"] / np.linalg.norm(query["dense"])
        for i, doc_id in enumerate(self.ids):
            score = maxsim(query["multi"].astype(np.float64), self.rows[i].astype(np.float64))
            found["multi"][doc_id] = float(score) / len(query["multi"])
            unit = self.dense[i] / np.linalg.norm(self.dense[i])
            found["dense"][doc_id] = float(vector @ unit)
            found["sparse"][doc_id] = sum(
                weight * self.sparse[i].get(term, 0.0) for term, weight in query["sparse"].items()
            )
        return found


@pytest.fixture
def world(make_index, rng):
    return World(make_index, rng)


def first(scores, depth):
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return [doc_id for doc_id, score in ranked[:depth] if score != 0]


def close_ranking(hits, expected):
    """The same documents in the same order, but for scores that rounding cannot tell apart."""
    ranked = sorted(expected.items(), key=lambda item: (-item[1], item[0]))
    for hit, (_, score) in zip(hits, ranked, strict=False):
        assert hit.score == pytest.approx(expected[hit.id], abs=ROUNDING)
        assert hit.score == pytest.approx(score, abs=ROUNDING)


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("missing", ["rescore", "zero"])
def test_weighted(world, divide, missing):
    """Every candidate's score is the loop's; and the depth is what each field is asked for."""
    rule = weft.Weighted(WEIGHTS, divide=divide, missing=missing, depth=20)
    hybrid = weft.HybridSearcher(world.index.searcher(), rule)
    n_absent = 0
    for _ in range(10):
        query = world.query()
        exact = world.exact(query)
        hits = hybrid.search(query, 20)
        lists = {
            "multi": world.index.search(query["multi"], 20).ids,
            "dense": world.index.searcher().dense.search(query["dense"], 20).ids,
            "sparse": world.index.searcher().sparse.search(query["sparse"], 20).ids,
        }
        for name in lists:  # where rounding decides it, either may be in
            least = exact[name][first(exact[name], 20)[-1]]
            assert all(exact[name][doc_id] >= least - ROUNDING for doc_id in lists[name])
        expected = {}
        for doc_id in {doc_id for found in lists.values() for doc_id in found}:
            total = 0.0
            for name, weight in WEIGHTS.items():
                if missing == "rescore" or doc_id in lists[name]:
                    total += weight * exact[name][doc_id]
                else:
                    n_absent += 1
            expected[doc_id] = total / sum(WEIGHTS.values()) if divide else total
        close_ranking(hits, expected)
        assert len(hits) == 20
        for hit in hits:
            names = {n for n in lists if missing == "rescore" or hit.id in lists[n]}
            assert set(hit.scores) == names
            for name in names:
                assert hit.scores[name] == pytest.approx(exact[name][hit.id], abs=ROUNDING)
    assert (n_absent > 0) == (missing == "zero")


def test_reciprocal_rank(world):
    hybrid = weft.HybridSearcher(world.index.searcher())
    query = world.query()
    searcher = world.index.searcher()
    lists = [
        searcher.search(query["multi"], 100).ids,
        searcher.dense.search(query["dense"], 100).ids,
        searcher.sparse.search(query["sparse"], 100).ids,
    ]
    expected = {}
    for ids in lists:
        for place, doc_id in enumerate(ids):
            expected[doc_id] = expected.get(doc_id, 0.0) + 1 / (61 + place)
    hits = hybrid.search(query, 30)
    ranked = sorted(expected, key=lambda doc_id: (-expected[doc_id], doc_id))
    assert [hit.score for hit in hits] == pytest.approx([expected[i] for i in ranked[:30]])
    assert set(hits.ids[:5]) <= set(ranked[:8])


def test_rerank(world):
    rule = weft.Rerank("dense", {"multi": 1.0}, depth=12)
    hybrid = weft.HybridSearcher(world.index.searcher(), rule)
    query = world.query()
    exact = world.exact(query)
    hits = hybrid.search({name: query[name] for name in ("dense", "multi")}, 12)
    candidates = world.index.searcher().dense.search(query["dense"], 12).ids
    assert set(hits.ids) == set(candidates)
    close_ranking(hits, {doc_id: exact["multi"][doc_id] for doc_id in candidates})


def test_filters_hold_in_every_field(world):
    hybrid = weft.HybridSearcher(world.index.searcher(), weft.Weighted(WEIGHTS))
    hits = hybrid.search(world.query(), 50, where={"even": True})
    assert len(hits) == 50
    assert all(int(hit.id[1:]) % 2 == 0 for hit in hits)
    assert hits.n_matching == N // 2
    hits = hybrid.search(world.query(), 50, allow=["d3", "d4", "unknown"])
    assert set(hits.ids) == {"d3", "d4"}


def test_allowed_ids_may_come_once(world):
    """Whatever gives them is walked over once, and every field and every query gets them all."""
    searcher = world.index.searcher()
    query, ids = world.query(), world.ids[40:49]
    hits = weft.HybridSearcher(searcher).search(query, N, allow=iter(ids))
    assert set(hits.ids) == set(ids)
    exact = world.exact(query)
    for hit in hits:
        expected = {name: exact[name][hit.id] for name in exact if exact[name][hit.id] != 0}
        assert hit.scores == pytest.approx(expected, abs=ROUNDING)
    for found in searcher.dense.search_batch(world.dense[:2], N, allow=iter(ids)):
        assert set(found.ids) == set(ids)


def test_impacts_are_fused_as_scores(make_index, rng):
    """The research scripts' way: integers, divided by 10,000, absent ones 0, not divided."""
    world = World(make_index, rng, impacts=True)
    rule = weft.Weighted({"dense": 1.0, "sparse": 0.3}, divide=False, missing="zero", depth=10)
    hybrid = weft.HybridSearcher(world.index.searcher(), rule)
    query = world.query()
    hits = hybrid.search({name: query[name] for name in ("dense", "sparse")}, 20)
    n_sparse = 0
    for hit in hits:
        if "sparse" in hit.scores:
            i = int(hit.id[1:])
            total = 0
            for term, weight in query["sparse"].items():
                if term in world.sparse[i]:
                    total += math.ceil(100 * weight) * math.ceil(100 * world.sparse[i][term])
            assert hit.scores["sparse"] == total / 10_000
            n_sparse += 1
        parts = {"dense": 1.0, "sparse": 0.3}
        total = sum(parts[name] * score for name, score in hit.scores.items())
        assert hit.score == pytest.approx(total, rel=1e-12)
    assert n_sparse >= 5


def test_a_document_without_a_field_scores_nothing_there(make_index, rng):
    index = make_index(config=weft.IndexConfig(dim=4, dense=weft.DenseConfig(3)))
    index.add(["both"], [np.eye(4)[:1]], dense=[[1.0, 0, 0]])
    index.add(["dense"], dense=[[1.0, 0, 0]])
    index.add(["multi"], [np.eye(4)[:1]])
    rule = weft.Weighted({"multi": 1.0, "dense": 3.0})
    hits = weft.HybridSearcher(index.searcher(), rule).search(
        {"multi": np.eye(4)[:1], "dense": [1.0, 0, 0]}
    )
    assert [(hit.id, hit.score) for hit in hits] == [
        ("both", 1.0),
        ("dense", 0.75),
        ("multi", 0.25),
    ]
    assert hits[1].scores == {"multi": 0.0, "dense": 1.0}


def test_inner_products(make_index, rng):
    """One dimension more makes unit vectors of them: the order is exact, the scores are plain."""
    dense = rng.normal(size=(80, 16)) * rng.uniform(0.1, 2.0, (80, 1))
    largest = float(np.linalg.norm(dense, axis=1).max())
    config = weft.DenseConfig(16, max_norm=largest)
    index = make_index(config=weft.IndexConfig(dense=config))
    ids = [f"d{i}" for i in range(80)]
    index.add(ids, dense=dense)
    searcher = index.searcher().dense
    n_moved = 0
    for _ in range(10):
        query = rng.normal(size=16)
        products = dense @ query
        hits = searcher.search(query, 80)
        tolerance = 2e-3 * largest * np.linalg.norm(query)
        assert [hit.score for hit in hits] == pytest.approx(sorted(products)[::-1], abs=tolerance)
        assert searcher.score(query, ids) == pytest.approx(products, abs=tolerance)
        cosines = products / np.linalg.norm(dense, axis=1)
        n_moved += ids[int(products.argmax())] != ids[int(cosines.argmax())]
    assert n_moved > 0  # it is not the cosine
    message = r"document 'long': dense vector of length .*, expected at most max_norm="
    with pytest.raises(errors.InvalidArgumentError, match=message):
        index.add(["short", "long"], dense=np.stack([dense[0], 30 * dense[1]]))
    assert len(index) == 80
    index.add(["none"], dense=np.zeros((1, 16)))  # a product of 0 is a score like any other
    assert index.searcher().dense.score(np.ones(16), ["none"])[0] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.ones((2, 4)), "dense: found 2 vectors, expected 1"),
        (np.ones((1, 5)), "dense: dim 5, expected 4"),
        ([[1.0, 2.0]], r"document 'a': dense vector of shape \(2,\), expected \(4,\)"),
        ([{}], "document 'a': dense vector of shape"),
        (5, "dense: found int, expected an array"),
        ("a", "dense: found str, expected an array"),
        (np.zeros((1, 4)), "document 'a': dense vector all zero"),
        (np.full((1, 4), np.nan), "document 'a': dense vector NaN or infinite"),
        ([None, None], "dense: found 2 vectors, expected 1"),
    ],
)
def test_what_is_no_dense_vector(make_index, given, message):
    index = make_index(config=weft.IndexConfig(dense=weft.DenseConfig(4)))
    with pytest.raises(errors.InvalidArgumentError, match=message):
        index.add(["a"], dense=given)
    assert len(index) == 0


def test_queries_that_cannot_be(world):
    hybrid = weft.HybridSearcher(world.index.searcher(), weft.Weighted(WEIGHTS))
    query = world.query()
    for given, message in (
        ({"dense": query["dense"]}, "expected one for each field of the query, dense"),
        (query | {"colbert": 1}, "field 'colbert': expected one of multi, dense, sparse"),
        ({}, "query: found dict, expected a mapping"),
        (query | {"dense": [1.0]}, "dense query: dim 1, expected 12"),
        (query | {"dense": [0.0] * 12}, "dense query, row 0: all zero"),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            hybrid.search(given)
    with pytest.raises(errors.InvalidArgumentError, match=r"fusion='rrf': expected weft\.Weighted"):
        weft.HybridSearcher(world.index.searcher(), "rrf")


class Encoder(FakeEncoder):
    """All fields from the words of a text: embeddings, their sum, and how often each comes."""

    def __init__(self, lacks=(), **more):
        super().__init__(**more)
        self.lacks = lacks
        self.n_passes = 0

    def fields(self, multi, text):
        words = text.split()
        rows = np.concatenate([one.values for one in multi])
        made = {
            "multi": multi,
            "dense": rows.sum(axis=0),
            "sparse": {sum(w.encode()) * 32 + len(w): float(words.count(w)) for w in words},
        }
        return FieldEmbeddings(**{n: value for n, value in made.items() if n not in self.lacks})

    def encode_queries(self, texts):
        self.n_passes += 1
        found = super().encode_queries(texts)
        return [self.fields([one], text) for one, text in zip(found, texts, strict=True)]

    def encode_documents(self, texts):
        self.n_passes += 1
        found = super().encode_documents(texts)
        return [self.fields(windows, text) for windows, text in zip(found, texts, strict=True)]


TEXTS = {
    "tea": "green tea should steep for three minutes",
    "key": "rotate the signing key with the admin tool",
    "mix": "green key",
    "long": " ".join(f"word{i}" for i in range(30)) + " green",
}


@pytest.mark.parametrize("fields", [None, ["dense"], ["sparse"], ["multi", "sparse"]])
def test_retriever(make_index, fields):
    encoder = Encoder(window=10)
    config = weft.IndexConfig(dim=16, dense=weft.DenseConfig(16), sparse=weft.SparseConfig())
    path = make_index().path.with_name("texts.index")
    index = weft.Index.create(path, config, encoder=encoder)
    retriever = weft.HybridRetriever(index, encoder, fields=fields)
    documents = [weft.Document(i, text, {"n": len(i)}) for i, text in TEXTS.items()]
    assert retriever.add(documents) == len(retriever) == 4
    assert encoder.n_passes == 1
    hits = retriever.search("green tea", k=2)
    assert encoder.n_passes == 2
    assert hits[0].id == "tea"
    assert (hits[0].text, hits[0].metadata) == (TEXTS["tea"], {"n": 3})
    assert set(hits[0].scores) == set(fields or ("multi", "dense", "sparse"))
    assert "encode" in hits.timings_ms
    assert retriever.search("green tea", where={"n": 4}).ids == ("long",)
    assert retriever.delete(["tea"]) == 1
    assert retriever.upsert([weft.Document("key", "green tea")]) == 1
    assert retriever.search("green tea", k=1).ids == ("key",)
    again = weft.HybridRetriever(weft.Index.open(path), encoder, fields=fields)
    assert again.search("green tea", k=1).ids == ("key",)


@pytest.mark.parametrize("emptied", [False, True])
def test_an_empty_index_takes_all_fields_once_it_is_opened_again(make_index, emptied):
    encoder = Encoder()
    config = weft.IndexConfig(dim=16, dense=weft.DenseConfig(16))
    path = make_index().path.with_name("texts.index")
    retriever = weft.HybridRetriever(weft.Index.create(path, config, encoder=encoder), encoder)
    if emptied:
        retriever.add([weft.Document("old", "one two")])
        retriever.delete(["old"])
    again = weft.HybridRetriever.open(path, encoder=encoder)
    assert again.fields == ("multi", "dense")
    again.add([weft.Document("a", "one two three")])
    assert again.index.info.n_tokens == len(
        encoder.encode_documents(["one two three"])[0].multi[0].values
    )


def test_fields_of_an_index_that_is_opened(make_index):
    encoder = Encoder()
    config = weft.IndexConfig(dim=16, dense=weft.DenseConfig(16), sparse=weft.SparseConfig())
    path = make_index().path.with_name("texts.index")
    weft.Index.create(path, config, encoder=encoder)
    some = weft.HybridRetriever.open(path, encoder=encoder, fields=["sparse", "dense"])
    assert some.fields == ("dense", "sparse")
    some.add([weft.Document("a", "one two three")])
    assert weft.HybridRetriever.open(path, encoder=encoder).fields == ("dense", "sparse")


@pytest.mark.parametrize("again", [["multi", "sparse"], ["dense"], None])
def test_what_an_interruption_left_has_the_fields_asked_for(make_index, monkeypatch, again):
    monkeypatch.setattr("weft.encoding.BATCH_DOCUMENTS", 2)
    encoder = Encoder()
    config = weft.IndexConfig(dim=16, dense=weft.DenseConfig(16), sparse=weft.SparseConfig())
    path = make_index().path.with_name("texts.index")
    weft.Index.create(path, config, encoder=encoder)
    documents = [weft.Document(i, text) for i, text in TEXTS.items()]

    def interrupted():
        yield from documents
        yield weft.Document("none")  # a text is missing

    for fields in (["sparse", "dense"], again):
        retriever = weft.HybridRetriever(weft.Index.open(path), encoder, fields=fields)
        with pytest.raises(errors.InvalidArgumentError, match="no text"):
            retriever.add(interrupted(), resume=True)
    assert retriever.add(documents, resume=True) == 4
    searcher = weft.Index.open(path).searcher()
    query = encoder.encode_queries(["green"])[0]
    assert np.isfinite(searcher.score(query.multi[0].values, ["tea"])).all() == (
        "multi" in retriever.fields
    )
    assert np.isfinite(searcher.dense.score(query.dense, ["tea"])).all() == (
        "dense" in retriever.fields
    )
    assert (searcher.sparse.score(query.sparse, ["tea"])[0] > 0) == ("sparse" in retriever.fields)


def test_an_answer_is_of_one_generation(make_index):
    """A document that goes while a query is answered is found with its text."""
    config = weft.IndexConfig(dim=16, sparse=weft.SparseConfig())
    path = make_index().path.with_name("texts.index")
    encoder = Encoder()
    index = weft.Index.create(path, config, encoder=encoder)
    retriever = weft.HybridRetriever(index, encoder)
    retriever.add([weft.Document("a", "one two")])

    def allowed():
        index.delete(["a"])
        yield "a"

    assert retriever.search("one", allow=allowed())[0].text == "one two"
    assert len(index) == 0


def test_retriever_refuses(make_index):
    encoder = Encoder()
    config = weft.IndexConfig(dim=16, sparse=weft.SparseConfig())
    path = make_index().path.with_name("texts.index")
    index = weft.Index.create(path, config, encoder=encoder)
    with pytest.raises(errors.InvalidArgumentError, match="expected some of multi, sparse"):
        weft.HybridRetriever(index, encoder, fields=["dense"])
    with pytest.raises(errors.IncompatibleIndexError, match="fingerprint is 'fake-8'"):
        weft.HybridRetriever(index, Encoder(dim=8))
    with pytest.raises(errors.IncompatibleIndexError, match="the index knows no encoder"):
        weft.HybridRetriever(make_index(), encoder)
    retriever = weft.HybridRetriever(index, Encoder(lacks=["sparse"]))
    retriever.add([weft.Document("a", "one two")])
    with pytest.raises(errors.InvalidArgumentError, match="nothing of it for the field 'sparse'"):
        retriever.search("one")
    with pytest.raises(errors.InvalidArgumentError, match="document 'b': no text"):
        retriever.add([weft.Document("b")])
