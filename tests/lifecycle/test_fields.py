# SPDX-License-Identifier: Apache-2.0
"""Three fields in one index: whatever is done to it, each answers as plain loops over a dict do."""

import shutil

import numpy as np
import pytest

import weft
from faults import Disk, FaultyDirectory, PowerCutDirectory
from helpers import assert_ranking, names, ragged_docs, run, unit_rows
from reference import maxsim
from weft import errors
from weft.lifecycle.manifest import load
from weft.writer import Writer

DIM, DENSE_DIM, N_TERMS = 8, 16, 40
CONFIG = weft.IndexConfig(
    dim=DIM, dense=weft.DenseConfig(dim=DENSE_DIM), sparse=weft.SparseConfig()
)


class Model:
    """What an index must be: id -> (token embeddings, dense vector, sparse vector, metadata)."""

    def __init__(self, random):
        self.random = random
        self.documents = {}

    def make(self, n):
        """Documents, some of which lack one field or another."""
        rows = ragged_docs(self.random, n, DIM, shortest=0, longest=5)
        dense = [
            None if self.random.random() < 0.1 else self.random.normal(size=DENSE_DIM)
            for _ in range(n)
        ]
        sparse = [
            {
                int(term): float(np.float32(self.random.random() + 0.01))
                for term in self.random.choice(N_TERMS, self.random.integers(0, 12), replace=False)
            }
            for _ in range(n)
        ]
        metadata = [{"n": int(self.random.integers(10))} for _ in range(n)]
        return rows, dense, sparse, metadata

    def put(self, write, ids):
        rows, dense, sparse, metadata = self.make(len(ids))
        write(ids, rows, dense=dense, sparse=sparse, metadata=metadata)
        for doc_id, *document in zip(ids, rows, dense, sparse, metadata, strict=True):
            self.documents[doc_id] = document

    def drop(self, delete, ids):
        delete(ids)
        for doc_id in ids:
            self.documents.pop(doc_id, None)

    def scores(self, name, query, keep=lambda _: True):
        """{id: score} by the definition, of the documents that can be found."""
        found = {}
        for doc_id, (rows, dense, sparse, metadata) in self.documents.items():
            if not keep(metadata):
                continue
            if name == "multi" and len(rows):
                found[doc_id] = float(maxsim(query, rows.astype(np.float64)))
            if name == "dense" and dense is not None:
                lengths = np.linalg.norm(query) * np.linalg.norm(dense)
                found[doc_id] = float(np.dot(query, dense) / lengths)
            if name == "sparse":
                score = sum(weight * sparse.get(term, 0.0) for term, weight in query.items())
                if score > 0:
                    found[doc_id] = score
        return found


def ranked(scores):
    return sorted(scores.items(), key=lambda item: (-item[1], item[0].encode()))


def check(index, model, rounding=2e-3):
    """Every field gives what the model says, filtered and not, and knows the exact scores."""
    assert index.verify(deep=True) == ()
    assert len(index) == len(model.documents)
    searcher, random = index.searcher(), model.random
    legs = {"multi": searcher, "dense": searcher.dense, "sparse": searcher.sparse}
    queries = {
        "multi": unit_rows(random, 2, DIM),
        "dense": random.normal(size=DENSE_DIM),
        "sparse": {int(term): 1.0 + float(term) / 7 for term in random.choice(N_TERMS, 5)},
    }
    tolerances = {"multi": 2 * rounding, "dense": rounding, "sparse": 1e-6}
    for name, leg in legs.items():
        query = queries[name]
        for where in (None, {"n": {"$gte": 5}}):

            def keep(metadata, where=where):
                return where is None or metadata["n"] >= 5

            expected = model.scores(name, query, keep)
            if where is not None and not any(keep(d[3]) for d in model.documents.values()):
                continue
            hits = leg.search(query, 1_000, where=where)
            assert {hit.id for hit in hits} == set(expected)
            for hit in hits:
                assert hit.score == pytest.approx(expected[hit.id], abs=tolerances[name])
            if name == "sparse":
                assert list(hits.ids) == [doc_id for doc_id, _ in ranked(expected)]
                assert leg.search(query, 3, where=where).ids == hits.ids[:3]
            else:
                assert hits.n_matching == len(expected)
        if model.documents:
            ids = sorted(model.documents)
            expected = model.scores(name, query)
            for doc_id, score in zip(ids, leg.score(query, ids), strict=True):
                nothing = 0.0 if name == "sparse" else -np.inf
                wanted = expected.get(doc_id, nothing)
                assert score == pytest.approx(wanted, abs=tolerances[name])


