# SPDX-License-Identifier: Apache-2.0
"""A device's exhaustive search beside the CPU's: the same documents and the same floats."""

import os
import threading

import numpy as np
import pytest
from typer.testing import CliRunner

import weft
from helpers import ragged_docs, unit_rows
from weft import _native
from weft.cli import app

# bits, rerank, dim: 128 has kernels of its own, 40 and 70 are padded
CASES = [(1, None, 128), (2, "f16", 70), (4, None, 128), (4, "plane", 40), (8, None, 128)]


def made(make_index, rng, nbits, rerank, dim, n_docs=220, **more):
    """An index of two segments with empty, deleted and very long documents."""
    docs = ragged_docs(rng, n_docs, dim, shortest=0)
    docs[5] = np.concatenate([doc for doc in docs if len(doc)])[:301]
    config = weft.IndexConfig(dim=dim, nbits=nbits, rerank=rerank)
    index = make_index(config=config)
    ids = [f"d{i}" for i in range(n_docs)]
    index.add(ids[:150], docs[:150], **{k: v[:150] for k, v in more.items()})
    index.add(ids[150:], docs[150:], **{k: v[150:] for k, v in more.items()})
    index.delete(["d3", "d160"])
    return index


def both(hits):
    return [(hit.id, hit.score) for hit in hits]


@pytest.mark.usefixtures("small_codec", "unmerged")
@pytest.mark.parametrize(("nbits", "rerank", "dim"), CASES)
def test_equals_the_cpu(make_index, rng, device, nbits, rerank, dim):
    index = made(make_index, rng, nbits, rerank, dim)
    cpu, there = index.searcher(), index.searcher(device=device)
    assert there.device == device
    queries = [unit_rows(rng, n, dim) for n in (1, 16, 17, 32, 33, 100)]
    for query in queries:
        hits = there.search(query, k=20, recall=1.0)
        assert both(hits) == both(cpu.search(query, k=20, recall=1.0))
        assert hits.device == device
        assert hits.operating_point.path == "exhaustive"
    in_batch = there.search_batch(queries, k=7, recall=1.0)
    for query, hits in zip(queries, in_batch, strict=True):
        assert both(hits) == both(there.search(query, k=7, recall=1.0))
        assert hits.n_matching == cpu.search(query, k=7).n_matching


@pytest.mark.usefixtures("small_codec", "unmerged")
def test_default_search_goes_the_way_of_the_cpu(make_index, rng, device):
    index = made(make_index, rng, 4, None, 128)
    query = unit_rows(rng, 9, 128)
    for k in (3, 10, 100, 215):
        hits, expected = (
            index.searcher(device=device).search(query, k=k),
            index.searcher().search(query, k=k),
        )
        assert both(hits) == both(expected)
        assert hits.operating_point == expected.operating_point
        assert hits.timings_ms["device"] > 0


@pytest.mark.usefixtures("small_codec", "unmerged")
def test_filters(make_index, rng, device):
    metadata = [{"even": i % 2 == 0} for i in range(220)]
    index = made(make_index, rng, 4, None, 128, metadata=metadata)
    query = unit_rows(rng, 5, 128)
    cpu, there = index.searcher(), index.searcher(device=device)
    for chosen in ({"where": {"even": True}}, {"allow": ["d1", "d7", "d199"]}, {"allow": []}):
        found = there.search(query, k=250, recall=1.0, **chosen)
        assert both(found) == both(cpu.search(query, k=250, recall=1.0, **chosen))
        assert found.n_matching == cpu.search(query, k=250, recall=1.0, **chosen).n_matching


@pytest.mark.usefixtures("small_codec", "unmerged")
def test_ties_go_by_id_across_segments(make_index, rng, device):
    same = unit_rows(rng, 4, 128)
    index = make_index(config=weft.IndexConfig(dim=128))
    ids = [f"t{i:02}" for i in rng.permutation(60)]
    index.add(["filler"], [unit_rows(rng, 500, 128)])
    index.add(ids[:30], [same] * 30)
    index.add(ids[30:], [same] * 30)
    found = index.searcher(device=device).search(same, k=50)
    assert list(found.ids) == sorted(ids)[:50]


