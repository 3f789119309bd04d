# SPDX-License-Identifier: Apache-2.0
"""Importing weft loads numpy and the native module, nothing heavy and nothing optional."""

import subprocess
import sys

import pytest

import weft

HEAVY = [
    "pyarrow",
    "torch",
    "transformers",
    "sentence_transformers",
    "rich",
    "typer",
    "scipy",
    "ir_measures",
]


def modules_after(statement):
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()} | set(done.stdout.split())


def test_weft_is_light():
    loaded = modules_after("import weft")
    assert "weft._native" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", ["weft.encoders", "weft.sources", "weft.retriever", "weft.demo"])
def test_the_optional_parts_wait_for_their_use(name):
    assert not modules_after(f"import {name}") & set(HEAVY)


def test_the_command_line_does_without_torch():
    loaded = modules_after("import weft.cli")
    assert "typer" in loaded
    assert not loaded & {"torch", "transformers", "sentence_transformers"}


def test_every_public_name_is_there():
    assert [name for name in weft.__all__ if not hasattr(weft, name)] == []
