# SPDX-License-Identifier: Apache-2.0
"""Training files, read again by parsers written here from what each trainer's reader does."""

import json
import math
import random

import pytest

from weft.errors import IndexExistsError, InvalidArgumentError
from weft.training.distillation import distill
from weft.training.files import KINDS, write_examples
from weft.training.mining import Example, Negative
from weft.training.scorers import RunScorer

TEXTS = {
    "p 1": 'Amharic: ሰላም "quoted" \\n 𠮷野家 \u2028 end',
    "p2": "id\u0085 of a key",
    "p3": "a, b; c' \x0b d",
    "unused": "nobody names it",
    "p4": "tea",
    "p5": "more tea",
}
BREAKS = {**TEXTS, "p4": "tab\there\nline\r\nend"}


def example(query, positives, negatives, scores=None, text=None):
    chosen = tuple(Negative(name, "bm25", at, 1.0) for at, name in enumerate(negatives))
    return Example(query, text or f"text of {query}? 𠮷", tuple(positives), chosen, scores)


PLAIN = [example("q-b", ["p4"], ["p 1", "p3"]), example("q-a", ["p2", "p5"], ["p4", "p3"])]
SCORES = [
    {"p4": 1.0, "p 1": 1e-05, "p3": 0.0},
    {"p2": 0.75, "p5": 1.0, "p4": 0.5, "p3": 0.0},
]
SCORED = [
    example(one.query, one.positives, [n.id for n in one.negatives], scores)
    for one, scores in zip(PLAIN, SCORES, strict=True)
]
ROWS = [("q-b", ["p4", "p 1", "p3"]), ("q-a", ["p2", "p4", "p3"]), ("q-a", ["p5", "p4", "p3"])]


def stanford_table(path):
    """Lines as ColBERT reads them: by "\\n" only as Python's files do, strip, split at tabs."""
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            key, text, *rest = line.strip("\n\r ").split("\t")
            assert not rest
            assert int(key) == number
            found.append(text)
    return found


def json_lines(path):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def stanford(folder, names):
    """(query text, [(passage text, score or None)]) of each row."""
    queries, collection = stanford_table(folder / names[0]), stanford_table(folder / names[1])
    rows = []
    for qid, *pids in json_lines(folder / names[2]):
        pairs = [pid if isinstance(pid, list) else (pid, None) for pid in pids]
        rows.append((queries[qid], [(collection[pid], score) for pid, score in pairs]))
    return rows


def expected_rows(texts, *, scored):
    of = {one.query: one.scores for one in SCORED}
    return [
        (f"text of {query}? 𠮷", [(texts[n], of[query][n] if scored else None) for n in names])
        for query, names in ROWS
    ]


STANFORD = ("queries.tsv", "collection.tsv", "triples.jsonl")
RAGATOUILLE = (
    "queries.train.colbert.tsv",
    "corpus.train.colbert.tsv",
    "triples.train.colbert.jsonl",
)


class TestStanford:
    @pytest.mark.parametrize("scored", [False, True])
    def test_rows(self, tmp_path, scored):
        done = write_examples(tmp_path, "stanford", SCORED if scored else PLAIN, TEXTS)
        assert stanford(tmp_path, STANFORD) == expected_rows(TEXTS, scored=scored)
        assert (done.n_rows, done.n_queries, done.n_passages, done.nway) == (3, 2, 5, 3)
        assert json_lines(tmp_path / "collection.ids") == ["p 1", "p2", "p3", "p4", "p5"]
        assert json_lines(tmp_path / "queries.ids") == ["q-b", "q-a"]
        assert "nobody" not in (tmp_path / "collection.tsv").read_text()

    def test_judgements_and_rankings(self, tmp_path):
        write_examples(tmp_path, "stanford", SCORED, TEXTS)
        qrels = [line.split("\t") for line in (tmp_path / "qrels.tsv").read_text().splitlines()]
        assert qrels == [["0", "0", "3", "1"], ["1", "0", "1", "1"], ["1", "0", "4", "1"]]
        lines = (tmp_path / "ranking.tsv").read_text().splitlines()
        ranking = [[int(x) if "." not in x else float(x) for x in s.split("\t")] for s in lines]
        assert ranking == [
            [0, 3, 1, 1.0], [0, 0, 2, 1e-5], [0, 2, 3, 0.0],
            [1, 4, 1, 1.0], [1, 1, 2, 0.75], [1, 3, 3, 0.5], [1, 2, 4, 0.0],
        ]  # fmt: skip
        assert all("." in line.split("\t")[3] and "e" not in line for line in lines)

    def test_breaks_are_refused_or_become_spaces(self, tmp_path):
        with pytest.raises(InvalidArgumentError, match="'p4': a tab or a line break"):
            write_examples(tmp_path, "stanford", PLAIN, BREAKS)
        assert not list(tmp_path.iterdir())
        query = example("q", ["p2"], ["p3"], text="two\tcolumns")
        with pytest.raises(InvalidArgumentError, match="'q': a tab"):
            write_examples(tmp_path, "stanford", [query], BREAKS)
        done = write_examples(tmp_path, "stanford", PLAIN, BREAKS, spaces=True)
        spaced = {**BREAKS, "p4": "tab here line  end"}
        assert stanford(tmp_path, STANFORD) == expected_rows(spaced, scored=False)
        assert done.n_spaces == 1


