# SPDX-License-Identifier: Apache-2.0
"""Two towers with a calibration: the index keeps it, and texts come in a language."""

import json

import numpy as np
import pytest

import weft
from helpers import run
from tiny_towers import N_HIDDEN
from unit.test_dpr import (
    LONG,
    PASSAGES,
    assert_products,
    folder,
    load,
    passage_vector,
    query_vector,
)
from weft import encoders
from weft.encoders.calibration import Calibration
from weft.errors import IncompatibleIndexError, InvalidArgumentError

__all__ = ["folder"]


@pytest.fixture(scope="module")
def calibration(folder, tmp_path_factory):
    """Made from vectors of few texts in two made-up languages."""
    encoder = load(folder)
    texts = [f"{a} {b} door" for a in LONG.split()[:8] for b in ("key", "lock", "house")]
    english = encoder.plain_vectors(texts, "document")
    german = encoder.plain_vectors([f"der {text}" for text in texts], "query")
    found = Calibration.fit(
        {"en": english, "de": german},
        pivot="en", stage="shift_scale_rotate", pairs={"de": (german, english)},
    )  # fmt: skip
    path = tmp_path_factory.mktemp("calibration") / "made.json"
    found.save(path)
    return path


def test_an_index_keeps_its_calibration(tmp_path, folder, calibration):
    encoder = load(folder, calibration=str(calibration), language="en")
    path = tmp_path / "made.index"
    retriever = weft.Retriever.create(path, encoder)
    texts = [*PASSAGES[:2], "the lock\nis old", LONG]
    documents = [weft.Document(f"d{i}", text) for i, text in enumerate(texts)]
    retriever.add(documents[:2])
    retriever.add([])
    stored = weft.Index.open(path).info.encoder
    assert stored.settings["calibration"] == json.loads(calibration.read_text())
    assert "language" not in stored.settings
    without = weft.Retriever.open(path)
    with pytest.raises(InvalidArgumentError, match=r"language=None: .* expected one of de, en"):
        without.search("the key")
    german = encoders.load(folder, device="cpu", info=stored, options={"language": "de"})
    again = weft.Retriever.open(path, model=german)
    weft.Retriever.open(path, model=german.in_language("en")).add(documents[2:])
    again.index.refresh()
    maps = json.loads(calibration.read_text())["maps"]

    def mapped(vector, language):
        one = {name: as_array(text) for name, text in maps[language].items() if name != "n"}
        moved = (vector - one["mean"]) / np.maximum(one["std"], 1e-6)
        return (
            moved
            if "rotation" not in one or one["rotation"] is None
            else one["rotation"].reshape(N_HIDDEN, N_HIDDEN) @ moved
        )

    query = mapped(query_vector("der key"), "de")
    scores = {d.id: float(query @ mapped(passage_vector(d.text), "en")) for d in documents[:3]}
    assert_products(
        again.search("der key", k=3, allow=["d0", "d1", "d2"]),
        scores,
        np.linalg.norm(query) * stored.settings["max_norm"],
    )
    with pytest.raises(InvalidArgumentError, match=r"language='fr': .* expected one of de, en"):
        german.in_language("fr").encode_queries(["la clé"])
    with pytest.raises(IncompatibleIndexError, match="calibration is None"):
        weft.Retriever.open(path, model=load(folder))


def test_languages_on_the_command_line(tmp_path, folder, calibration):
    lines = [json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(PASSAGES)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "der key"}) + "\n")
    path, corpus = tmp_path / "made.index", tmp_path / "corpus.jsonl"
    given = ("--option", f"calibration={calibration}", "--option", "language=en")
    status, _, err = run("build", path, corpus, "--model", folder, *given)
    assert status == 0, err
    german = load(folder, calibration=str(calibration), language="de")
    expected = weft.Retriever.open(path, model=german).search("der key", k=3)
    for model in ((), ("--model", folder)):
        words = ("search", path, "der key", "-k", "3", "--json", "--language", "de", *model)
        status, out, err = run(*words)
        assert status == 0, err
        hits = json.loads(out)["hits"]
        assert [(hit["id"], hit["score"]) for hit in hits] == [
            (hit.id, pytest.approx(hit.score)) for hit in expected
        ]
    status, out, err = run(
        "eval", path, "--queries", tmp_path / "queries.jsonl", "--json", "--language", "de"
    )
    assert status == 0, err
    assert json.loads(out)["recall@10"] == 1.0
    for words, message in (
        (("search", path, "der key"), "language=None"),
        (("search", path, "la clé", "--language", "fr"), "language='fr'"),
    ):
        status, _, err = run(*words)
        assert status == 3
        assert message in " ".join(err.split())
    plain = tmp_path / "plain.index"
    status, _, err = run("build", plain, corpus, "--model", folder, "--fields", "dense")
    assert status == 0, err
    status, _, err = run("search", plain, "the key", "--language", "en")
    assert status == 3
    assert "has no calibration" in " ".join(err.split())
    fields = tmp_path / "fields.index"
    status, _, err = run("build", fields, corpus, "--model", folder, *given, "--fields", "dense")
    assert status == 0, err
    status, out, err = run("search", fields, "der key", "-k", "3", "--json", "--language", "de")
    assert status == 0, err
    asked = weft.HybridRetriever.open(fields, encoder=encoders.fields_of(german))
    expected = asked.search("der key", k=3)
    assert [hit["id"] for hit in json.loads(out)["hits"]] == list(expected.ids)


def as_array(text):
    import base64

    return None if text is None else np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64)


def test_a_calibration_of_another_width(tmp_path, folder, rng, caplog):
    path = tmp_path / "made.json"
    Calibration.fit({"en": rng.normal(size=(20, 4))}, pivot="en", stage="shift").save(path)
    assert "come from 20 vectors only" in caplog.text
    with pytest.raises(InvalidArgumentError, match="vectors of 4 values, the model gives 32"):
        load(folder, calibration=str(path))
