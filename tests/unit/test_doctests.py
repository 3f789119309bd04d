# SPDX-License-Identifier: Apache-2.0
"""Every example in a docstring of the installed package runs."""

import doctest
import importlib
import pkgutil

import pytest

import weft

MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(weft.__path__, "weft.")
    if not name.startswith(("weft._native", "weft.lib"))  # compiled: the engine, and its plug-ins
)
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", ["weft", *MODULES])
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.failed == 0
