# SPDX-License-Identifier: Apache-2.0
"""Which recipe a checkpoint folder is read with, in the order of the rules."""

import json

import pytest

import tiny_colbert
import tiny_models
import tiny_towers
from weft import encoders
from weft.encoders.checkpoint import Checkpoint
from weft.encoders.recipes import recipe_of
from weft.errors import IncompatibleIndexError, InvalidArgumentError

BLANK = {"config.json": "{}", "model.safetensors": ""}
HEADS = {"colbert_linear.pt": "", "sparse_linear.pt": ""}
MODULES = {"modules.json": "[]"}
STANFORD = {"config.json": '{"architectures": ["HF_ColBERT"]}'}
METADATA = {"artifact.metadata": "{}"}
LUSIFER = {"config.json": '{"universal_learner_name_or_path": "x"}'}


def saved(**settings):
    return {"config_sentence_transformers.json": json.dumps(settings)}


@pytest.fixture
def folder(tmp_path):
    def make(files):
        for name, text in {**BLANK, **files}.items():
            (tmp_path / name).write_text(text)
        return Checkpoint.find(tmp_path, download=False)

    return make


@pytest.mark.parametrize(
    ("files", "name", "also"),
    [
        ({}, "tokens", None),
        (MODULES, "tokens", None),
        (MODULES | saved(prompts={}), "tokens", None),
        (HEADS, "m3", None),
        (HEADS | MODULES | saved(query_length=32), "m3", "pylate"),
        ({"colbert_linear.pt": ""}, "m3", None),
        (LUSIFER, "lusifer", None),
        (LUSIFER | METADATA, "lusifer", "stanford"),
        (MODULES | saved(model_type="ColBERT"), "pylate", None),
        (MODULES | saved(query_prefix="[Q] "), "pylate", None),
        (MODULES | saved(skiplist_words=[]), "pylate", None),
        (saved(query_prefix="[Q] "), "tokens", None),
        (STANFORD, "stanford", None),
        (METADATA, "stanford", None),
        (STANFORD | METADATA | MODULES | saved(document_length=300), "pylate", "stanford"),
        (MODULES | saved(model_type="MultiVectorEncoder"), "st", None),
    ],
)
def test_rules(folder, files, name, also, caplog):
    with caplog.at_level("INFO", "weft"):
        assert recipe_of(folder(files)).name == name
    if also is None:
        assert not caplog.records
    else:
        assert f"laid out for {name} and for {also}; {name} is used" in caplog.text


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_pair_of_towers(tmp_path, named):
    import torch

    tiny_towers.xlmr_config().save_pretrained(tmp_path)
    torch.save({"model_dict": tiny_towers.dpr_weights(sides=["question"])}, tmp_path / "best.pt")
    path = tmp_path if named == "folder" else tmp_path / "best.pt"
    with pytest.raises(InvalidArgumentError, match=r"no ctx_model.backbone.\* in its model_dict"):
        encoders.load(path)
    (tmp_path / "best.pt").write_bytes(b"no pickle")
    (tmp_path / "model.safetensors").touch()
    assert recipe_of(Checkpoint.find(tmp_path, download=False)).name == "tokens"
    with pytest.raises(InvalidArgumentError, match="not a file of tensors alone"):
        encoders.load(tmp_path / "best.pt")


def test_a_dnn_file(tmp_path):
    path = tiny_colbert.write_dnn(tmp_path / "dnn", arguments={})
    assert recipe_of(Checkpoint.find(path, download=False)).name == "stanford"


def test_a_recipe_can_be_asked_for(tmp_path):
    folder = tiny_colbert.write_stanford(tmp_path / "model")
    own, st = (encoders.load(folder, device="cpu", recipe=recipe).info for recipe in (None, "st"))
    assert (own.recipe, st.recipe) == ("stanford", "st")
    tokens = encoders.load(tiny_models.write_bert(tmp_path / "bert"), device="cpu", recipe="tokens")
    assert tokens.info.recipe == "tokens"
    with pytest.raises(
        InvalidArgumentError, match=r"recipe='colbert': expected one of m3, lusifer"
    ):
        encoders.load(folder, recipe="colbert")
    with pytest.raises(InvalidArgumentError, match="no option 'attend'; expected none at all"):
        encoders.load(folder, device="cpu", recipe="st", options={"attend": True})
    with pytest.raises(IncompatibleIndexError, match=r"recipe is 'st', .* made with 'stanford'"):
        encoders.require_same_encoder(own, st)
    assert encoders.load(folder, device="cpu", info=st).info.recipe == "st"


def test_a_loaded_model_has_its_recipe(tmp_path):
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(
        str(tiny_models.write_multi_vector(tmp_path / "multi")), device="cpu"
    )
    with pytest.raises(InvalidArgumentError, match=r"recipe='stanford'.*keeps its own"):
        encoders.load(model, recipe="stanford")
