# SPDX-License-Identifier: Apache-2.0
"""weft eval with judgements: runs, BM25, exact search, groups and differences."""

import functools
import json
import math

import numpy as np
import pytest

import helpers
import weft
from helpers import FakeEncoder
from weft import evaluation

WORDS = [f"word{i}" for i in range(60)]


run = functools.partial(helpers.run, env={"COLUMNS": "160"})


def as_json(*words):
    status, out, err = run(*words, "--json")
    assert status == 0, err
    return json.loads(out)


def ndcg(grades, ids):
    gains = [grades.get(name, 0) / math.log2(i + 2) for i, name in enumerate(ids[:10])]
    ideal = sorted(grades.values(), reverse=True)[:10]
    return sum(gains) / sum(grade / math.log2(i + 2) for i, grade in enumerate(ideal))


@pytest.fixture
def collection(tmp_path):
    """40 documents of 12 words; each query has three words of the one that is relevant."""
    rng = np.random.default_rng(4)
    folder = tmp_path / "made"
    (folder / "qrels").mkdir(parents=True)
    documents = [[str(word) for word in rng.choice(WORDS, 12)] for _ in range(40)]
    with (folder / "corpus.jsonl").open("w") as file:
        for i, words in enumerate(documents):
            file.write(json.dumps({"_id": f"d{i}", "text": " ".join(words)}) + "\n")
    with (folder / "queries.jsonl").open("w") as file:
        for i in range(20):
            query = {"_id": f"q{i}", "text": " ".join(documents[i][:3])}
            file.write(json.dumps({**query, "metadata": {"lang": "am" if i % 4 else "ja"}}) + "\n")
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(19))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


def test_runs_without_an_index(tmp_path):
    (tmp_path / "qrels.tsv").write_text("q1\ta\t1\nq2\tb\t1\nq3\tc\t1\n")
    (tmp_path / "a.trec").write_text("q1 Q0 a 1 2 x\nq1 Q0 b 2 1 x\nq2 Q0 a 1 1 x\nq2 Q0 b 2 1 x\n")
    (tmp_path / "b.trec").write_text("q1 Q0 a 1 2 x\nq2 Q0 b 1 1 x\nq3 Q0 c 1 1 x\n")
    words = ["eval", "--run", tmp_path / "a.trec", "--run", tmp_path / "b.trec"]
    words += ["--qrels", tmp_path / "qrels.tsv", "--measures", "MRR@10,Success@1"]
    found = as_json(*words)
    assert [line["measures"] for line in found["lines"]] == [
        {"MRR@10": pytest.approx((1 + 0.5 + 0) / 3), "Success@1": pytest.approx(1 / 3)},
        {"MRR@10": 1.0, "Success@1": 1.0},
    ]
    assert found["queries"] == 3
    first = found["differences"][0]
    assert first["difference"] == pytest.approx(0.5)
    assert first["low"] <= 0.5 <= first["high"]
    assert any("1 judged queries unanswered; they count 0" in note for note in found["notes"])
    assert any("no BM25 line" in note for note in found["notes"])
    trec = as_json(*words, "--ties", "trec")
    assert trec["lines"][0]["measures"]["MRR@10"] == pytest.approx(2 / 3)
    only = as_json(*words, "--over", "run")
    assert only["lines"][0]["measures"]["MRR@10"] == pytest.approx(0.75)
    assert only["differences"] == []
    status, out, _ = run(*words)
    assert status == 0
    assert "within chance" in out or "+0.5000" in out


