# SPDX-License-Identifier: Apache-2.0
"""weft and its peers side by side, on the same embeddings, in one run.

    python bench/peers/run.py SET [SET ...] --out FOLDER [--engines weft,tachiom] [--queries 200]

Each engine runs in its own process and virtual environment, and only one of them works at a time.
Builds are kept under --environments and reused, with the build time they were recorded with; those
of weft are always made anew. Appends rows to FOLDER/rows.jsonl; report.py makes tables and figures
of them. An engine that cannot be installed, built or searched becomes a row that says why.

With --device all engines build and search there. With --peers they come from a folder of wheels,
for the interpreter that runs this and beside its torch, so that nothing is fetched: see
tools/gpu_suite.sh, which does both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
import numpy as np
from builds import built
from client import Worker, WorkerError, gpu
from environments import ENGINES, commit, machine, python_of, unpacked
from measure import Effort, Trial, in_turn

from data import EmbeddingSet, load_set
from engine import exact

DEEPEST = 100
SEED = 42


class Run:
    """One command: what was asked for, and where everything goes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.effort = Effort(args.rounds, args.seconds)
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.common = {"machine": machine(), "commit": commit(), "run": started}
        self.common["device"] = args.device
        if args.device.startswith("cuda"):
            self.common["gpu"] = gpu("name,driver_version,memory.total", args.device)
        if args.weft_python:
            self.common["weft_python"] = str(args.weft_python)
        args.out.mkdir(parents=True, exist_ok=True)
        args.environments.mkdir(parents=True, exist_ok=True)

    def write(self, row: dict[str, Any]) -> None:
        with (self.args.out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row | self.common) + "\n")
        why = row.get("skipped") or row.get("failed")
        if why:
            print(f"{row['engine']} on {row['set']}: {why}", flush=True)

    def start(self, engine: str, threads: int) -> Worker:
        module, name = ENGINES[engine]
        log = self.args.out / f"{name}.log"
        python, python_path = self.args.weft_python, os.environ.get("PYTHONPATH")
        if self.args.peers:
            python = Path(sys.executable)
            if name != "weft":
                python_path = str(unpacked(self.args.peers, self.args.environments, log))
        elif name != "weft" or python is None:
            python, python_path = python_of(name, self.args.environments, log), None
        return Worker(
            python, module, threads, self.args.out / f"{engine}.log",
            device=self.args.device, python_path=python_path,
        )  # fmt: skip

    def measure(self, folder: Path) -> None:
        """All engines on one set."""
        data = load_set(folder)
        order = np.random.default_rng(SEED).permutation(data.n_queries)[: self.args.queries]
        kept = self.args.environments / "indexes" / data.name
        sample = data.values[:: max(1, len(data.values) // 1_000)]
        identity = {"n_tokens": len(data.values)}
        identity |= {"offsets": _digest(data.offsets), "values": _digest(sample)}
        about = {"set": data.name, "tokens": len(data.values), "docs": data.n_docs}
        about |= {"dim": data.values.shape[1]}
        builds: dict[str, dict[str, Any]] = {}
        for engine in self.args.engines:
            try:
                builds[engine] = self.build(engine, folder, kept / engine, identity)
                print(f"{engine} on {data.name}: {builds[engine]}", flush=True)
            except (RuntimeError, WorkerError, OSError) as error:
                self.write(about | {"engine": engine, "skipped": str(error)})
        if self.args.build_only:
            return
        truth = truth_of(data, kept, identity)[order]
        for threads in self.args.threads:
            self.search(folder, kept, order.tolist(), truth, about, builds, threads)

    def build(self, engine: str, folder: Path, place: Path, identity: dict) -> dict[str, Any]:
        worker = self.start(engine, max(self.args.threads))
        try:
            told = worker.ask("about")
            wanted = identity | {name: told[name] for name in ("version", "options")}
            wanted |= {"threads": max(self.args.threads), "device": self.args.device}
            record = built(
                worker, told, folder, place, identity=wanted,
                limit=self.args.build_limit, reuse=engine != "weft",
            )  # fmt: skip
            if "index_bytes" in record:
                record["bytes_per_token"] = record["index_bytes"] / identity["n_tokens"]
            return record | {"version": told["version"], "batch": told["has_batch"]}
        finally:
            worker.close()

    def search(
        self, folder: Path, kept: Path, order: list[int], truth: np.ndarray,
        about: dict, builds: dict[str, dict], threads: int,
    ) -> None:  # fmt: skip
        """Every setting of every engine that was built, with one number of threads."""
        workers: dict[str, Worker] = {}
        trials: dict[str, list[Trial]] = {}
        try:
            for engine, build in builds.items():
                workers[engine] = self.start(engine, threads)
                try:
                    trials[engine] = self.trials(
                        engine, workers[engine], folder, kept / engine / "index", order, build
                    )
                except WorkerError as error:
                    self.write(about | {"engine": engine, "skipped": str(error)})
            for number in range(self.effort.rounds):
                print(f"{about['set']}, {threads} threads, round {number + 1}", flush=True)
                for trial in in_turn(trials):
                    trial.round(len(order), self.effort)
            for engine, tried in trials.items():
                for trial in tried:
                    self.write(about | {"threads": threads} | builds[engine] | trial.row(truth))
        finally:
            for worker in workers.values():
                worker.close()

    def trials(self, engine, worker, folder, index, order, build) -> list[Trial]:
        if "index_bytes" in build:
            worker.ask("open", folder=str(index))
        else:
            worker.ask("take", folder=str(folder))
        worker.ask("queries", folder=str(folder), order=order)
        return [
            Trial(engine, worker, setting, k, build["batch"], sizes=tuple(self.args.batches))
            for k in self.args.k
            for setting in worker.ask("settings", k=k)
        ]


def truth_of(data: EmbeddingSet, kept: Path, identity: dict) -> np.ndarray:
    """Exact MaxSim's best documents of every query of a set, kept for later runs."""
    path = kept / f"truth-{identity['values']}-{_digest(data.query_values)}.npy"
    if not path.is_file():
        kept.mkdir(parents=True, exist_ok=True)
        found = exact(data, data.query_values, data.query_offsets, DEEPEST).astype(np.int64)
        np.save(path, np.where(found < data.n_docs, found, -1))
    return np.load(path)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]


def main() -> None:
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", type=Path, metavar="SET")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--engines", default=",".join(ENGINES), help="default: all")
    parser.add_argument("--environments", type=Path, default=Path("~/.cache/weft-bench"))
    parser.add_argument("--device", default="cpu", help="where all engines build and search")
    parser.add_argument("--peers", type=Path, help="folder of wheels; default: environments by pip")
    parser.add_argument("--weft-python", type=Path, help="measure the weft of this interpreter")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=numbers, default=[1, 2])
    parser.add_argument("--k", type=numbers, default=[10, 100])
    parser.add_argument("--batches", type=numbers, default=[], help="sizes to time beside all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="most for a round of a setting")
    parser.add_argument("--build-limit", type=float, default=3_600, help="seconds")
    parser.add_argument("--build-only", action="store_true")
    args = parser.parse_args()
    args.engines = args.engines.split(",")
    unknown = set(args.engines) - set(ENGINES)
    if unknown:
        parser.error(f"engines {sorted(unknown)}: expected some of {', '.join(ENGINES)}")
    args.environments = args.environments.expanduser()
    run = Run(args)
    for folder in args.sets:
        run.measure(folder)


if __name__ == "__main__":
    main()
