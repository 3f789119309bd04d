# SPDX-License-Identifier: Apache-2.0
"""The bench beside peers, without any: its protocol, its arithmetic, and weft alone end to end."""

import importlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import reference
import tiny_models

BENCH = Path(__file__).resolve().parents[2] / "bench"
PEERS = BENCH / "peers"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(PEERS))


def module(name):
    return importlib.import_module(name)


@pytest.fixture
def small_set(tmp_path):
    """A set of a few hundred documents, one of them empty."""
    data = module("data")
    folder = tmp_path / "small"
    data.write_synthetic(data.Synthetic(20_000, dim=32, docs_per_block=64), folder, 20)
    offsets = np.load(folder / "offsets.npy")
    np.save(folder / "offsets.npy", np.insert(offsets, 5, offsets[5]))
    return folder


@pytest.fixture
def worker(tmp_path):
    made = module("client").Worker(Path(sys.executable), "numpy_scan", 1, tmp_path / "log")
    yield made
    made.close()


def exact(folder, k):
    data = module("data").load_set(folder)
    bounds = data.offsets.astype(int)
    documents = [data.values[a:b] for a, b in pairwise(bounds)]
    scores = [
        [reference.maxsim_rows(data.query(number), rows).sum() for rows in documents]
        for number in range(data.n_queries)
    ]
    return np.argsort(-np.array(scores), axis=1, kind="stable")[:, :k]


def test_worker_answers_with_the_exact_documents(worker, small_set):
    about = worker.ask("about")
    assert (about["version"], about["has_index"]) == (np.__version__, False)
    worker.ask("take", folder=str(small_set))
    order = [3, 0, 2]
    worker.ask("queries", folder=str(small_set), order=order)
    for setting in worker.ask("settings", k=10):
        told = worker.ask("search", k=10, setting=setting, n=3, seconds=60, least=1, answers=True)
        assert told["found"] == exact(small_set, 10)[order].tolist()
        assert len(told["ms"]) == 3


def test_brute_force_in_torch_finds_them_in_blocks(monkeypatch, small_set):
    pytest.importorskip("torch")
    scan = module("engines.torch_scan")
    monkeypatch.setattr(scan, "BLOCK_TOKENS", 3_000)
    data = module("data").load_set(small_set)
    engine = scan.Adapter(1)
    engine.take(np.array(data.values), np.array(data.offsets), small_set)
    assert len(engine.blocks) > 3
    queries = [engine.prepare(np.array(data.query(number))) for number in range(data.n_queries)]
    found = engine.search_batch(queries, 10, {})
    measure = module("measure")
    assert np.mean(measure.shares(found, exact(small_set, 10), 10)) > 0.9  # bfloat16 swaps a few
    assert found[3] == engine.search(queries[3], 10, {})


def test_a_batch_may_be_asked_in_parts(worker, small_set):
    """NumPy's engine has no batches, so it is given one."""
    session = module("worker").Session(Batches())
    session.prepared = list(range(10))
    for size, wanted in ((None, [7]), (3, [3, 3, 1]), (9, [7])):
        session.engine.sizes.clear()
        told = session.search_batch(k=1, setting={}, n=7, answers=True, at_once=size)
        assert session.engine.sizes == wanted
        assert told["found"] == [[number] for number in range(7)]


class Batches:
    """An engine that notes how many queries it is asked at a time."""

    def __init__(self):
        self.sizes = []

    def search_batch(self, queries, _k, _setting):
        self.sizes.append(len(queries))
        return queries

    def numbers(self, found):
        return [found]


def test_worker_stops_when_the_time_is_over_but_not_before_the_least(worker, small_set):
    worker.ask("take", folder=str(small_set))
    worker.ask("queries", folder=str(small_set), order=[0, 1, 2] * 3)
    told = worker.ask(
        "search", k=5, setting={"block_tokens": 0}, n=9, seconds=0, least=4, answers=False
    )
    assert (len(told["ms"]), told["found"]) == (4, None)


def test_failure_of_an_engine_is_told_and_the_worker_goes_on(worker):
    error = module("client").WorkerError
    with pytest.raises(error, match="take: FileNotFoundError"):
        worker.ask("take", folder="nowhere")
    assert worker.ask("settings", k=1)
    worker.process.kill()
    with pytest.raises(error, match="about: process ended with -9; see log"):
        worker.ask("about")


