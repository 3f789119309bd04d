# SPDX-License-Identifier: Apache-2.0
"""Weights of terms from a tiny masked language model, compared with the formula in loops."""

import math

import numpy as np
import pytest

import tiny_fields
import tiny_models
from weft import encoders
from weft.errors import InvalidArgumentError

TEXTS, WINDOW = tiny_fields.SPLADE_TEXTS, tiny_fields.SPLADE_WINDOW


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_fields.write_splade(tmp_path_factory.mktemp("splade") / "model")


def oracle(folder, text):
    """Give term -> max over tokens of log(1 + relu(logit)), without terms of weight 0."""
    import torch
    from transformers import AutoTokenizer, RobertaForMaskedLM

    ids = AutoTokenizer.from_pretrained(str(folder))(text)["input_ids"]
    if len(ids) > WINDOW:
        ids = [*ids[: WINDOW - 1], ids[-1]]
    with torch.inference_mode():
        logits = RobertaForMaskedLM.from_pretrained(str(folder)).eval()(torch.tensor([ids])).logits
    weights = {}
    for row in logits[0].tolist():
        for term, logit in enumerate(row):
            if logit > 0:
                weights[term] = max(weights.get(term, 0.0), math.log1p(logit))
    return weights


@pytest.mark.parametrize("task", ["query", "document"])
def test_weights_of_terms(folder, task, caplog):
    encoder = encoders.fields_of(encoders.load(folder, device="cpu"))
    assert (encoder.makes, encoder.info.recipe, encoder.dense_dim) == (("sparse",), "splade", None)
    encode = encoder.encode_queries if task == "query" else encoder.encode_documents
    for text, found in zip(TEXTS, encode(TEXTS), strict=True):
        expected = oracle(folder, text)
        assert found.multi is None
        assert found.dense is None
        # A weight of nearly nothing may be there or not.
        assert found.sparse == pytest.approx(
            {term: expected.get(term, 0.0) for term in found.sparse}, abs=1e-5
        )
        assert all(w < 1e-5 for term, w in expected.items() if term not in found.sparse)
    assert "1 of 3" in caplog.text  # the long one is told of
    assert encode([""])[0].sparse == {}


def test_a_masked_language_model_without_modules(tmp_path):
    folder = tiny_fields.write_splade(tmp_path / "model", bare=True)
    encoder = encoders.fields_of(encoders.load(folder, recipe="splade", device="cpu"))
    (found,) = encoder.encode_documents(TEXTS[:1])
    expected = oracle(folder, TEXTS[0])
    assert found.sparse == pytest.approx({t: expected.get(t, 0.0) for t in found.sparse}, abs=1e-5)


def test_a_model_without_terms_is_refused(tmp_path):
    folder = tiny_fields.write_splade(tmp_path / "model", bare=True, masked=False)
    with pytest.raises(InvalidArgumentError, match=r"RobertaModel in config\.json, so its weights"):
        encoders.load(folder, recipe="splade")


def test_there_are_no_token_embeddings(folder):
    with pytest.raises(InvalidArgumentError, match="weights of terms and no token embeddings"):
        encoders.load(folder).encode_queries(["the key"])


def test_encoders_of_several_fields(folder, tmp_path):
    parts = [
        encoders.load(tiny_models.write_stanford(tmp_path / "multi"), device="cpu"),
        encoders.load(
            tiny_models.write_sentence_transformer(tmp_path / "dense"), recipe="dense", device="cpu"
        ),
        encoders.load(folder, device="cpu"),
    ]
    joined = encoders.fields_of(*parts)
    assert joined.makes == ("multi", "dense", "sparse")
    assert joined.dense_dim == tiny_models.N_HIDDEN
    assert joined.info.dim == parts[0].info.dim
    (found,) = joined.encode_documents(["the key of a lock"])
    (windows,) = parts[0].encode_documents(["the key of a lock"])
    np.testing.assert_array_equal(found.multi[0].values, windows[0].values)
    ((row,),) = parts[1].encode_documents(["the key of a lock"])
    np.testing.assert_array_equal(found.dense, row.values[0])
    assert (
        found.sparse
        == encoders.fields_of(parts[2]).encode_documents(["the key of a lock"])[0].sparse
    )
    (query,) = joined.encode_queries(["key"])
    assert len(query.multi) == 1
    others = encoders.fields_of(*parts[:2])
    assert others.info.fingerprint != joined.info.fingerprint
    assert others.encode_queries(["key"])[0].sparse is None


def test_two_of_one_field_are_refused(folder):
    one = encoders.load(folder, device="cpu")
    with pytest.raises(InvalidArgumentError, match="make the same field"):
        encoders.fields_of(one, one)
    with pytest.raises(InvalidArgumentError, match="no encoder"):
        encoders.fields_of()
