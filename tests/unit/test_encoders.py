# SPDX-License-Identifier: Apache-2.0
"""Texts to token embeddings, compared with plain implementations on tiny models made here."""

import base64
import dataclasses
import json

import numpy as np
import pytest

import tiny_models
from weft import encoders
from weft.encoders import windows
from weft.encoders.projection import fit_projection, projection_to_text
from weft.errors import (
    DeviceError,
    IncompatibleIndexError,
    InvalidArgumentError,
    MissingExtraError,
)
from weft.types import EncoderInfo

TEXTS = [
    "The key is turned.",
    "Rotating the lock once, every year",
    "",
    "door",
    "  \n ",
    "unseen: zebra, Ünïcode",
]
LONG = " ".join(f"{word} {word}ing, {word}er" for word in tiny_models.WORDS)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder of each kind of checkpoint."""
    root = tmp_path_factory.mktemp("models")
    return {
        "bare": tiny_models.write_bert(root / "bare"),
        "st": tiny_models.write_sentence_transformer(root / "st"),
        "multi": tiny_models.write_multi_vector(root / "multi"),
        "plain-query": tiny_models.write_multi_vector(root / "plain", expansion=False),
        "stanford": tiny_models.write_stanford(root / "stanford"),
    }


@pytest.fixture
def fitted(models):
    encoder = encoders.load(models["bare"], dim=8, device="cpu")
    encoder.fit(encoder.encode_hidden([*TEXTS, LONG]))
    return encoder


def plain_rows(folder, text, prompt=""):
    """Last hidden states of the text's tokens, one text at a time: float64 after the model."""
    import torch
    from transformers import AutoTokenizer, BertModel

    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder)
    n_prompt = len(tokenizer.tokenize(prompt))
    ids = tokenizer(prompt + text)["input_ids"]
    with torch.no_grad():
        states = model.eval()(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    rows = states[1 + n_prompt : -1]
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def projected(rows, encoder):
    settings = encoder.info.settings
    matrix = np.frombuffer(base64.b64decode(settings["projection"]), "<f4")
    rows = rows @ matrix.reshape(settings["n_hidden"], -1).astype(np.float64)
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def words_of(text, embeddings):
    return [text[start:end] for start, end in embeddings.spans]


def test_hidden_states(models):
    encoder = encoders.load(models["bare"], dim=8, device="cpu", batch_tokens=40)
    assert not encoder.fitted
    for text, hidden in zip(TEXTS, encoder.encode_hidden(TEXTS), strict=True):
        assert len(hidden) == 1
        expected = plain_rows(models["bare"], text) if text.strip() else np.zeros((0, 32))
        assert hidden[0].values.dtype == np.float32
        np.testing.assert_allclose(hidden[0].values, expected, atol=1e-5)


def test_projection_is_the_best_one(models):
    encoder = encoders.load(models["bare"], dim=8, device="cpu")
    hidden = encoder.encode_hidden([*TEXTS, LONG])
    given = encoder.fit(hidden)
    rows = np.concatenate([one.values for pieces in hidden for one in pieces]).astype(np.float64)
    axes = np.linalg.svd(rows, full_matrices=False)[2][:8]
    expected = rows @ axes.T @ axes
    expected /= np.sqrt((expected**2).sum(axis=1, keepdims=True))
    found = np.concatenate([one.values for pieces in given for one in pieces])
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)
    for before, after in zip(given, encoder.encode_documents([*TEXTS, LONG]), strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=1e-5)


def test_projection_takes_the_first_rows_only(models, monkeypatch):
    monkeypatch.setattr("weft.encoders.tokens.FIT_TOKENS", 20)
    encoder = encoders.load(models["bare"], dim=8, device="cpu")
    assert encoder.fit_tokens == 20
    hidden = encoder.encode_hidden([TEXTS[1], LONG])
    encoder.fit(hidden)
    rows = np.concatenate([one.values for pieces in hidden for one in pieces])[:20]
    expected = projection_to_text(fit_projection(rows, 8))
    assert encoder.info.settings["projection"] == expected


def test_an_encoder_that_is_not_fitted_says_so(models):
    encoder = encoders.load(models["bare"], dim=8, device="cpu")
    assert isinstance(encoder, encoders.FittedEncoder)
    assert encoder.info.settings["projection"] is None
    for encode in (encoder.encode_queries, encoder.encode_documents):
        with pytest.raises(InvalidArgumentError, match="from 32 to 8 dimensions is not fitted"):
            encode(["key"])


