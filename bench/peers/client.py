# SPDX-License-Identifier: Apache-2.0
"""The orchestrator's end of a worker process, and what that process takes of memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"),
    *("NUMEXPR_NUM_THREADS", "WEFT_THREADS"),
)
SAMPLE_SECONDS = 0.05


class WorkerError(Exception):
    """The engine failed, or its process ended; the message says why."""


class Worker:
    """An engine in its own environment, with a number of threads and a device."""

    def __init__(
        self, python: Path, module: str, threads: int, log: Path,
        *, device: str = "cpu", python_path: str | None = None,
    ) -> None:  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if python_path:
            kept["PYTHONPATH"] = python_path
        kept["PATH"] = f"{python.parent}{os.pathsep}{kept.get('PATH', '')}"  # tools of its own
        pinned = dict.fromkeys(THREAD_VARIABLES, str(threads))
        self.log, self.device = log, device
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [str(python), str(WORKER), module, str(threads), device], env=kept | pinned,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def ask(self, do: str, *, limit: float | None = None, **fields: Any) -> Any:
        """Send a request and wait for its answer; a process over the limit of seconds is killed."""
        timer = threading.Timer(limit, self.process.kill) if limit else None
        if timer:
            timer.start()
        try:
            with suppress(BrokenPipeError):
                self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            if timer:
                timer.cancel()
        if not line:
            code = self.process.wait()
            why = f"process ended with {code}"
            if limit and code == -signal.SIGKILL:
                why += f", perhaps since it took more than {limit:.0f} s"
            raise WorkerError(f"{do}: {why}; see {self.log.name}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{do}: {answer['error']}")
        return answer["ok"]

    def close(self) -> None:
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    @contextmanager
    def watched_memory(self) -> Iterator[dict[str, float]]:
        """Fill in how far memory rises above what it is now, in MB; see `memory`."""
        before = memory(self.process.pid, self.device)
        peak = dict(before)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(SAMPLE_SECONDS):
                for name, value in memory(self.process.pid, self.device).items():
                    peak[name] = max(peak[name], value)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        risen: dict[str, float] = {}
        try:
            yield risen
        finally:
            done.set()
            thread.join()
            risen |= {name: round(peak[name] - before[name], 1) for name in peak}


def memory(pid: int, device: str = "cpu") -> dict[str, float]:
    """MB of a process and its children: resident, and anonymous (not backed by a file).

    With a GPU also what is taken of its memory, by whomever.
    """
    total = {"build_rss_mb": 0.0, "build_anonymous_mb": 0.0}
    waiting = [pid]
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        with suppress(OSError):
            status = dict(
                line.split(":", 1) for line in (folder / "status").read_text().splitlines()
            )
            for name, key in zip(total, ("VmRSS", "RssAnon"), strict=True):
                total[name] += int(status.get(key, "0 kB").split()[0]) / 1024
            for task in (folder / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    if device.startswith("cuda"):
        total["build_device_mb"] = float(gpu("memory.used", device).split()[0])
    return total


def gpu(fields: str, device: str) -> str:
    """What nvidia-smi says of a GPU."""
    number = device.partition(":")[2] or "0"
    return subprocess.run(
        ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={number}"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
