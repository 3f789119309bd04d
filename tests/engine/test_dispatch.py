# SPDX-License-Identifier: Apache-2.0
"""Which table is used, and that no table leaks instructions into the rest of the program."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from engine.toolchain import build_parity, compile_kernels, need, run
from weft import _native

ISAS = _native._kernels.available()
X86 = platform.machine().lower() in ("x86_64", "amd64")
TABLES = ["scalar", "avx2", "avx512"] if X86 else ["scalar", "neon"]


def start(isa: str | None) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that prints the table in use."""
    environment = {name: value for name, value in os.environ.items() if name != "WEFT_ISA"}
    if isa is not None:
        environment["WEFT_ISA"] = isa
    program = "from weft import _native; print(_native._kernels.active())"
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_best_table_is_the_default() -> None:
    assert start(None).stdout.strip() == ISAS[0]
    assert start("").stdout.strip() == ISAS[0]


@pytest.mark.parametrize("isa", ISAS)
def test_weft_isa_forces_a_table(isa: str) -> None:
    assert start(isa).stdout.strip() == isa


@pytest.mark.parametrize("isa", ["sse2", "AVX2", "scalar ", "avx512,avx2"])
def test_a_wrong_weft_isa_lists_the_usable_names(isa: str) -> None:
    done = start(isa)
    assert done.returncode != 0
    assert f"InvalidArgumentError: WEFT_ISA={isa}: expected one of {', '.join(ISAS)}" in done.stderr


@pytest.mark.parametrize("isa", TABLES)
def test_a_kernel_object_exports_one_symbol(isa: str, tmp_path: Path) -> None:
    compiler, nm = need("c++", "g++", "clang++"), need("nm")
    # What is inlined hides what would leak, so little is; and gcc is done in a third of the time.
    kernels = compile_kernels(compiler, isa, tmp_path, "-O1")
    symbols = [line.split() for line in run(nm, kernels).splitlines()]
    assert [line for line in symbols if line[-2] in "WVu"] == []  # weak ones may serve everybody
    exported = run(nm, "-g", "--defined-only", kernels).splitlines()
    assert len(exported) == 1
    assert f"{isa}_table" in exported[0]


@pytest.mark.slow
def test_every_table_gives_the_same_bits_under_the_sanitizers(tmp_path: Path) -> None:
    compiler = need("c++", "g++", "clang++")
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-error", "-O1"]
    program = build_parity(compiler, TABLES, tmp_path, *sanitize)
    assert run(program).split() == ISAS
