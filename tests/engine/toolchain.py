# SPDX-License-Identifier: Apache-2.0
"""Compiles kernel files outside the build, with the flags that csrc/CMakeLists.txt gives them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMON = ["-std=c++20", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]


def need(*names: str) -> str:
    """The first of the programs that is installed; skips the test, saying why, where none is."""
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.skip(f"{' or '.join(names)} is not installed")


def isa_flags(name: str) -> list[str]:
    """The flags of `weft_isa(name ...)`, without what only another compiler gets."""
    text = (ROOT / "csrc/CMakeLists.txt").read_text()
    given = [flags for isa, flags in re.findall(r"weft_isa\((\w+)([^()]*)\)", text) if isa == name]
    flags = next(flags for flags in given if "/arch" not in flags)
    own = re.sub(r"\$<\$<NOT:\$<CXX_COMPILER_ID:MSVC>>:([^>]*)>", r"\1", flags).split()
    return ["-fno-exceptions", "-fno-rtti", "-ffp-contract=off", *own]


def run(*command: str | Path) -> str:
    """What the command prints; fails the test with it when the command fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def compile_kernels(compiler: str, isa: str, folder: Path, *extra: str) -> Path:
    """The object of one ISA file."""
    target = folder / f"{isa}.o"
    source = ROOT / f"csrc/kernels/{isa}.cpp"
    flags = [*COMMON, "-O3", "-fPIC", f"-I{ROOT / 'csrc'}", *isa_flags(isa), *extra]
    run(compiler, *flags, "-c", source, "-o", target)
    return target


def build_parity(compiler: str, isas: list[str], folder: Path, *extra: str) -> Path:
    """The program kernel_parity.cpp, linked with these tables; scalar, the yardstick, at -O1."""
    level = {"scalar": ["-O1"]}
    objects = [compile_kernels(compiler, isa, folder, *level.get(isa, []), *extra) for isa in isas]
    target = folder / "parity"
    sources = [ROOT / "csrc" / name for name in ("kernels/dispatch.cpp", "quantizer/packing.cpp")]
    sources.append(Path(__file__).with_name("kernel_parity.cpp"))
    flags = [*COMMON, "-O1", f"-I{ROOT / 'csrc'}", *extra]
    run(compiler, *flags, *sources, *objects, "-o", target)
    return target
