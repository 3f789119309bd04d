# SPDX-License-Identifier: Apache-2.0
"""The PyLate recipe on tiny checkpoints in its layout, compared with the recipe in loops."""

import json
import math
import string

import numpy as np
import pytest

import tiny_colbert
import weft
from helpers import assert_ranking, stored
from tiny_models import VOCABULARY
from weft import encoders
from weft.errors import InvalidArgumentError

ID = {token: i for i, token in enumerate([*VOCABULARY, "[Q] ", "[D] "])}
CLS, SEP, MASK, UNK = (ID[f"[{name}]"] for name in ("CLS", "SEP", "MASK", "UNK"))
QUERIES = ["the key", "rotate, the lock!", "鍵 key", "the key of a lock is turned once every year"]
DOCUMENTS = [
    "The key: lock (door).",
    "鍵 the 鎖 year, once",
    "sign the key of a lock once every year rotate the door open lock year once of the key",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_colbert.write_pylate(tmp_path_factory.mktemp("pylate") / "model")


def load(folder, **more):
    options = {"on_long": "truncate", **more.pop("options", {})}
    return encoders.load(folder, device="cpu", options=options, **more)


def pieces_of(text):
    words, word = [], ""
    for letter in text.lower() + " ":
        if letter.isascii() and letter.isalnum():
            word += letter
            continue
        words += [word] * bool(word)
        word = ""
        words += [letter] * (not letter.isspace())
    result = []
    for word in words:
        at, pieces = 0, []
        while at < len(word):
            ends = [e for e in range(at + 1, len(word) + 1) if ("##" * (at > 0) + word[at:e]) in ID]
            if not ends:
                pieces = [UNK]
                break
            pieces.append(ID["##" * (at > 0) + word[at : ends[-1]]])
            at = ends[-1]
        result += pieces
    return result


def input_of(text, prefix, length):
    """[CLS] prefix tokens [SEP], cut to `length`; no prefix leaves one token more."""
    words = pieces_of(text)[: length - (3 if prefix else 2)]
    return [CLS, *([ID[prefix]] if prefix else []), *words, SEP]


def rows_of(folder, ids, attention):
    import torch
    from safetensors.numpy import load_file
    from transformers import BertModel

    modules = json.loads((folder / "modules.json").read_text())
    model = BertModel.from_pretrained(folder / modules[0]["path"]).eval()
    with torch.no_grad():
        states = model(torch.tensor([ids]), attention_mask=torch.tensor([attention]))
    rows = [list(map(float, state)) for state in states.last_hidden_state[0].double().numpy()]
    for module in modules[1:]:
        part = folder / module["path"]
        config = json.loads((part / "config.json").read_text())
        weights = {
            name: w.astype(np.float64) for name, w in load_file(part / "model.safetensors").items()
        }
        given, rows = rows, []
        for row in given:
            out = []
            for i, axis in enumerate(weights["linear.weight"]):
                value = sum(a * b for a, b in zip(axis, row, strict=True))
                value += weights["linear.bias"][i] if config["bias"] else 0
                if config["activation_function"].endswith("Tanh"):
                    value = math.tanh(value)
                if config.get("use_residual"):
                    more = row[i]
                    if "residual.weight" in weights:
                        axis = weights["residual.weight"][i]
                        more = sum(a * b for a, b in zip(axis, row, strict=True))
                    value += more
                out.append(value)
            rows.append(out)
    return np.array([[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in rows])


def expected_query(folder, text, *, length=12, prefix="[Q] ", attend=False, expand=True):
    ids = input_of(text, prefix, length)
    n_masks = length - len(ids) if expand else 0
    return rows_of(folder, ids + [MASK] * n_masks, [1] * len(ids) + [int(attend)] * n_masks)


def expected_document(folder, text, *, length=20, prefix="[D] ", skip=string.punctuation):
    ids = input_of(text, prefix, length)
    dropped = {ID.get(word, UNK) for word in skip}
    return rows_of(folder, ids, [1] * len(ids))[[i for i, t in enumerate(ids) if t not in dropped]]


def assert_rows(found, expected):
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_token_numbers(folder):
    """A1, written out."""
    encoder = load(folder)
    the, key, lock = ID["the"], ID["key"], ID["lock"]

    def found(text, task):
        split = encoder._queries if task == "query" else encoder._documents
        return encoder.sequence(split.first([text])[0], task)

    assert found("the key", "query") == (
        [CLS, ID["[Q] "], the, key, SEP] + [MASK] * 7, [1] * 5 + [0] * 7,
    )  # fmt: skip
    assert found("the " * 9, "query") == ([CLS, ID["[Q] "]] + [the] * 9 + [SEP], [1] * 12)
    assert found("the " * 30, "query") == ([CLS, ID["[Q] "]] + [the] * 9 + [SEP], [1] * 12)
    assert found("the key lock", "document") == ([CLS, ID["[D] "], the, key, lock, SEP], [1] * 6)
    assert found("key " * 30, "document")[0] == [CLS, ID["[D] "]] + [key] * 17 + [SEP]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"transformer": "0_Transformer"},
        {"model_type": None},
        {"residual": True},
        {"residual": True, "dims": (32, 16, 8), "activation": "activation.Tanh"},
        {"markers": ("", "")},
    ],
    ids=["root", "below", "older", "residual", "chain", "no-prefix"],
)
def test_vectors_equal_the_recipe(tmp_path, how):
    """A3, with modules.json in all its forms."""
    folder = tiny_colbert.write_pylate(tmp_path / "model", **how)
    encoder = load(folder)
    assert encoder.info.recipe == "pylate"
    query_prefix, document_prefix = how.get("markers", ("[Q] ", "[D] "))
    for text, found in zip(QUERIES, encoder.encode_queries(QUERIES), strict=True):
        assert_rows(found.values, expected_query(folder, text, prefix=query_prefix))
    for text, [found] in zip(DOCUMENTS, encoder.encode_documents(DOCUMENTS), strict=True):
        assert_rows(found.values, expected_document(folder, text, prefix=document_prefix))
        assert len(found.spans) == len(found.values)