def test_worker_over_its_limit_is_killed(worker, small_set):
    worker.ask("take", folder=str(small_set))
    worker.ask("queries", folder=str(small_set), order=[0] * 20_000)
    with pytest.raises(module("client").WorkerError, match="more than 0 s"):
        worker.ask(
            "search", limit=0.3, k=5, setting={"block_tokens": 1}, n=20_000, seconds=600, least=1,
            answers=False,
        )  # fmt: skip


class Answers:
    """A worker that gives what it is told to."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def ask(self, do, **fields):
        self.asked.append({"do": do, **fields})
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def trial(worker, **fields):
    return module("measure").Trial("other", worker, {"effort": 1}, fields.pop("k", 2), **fields)


def test_time_of_a_query_is_the_median_of_its_rounds():
    rounds = ([1, 30, 3], [3, 10, 5], [200, 20, 4])
    found = [[0, 1], [4, 2], [9, 8]]
    worker = Answers(
        *({"ms": ms, "cores": 1.0, "found": None if i else found} for i, ms in enumerate(rounds))
    )
    one, effort = trial(worker, batch=False), module("measure").Effort(3, 5.0, 2)
    for _ in rounds:
        one.round(7, effort)
    assert [asked["n"] for asked in worker.asked] == [7, 3, 3]
    row = one.row(np.array([[1, 0], [2, 3], [5, -1], [6, 7]]))
    assert row["ms"] == [3, 20, 4]
    assert (row["p50_ms"], row["shares"], row["n_queries"]) == (4, [1.0, 0.5, 0.0], 3)
    assert "recall@10" not in row


def test_throughput_is_of_as_many_queries_as_there_is_time_for():
    single = {"ms": [100.0] * 50, "cores": 1.0, "found": [[0]] * 50}
    worker = Answers(single, {"seconds": 2.0, "cores": 2.0, "found": [[0]] * 20})
    one = trial(worker, k=10, batch=True)
    one.round(50, module("measure").Effort(1, 2.0, 5))
    assert worker.asked[1]["n"] == 20
    row = one.row(np.zeros((50, 10), int))
    assert (row["qps"], row["qps_queries"], row["recall@10"]) == (10, 20, 1.0)


def test_throughput_of_batches_of_given_sizes():
    single = {"ms": [1.0] * 20, "cores": 1.0, "found": [[0]] * 20}
    answers = [single, {"seconds": 2.0, "cores": 1.0, "found": [[0]] * 20}, {"seconds": 4.0}]
    worker = Answers(*answers)
    one = trial(worker, k=10, batch=True, sizes=(8, 64))
    one.round(20, module("measure").Effort(1, 2.0, 5))
    assert worker.asked[2]["at_once"] == 8
    row = one.row(np.zeros((20, 10), int))
    assert (row["qps"], row["qps_of_8"]) == (10, 5)
    assert "qps_of_64" not in row


def test_failed_setting_is_a_row():
    error = module("client").WorkerError("search: panic")
    one = trial(Answers(error), batch=False)
    for _ in range(2):
        one.round(3, module("measure").Effort())
    assert one.row(np.zeros((3, 2)))["failed"] == "search: panic"


def row(engine, shares, ms, **fields):
    common = {"set": "s", "docs": 9, "tokens": 99, "k": 10, "threads": 1, "machine": MACHINE}
    common |= {"commit": "c", "run": "r", "setting": {"at": str(ms[0])}}
    return common | {"engine": engine, "shares": shares, "ms": ms} | fields


MACHINE = {"cpu": "cpu", "cores": 2, "memory_gb": 4, "system": "system"}


def test_ratio_is_of_the_fastest_that_is_as_good_on_the_queries_of_both():
    points = module("points")
    rows = [
        row("weft", [1, 1, 0, 0], [1, 1, 50, 50]),
        row("weft", [1, 1, 1, 1], [4, 4, 4, 4]),
        row("weft", [0, 0, 1, 1], [0.1] * 4),
        row("other", [1, 0.5], [20, 10]),
        row("other", [1, 1, 1, 0.9], [40] * 4),
        row("best", [1, 1, 1, 1.1], [1] * 4),
    ]
    found = points.pairs(points.select(rows, "s", 10, 1))
    assert [(one.peer.engine, one.ours and one.ours.row is rows[0], one.n) for one in found] == [
        ("other", True, 2), ("other", False, 4), ("best", None, 4),
    ]  # fmt: skip
    assert found[0].ratio() == 15
    assert found[1].ratio() == 10
    chosen = points.frontier(points.select(rows, "s", 10, 1)[:3])
    assert [one.row for one in chosen] == [rows[2], rows[1]]


def test_report_says_what_was_skipped_and_what_was_exact(tmp_path):
    built = {"build_s": 12.0, "tuning_s": 2.0, "build_cpu_s": 20.0, "version": "1"}
    built |= {"build_rss_mb": 3.0, "build_anonymous_mb": 2.0, "bytes_per_token": 70.5}
    rows = [
        row("weft", [1, 1], [2, 2], **built, qps=900, qps_recall=1.0),
        row("weft", [1, 0.99], [5, 5], setting={"recall": 1.0}, **built),
        row("numpy", [1, 1], [50, 50]),
        row("other", [1, 0.9], [30, 30], **built | {"build_s": 100.0, "tuning_s": 0.0}),
        {name: row("x", [], [0])[name] for name in ("set", "docs", "tokens", "machine", "commit",
         "run")} | {"engine": "gone", "skipped": "no wheel"},
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in [rows[0] | {"ms": [9, 9]}, *rows]))
    read = module("points").read(path)
    assert [one.get("ms") for one in read if one["engine"] == "weft"] == [[2, 2], [5, 5]]
    text = module("report").report(read)
    assert "- gone : no wheel" in text
    assert "| weft | 1 | 10.0 (+ 2.0 tuning) |" in text
    assert "| other | 1 | 100.0 | 10.0 (8.3) |" in text
    assert "| numpy | at=50 | 1.0000 | 50.00 | 10.0 |" in text
    assert "Least ratio of p50 over a peer's settings: other 15.0." in text
    module("figures").draw(read, tmp_path)
    assert {one.name for one in tmp_path.glob("*.png")} == {
        "latency-s.png", "throughput-s.png", "build-s.png",
    }  # fmt: skip


def test_weft_alone_from_the_command_line(tmp_path, small_set):
    command = [
        sys.executable, PEERS / "run.py", small_set, "--out", tmp_path / "out", "--rounds", "2",
        "--environments", tmp_path / "environments", "--engines", "weft,weft.maxsim",
        "--weft-python", sys.executable, "--threads", "1", "--queries", "6", "--k", "10",
    ]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True)
    rows = module("points").read(tmp_path / "out" / "rows.jsonl")
    assert {one["engine"] for one in rows} == {"weft", "weft.maxsim"}
    assert all(one["recall@10"] == 1.0 and one["n_queries"] == 6 for one in rows)
    index = next(one for one in rows if one["engine"] == "weft")
    assert index["index_bytes"] > 20_000 * 32 * 2
    assert index["bytes_per_token"] == index["index_bytes"] / 20_000
    assert "weft and its peers" in module("report").report(rows)


def test_token_ids_belong_to_the_rows_of_a_set(tmp_path):
    from transformers import AutoTokenizer

    model = str(tiny_models.write_bert(tmp_path / "model"))
    texts = [f"The key {number} of a lock is turned once." for number in range(12)]
    tokens = [ids[1:-1] for ids in AutoTokenizer.from_pretrained(model)(texts)["input_ids"]]
    corpus = tmp_path / "corpus.tsv"
    corpus.write_text("".join(f"t{number}\t{text}\n" for number, text in enumerate(texts)))
    np.save(tmp_path / "offsets.npy", np.cumsum([0, *map(len, tokens[:10])]))
    parents = tmp_path / "parents.txt"
    parents.write_text("".join(f"t{number}\n" for number in range(10)))
    token_ids = module("token_ids").token_ids
    assert token_ids(corpus, tmp_path, model).tolist() == [
        one for ids in tokens[:10] for one in ids
    ]
    parents.write_text("".join(f"t{number}\n" for number in range(1, 11)))
    with pytest.raises(SystemExit, match="was not made from"):
        token_ids(corpus, tmp_path, model)


def test_slice_of_a_set(tmp_path, small_set):
    data = module("data")
    module("slice_set").slice_set(small_set, 40, tmp_path / "part")
    whole, part = data.load_set(small_set), data.load_set(tmp_path / "part")
    assert part.n_docs == 40
    np.testing.assert_array_equal(part.values, whole.values[: whole.offsets[40]])
    np.testing.assert_array_equal(part.query(5), whole.query(5))
