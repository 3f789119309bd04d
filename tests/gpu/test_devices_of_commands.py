# SPDX-License-Identifier: Apache-2.0
"""Retrievers and commands on a device: what they find there, and what they say of it."""

import json

import pytest

import weft
from helpers import FakeEncoder, run
from weft.cli import eval as cli_eval
from weft.cli.fields import measure_fields
from weft.cli.options import Resources
from weft.encoders.fields import FieldEmbeddings

TEXTS = {f"d{i}": " ".join(f"w{(i * j) % 97}" for j in range(12)) for i in range(60)}


@pytest.fixture
def index(small_codec, tmp_path, monkeypatch):
    """An index of texts whose encoder can be loaded by its name."""
    monkeypatch.setattr("weft.retriever.load", lambda *_, **__: FakeEncoder())
    path = tmp_path / "texts.index"
    config = weft.IndexConfig(dim=16, rerank="plane")
    retriever = weft.Retriever.create(path, FakeEncoder(), config=config)
    retriever.add(weft.Document(name, text) for name, text in TEXTS.items())
    return path


def found(path, *words):
    status, out, err = run("search", path, "w1 w2 w3", "--json", *words)
    assert status == 0, err
    return json.loads(out)


def test_search(index, device):
    there = found(index, "--recall", 1.0, "--device", device)
    here = found(index, "--recall", 1.0)
    assert (there["device"], here["device"]) == (device, "cpu")
    assert there["operating_point"]["path"] == "exhaustive"
    assert [hit["id"] for hit in there["hits"]] == [hit["id"] for hit in here["hits"]]
    assert found(index, "--device", "auto")["device"].endswith(":0")
    _, out, err = run("search", index, "w1 w2 w3", "--device", device)
    assert f"exhaustive on {device}" in err
    assert there["hits"][0]["id"] in out


def test_eval(index, device):
    """The exact search beside it stays on the CPU, which alone reads every plane."""
    retriever = weft.Retriever.open(index, device=device)
    assert retriever.search("w1 w2").device == device
    there, here = (
        cli_eval.measure_index(
            retriever, {"q1": "w1 w2 w3"}, k=5, depth=5, recall=0.9, use=use, progress=None
        )
        for use in (Resources(device), Resources())
    )
    assert (there[0]["device"], here[0]["device"]) == (device, "cpu")
    assert there[0]["recall@5"] == here[0]["recall@5"]
    assert there[1:] == here[1:]


class Fields(FakeEncoder):
    """Token embeddings of a text, and their mean."""

    def encode_queries(self, texts):
        windows = super().encode_queries(texts)
        return [FieldEmbeddings([one], one.values.mean(axis=0), None) for one in windows]

    encode_documents = encode_queries


def test_fields(device, small_codec, tmp_path):
    config = weft.IndexConfig(dim=16, dense=weft.DenseConfig(16))
    index = weft.Index.create(tmp_path / "fields.index", config, encoder=Fields())
    here = weft.HybridRetriever(index, Fields())
    here.add(weft.Document(name, text) for name, text in TEXTS.items())
    there = weft.HybridRetriever(index, Fields(), device=device)
    assert there.search("w1 w2").ids == here.search("w1 w2", recall=1.0).ids
    facts, _ = measure_fields(
        there, {"q": "w1 w2"}, name="f", k=3, depth=5, recall=1.0, device=device, progress=None
    )
    assert facts["device"] == device