@pytest.mark.parametrize("codec", [False, True], ids=["rows", "codec"])
def test_the_life_of_an_index(make_index, request, rng, codec):
    """Add, delete, upsert, compact, retrain, reopen; with a codec from early on, and without."""
    if codec:
        request.getfixturevalue("small_codec")
        request.getfixturevalue("early_dense_codec")
    index = make_index(config=CONFIG)
    model, rounding = Model(rng), 0.01 if codec else 2e-3
    model.put(index.add, [f"a{i}" for i in range(30)])
    check(index, model, rounding)
    with index.writer() as writer:
        model.put(writer.add, [f"b{i}" for i in range(40)])
        model.drop(writer.delete, [f"b{i}" for i in range(3)] + ["a1", "unknown"])
        model.put(writer.upsert, ["a2", "b7", "new"])
    check(index, model, rounding)
    model.put(index.add, [f"c{i}" for i in range(160)])
    check(index, model, rounding)
    model.drop(index.delete, ["c3", "a2", "b9"])
    check(index, model, rounding)
    index.compact()
    check(index, model, rounding)
    model.put(index.upsert, ["c5", "c6", "a9"])
    if codec:
        index.compact(retrain=True)
        assert len(names(index.path, "codec-")) >= 2
    check(weft.Index.open(index.path), model, rounding)
    model.drop(index.delete, list(model.documents))
    check(index, model, rounding)


@pytest.mark.parametrize("field", ["dense", "sparse"])
def test_one_field_alone(make_index, rng, field):
    index = make_index(
        config=weft.IndexConfig(
            dense=weft.DenseConfig(dim=3) if field == "dense" else None,
            sparse=weft.SparseConfig() if field == "sparse" else None,
        )
    )
    given = {"dense": [[3.0, 0, 0], [0, 0.5, 0]], "sparse": [{0: 3.0}, {1: 0.5}]}[field]
    index.add(["a", "b"], **{field: given}, texts=["one", "two"])
    query = {"dense": [0, 1.0, 0], "sparse": {1: 2.0}}[field]
    leg = getattr(index.searcher(), field)
    assert leg.search(query, 1).ids == ("b",)
    assert leg.search(query, 1)[0].score == pytest.approx(1.0)
    assert index.documents(["b"])[0].text == "two"
    assert index.search(np.ones((1, 128))).ids == ()
    index.delete(["b"])
    index.compact()
    assert leg.search(query, 1).ids == ("b",)  # a snapshot stays
    assert "b" not in getattr(index.searcher(), field).search(query, 2).ids


def test_a_field_that_is_not_there(make_index, rng):
    index = make_index(ragged_docs(rng, 3, DIM))
    with pytest.raises(errors.InvalidArgumentError, match="dense: the index has no such field"):
        index.add(["x"], ragged_docs(rng, 1, DIM), dense=[[1.0]])
    with pytest.raises(errors.InvalidArgumentError, match="sparse: the index has no such field"):
        index.add(["x"], ragged_docs(rng, 1, DIM), sparse=[{1: 1.0}])
    with pytest.raises(errors.InvalidArgumentError, match="embeddings: found NoneType"):
        index.add(["x"])
    for field in ("dense", "sparse"):
        with pytest.raises(errors.InvalidArgumentError, match=f'no field "{field}"'):
            getattr(index.searcher(), field)


def everything(writer, random):
    """A commit that adds, replaces, deletes and compacts, in every field."""
    model = Model(random)
    model.put(writer.add, [f"n{i}" for i in range(12)])
    model.put(writer.upsert, ["d1", "n2", "d40"])
    writer.delete(["d3", "n5"])
    writer.compact()


