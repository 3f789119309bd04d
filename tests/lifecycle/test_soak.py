# SPDX-License-Identifier: Apache-2.0
"""Eight readers in processes and threads beside a writer that is killed again and again.

pytest --run-slow --soak 600 tests/lifecycle/test_soak.py -s
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import weft

N_DOCS = 40
COMMON = """
import dataclasses, json, sys, threading, time
from pathlib import Path
import numpy as np
import weft, weft.lifecycle.builder, weft.tuner
small = dataclasses.replace(weft.lifecycle.builder.defaults, codec_tokens=400, tuning_queries=8)
weft.lifecycle.builder.defaults = weft.tuner.defaults = small
path, stop = Path(sys.argv[1]), Path(sys.argv[1] + ".stop")
IDS = [f"d{i}" for i in range(40)]
"""
WRITER = (
    COMMON
    + """
rng = np.random.default_rng()
with weft.Index.open(path).writer() as writer:
    step = int(weft.Index.open(path).documents(["d0"])[0].text)
    while True:
        step += 1
        rows = [rng.normal(size=(rng.integers(4, 12), 8)) for _ in IDS]
        writer.delete(IDS[20:])
        writer.add(IDS[20:], rows[20:], texts=[str(step)] * 20)
        writer.upsert(IDS[:20], rows[:20], texts=[str(step)] * 20)
        writer.upsert([f"x{step % 200}-{i}" for i in range(5)], rows[:5], texts=["x"] * 5)
        if step % 7 == 0:
            writer.delete([f"x{number}-{i}" for number in range(100) for i in range(5)])
        if step % 11 == 0:
            writer.compact()
        writer.commit()
"""
)
READER = (
    COMMON
    + """
counts, failures, memory = [0], [], []

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def check(shared):
    last = 0
    while not stop.exists():
        index = shared
        if counts[0] % 50 == 0:
            index = weft.Index.open(path)
        else:
            index.refresh()
        searcher = index.searcher()
        hits = searcher.search(np.eye(8), k=2_000)
        ours = [hit.id for hit in hits if hit.id.startswith("d")]
        assert sorted(ours) == sorted(IDS), (len(ours), hits.generation)
        assert len(hits) == hits.n_matching == len(searcher)
        texts = {document.text for document in searcher.documents(ours)}
        assert len(texts) == 1, (texts, hits.generation)
        found = int(texts.pop())
        assert found >= last or index is not shared, (found, last)
        last = max(found, last)
        counts[0] += 1

def run(shared):
    try:
        check(shared)
    except BaseException as error:
        failures.append(repr(error))

index = weft.Index.open(path)
threads = [threading.Thread(target=run, args=(index,)) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
while any(thread.is_alive() for thread in threads):
    time.sleep(0.5)
    memory.append(anonymous())
third = len(memory) // 3
print(json.dumps({
    "checks": counts[0], "failures": failures,
    "kB_in_thirds": [max(memory[i * third : (i + 1) * third]) for i in range(3)],
}))
"""
)


@pytest.mark.slow
def test_soak(tmp_path, request):
    seconds = request.config.getoption("--soak")
    path, rng = tmp_path / "a.index", np.random.default_rng(11)
    index = weft.Index.create(path, weft.IndexConfig(dim=8))
    ids = [f"d{i}" for i in range(N_DOCS)]
    index.add(ids, [rng.normal(size=(12, 8)) for _ in ids], texts=["0"] * N_DOCS)
    readers = [python(READER, path, n_threads) for n_threads in (1, 1, 6)]
    end, n_kills = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < end:
            writer = python(WRITER, path)
            time.sleep(1.5 + 3 * rng.random())
            writer.kill()
            err = writer.communicate()[1]
            assert writer.returncode == -signal.SIGKILL, err
            n_kills += 1
            assert weft.Index.open(path).verify(deep=True) == ()
    finally:
        Path(f"{path}.stop").touch()
        answers = [reader.communicate(timeout=60) for reader in readers]
    fresh = weft.Index.open(path)
    report = {"seconds": seconds, "kills": n_kills, "generation": fresh.generation,
              "segments": fresh.info.n_segments}  # fmt: skip
    found = [json.loads(out) for out, _ in answers]
    print(json.dumps({**report, "readers": found}, indent=1))
    assert [one["failures"] for one in found] == [[], [], []]
    assert all(one["checks"] > seconds for one in found)
    for (
        one
    ) in found:  # flat, once the index is as large as it gets, but for what an allocator keeps
        _, second, last = one["kB_in_thirds"]
        assert last < 1.2 * second + 10_000
    assert fresh.generation > n_kills
    with fresh.writer():  # and the next writer leaves nothing behind
        pass
    assert len(list(path.iterdir())) < 120


def python(code, *words):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