class TestRagatouille:
    def test_triplets(self, tmp_path):
        write_examples(tmp_path, "ragatouille", PLAIN, BREAKS)
        spaced = {**BREAKS, "p4": "tab here line  end"}
        found = stanford(tmp_path, RAGATOUILLE)
        assert all(len(passages) == 2 for _, passages in found)
        pairs = [("q-b", "p4", "p 1"), ("q-b", "p4", "p3")]
        pairs += [
            ("q-a", "p2", "p4"),
            ("q-a", "p5", "p4"),
            ("q-a", "p2", "p3"),
            ("q-a", "p5", "p3"),
        ]
        assert found == [
            (f"text of {query}? 𠮷", [(spaced[a], None), (spaced[b], None)])
            for query, a, b in pairs
        ]

    def test_at_most_20_with_several_positives(self, tmp_path):
        texts = {f"d{i}": f"text {i}" for i in range(40)}
        many = [f"d{i}" for i in range(3, 40)]
        several = example("a", ["d0", "d1", "d2"], many)
        one = example("b", ["d0"], many)
        write_examples(tmp_path, "ragatouille", [several, one], texts)
        found = json_lines(tmp_path / RAGATOUILLE[2])
        assert [qid for qid, *_ in found].count(0) == 20
        assert [qid for qid, *_ in found].count(1) == 37
        assert {pid for qid, pid, _ in found if qid == 0} == {0, 1, 2}


class TestFlagEmbedding:
    @pytest.mark.parametrize("examples", [PLAIN, SCORED])
    def test_lines(self, tmp_path, examples):
        write_examples(tmp_path, "flagembedding", examples, BREAKS)
        expected = []
        for one in examples:
            negatives = [negative.id for negative in one.negatives]
            line = {"query": one.text, "pos": [BREAKS[name] for name in one.positives]}
            line["neg"] = [BREAKS[name] for name in negatives]
            if one.scores:
                line["pos_scores"] = [one.scores[name] for name in one.positives]
                line["neg_scores"] = [one.scores[name] for name in negatives]
            expected.append(line)
        assert json_lines(tmp_path / "train.jsonl") == expected
        pool = [line["text"] for line in json_lines(tmp_path / "corpus.jsonl")]
        assert pool == [text for name, text in BREAKS.items() if name != "unused"]

    def test_length_buckets(self, tmp_path):
        lengths = {"a": 499, "b": 500, "c": 999, "d": 6_999, "e": 7_000, "f": 0}
        texts = {name: f"{name} {n}" for name, n in lengths.items()}
        examples = [example(name, [name], ["f"], text="0") for name in "abcde"]
        write_examples(
            tmp_path, "flagembedding", examples, texts,
            count_tokens=lambda texts: [int(text.split()[-1]) for text in texts],
        )  # fmt: skip
        found = {
            path.name: [line["pos"][0][0] for line in json_lines(path)]
            for path in tmp_path.glob("train*")
        }
        assert found == {
            "train_len-0-500.jsonl": ["a"],
            "train_len-500-1000.jsonl": ["b", "c"],
            "train_len-6000-7000.jsonl": ["d"],
            "train_len-7000-inf.jsonl": ["e"],
        }
        with pytest.raises(InvalidArgumentError, match="only flagembedding"):
            write_examples(tmp_path / "x", "stanford", examples, texts, count_tokens=len)


