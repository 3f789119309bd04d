# SPDX-License-Identifier: Apache-2.0
"""Published ways of measuring, against cases worked by hand and against loops."""

import json
import math

import numpy as np
import pytest

from weft.errors import InvalidArgumentError, NotFoundError
from weft.evaluation import Collection
from weft.protocols import (
    answer_recall,
    mrtydi,
    read_file_order,
    tatoeba,
    translations,
)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def plain_tatoeba(queries, documents, texts, *, margin=False, shift=False):
    if shift:
        queries, documents = queries - queries.mean(axis=0), documents - documents.mean(axis=0)
    scores = [[cosine(q, d) for d in documents] for q in queries]
    if margin:
        near_q = [sum(sorted(row)[-4:]) / 4 for row in scores]
        near_d = [sum(sorted(row[j] for row in scores)[-4:]) / 4 for j in range(len(documents))]
        scores = [
            [value / ((near_q[i] + near_d[j]) / 2) for j, value in enumerate(row)]
            for i, row in enumerate(scores)
        ]
    best = [max(range(len(row)), key=lambda j: row[j]) for row in scores]
    return {
        "acc_index": sum(j == i for i, j in enumerate(best)) / len(best),
        "acc_text": sum(texts[j] == texts[i] for i, j in enumerate(best)) / len(best),
    }


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("scoring", ["cosine", "margin"])
def test_tatoeba_is_its_definition(rng, scoring, shift):
    documents = rng.normal(2.0, size=(60, 6)) * rng.uniform(0.5, 5.0, size=(60, 1))
    queries = documents + rng.normal(scale=1.5, size=(60, 6))
    texts = [f"t{i % 6}" for i in range(60)]
    found = tatoeba(queries, documents, texts, scoring=scoring, shift=shift)
    expected = plain_tatoeba(queries, documents, texts, margin=scoring == "margin", shift=shift)
    assert found == pytest.approx(expected)
    assert 0.1 < found["acc_index"] < found["acc_text"] < 0.9


def test_duplicates_by_hand():
    documents = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    queries = np.array([[2.0, 0.1], [3.0, 0.1], [0.0, 5.0]])
    found = tatoeba(queries, documents, ["Tom ran.", "Tom ran.", "It rained."])
    assert found == {"acc_index": pytest.approx(2 / 3), "acc_text": 1.0}
    assert tatoeba(documents, queries, ["a", "b", "c"])["acc_index"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("queries", "documents", "texts", "options", "message"),
    [
        (np.eye(2), np.eye(3), ["a", "b"], {}, "expected as many of each"),
        (np.eye(2), np.eye(2), ["a"], {}, "1 texts: expected as many"),
        (np.eye(0), np.eye(0), [], {}, "at least one"),
        (np.eye(2)[0], np.eye(2), ["a"], {}, r"queries: an array of shape \(2,\)"),
        (np.eye(2), np.eye(2) * np.nan, ["a", "b"], {}, "documents: .* finite vectors"),
        (np.eye(2), np.eye(2), ["a", "b"], {"scoring": "dot"}, "scoring='dot'"),
    ],
)
def test_what_cannot_be_compared(queries, documents, texts, options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        tatoeba(queries, documents, texts, **options)


def test_translations(tmp_path):
    def write(name, lines):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")

    write("corpus.jsonl", [{"_id": f"d{i}", "text": f"english {i}"} for i in range(3)])
    queries = [("a", "eins", "deu"), ("b", "zwei", "deu"), ("c", "un", "fra")]
    write(
        "queries.jsonl",
        [{"_id": name, "text": text, "metadata": {"lang": lang}} for name, text, lang in queries],
    )
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\na\td1\t1\nb\td2\t1\nb\td0\t0\nc\td1\t1\nc\td0\t1\n"
    )
    assert translations(Collection(tmp_path)) == {
        "deu": [("eins", "english 1"), ("zwei", "english 2")],
        "fra": [("un", "english 1"), ("un", "english 0")],
    }
    assert list(translations(Collection(tmp_path), field="none")) == [""]
    for judged, said in (("a\tnone\t1\n", "'none' is judged"), ("z\td1\t1\n", "'z' is judged")):
        (tmp_path / "qrels" / "test.tsv").write_text(judged)
        with pytest.raises(InvalidArgumentError, match=said):
            translations(Collection(tmp_path))


