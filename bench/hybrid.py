# SPDX-License-Identifier: Apache-2.0
"""Hybrid search of made documents: milliseconds per query of each field, of all, and by rule.

A document's token embeddings are those of `bench/synthetic.py`, cut to the first so many; its dense
vector is their mean, turned into 384 dimensions, with noise; its sparse vector has its words and
others of its topic, 200 in all. A query is some noisy tokens of a document, their mean and words.
Operating points are tuned on others of them. Times are of the clock, one query after the other: the
least of a few rounds of each, and of those the median and the 95th percentile; beside them the time
of all processors, which other work on the machine hardly changes. Agreement is the share of the
exact top 100 of a field that is found, and of the exact top 10 of all together, of some queries.

    python bench/hybrid.py FOLDER [--documents 100000] [--tokens 60] [--queries 100] [--exact 25]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import weft
from synthetic import N_WORDS, Synthetic

DENSE_DIM, TERMS, QUERY_TOKENS, QUERY_TERMS = 384, 200, 16, 24
NOISE, DENSE_NOISE = 0.6, 0.3
SEED = 11
K, DEPTH, ROUNDS, TUNING = 10, 100, 3, 64


def turn(rows: np.ndarray) -> np.ndarray:
    """The same directions in DENSE_DIM dimensions."""
    into = np.random.default_rng(SEED).standard_normal((rows.shape[1], DENSE_DIM), np.float32)
    return rows @ into / np.sqrt(DENSE_DIM)


def noisy(random: np.random.Generator, rows: np.ndarray, share: float = NOISE) -> np.ndarray:
    noise = random.standard_normal(rows.shape, np.float32)
    noise *= share / np.linalg.norm(noise, axis=1, keepdims=True)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) + noise
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def weights(random: np.random.Generator, words: np.ndarray, n: int, more: np.ndarray) -> dict:
    """Weights of some words, the rarer the larger, with others of the topic up to n in all."""
    terms = np.unique(words)[:n]
    terms = np.union1d(terms, random.choice(more, max(n - len(terms), 0)))
    rarity = np.log1p(terms) / np.log(N_WORDS)
    return dict(zip(terms.tolist(), (rarity * random.uniform(0.2, 1.5, len(terms))), strict=True))


def documents(n: int, n_tokens: int):
    """Blocks of (ids, rows, dense, sparse, one query for each of the first documents)."""
    made, first = Synthetic(n * 160), 0
    for block in made._blocks():
        random = np.random.default_rng([SEED, first])
        ends = np.cumsum(block.lengths)
        rows, dense, sparse, queries = [], [], [], []
        for begin, end, topic in zip(ends - block.lengths, ends, block.topics, strict=True):
            tokens = block.values[begin : min(begin + n_tokens, end)].astype(np.float32)
            words, more = block.words[begin:end], made._topic_words[topic]
            rows.append(tokens)
            dense.append(tokens.mean(axis=0))
            sparse.append(weights(random, words, TERMS, more))
            if len(queries) < 4:
                some = random.integers(0, len(tokens), QUERY_TOKENS)
                asked = noisy(random, tokens[some])
                mean = turn(asked.mean(axis=0, keepdims=True))[0]
                terms = weights(random, words[some], QUERY_TERMS, more)
                queries.append({"multi": asked, "dense": mean, "sparse": terms})
        ids = [str(first + i) for i in range(len(rows))][: n - first]
        vectors = noisy(random, turn(np.array(dense)), DENSE_NOISE)
        yield ids, rows[: len(ids)], vectors[: len(ids)], sparse[: len(ids)], queries
        first += len(ids)
        if first == n:
            return


def build(path: Path, n: int, n_tokens: int, n_queries: int) -> None:
    config = weft.IndexConfig(dense=weft.DenseConfig(DENSE_DIM), sparse=weft.SparseConfig())
    started = time.perf_counter()
    with weft.Index.create(path, config).writer() as writer:
        for ids, rows, dense, sparse, _ in documents(n, n_tokens):
            writer.add(ids, rows, dense=dense, sparse=sparse)
            print(f"\r{ids[-1]}", end="", flush=True)
        asked = first_queries(TUNING + n_queries, n, n_tokens)[n_queries:]
        if asked:
            writer.tune([query["multi"] for query in asked])
        print(f"\nmade and spooled in {time.perf_counter() - started:.0f} s")
    print(f"built in {time.perf_counter() - started:.0f} s")


def first_queries(n_queries: int, n: int, n_tokens: int) -> list:
    found = []
    for *_, queries in documents(n, n_tokens):
        found += queries
        if len(found) >= n_queries:
            break
    return found[:n_queries]


def measure(name: str, ask, queries: list, wanted: list) -> None:
    """`wanted`: the exact ids of the first queries."""
    times, work = np.full((2, len(queries)), np.inf)
    answers = []
    for _ in range(ROUNDS):
        answers.clear()
        for number, query in enumerate(queries):
            started, used = time.perf_counter(), time.process_time()
            answers.append(ask(query))
            work[number] = min(work[number], 1_000 * (time.process_time() - used))
            times[number] = min(times[number], 1_000 * (time.perf_counter() - started))
    shares = [
        len({*found.ids} & {*exact}) / len(exact)
        for found, exact in zip(answers, wanted, strict=False)
    ]
    stages = answers[0].timings_ms
    parts = {name: np.median([one.timings_ms.get(name, 0) for one in answers]) for name in stages}
    shown = ", ".join(f"{name} {value:.2f}" for name, value in parts.items())
    median, slow = np.percentile(times, [50, 95])
    print(
        f"{name}: {median:.2f} ms, least {times.min():.2f}, 95 %: {slow:.2f}, of processors "
        f"{np.median(work):.2f}, agreement {np.mean(shares):.3f} ({shown})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the index is, or is made")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=60, help="of a document, at most")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--exact", type=int, default=25, help="queries that are also asked exactly")
    given = parser.parse_args()
    path = given.folder / f"hybrid-{given.documents}-{given.tokens}.index"
    if not path.exists():
        build(path, given.documents, given.tokens, given.queries)
    index = weft.Index.open(path)
    print(index.info.n_docs, "documents,", index.info.n_tokens, "tokens")
    searcher = index.searcher()
    queries = first_queries(given.queries, given.documents, given.tokens)
    for name, leg in (("multi", searcher), ("dense", searcher.dense), ("sparse", searcher.sparse)):
        exact = getattr(leg, "exact_search", leg.search)
        wanted = [exact(query[name], DEPTH).ids for query in queries[: given.exact]]
        asked = [query[name] for query in queries]
        for k in (K, DEPTH) if name != "sparse" else (DEPTH,):
            found = [ids[:k] for ids in wanted]
            measure(
                f"{name}, k={k}", lambda query, leg=leg, k=k: leg.search(query, k), asked, found
            )
    weights = {"multi": 0.4, "dense": 0.4, "sparse": 0.2}
    rules = {
        "weighted": weft.Weighted(weights),
        "weighted, zero": weft.Weighted(weights, missing="zero"),
        "reciprocal rank": weft.ReciprocalRank(),
        "rerank": weft.Rerank("dense", {"multi": 1.0}),
    }
    for name, rule in rules.items():
        hybrid = weft.HybridSearcher(searcher, rule)
        asked = [
            {field: query[field] for field in query if name != "rerank" or field != "sparse"}
            for query in queries
        ]
        wanted = [hybrid.exact_search(query, K).ids for query in asked[: given.exact]]
        measure(name, lambda query, hybrid=hybrid: hybrid.search(query, K), asked, wanted)


if __name__ == "__main__":
    main()
