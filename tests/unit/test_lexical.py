# SPDX-License-Identifier: Apache-2.0
"""BM25 and its analyser, compared with the formula in loops."""

import math
import sys

import numpy as np
import pytest

import weft
from weft import evaluation
from weft.errors import InvalidArgumentError, MissingExtraError
from weft.evaluation import Collection
from weft.lexical import BM25, terms

AMHARIC = """አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።
አዲስ አበባ፣ ሸገር ተብላም ትጠራለች፤ ከተማዋ ትልቅ ናት።
የዓለም ከተማዎች፡ለንደን፡ፓሪስ።
ላሊበላ በአማራ ክልል ይገኛል።
ላሊበላ፦ ውቅር አብያተ ክርስቲያናት።
አክሱም ጥንታዊ ከተማ ናት፤ ሐውልት አላት።
የአክሱም ሐውልት ትልቅ ነው።
ጣና ሐይቅ የአባይ ወንዝ መነሻ ነው።
አባይ ወንዝ ረጅም ነው፣ በጣም ረጅም።
ሐረር ግንብ አላት።
ጎንደር የፋሲል ግንብ ይገኝባታል።
ጎንደር ጎንደር ጎንደር።
ቡና ከኢትዮጵያ ተገኘ።
የኢትዮጵያ ቡና ትልቅ ስም አለው።
እንጀራ ከጤፍ ይሠራል።
ጤፍ እና ቡና።
ራስ ዳሸን ረጅም ተራራ ነው።
ዳናኪል ሞቃት ነው!
ብሔራዊ ሙዚየም «ሉሲ» አለችበት።
ሉሲ በአፋር ተገኘች፨""".splitlines()
ETHIOPIC_MARKS = [chr(code) for code in range(0x1361, 0x1369)]


def bm25_by_loops(texts, query, k1=0.9, b=0.4):
    """The formula, one document and one term after the other; texts are lists of terms."""
    mean = sum(map(len, texts)) / len(texts)
    scores = []
    for words in texts:
        score = 0.0
        for term in query:
            df = sum(term in other for other in texts)
            tf = words.count(term)
            idf = math.log(1 + (len(texts) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def ethiopic_words(line):
    """Words of an Amharic line, told apart by hand."""
    for mark in [*ETHIOPIC_MARKS, *"!«»"]:
        line = line.replace(mark, " ")
    return line.split()


def documents(texts):
    return [weft.Document(f"d{i:02}", text) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Émigré's ＮＨＫ—show", ["the", "émigré", "s", "nhk", "show"]),
        ("ሰላም፡ዓለም፣እንዴት፤ነህ።", ["ሰላም", "ዓለም", "እንዴት", "ነህ"]),
        ("梅雨入り、梅", ["梅雨", "雨入", "入り", "梅"]),
        ("ﾊﾟﾝ屋", ["パン", "ン屋"]),
        ("서울은 2 도시", ["서울", "울은", "2", "도시"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
        ("नमस्ते, दुनिया।", ["नमस्ते", "दुनिया"]),
        ("𠮷野家", ["𠮷野", "野家"]),
        ("a\u00adb\x00c\u200bd", ["a", "b", "c", "d"]),
        ("¿Qué? (x+y) $5", ["qué", "x+y", "$5"]),
        (" \n", []),
    ],
)
def test_terms(text, expected):
    assert terms(text) == expected


def test_every_ethiopic_mark_parts_words():
    assert all(terms(f"ሰላም{mark}ዓለም") == ["ሰላም", "ዓለም"] for mark in ETHIOPIC_MARKS)


@pytest.mark.parametrize("query", ["የኢትዮጵያ ቡና", "ጎንደር ግንብ ግንብ", "ረጅም፡ወንዝ", "ትልቅ ከተማ ናት"])
def test_amharic_lines_against_the_formula(query):
    bm25 = BM25(documents(AMHARIC))
    scores = bm25_by_loops([ethiopic_words(line) for line in AMHARIC], ethiopic_words(query))
    expected = {f"d{i:02}": score for i, score in enumerate(scores) if score > 0}
    best = sorted(expected, key=lambda name: (-expected[name], name))
    assert 1 < len(best) < 20
    found = bm25.search(query, 20)
    assert list(found) == best
    assert found == pytest.approx(expected, rel=1e-12)
    assert list(bm25.search(query, 2)) == best[:2]
    assert bm25.score(query, ["d00", "d13"]) == pytest.approx(
        {"d00": scores[0], "d13": scores[13]}, rel=1e-12
    )


def test_random_words_against_the_formula():
    rng = np.random.default_rng(3)
    texts = [
        [f"w{int(word)}" for word in rng.zipf(1.5, rng.integers(0, 30)) if word < 500]
        for _ in range(60)
    ]
    bm25 = BM25(documents([" ".join(words) for words in texts]))
    for _ in range(20):
        query = [f"w{int(word)}" for word in rng.integers(1, 30, 4)]
        expected = bm25_by_loops(texts, query)
        found = bm25.search(" ".join(query), 60)
        assert found == pytest.approx(
            {f"d{i:02}": score for i, score in enumerate(expected) if score > 0}, rel=1e-12
        )


def test_equal_scores_are_in_the_order_of_the_ids_as_bytes():
    same = [weft.Document(name, "tea") for name in ("é", "z", "a", "Z", "b")]
    assert list(BM25([*same, weft.Document("other", "keys")]).search("tea", 3)) == ["Z", "a", "b"]


def test_what_has_no_answer():
    bm25 = BM25([weft.Document("a", "tea"), weft.Document("b", None), weft.Document("c", "")])
    assert len(bm25) == 3
    assert bm25.search("unknown words", 10) == {}
    assert bm25.search("...", 10) == {}
    assert list(bm25.search("tea", 10)) == ["a"]


def test_what_cannot_be(monkeypatch):
    with pytest.raises(InvalidArgumentError, match="'a': comes twice"):
        BM25([weft.Document("a", "x"), weft.Document("a", "y")])
    with pytest.raises(InvalidArgumentError, match="1 of them and no word in any"):
        BM25([weft.Document("a", "?!")])
    with pytest.raises(InvalidArgumentError, match="'z': not among"):
        BM25([weft.Document("a", "x")]).score("x", ["z"])
    with pytest.raises(InvalidArgumentError, match="k=0"):
        BM25([weft.Document("a", "x")]).search("x", 0)
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weft\[eval\]'"):
        BM25([])


# R@1 and nDCG@10 of another implementation of the same formula. It told words apart at white space
# and ASCII punctuation only, so typographic quotes stayed with their words: some points lower.
ANCHORS = {
    "jsquad-valid": (0.912, 0.945, 0.002),
    "xquad-en": (0.917, 0.958, 0.005),
    "amqa": (0.835, 0.898, 0.008),
}


@pytest.mark.data
@pytest.mark.parametrize("name", ANCHORS)
def test_anchors(data_folder, name):
    if not (data_folder / name).is_dir():
        pytest.skip(f"no {name} in {data_folder}")
    bm25 = BM25(Collection(data_folder / name).corpus)
    queries = evaluation.read_queries(Collection(data_folder / name).queries)
    qrels = {}
    for split in sorted((data_folder / name / "qrels").glob("*.tsv")):
        qrels |= evaluation.read_qrels(split)
    run = {query: bm25.search(queries[query], 10) for query in qrels}
    first, gain, tolerance = ANCHORS[name]
    assert evaluation.measure(qrels, run, ["R@1", "nDCG@10"]) == pytest.approx(
        {"R@1": first, "nDCG@10": gain}, abs=tolerance
    )