def found_in_all(path):
    """Ids that each field finds, of an index that is whole."""
    index = weft.Index.open(path)
    assert index.verify(deep=True) == ()
    searcher = index.searcher()
    every_term = dict.fromkeys(range(N_TERMS), 1.0)
    return (
        index.generation,
        set(searcher.exact_search(np.ones((1, DIM)), 1_000).ids),
        set(searcher.dense.exact_search(np.ones(DENSE_DIM), 1_000).ids),
        set(searcher.sparse.search(every_term, 1_000).ids),
    )


@pytest.mark.parametrize("codec", [False, True], ids=["rows", "codec"])
@pytest.mark.parametrize("kind", [FaultyDirectory, PowerCutDirectory])
def test_all_fields_are_of_one_generation(make_index, request, tmp_path, kind, codec):
    """Whatever fails, whenever the power goes."""
    if codec:  # this commit is the one that trains it, and so writes everything anew
        request.getfixturevalue("early_dense_codec")
    index = make_index(config=CONFIG)
    model = Model(np.random.default_rng(5))
    model.put(index.add, [f"d{i}" for i in range(60)])
    model.put(index.add, [f"e{i}" for i in range(40 if codec else 4)])
    old = found_in_all(index.path)
    assert all(len(ids) > 40 for ids in old[1:])
    outcomes, n = [], 0
    while True:
        n += 1
        path = shutil.copytree(index.path, tmp_path / f"copy{n}")
        disk = Disk(n)
        directory = kind(path, disk)
        try:
            with Writer(directory, load(directory)) as writer:
                everything(writer, np.random.default_rng(6))
        except errors.StorageError:
            assert disk.failed
        if kind is PowerCutDirectory:
            directory.lose()
        outcomes.append(found_in_all(path))
        shutil.rmtree(path)
        if not disk.failed:
            break
    new = outcomes[-1]
    assert new[0] == old[0] + 1
    assert all(outcome in (old, new) for outcome in outcomes)
    assert outcomes[0] == old
    assert n > 20


def test_every_flipped_byte_is_found(make_index, early_dense_codec, rng):
    index = make_index(config=CONFIG)
    model = Model(rng)
    model.put(index.add, [f"d{i}" for i in range(140)])
    path, query = index.path, np.ones(DENSE_DIM)
    files = [*names(path, "codec-"), *(n for n in names(path, "seg-") if "multi" not in n)]
    assert [name.split(".")[-2] for name in files[1:]] == ["dense", "docs", "sparse"]
    for name in files:
        good = (path / name).read_bytes()
        for at in rng.choice(len(good), 40, replace=False):
            damaged = bytearray(good)
            damaged[at] ^= 1 << int(rng.integers(8))
            (path / name).write_bytes(damaged)
            fresh = weft.Index.open(path)
            assert name in {problem.file for problem in fresh.verify(deep=True)}, f"byte {at}"
            try:
                fresh.searcher().dense.search(query)
                fresh.searcher().sparse.search({1: 1.0, 2: 1.0})
            except errors.WeftError:
                continue
        (path / name).write_bytes(good)
    check(weft.Index.open(path), model, 0.01)


def test_a_first_segment_without_vectors(make_index, early_dense_codec, unmerged, rng):
    """It has no second plane, nor anything else; what the others have is used all the same."""
    index = make_index(config=CONFIG)
    dense = rng.normal(size=(130, DENSE_DIM))
    index.add(["old"], dense=dense[:1])
    index.add([f"d{i}" for i in range(129)], dense=dense[1:])
    with index.writer() as writer:
        writer.delete(["old"])
        writer.add(["new"], sparse=[{1: 1.0}])
    index.delete([f"d{i}" for i in range(129)])
    index.add([f"e{i}" for i in range(129)], dense=dense[1:])
    assert index.info.n_segments == 2
    searcher, query = index.searcher().dense, rng.normal(size=DENSE_DIM)
    hits = searcher.search(query, 129)
    assert list(hits.scores) == searcher.score(query, hits.ids).tolist()
    cosines = dense[1:] @ query / np.linalg.norm(dense[1:], axis=1) / np.linalg.norm(query)
    assert sorted(hits.scores) == pytest.approx(sorted(cosines), abs=0.008)


