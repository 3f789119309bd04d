# SPDX-License-Identifier: Apache-2.0
"""Devices to test on: loops that stand for a GPU, in three orders of their threads, and a GPU."""

from pathlib import Path

import pytest

import weft
from cpp_build import CompiledPlugIn, build
from weft import _native


@pytest.fixture(scope="session")
def emulator(tmp_path_factory):
    """The plug-in's twin for the CPU, without sanitizers."""
    folder = build(tmp_path_factory.mktemp("emu"), "", "weft_emu")
    return folder / "libweft_emu.so"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """The plug-in for the architectures of an ordinary installation."""
    return CompiledPlugIn(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def plug_in():
    """Let a test put another library in the plug-in's place."""
    yield lambda library: _native.use_backend(str(library))
    _native.use_backend(str(Path(_native.__file__).parent / "libweft_cuda.so"))


@pytest.fixture(
    params=["emu:0", "emu:1", "emu:2", pytest.param("cuda:0", marks=pytest.mark.gpu)],
)
def device(request, plug_in):
    """A device for `Index.searcher`."""
    if request.param.startswith("emu"):
        plug_in(request.getfixturevalue("emulator"))
    assert request.param.split(":")[0] == "cuda" or weft.info()["cuda_build"]["state"] == "ready"
    return request.param
