# SPDX-License-Identifier: Apache-2.0
"""The tools for a machine with a GPU, as far as they run without one."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import weft
from cpp_build import ROOT, run
from helpers import ragged_docs, unit_rows

ATTEST = ROOT / "tools" / "attest.py"


def rows_of(folder, name, *arguments):
    """Compile a benchmark of bench/gpu and give what it prints."""
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    source = ROOT / f"bench/gpu/{name}.cpp"
    run("c++", *flags, f"-I{ROOT / 'csrc'}", source, "-o", folder / name, "-ldl")
    return [json.loads(line) for line in run(folder / name, *arguments).splitlines()]


def test_the_benchmark_of_encoding(emulator, tmp_path):
    rows = rows_of(tmp_path, "encode", emulator, 1_000, 2)
    assert [row["stage"] for row in rows] == ["encode", "label"]
    assert all(row["tokens_per_s"] > 0 for row in rows)
    assert (rows[0]["cells"], rows[0]["children"]) == (16, 1)
    assert rows[0]["operations_per_token"] == 2 * 128 * (16 + 1 + 4)
    assert rows[0]["upload_bytes"] == 1_000 * 256


def test_the_benchmark_of_the_scan(emulator, tmp_path):
    rows = rows_of(tmp_path, "scan", emulator, 100, 1, 2)
    assert [row["batch"] for row in rows] == [1, 8, 64]
    assert all(row["median_ms"] > 0 for row in rows)
    assert rows[0]["operations"] == 2 * 2 * 128 * 2 * 100
    assert rows[0]["code_bytes"] == 100 * (16 + 7)


def test_the_benchmark_of_pruned_search(emulator, tmp_path):
    rows = rows_of(tmp_path, "pruned", emulator, 1_000, 1, 2)
    assert [row["batch"] for row in rows] == [1, 8, 64, 256]
    assert all(row["median_ms"] > 0 for row in rows)
    assert (rows[0]["cells"], rows[0]["fine"]) == (16, 16)
    assert rows[0]["postings"] == 2 * 1_000  # all of both tokens' lists
    assert rows[0]["candidates"] == 10


def test_shares_of_what_a_device_gives():
    spec = importlib.util.spec_from_file_location("roofline", ROOT / "bench/gpu/roofline.py")
    roofline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(roofline)
    ceilings = {"read_bytes_per_s": 4e12, "l2_bytes_per_s": 1e13, "mma_s8_operations_per_s": 8e14}
    row = {"median_ms": 2.0, "code_bytes": 4e9, "centroid_bytes": 2e9, "operations": 4e11}
    found = roofline.with_bound(row, ceilings)
    assert (found["bound_ms"], found["bound_by"]) == (1.0, "code_bytes")
    assert found["share_of_bound"] == 0.5
    found = roofline.with_bound(row | {"operations": 1.2e12}, ceilings)
    assert (found["bound_ms"], found["bound_by"]) == (1.5, "operations")
    row = {"seconds": 1.0, "tokens": 1_000, "operations_per_token": 4e11, "upload_bytes": 8e9}
    found = roofline.with_bound(row, ceilings | {"upload_bytes_per_s": 5e10})
    assert (found["bound_by"], found["share_of_bound"]) == ("operations", 0.5)
    assert roofline.with_bound({"tokens": 5}, ceilings) == {"tokens": 5}


def test_weft_among_the_engines_on_a_device(
    emulator, make_index, rng, small_codec, tmp_path, monkeypatch
):
    """The adapter in a process whose plug-in is the twin; all documents scored on the device."""
    for folder in ("bench", "bench/peers"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    client = importlib.import_module("client")
    site = tmp_path / "site"
    (site / "weft").mkdir(parents=True)
    for path in Path(weft.__file__).parent.iterdir():
        (site / "weft" / path.name).symlink_to(path)
    (site / "weft" / "libweft_cuda.so").unlink(missing_ok=True)
    (site / "weft" / "libweft_cuda.so").symlink_to(emulator)
    docs = ragged_docs(rng, 200, 32)
    index = make_index(docs, ids=[str(i) for i in range(200)], config=weft.IndexConfig(dim=32))
    queries = [unit_rows(rng, 4, 32) for _ in range(6)]
    folder = tmp_path / "set"
    folder.mkdir()
    np.save(folder / "values.f16.npy", np.concatenate(docs).astype(np.float16))
    np.save(folder / "offsets.npy", np.cumsum([0, *map(len, docs)]).astype(np.uint64))
    np.save(folder / "query_values.npy", np.concatenate(queries))
    np.save(folder / "query_offsets.npy", np.arange(0, 28, 4).astype(np.uint64))
    worker = client.Worker(
        Path(sys.executable), "weft_index", 1, tmp_path / "log", device="emu:0",
        python_path=os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]),
    )  # fmt: skip
    try:
        worker.ask("open", folder=str(index.path))
        worker.ask("queries", folder=str(folder), order=list(range(6)))
        every = {"exhaustive": True, "nrerank": 0}
        assert every in worker.ask("settings", k=10)
        for size in (None, 4):
            told = worker.ask("search_batch", k=10, setting=every, n=6, answers=True, at_once=size)
            params = weft.SearchParams(**every)
            wanted = index.searcher().search_batch(queries, 10, params=params)
            assert told["found"] == [[int(name) for name in hits.ids] for hits in wanted]
    finally:
        worker.close()


def test_the_suite_tells_how_it_is_called():
    done = subprocess.run(
        [ROOT / "tools/gpu_suite.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[4].strip() == (
        "tools/gpu_suite.sh OUT.json [--tokens N] [--peers WHEELS]"
    )
    assert "no pass" in done.stderr.splitlines()[-1]


@pytest.fixture
def machine(tmp_path):
    """Programs of a machine with a GPU, as far as they print; building weft is left to a test."""
    tools = tmp_path / "bin"
    tools.mkdir()

    def program(name, text):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)

    ceilings = {"read_bytes_per_s": 4e12, "l2_bytes_per_s": 1e13, "mma_s8_operations_per_s": 8e14}
    ceilings["upload_bytes_per_s"] = 5e10
    scan = {"tokens": 1_000_000, "median_ms": 2.0, "code_bytes": 4e9, "operations": 4e11}
    encode = {"tokens": 1_000, "seconds": 1.0, "operations_per_token": 4e11, "upload_bytes": 8e9}
    peers = {"engine": "weft", "set": "s", "recall@10": 0.9, "ms": [1.0], "shares": [0.9]}
    program("nvidia-smi", "echo 9.0")
    program("made-ceilings", f"echo '{json.dumps(ceilings)}'")
    program("made-scan", f"echo '{json.dumps(scan)}'")
    program("nvcc", f"[ $1 = --version ] || cp {tools}/made-ceilings $work/ceilings")
    pruned = {"tokens": 1_000_000, "batch": 1, "median_ms": 0.25}
    program("made-pruned", f"echo '{json.dumps(pruned)}'")
    program("made-encode", f"echo '{json.dumps(encode)}'")
    program("g++", f'cp {tools}/made-$(basename "$5") "$5"')  # after -o
    program("compute-sanitizer", "echo Device not supported.; exit 1")
    info = {"cuda_build": {"devices": [{"name": "a GPU"}]}}

    def python(pip="true", compare="true"):
        program(
            "python3",
            f"""case "$1 ${{2%% *}}" in
              "-m pip") {pip} ;;
              "-c import") echo '{json.dumps(info)}' ;;
              "-m pytest" | "bench/data.py "*) true ;;
              "bench/peers/run.py "*) mkdir -p $work/peers
                echo '{json.dumps(peers)}' >$work/peers/rows.jsonl; {compare} ;;
              *) exec {sys.executable} "$@" ;;
            esac""",
        )

    def suite(*words):
        out = tmp_path / "out.json"
        done = subprocess.run(
            [ROOT / "tools/gpu_suite.sh", out, *words],
            env=os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert out.exists(), done.stderr
        return done.returncode, json.loads(out.read_text())

    return python, suite


def test_what_the_suite_writes(machine, tmp_path):
    python, suite = machine
    python()
    status, found = suite("--tokens", "5")
    states = {name: step["state"] for name, step in found["steps"].items()}
    checks = {"memcheck", "racecheck", "synccheck"}
    assert {name for name, state in states.items() if state == "unsupported"} == checks
    assert (status, found["ok"]) == (0, True)
    assert found["peers"] == [{"engine": "weft", "set": "s", "recall@10": 0.9}]
    assert len(found["scan"]) == 5  # sizes and bits
    assert found["scan"][0]["share_of_bound"] == 0.5
    assert [row["median_ms"] for row in found["pruned"]] == [0.25] * 3  # sizes
    assert [row["share_of_bound"] for row in found["encode"]] == [0.5, 0.5]  # sizes
    assert "ms" in (tmp_path / "out.peers.jsonl").read_text()


def test_a_suite_that_fails_says_so(machine, tmp_path):
    python, suite = machine
    python(pip="exit 1")
    status, found = suite()
    assert (status, found["ok"]) == (1, False)
    assert found["steps"]["build"]["state"] == "failed"
    python(compare="exit 3")
    status, found = suite("--peers", tmp_path)
    assert (status, found["steps"]["compare"]["status"]) == (1, 3)


def test_the_ceilings_compile(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    run("nvcc", "-std=c++20", "-arch=sm_90a", "-cubin", "-Werror=all-warnings",
        ROOT / "bench/gpu/ceilings.cu", "-o", tmp_path / "ceilings.cubin")  # fmt: skip


@pytest.fixture
def checkout(tmp_path):
    """A copy of what is attested, and a run of the suite over it."""
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "csrc" / "cuda")
    (tmp_path / "tools").mkdir()
    shutil.copy(ATTEST, tmp_path / "tools")
    hashes = json.loads(asked(tmp_path, "json.dumps(attest.source_hashes())"))
    device = {"name": "a GPU"}
    result = {
        "ok": True, "commit": "c", "sources": hashes, "ceilings": [], "scan": [], "pruned": [],
        "info": [{"cuda_build": {"devices": [device]}}],
        "steps": {"tests": {"state": "ok"}, "memcheck": {"state": "unsupported"}},
    }  # fmt: skip
    return tmp_path, result


def attest(folder, result):
    (folder / "out.json").write_text(json.dumps(result))
    return subprocess.run(
        [sys.executable, folder / "tools" / "attest.py", folder / "out.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def asked(folder, expression):
    """What an expression over tools/attest.py gives in this copy."""
    code = f"import json, attest; print({expression})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder / "tools", capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def state(folder):
    return asked(folder, "attest.state()")


def test_attested_sources(checkout):
    folder, result = checkout
    assert state(folder) == "never proved on a GPU"
    assert attest(folder, result).returncode == 0
    assert state(folder).startswith("as proved by the run of 20")
    assert state(folder).endswith("on a GPU")
    (folder / "csrc/cuda/block.h").write_text("changed")
    (folder / "csrc/cuda/abi.h").unlink()
    assert state(folder).startswith("2 files changed since the run of 20")
    assert state(folder).endswith("csrc/cuda/abi.h, csrc/cuda/block.h")


def test_what_is_not_attested(checkout):
    folder, result = checkout
    for wrong in ({**result, "ok": False}, {**result, "sources": {}}):
        assert attest(folder, wrong).returncode == 1
        assert state(folder) == "never proved on a GPU"