def resolved(folder):
    """(query text, passage texts, scores) of each row, as a join of the three tables."""
    tables = {}
    for name, column in (("queries", "query_id"), ("documents", "document_id")):
        lines = json_lines(folder / f"{name}.jsonl")
        assert all(list(line) == [column, "text"] for line in lines)
        tables[name] = {line[column]: line["text"] for line in lines}
        assert len(tables[name]) == len(lines)
    return [
        (
            tables["queries"][row["query_id"]],
            [tables["documents"][name] for name in row["document_ids"]],
            row["scores"],
        )
        for row in json_lines(folder / "train.jsonl")
    ]


class TestPyLate:
    def test_tables(self, tmp_path):
        write_examples(tmp_path, "pylate", SCORED, BREAKS)
        expected = [
            (text, [passage for passage, _ in pairs], [score for _, score in pairs])
            for text, pairs in expected_rows(BREAKS, scored=True)
        ]
        assert resolved(tmp_path) == expected

    def test_the_reader_of_sentence_transformers(self, tmp_path):
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        util = pytest.importorskip("sentence_transformers.util")
        write_examples(tmp_path / "w", "pylate", SCORED, BREAKS)
        train, queries, documents = (
            datasets.load_dataset(
                "json", data_files=str(tmp_path / "w" / f"{name}.jsonl"), split="train",
                cache_dir=str(tmp_path / "cache"),
            )
            for name in ("train", "queries", "documents")
        )  # fmt: skip
        train.set_transform(util.resolve_ids({"query_id": queries, "document_ids": documents}))
        found = [dict(train[at]) for at in range(len(train))]
        for row, (text, pairs) in zip(found, expected_rows(BREAKS, scored=True), strict=True):
            names = [name for name in row if name != "scores"]
            assert [row[name] for name in names] == [text, *(passage for passage, _ in pairs)]
            assert row["scores"] == [score for _, score in pairs]

    @pytest.mark.parametrize(
        ("examples", "said"),
        [
            (PLAIN, "has no scores"),
            ([example("q", ["p4"], ["p2"], {"p4": 3.0, "p2": 0.0})], "has other scores"),
            (
                [example("q", ["p4"], ["p2"] * 32, {"p4": 1.0, "p2": 0.0})],
                "has 32 negatives, expected at most 31",
            ),
        ],
    )
    def test_refused(self, tmp_path, examples, said):
        with pytest.raises(InvalidArgumentError, match=said):
            write_examples(tmp_path, "pylate", examples, TEXTS)


class TestSentenceTransformers:
    def test_distillation_columns(self, tmp_path):
        write_examples(tmp_path, "sentence-transformers", SCORED, BREAKS)
        found = json_lines(tmp_path / "train.jsonl")
        for row, (text, pairs) in zip(found, expected_rows(BREAKS, scored=True), strict=True):
            assert list(row) == ["query", "document_1", "document_2", "document_3", "label"]
            *texts, label = row.values()
            assert texts == [text, *(passage for passage, _ in pairs)]
            assert label == [score for _, score in pairs]

    def test_tuples(self, tmp_path):
        write_examples(tmp_path / "n", "sentence-transformers", PLAIN, BREAKS)
        found = json_lines(tmp_path / "n" / "train.jsonl")
        assert list(found[0]) == ["anchor", "positive", "negative_1", "negative_2"]
        assert list(found[1].values()) == [PLAIN[1].text, *(BREAKS[n] for n in ROWS[1][1])]
        single = [example("q", ["p4"], ["p2"])]
        write_examples(tmp_path / "1", "sentence-transformers", single, BREAKS)
        [row] = json_lines(tmp_path / "1" / "train.jsonl")
        assert row == {"anchor": single[0].text, "positive": BREAKS["p4"], "negative": TEXTS["p2"]}

    def test_the_columns_as_datasets_reads_them(self, tmp_path):
        datasets = pytest.importorskip("datasets", reason="datasets is not installed")
        write_examples(tmp_path / "w", "sentence-transformers", SCORED, BREAKS)
        found = datasets.load_dataset(
            "json", data_files=str(tmp_path / "w" / "train.jsonl"), split="train",
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        assert found.column_names[0] == "query"
        assert found.column_names[-1] == "label"
        assert found[0]["document_1"] == BREAKS["p4"]

    def test_ragged_rows_are_refused(self, tmp_path):
        ragged = [*PLAIN, example("q", ["p4"], ["p2"])]
        with pytest.raises(InvalidArgumentError, match="from 1 to 2 negatives"):
            write_examples(tmp_path, "sentence-transformers", ragged, TEXTS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([], "none of them"),
        ([example("q", ["p4"], [])], "'q': no negatives"),
        ([example("q", [], ["p4"])], "'q': no positive"),
        ([example("q", ["p4"], ["gone"])], "'gone' has no text"),
        ([*SCORED, PLAIN[0]], "for all examples or for none"),
        ([example("q", ["p4"], ["p2"], {"p4": 1.0})], "'p2' has no score"),
        ([SCORED[0], example("q-b", ["p4"], ["p2"], {"p4": 1.0, "p2": 0.0}, "else")], "two texts"),
    ],
)
def test_what_no_reader_can_use(tmp_path, kind, examples, said):
    with pytest.raises(InvalidArgumentError, match=said):
        write_examples(tmp_path, kind, examples, TEXTS)


