# SPDX-License-Identifier: Apache-2.0
"""The drop-in classes have the shapes of their models, and answer as the definition says."""

from datetime import date

import numpy as np
import pytest
import torch

import weft
from foreign_folders import Quantised, write_id_maps, write_npy_folder
from helpers import assert_ranking, exact, names, ragged_docs, stored
from weft import errors
from weft.integrations.fast_plaid import COUNTER, FastPlaid
from weft.integrations.pylate import PLAID
from weft.integrations.shapes import CompatibilityWarning

DIM = 16


@pytest.fixture
def docs(rng):
    return ragged_docs(rng, 30, DIM)


@pytest.fixture
def asked(rng):
    return [doc[:4] for doc in ragged_docs(rng, 3, DIM, shortest=4)]


def assert_answers(answers, queries, docs, ids, k=5):
    """Compare lists of (id, score) with the definition."""
    assert isinstance(answers, list)
    for answer, query in zip(answers, queries, strict=True):
        assert isinstance(answer, list)
        assert len(answer) == min(k, len(ids))
        hits = [weft.Hit(doc_id, score) for doc_id, score in answer]
        assert_ranking(hits, exact(query, docs, ids))


def pairs(answers):
    assert all(set(hit) == {"id", "score"} for answer in answers for hit in answer)
    return [[(hit["id"], hit["score"]) for hit in answer] for answer in answers]


def numbered(answers):
    assert all(type(number) is int for answer in answers for number, _ in answer)
    return [[(str(number), score) for number, score in answer] for answer in answers]


class TestPlaid:
    @pytest.fixture
    def make(self, tmp_path):
        return lambda **more: PLAID(index_folder=str(tmp_path), index_name="notes", **more)

    def test_its_life(self, make, docs, asked):
        ids = [f"d{i}" for i in range(30)]
        index = make()
        assert index.is_end_to_end_index
        assert index.add_documents(documents_ids=ids[:20], documents_embeddings=docs[:20]) is index
        assert index.add_documents(ids[20:], [torch.from_numpy(doc) for doc in docs[20:]]) is index
        assert_answers(pairs(index(asked, k=5)), asked, docs, ids)
        assert index.remove_documents(["d3", "d4", "nobody"]) is index
        left = [i for i in range(30) if i not in (3, 4)]
        index.update_documents(["d5"], [docs[3]])  # it is replaced, the number of documents stays
        now = [docs[3] if i == 5 else docs[i] for i in left]
        again = make()
        for found in (index, again):
            answers = pairs(found(queries_embeddings=asked, k=40))
            assert_answers(answers, asked, now, [ids[i] for i in left], k=40)
        ((rows,), (first, second)) = again.get_documents_embeddings([["d5"], ["d0", "d1"]])
        for row, doc in ((rows, docs[3]), (first, docs[0]), (second, docs[1])):
            assert (row.dtype, row.shape) == (np.float32, doc.shape)
            assert np.abs(row - doc).max() < 1e-3
        with pytest.raises(errors.NotFoundError, match="d3"):
            again.get_documents_embeddings([["d3"]])

    def test_shapes_of_embeddings(self, make, docs, asked):
        long = [doc for doc in docs if len(doc) >= 5]
        index = make().add_documents(["a", "b"], np.stack([long[0][:5], long[1][:5]]))
        index.add_documents("c", torch.from_numpy(long[2]).requires_grad_())
        index.add_documents(["d"], [torch.from_numpy(long[3]).to(torch.bfloat16)])
        kept = [long[0][:5], long[1][:5], long[2]]
        padded = np.zeros((3, 9, DIM), np.float32)
        padded[:, :4] = asked
        for given in (np.stack(asked), torch.from_numpy(padded), list(padded), asked):
            answers = pairs(index(given, subset=["a", "b", "c"]))
            assert_answers(answers, asked, kept, ["a", "b", "c"])
        assert len(index(asked[0])) == 1  # one matrix is one query

    def test_subsets(self, make, docs, asked):
        ids = [f"d{i}" for i in range(30)]
        index = make().add_documents(ids, docs)
        answers = pairs(index(asked, subset=["d7", "d8", "nobody"]))
        assert_answers(answers, asked, docs[7:9], ids[7:9])
        different = [["d1"], [], ["d2", "d3"]]
        assert [len(answer) for answer in index(asked, subset=different)] == [1, 0, 2]
        assert index(asked, subset=[]) == [[], [], []]
        with pytest.raises(
            errors.InvalidArgumentError, match="2 lists, expected one for each of 3"
        ):
            index(asked, subset=[["d1"], ["d2"]])

    def test_override(self, make, docs, tmp_path):
        make(nbits=8).add_documents(["a"], docs[:1])
        assert weft.Index.open(tmp_path / "notes").config.nbits == 8
        index = make(override=True, kmeans_niters=3, seed=7)
        with pytest.raises(ValueError, match="no documents there yet"):
            index(docs[:1])
        index.add_documents(["b"], docs[1:2])
        config = weft.Index.open(tmp_path / "notes").config
        assert (config.nbits, config.kmeans_iterations, config.seed) == (4, 3, 7)
        assert [hit["id"] for hit in index(docs[:1])[0]] == ["b"]
        with weft.Index.open(tmp_path / "notes").writer(), pytest.raises(errors.IndexLockedError):
            make(override=True)

    def test_search_knobs_warn_where_they_are_used(self, make, docs, asked):
        make().add_documents(["a"], docs[:1])
        with pytest.warns(CompatibilityWarning, match="nprobe and ncandidates") as caught:
            assert len(make(n_ivf_probe=4, n_full_scores=16)(asked, k=3)) == 3
        assert [warning.filename for warning in caught] == [__file__]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"use_fast": False}, "use_fast=False: means nothing in weft"),
            ({"batch_size": 7}, "batch_size=7"),
            ({"n_samples_kmeans": 100}, "n_samples_kmeans=100"),
            ({"device": "cuda"}, "cuda"),
            ({"device": ["cpu", "cpu"]}, "device"),
        ],
    )
    def test_nothing_is_ignored(self, make, given, message):
        with pytest.raises(errors.WeftError, match=message):
            make(**given)

    def test_ids_are_strings(self, make, docs):
        with pytest.raises(errors.InvalidArgumentError, match=r"use str\(id\)"):
            make().add_documents([1], docs[:1])

    def test_an_index_of_pylate_is_left_alone(self, make, docs, tmp_path):
        write_npy_folder(tmp_path / "notes" / "fast_plaid_index", Quantised(docs, 4))
        write_id_maps(tmp_path / "notes", {i: f"d{i}" for i in range(30)})
        for override in (False, True):
            with pytest.raises(
                errors.InvalidArgumentError, match=r"weft import NEW\.index .*notes"
            ):
                make(override=override)
        weft.import_index(tmp_path / "new", tmp_path / "notes")
        taken = PLAID(index_folder=str(tmp_path), index_name="new")
        assert taken(docs[7:8], k=1)[0][0]["id"] == "d7"


