# SPDX-License-Identifier: Apache-2.0
"""One writer, many readers, in threads and in processes: every reader sees whole generations."""

import subprocess
import sys
import threading

import numpy as np

import weft
from helpers import ragged_docs

READER = """
import sys
import numpy as np
import weft

last, index = 0, None
while last < int(sys.argv[2]):
    index = weft.Index.open(sys.argv[1]) if index is None or last % 2 else index
    index.refresh()
    hits = index.search(np.eye(8), k=1_000)
    # generation g holds 3 documents of each commit since the first
    assert len(hits) == 3 * (hits.generation - 1), (len(hits), hits.generation)
    assert hits.generation >= last
    texts = index.documents(hits.ids)
    last = hits.generation
"""


def test_readers_see_whole_generations(make_index, small_codec, rng):
    index = make_index()
    n_commits = 25  # the codec comes on the way
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, index.path, str(n_commits + 1)])
        for _ in range(2)
    ]
    try:
        with index.writer() as writer:
            for number in range(n_commits):
                docs = ragged_docs(rng, 3, 8, shortest=4)
                ids = [f"d{number}-{i}" for i in range(3)]
                writer.add(ids, docs, texts=ids)
                writer.commit()
        assert [reader.wait(timeout=120) for reader in readers] == [0, 0]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert index.info.n_fine is not None


def test_one_index_object_in_many_threads(make_index, rng):
    index = make_index(ragged_docs(rng, 5, 8))
    failures = []
    done = threading.Event()

    def read():
        while not done.is_set():
            index.refresh()
            hits = index.search(np.eye(8), k=100)
            if len(hits) != 5 + (hits.generation - 2):
                failures.append((len(hits), hits.generation))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    other = weft.Index.open(index.path)
    for number in range(10):
        other.add([f"n{number}"], ragged_docs(rng, 1, 8))
    done.set()
    for reader in readers:
        reader.join()
    assert failures == []
