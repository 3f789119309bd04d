# SPDX-License-Identifier: Apache-2.0
"""The tools that look at the text of the code. `make format` settles most of what they say."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
CPP = [p for top in ("bench", "csrc", "tests") for p in sorted((ROOT / top).rglob("*"))
       if p.suffix in {".h", ".cpp", ".inl", ".cu"}]  # fmt: skip
PYTHON = [
    p for top in ("python", "tests", "bench", "tools") for p in sorted((ROOT / top).rglob("*.py"))
]
MAX_LINES = 500


def tool(name):
    beside = SCRIPTS / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    assert found, f"{name} is missing; pip install '.[test]' brings it"
    return found


def run(*command):
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{command[0]}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}", pytrace=False)


def test_ruff():
    run(tool("ruff"), "check", "--quiet")


def test_ruff_format():
    run(tool("ruff"), "format", "--check", "--quiet", "--diff")


def test_types():
    run(sys.executable, "-m", "mypy")


def test_stub_of_the_native_module():
    run(sys.executable, "-m", "mypy.stubtest", "weft._native", "--concise",
        "--mypy-config-file", "pyproject.toml")  # fmt: skip


def test_clang_format():
    run(tool("clang-format"), "--dry-run", "--Werror", *CPP)


@pytest.mark.parametrize("path", CPP + PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_size_and_first_line(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_LINES, f"{len(lines)} lines; split it"
    assert (
        not lines
        or lines[0][3:] == "SPDX-License-Identifier: Apache-2.0"
        or lines[0][2:] == ("SPDX-License-Identifier: Apache-2.0")
    )