@pytest.mark.usefixtures("small_codec")
def test_more_results_than_a_slice_keeps(make_index, rng, device):
    """The rounds of selection take 4,096 scores at a time and hand on 2,048 of them at most."""
    n = 9_000
    index = make_index(config=weft.IndexConfig(dim=8))
    rows = unit_rows(rng, 1_500, 8)[rng.integers(0, 1_500, n)]  # many equal scores
    index.add([f"{i}" for i in range(n)], (rows, np.arange(n + 1, dtype=np.uint64)))
    cpu, there = index.searcher(), index.searcher(device=device)
    query = unit_rows(rng, 2, 8)
    for k in (10, 2_048, 2_049, 20_000):
        found = there.search(query, k=k, recall=1.0)
        assert both(found) == both(cpu.search(query, k=k, recall=1.0))
        assert len(found) == min(k, n)


@pytest.mark.usefixtures("small_codec", "unmerged")
def test_windows_and_single_documents(make_index, rng, device):
    index = make_index(config=weft.IndexConfig(dim=16, rerank=None))
    docs = ragged_docs(rng, 240, 16)
    index.add([f"p{i}" for i in range(60)], docs, parents=[i // 4 for i in range(240)])
    cpu, there = index.searcher(), index.searcher(device=device)
    query = unit_rows(rng, 6, 16)
    assert both(there.search(query, k=30)) == both(cpu.search(query, k=30, recall=1.0))
    assert (there.score(query, ["p1", "p2"]) == cpu.score(query, ["p1", "p2"])).all()
    assert there.explain(query, "p1") == cpu.explain(query, "p1")
    assert both(there.exact_search(query)) == both(cpu.exact_search(query))


@pytest.mark.usefixtures("small_codec")
def test_exact_search_needs_the_better_form(make_index, rng, device):
    index = made(make_index, rng, 4, "plane", 16)
    with pytest.raises(weft.DeviceError, match="holds codes alone"):
        index.searcher(device=device).exact_search(unit_rows(rng, 3, 16))


@pytest.mark.usefixtures("small_codec")
def test_threads_share_a_searcher(make_index, rng, device):
    index = made(make_index, rng, 4, None, 32)
    searcher = index.searcher(device=device)
    queries = [unit_rows(rng, 1 + i, 32) for i in range(12)]
    alone = [both(searcher.search(query)) for query in queries]
    together = [None] * len(queries)

    def work(number):
        for i in range(number, len(queries), 3):
            together[i] = both(searcher.search(queries[i]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.usefixtures("small_codec")
def test_a_forked_child_is_told(make_index, rng, device):
    searcher = made(make_index, rng, 4, None, 32).searcher(device=device)
    query = unit_rows(rng, 3, 32)
    searcher.search(query)
    child = os.fork()
    if child == 0:
        try:
            searcher.search(query)
        except weft.DeviceError as error:
            os._exit(0 if "forked" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(searcher.search(query, k=3)) == 3


@pytest.mark.usefixtures("small_codec")
def test_a_segment_without_codes_beside_a_codec(make_index, rng, device):
    """What a damaged manifest may name."""
    coded = made(make_index, rng, 4, None, 32)
    rows = make_index([unit_rows(rng, 3, 32)], dim=32)
    codec = _native.Codec.open(str(next(coded.path.glob("codec-*"))))
    segment = _native.Segment.open(str(next(rows.path.glob("*.multi.weft"))), codec)
    for where in ("cpu", device, "auto"):
        with pytest.raises(weft.CorruptIndexError, match=r"multi\.weft: the codes of a snapshot"):
            _native.Searcher([segment], codec, device=where)


@pytest.mark.usefixtures("small_codec")
def test_wrong_devices(make_index, rng, device):
    index = made(make_index, rng, 4, None, 32)
    kind = device.split(":")[0]
    for wrong in (f"{kind}:99", f"{kind}:-1", f"{kind}:x", f"{kind}:", f"{kind}0", "tpu", ""):
        with pytest.raises(weft.DeviceError, match=f"device='{wrong}'"):
            index.searcher(device=wrong)
    with pytest.raises(weft.DeviceError, match="no codes yet"):
        make_index([unit_rows(rng, 3, 8)]).searcher(device=device)
    assert make_index([unit_rows(rng, 3, 8)]).searcher(device="auto").device == "cpu"
    assert index.searcher(device="auto").device == f"{kind}:0"


def test_names_of_devices(device):
    found = weft.info()
    assert device in found["devices"]
    assert {"device", "name", "free_bytes", "total_bytes", "compute_capability"} == set(
        found["cuda_build"]["devices"][0]
    )
    assert found["cuda_build"]["library"]
    said = CliRunner().invoke(app, ["info"])
    assert said.exit_code == 0
    name = next(gpu["name"] for gpu in found["cuda_build"]["devices"] if gpu["device"] == device)
    assert f"{device} {name}, " in " ".join(said.stdout.split())