def letters(text):
    """A vector of pairs of letters: knows names and numbers, and little else."""
    row = np.zeros(509)
    for pair in zip(text.lower(), text.lower()[1:], strict=False):
        row[(ord(pair[0]) * 31 + ord(pair[1])) % 509] += 1.0
    return row


@pytest.mark.data
def test_on_stored_translations(data_folder):
    folder = data_folder / "tatoeba-x2en"
    if not folder.is_dir():
        pytest.skip(f"no tatoeba-x2en in {data_folder}")
    pairs = translations(Collection(folder))
    assert {"deu", "jpn", "amh", "fra"} <= pairs.keys()
    assert sum(map(len, pairs.values())) == 18_106
    foreign, english = zip(*pairs["deu"][:150], strict=True)
    rows = [np.array([letters(text) for text in side]) for side in (english, foreign)]
    found = tatoeba(rows[0], rows[1], foreign)
    assert found == pytest.approx(plain_tatoeba(rows[0], rows[1], foreign))
    assert 0.1 < found["acc_index"] < 0.9


def test_mrtydi_by_hand(tmp_path):
    path = tmp_path / "run.txt"
    lines = [("q1", "a", 1.0), ("q1", "b", 9.0), ("q2", "c", 1.0), ("q1", "z", 0.0)]
    lines += [("q3", f"d{i}", 1.0) for i in range(99)] + [("q3", "x", 1.0), ("q3", "y", 1.0)]
    path.write_text("".join(f"{q} Q0 {d} 1 {s} tag\n" for q, d, s in lines))
    ranked = read_file_order(path)
    assert ranked["q1"] == ["a", "b", "z"]
    qrels = {
        "q1": {"b": 1, "z": 1},  # 1/2, both found
        "q2": {"a": 1},  # nothing
        "q3": {"x": 1, "y": 1},  # x is the hundredth, y is beyond
        "q4": {"a": 1},  # not answered
    }
    found = mrtydi(qrels, ranked)
    assert found["MRR@100"] == pytest.approx((1 / 2 + 1 / 100) / 4)
    assert found["Recall@100"] == pytest.approx((1 + 1 / 2) / 4)
    path.write_text("q1 Q0\n")
    with pytest.raises(InvalidArgumentError, match=r"run.txt:1: 2 columns"):
        read_file_order(path)
    path.write_bytes(b"q1 Q0 \xff 1 1 tag\n")
    with pytest.raises(InvalidArgumentError, match=r"run.txt: not UTF-8 \(byte 6\)"):
        read_file_order(path)
    with pytest.raises(NotFoundError, match="no such file"):
        read_file_order(tmp_path / "none.txt")
    with pytest.raises(InvalidArgumentError, match="no query in them"):
        mrtydi({}, ranked)


def test_answers_within_so_many_tokens():
    passages = {
        "a": ["one two three", "four Tokyo five"],
        "b": ["one two three", "four tokyo five"],
        "c": ["it is U.S. soil"],
        "d": ["yes"],
        "e": ["Paris"],
        "f": ["nothing here"],
    }
    answers = {
        "a": ["Tokyo"], "b": ["Tokyo"], "c": ["U.S."], "d": ["yes"], "e": ["no", "Paris"],
        "missing": ["x"],
    }  # fmt: skip
    languages = dict.fromkeys("abc", "ja") | dict.fromkeys("def", "fi")
    found = answer_recall(passages, answers, languages, n_tokens=6)
    assert found == {"fi": 1.0, "ja": pytest.approx(1 / 3), "mean": pytest.approx(2 / 3)}
    assert answer_recall(passages, answers, languages, n_tokens=4)["ja"] == 0.0
    whole = answer_recall(passages, answers, languages, n_tokens=6, tokenize=str.split)
    assert whole["ja"] == pytest.approx(2 / 3)
    with pytest.raises(InvalidArgumentError, match="languages: none of query 'a'"):
        answer_recall(passages, answers, {})
    with pytest.raises(InvalidArgumentError, match="none of a query with answers"):
        answer_recall({"d": ["yes"]}, answers, languages)
