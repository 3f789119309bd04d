# SPDX-License-Identifier: Apache-2.0
"""`weft build` with a recipe and its settings, and what it says about the texts."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

import tiny_colbert
import weft
from helpers import run
from weft.cli import app

SYSTEMS = sorted((Path(__file__).resolve().parents[2] / "docs" / "systems").glob("*.md"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_colbert.write_stanford(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def texts(tmp_path):
    documents = {"a": "the key, lock", "b": "the door " * 20, "c": "key key"}
    path = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"_id": name, "text": text}) for name, text in documents.items()]
    path.write_text("\n".join(lines))
    return path


def test_recipe_and_options(tmp_path, folder, texts):
    options = ["query_policy=jqara", "skiplist_extra=、", "attend=true", "on_long=truncate"]
    words = [word for option in [*options, "document_length=14"] for word in ("--option", option)]
    path = tmp_path / "made.index"
    status, out, err = run(
        "build", path, texts, "--model", folder, "--recipe", "stanford", *words, "--json"
    )
    assert status == 0, err
    found = json.loads(out)
    assert found["encoded"]["n_texts"] == 3
    assert (found["encoded"]["n_cut_texts"], found["encoded"]["n_cut_tokens"]) == (1, 40 - 11)
    stored = weft.Index.open(path).info.encoder
    assert (stored.recipe, stored.document_length, stored.query_length) == ("stanford", 14, 12)
    settings = [stored.settings[option.partition("=")[0]] for option in options]
    assert settings == ["jqara", "、", True, "truncate"]
    status, out, err = run("search", path, "the key", "--json")
    assert status == 0, err
    assert {hit["id"] for hit in json.loads(out)["hits"]} == {"a", "b", "c"}


def test_what_was_cut_is_said(tmp_path, folder, texts):
    command = (
        *("build", tmp_path / "cut.index", texts, "--model", folder, "--no-progress"),
        *("--encoder-device", "cpu"),
    )
    status, _, err = run(*command, "--option", "on_long=truncate")
    assert status == 0
    assert (
        "encoded 3 texts on cpu, 1.02 tokens a word; 0.0 % of what the model read was padding"
        in (" ".join(err.split()))
    )
    assert "1 long texts (33.3 %) lost their end, 27 tokens in all" in " ".join(err.split())
    status, _, err = run(*command, "--replace")
    assert status == 0
    assert "1 long texts were split into windows" in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--option", "attend"], "--option attend: expected NAME=VALUE"),
        (["--option", "colour=red"], "it has no option 'colour'; expected query_policy"),
        (["--option", "document_length=long"], "document_length='long': expected an integer"),
        (["--recipe", "colbert"], "recipe='colbert': expected one of"),
    ],
)
def test_wrong_options(tmp_path, folder, texts, words, message):
    status, _, err = run("build", tmp_path / "made.index", texts, "--model", folder, *words)
    assert status == 3
    assert message in " ".join(err.split())


def test_options_without_a_model(tmp_path, texts):
    status, _, err = run("build", tmp_path / "made.index", texts, "--option", "attend=true")
    assert status == 3
    assert "--recipe, --option: expected --model beside them" in " ".join(err.split())


@pytest.mark.parametrize("page", SYSTEMS, ids=lambda page: page.stem)
def test_the_commands_on_the_page_of_a_system_are_commands(page):
    """Their names, options and kinds of values; what they name need not be there."""
    known = typer.main.get_command(app).commands
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    shown = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    shown = [words for words in shown if words[:1] == ["weft"]]
    assert shown
    for _, name, *rest in shown:
        known[name].make_context(name, rest)
