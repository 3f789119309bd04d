# SPDX-License-Identifier: Apache-2.0
"""A PyLate checkpoint over XLM-R with an Amharic tokenizer trained here, against the recipe."""

import json

import numpy as np
import pytest

import tiny_colbert
from weft import encoders

SENTENCES = [
    "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።",
    "የአባይ ወንዝ ከጣና ሐይቅ ይነሳል፣ ወደ ሱዳንም ይፈስሳል።",
    "ቡና በኢትዮጵያ የተገኘ ተክል ነው፤ በዓለም ሁሉ ይጠጣል።",
    "ላሊበላ በድንጋይ የተፈለፈሉ አብያተ ክርስቲያናት ይገኙባታል።",
    "የአድዋ ጦርነት መቼ ተካሄደ፧",
    "ጣና ሐይቅ በኢትዮጵያ ትልቁ ሐይቅ ነው፣ ብዙ ደሴቶች አሉት።",
]
QUERIES = ["የኢትዮጵያ ዋና ከተማ", "ቡና", "የአባይ ወንዝ ከየት ይነሳል፧ ወደ የትስ ይፈስሳል፧"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
QUERY_LENGTH, DOCUMENT_LENGTH = 16, 24


def trained_tokenizer(folder):
    """A unigram model in the shape that XLM-R has, with the prefixes as new tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    ends = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>",
        sep_token="</s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>",
        model_max_length=512,
    )  # fmt: skip
    fast.add_tokens(["[Q] ", "[D] "])
    fast.save_pretrained(folder)
    return fast


def backbone(size):
    import torch
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.set_num_threads(1)
    torch.manual_seed(11)
    config = XLMRobertaConfig(
        vocab_size=size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=66, pad_token_id=1, initializer_range=0.3,
    )  # fmt: skip
    return XLMRobertaModel(config).eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("amharic") / "model"
    (folder / "1_Dense").mkdir(parents=True)
    tokenizer = trained_tokenizer(folder)
    backbone(len(tokenizer)).save_pretrained(folder)
    weight = torch.randn(16, 32)
    save_file({"linear.weight": weight}, str(folder / "1_Dense" / "model.safetensors"))
    tiny_colbert.write_json(
        folder / "1_Dense" / "config.json",
        {"in_features": 32, "out_features": 16, "bias": False,
         "activation_function": "torch.nn.modules.linear.Identity"},
    )  # fmt: skip
    parts = [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Dense", "pylate.models.Dense.Dense"),
    ]
    modules = [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(parts)]
    tiny_colbert.write_json(folder / "modules.json", modules)
    tiny_colbert.write_json(folder / "sentence_bert_config.json", {"max_seq_length": 9})
    tiny_colbert.write_json(
        folder / "config_sentence_transformers.json",
        {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": QUERY_LENGTH,
         "document_length": DOCUMENT_LENGTH, "attend_to_expansion_tokens": False,
         "do_query_expansion": True, "skiplist_words": list("!?.,"), "prompts": {}},
    )  # fmt: skip
    return folder, tokenizer, weight.double().numpy()


def rows_of(checkpoint, ids, attended):
    import torch

    _, tokenizer, weight = checkpoint
    model = backbone(len(tokenizer))
    with torch.no_grad():
        states = model(torch.tensor([ids]), attention_mask=torch.tensor([attended]))
    rows = []
    for state in states.last_hidden_state[0].double().numpy():
        row = [float(np.dot(axis, state)) for axis in weight]
        length = sum(value * value for value in row) ** 0.5
        rows.append([value / length for value in row])
    return np.array(rows)


def input_of(tokenizer, text, prefix, length):
    inner = tokenizer.encode(text, add_special_tokens=False)[: length - 3]
    start, end = tokenizer.convert_tokens_to_ids(["<s>", "</s>"])
    return [start, tokenizer.convert_tokens_to_ids(prefix), *inner, end]


def expected_document(checkpoint, text, more=""):
    _, tokenizer, _ = checkpoint
    ids = input_of(tokenizer, text, "[D] ", DOCUMENT_LENGTH)
    skip = {tokenizer.convert_tokens_to_ids(symbol) for symbol in "!?.,"}
    pieces = [piece.lstrip("▁") for piece in tokenizer.convert_ids_to_tokens(ids)]
    kept = [i for i, token in enumerate(ids) if token not in skip and pieces[i] not in list(more)]
    return rows_of(checkpoint, ids, [1] * len(ids))[kept]


def test_the_tokenizer_is_worth_a_test(checkpoint):
    tokenizer = checkpoint[1]
    pieces = [tokenizer.tokenize(text) for text in SENTENCES]
    assert any(len(text) > DOCUMENT_LENGTH for text in pieces)
    assert min(map(len, pieces)) < DOCUMENT_LENGTH
    assert any(piece.strip("▁") in "።፣፤፧" and piece != "▁" for text in pieces for piece in text)


@pytest.mark.parametrize("batch_tokens", [1, 4_096])
def test_rows_equal_the_recipe(checkpoint, batch_tokens):
    folder, tokenizer, _ = checkpoint
    encoder = encoders.load(
        folder, device="cpu", batch_tokens=batch_tokens, options={"on_long": "truncate"}
    )
    assert encoder.info.recipe == "pylate"
    mask = tokenizer.convert_tokens_to_ids("<mask>")
    for text, found in zip(QUERIES, encoder.encode_queries(QUERIES), strict=True):
        ids = input_of(tokenizer, text, "[Q] ", QUERY_LENGTH)
        n_masks = QUERY_LENGTH - len(ids)
        rows = rows_of(checkpoint, ids + [mask] * n_masks, [1] * len(ids) + [0] * n_masks)
        assert found.values.shape == (QUERY_LENGTH, 16)
        np.testing.assert_allclose(found.values, rows, atol=1e-5)
    for text, [found] in zip(SENTENCES, encoder.encode_documents(SENTENCES), strict=True):
        np.testing.assert_allclose(found.values, expected_document(checkpoint, text), atol=1e-5)


def test_ethiopic_punctuation(checkpoint):
    """It stays, since PyLate's list has none of it, unless skiplist_extra names it."""
    folder, tokenizer, _ = checkpoint
    marks = "".join(mark for mark in "።፣፤፧" if tokenizer.tokenize(mark)[-1].strip("▁") == mark)
    assert marks
    options = {"on_long": "truncate", "skiplist_extra": marks}
    encoder = encoders.load(folder, device="cpu", options=options)
    dropped = 0
    for text, [found] in zip(SENTENCES, encoder.encode_documents(SENTENCES), strict=True):
        rows = expected_document(checkpoint, text, marks)
        np.testing.assert_allclose(found.values, rows, atol=1e-5)
        dropped += len(expected_document(checkpoint, text)) - len(rows)
    assert dropped > 0
    assert encoder.info.settings["skiplist_extra"] == marks


def test_words_and_cut_texts_are_counted(checkpoint):
    folder, tokenizer, _ = checkpoint
    encoder = encoders.load(folder, device="cpu", options={"on_long": "truncate"})
    encoder.encode_documents([*SENTENCES, "ሰላም፡ለዓለም"])
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in SENTENCES]
    cut = [n - (DOCUMENT_LENGTH - 3) for n in lengths if n > DOCUMENT_LENGTH - 3]
    assert encoder.counts.n_cut_texts == len(cut)
    assert encoder.counts.n_cut_tokens == sum(cut)
    assert encoder.counts.n_words == sum(len(text.split()) for text in SENTENCES) + 2
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 9