def test_a_projection_fitted_on_little_is_warned_about(models, caplog):
    encoder = encoders.load(models["bare"], dim=8, device="cpu")
    hidden = encoder.encode_hidden(["the key"])
    with caplog.at_level("WARNING", "weft"):
        [[given]] = encoder.fit(hidden)
    assert "fitted on 2 tokens only" in caplog.text
    rows = hidden[0][0].values
    np.testing.assert_allclose(given.values @ given.values.T, rows @ rows.T, atol=1e-5)


@pytest.mark.parametrize("kind", ["bare", "st", "multi", "stanford"])
def test_tokens_are_counted_without_the_model(models, kind):
    encoder = encoders.load(models[kind], device="cpu")
    texts = [*TEXTS, LONG]
    expected = [sum(len(one.values) for one in w) for w in encoder.encode_documents(texts)]
    assert encoder.count_tokens(texts) == expected


def test_no_projection_where_none_is_needed(models):
    encoder = encoders.load(models["bare"], device="cpu")
    assert encoder.info.dim == 32
    assert encoder.fitted
    with pytest.raises(InvalidArgumentError, match=r"dim=33: the model .* has 32"):
        encoders.load(models["bare"], device="cpu", dim=33)
    np.testing.assert_allclose(
        encoder.encode_queries(["the key"])[0].values,
        plain_rows(models["bare"], "the key"),
        atol=1e-5,
    )


def test_queries_and_documents(models, fitted):
    for text in TEXTS:
        query, [document] = fitted.encode_queries([text])[0], fitted.encode_documents([text])[0]
        np.testing.assert_allclose(query.values, document.values, atol=1e-6)
        if text.strip():
            expected = projected(plain_rows(models["bare"], text), fitted)
            np.testing.assert_allclose(query.values, expected, atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(query.values, axis=1), 1, atol=1e-6)
    assert fitted.encode_queries([]) == []
    assert fitted.encode_documents([]) == []


def test_spans_are_the_words(fitted):
    [[document]] = fitted.encode_documents(["Rotating the LOCK, Ünïcode 鍵"])
    words = words_of("Rotating the LOCK, Ünïcode 鍵", document)
    assert "".join(words) == "RotatingtheLOCK,Ünïcode鍵"
    assert "LOCK" in words
    assert "鍵" in words


def test_an_empty_text_has_no_rows(fitted):
    for text in ("", " \n"):
        assert fitted.encode_queries([text])[0].values.shape == (0, 8)
        assert [one.values.shape for one in fitted.encode_documents([text])[0]] == [(0, 8)]


def test_a_long_text_becomes_windows(models, fitted):
    pieces = fitted.encode_documents([TEXTS[0], LONG])[1]
    assert len(pieces) > 3
    assert fitted.counts.n_split_texts == 2  # one while fitting, one now
    covered = np.zeros(len(LONG), int)
    last_end = 0
    for piece in pieces:
        starts, ends = piece.spans.T.astype(int)
        part = LONG[starts[0] : ends[-1]]
        assert len(piece.values) + 2 <= tiny_models.WINDOW
        assert starts[0] == 0 or LONG[starts[0] - 1] == " " or LONG[starts[0]] == ","
        assert starts[0] <= last_end + 1, "something between two windows is left out"
        expected = projected(plain_rows(models["bare"], part), fitted)
        np.testing.assert_allclose(piece.values, expected, atol=1e-5)
        covered[starts[0] : ends[-1]] += 1
        last_end = ends[-1]
    assert covered.min() >= 1
    assert covered.max() <= 2
    assert (covered == 2).any()
    lengths = [len(piece.values) for piece in pieces]
    assert min(lengths) > max(lengths) / 2


def test_one_endless_word(fitted):
    text = "x" * 100
    pieces = fitted.encode_documents([text])[0]
    assert all(len(piece.values) + 2 <= tiny_models.WINDOW for piece in pieces)
    covered = {i for piece in pieces for start, end in piece.spans for i in range(start, end)}
    assert covered == set(range(100))


