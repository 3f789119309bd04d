# SPDX-License-Identifier: Apache-2.0
"""Hard negatives: the rule written out plainly, and what must never be a negative."""

import unicodedata

import numpy as np
import pytest

import weft
from helpers import FakeEncoder
from weft.encoders.fields import FieldEmbeddings
from weft.errors import InvalidArgumentError
from weft.lexical import BM25
from weft.training.mining import PRESETS, Example, MiningRule, Negative, mine, preset
from weft.training.scorers import (
    BM25Scorer,
    HybridScorer,
    IndexScorer,
    PairScorer,
    RunScorer,
    index_similarity,
)

DOCUMENTS = {f"d{i}": f"text {i}" for i in range(40)}
QUERIES = {"q": "which?", "r": "what?"}
QRELS = {"q": {"d3": 1, "d5": 2, "d7": 0}, "r": {"d1": 1}}


def descending(names):
    """A list in which the document at rank i has the score 100 - i."""
    return {name: 100.0 - rank for rank, name in enumerate(names)}


def ranked(name="run", q=range(40), r=range(40)):
    run = {"q": descending(f"d{i}" for i in q), "r": descending(f"d{i}" for i in r)}
    return RunScorer(run, name)


def mined(rule, rankers=None, documents=DOCUMENTS, **more):
    found = mine(QUERIES, documents, QRELS, rankers or [ranked()], rule, **more)
    return {one.query: one for one in found.examples}, found


def numbers(example):
    return [int(negative.id[1:]) for negative in example.negatives]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MiningRule(4, (2, 8), "raw"), [2, 4, 6, 7]),
        (MiningRule(4, (2, 8), "filtered"), [2, 4, 6, 7]),
        (MiningRule(9, (2, 8), "raw"), [2, 4, 6, 7]),
        (MiningRule(9, (2, 8), "filtered"), [2, 4, 6, 7, 8, 9]),
        (MiningRule(5, (0, 30), "raw", "ends"), [0, 1, 2, 28, 29]),
        (MiningRule(4, (0, 30), "filtered", "ends"), [0, 1, 30, 31]),
        (MiningRule(4, (0, 30), max_score=90.0), [10, 11, 12, 13]),
        (MiningRule(9, (0, 30), min_score=97.0), [0, 1, 2]),
        (MiningRule(3, (0, 30), margin=10.0), [15, 16, 17]),  # the worst positive has 95
        (MiningRule(3, (0, 30), relative_margin=0.2), [24, 25, 26]),  # 95 - 19 = 76
        (MiningRule(3, (0, 30), margin=10.0, relative_margin=0.2), [24, 25, 26]),
    ],
)
def test_window_filters_and_choice(rule, expected):
    examples, _ = mined(rule)
    assert numbers(examples["q"]) == expected
    assert examples["q"].positives == ("d3", "d5")
    first = examples["q"].negatives[0]
    assert (first.ranker, first.rank, first.score) == ("run", expected[0], 100.0 - expected[0])


def test_why_documents_were_dropped():
    _, found = mined(MiningRule(3, (0, 10), "raw", margin=2.0))
    assert found.dropped == {"a positive": 3, "within the margin": 5 + 2}
    assert (found.n_queries, found.short) == (2, 0)


def test_margin_needs_the_scores_of_all_positives():
    lists = [ranked(q=[0, 3, 9, 10], r=range(5))]  # d5 is not in it
    examples, found = mined(MiningRule(3, margin=1.0), lists)
    assert set(examples) == {"r"}
    assert found.dropped["a positive has no score to compare with"] == 3
    assert found.short == 1


def test_a_negative_margin_bound_is_below_a_negative_score():
    run = RunScorer({"q": {"d3": -1.0, "d5": -2.0, "d8": -2.1, "d9": -2.5}, "r": {}}, "run")
    examples, _ = mined(MiningRule(3, relative_margin=0.2), [run])
    assert numbers(examples["q"]) == [9]  # at most -2 - 2 · .2 = -2.4


