# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a few kilobytes, randomly initialised, in the layouts that people publish."""

import json
import string

WORDS = [
    "the", "key", "of", "a", "lock", "is", "turned", "once", "every", "year", "rotate", "sign",
    "ing", "door", "open", "er",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
VOCABULARY = (
    SPECIAL
    + list(string.ascii_lowercase + string.digits + string.punctuation)
    + [f"##{letter}" for letter in string.ascii_lowercase]
    + [word for word in WORDS if len(word) > 1]
    + ["##ing", "##er"]
)
N_HIDDEN = 32
WINDOW = 24


def write_tokenizer(folder, window=WINDOW, added=()):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.post_processor = processors.BertProcessing(*ends)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=window, **names)
    fast.add_tokens(list(added))
    fast.save_pretrained(folder)


def bert(seed=0):
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)  # threads would wait for each other longer than such models run
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=N_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return BertModel(config).eval()


def write_bert(folder, seed=0):
    """A bare checkpoint of transformers."""
    folder.mkdir(parents=True, exist_ok=True)
    bert(seed).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_sentence_transformer(folder):
    """A checkpoint for one vector per text, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(str(write_bert(folder.with_name(folder.name + "-bare"))))
    prompts = {"query": "turn : ", "document": "lock : "}
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling], prompts=prompts).save(str(folder))
    return folder


def write_multi_vector(folder, dim=8, *, expansion=True):
    """A native checkpoint of MultiVectorEncoder."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    length = {"query_expansion": {"strategy": "fixed", "attend": False, "length": 12}}
    transformer = Transformer(
        str(write_bert(folder.with_name(folder.name + "-bare"), seed=1)),
        document_length=WINDOW,
        **(length if expansion else {"query_length": 12}),
    )
    torch.manual_seed(2)
    dense = Dense(
        N_HIDDEN, dim, bias=False, activation_function=torch.nn.Identity(),
        module_input_name="token_embeddings", module_output_name="token_embeddings",
    )  # fmt: skip
    mask = MultiVectorMask(skiplist_words=[".", ","])
    MultiVectorEncoder(
        modules=[transformer, dense, mask, Normalize(module_input_name="token_embeddings")],
        prompts={"query": "[unused0] ", "document": "[unused1] "},
    ).save(str(folder))
    return folder


def write_stanford(folder, dim=8, *, projection=True):
    """The published layout of Stanford ColBERT: the projection beside the encoder's weights."""
    import torch
    from safetensors.torch import save_file

    write_bert(folder, seed=3)
    (folder / "model.safetensors").unlink()
    weights = {f"bert.{name}": value for name, value in bert(seed=3).state_dict().items()}
    if projection:
        torch.manual_seed(4)
        weights["linear.weight"] = torch.randn(dim, N_HIDDEN)
    save_file(
        {name: value.contiguous() for name, value in weights.items()},
        str(folder / "model.safetensors"), metadata={"format": "pt"},
    )  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["HF_ColBERT"]
    (folder / "config.json").write_text(json.dumps(config))
    metadata = {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 10,
        "doc_maxlen": 20, "dim": dim, "mask_punctuation": True, "attend_to_mask_tokens": False,
    }  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps(metadata))
    return folder
