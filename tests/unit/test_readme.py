# SPDX-License-Identifier: Apache-2.0
"""What README, evaluation.md and hybrid.md say is so: examples run, commands and options exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from weft.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(
    (ROOT / "docs" / name).read_text() for name in ("evaluation.md", "hybrid.md")
)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGES, re.DOTALL)
DEMO = "pip install -c constraints.txt '.[demo]' && weft demo"
TEST = "pip install -c constraints.txt '.[test]' && pytest"


@pytest.mark.parametrize("code", [code for kind, code in BLOCKS if kind == "python"])
def test_example(code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_the_two_commands():
    assert f"{DEMO}\n{TEST}\n" in [code for kind, code in BLOCKS if kind == ""]


def test_the_gate_runs_the_second_command_in_two_halves():
    gate = (ROOT / ".ci" / "run").read_text()
    install, test = TEST.split(" && ")
    assert install in gate.splitlines()
    assert re.findall(rf"^{test} (\S+)", gate, re.MULTILINE) == [
        "tests/unit",
        "--ignore=tests/unit",
    ]


def test_commands_shown_exist():
    shown = set(re.findall(r"^\$ weft (\w+)", PAGES, re.MULTILINE))
    known = set(typer.main.get_command(app).commands)
    assert shown
    assert shown <= known


def test_options_shown_exist():
    for line in re.findall(r"^\$ weft (.*?)(?:#.*)?$", PAGES, re.MULTILINE):
        command, *words = line.split()
        shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"]).output
        options = {word for word in words if word.startswith("-")}
        assert all(option in shown for option in options), line


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/evaluation.md",
        "docs/gpu.md",
        "docs/hybrid.md",
    ],
)
def test_links(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    links += list(re.findall(r"`((?:docs|tests|csrc|python|tools)/[\w./]+)`", text))
    missing = [
        link
        for link in links
        if not ((ROOT / page).parent / link).exists() and not (ROOT / link).exists()
    ]
    assert not missing


def test_sources_that_comments_cite_are_defined():
    defined = set(
        re.findall(r"^\| ([A-Z0-9]+) \|", (ROOT / "docs/algorithms.md").read_text(), re.M)
    )
    files = [p for top in ("csrc", "python") for p in (ROOT / top).rglob("*")]
    texts = {p: p.read_text() for p in files if p.suffix in {".h", ".cpp", ".inl", ".py"}}
    cited = {
        (p, key) for p, text in texts.items() for key in re.findall(r"\[([A-Z]{4,}\d+)\b", text)
    }
    assert cited
    assert not {(str(p.relative_to(ROOT)), key) for p, key in cited if key not in defined}
