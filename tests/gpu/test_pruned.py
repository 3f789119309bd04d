# SPDX-License-Identifier: Apache-2.0
"""A device's pruned search beside the CPU's: the same documents, floats and counts."""

import numpy as np
import pytest

import weft
from helpers import ragged_docs, unit_rows
from weft import _native
from weft.lifecycle.bitmaps import from_mask

LENGTHS = (1, 5, 16, 33, 100)
# what each row is about: probe and budget, what select cuts, a skim, refine of all, rerank
SETTINGS = [
    {"nprobe": 1, "budget": 1, "ncandidates": 60, "nskim": 0, "nrefine": 40},
    {"nprobe": 4, "budget": 200, "ncandidates": 12, "nskim": 0, "nrefine": 12},
    {"nprobe": 16, "budget": 1_000, "ncandidates": 90, "nskim": 0, "nrefine": 15},
    {"nprobe": 4, "budget": 600, "ncandidates": 150, "nskim": 60, "nrefine": 15},
    {"nprobe": 9, "budget": 10**6, "ncandidates": 10**6, "nskim": 30, "nrefine": 20},
    {"nprobe": 10**4, "budget": 300, "ncandidates": 10**6, "nskim": 9, "nrefine": 10**6},
    {"nprobe": 4, "budget": 500, "ncandidates": 80, "nskim": 40, "nrefine": 20, "floor": 0.0},
    {"nprobe": 4, "budget": 500, "ncandidates": 80, "nskim": 40, "nrefine": 20, "floor": 1.0},
]


def params(nrerank=0, **settings):
    return _native.SearchParams(**settings, nrerank=nrerank, pruned=True)


def made(make_index, rng, nbits, rerank, dim, n_docs=260):
    """Three segments of documents around few centres, some empty, one long, two of them deleted."""
    docs = ragged_docs(rng, n_docs, dim, shortest=0)
    docs[5] = np.concatenate([doc for doc in docs if len(doc)])[:301]
    docs[9] = docs[200] = docs[11]
    index = make_index(config=weft.IndexConfig(dim=dim, nbits=nbits, rerank=rerank))
    for begin, end in ((0, 120), (120, 250), (250, n_docs)):
        index.add([f"d{i}" for i in range(begin, end)], docs[begin:end])
    index.delete(["d3", "d160"])
    return index


def natives(index, device):
    """The engine's searchers: parameters are not widened, and say what was counted."""
    return index.searcher()._native, index.searcher(device=device)._native


def said(found):
    refs = zip(found.segments.tolist(), found.docs.tolist(), strict=True)
    return list(refs), found.scores.tobytes(), found.path, found.n_matching, found.counts


@pytest.mark.usefixtures("small_codec", "unmerged")
@pytest.mark.parametrize(
    ("nbits", "rerank", "dim"),
    [(1, None, 128), (2, None, 70), (4, "plane", 128), (4, "f16", 40), (8, None, 128)],
)
def test_equals_the_cpu(make_index, rng, device, nbits, rerank, dim):
    cpu, there = natives(made(make_index, rng, nbits, rerank, dim), device)
    queries = [unit_rows(rng, n, dim) for n in LENGTHS]
    queries.append(np.repeat(queries[1], 3, axis=0))  # tokens that are merged
    for settings in SETTINGS:
        for nrerank in (0,) if rerank is None and nbits < 8 else (0, 11, 30):
            how = params(nrerank, **settings)
            expected = [said(cpu.search(query, 9, how, None)) for query in queries]
            assert [said(there.search(query, 9, how, None)) for query in queries] == expected
            offsets = np.cumsum([0, *map(len, queries)]).astype(np.uint64)
            batch = there.search_batch(np.concatenate(queries), offsets, 9, how, None)
            assert [said(found) for found in batch] == expected


@pytest.mark.usefixtures("small_codec", "unmerged")
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_filters_read_on(make_index, rng, device, share):
    index = made(make_index, rng, 4, None, 128)
    cpu, there = natives(index, device)
    sizes = [segment.native.n_docs for segment in index.searcher()._snapshot.segments]
    allow = [from_mask(rng.random(n) < share) for n in sizes]
    for settings in SETTINGS:
        for n in (1, 20):
            query = unit_rows(rng, n, 128)
            how = params(**settings)
            expected = said(cpu.search(query, 5, how, allow))
            assert said(there.search(query, 5, how, allow)) == expected


@pytest.mark.usefixtures("small_codec", "unmerged")
def test_windows_and_documents_of_a_grown_codec(make_index, rng, device):
    index = make_index(config=weft.IndexConfig(dim=16, rerank=None))
    for part, shift in enumerate((0.0, 0.0, 3.0)):  # the codec grows for the last ones
        docs = [doc + shift for doc in ragged_docs(rng, 160, 16)]
        ids = [f"p{part}.{i}" for i in range(40)]
        index.add(ids, docs, parents=[i // 4 for i in range(160)])
    assert (
        len({segment.native.codec_checksum for segment in index.searcher()._snapshot.segments}) > 1
    )
    cpu, there = natives(index, device)
    how = params(nprobe=6, budget=400, ncandidates=80, nskim=40, nrefine=25)
    for n in (1, 6, 40):
        query = unit_rows(rng, n, 16)
        assert said(there.search(query, 20, how, None)) == said(cpu.search(query, 20, how, None))
