# SPDX-License-Identifier: Apache-2.0
"""Options, markers and what many tests start from. Imports nothing of an extra but the test one."""

import dataclasses
import importlib.util
import os
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import weft
from helpers import FakeEncoder
from weft.types import defaults

settings.register_profile("gate", max_examples=50, deadline=None, derandomize=True)
settings.register_profile(
    "long",
    max_examples=1_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("long" if os.environ.get("HYPOTHESIS_PROFILE") == "long" else "gate")


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption(
        "--soak", type=float, default=30.0, help="seconds of tests/lifecycle/test_soak"
    )
    parser.addoption(
        "--peers", type=Path, help="folder with the environments that `make bench-peers` makes"
    )
    parser.addoption("--data", type=Path, help="folder with the collections that some tests need")


def pytest_report_header(config):
    tools = Path(__file__).resolve().parents[1] / "tools"
    spec = importlib.util.spec_from_file_location("attest", tools / "attest.py")
    attest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(attest)
    return f"gpu: {attest.state()}"


def pytest_collection_modifyitems(config, items):
    absent = {
        "slow": None if config.getoption("--run-slow") else "slow: pytest --run-slow",
        "peers": None if config.getoption("--peers") else "no other engines: pytest --peers FOLDER",
        "data": None if config.getoption("--data") else "no collections: pytest --data FOLDER",
        "gpu": None if any(d != "cpu" for d in weft.info()["devices"]) else "no CUDA device",
    }
    for item in items:
        for marker, reason in absent.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def data_folder(request):
    """The folder given with --data."""
    return request.config.getoption("--data")


@pytest.fixture
def peers_folder(request):
    """The folder given with --peers."""
    return request.config.getoption("--peers")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def make_index(tmp_path):
    """Make an index in a folder of its own; documents are named d0, d1 ... unless ids are given."""
    numbers = count()

    def make(docs=None, *, ids=None, config=None, dim=8, **more):
        config = config or weft.IndexConfig(dim=dim)
        index = weft.Index.create(tmp_path / f"made{next(numbers)}.index", config)
        if docs is not None:
            index.add(ids or [f"d{i}" for i in range(len(docs))], docs, **more)
        return index

    return make


@pytest.fixture
def small_codec(monkeypatch):
    """Let an index have a codec from 400 tokens on, so that its whole life fits into a test."""
    monkeypatch.setattr(
        "weft.lifecycle.builder.defaults",
        dataclasses.replace(defaults, codec_tokens=400, tuning_queries=8),
    )
    monkeypatch.setattr("weft.tuner.defaults", dataclasses.replace(defaults, tuning_queries=8))


@pytest.fixture
def unmerged():
    """Let commits merge nothing unasked, so that tombstones and segments stay as they come."""
    patch = pytest.MonkeyPatch()
    patch.setattr(
        "weft.lifecycle.compaction.defaults",
        dataclasses.replace(defaults, merged_deleted=1.0, merged_segments=10**9),
    )
    yield patch
    patch.undo()


@pytest.fixture
def fake_encoder():
    return FakeEncoder()


@pytest.fixture
def early_dense_codec(monkeypatch):
    """Let dense vectors have a codec from 100 documents on."""
    monkeypatch.setattr(
        "weft.lifecycle.dense_build.defaults", dataclasses.replace(defaults, codec_tokens=100)
    )
