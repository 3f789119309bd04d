# SPDX-License-Identifier: Apache-2.0
"""The dense recipe, as Granite is published: compared with pooled states of transformers itself."""

import json

import numpy as np
import pytest

import tiny_models
import weft
from helpers import assert_ranking
from weft import encoders
from weft.errors import IncompatibleIndexError, InvalidArgumentError

TEXTS = ["The key of a lock.", "door", "rotate, sign; open every year", "lock the door once"]
LONG = " ".join(tiny_models.WORDS * 3)


def write_dense(folder, *, pooling="cls", normalize=True, modern=False, dims=None):
    """modules.json, 1_Pooling/config.json, sentence_bert_config.json, a backbone, a tokenizer."""
    folder.mkdir(parents=True)
    backbone(modern=modern).save_pretrained(folder)
    tiny_models.write_tokenizer(folder)
    kind = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] * normalize
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{kind}.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    settings = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    saved = {"similarity_fn_name": "cosine", **({"matryoshka_dims": dims} if dims else {})}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    return folder


def backbone(*, modern):
    import torch
    from transformers import ModernBertConfig, ModernBertModel

    if not modern:
        model = tiny_models.bert(seed=7)
        last = model.encoder.layer[-1].output.LayerNorm  # else all states have the same length
        torch.nn.init.normal_(last.weight, mean=1, std=2)
        torch.nn.init.normal_(last.bias)
        return model
    torch.manual_seed(7)
    config = ModernBertConfig(
        vocab_size=len(tiny_models.VOCABULARY), hidden_size=32, intermediate_size=48,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3,
        initializer_range=0.3,
    )  # fmt: skip
    return ModernBertModel(config).eval()


