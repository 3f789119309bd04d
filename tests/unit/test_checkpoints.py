# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: what is refused, and what makes one encoder another."""

import numpy as np
import pytest

import tiny_models
from weft import encoders
from weft.encoders.projection import projection_from_text, projection_to_text
from weft.errors import InvalidArgumentError, NotFoundError


def test_untrained_projections_are_refused(tmp_path):
    without = tiny_models.write_stanford(tmp_path / "stanford", projection=False)
    with pytest.raises(InvalidArgumentError, match=r"no trained projection.*linear\.weight"):
        encoders.load(without, device="cpu")
    claims = tiny_models.write_bert(tmp_path / "claims")
    (claims / "config_sentence_transformers.json").write_text('{"model_type": "ColBERT"}')
    with pytest.raises(InvalidArgumentError, match="no trained projection"):
        encoders.load(claims, device="cpu")


def test_missing_weights_are_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = tiny_models.write_bert(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidArgumentError, match=r"1 weights are not in the checkpoint.*random"):
        encoders.load(folder, device="cpu")


def test_missing_models(tmp_path, monkeypatch):
    with pytest.raises(NotFoundError, match=r"model ./absent: no such folder"):
        encoders.load("./absent")
    with pytest.raises(NotFoundError, match="model no-such-package: no such folder"):
        encoders.load("no-such-package")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(NotFoundError, match="not in the local Hugging Face cache"):
        encoders.load("weft/no-such-model", download=False)
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        encoders.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match="no weights"):
        encoders.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(InvalidArgumentError, match="cannot be loaded"):
        encoders.load(tmp_path)


def test_fingerprint_follows_weights_and_settings(tmp_path):
    def fingerprint():
        return encoders.load(folder, device="cpu").info.fingerprint

    folder = tiny_models.write_bert(tmp_path / "model")
    first = fingerprint()
    assert len(first) == 32
    (folder / "README.md").write_text("says nothing about rows")
    assert fingerprint() == first
    tiny_models.write_bert(folder, seed=9)
    second = fingerprint()
    assert second != first
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    assert fingerprint() not in {first, second}
    assert encoders.load(folder, device="cpu").info.document_length == 12


def test_projection_text():
    matrix = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
    np.testing.assert_array_equal(projection_from_text(projection_to_text(matrix), 4, 3), matrix)
    with pytest.raises(InvalidArgumentError, match="48 bytes, expected 64 for 4 x 4"):
        projection_from_text(projection_to_text(matrix), 4, 4)
    with pytest.raises(InvalidArgumentError, match="not base64"):
        projection_from_text("§", 4, 3)
