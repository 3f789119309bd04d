# SPDX-License-Identifier: Apache-2.0
"""The NEON table, cross-compiled and run in an emulator: the same bits as scalar."""

from __future__ import annotations

from pathlib import Path

from engine.toolchain import build_parity, need, run


def test_neon_gives_the_same_bits_as_scalar(tmp_path: Path) -> None:
    compiler = need("aarch64-linux-gnu-g++")
    emulator = need("qemu-aarch64", "qemu-aarch64-static")
    program = build_parity(compiler, ["scalar", "neon"], tmp_path, "-static")
    assert run(emulator, program).split() == ["neon", "scalar"]
