# SPDX-License-Identifier: Apache-2.0
"""Large settings of an encoder: a file that the manifests name, as long as there is an index."""

import json
import re

import numpy as np
import pytest

import weft
from format_reader import crc32c
from helpers import names
from weft.errors import CorruptIndexError

LARGE = {"maps": {"en": "x" * 5_000, "de": [1, 2.5, None, "ß"] * 2_000}}
INFO = weft.EncoderInfo("towers", "dpr", 4, "f00", settings={"title": "line", "calibration": LARGE})


@pytest.fixture
def index(tmp_path):
    made = weft.Index.create(tmp_path / "made.index", encoder=INFO)
    made.add(["a", "b"], [np.eye(4)[:2], np.eye(4)[2:]])
    return made


def manifest(index):
    return json.loads(max(index.path.glob("manifest-*.json")).read_bytes())["body"]


def file_of(index):
    (name,) = names(index.path, "encoder-")
    return index.path / name


def test_the_manifest_stays_small(index):
    body, path = manifest(index), file_of(index)
    assert re.fullmatch(r"encoder-[0-9a-f]{32}\.json", path.name)
    assert body["encoder"]["file"] == path.name
    assert body["encoder"]["settings"] == {"title": "line"}
    data = path.read_bytes()
    assert json.loads(data) == {"calibration": LARGE}
    assert body["files"][path.name] == {"size": len(data), "checksum": f"{crc32c(data):08x}"}
    assert weft.Index.open(index.path).info.encoder == INFO
    assert index.info.encoder == INFO
    assert index.info.n_bytes > len(data)


def test_small_settings_need_no_file(tmp_path):
    info = weft.EncoderInfo("towers", "dpr", 4, "f00", settings={"prompt": "q" * 4_000})
    made = weft.Index.create(tmp_path / "small.index", encoder=info)
    assert names(made.path, "encoder-") == []
    assert manifest(made)["encoder"]["settings"] == {"prompt": "q" * 4_000}


def test_it_outlives_every_generation(index):
    path = file_of(index)
    for i in range(4):
        index.upsert([f"c{i}"], [np.eye(4)])
        index.delete(["a"] if i == 0 else [f"c{i - 1}"])
    index.compact()
    assert file_of(index) == path
    assert weft.Index.open(index.path).info.encoder == INFO
    assert index.verify(deep=True) == ()


def test_an_index_that_is_there_has_the_same_encoder(index):
    again = weft.Index.create(index.path, index.config, encoder=INFO, exist_ok=True)
    assert again.generation == index.generation
    assert len(names(index.path, "encoder-")) == 1


def damage(path, how):
    if how == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[100] ^= 4
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["missing", "changed"])
def test_damage_is_found_and_named(index, how):
    path = file_of(index)
    damage(path, how)
    damaged = weft.Index.open(index.path)
    with pytest.raises(CorruptIndexError, match=path.name):
        _ = damaged.info
    (problem,) = damaged.verify(deep=False)
    assert problem.file == path.name
    assert "cannot be asked in texts" in problem.loss
    done = weft.Index.repair(index.path)
    assert (done.problems, done.n_lost) == ((problem,), 0)
    repaired = weft.Index.open(index.path)
    assert repaired.info.encoder is None
    assert repaired.verify(deep=True) == ()
    assert repaired.search(np.eye(4)[:2], k=1).ids == ("a",)
    assert weft.Index.repair(index.path).problems == ()


def test_a_file_that_is_named_by_nothing_else_is_evidence(index):
    """With a damaged manifest a repair keeps what only that may have named."""
    path = file_of(index)
    newest = max(index.path.glob("manifest-*.json"))
    newest.write_bytes(newest.read_bytes()[:-9])
    done = weft.Index.repair(index.path)
    assert [problem.file for problem in done.problems] == [newest.name]
    assert weft.Index.open(index.path).info.encoder == INFO
    assert path.exists()
