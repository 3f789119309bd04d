# SPDX-License-Identifier: Apache-2.0
"""Judgements and runs, compared with the formulas written out."""

import math
import sys

import numpy as np
import pytest

import weft
from weft import evaluation
from weft.errors import InvalidArgumentError, MissingExtraError, NotFoundError
from weft.types import Hit, Hits, OperatingPoint, SearchParams


def answer(*ids, score=1.0):
    point = OperatingPoint(10, None, None, None, SearchParams())
    hits = tuple(Hit(name, score) for name in ids)
    return Hits(hits, 100, point, {}, "cpu", 1)


def ndcg(ids, grades, k):
    gains = [max(grades.get(name, 0), 0) / math.log2(i + 2) for i, name in enumerate(ids[:k])]
    ideal = sorted((max(g, 0) for g in grades.values()), reverse=True)[:k]
    return sum(gains) / sum(g / math.log2(i + 2) for i, g in enumerate(ideal))


def test_measures_are_the_formulas():
    rng = np.random.default_rng(0)
    names = [f"d{i}" for i in range(40)]
    qrels, answers = {}, {}
    for query in (f"q{i}" for i in range(30)):
        judged = rng.choice(names, 8, replace=False)
        qrels[query] = {str(name): int(rng.integers(0, 4)) for name in judged}
        answers[query] = answer(*map(str, rng.permutation(names)[: rng.integers(0, 30)]))
    qrels["nothing relevant"] = {"d1": 0}
    del answers["q3"]
    relevant = {q: grades for q, grades in qrels.items() if max(grades.values()) > 0}
    expected_ndcg, expected_recall = [], []
    for query, grades in relevant.items():
        ids = answers[query].ids if query in answers else ()
        expected_ndcg.append(ndcg(ids, grades, 10))
        wanted = {name for name, grade in grades.items() if grade > 0}
        expected_recall.append(len(wanted & set(ids[:5])) / len(wanted))
    found = evaluation.measure(qrels, answers, ["nDCG@10", "R@5"])
    assert found == {
        "nDCG@10": pytest.approx(np.mean(expected_ndcg)),
        "R@5": pytest.approx(np.mean(expected_recall)),
    }


def test_equal_scores_keep_their_order():
    for ids in (("a", "b", "c"), ("c", "b", "a")):
        found = evaluation.measure({"q": {"a": 1}}, {"q": answer(*ids)}, ["nDCG@10"])
        assert found["nDCG@10"] == pytest.approx(1 / math.log2(ids.index("a") + 2))


def test_what_cannot_be_measured(monkeypatch):
    with pytest.raises(InvalidArgumentError, match="no relevant document"):
        evaluation.measure({"q": {"a": 0}}, {})
    with pytest.raises(InvalidArgumentError, match=r"measures=\['nonsense@3'\]"):
        evaluation.measure({"q": {"a": 1}}, {}, ["nonsense@3"])
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weft\[eval\]'"):
        evaluation.measure({"q": {"a": 1}}, {})


def test_reading_judgements(tmp_path):
    beir = "query-id\tcorpus-id\tscore\nq1\td 1\t2\nq1\td2\t0\nq2\td1\t1\n"
    expected = {"q1": {"d 1": 2, "d2": 0}, "q2": {"d1": 1}}
    (tmp_path / "test.tsv").write_text(beir)
    assert evaluation.read_qrels(tmp_path / "test.tsv") == expected
    (tmp_path / "test.tsv").write_text(beir.partition("\n")[2])
    assert evaluation.read_qrels(tmp_path / "test.tsv") == expected
    (tmp_path / "trec").write_text("q1 0 d1 2\nq1\t0\td2\t-1\n")
    assert evaluation.read_qrels(tmp_path / "trec") == {"q1": {"d1": 2, "d2": -1}}
    for bad in ("q1\td1\t1\nq1\td2\n", "q\td\t1\nq\td\tmuch\n", "one two\n", "a b c d e\n"):
        (tmp_path / "bad").write_text(bad)
        with pytest.raises(InvalidArgumentError, match=r"bad:[12]: expected a query id"):
            evaluation.read_qrels(tmp_path / "bad")
    with pytest.raises(NotFoundError, match="no such file"):
        evaluation.read_qrels(tmp_path / "absent")


def test_reading_queries(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"_id": "1", "text": "one"}\n{"_id": "2", "text": "two"}\n')
    (tmp_path / "q.tsv").write_text("1\tone\n2\ttwo\n")
    for name in ("q.jsonl", "q.tsv"):
        assert evaluation.read_queries(tmp_path / name) == {"1": "one", "2": "two"}
        assert evaluation.read_queries(tmp_path / name, limit=1) == {"1": "one"}
    (tmp_path / "q.tsv").write_text("1\tone\n1\ttwo\n")
    with pytest.raises(InvalidArgumentError, match="query '1' comes twice"):
        evaluation.read_queries(tmp_path / "q.tsv")


def test_writing_a_run(tmp_path):
    evaluation.write_run(tmp_path / "run", {"q1": answer("b", "a", score=0.125), "q2": answer()})
    assert (tmp_path / "run").read_text() == "q1 Q0 b 1 0.125 weft\nq1 Q0 a 2 0.125 weft\n"
    for ids in (["two words"], ["line\nbreak"]):
        with pytest.raises(InvalidArgumentError, match="holds no blanks"):
            evaluation.write_run(tmp_path / "run", {"q": answer(*ids)})


def test_recall_against_exact(tmp_path):
    rng = np.random.default_rng(1)
    index = weft.Index.create(tmp_path / "i", weft.IndexConfig(dim=8))
    index.add([f"d{i}" for i in range(50)], [rng.standard_normal((4, 8)) for _ in range(50)])
    queries = [rng.standard_normal((3, 8)).astype(np.float32) for _ in range(5)]
    assert evaluation.recall_against_exact(index.searcher(), queries, 10) == 1.0
    with pytest.raises(InvalidArgumentError, match="none of them"):
        evaluation.recall_against_exact(index.searcher(), [], 10)
    found = [answer("a", "b"), answer("c"), answer()]
    exact = [answer("b", "x"), answer("c"), answer()]
    assert evaluation.mean_overlap(found, exact) == pytest.approx((0.5 + 1 + 1) / 3)
