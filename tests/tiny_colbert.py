# SPDX-License-Identifier: Apache-2.0
"""Late-interaction checkpoints of a few kilobytes in the layouts of Stanford ColBERT and PyLate."""

import json
import string

import tiny_models

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789")
PUNCTUATION = [letter for letter in string.punctuation if letter != "~"]
JAPANESE = [
    "東京",
    "大学",
    "東",
    "京",
    "大",
    "学",
    "の",
    "は",
    "に",
    "へ",
    "行く",
    "行",
    "く",
    "、",
    "。",
    "「",
    "」",
]
VOCABULARY = [
    *SPECIAL, *LETTERS, *PUNCTUATION, *(f"##{letter}" for letter in LETTERS),
    "the", "key", "lock", "door", "year", *JAPANESE, "##学", "##く",
]  # fmt: skip
ID = {token: i for i, token in enumerate(VOCABULARY)}
METADATA = {
    "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[質問s]",
    "doc_token": "[文書]", "query_maxlen": 12, "doc_maxlen": 16, "dim": 16,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False, "interaction": "colbert", "similarity": "cosine", "nbits": 2,
    "model_name": "ja_colbert", "checkpoint": "/nowhere/colbert-1000", "root": "/nowhere",
    "schedule_free": True, "kldiv_loss": True, "normalise_training_scores": True, "cap_padding": 0,
}  # fmt: skip


def bert(vocab_size, seed=0):
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=96, initializer_range=0.3,
    )  # fmt: skip
    return BertModel(config).eval()


def write_stanford(folder, *, metadata=METADATA, nested=False, mecab=False, dim=16, seed=0):
    """config.json, model.safetensors, artifact.metadata, vocab.txt, tokenizer_config.json."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    model = bert(len(VOCABULARY), seed)
    torch.manual_seed(seed + 100)
    weights = {f"bert.{name}": value.contiguous() for name, value in model.state_dict().items()}
    weights["linear.weight"] = torch.randn(dim, 32)
    weights["cls.predictions.bias"] = torch.zeros(len(VOCABULARY))
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {**model.config.to_dict(), "architectures": ["HF_ColBERT"], "model_type": "bert"}
    write_json(folder / "config.json", config)
    if metadata is not None:
        write_json(folder / "artifact.metadata", {"config": metadata} if nested else metadata)
    write_vocabulary(folder, mecab=mecab)
    return folder


def write_vocabulary(folder, *, mecab=False):
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    if mecab:
        settings = {
            "tokenizer_class": "BertJapaneseTokenizer", "do_lower_case": False,
            "word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece",
            "mecab_kwargs": {"mecab_dic": "unidic_lite"}, "model_max_length": 512,
        }  # fmt: skip
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    write_json(folder / "tokenizer_config.json", {**settings, **names})


def write_dnn(folder, *, arguments):
    """One pickle of weights and arguments, beside settings and vocabulary of the base model."""
    import torch
    from safetensors.torch import load_file

    write_stanford(folder, metadata=None)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    state = {f"module.{name}": value for name, value in weights.items()}
    path = folder / "colbert-40000.dnn"
    torch.save({"model_state_dict": state, "arguments": arguments, "epoch": 0}, path)
    return path


def write_pylate(
    folder, *, transformer="", model_type="ColBERT", residual=False, activation="linear.Identity",
    markers=("[Q] ", "[D] "), dims=(16,), **settings,
):  # fmt: skip
    """modules.json, a transformer at the root or below, Dense layers, and PyLate's settings."""
    import torch
    from safetensors.torch import save_file

    inner = folder / transformer
    inner.mkdir(parents=True)
    tiny_models.write_tokenizer(inner, window=512, added=[marker for marker in markers if marker])
    size = len(tiny_models.VOCABULARY) + len([marker for marker in markers if marker])
    bert(size, seed=5).save_pretrained(inner)
    modules = [
        {
            "idx": 0,
            "name": "0",
            "path": transformer,
            "type": "sentence_transformers.models.Transformer",
        }
    ]
    width = 32
    torch.manual_seed(6)
    for number, dim in enumerate(dims, start=1):
        part = folder / f"{number}_Dense"
        part.mkdir()
        modules.append(
            {
                "idx": number,
                "name": str(number),
                "path": part.name,
                "type": "pylate.models.Dense.Dense",
            }
        )
        weights = {"linear.weight": torch.randn(dim, width)}
        config = {
            "in_features": width, "out_features": dim, "bias": number > 1,
            "activation_function": f"torch.nn.modules.{activation}",
        }  # fmt: skip
        if number > 1:
            weights["linear.bias"] = torch.randn(dim)
        if residual:
            config["use_residual"] = True
            if dim != width:
                weights["residual.weight"] = torch.randn(dim, width)
        save_file(weights, str(part / "model.safetensors"))
        write_json(part / "config.json", config)
        width = dim
    write_json(folder / "modules.json", modules)
    write_json(inner / "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": False})
    saved = {
        "query_prefix": markers[0], "document_prefix": markers[1], "query_length": 12,
        "document_length": 20, "attend_to_expansion_tokens": False, "do_query_expansion": True,
        "skiplist_words": list(string.punctuation), "similarity_fn_name": "MaxSim", "prompts": {},
        "default_prompt_name": None, **settings,
    }  # fmt: skip
    if model_type is not None:
        saved["model_type"] = model_type
    write_json(folder / "config_sentence_transformers.json", saved)
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