def test_skiplists(tmp_path):
    """A2: a symbol that is not in the vocabulary takes the unknown words with it, or does not."""
    folder = tiny_colbert.write_pylate(tmp_path / "model", skiplist_words=[",", ".", "፧"])
    text = "鍵 the key, lock."
    [[pylate]] = load(folder).encode_documents([text])
    [[st]] = load(folder, options={"skiplist": "st"}).encode_documents([text])
    assert_rows(pylate.values, expected_document(folder, text, skip=[",", ".", "[UNK]"]))
    assert_rows(st.values, expected_document(folder, text, skip=[",", "."]))
    assert len(st.values) == len(pylate.values) + 1


def test_padding_documents_with_the_mask_changes_nothing(folder):
    """A4: padded in a batch and alone."""
    alone, batched = load(folder, batch_tokens=1), load(folder)
    texts = ["the key of a lock", "the key of a", "the key lock door open"]
    together = batched.encode_documents(texts)
    assert batched.counts.n_padding > 0
    assert alone.counts.n_padding == 0
    for [one], [other] in zip(alone.encode_documents(texts), together, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=1e-5)


def test_queries_without_expansion(tmp_path):
    """A5."""
    folder = tiny_colbert.write_pylate(
        tmp_path / "model", do_query_expansion=False, attend_to_expansion_tokens=True
    )
    encoder = load(folder)
    assert not encoder.info.settings["attend"]
    for text, found in zip(QUERIES, encoder.encode_queries(QUERIES), strict=True):
        assert_rows(found.values, expected_query(folder, text, expand=False))


def test_masks_that_are_attended_to(tmp_path):
    folder = tiny_colbert.write_pylate(tmp_path / "model", attend_to_expansion_tokens=True)
    for text, found in zip(QUERIES, load(folder).encode_queries(QUERIES), strict=True):
        assert_rows(found.values, expected_query(folder, text, attend=True))


