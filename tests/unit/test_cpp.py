# SPDX-License-Identifier: Apache-2.0
"""The C++ tests: built with sanitizers into a temporary folder, without the rest of the engine."""

import pytest

from cpp_build import build, run


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cpp"), "address,undefined")


@pytest.mark.parametrize(
    "name",
    ["test_base", "test_build", "test_container", "test_cuda", "test_parallel", "test_pruned"],
)
def test_program(programs, name):
    run(programs / name)


def test_container_reader_survives_edits(programs):
    assert "20000 inputs" in run(programs / "fuzz_container", 20_000)


@pytest.mark.slow
def test_parallel_without_races(tmp_path):
    folder = build(tmp_path, "thread", "test_parallel")
    for _ in range(5):
        run(folder / "test_parallel", TSAN_OPTIONS="die_after_fork=0:halt_on_error=1")
