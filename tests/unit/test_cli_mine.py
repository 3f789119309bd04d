# SPDX-License-Identifier: Apache-2.0
"""weft mine and weft distill, from a collection on disk to training files."""

import functools
import json

import numpy as np
import pytest

import helpers
import weft
from helpers import FakeEncoder
from weft import evaluation
from weft.cli import mine as cli_mine

WORDS = [f"word{i}" for i in range(50)]


run = functools.partial(helpers.run, env={"COLUMNS": "160"})


def as_json(*words):
    status, out, err = run(*words, "--json")
    assert status == 0, err
    return json.loads(out)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A collection of 60 documents and 12 queries in the present folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(8)
    (tmp_path / "made" / "qrels").mkdir(parents=True)
    documents = [[str(word) for word in rng.choice(WORDS, 15)] for _ in range(60)]
    texts = [{"_id": f"d{i}", "text": " ".join(words)} for i, words in enumerate(documents)]
    queries = [{"_id": f"q{i}", "text": " ".join(documents[i][:4])} for i in range(12)]
    for name, rows in (("corpus", texts), ("queries", queries)):
        rows = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "made" / f"{name}.jsonl").write_text(rows)
    for split, of in (("train", range(8)), ("test", range(8, 12))):
        rows = "".join(f"q{i}\td{i}\t1\n" for i in of)
        (tmp_path / "made" / "qrels" / f"{split}.tsv").write_text(rows)
    return evaluation.Collection(tmp_path / "made", "train")


def test_from_a_collection_to_training_files(made):
    found = as_json(
        "mine", "n.jsonl", "--data", "made", "--window", "2:30", "-n", "3", "--choose", "random",
        "--exclude-split", "test",
    )  # fmt: skip
    assert (found["queries"], found["examples"], found["negatives"]) == (8, 8, 24)
    assert found["rule"]["window"] == [2, 30]
    assert found["excluded"] == 4
    about = json.loads((made.folder.parent / "n.about.json").read_text())
    assert about["rule"] == found["rule"]
    mined = lines(made.folder.parent / "n.jsonl")
    for row in mined:
        assert row["positives"] == [f"d{row['query'][1:]}"]
        for negative in row["negatives"]:
            assert negative["id"] not in {*row["positives"], "d8", "d9", "d10", "d11"}
            assert negative["ranker"] == "bm25"
    again = as_json("mine", "m.jsonl", "--data", "made", "--window", "2:30", "-n", "3", "--choose",
                    "random", "--exclude-split", "test")  # fmt: skip
    assert again == found
    assert lines(made.folder.parent / "m.jsonl") == mined

    done = as_json("distill", "n.jsonl", "train", "--data", "made", "--format", "pylate",
                   "--teacher", "bm25", "--normalise", "minmax")  # fmt: skip
    assert (done["teacher"], done["normalise"], done["n_rows"], done["nway"]) == (
        "bm25", "minmax", 8, 4,
    )  # fmt: skip
    rows = lines(made.folder.parent / "train" / "train.jsonl")
    for row, example in zip(rows, mined, strict=True):
        ids = [negative["id"] for negative in example["negatives"]]
        assert row["document_ids"] == [*example["positives"], *ids]
        raw = [negative["score"] for negative in example["negatives"]]
        order = np.argsort(raw, kind="stable")
        assert list(np.argsort(row["scores"][1:], kind="stable")) == list(order)
        assert min(row["scores"]) == 0.0
        assert row["scores"][0] == pytest.approx(1.0)
    status, out, _ = run("distill", "n.jsonl", "plain", "--data", "made", "--format", "stanford")
    assert status == 0
    assert "7 in plain" in out


