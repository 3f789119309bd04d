# SPDX-License-Identifier: Apache-2.0
"""Builds tests/cpp, a project of its own, and the CUDA plug-in; runs what comes of it."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sysconfig.get_path("scripts")
PATH = os.pathsep.join([SCRIPTS, os.environ["PATH"]])


def run(*command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env=os.environ | {"PATH": PATH} | environment,
    )
    if done.returncode != 0:
        pytest.fail(f"{command[0]}: exit {done.returncode}\n{done.stdout[-6000:]}", pytrace=False)
    return done.stdout


def build(folder, sanitizers, *targets):
    for tool in ("cmake", "ninja"):
        assert shutil.which(tool, path=PATH), f"{tool} is missing; pip install '.[test]' brings it"
    run("cmake", "-S", ROOT / "tests" / "cpp", "-B", folder, "-G", "Ninja",
        f"-DWEFT_SANITIZE={sanitizers}")  # fmt: skip
    run("cmake", "--build", folder, *(f"--target={target}" for target in targets))
    return folder


class CompiledPlugIn:
    """The plug-in as nvcc made it, and what ptxas said of it."""

    def __init__(self, folder, *settings):
        if shutil.which("nvcc") is None:
            pytest.skip("nvcc is not installed")
        run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DWEFT_CUDA=ON", "-DWEFT_WERROR=ON",
            "-DCMAKE_CUDA_FLAGS=-Xptxas=-v", *settings)  # fmt: skip
        self.report = run("cmake", "--build", folder, "--target", "weft_cuda")
        self.library = folder / "csrc" / "cuda" / "libweft_cuda.so"