def dense_scores(vectors, query):
    """{id: cosine} of d0, d1 ..."""
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    return {f"d{i}": float(cosine) for i, cosine in enumerate(cosines)}


def test_the_dense_codec_grows_and_is_trained_anew(make_index, early_dense_codec, unmerged, rng):
    alike = np.concatenate(ragged_docs(rng, 40, DENSE_DIM, shortest=6))
    vectors = np.concatenate([alike[:120], rng.normal(size=(60, DENSE_DIM)), alike[120:220]])
    index = make_index(config=weft.IndexConfig(dense=weft.DenseConfig(dim=DENSE_DIM)))

    def add(first, last):
        index.add([f"d{i}" for i in range(first, last)], dense=vectors[first:last])
        query = rng.normal(size=DENSE_DIM)
        found = index.searcher().dense.exact_search(query, 1_000)
        assert_ranking(found, dense_scores(vectors[:last], query), 0.02)
        assert index.verify(deep=True) == ()
        return load(index._directory)

    first = add(0, 120)
    assert (first.dense.codec.n_tokens, first.dense.codec.n_trained) == (120, 120)
    assert index.info.dense.drift < 0.1
    (segment,) = first.segments
    before = (index.path / segment.field_file("dense")).read_bytes()
    strange = add(120, 180)  # its codec gets more centroids; what was coded stays
    assert strange.dense.codec.n_fine > first.dense.codec.n_fine
    assert strange.dense.codec.n_trained == 120
    assert (index.path / segment.field_file("dense")).read_bytes() == before
    drift = strange.segments[1].dense_drift
    assert drift > 0.15
    info = index.info.dense
    assert info.drift == pytest.approx((120 * segment.dense_drift + 60 * drift) / 180, abs=1e-4)
    assert (info.n_coarse, info.n_fine) == (16, strange.dense.codec.n_fine)
    assert (info.truth, info.operating_points) == ("rows", first.dense.operating_points)
    out = " ".join(run("info", index.path)[1].split())
    assert f"4 bits, rerank plane, 16 coarse and {info.n_fine} fine centroids" in out
    assert f"{info.drift:.1%} of the vectors lie beyond" in out
    assert "dense recall@10" in out

    anew = add(180, 280)  # more than twice 120
    assert (anew.dense.codec.n_trained, anew.dense.codec.n_tokens) == (280, 560)
    assert {s.name for s in anew.segments}.isdisjoint({s.name for s in strange.segments})
    assert anew.dense.tuning.n_tokens == 280
    assert len({s.dense_drift for s in anew.segments}) == 1
    assert index.info.dense.drift < 0.12


@pytest.mark.parametrize("lost", ["dense", "sparse", "codec"])
def test_a_repair_keeps_the_other_fields(make_index, early_dense_codec, rng, lost):
    index = make_index(config=CONFIG)
    model = Model(rng)
    model.put(index.add, [f"d{i}" for i in range(140)])
    model.drop(index.delete, ["d7"])
    pattern = "codec-*" if lost == "codec" else f"*.{lost}.weft"
    (path,) = index.path.glob(pattern)
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    damaged[80] ^= 1
    path.write_bytes(damaged)
    field = "sparse" if lost == "sparse" else "dense"
    losses = {problem.loss for problem in index.verify(deep=True)}
    assert losses == {f"{field} vectors of 139 documents"}
    repair = weft.Index.repair(index.path)
    assert (repair.n_docs, repair.n_lost) == (139, 0)
    for document in model.documents.values():
        if lost == "sparse":
            document[2] = {}
        else:
            document[1] = None
    check(weft.Index.open(index.path), model, 0.01)
    model.put(weft.Index.open(index.path).upsert, [f"d{i}" for i in range(50)])
    check(weft.Index.open(index.path), model, 0.01)
