# SPDX-License-Identifier: Apache-2.0
"""Texts in, hits with texts out: against MaxSim written out, with an encoder made of hashes."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

import tiny_models
import weft
from weft import sources
from weft.errors import (
    IncompatibleIndexError,
    IndexExistsError,
    InvalidArgumentError,
    NotFoundError,
)
from weft.types import Document, EncoderInfo, TokenEmbeddings

WINDOW = 6


class HashEncoder:
    """A word is a direction made from its letters; texts are cut into windows of six words."""

    def __init__(self, dim=16, name="hash"):
        self.info = EncoderInfo(name, "hash", dim, f"{name}-{dim}", 32, WINDOW, {"salt": [1, 2]})

    def row(self, word):
        seed = int.from_bytes(hashlib.sha256(word.lower().encode()).digest()[:4], "little")
        row = np.random.default_rng(seed).standard_normal(self.info.dim).astype(np.float32)
        return row / np.linalg.norm(row)

    def embeddings(self, words):
        rows = [self.row(word[0]) for word in words]
        values = np.stack(rows) if rows else np.zeros((0, self.info.dim), np.float32)
        spans = np.array([word.span() for word in words], np.uint32).reshape(-1, 2)
        return TokenEmbeddings(values, spans)

    def encode_queries(self, texts):
        return [self.embeddings(list(re.finditer(r"\w+", text))) for text in texts]

    def encode_documents(self, texts):
        result = []
        for text in texts:
            words = list(re.finditer(r"\w+", text))
            starts = range(0, max(len(words), 1), WINDOW)
            result.append([self.embeddings(words[at : at + WINDOW]) for at in starts])
        return result

    def count_tokens(self, texts):
        return [len(re.findall(r"\w+", text)) for text in texts]


WORDS = [f"{a}{b}{c}" for a in "bdfklm" for b in "aeiou" for c in "nrst"]


def corpus(n=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Document(f"d{i}", " ".join(rng.choice(WORDS, int(rng.integers(1, 20)))), {"number": i})
        for i in range(n)
    ]


def best_windows(encoder, documents, query):
    """Ids, scores in float64 and the scores of all windows; best first, then by id."""
    rows = encoder.encode_queries([query])[0].values.astype(np.float64)
    scored = []
    for document in documents:
        windows = encoder.encode_documents([document.text])[0]
        scores = [(rows @ one.values.T).max(axis=1).sum() for one in windows]
        scored.append((document.id, max(scores), scores))
    return sorted(scored, key=lambda one: (-one[1], one[0]))


@pytest.fixture
def made(tmp_path):
    retriever = weft.Retriever.create(tmp_path / "made", HashEncoder())
    assert retriever.add(iter(corpus())) == 60
    return retriever


def test_search_is_maxsim_over_windows(made):
    for query in ("ban dor kit", "mus", "fen fen lar bos dat kun lin"):
        expected = best_windows(HashEncoder(), corpus(), query)[:10]
        hits = made.search(query, 10)
        np.testing.assert_allclose(hits.scores, [one[1] for one in expected], atol=5e-3)
        scores = {one[0]: one[1:] for one in best_windows(HashEncoder(), corpus(), query)}
        for hit in hits:
            assert hit.score == pytest.approx(scores[hit.id][0], abs=5e-3)
            windows = scores[hit.id][1]
            assert (hit.passage is None) == (len(windows) == 1)
            assert windows[hit.passage or 0] == pytest.approx(max(windows), abs=5e-3)
            document = corpus()[int(hit.id[1:])]
            assert (hit.text, hit.metadata) == (document.text, document.metadata)
            assert hit.matches is None
        assert len(set(hits.ids)) == 10


def test_explain_names_the_words(made):
    query = "ban Dor kit"
    for hit in made.search(query, 5, explain=True):
        assert [match.text for match in hit.matches] == ["ban", "Dor", "kit"]
        assert sum(match.similarity for match in hit.matches) == pytest.approx(hit.score, abs=1e-3)
        encoder = HashEncoder()
        for match in hit.matches:
            word = hit.text[match.start : match.end]
            assert re.fullmatch(r"\w+", word)
            similarity = encoder.row(match.text) @ encoder.row(word)
            assert match.similarity == pytest.approx(similarity, abs=5e-3)


def test_batch_is_one_by_one(made):
    queries = ["ban dor", "mus kit lan"]
    for hits, query in zip(made.search_batch(queries, 7), queries, strict=True):
        alone = made.search(query, 7)
        assert hits.ids == alone.ids
        assert hits.scores == alone.scores
        assert next(iter(hits.timings_ms)) == "encode"
    assert made.search_batch([], 7) == ()


def test_opening_again(made, tmp_path):
    again = weft.Retriever.open(tmp_path / "made", model=HashEncoder())
    assert len(again) == len(made) == 60
    assert again.search("ban dor").ids == made.search("ban dor").ids
    again.add([Document("new", "zebra quagga")])
    assert again.search("zebra quagga", 1)[0].id == "new"
    assert len(again) == 61
    with pytest.raises(InvalidArgumentError, match=r"'new'.*in the index already"):
        again.add([Document("other", "kit"), Document("new", "kit")])
    assert len(weft.Retriever.open(tmp_path / "made", model=HashEncoder())) == 61


def test_another_encoder_is_refused(made, tmp_path):
    with pytest.raises(IncompatibleIndexError, match="fingerprint is 'other-16', the index was"):
        weft.Retriever.open(tmp_path / "made", model=HashEncoder(name="other"))
    longer = HashEncoder()
    longer.info = dataclasses.replace(longer.info, query_length=64)
    with pytest.raises(
        IncompatibleIndexError, match="query_length is 64, the index was made with 32"
    ):
        weft.Retriever.open(tmp_path / "made", model=longer)
    with pytest.raises(InvalidArgumentError, match=r"config.dim=8: the encoder gives 16"):
        weft.Retriever.create(tmp_path / "x", HashEncoder(), config=weft.IndexConfig(dim=8))
    with pytest.raises(IndexExistsError):
        weft.Retriever.create(tmp_path / "made", HashEncoder())


def test_no_encoder_and_no_model(made, tmp_path):
    opened = weft.Retriever.open(tmp_path / "made")  # names a model that is nowhere, loads nothing
    assert len(opened) == 60
    with pytest.raises(NotFoundError, match="model hash: no such folder"):
        opened.search("ban")
    weft.Index.create(tmp_path / "bare", weft.IndexConfig(dim=16))
    with pytest.raises(InvalidArgumentError, match="names no encoder"):
        weft.Retriever.open(tmp_path / "bare")


def test_bad_queries_and_documents(made):
    for query in ("", "  ", "?!"):
        with pytest.raises(InvalidArgumentError, match="no tokens in it"):
            made.search(query)
    with pytest.raises(InvalidArgumentError, match="expected a text"):
        made.search(3)
    with pytest.raises(InvalidArgumentError, match="k=0"):
        made.search("ban", 0)
    with pytest.raises(InvalidArgumentError, match="document 'x': no text"):
        made.add([Document("y", "kit"), Document("x")])
    assert len(made) == 60
    assert made.add([]) == 0


def test_an_empty_document_is_counted_and_never_found(made):
    made.add([Document("empty", "  ")])
    assert len(made) == 61
    assert made.index.info.n_empty == 1
    assert "empty" not in made.search("ban", 100).ids
    assert made.index.documents(["empty"])[0].text == "  "


def test_progress_and_files(tmp_path):
    lines = [
        json.dumps({"_id": document.id, "text": document.text, **document.metadata})
        for document in corpus(400)
    ]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    calls = []
    retriever = weft.Retriever.create(tmp_path / "made", HashEncoder())
    source = sources.read(tmp_path)
    retriever.add(source, progress=lambda *call: calls.append(call))
    encoded = [(done, total) for stage, done, total in calls if stage == "encode"]
    n_tokens = sum(HashEncoder().count_tokens([one.text for one in corpus(400)]))
    assert len(encoded) == 2  # batches of 256 documents
    assert encoded[-1] == (n_tokens, n_tokens)
    assert encoded[0][0] < encoded[0][1]
    assert retriever.index.info.n_tokens == n_tokens
    hit = retriever.search(corpus(400)[7].text, 1)[0]
    assert hit.metadata == {"number": int(hit.id[1:])}


def test_tuning_queries_reach_the_index(tmp_path):
    retriever = weft.Retriever.create(tmp_path / "made", HashEncoder())
    retriever.add(corpus(), queries=["ban dor", "kit"])
    assert len(retriever) == 60
    with pytest.raises(InvalidArgumentError, match="no tokens in it"):
        retriever.add(corpus(5, seed=3), queries=[""])


def test_a_model_that_is_fitted_on_the_first_texts(tmp_path, monkeypatch):
    monkeypatch.setattr("weft.encoders.tokens.FIT_TOKENS", 300)
    monkeypatch.setattr("weft.encoding.BATCH_DOCUMENTS", 8)
    model = tiny_models.write_bert(tmp_path / "model")
    path = tmp_path / "made"
    config = weft.IndexConfig(dim=8)
    retriever = weft.Retriever.create(path, model, config=config, encoder_device="cpu")
    assert not path.exists()
    assert len(retriever) == 0
    with pytest.raises(NotFoundError, match="no index yet"):
        retriever.search("the key")
    rng = np.random.default_rng(0)
    documents = [Document(f"d{i}", " ".join(rng.choice(tiny_models.WORDS, 12))) for i in range(40)]
    stages = []
    retriever.add(documents, progress=lambda stage, done, total: stages.append((stage, done)))
    assert stages[0][0] == "encode"
    info = retriever.index.info
    assert info.n_docs == 40
    assert info.encoder.settings["projection"] == retriever.encoder.info.settings["projection"]
    for opened in (
        weft.Retriever.open(path),
        weft.Retriever.open(path, model=model, encoder_device="cpu"),
    ):
        for document in documents[::7]:
            hits = opened.search(document.text, 3)
            assert hits.ids == retriever.search(document.text, 3).ids
            expected = best_windows(opened.encoder, documents, document.text)
            np.testing.assert_allclose(hits.scores, [one[1] for one in expected[:3]], atol=5e-3)
    other = tiny_models.write_bert(tmp_path / "other", seed=5)
    with pytest.raises(IncompatibleIndexError, match="the index was made with"):
        weft.Retriever.open(path, model=other)


def test_one_short_text_is_enough(tmp_path):
    model = tiny_models.write_bert(tmp_path / "model")
    config = weft.IndexConfig(dim=8)
    retriever = weft.Retriever.create(tmp_path / "made", model, config=config, encoder_device="cpu")
    assert retriever.add([]) == 0
    retriever.add([Document("one", "the key")])
    assert retriever.search("key").ids == ("one",)
    retriever.add([Document("two", "a lock")])
    assert set(retriever.search("key lock").ids) == {"one", "two"}


def test_a_failing_source_leaves_the_index_as_it_was(made):
    def failing():
        yield Document("fresh", "ban")
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        made.add(failing())
    assert len(made) == 60
    assert made.add([Document("fresh", "ban")]) == 1


def test_upsert_and_delete(tmp_path):
    made = weft.Retriever.create(tmp_path / "r.index", HashEncoder())
    old, new = "bat bet bit bot", "fan fen fin fat fet fit fot fas"  # new: two windows
    assert made.add([Document("a", old, {"n": 1}), Document("b", old)]) == 2
    assert made.search("bat bit", k=3).ids == ("a", "b")
    assert made.upsert([Document("a", "of no use"), Document("c", old), Document("a", new)]) == 3
    assert len(made) == 3
    assert made.search("bat bit", k=2).ids == ("b", "c")
    (hit,) = made.search("fot fas", k=1)
    assert (hit.id, hit.text, hit.metadata, hit.passage) == ("a", new, {}, 1)
    with pytest.raises(InvalidArgumentError, match="'d': added before"):
        made.add([Document("d", old), Document("e", old), Document("d", new)])
    with pytest.raises(InvalidArgumentError, match="'c': in the index already"):
        made.add([Document("d", old), Document("c", old)])
    assert made.delete(["a", "b", "nobody"]) == 2
    assert made.search("fet bat", k=5).ids == ("c",)
    assert made.upsert([]) == 0


def test_filters(tmp_path):
    retriever = weft.Retriever.create(tmp_path / "a.index", HashEncoder())
    retriever.add(
        Document(f"d{i}", " ".join(WORDS[i : i + 9]), {"n": i, "even": i % 2 == 0})
        for i in range(20)
    )
    where, query = {"even": True, "n": {"$lt": 7}}, WORDS[5]
    for hits in (
        retriever.search(query, where=where),
        retriever.search_batch([query], where=where)[0],
        retriever.search(query, allow=["d0", "d2", "d4", "d6"]),
    ):
        assert (set(hits.ids), hits.n_matching) == ({"d0", "d2", "d4", "d6"}, 4)
        assert all(hit.metadata["even"] for hit in hits)
    assert retriever.delete(where=where) == 4
    assert len(retriever.search(query, k=20)) == 16
