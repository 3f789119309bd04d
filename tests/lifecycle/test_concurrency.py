# SPDX-License-Identifier: Apache-2.0
"""One writer, many readers, in threads and in processes: every reader sees whole generations."""

import contextlib
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


@contextlib.contextmanager
def two_readers(program, index, last):
    """Two processes that read until they have seen `last`; both have to be content."""
    words = [sys.executable, "-c", program, index.path, str(last)]
    readers = [subprocess.Popen(words) for _ in range(2)]
    try:
        yield
        assert [reader.wait(timeout=120) for reader in readers] == [0, 0]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def test_readers_see_whole_generations(make_index, small_codec, rng):
    index = make_index()
    n_commits = 25  # the codec comes on the way
    with two_readers(READER, index, n_commits + 1), index.writer() as writer:
        for number in range(n_commits):
            docs = ragged_docs(rng, 3, 8, shortest=4)
            ids = [f"d{number}-{i}" for i in range(3)]
            writer.add(ids, docs, texts=ids)
            writer.commit()
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


CHECKER = """
import sys
import numpy as np
import weft

# Every generation holds 20 documents, all with the text of the commit that made it.
index, last = weft.Index.open(sys.argv[1]), 0
while last < int(sys.argv[2]):
    index.refresh()
    searcher = index.searcher()
    hits = searcher.search(np.eye(8), k=1_000)
    documents = searcher.documents(hits.ids)
    assert len(hits) == len(searcher) == hits.n_matching == 20, (len(hits), hits.generation)
    texts = {document.text for document in documents}
    assert len(texts) == 1, (texts, hits.generation)
    found = int(texts.pop())
    assert found >= last, (found, last)
    last = found
"""


def test_readers_see_whole_replacements(make_index, small_codec, rng):
    """Each commit replaces all documents, half by upsert, half by delete and add; some compact."""
    index = make_index()
    ids = [f"d{i}" for i in range(20)]
    index.add(ids, ragged_docs(rng, 20, 8, shortest=4), texts=["0"] * 20)
    index.add([f"x{i}" for i in range(50)], ragged_docs(rng, 50, 8, shortest=8))
    index.delete([f"x{i}" for i in range(50)])
    n_commits = 20
    with two_readers(CHECKER, index, n_commits), index.writer() as writer:
        for number in range(1, n_commits + 1):
            docs = ragged_docs(rng, 20, 8, shortest=4)
            texts = [str(number)] * 20
            assert writer.delete(ids[10:]) == 10
            writer.add(ids[10:], docs[10:], texts=texts[10:])
            writer.upsert(ids[:10], docs[:10], texts=texts[:10])
            if number % 3 == 0:
                writer.compact()
            writer.commit()


def test_a_searcher_in_many_threads_while_its_files_go(make_index, small_codec, rng):
    """One snapshot, searched by threads, while a writer deletes and compacts under it."""
    docs = ragged_docs(rng, 120, 8, shortest=4)
    index = make_index(docs, texts=[str(i) for i in range(120)])
    searcher = index.searcher()
    expected = searcher.search(docs[0], k=200).hits
    failures = []
    done = threading.Event()

    def read():
        while not done.is_set():
            if searcher.search(docs[0], k=200).hits != expected:
                failures.append("hits")
            if searcher.documents(["d7"])[0].text != "7":
                failures.append("text")

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for first in range(0, 100, 10):
            index.delete([f"d{i}" for i in range(first, first + 10)])
            index.compact()
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert len(index) == 20