def test_lengths_are_those_of_pylate(tmp_path, folder):
    """A6: max_seq_length is 7 in these checkpoints; without lengths they are 32 and 180."""
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 7
    info = load(folder).info
    assert (info.query_length, info.document_length) == (12, 20)
    silent = tiny_colbert.write_pylate(tmp_path / "model")
    saved = {"query_prefix": "[Q] "}
    tiny_colbert.write_json(silent / "config_sentence_transformers.json", saved)
    with pytest.raises(InvalidArgumentError, match=r"document_length=180: expected 4\.\.96"):
        load(silent)
    found = load(silent, document_length=20).info
    assert (found.query_length, found.settings["markers"]) == (32, ("[Q] ", "[D] "))
    assert found.settings["query_policy"] == "fixed"


def test_a_prompt_goes_before_every_text(tmp_path):
    folder = tiny_colbert.write_pylate(
        tmp_path / "model", prompts={"sign": "sign the "}, default_prompt_name="sign"
    )
    [found] = load(folder).encode_queries(["key"])
    assert_rows(found.values, expected_query(folder, "sign the key"))


def test_cut_rows(tmp_path):
    """Matryoshka: the first values, scaled again, and only as many as the checkpoint lists."""
    folder = tiny_colbert.write_pylate(tmp_path / "model", matryoshka_dims=[16, 8])
    encoder = load(folder, dim=8)
    for text, found in zip(QUERIES, encoder.encode_queries(QUERIES), strict=True):
        rows = expected_query(folder, text)[:, :8]
        assert_rows(found.values, rows / np.sqrt((rows**2).sum(axis=1, keepdims=True)))
    with pytest.raises(
        InvalidArgumentError, match=r"gives 16, its checkpoint lists 8, 16; the opt"
    ):
        load(folder, dim=4)
    assert load(folder, dim=4, options={"force_dim": True}).info.dim == 4
    with pytest.raises(InvalidArgumentError, match="gives 16"):
        load(folder, dim=32, options={"force_dim": True})
    again = encoders.load(folder, device="cpu", info=encoder.info)
    assert again.info == encoder.info
    card = tiny_colbert.write_pylate(tmp_path / "card")
    (card / "README.md").write_text('```json\n{"matryoshka_dims": [\n 16,\n 4\n]}\n```')
    assert load(card, dim=4).info.dim == 4


def test_what_is_refused(tmp_path):
    odd = tiny_colbert.write_pylate(tmp_path / "odd", activation="../evil.Code")
    with pytest.raises(InvalidArgumentError, match=r"expected one of torch\.nn"):
        load(odd)
    bare = tiny_colbert.write_pylate(tmp_path / "bare", dims=())
    with pytest.raises(InvalidArgumentError, match="no trained projection"):
        load(bare)
    unmarked = tiny_colbert.write_pylate(tmp_path / "unmarked", query_prefix="[Frage] ")
    with pytest.raises(InvalidArgumentError, match=r"marker '\[Frage\] ' is not in its vocabulary"):
        load(unmarked)
    broken = tiny_colbert.write_pylate(tmp_path / "broken")
    (broken / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(InvalidArgumentError, match=r"1_Dense: expected config\.json and model"):
        load(broken)


def test_index_and_search_equal_brute_force(tmp_path, folder):
    encoder = load(folder)
    words = ["the", "key", "lock", "door", "year", "sign", "鍵", "rotate", ",", "once"]
    rng = np.random.default_rng(0)
    texts = {f"d{i}": " ".join(rng.choice(words, rng.integers(1, 13))) for i in range(40)}
    retriever = weft.Retriever.create(tmp_path / "made.index", encoder)
    retriever.add([weft.Document(name, text) for name, text in texts.items()])
    again = weft.Retriever.open(tmp_path / "made.index", encoder_device="cpu")
    documents = stored([expected_document(folder, text) for text in texts.values()])
    for query in QUERIES[:2]:
        rows = expected_query(folder, query)
        scores = {
            name: sum(max(float(np.dot(q, d)) for d in document) for q in rows)
            for name, document in zip(texts, documents, strict=True)
        }
        hits = again.search(query, 10, recall=1.0)
        assert len(hits) == 10
        assert_ranking(hits, scores, tolerance=1e-4)