def test_an_index_with_exact_search_and_bm25_beside_it(collection, tmp_path):
    retriever = weft.Retriever.create(tmp_path / "made.index", FakeEncoder())
    retriever.add(evaluation.Collection(collection).corpus)
    from weft.cli import eval as cli_eval

    patch = pytest.MonkeyPatch()
    patch.setattr(
        cli_eval,
        "open_retriever",
        lambda path, *_: weft.Retriever.open(path, model=FakeEncoder()),
    )
    try:
        found = as_json(
            "eval", tmp_path / "made.index", "--data", collection,
            "--save-runs", tmp_path / "runs", "--plot", tmp_path / "made.png",
        )  # fmt: skip
        queries = ["--queries", collection / "queries.jsonl"]
        queries += ["--qrels", collection / "qrels" / "test.tsv"]
        alone = as_json("eval", tmp_path / "made.index", *queries)
        bare = as_json("eval", tmp_path / "made.index", *queries, "--no-bm25")
    finally:
        patch.undo()
    names = [line["name"] for line in found["lines"]]
    assert names == [str(tmp_path / "made.index"), "exact", "bm25"]
    assert found["recall@10"] == 1.0
    assert found["documents"] == 40
    assert (tmp_path / "made.png").read_bytes()[:4] == b"\x89PNG"
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(19)}
    for line, file in zip(found["lines"], ("made", "exact", "bm25"), strict=True):
        ranking = evaluation.read_run(tmp_path / "runs" / f"{file}.trec")
        assert set(ranking) == set(qrels)
        each = {query: ndcg(qrels[query], list(ranking[query])) for query in qrels}
        assert line["measures"]["nDCG@10"] == pytest.approx(np.mean(list(each.values())))
        japanese = [each[f"q{i}"] for i in range(0, 19, 4)]
        assert line["groups"]["nDCG@10"]["ja"] == pytest.approx(np.mean(japanese))
    assert found["lines"][0]["measures"] == found["lines"][1]["measures"]
    assert alone["lines"] == found["lines"]  # BM25 over the texts that the index keeps
    assert [line["name"] for line in bare["lines"]] == names[:2]


def test_bm25_alone(collection):
    found = as_json("eval", "--data", collection)
    assert [line["name"] for line in found["lines"]] == ["bm25"]
    assert found["nDCG@10"] > 0.8
    status, out, _ = run("eval", "--data", collection)
    assert status == 0
    assert "nDCG@10 by lang (am 14, ja 5)" in out
    assert "macro" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to measure"),
        (["--run", "a.trec"], "--run: expected --qrels"),
        (["none.index"], "--queries FILE or --data FOLDER"),
        (["--data", "made", "--measures", "speed@3"], "speed@3"),
        (["--data", "made", "--ties", "coin"], "--ties coin: expected stable or trec"),
        (["--data", "made", "--by", "year"], "--by year: expected queries with that field"),
        (["x.index", "--queries", "made/queries.jsonl", "--plot", "x.png"], "--plot: expected"),
        (["--data", "made", "--over", "all"], "queries='all'"),
        (["--data", "made", "--split", "dev"], "qrels/dev.tsv: no such file"),
        (["--data", "made", "--fail-under", "0.5"], "--fail-under: expected an INDEX"),
    ],
)
def test_what_cannot_be_asked(collection, monkeypatch, words, said):
    monkeypatch.chdir(collection.parent)
    status, _, err = run("eval", *words)
    assert status in (3, 4)
    assert said in err


def test_lines_over_other_queries_beside_each_other(collection, tmp_path):
    for name, queries in (("all", range(19)), ("japanese", range(0, 19, 4))):
        lines = "".join(f"q{i} Q0 d{i} 1 1 x\n" for i in queries)
        (tmp_path / f"{name}.trec").write_text(lines)
    words = ["eval", "--data", collection, "--over", "run", "--no-bm25", "--measures", "RR@10"]
    for names in (("all", "japanese"), ("japanese", "all")):
        runs = [word for name in names for word in ("--run", tmp_path / f"{name}.trec")]
        status, out, err = run(*words, *runs, "--plot", tmp_path / f"{names[0]}.png")
        assert status == 0, err
        by_language = out.partition("by lang (am 14, ja 5)")[2].splitlines()
        assert by_language[1].split() == ["am", "ja", "macro"]
        assert {
            line.split()[0].rpartition("/")[2]: line.split()[1:] for line in by_language[2:4]
        } == {
            "all.trec": ["1.0000", "1.0000", "1.0000"],
            "japanese.trec": ["-", "1.0000", "1.0000"],
        }


def test_rankings_of_one_name_are_not_saved_over_each_other(collection, tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "made.trec").write_text("q1 Q0 d1 1 1 x\n")
    runs = ["--run", tmp_path / "old" / "made.trec", "--run", tmp_path / "new" / "made.trec"]
    status, _, err = run("eval", "--data", collection, *runs, "--save-runs", tmp_path / "runs")
    assert status == 3
    assert "would both be made.trec" in " ".join(err.split())
    assert not (tmp_path / "runs").exists()