@pytest.mark.parametrize("n_words", range(18, 60))
def test_windows_never_exceed_the_model(models, n_words):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["bare"])
    text = " ".join("opening rotater the"[: 3 + i % 16] for i in range(n_words))
    for max_tokens in (8, 13, tiny_models.WINDOW):
        pieces = windows.Splitter(tokenizer, "", max_tokens, 6).split([text])[0]
        assert all(len(piece.ids) <= max_tokens for piece in pieces)
        covered = {i for p in pieces for start, end in p.spans for i in range(start, end)}
        assert covered == {i for i, letter in enumerate(text) if letter != " "}


def test_a_tokenizer_without_places(models):
    from transformers import AutoTokenizer

    class Slow:
        is_fast = False

        def __init__(self, fast):
            self._fast = fast

        def __call__(self, texts, **options):
            assert "return_offsets_mapping" not in options
            return self._fast(texts, **options)

    fast = AutoTokenizer.from_pretrained(models["bare"])
    splitter = windows.Splitter(Slow(fast), "lock : ", 12, 4)
    [[short], pieces] = splitter.split(["the key", LONG])
    assert short.spans is None
    assert short.of_text.tolist() == [False] * 3 + [True] * 2 + [False]
    assert "".join(piece.text for piece in pieces) == LONG
    assert all(len(piece.ids) <= 12 and piece.spans is None for piece in pieces)
    assert [LONG[p.start : p.start + len(p.text)] for p in pieces] == [p.text for p in pieces]


def test_long_queries_are_counted(models, caplog):
    encoder = encoders.load(models["bare"], device="cpu", query_length=6)
    assert encoder.info.query_length == 6
    with caplog.at_level("WARNING", "weft"):
        long, short = encoder.encode_queries(["the key of a lock is turned", "the key of a"])
    assert words_of("the key of a lock is turned", long) == ["the", "key", "of", "a"]
    np.testing.assert_allclose(long.values, short.values, atol=1e-6)
    assert encoder.counts.n_cut_queries == 1
    assert "1 of 2 queries are longer than 6 tokens; up to 3 tokens" in caplog.text
    with pytest.raises(InvalidArgumentError, match=r"query_length=99: expected 4\.\.24"):
        encoders.load(models["bare"], device="cpu", query_length=99)


def test_batches():
    rng = np.random.default_rng(0)
    for limit in (1, 64, 1_000):
        lengths = rng.integers(1, 100, 300)
        groups = windows.batches(lengths, limit)
        assert sorted(at for group in groups for at in group) == list(range(300))
        for group in groups:
            sizes = lengths[group]
            assert len(group) == 1 or len(group) * sizes.max() <= limit
            assert 4 * sizes.min() >= 3 * sizes.max()
    assert windows.batches([], 10) == []


def test_a_sentence_transformer_with_prompts(models):
    encoder = encoders.load(models["st"], device="cpu")
    bare = models["st"].with_name("st-bare")
    [query], [[document]] = encoder.encode_queries([TEXTS[1]]), encoder.encode_documents([TEXTS[1]])
    for found, prompt in ((query, "turn : "), (document, "lock : ")):
        np.testing.assert_allclose(found.values, plain_rows(bare, TEXTS[1], prompt), atol=1e-5)
        assert "".join(words_of(TEXTS[1], found)) == TEXTS[1].replace(" ", "")
    assert encoder.info.settings["query_prompt"] == "turn : "


def test_bfloat16_is_close(models, fitted):
    info = fitted.info
    coarse = encoders.load(models["bare"], info=info, device="cpu", dtype="bfloat16")
    one, other = (encoder.encode_queries([TEXTS[1]])[0] for encoder in (fitted, coarse))
    assert other.values.dtype == np.float32
    assert (one.values * other.values).sum(axis=1).min() > 0.99
    with pytest.raises(InvalidArgumentError, match="dtype='float16'"):
        encoders.load(models["bare"], dtype="float16")
    with pytest.raises(InvalidArgumentError, match=r"dim=0: expected an integer in 1\.\.4097"):
        encoders.load(models["bare"], dim=0)