def test_copies_are_no_negatives():
    texts = {**DOCUMENTS, "d0": " ｔｅｘｔ 3\n", "d2": "which?", "d4": "text 6", "d9": "  "}
    assert unicodedata.normalize("NFKC", texts["d0"]).strip() == texts["d3"]
    examples, found = mined(MiningRule(4, (0, 12), "raw"), documents=texts, exclude={"d8"})
    assert numbers(examples["q"]) == [1, 4, 7, 10]
    assert found.dropped["excluded"] == 2
    assert found.dropped["no text"] == 2
    assert found.dropped["text of a positive or of the query"] == 2
    assert found.dropped["same text as another"] == 1 + 2  # d6 as d4; for r also d3 as d0


def test_several_rankers_take_turns():
    rankers = [ranked("a", q=[10, 11, 12, 13]), ranked("b", q=[20, 11, 21, 22, 23])]
    examples, found = mined(MiningRule(6), rankers)
    assert numbers(examples["q"]) == [10, 20, 11, 12, 21, 13]
    assert found.dropped["found by several"] == 1 + 39  # d11 for q; for r both have the same list
    assert found.dropped["same text as another"] == 0
    assert [negative.ranker for negative in examples["q"].negatives] == list("abaaba")
    assert examples["q"].negatives[4].rank == 2
    with pytest.raises(InvalidArgumentError, match=r"\['a', 'a'\]: expected at least one, each"):
        mined(MiningRule(6), [ranked("a"), ranked("a")])


def test_random_choice_depends_on_seed_and_query_alone():
    rule = MiningRule(5, (0, 40), "raw", "random")
    examples, _ = mined(rule)
    assert numbers(examples["q"]) == sorted(numbers(examples["q"]))
    assert not {3, 5} & set(numbers(examples["q"]))
    turned = dict(reversed(QUERIES.items()))
    again = {e.query: e for e in mine(turned, DOCUMENTS, QRELS, [ranked()], rule).examples}
    assert again == examples
    alone = mine({"q": "which?"}, DOCUMENTS, QRELS, [ranked()], rule).examples
    assert alone == [examples["q"]]
    other, _ = mined(MiningRule(5, (0, 40), "raw", "random", seed=1))
    assert numbers(other["q"]) != numbers(examples["q"])
    assert numbers(examples["q"]) != numbers(examples["r"])


def test_random_choice_is_even():
    counts = np.zeros(40)
    queries = {f"q{i}": "?" for i in range(600)}
    qrels = {query: {"d0": 1} for query in queries}
    run = RunScorer({query: descending(DOCUMENTS) for query in queries}, "run")
    rule = MiningRule(4, (0, 40), "raw", "random")
    for example in mine(queries, DOCUMENTS, qrels, [run], rule).examples:
        counts[numbers(example)] += 1
    assert counts[0] == 0
    expected = 600 * 4 / 39
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 80  # 38 degrees: beyond it 1 in 10^4


def test_filling():
    texts = {**DOCUMENTS, "d30": "text 3", "d31": "", "d32": "which?"}
    rule = MiningRule(35, (0, 4), "raw", fill=True)
    examples, found = mined(rule, documents=texts, exclude={"d33"})
    chosen = examples["q"].negatives
    assert len(chosen) == len({negative.id for negative in chosen}) == 34
    assert found.short == 1
    absent = set(DOCUMENTS) - {negative.id for negative in chosen}
    assert absent == {"d3", "d5", "d30", "d31", "d32", "d33"}
    filled = [negative for negative in chosen if negative.ranker == "random"]
    assert len(filled) == 31
    assert all(negative.rank is None and negative.score is None for negative in filled)


def test_similarity_to_a_positive():
    def like(name, others):
        return [1.0 - abs(int(name[1:]) - int(other[1:])) / 10 for other in others]

    rule = MiningRule(4, (0, 20), "raw", max_similarity=0.75)
    examples, found = mined(rule, similarity=like)
    assert numbers(examples["q"]) == [0, 8, 9, 10]  # further than 2.5 from 3 and from 5
    assert found.dropped["too like a positive"] > 0
    with pytest.raises(InvalidArgumentError, match="together with a similarity"):
        mined(rule)
    with pytest.raises(InvalidArgumentError, match="max_similarity=None"):
        mined(MiningRule(4), similarity=like)