class TestFastPlaid:
    @pytest.fixture
    def make(self, tmp_path):
        return lambda **more: FastPlaid(index=str(tmp_path / "plaid"), **more)

    def test_its_life(self, make, docs, asked, tmp_path):
        tensors = [torch.from_numpy(doc) for doc in docs]
        with make(device="cpu") as index:
            assert index.create(documents_embeddings=tensors[:20]) is index
            assert index.update(documents_embeddings=tensors[20:]) is index
            ids = [str(i) for i in range(30)]
            answers = index.search(torch.from_numpy(np.stack(asked)), top_k=5, show_progress=False)
            assert_answers(numbered(answers), asked, docs, ids)
        with pytest.warns(CompatibilityWarning, match="none moves up") as caught:
            assert index.delete([3, 29, 77]) is index
        assert [warning.filename for warning in caught] == [__file__]
        index.update(tensors[:1])  # 29 does not come back
        left = [i for i in range(29) if i != 3]
        now, ids = [*(docs[i] for i in left), docs[0]], [*map(str, left), "30"]
        for found in (index, make()):
            assert_answers(numbered(found.search(asked, top_k=40)), asked, now, ids, k=40)
        assert names(tmp_path) == ["plaid"]

    def test_create_takes_the_place_of_an_index(self, make, docs, asked, tmp_path):
        index = make().create(docs[:20])
        index.create(docs[20:], nbits=2, kmeans_niters=6)
        config = weft.Index.open(tmp_path / "plaid").config
        assert (config.nbits, config.kmeans_iterations) == (2, 6)
        ids = [str(i) for i in range(10)]
        assert_answers(numbered(index.search(asked)), asked, docs[20:], ids, k=10)
        with pytest.raises(errors.InvalidArgumentError, match="document '1'"):
            index.create([docs[0], np.full((2, DIM), np.nan)])
        assert_answers(numbered(make().search(asked)), asked, docs[20:], ids, k=10)

    def test_create_after_one_that_was_interrupted(self, make, docs, tmp_path):
        index = make().create(docs[:2])
        for name in ("creating", "replaced"):
            (tmp_path / f"plaid.{name}").mkdir()
            (tmp_path / f"plaid.{name}" / "part").write_text("")
        index.create(docs[:3])
        assert len(index.get_embeddings([0, 1, 2])) == 3
        assert names(tmp_path) == ["plaid"]

    def test_subsets(self, make, docs, asked):
        index = make().create(docs)
        answers = numbered(index.search(asked, subset=[7, 8, 99]))
        assert_answers(answers, asked, docs[7:9], ["7", "8"])
        found = index.search(asked, subset=[[1], [], [2, 3]], n_processes=2, batch_size=2_000)
        assert [len(answer) for answer in found] == [1, 0, 2]
        assert index.search(asked, subset=[]) == [[], [], []]

    def test_rows_and_token_scores(self, make, docs, asked):
        index = make().create(docs)
        first, second = index.get_embeddings([4, 2])
        assert np.abs(first.numpy() - docs[4]).max() < 1e-3
        assert np.abs(second.numpy() - docs[2]).max() < 1e-3
        padded = np.concatenate([asked[0], np.zeros((3, DIM), np.float32)])
        ((number, score, table), *_), = index.search_token_scores([padded], top_k=3)  # fmt: skip
        assert table.shape == (4, len(docs[number]))
        expected = asked[0].astype(np.float64) @ stored(docs)[number].T
        assert np.abs(table.numpy() - expected).max() < 1e-3
        assert score == pytest.approx(float(table.max(dim=1).values.sum()), abs=1e-3)
        with pytest.raises(errors.NotFoundError, match="'30'"):
            index.get_embeddings([30])

    def test_metadata(self, make, docs, asked):
        fields = [{"day": date(2020, 5, 1 + i), "name": None, "n": i} for i in range(30)]
        index = make().create(docs[:20], metadata=fields[:20])
        index.update(docs[20:], metadata=fields[20:])
        found = weft.Index.open(index.index)
        assert dict(found.documents(["25"])[0].metadata) == {"day": "2020-05-26", "n": 25}
        where = {"day": {"$gte": "2020-05-26"}}
        assert sorted(found.search(asked[0], where=where).ids) == [str(i) for i in range(25, 30)]

    def test_an_imported_index_goes_on(self, make, docs, tmp_path):
        folder = write_npy_folder(tmp_path / "plaid", Quantised(docs, 4))
        with pytest.raises(errors.InvalidArgumentError, match=r"weft import NEW\.index .*plaid"):
            make()
        weft.import_index(tmp_path / "new", folder)
        index = FastPlaid(index=str(tmp_path / "new"))
        index.update(docs[:1])
        best, second = index.search(docs[:1], top_k=2)[0]
        assert {best[0], second[0]} == {0, 30}

    def test_names_that_are_no_numbers(self, tmp_path, docs):
        index = weft.Index.create(tmp_path / "plaid", weft.IndexConfig(dim=DIM))
        index.add(["a"], docs[:1])
        found = FastPlaid(index=str(tmp_path / "plaid"))
        for call in (lambda: found.search(docs[:1]), lambda: found.update(docs[:1])):
            with pytest.raises(errors.InvalidArgumentError, match="id 'a': expected a number"):
                call()

    def test_refusals(self, make, docs, asked):
        with pytest.raises(errors.NotFoundError, match=r"create\(\) makes one"):
            make().search(asked)
        for given in ({"index_memory_fraction": 0.5}, {"device": "cuda:0"}):
            with pytest.raises(errors.WeftError, match=r'expected "cpu"|means nothing'):
                make(**given)
        for given in ({"compress_only": True}, {"n_samples_kmeans": 9}, {"batch_size": 9}):
            with pytest.raises(errors.InvalidArgumentError, match="means nothing in weft"):
                make().create(docs, **given)
        with pytest.raises(errors.InvalidArgumentError, match="none, expected at least one"):
            make().create([])
        with pytest.raises(errors.InvalidArgumentError, match="subset=-1"):
            make().create(docs).get_embeddings([-1])

    def test_the_number_that_comes_next_is_no_document(self, make, docs, asked):
        index = make().create(docs[:3])
        assert len(index.search(asked[:1], top_k=10)[0]) == 3
        assert weft.Index.open(index.index).documents([COUNTER])[0].metadata["next"] == 3


def test_a_large_index_is_searched_at_its_operating_point(small_codec, rng, tmp_path, asked):
    docs = ragged_docs(rng, 200, DIM)
    index = PLAID(index_folder=str(tmp_path), index_name="notes")
    index.add_documents([f"d{i}" for i in range(200)], docs)
    searcher = weft.Index.open(tmp_path / "notes").searcher()
    for query, answer in zip(asked, index(asked, k=10), strict=True):
        hits = searcher.search(query, 10)
        assert [(hit["id"], hit["score"]) for hit in answer] == [(h.id, h.score) for h in hits]
