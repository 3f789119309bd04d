# SPDX-License-Identifier: Apache-2.0
"""The recipe of BGE-M3 on a tiny checkpoint in its layout, compared with the recipe in loops."""

import math

import numpy as np
import pytest

import tiny_fields
import weft
from tiny_fields import CLS, DIM, EOS, PAD, UNK, WINDOW
from weft import encoders
from weft.errors import InvalidArgumentError

TEXTS = tiny_fields.M3_TEXTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_fields.write_m3(tmp_path_factory.mktemp("m3") / "model")


def load(folder, **more):
    return encoders.load(folder, device="cpu", **more)


def fields(folder, **more):
    return encoders.fields_of(load(folder, **more))


def states_of(folder, ids):
    """Give the last hidden states of one text as float64 `[n_tokens, N_HIDDEN]`."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(folder)).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).last_hidden_state[0].numpy().astype(np.float64)


def ids_of(folder, text):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))(text)["input_ids"]


def head_of(folder, name):
    import torch

    held = torch.load(folder / name, weights_only=True)
    return held["weight"].numpy().astype(np.float64), held["bias"].numpy().astype(np.float64)


def unit(row):
    return row / math.sqrt(sum(value * value for value in row))


def oracle(folder, ids, *, places=None, firsts=(0,)):
    """Give (rows, dense, sparse) of one sequence by the recipe, a token at a time."""
    states = states_of(folder, ids)
    weight, bias = head_of(folder, "colbert_linear.pt")
    rows = [unit(weight @ states[at] + bias) for at in places or range(1, len(ids))]
    dense = unit(sum(states[at] for at in firsts) / len(firsts))
    weight, bias = head_of(folder, "sparse_linear.pt")
    sparse = {}
    for token, state in zip(ids, states, strict=True):
        value = float(weight[0] @ state + bias[0])
        if token not in {CLS, PAD, EOS, UNK} and value > sparse.get(token, 0.0):
            sparse[token] = value
    return np.array(rows), dense, sparse


def assert_fields(found, expected):
    rows, dense, sparse = expected
    np.testing.assert_allclose(found.multi[0].values, rows, atol=1e-5)
    np.testing.assert_allclose(found.dense, dense, atol=1e-5)
    assert found.sparse.keys() == sparse.keys()
    assert found.sparse == pytest.approx(sparse, abs=1e-5)


@pytest.mark.parametrize("task", ["query", "document"])
def test_three_outputs_of_one_pass(folder, task):
    encoder = fields(folder)
    found = encoder.encode_queries(TEXTS) if task == "query" else encoder.encode_documents(TEXTS)
    for text, one in zip(TEXTS, found, strict=True):
        ids = ids_of(folder, text)
        assert (ids[0], ids[-1]) == (CLS, EOS)
        assert len(one.multi[0].values) == len(ids) - 1
        assert_fields(one, oracle(folder, ids))
    assert {EOS, UNK} <= set(ids_of(folder, TEXTS[2])[1:-1])
    assert len(set(ids_of(folder, TEXTS[0]))) < len(ids_of(folder, TEXTS[0]))  # a term comes twice


def test_alone_and_in_a_padded_batch(folder):
    encoder = fields(folder)
    for text, one in zip(TEXTS, encoder.encode_documents(TEXTS), strict=True):
        (alone,) = encoder.encode_documents([text])
        assert_fields(alone, (one.multi[0].values, one.dense, one.sparse))


def test_token_embeddings_are_those_of_the_fields(folder):
    encoder = load(folder)
    assert (encoder.info.recipe, encoder.info.dim, encoder.info.settings["scoring"]) == (
        "m3", DIM, "mean",
    )  # fmt: skip
    fields = encoders.fields_of(encoder).encode_documents(TEXTS)
    for windows, one in zip(encoder.encode_documents(TEXTS), fields, strict=True):
        np.testing.assert_allclose(windows[0].values, one.multi[0].values, atol=1e-6)
    assert encoder.count_tokens(TEXTS) == [len(ids_of(folder, text)) - 1 for text in TEXTS]
    spans = encoder.encode_queries([TEXTS[0]])[0].spans
    assert [TEXTS[0][a:b] for a, b in spans] == ["the", "key", "turns", "the", "key", ""]


def test_long_texts_are_split_or_cut_and_counted(folder, caplog):
    text = " ".join(["the key"] * 10)
    encoder = load(folder, document_length=12)
    (windows,) = encoder.encode_documents([text])
    assert len(windows) > 1
    assert encoder.counts.n_cut_texts == 0
    (cut,) = encoders.fields_of(encoder).encode_documents([text])
    assert "texts are longer than 12 tokens" in caplog.text
    assert (encoder.counts.n_cut_texts, encoder.counts.n_cut_tokens) == (1, 10)
    assert_fields(cut, oracle(folder, [CLS, *ids_of(folder, text)[1:11], EOS]))


def test_an_empty_text(folder):
    (found,) = fields(folder).encode_documents([""])
    assert found.multi[0].values.shape == (0, DIM)
    assert found.dense is None
    assert found.sparse == {}


def test_one_pass_reads_a_first_token_every_256(folder):
    encoder = fields(folder, document_length=WINDOW, options={"mcls": True})
    for n_words in (1, 255, 256, 257, 513):
        words = ["the", "key", "lock", "door"] * 129
        ids = ids_of(folder, " ".join(words[:n_words]))
        assert len(ids) == n_words + 2
        read, firsts = [CLS], [0]
        for number, token in enumerate(ids[1:-1]):
            if number > 0 and number % 256 == 0:
                firsts.append(len(read))
                read.append(CLS)
            read.append(token)
        read.append(EOS)
        assert len(firsts) == max(-(-n_words // 256), 1)
        places = [at for at in range(len(read)) if at not in firsts]
        (found,) = encoder.encode_documents([" ".join(words[:n_words])])
        assert_fields(found, oracle(folder, read, places=places, firsts=firsts))
    (query,) = encoder.encode_queries([" ".join(words[:300])])
    assert_fields(query, oracle(folder, ids_of(folder, " ".join(words[:300]))))


@pytest.mark.parametrize("length", [258, 259, 260, 515, 516, 517])
def test_inserted_tokens_count_against_the_length(folder, length):
    from transformers import AutoModel

    encoder = load(folder, document_length=length, options={"mcls": True})
    longest = []
    model = AutoModel.from_pretrained(str(folder)).eval()
    encoder._model = lambda **given: longest.append(given["input_ids"].shape[1]) or model(**given)
    (found,) = encoders.fields_of(encoder).encode_documents(["the " * WINDOW])
    n_text = max(n for n in range(1, length - 1) if n + 2 + -(-n // 256) - 1 <= length)
    assert longest == [n_text + 2 + -(-n_text // 256) - 1]
    assert len(found.multi[0].values) == n_text + 1


@pytest.mark.parametrize("head", ["colbert_linear.pt", "sparse_linear.pt"])
def test_a_missing_head_is_refused(tmp_path, head):
    folder = tiny_fields.write_m3(tmp_path / "model")
    (folder / head).unlink()
    with pytest.raises(InvalidArgumentError, match=f"no {head}, its layer would be random"):
        load(folder)


def test_a_head_of_another_model_is_refused(tmp_path):
    import torch

    folder = tiny_fields.write_m3(tmp_path / "model")
    torch.save(
        {"weight": torch.zeros(DIM, 8), "bias": torch.zeros(DIM)}, folder / "colbert_linear.pt"
    )
    with pytest.raises(InvalidArgumentError, match=r"colbert_linear.pt holds .*\(16, 8\)"):
        load(folder)


def test_vectors_are_cut_where_asked_for(folder):
    with pytest.raises(InvalidArgumentError, match=r"dim=8: the model .* gives 16"):
        load(folder, dim=8)
    encoder = fields(folder, dim=8, options={"force_dim": True})
    (found,) = encoder.encode_documents(TEXTS[:1])
    assert (found.multi[0].values.shape[1], found.dense.shape, encoder.dense_dim) == (8, (8,), 8)
    states = states_of(folder, ids_of(folder, TEXTS[0]))
    weight, bias = head_of(folder, "colbert_linear.pt")
    np.testing.assert_allclose(
        found.multi[0].values[0], unit((weight @ states[1] + bias)[:8]), atol=1e-5
    )
    np.testing.assert_allclose(found.dense, unit(states[0][:8]), atol=1e-5)


def test_what_an_index_stores_brings_the_encoder_back(folder):
    encoder = load(folder, document_length=300, options={"mcls": True})
    again = load(folder, info=encoder.info)
    assert again.info == encoder.info


def test_unknown_options_are_refused(folder):
    with pytest.raises(InvalidArgumentError, match="no option 'interval'"):
        load(folder, options={"interval": 2})


def test_from_a_checkpoint_to_a_ranking_of_three_fields(folder, tmp_path):
    encoder = fields(folder)
    weights = {"multi": 0.5, "dense": 0.3, "sparse": 0.1}
    made = weft.HybridRetriever.create(tmp_path / "m3.index", encoder)
    assert made.add([weft.Document(f"d{i}", text) for i, text in enumerate(TEXTS)]) == len(TEXTS)
    opened = weft.HybridRetriever.open(tmp_path / "m3.index", fusion=weft.Weighted(weights))
    assert opened.fields == ("multi", "dense", "sparse")
    hits = opened.search("the key", k=len(TEXTS))
    (query,) = encoder.encode_queries(["the key"])
    for hit in hits:
        (one,) = encoder.encode_documents([hit.text])
        products = query.multi[0].values @ one.multi[0].values.T
        expected = {
            "multi": products.max(1).mean(),
            "dense": query.dense @ one.dense,
            "sparse": sum(w * one.sparse.get(term, 0.0) for term, w in query.sparse.items()),
        }
        assert hit.scores == pytest.approx(expected, rel=2e-3)
        total = sum(weights[name] * score for name, score in expected.items()) / 0.9
        assert hit.score == pytest.approx(total, rel=2e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_some_of_the_fields(folder, tmp_path):
    encoder = fields(folder)
    made = weft.HybridRetriever.create(tmp_path / "m3.index", encoder, fields=["dense", "sparse"])
    made.add([weft.Document(f"d{i}", text) for i, text in enumerate(TEXTS)])
    assert weft.HybridRetriever.open(tmp_path / "m3.index").fields == ("dense", "sparse")
    with pytest.raises(InvalidArgumentError, match="expected some of"):
        weft.HybridRetriever.create(tmp_path / "other.index", encoder, fields=["lexical"])