def test_an_index_and_a_run_find_candidates(made, monkeypatch):
    retriever = weft.Retriever.create("made.index", FakeEncoder())
    retriever.add(made.corpus)
    monkeypatch.setattr(cli_mine, "open_retriever", lambda *_: retriever)
    monkeypatch.setattr(cli_mine.Retriever, "open", staticmethod(lambda _path, **_: retriever))
    evaluation.write_run("far.trec", {f"q{i}": {"d59": 1.0, "d58": 0.5} for i in range(8)})
    found = as_json("mine", "n.jsonl", "--data", "made", "--with", "made.index",
                    "--with", "far.trec", "-n", "4", "--max-similarity", "0.99")  # fmt: skip
    assert found["with"] == ["made.index", "far.trec"]
    for row in lines(made.folder.parent / "n.jsonl"):
        by = [negative["ranker"] for negative in row["negatives"]]
        assert by[:2] == ["made.index", "far.trec"]
        assert row["negatives"][1]["id"] == "d59"
    done = as_json("distill", "n.jsonl", "out", "--data", "made", "--format", "flagembedding",
                   "--teacher", "made.index")  # fmt: skip
    assert done["normalise"] == "none"
    encoder = FakeEncoder()
    texts = {document.id: document.text for document in made.corpus}
    for line, row in zip(lines(made.folder.parent / "out" / "train.jsonl"),
                         lines(made.folder.parent / "n.jsonl"), strict=True):  # fmt: skip
        query = encoder.encode_queries([row["text"]])[0].values
        names = [negative["id"] for negative in row["negatives"]]
        exact = [
            (query @ encoder.encode_documents([texts[n]])[0][0].values.T).max(axis=1).sum()
            for n in names
        ]
        assert line["neg"] == [texts[name] for name in names]
        assert line["neg_scores"] == pytest.approx(exact, abs=5e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window", "9"], "--window 9: expected two ranks"),
        (["--window", "9:3"], "window=(9, 3)"),
        (["--preset", "best"], "preset='best'"),
        (["--preset", "granite"], "max_similarity"),
        (["--max-similarity", "0.9"], "needs an index"),
        (["--with", "nothing.trec"], "nothing.trec: expected bm25"),
        (["--split", "dev"], "qrels/dev.tsv: no such file"),
        (["--choose", "worst"], "choose='worst'"),
        (["--weights", "dense=1"], "--weights dense=1: expected an index among --with"),
    ],
)
def test_what_cannot_be_mined(made, words, said):
    status, _, err = run("mine", "n.jsonl", "--data", "made", *words)
    assert status in (3, 4)
    assert said in err
    assert not (made.folder.parent / "n.jsonl").exists()


def test_what_cannot_be_distilled(made, monkeypatch):
    assert run("mine", "n.jsonl", "--data", "made", "-n", "2")[0] == 0
    assert run("mine", "n.jsonl", "--data", "made")[0] == 5
    words = ["distill", "n.jsonl", "out", "--data", "made", "--format"]
    assert "expected --teacher" in run(*words, "stanford", "--normalise", "minmax")[2]
    assert "has no scores" in run(*words, "pylate")[2]
    assert "expected one of stanford" in run(*words, "word")[2]
    assert run("mine", made.folder.parent / "none" / "n.jsonl", "--data", "made")[0] == 4
    monkeypatch.setattr(cli_mine, "distill", None)  # what is wrong anyhow is said before scoring
    scored = ["stanford", "--teacher", "bm25"]
    assert "expected one of stanford" in run(*words, "word", *scored[1:])[2]
    (made.folder.parent / "out").mkdir(exist_ok=True)
    (made.folder.parent / "out" / "mine.txt").write_text("kept")
    status, _, err = run(*words, *scored)
    assert (status, "out: not empty" in err) == (5, True)
    (made.folder.parent / "out" / "mine.txt").unlink()
    (made.folder.parent / "bad.jsonl").write_text('{"query": "q"}\n')
    _, _, err = run("distill", "bad.jsonl", "out", "--data", "made", "--format", "stanford")
    assert "bad.jsonl:1: not an example" in err


@pytest.mark.parametrize("command", ["mine", "distill"])
def test_help_teaches(command):
    assert f"$ weft {command}" in run(command, "--help")[1]