@pytest.mark.parametrize("kind", ["multi", "plain-query", "stanford"])
def test_multi_vector_equals_its_own_library(models, kind):
    from sentence_transformers import MultiVectorEncoder

    encoder = encoders.load(models[kind], recipe="st", device="cpu", batch_tokens=50)
    model = MultiVectorEncoder(str(models[kind]), device="cpu", local_files_only=True)
    texts = [text for text in TEXTS if text.strip()]
    queries = ["the key", "rotate a lock", "door"]
    pairs = zip(encoder.encode_queries(queries), model.encode_query(queries), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(found.values, expected.numpy(), atol=1e-5)
        assert found.spans.shape == (len(found.values), 2)
    for text in texts:
        found = encoder.encode_documents([text])[0]
        if len(found) == 1:
            expected = model.encode_document([text])[0].numpy()
            np.testing.assert_allclose(found[0].values, expected, atol=1e-5)
    assert encoder.encode_queries([""])[0].values.shape == (0, 8)


def test_multi_vector_windows(models):
    from sentence_transformers import MultiVectorEncoder

    encoder = encoders.load(models["multi"], device="cpu")
    model = MultiVectorEncoder(str(models["multi"]), device="cpu", local_files_only=True)
    [pieces] = encoder.encode_documents([LONG])
    assert encoder.counts.n_split_texts == 1
    assert len(pieces) > 3
    seen = set()
    for piece in pieces:
        inside = piece.spans[piece.spans[:, 1] > piece.spans[:, 0]]
        seen |= {i for start, end in inside for i in range(start, end)}
        expected = model.encode_document([LONG[inside[0, 0] : inside[-1, 1]]])[0].numpy()
        assert abs(len(expected) - len(piece.values)) <= 1  # a comma at the edge is not stored
    assert seen == {i for i, letter in enumerate(LONG) if letter.isalnum()}


def test_a_loaded_model(models):
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(models["multi"]), device="cpu", local_files_only=True)
    encoder, again = encoders.load(model), encoders.load(models["multi"], device="cpu")
    one, other = (each.encode_queries(["the key"])[0].values for each in (encoder, again))
    np.testing.assert_array_equal(one, other)
    assert encoder.info.fingerprint == encoders.load(model).info.fingerprint
    with pytest.raises(InvalidArgumentError, match="int, expected a path"):
        encoders.load(3)
    with pytest.raises(InvalidArgumentError, match=r"dim=16: the model .* gives 8"):
        encoders.load(models["multi"], device="cpu", dim=16)


def test_missing_packages(monkeypatch, models):
    import sys

    monkeypatch.delitem(sys.modules, "weft.encoders.windowed", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weft\[encode\]'"):
        encoders.load(models["bare"])


def test_unknown_device(models):
    with pytest.raises(DeviceError, match="device='abacus'"):
        encoders.load(models["bare"], device="abacus")


def test_a_package_can_carry_the_model(models, tmp_path, monkeypatch):
    package = tmp_path / "tiny_carried_model"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model").symlink_to(models["bare"])
    monkeypatch.syspath_prepend(tmp_path)
    encoder = encoders.load("tiny-carried-model", device="cpu")
    assert encoder.info.name == "tiny-carried-model"
    assert encoder.info.fingerprint == encoders.load(models["bare"]).info.fingerprint


def test_info_brings_the_encoder_back(models, fitted):
    stored = EncoderInfo(**json.loads(json.dumps(fitted.info.to_json())))
    again = encoders.load(models["bare"], info=stored, device="cpu")
    encoders.require_same_encoder(stored, again.info)
    one, other = (encoder.encode_queries([LONG[:60]])[0] for encoder in (fitted, again))
    np.testing.assert_array_equal(one.values, other.values)
    with pytest.raises(IncompatibleIndexError, match=r"the index was made with .* found"):
        encoders.load(models["multi"], info=stored)


def test_other_encoders_are_refused(models, fitted):
    info = fitted.info
    encoders.require_same_encoder(info, info)
    other = encoders.load(models["multi"], device="cpu").info
    with pytest.raises(IncompatibleIndexError, match=r"recipe is 'st', the index was made with"):
        encoders.require_same_encoder(info, other)
    settings = {**info.settings, "projection": "A" * 100}
    with pytest.raises(IncompatibleIndexError, match=r"projection is 'AAA.* \(102 characters\)"):
        encoders.require_same_encoder(info, dataclasses.replace(info, settings=settings))
    with pytest.raises(IncompatibleIndexError, match=r"query_length is 8, .* with 24"):
        encoders.require_same_encoder(info, dataclasses.replace(info, query_length=8))
