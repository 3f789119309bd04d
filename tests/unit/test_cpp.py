# SPDX-License-Identifier: Apache-2.0
"""The C++ tests: built with sanitizers into a temporary folder, without the rest of the engine."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cpp"), "address,undefined")


@pytest.mark.parametrize("name", ["test_base", "test_container", "test_parallel"])
def test_program(programs, name):
    run(programs / name)


def test_container_reader_survives_edits(programs):
    assert "20000 inputs" in run(programs / "fuzz_container", 20_000)


@pytest.mark.slow
def test_parallel_without_races(tmp_path):
    folder = build(tmp_path, "thread", "test_parallel")
    for _ in range(5):
        run(folder / "test_parallel", TSAN_OPTIONS="die_after_fork=0:halt_on_error=1")
