# SPDX-License-Identifier: Apache-2.0
"""`weft delete`, `weft compact`, what `weft info` says of them; `weft repair`."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import weft
from helpers import run


@pytest.fixture
def small_index(tmp_path):
    rng = np.random.default_rng(5)
    index = weft.Index.create(tmp_path / "small.index", weft.IndexConfig(dim=16))
    for batch in ("abcde", "fgh"):
        index.add(list(batch), [rng.normal(size=(3, 16)) for _ in batch])
    return index


def test_delete(small_index, tmp_path):
    path = small_index.path
    status, out, _ = run("delete", path, "a", "nobody", "a")
    assert (status, out) == (0, "deleted 1 of 2 documents, 1 were not there\n")
    gone = tmp_path / "gone.txt"
    gone.write_text("b\r\n\nf\na\n")
    status, out, _ = run("delete", path, "c", "--ids", gone, "--json")
    found = json.loads(out)
    assert (found["deleted"], found["unknown"], found["generation"]) == (3, 1, 5)
    assert len(weft.Index.open(path)) == 4
    command = [sys.executable, "-m", "weft", "delete", path, "--ids", "-"]
    done = subprocess.run(command, input="d\n", capture_output=True, text=True, check=True)
    assert done.stdout == "deleted 1 of 1 documents\n"


def test_delete_refuses(small_index, tmp_path):
    path = small_index.path
    (tmp_path / "bad.txt").write_bytes(b"a\n\xff\n")
    for words, status, message in (
        ((path,), 3, "no ids"),
        ((path, "a", "b\x1f0"), 3, "U+001F"),
        ((path, "--ids", tmp_path / "none.txt"), 4, "none.txt: no such file"),
        ((path, "--ids", tmp_path / "bad.txt"), 3, "bad.txt: byte 2 is not UTF-8"),
        ((tmp_path / "none.index", "a"), 4, "no index there"),
    ):
        found, out, err = run("delete", *words)
        assert (found, out) == (status, "")
        assert message in err
    with small_index.writer():
        status, _, err = run("delete", path, "a")
        assert status == 5
        assert f"process {os.getpid()}" in err
    assert len(weft.Index.open(path)) == 8


@pytest.mark.usefixtures("unmerged")
def test_compact_and_what_info_says_before_it(small_index):
    path = small_index.path
    assert "2; compact would leave 1" in run("info", path)[1]
    run("delete", path, "a", "g")
    out = run("info", path)[1]
    wanted = r"segments +2, 2 deleted .*, 2\d\.\d% of the disk; compact would free about .* leave 1"
    assert re.search(wanted, out)
    held = json.loads(run("info", path, "--json")[1])
    assert (held["n_docs"], held["n_segments"], held["n_deleted"]) == (6, 2, 2)
    assert held["n_segments_compacted"] == 1
    assert held["n_deleted_bytes"] > 0
    status, out, _ = run("compact", path, "--json", "--no-progress")
    found = json.loads(out)
    assert status == 0
    assert (found["n_docs"], found["n_segments_before"], found["n_segments"]) == (6, 2, 1)
    assert (found["n_deleted"], found["n_deleted_bytes"]) == (0, 0)
    assert found["freed"] == held["n_bytes"] - found["n_bytes"]
    assert "there was nothing to compact" in run("compact", path)[2]
    assert "sound" not in run("verify", path, "--deep")[1]
    assert run("verify", path, "--deep")[0] == 0


def test_repair(small_index):
    path = small_index.path
    status, out, _ = run("repair", path)
    assert (status, out) == (0, "no damage found, nothing was changed\n")
    damaged = path / small_index._manifest.segments[1].file
    data = bytearray(damaged.read_bytes())
    data[-100] ^= 1
    damaged.write_bytes(data)
    status, out, err = run("verify", path, "--deep")
    assert status == 9
    assert f"{damaged.name}: rows: checksum mismatch" in out
    assert "\n  lost: 3 documents\n" in out
    assert f"weft repair {path} keeps the rest" in err
    found = json.loads(run("verify", path, "--deep", "--json")[1])
    assert [(one["file"], one["loss"]) for one in found["problems"]] == [
        (damaged.name, "3 documents")
    ]
    status, out, _ = run("repair", path, "--no-progress")
    assert status == 9
    assert "generation 4 has 5 documents, 3 are lost" in out
    assert f"everything damaged is kept in {path / 'damaged-000004'}" in out
    status, out, _ = run("repair", path, "--json")
    found = json.loads(out)
    assert (status, found["generation"], found["n_docs"], found["folder"]) == (0, 4, 5, None)
    assert run("verify", path, "--deep")[0] == 0
    lost = [json.loads(line) for line in (path / "damaged-000004/lost.jsonl").open()]
    assert [document["id"] for document in lost] == ["f", "g", "h"]
