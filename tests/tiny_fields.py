# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a few kilobytes that give dense vectors and weights of terms."""

import json

WORDS = ["▁the", "▁key", "▁lock", "▁door", "▁turns", "▁year", "▁", "s", "e", "a", "o", "k", "y"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
VOCABULARY = [*SPECIAL, *WORDS, "<mask>"]
CLS, PAD, EOS, UNK = range(4)
N_HIDDEN, DIM, WINDOW = 32, 16, 600
M3_TEXTS = [
    "the key turns the key",
    "door",
    "the lock </s> year ≠ the door",  # a special token and an unknown one inside
    "a lock a key a door a year the keys the years so so so",
]


def write_m3(folder, *, dim=DIM, window=WINDOW, modules=True):
    """config.json, model.safetensors, tokenizer.json and the two heads, with biases."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(VOCABULARY), hidden_size=N_HIDDEN, num_hidden_layers=2,
        num_attention_heads=4, intermediate_size=48, max_position_embeddings=window + 2,
        initializer_range=0.3, pad_token_id=PAD,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    pieces = [(word, 0.0 if word in SPECIAL else -1.0) for word in VOCABULARY]
    tokenizer = Tokenizer(models.Unigram(pieces, UNK, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in [*SPECIAL, "<mask>"]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", CLS), ("</s>", EOS)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", cls_token="<s>", eos_token="</s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
        model_max_length=window,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(1)
    torch.save(
        {"weight": torch.randn(dim, N_HIDDEN), "bias": torch.randn(dim)},
        folder / "colbert_linear.pt",
    )
    torch.save(
        {"weight": torch.randn(1, N_HIDDEN), "bias": torch.randn(1)}, folder / "sparse_linear.pt"
    )
    if modules:  # as published: for the dense part, with the settings of sentence-transformers
        (folder / "modules.json").write_text("[]")
        settings = {"query_prefix": "[Q] "}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


SPLADE_TEXTS = ["the key", "Rotate, the lock! [SEP] once", "door of a lock is open every year " * 3]
SPLADE_WINDOW = 24


def write_splade(folder, *, bare=False, masked=True):
    """RobertaForMaskedLM with a byte-level vocabulary made from SPLADE_TEXTS."""
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel, RobertaTokenizerFast

    bare_folder = folder.with_name(folder.name + "-bare")
    bare_folder.mkdir(parents=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SPLADE_TEXTS, vocab_size=290, special_tokens=special)
    tokenizer = RobertaTokenizerFast(
        tokenizer_object=trained._tokenizer, model_max_length=SPLADE_WINDOW
    )
    tokenizer.save_pretrained(bare_folder)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=290, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=SPLADE_WINDOW + 2, initializer_range=0.5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    (RobertaForMaskedLM if masked else RobertaModel)(config).save_pretrained(bare_folder)
    if bare:
        return bare_folder
    transformer = Transformer(str(bare_folder), transformer_task="fill-mask")
    SparseEncoder(modules=[transformer, SpladePooling("max")]).save(str(folder))
    return folder
