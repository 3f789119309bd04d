# SPDX-License-Identifier: Apache-2.0
"""Judgements and runs, compared with the formulas written out."""

import gzip
import json
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


def made_judgements(rng, n_queries=25):
    """Judgements of grades -1 to 3 and runs of 0 to 29 documents, some queries without one."""
    names = [f"d{i}" for i in range(40)]
    qrels, run = {}, {}
    for query in (f"q{i}" for i in range(n_queries)):
        judged = rng.choice(names, 9, replace=False)
        qrels[query] = {str(name): int(rng.integers(-1, 4)) for name in judged}
        ids = map(str, rng.permutation(names)[: rng.integers(0, 30)])
        run[query] = {name: float(-rank // 3) for rank, name in enumerate(ids)}
    qrels["irrelevant"] = {"d1": 0}
    del run["q3"]
    run["unjudged"] = {"d1": 1.0}
    return qrels, run


def by_loops(grades, ids, k, name, ap="relevant"):
    """One measure of one query, as its definition reads."""
    relevant = {name for name, grade in grades.items() if grade > 0}
    n_found, precisions, first = 0, 0.0, None
    for rank, document in enumerate(ids[:k], 1):
        if document in relevant:
            n_found += 1
            precisions += n_found / rank
            first = first or rank
    if name == "AP":
        return precisions / (min(len(relevant), k) if ap == "cutoff" else len(relevant))
    if name == "nDCG exponential":
        return ndcg(ids, {name: 2 ** max(grade, 0) - 1 for name, grade in grades.items()}, k)
    return {
        "R": n_found / len(relevant),
        "Success": float(n_found > 0),
        "RR": 1 / first if first else 0.0,
        "nDCG": ndcg(ids, grades, k),
        "P": n_found / k,
    }[name]


@pytest.mark.parametrize("k", [1, 5, 10])
def test_each_query_is_measured_as_the_definition_reads(k):
    qrels, run = made_judgements(np.random.default_rng(k))
    judged = [q for q, grades in qrels.items() if max(grades.values()) > 0]
    asked = {f"{name}@{k}": name for name in ("R", "Success", "RR", "nDCG", "AP", "P")}
    found = evaluation.per_query(qrels, run, [*asked, f"MRR@{k}", f"MAP@{k}"])
    found_cutoff = evaluation.per_query(
        qrels, run, [f"AP@{k}"], rules=evaluation.Rules(ap="cutoff")
    )
    found_gain = evaluation.per_query(
        qrels, run, [f"nDCG@{k}"], rules=evaluation.Rules(gain="exponential")
    )
    for query in judged:
        ids = list(run.get(query, {}))
        for measure, name in asked.items():
            expected = by_loops(qrels[query], ids, k, name)
            assert found[measure][query] == pytest.approx(expected), (query, measure)
        assert found_cutoff[f"AP@{k}"][query] == pytest.approx(
            by_loops(qrels[query], ids, k, "AP", "cutoff")
        )
        assert found_gain[f"nDCG@{k}"][query] == pytest.approx(
            by_loops(qrels[query], ids, k, "nDCG exponential")
        )
    assert found[f"MRR@{k}"] == found[f"RR@{k}"]
    assert found[f"MAP@{k}"] == found[f"AP@{k}"]
    assert list(found[f"R@{k}"]) == judged


def test_which_queries_count():
    qrels = {"a": {"d": 1}, "b": {"d": 1}, "c": {"d": 1}, "none": {"d": 0}}
    run = {"a": {"d": 1.0}, "b": {}, "elsewhere": {"d": 1.0}}
    assert evaluation.measure(qrels, run, ["R@1"]) == {"R@1": pytest.approx(1 / 3)}
    rules = evaluation.Rules(queries="run")
    assert evaluation.measure(qrels, run, ["R@1"], rules=rules) == {"R@1": 1.0}
    with pytest.raises(InvalidArgumentError, match="no judged query in it"):
        evaluation.measure(qrels, {"b": {}}, ["R@1"], rules=rules)
    with pytest.raises(InvalidArgumentError, match="gain='log': expected 'linear'"):
        evaluation.Rules(gain="log")


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
    marked = "\ufeffq\u20281\td1\t2\r\nq2\td1\t1\r\nq2\td1\t1\n"
    (tmp_path / "marked").write_bytes(marked.encode())
    expected = {"q\u20281": {"d1": 2}, "q2": {"d1": 1}}
    assert evaluation.read_qrels(tmp_path / "marked") == expected
    (tmp_path / "twice").write_text("q1\td1\t1\nq1\td1\t0\n")
    with pytest.raises(InvalidArgumentError, match="twice:2: document 'd1' has grade 0 for 'q1'"):
        evaluation.read_qrels(tmp_path / "twice")
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


RUN = """q1 Q0 b 1 0.5 x
q1 Q0 c 2 0.5 x
q2 Q0 a 9 -1e-05 x
q1 Q0 a 3 0.75 x
q1 Q0 d 4 5e-1 x
"""


@pytest.mark.parametrize(("ties", "order"), [("stable", "abcd"), ("trec", "adcb")])
def test_reading_a_run(tmp_path, ties, order):
    (tmp_path / "run").write_text(RUN)
    found = evaluation.read_run(tmp_path / "run", ties=ties)
    assert list(found) == ["q1", "q2"]
    assert "".join(found["q1"]) == order
    assert found == {"q1": {"a": 0.75, "b": 0.5, "c": 0.5, "d": 0.5}, "q2": {"a": -1e-5}}
    (tmp_path / "run.json").write_text(
        json.dumps({"q1": {"b": 0.5, "c": 0.5, "a": 0.75, "d": 0.5}, "q2": {"a": -1e-5}})
    )
    again = evaluation.read_run(tmp_path / "run.json", ties=ties)
    assert [list(again[query]) for query in again] == [list(order), ["a"]]
    (tmp_path / "run.gz").write_bytes(gzip.compress(RUN.encode()))
    assert evaluation.read_run(tmp_path / "run.gz", ties=ties) == found


def test_what_is_no_run(tmp_path):
    for text, said in (
        ("q Q0 d 1 0.5\n", r"bad:1: 5 columns"),
        ("q Q0 d 1 high x\n", r"bad:1: score 'high'"),
        ("q Q0 d 1 nan x\n", r"bad:1: score 'nan'"),
        ("q Q0 d 1 1 x\nq Q0 d 2 0 x\n", r"bad:2: document 'd' comes twice for 'q'"),
    ):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(InvalidArgumentError, match=said):
            evaluation.read_run(tmp_path / "bad")
    for text in ("[1]", '{"q": ["d"]}', "{"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InvalidArgumentError, match=r"bad\.json: expected a JSON object"):
            evaluation.read_run(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text('{"q": {"d": true}}')
    with pytest.raises(InvalidArgumentError, match=r"query 'q': score True"):
        evaluation.read_run(tmp_path / "bad.json")
    (tmp_path / "bad.gz").write_bytes(b"no gzip")
    with pytest.raises(InvalidArgumentError, match="damaged gzip"):
        evaluation.read_run(tmp_path / "bad.gz")
    with pytest.raises(InvalidArgumentError, match="ties='none'"):
        evaluation.read_run(tmp_path / "bad", ties="none")


def test_what_is_written_is_read_again(tmp_path):
    qrels, run = made_judgements(np.random.default_rng(9), 5)
    run = {query: scores for query, scores in run.items() if scores}
    evaluation.write_run(tmp_path / "run", run, tag="mine")
    assert evaluation.read_run(tmp_path / "run") == run
    assert [list(s) for s in evaluation.read_run(tmp_path / "run").values()] == [
        list(scores) for scores in run.values()
    ]
    evaluation.write_qrels(tmp_path / "qrels", qrels)
    assert evaluation.read_qrels(tmp_path / "qrels") == qrels
    assert all(line.split()[1] == "0" for line in (tmp_path / "qrels").read_text().splitlines())
    with pytest.raises(InvalidArgumentError, match="a TREC qrels holds no blanks"):
        evaluation.write_qrels(tmp_path / "qrels", {"a b": {"d": 1}})


def test_a_collection(tmp_path):
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "tea"}\n')
    queries = '{"_id": "q", "text": "tea?", "metadata": {"lang": "en"}}\n{"_id": "r", "text": "?"}'
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(queries.encode()))
    (tmp_path / "qrels" / "dev.tsv.gz").write_bytes(gzip.compress(b"q\td\t1\n"))
    found = evaluation.Collection(tmp_path, "dev")
    assert [document.id for document in found.corpus] == ["d"]
    assert evaluation.read_queries(found.queries) == {"q": "tea?", "r": "?"}
    assert evaluation.query_fields(found.queries, "lang") == {"q": "en"}
    assert evaluation.read_qrels(found.qrels) == {"q": {"d": 1}}
    with pytest.raises(NotFoundError, match=r"test\.tsv: no such file, plain or \.gz"):
        _ = evaluation.Collection(tmp_path).qrels


def test_how_deep_measures_look():
    assert evaluation.depth(["nDCG@10", "R@100"]) == 100
    assert evaluation.depth(["nDCG@10", "AP"]) == 1_000
    with pytest.raises(InvalidArgumentError, match="none of them"):
        evaluation.depth([])


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
