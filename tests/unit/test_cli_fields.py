# SPDX-License-Identifier: Apache-2.0
"""Indexes of several fields from the command line: build, search, eval, info."""

import json

import pytest

import tiny_fields
import weft
from helpers import run
from weft.evaluation import read_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the model m3, a collection, and the index of all its fields."""
    folder = tmp_path_factory.mktemp("fields")
    tiny_fields.write_m3(folder / "m3")
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{i}", "text": text} for i, text in enumerate(tiny_fields.M3_TEXTS)]
    queries = [{"_id": "q1", "text": "the key"}, {"_id": "q2", "text": "door"}]
    for name, lines in (("corpus", documents), ("queries", queries)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = "query-id\tcorpus-id\tscore\nq1\td0\t1\nq2\td1\t1\n"
    (data / "qrels" / "test.tsv").write_text(judged)
    status, out, err = run(
        "build", folder / "all.index", data, "--model", folder / "m3", "--fields", "all", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["encoded"]["n_texts"] == len(documents)
    return folder


def test_search(made):
    weights = {"multi": 0.5, "dense": 0.3, "sparse": 0.2}
    given = ",".join(f"{name}={weight}" for name, weight in weights.items())
    status, out, err = run("search", made / "all.index", "the key", "--weights", given, "--json")
    assert status == 0, err
    hits = json.loads(out)["hits"]
    assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
    for hit in hits:
        total = sum(weight * hit["scores"][name] for name, weight in weights.items())
        assert hit["score"] == pytest.approx(total)
    status, out, _ = run("search", made / "all.index", "the key")
    assert status == 0
    assert "sparse" in out


def test_eval_has_a_line_for_each_field(made, tmp_path):
    index = made / "all.index"
    status, out, err = run(
        "eval", index, "--data", made / "data", "--json", "--measures", "nDCG@10",
        "--save-runs", tmp_path,
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    fields = ("multi", "dense", "sparse")
    names = [str(index), "exact", *(f"{index} {field}" for field in fields), "bm25"]
    assert [line["name"] for line in found["lines"]] == names
    assert found["lines"][0]["measures"] == found["lines"][1]["measures"]
    assert [found[f"recall@10{leg}"] for leg in ("", " multi", " dense", " sparse")] == [1.0] * 4
    files = ["all", "exact", *(f"all-{field}" for field in fields), "bm25"]
    assert {file.name for file in tmp_path.iterdir()} == {f"{name}.trec" for name in files}
    dense = {query: list(scores) for query, scores in read_run(tmp_path / "all-dense.trec").items()}
    retriever = weft.HybridRetriever.open(index)
    encoded = retriever.encode_queries(["the key", "door"])
    for name, query in zip(("q1", "q2"), encoded, strict=True):
        assert dense[name] == list(retriever.index.searcher().dense.search(query["dense"], 100).ids)


def test_plan_counts_terms(made):
    words = ("plan", made / "data", "--model", made / "m3", "--json", "--fields")
    status, out, err = run(*words, "all")
    assert status == 0, err
    found = json.loads(out)
    fields = weft.encoders.load(str(made / "m3")).all_fields(tiny_fields.M3_TEXTS, "document")
    assert found["n_terms"] == sum(len(one.sparse) for one in fields) > 0
    assert found["n_tokens"] > 0
    status, out, err = run(*words, "dense")
    assert status == 0, err
    assert (json.loads(out)["n_terms"], json.loads(out)["n_tokens"]) == (0, 0)
    assert json.loads(out)["disk_bytes"] < found["disk_bytes"]


def test_info_names_the_fields(made):
    status, out, _ = run("info", made / "all.index")
    assert status == 0
    assert "multi, dense, sparse" in out


def test_fields_of_two_models(made, tmp_path):
    splade = tiny_fields.write_splade(tmp_path / "splade")
    index = tmp_path / "two.index"
    status, _, err = run(
        "build", index, made / "data", "--dense", made / "dense" / "model", "--sparse", splade
    )
    assert status != 0
    assert "no such folder" in " ".join(err.split())
    command = ("build", index, made / "data", "--model", made / "m3", "--option", "mcls=true")
    status, _, err = run(*command, "--fields", "dense,sparse")
    assert status == 0, err
    assert weft.Index.open(index).info.n_tokens == 0
    status, out, err = run("search", index, "the key", "--json")
    assert status == 0, err
    assert set(json.loads(out)["hits"][0]["scores"]) == {"dense", "sparse"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fields", "multi,lexical"], "expected some of multi,dense,sparse, or all"),
        (["--sparse", "MODEL"], "its weights of terms would be random"),
        (["--queries", "QUERIES", "--fields", "all"], "--queries: expected no more fields"),
    ],
)
def test_wrong_builds(made, tmp_path, words, message):
    named = {"MODEL": made / "m3", "QUERIES": made / "data" / "queries.jsonl"}
    words = [named.get(word, word) for word in words]
    status, _, err = run(
        "build", tmp_path / "made.index", made / "data", "--model", made / "m3", *words
    )
    assert status == 3
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("dense", "expected names and numbers, like dense=0.4"),
        ("dense=1", "expected one for each field of the query"),
        ("lexical=1", "field 'lexical': expected one of"),
    ],
)
def test_wrong_weights(made, weights, message):
    status, _, err = run("search", made / "all.index", "the key", "--weights", weights)
    assert status == 3
    assert message in " ".join(err.split())


def test_explain_is_of_token_embeddings_alone(made):
    status, _, err = run("search", made / "all.index", "the key", "--explain")
    assert status == 3
    assert "expected an index of token embeddings alone" in " ".join(err.split())


def test_a_weighted_sum_of_fields_is_a_teacher(made, tmp_path):
    data, index = made / "data", made / "all.index"
    mined = tmp_path / "mined.jsonl"
    words = ("--data", data, "--split", "test", "-n", "1", "--with", index)
    weights = {"multi": 0.5, "dense": 0.3, "sparse": 0.2}
    given = ",".join(f"{name}={weight}" for name, weight in weights.items())
    status, _, err = run("mine", mined, *words, "--weights", given, "--margin", "-10")
    assert status == 0, err
    words = ("distill", mined, tmp_path / "train", "--data", data, "--format", "flagembedding")
    status, _, err = run(*words, "--teacher", index)
    assert status == 3
    assert "--weights" in err
    status, _, err = run(*words, "--teacher", "bm25", "--weights", given)
    assert status == 3
    assert "expected an index as --teacher" in " ".join(err.split())
    status, _, err = run(*words, "--teacher", index, "--weights", given)
    assert status == 0, err
    assert json.loads((tmp_path / "train" / "about.json").read_text())["weights"] == given
    encoder = weft.encoders.load(str(made / "m3"))
    rows = (tmp_path / "train" / "train.jsonl").read_text().splitlines()
    assert len(rows) == 2
    for row in map(json.loads, rows):
        (query,) = encoder.all_fields([row["query"]], "query")
        for side in ("pos", "neg"):
            for found, score in zip(
                encoder.all_fields(row[side], "document"), row[f"{side}_scores"], strict=True
            ):
                similarities = query.multi[0].values @ found.multi[0].values.T
                fields = {
                    "multi": similarities.max(axis=1).mean(),
                    "dense": query.dense @ found.dense,
                    "sparse": sum(w * found.sparse.get(t, 0.0) for t, w in query.sparse.items()),
                }
                expected = sum(weights[name] * value for name, value in fields.items())
                assert score == pytest.approx(expected, abs=2e-3)  # stored in half precision


def test_recall_is_that_of_each_field_and_of_all_together(made, monkeypatch):
    """Searches that miss what they would find first, against exact ones that do not."""
    from weft.field_searchers import DenseSearcher

    search = DenseSearcher.search

    def worse(self, query, k, **options):
        hits = search(self, query, k + 1, **options)
        return hits.replace(hits[1:])

    monkeypatch.setattr(DenseSearcher, "search", worse)
    data, index = made / "data", made / "all.index"
    given = ("--queries", data / "queries.jsonl", "-k", "2", "--json")
    status, out, err = run("eval", index, *given)
    assert status == 0, err
    found = json.loads(out)
    assert (found["recall@2 multi"], found["recall@2 sparse"]) == (1.0, 1.0)
    assert found["recall@2 dense"] == 0.5
    retriever = weft.HybridRetriever.open(index)
    searcher = retriever.index.searcher()
    overlap = []
    for query in retriever.encode_queries(["the key", "door"]):
        ranks = {"multi": searcher.search(query["multi"], 100).ids}
        ranks["sparse"] = searcher.sparse.search(query["sparse"], 100).ids
        ranks["dense"] = searcher.dense.exact_search(query["dense"], 100).ids
        exact = best_by_ranks(ranks.values())
        ranks["dense"] = ranks["dense"][1:]
        overlap.append(len(set(exact[:2]) & set(best_by_ranks(ranks.values())[:2])) / 2)
    assert found["recall@2"] == pytest.approx(sum(overlap) / 2)
    status, _, _ = run("eval", index, *given, "--fail-under", "0.99")
    assert status == (9 if found["recall@2"] < 0.99 else 0)


def best_by_ranks(rankings):
    """Ids by the sum of 1 / (60 + rank)."""
    sums = {}
    for ranking in rankings:
        for rank, doc_id in enumerate(ranking, start=1):
            sums[doc_id] = sums.get(doc_id, 0.0) + 1 / (60 + rank)
    return sorted(sums, key=lambda doc_id: (-sums[doc_id], doc_id))