def test_presets():
    assert preset("flagembedding", 10**6) == MiningRule(15, (10, 210), "raw", "random", fill=True)
    assert preset("ragatouille", 10**6).window == (10, 110)
    assert preset("ragatouille", 500).window == (10, 50)
    assert preset("ragatouille-as-run", 500).window == (0, 50)
    assert preset("amharic-bm25", 9) == MiningRule(5, (10, 100), "raw", "random", seed=42)
    assert preset("granite", 9, max_similarity=0.9).n == 1
    assert preset("st", 9).ranks == "filtered"
    with pytest.raises(InvalidArgumentError, match="expected max_similarity"):
        preset("granite-distill", 9)
    with pytest.raises(InvalidArgumentError, match="expected one of flagembedding"):
        preset("jacolbert", 9)
    assert "amharic-colbert" in PRESETS


def test_amharic_colbert_deals_two_rows():
    mined_list = list(range(10, 30))
    run = RunScorer({"q": descending(f"d{i}" for i in mined_list), "r": {}}, "mined")
    found = mine(QUERIES, DOCUMENTS, QRELS, [run], preset("amharic-colbert", 40), exclude={"d11"})
    kept = [10, 12, 13, 14, 26, 27, 28, 29]  # first 4 and last 4 of what is no test passage
    assert [numbers(one) for one in found.examples] == [kept[0::2], kept[1::2]]
    assert [one.query for one in found.examples] == ["q", "q"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"window": (5, 5)}, r"window=\(5, 5\)"),
        ({"n": 0}, "n=0"),
        ({"rows": 8}, "rows=8"),
        ({"choose": "best"}, "choose='best'"),
        ({"ranks": "sorted"}, "ranks='sorted'"),
        ({"margin": float("nan")}, "margin=nan: expected a finite number"),
        ({"min_score": float("-inf")}, "min_score=-inf: expected a finite number"),
    ],
)
def test_rules_that_cannot_be(wrong, said):
    with pytest.raises(InvalidArgumentError, match=said):
        MiningRule(**wrong)


def test_what_cannot_be_mined():
    with pytest.raises(InvalidArgumentError, match="no relevant document"):
        mine(QUERIES, DOCUMENTS, {"q": {"d1": 0}}, [ranked()], MiningRule())
    with pytest.raises(InvalidArgumentError, match="'d3': judged or ranked"):
        mine(QUERIES, {"d1": "x"}, QRELS, [ranked()], MiningRule())
    with pytest.raises(InvalidArgumentError, match="not an example"):
        Example.from_json({"query": "q"})


def test_json_of_an_example():
    one = Example("q", "tea?", ("a",), (Negative("b", "bm25", 3, 1.5),), {"a": 1.0, "b": 0.0})
    assert Example.from_json(one.to_json()) == one
    assert one.ids == ("a", "b")


