# SPDX-License-Identifier: Apache-2.0
"""Parameter types refuse what cannot be, results refuse to be changed."""

import dataclasses
import json
import pickle

import numpy as np
import pytest

import weft
from weft.checks import FrozenDict
from weft.errors import InvalidArgumentError
from weft.types import defaults


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("dim", value) for value in (0, -1, 4098, 1.5, "8", True, None)],
        *[("nbits", value) for value in (0, 3, 16, "4", None)],
        *[("rerank", value) for value in ("f32", 1, True)],
        *[("n_coarse", value) for value in (0, 65_537, 2.0)],
        *[("n_fine", value) for value in (0, "many")],
        *[("kmeans_iterations", value) for value in (0, None)],
        *[("seed", value) for value in (-1, 2**63, "x")],
    ],
)
def test_config_names_the_field_that_cannot_be(field, value):
    with pytest.raises(InvalidArgumentError, match=rf"^{field}=.*expected"):
        weft.IndexConfig(**{field: value})


@pytest.mark.parametrize("nbits", [1, 2, 8])
def test_a_second_plane_goes_with_four_bits(nbits):
    assert weft.IndexConfig(nbits=nbits).rerank is None
    with pytest.raises(InvalidArgumentError, match="nbits=4"):
        weft.IndexConfig(nbits=nbits, rerank="plane")
    assert weft.IndexConfig(nbits=nbits, rerank="f16").rerank == "f16"


def test_numpy_numbers_are_numbers():
    config = weft.IndexConfig(dim=np.int64(96))
    assert config.dim == 96
    assert type(config.dim) is int


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("nprobe", 0),
        ("nprobe", 65_537),
        ("budget", 0),
        ("ncandidates", -5),
        ("nskim", -1),
        ("nrefine", 1.5),
        ("nrerank", -1),
        ("floor", 1.5),
        ("floor", float("nan")),
        ("floor", "0.5"),
        ("exhaustive", 1),
    ],
)
def test_search_parameters_name_the_one_that_cannot_be(field, value):
    with pytest.raises(InvalidArgumentError, match=rf"^{field}=.*expected"):
        weft.SearchParams(**{field: value})


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"nrefine": 5}, "nrefine"),
        ({"nrerank": 5}, "nrerank"),
        ({"nrerank": 5, "exhaustive": True}, "nrerank"),
        ({"ncandidates": 100, "nrefine": 200}, "ncandidates"),
    ],
)
def test_parameters_must_be_able_to_give_k(params, name):
    with pytest.raises(InvalidArgumentError, match=name):
        weft.SearchParams(**params).check(10)


@pytest.mark.parametrize("k", [1, 10, 500, 5_000])
def test_widened_parameters_can_give_k(k):
    wide = weft.SearchParams(nrefine=20, ncandidates=30, nrerank=10).widened(k)
    wide.check(k)
    assert weft.SearchParams(nrerank=0).widened(k).nrerank == 0
    assert weft.SearchParams().widened(10) == weft.SearchParams()


def test_results_cannot_be_changed():
    point = weft.OperatingPoint(1, 0.95, None, None, weft.SearchParams())
    hits = weft.Hits((weft.Hit("a", 1.0),), 1, point, {"probe": 0.1}, "cpu", 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        hits[0].score = 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        hits.generation = 2
    with pytest.raises(TypeError):
        hits.timings_ms["probe"] = 0.0
    document = weft.Document("a", "text", {"tags": ["x"]})
    with pytest.raises(TypeError):
        document.metadata["new"] = 1
    assert document.metadata["tags"] == ("x",)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(a=2),
        lambda d: d.pop("a"),
        lambda d: d.clear(),
        lambda d: d.setdefault("b", 1),
        lambda d: d.popitem(),
        lambda d: d.__delitem__("a"),
        lambda d: d.__ior__({"b": 1}),
    ],
)
def test_a_frozen_dictionary_refuses_every_change(change):
    frozen = FrozenDict({"a": {"b": [1]}})
    with pytest.raises(TypeError, match="cannot be changed"):
        change(frozen)
    assert frozen == {"a": {"b": (1,)}}


def test_hits_are_a_sequence():
    point = weft.OperatingPoint(2, None, None, None, weft.SearchParams())
    hits = weft.Hits([weft.Hit("a", 2.0), weft.Hit("b", 1.0)], 2, point, {}, "cpu", 3)
    assert [hit.id for hit in hits] == ["a", "b"]
    assert hits.ids == ("a", "b")
    assert hits.scores == (2.0, 1.0)
    assert hits[-1].id == "b"
    assert hits[:1] == (weft.Hit("a", 2.0),)
    assert len(hits.replace([hits[0]])) == 1
    assert pickle.loads(pickle.dumps(hits)) == hits


def test_everything_that_is_stored_is_json():
    info = weft.EncoderInfo("m", "st", 8, "f", settings={"a": [1, {"b": 2}]})
    point = weft.OperatingPoint(10, 0.95, 0.96, True, weft.SearchParams())
    for value in (info, point, weft.IndexConfig(), weft.SearchParams()):
        json.dumps(value.to_json(), allow_nan=False)
    assert weft.EncoderInfo(**json.loads(json.dumps(info.to_json()))) == info


def test_defaults_agree_with_the_design():
    assert (defaults.k, defaults.recall, defaults.codec_tokens) == (10, 0.95, 100_000)
    params = weft.SearchParams()
    assert (params.budget, params.nprobe, params.ncandidates) == (50_000, 16, 2_000)
    assert (params.nskim, params.nrefine, params.nrerank) == (400, 40, 20)
    assert (weft.IndexConfig().nbits, weft.IndexConfig().rerank) == (4, "plane")