def expected(folder, text, *, pooling="cls", dim=32, length=24):
    """One text at a time: cut, run, pool, cut the row, scale it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    inner = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))[: length - 2]
    ids = [tokenizer.cls_token_id, *inner, tokenizer.sep_token_id]
    with torch.no_grad():
        model = AutoModel.from_pretrained(folder).eval()
        states = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    row = states[0] if pooling == "cls" else sum(states) / len(states)
    row = row[:dim]
    return row / np.sqrt((row * row).sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_dense(tmp_path_factory.mktemp("dense") / "model")


def load(folder, **more):
    return encoders.load(folder, recipe="dense", device="cpu", **more)


@pytest.mark.parametrize(
    "how",
    [{}, {"normalize": False}, {"pooling": "mean"}, {"modern": True}],
    ids=["cls", "not-normalized", "mean", "modernbert"],
)
def test_rows_equal_the_recipe(tmp_path, how):
    folder = write_dense(tmp_path / "model", **how)
    encoder = load(folder)
    assert (encoder.info.recipe, encoder.info.dim) == ("dense", 32)
    documents = encoder.encode_documents(TEXTS)
    for text, query, [document] in zip(
        TEXTS, encoder.encode_queries(TEXTS), documents, strict=True
    ):
        row = expected(folder, text, pooling=how.get("pooling", "cls"))
        for found in (query, document):
            assert found.values.shape == (1, 32)
            np.testing.assert_allclose(found.values[0], row, atol=1e-5)
            assert found.spans.tolist() == [[0, len(text)]]
    assert encoder.count_tokens([*TEXTS, ""]) == [1, 1, 1, 1, 0]


def test_unit_and_other_rows_rank_alike(tmp_path, folder):
    """G4: as cosine ranks them; by the products of the vectors themselves they rank otherwise."""
    from sentence_transformers import SentenceTransformer

    other = write_dense(tmp_path / "raw", normalize=False)
    texts = [f"{first} the {second}" for first in tiny_models.WORDS for second in ("key", "year")]
    unit, scaled = (
        np.concatenate([pieces[0].values for pieces in load(path).encode_documents(texts)])
        for path in (folder, other)
    )
    np.testing.assert_allclose(scaled, unit, atol=1e-5)
    query = load(folder).encode_queries(["open door"])[0].values[0]
    raw = SentenceTransformer(str(other), device="cpu").encode(texts)
    assert np.argsort(scaled @ query).tolist() == np.argsort(unit @ query).tolist()
    assert np.argsort(raw @ query).tolist() != np.argsort(unit @ query).tolist()


def test_a_bare_folder_needs_its_pooling(tmp_path, folder):
    """G5."""
    bare = tmp_path / "bare"
    backbone(modern=False).save_pretrained(bare)
    tiny_models.write_tokenizer(bare)
    with pytest.raises(InvalidArgumentError, match=r"no modules\.json.*pooling=cls \(Granite\)"):
        load(bare)
    encoder = load(bare, options={"pooling": "cls"})
    for text, found in zip(TEXTS, encoder.encode_queries(TEXTS), strict=True):
        np.testing.assert_allclose(found.values[0], expected(bare, text), atol=1e-5)
    again = encoders.load(bare, device="cpu", info=encoder.info)
    assert again.info == encoder.info
    mean = load(bare, options={"pooling": "mean"})
    with pytest.raises(IncompatibleIndexError, match=r"pooling is 'mean', .* made with 'cls'"):
        encoders.require_same_encoder(encoder.info, mean.info)
    with pytest.raises(InvalidArgumentError, match=r"pooling=cls, but its modules\.json says"):
        load(folder, options={"pooling": "cls"})


def test_cut_rows(tmp_path, folder):
    """G6: cut, then scaled; a width that is not listed is refused."""
    listed = write_dense(tmp_path / "model", dims=[32, 16, 8])
    encoder = load(listed, dim=16)
    for text, found in zip(TEXTS, encoder.encode_queries(TEXTS), strict=True):
        np.testing.assert_allclose(found.values[0], expected(listed, text, dim=16), atol=1e-5)
    with pytest.raises(
        InvalidArgumentError, match=r"dim=12: .* gives 32, its checkpoint lists 8, 16"
    ):
        load(listed, dim=12)
    with pytest.raises(
        InvalidArgumentError, match=r"dim=16: .* its checkpoint lists 32; the option"
    ):
        load(folder, dim=16)
    assert load(folder, dim=16, options={"force_dim": True}).info.dim == 16


def test_long_texts(folder):
    splitting, cutting = load(folder), load(folder, options={"on_long": "truncate"})
    windows = splitting.encode_documents([LONG])[0]
    assert len(windows) > 1
    assert splitting.counts.n_split_texts == 1
    for window in windows:
        [[start, end]] = window.spans
        np.testing.assert_allclose(window.values[0], expected(folder, LONG[start:end]), atol=1e-5)
    [[found]] = cutting.encode_documents([LONG])
    np.testing.assert_allclose(found.values[0], expected(folder, LONG), atol=1e-5)
    assert cutting.counts.n_cut_texts == 1
    short = load(folder, options={"on_long": "truncate"}, document_length=10)
    [[found]] = short.encode_documents([LONG])
    np.testing.assert_allclose(found.values[0], expected(folder, LONG, length=10), atol=1e-5)


def test_index_and_search_equal_brute_force(tmp_path, folder):
    rng = np.random.default_rng(1)
    texts = {
        f"d{i}": " ".join(rng.choice(tiny_models.WORDS, rng.integers(2, 9))) for i in range(50)
    }
    retriever = weft.Retriever.create(tmp_path / "made.index", load(folder))
    retriever.add([weft.Document(name, text) for name, text in texts.items()])
    again = weft.Retriever.open(tmp_path / "made.index", encoder_device="cpu")
    query = expected(folder, "open the door")
    scores = {
        name: float(query @ expected(folder, text).astype(np.float16).astype(np.float64))
        for name, text in texts.items()
    }
    hits = again.search("open the door", 10, recall=1.0)
    assert len(hits) == 10
    assert_ranking(hits, scores, tolerance=1e-3)


def test_a_model_that_is_no_transformer_is_refused(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from transformers import AutoTokenizer

    tiny_models.write_bert(tmp_path / "bare")
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "bare")).backend_tokenizer
    static = StaticEmbedding(tokenizer, embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    with pytest.raises(InvalidArgumentError, match="first module is a StaticEmbedding"):
        encoders.load(tmp_path / "static", recipe="dense", device="cpu")