class TestScorers:
    def test_bm25(self):
        documents = [weft.Document("a", "green tea"), weft.Document("b", "green keys")]
        scorer = BM25Scorer(BM25(documents))
        assert list(scorer.rank({"q": "tea green"}, 5)["q"]) == ["a", "b"]
        [scores] = scorer.score([("q", "tea", ["b", "a"])])
        assert scores["b"] == 0 < scores["a"]

    def test_index_against_the_definition(self, tmp_path):
        encoder = FakeEncoder()
        texts = {"a": "green tea", "b": "old keys and tea", "c": "tea"}
        retriever = weft.Retriever.create(tmp_path / "i", encoder)
        retriever.add(weft.Document(name, text) for name, text in texts.items())
        rows = {name: encoder.encode_documents([t])[0][0].values for name, t in texts.items()}

        def maxsim(query, document):
            return float((query @ document.T).max(axis=1).sum())

        query = encoder.encode_queries(["tea keys"])[0].values
        expected = {name: maxsim(query, rows[name]) for name in texts}
        scorer = IndexScorer(retriever, "i")
        [scores] = scorer.score([("q", "tea keys", ["c", "b"])])
        assert scores == pytest.approx({n: expected[n] for n in "cb"}, abs=2e-3)
        ranking = scorer.rank({"q": "tea keys"}, 3)["q"]
        assert ranking == pytest.approx(expected, abs=2e-3)
        assert list(ranking) == sorted(expected, key=lambda name: -expected[name])
        like = index_similarity(retriever)("a", ["b", "c", "a"])
        expected_like = [maxsim(rows["a"], rows[name]) / 2 for name in "bca"]
        assert like == pytest.approx(expected_like, abs=2e-3)

    def test_fields_against_the_definition(self, tmp_path):
        class Letters:
            info = weft.EncoderInfo("letters", "count", 1, "letters-1")

            def encode_queries(self, texts):
                counts = [{c: float(t.count(chr(c))) for c in range(97, 123)} for t in texts]
                dense = [np.array(list(count.values()), np.float32) for count in counts]
                return [FieldEmbeddings(None, *both) for both in zip(dense, counts, strict=True)]

            encode_documents = encode_queries

        texts = {"a": "banana", "b": "cherry", "c": "bread"}
        config = weft.IndexConfig(dim=1, dense=weft.DenseConfig(26), sparse=weft.SparseConfig())
        index = weft.Index.create(tmp_path / "i", config, encoder=Letters())
        weights = {"dense": 0.75, "sparse": 0.25}

        def scorer(fusion):
            fields = ["dense", "sparse"]
            return HybridScorer(
                weft.HybridRetriever(index, Letters(), fields=fields, fusion=fusion), "h"
            )

        weft.HybridRetriever(index, Letters(), fields=["dense", "sparse"]).add(
            weft.Document(name, text) for name, text in texts.items()
        )

        def expected(query, text):
            vectors = [
                np.array([one.count(chr(c)) for c in range(97, 123)]) for one in (query, text)
            ]
            dot = float(vectors[0] @ vectors[1])
            return 0.75 * dot / np.prod([np.linalg.norm(v) for v in vectors]) + 0.25 * dot

        hybrid = scorer(weft.Weighted(weights))
        [scores] = hybrid.score([("q", "cheer", ["c", "b"])])
        assert list(scores) == ["c", "b"]
        assert scores == pytest.approx({n: expected("cheer", texts[n]) for n in "bc"}, rel=1e-3)
        ranking = hybrid.rank({"q": "cheer"}, 2)["q"]
        assert list(ranking) == ["b", "c"]
        assert ranking == pytest.approx(scores, rel=1e-3)
        for fusion in (None, weft.Weighted(weights, missing="zero")):
            with pytest.raises(InvalidArgumentError, match=r"expected weft\.Weighted with missing"):
                scorer(fusion).score([("q", "cheer", ["a"])])

    def test_run(self):
        scorer = RunScorer({"q": {"a": 2.0, "b": 1.0}}, "run")
        assert scorer.rank({"q": "?", "r": "?"}, 1) == {"q": {"a": 2.0}, "r": {}}
        assert scorer.score([("q", "?", ["b", "z"])]) == [{"b": 1.0}]

    def test_pairs(self):
        seen = []

        def predict(pairs):
            seen.extend(pairs)
            return np.arange(len(pairs))

        scorer = PairScorer(predict, {"a": "A", "b": "B"})
        asked = [("q", "tea", ["b", "a"]), ("r", "keys", ["a"])]
        assert scorer.score(asked) == [{"b": 0.0, "a": 1.0}, {"a": 2.0}]
        assert seen == [("tea", "B"), ("tea", "A"), ("keys", "A")]
        with pytest.raises(InvalidArgumentError, match="0 scores for 2 pairs"):
            PairScorer(lambda _: [], {"a": "A", "b": "B"}).score(asked[:1])
