# SPDX-License-Identifier: Apache-2.0
"""Wrong input at the command line: one error that names the thing, and nothing is changed."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import weft
from helpers import FakeEncoder
from weft.cli import app


def make_wrong_input(index):
    """Files of every kind that a command should refuse, and damaged copies of an index."""
    good = b'{"_id": "a", "text": "one"}\n'
    lines = {
        "middle": good + b"{'_id': 'b'}\n" + good,
        "array": b"[1, 2]\n",
        "twice": good + good,
        "anonymous": b'{"text": "one"}\n',
        "number": b'{"_id": "a", "text": 5}\n',
        "latin": '{"_id": "a", "text": "café"}\n'.encode("latin-1"),
        "surrogate": b'{"_id": "a", "text": "\\ud800"}\n',
        "nul": b'{"_id": "a\\u0000", "text": "one"}\n',
        "nan": b'{"_id": "a", "text": "one", "year": NaN}\n',
    }
    for name, content in lines.items():
        Path(f"{name}.jsonl").write_bytes(content)
    Path("packed.jsonl.gz").write_bytes(b"no gzip")
    Path("columns.tsv").write_text("a\tone\nb\ttwo\tt\tx\n")
    Path("paper.pdf").write_bytes(b"%PDF")
    Path("empty").mkdir()
    Path("folder.npy").mkdir()
    Path("blank.tsv").write_text("q1\t\n")
    Path("queries.tsv").write_text("q1\ttea\n")
    Path("others.tsv").write_text("q7\td\t1\n")

    rows = np.random.default_rng(3).standard_normal((6, 16)).astype(np.float32)
    holes = rows.copy()
    holes[3, 2] = np.nan
    arrays = {
        "alone": (rows, None),
        "nan": (holes, [0, 2, 4, 6]),
        "short": (rows, [0, 2, 4, 7]),
        "back": (rows, [0, 5, 2, 6]),
        "fractions": (rows, [0.0, 2.0, 6.0]),
        "whole": (rows.astype(int), [0, 6]),
        "flat": (rows[0], [0, 6]),
        "wide": (np.ones((2, 5_000), np.float32), [0, 2]),
        "none": (rows[:0], [0]),
    }
    for name, (values, offsets) in arrays.items():
        Path(name).mkdir()
        np.save(f"{name}/values.npy", values)
        if offsets is not None:
            np.save(f"{name}/offsets.npy", np.array(offsets))
    Path("text.npy").write_text("hello")
    header = b'{"rows": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    whole = len(header).to_bytes(8, "little") + header + b"\0" * 4
    Path("key.safetensors").write_bytes(whole)
    Path("cut.safetensors").write_bytes(whole.replace(b"rows", b"values")[:20])
    Path("list.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")

    for name in ("cut", "flipped", "newer", "gone"):
        shutil.copytree(index, f"{name}.index")
    (segment,) = Path("cut.index").glob("seg-*.weft")
    os.truncate(segment, 200)
    (manifest,) = Path("flipped.index").glob("manifest-*2.json")
    manifest.write_bytes(manifest.read_bytes().replace(b'"dim":', b'"din":'))
    (manifest,) = Path("newer.index").glob("manifest-*2.json")
    manifest.write_bytes(manifest.read_bytes().replace(b'"format":1', b'"format":2'))
    next(Path("gone.index").glob("*.sqlite")).unlink()


WRONG = {
    "no such source": (["build", "x", "absent"], 4, "absent: no such file"),
    "an empty folder": (["build", "x", "empty"], 4, r"empty: no \.txt, \.md, \.rst files below"),
    "a bad line": (["build", "x", "middle.jsonl"], 3, r"middle\.jsonl:2: not JSON"),
    "no object": (["build", "x", "array.jsonl"], 3, "array.jsonl:1: list, expected an object"),
    "an id twice": (["build", "x", "twice.jsonl"], 3, "id 'a': added before"),
    "no id": (["build", "x", "anonymous.jsonl"], 3, "anonymous.jsonl:1: no _id or id"),
    "a number as text": (["build", "x", "number.jsonl"], 3, "number.jsonl:1: text: int, expected"),
    "Latin-1": (["build", "x", "latin.jsonl"], 3, "latin.jsonl:1: not UTF-8"),
    "half a pair": (["build", "x", "surrogate.jsonl"], 3, "surrogate.jsonl:1: text: .*surrogate"),
    "U+0000 in an id": (["build", "x", "nul.jsonl"], 3, r"expected no U\+0000"),
    "NaN in metadata": (["build", "x", "nan.jsonl"], 3, "'a': metadata field 'year' is nan"),
    "no gzip": (["build", "x", "packed.jsonl.gz"], 3, "packed.jsonl.gz: damaged gzip"),
    "too many columns": (["build", "x", "columns.tsv"], 3, "columns.tsv:2: 4 columns, expected"),
    "another kind": (["build", "x", "paper.pdf"], 3, "paper.pdf: expected a folder, or a file"),
    "a folder": (["build", "x", "folder.npy"], 3, "folder.npy: a folder, expected a file"),
    "no offsets": (["build", "x", "alone/values.npy"], 4, "alone/offsets.npy: no such file"),
    "NaN": (["build", "x", "nan/values.npy"], 3, "document '1', row 1: NaN or infinite"),
    "offsets too far": (["build", "x", "short/values.npy"], 3, "from 0 to 7, expected from 0 to 6"),
    "a step back": (["build", "x", "back/values.npy"], 3, "without a step back"),
    "float offsets": (["build", "x", "fractions/values.npy"], 3, "float64 .*expected integers"),
    "integer rows": (["build", "x", "whole/values.npy"], 3, "int64, expected float16"),
    "one dimension": (["build", "x", "flat/values.npy"], 3, r"shape \(16,\), expected floats"),
    "too many dims": (["build", "x", "wide/values.npy"], 3, r"dim=5000: .*1\.\.4097"),
    "no documents": (["build", "x", "none/values.npy"], 3, "no documents, expected at least one"),
    "no .npy": (["build", "x", "text.npy"], 3, "text.npy: not a .npy file"),
    "another key": (["build", "x", "key.safetensors"], 3, "no tensor .*'values'.*found rows"),
    "a short header": (["build", "x", "cut.safetensors"], 3, "not a .safetensors file"),
    "no header": (["build", "x", "list.safetensors"], 3, "its header is a list"),
    "dim 0": (["plan", "others.tsv", "--dim", 0], 3, "dim=0: expected"),
    "an empty query to tune": (
        ["build", "x", "others.tsv", "--queries", "blank.tsv"],
        3,
        "blank.tsv: query 'q1' is empty",
    ),
    "a truncated segment": (["search", "cut.index", "tea"], 6, "seg-.*: has 200 bytes, expected"),
    "a changed manifest": (
        ["info", "flipped.index"],
        6,
        "damaged manifest .*generation 1 is whole",
    ),
    "a newer format": (["verify", "newer.index"], 6, "format 2 was written by a newer weft"),
    "a file gone": (["search", "gone.index", "tea"], 6, "sqlite: is missing"),
    "a folder of queries": (["eval", "cut.index", "--queries", "empty"], 3, "empty: a folder"),
    "an empty query": (["eval", "cut.index", "--queries", "blank.tsv"], 3, "'q1' is empty"),
    "other judgements": (
        ["eval", "cut.index", "--queries", "queries.tsv", "--qrels", "others.tsv"],
        3,
        "no queries that others.tsv judges",
    ),
    "judgements in a folder": (
        ["eval", "cut.index", "--queries", "queries.tsv", "--qrels", "empty"],
        7,
        "empty: cannot read: Is a directory",
    ),
    "a demo in a file": (["demo", "--path", "paper.pdf"], 7, "paper.pdf: cannot create folder"),
    "a demo of no hits": (["demo", "-k", 0], 3, "k=0: expected"),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "sound.index"
    weft.Retriever.create(path, FakeEncoder()).add([weft.Document("a", "green tea")])
    return path


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input(case, index, tmp_path, monkeypatch):
    words, status, said = WRONG[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("weft.cli.build.load", lambda *_args, **_options: FakeEncoder())
    make_wrong_input(index)
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    if words[0] == "build" and not words[2].endswith((".npy", ".safetensors")):
        words = [*words, "--model", "fake"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert (done.exit_code, done.stdout) == (status, ""), done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert re.search(said, line), line
    assert "Traceback" not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}
    kept = tmp_path / "x.building"  # what was encoded before the wrong document was met
    assert kept.exists() == ("is kept in x.building" in done.stderr) == (case == "an id twice")
    after = {path: time for path, time in after.items() if not path.is_relative_to(kept)}
    assert after == before