def test_where_it_goes(tmp_path):
    about = {"teacher": "t", "normalise": "minmax"}
    done = write_examples(tmp_path / "a" / "b", "stanford", PLAIN, TEXTS, about=about)
    noted = json.loads((tmp_path / "a" / "b" / "about.json").read_text())
    assert noted == {
        "format": "stanford", **about, "n_rows": 3, "n_queries": 2, "n_passages": 5,
        "n_spaces": 0, "nway": 3,
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == sorted(
        file.rpartition("/")[2] for file in done.files
    )
    with pytest.raises(IndexExistsError, match="not empty"):
        write_examples(tmp_path / "a" / "b", "stanford", PLAIN, TEXTS)
    with pytest.raises(InvalidArgumentError, match="format 'splade': expected one of"):
        write_examples(tmp_path / "c", "splade", PLAIN, TEXTS)


RUN = {"q-b": {"p4": 7.0, "p 1": -1.0, "p3": 3.0}, "q-a": dict.fromkeys(TEXTS, 2.0)}


class TestTeacher:
    def scores(self, how):
        return [one.scores for one in distill(PLAIN, RunScorer(RUN, "run"), normalise=how)]

    def test_none(self):
        found = self.scores("none")
        assert found[0] == RUN["q-b"]
        assert list(found[1]) == ["p2", "p5", "p4", "p3"]

    def test_minmax(self):
        found = self.scores("minmax")
        assert found[0] == pytest.approx({"p4": 1.0, "p 1": 0.0, "p3": 0.5}, abs=1e-8)
        assert found[0]["p4"] < 1.0  # divided by the range and 1e-8
        assert set(found[1].values()) == {0.0}

    def test_softmax(self):
        found = self.scores("softmax")
        total = sum(math.exp(score) for score in RUN["q-b"].values())
        assert found[0] == pytest.approx(
            {name: math.exp(score) / total for name, score in RUN["q-b"].items()}
        )
        assert set(found[1].values()) == {0.25}
        huge = RunScorer({"q-b": {"p4": 4000.0, "p 1": 0.0, "p3": 3999.0}}, "run")
        [large] = distill(PLAIN[:1], huge, normalise="softmax")
        assert large.scores["p4"] == pytest.approx(math.e / (1 + math.e))

    @pytest.mark.parametrize("score", [None, math.inf, math.nan])
    def test_a_missing_score_is_an_error(self, score):
        run = {"q-b": {"p4": 1.0, "p 1": 0.0} | ({} if score is None else {"p3": score})}
        with pytest.raises(InvalidArgumentError, match="of document 'p3' for query 'q-b'"):
            list(distill(PLAIN[:1], RunScorer(run, "run")))
        with pytest.raises(InvalidArgumentError, match="normalise='rank'"):
            list(distill(PLAIN, RunScorer({}, "run"), normalise="rank"))

    def test_more_than_a_batch(self):
        random.seed(1)
        many = [example(f"q{i}", ["p4"], ["p2"]) for i in range(600)]
        run = {one.query: {"p4": random.random(), "p2": 0.0} for one in many}
        found = list(distill(iter(many), RunScorer(run, "run")))
        assert {one.query: one.scores for one in found} == run
