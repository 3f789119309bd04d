# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a few kilobytes in the layouts of LUSIFER and of DPR's two towers."""

import functools
import json
from collections import Counter

SENTENCES = [
    "the key of the lock is turned once every year",
    "rotate the signing key, then open the door",
    "Given a question, retrieve passages that answer the question. Candidate:",
    "der Schlüssel öffnet die Tür, das Schloss ist alt",
    "鍵は毎年一度だけ回される。",
    "Where is the door? It is behind the house.",
]
N_HIDDEN, N_LLM, N_POSITIONS = 32, 48, 128


@functools.cache
def tokenizer_json():
    """A Unigram tokenizer with the pipeline and special tokens of XLM-R.

    Its pieces are the letters and the beginnings of words of the sentences, the more frequent ones
    likelier. The trainer of the library gives other pieces from run to run.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["▁" + word for sentence in SENTENCES for word in sentence.split()]
    found = Counter(word[:end] for word in words for end in range(2, len(word) + 1))
    pieces = [
        piece for piece, n in sorted(found.items(), key=lambda item: (-item[1], item[0])) if n > 1
    ]
    letters = sorted({letter for word in words for letter in word})
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    scored = [(piece, -2.0 - 0.01 * rank) for rank, piece in enumerate(pieces)]
    scored += [(letter, -6.0) for letter in letters]
    vocabulary = [*((name, 0.0) for name in special), *scored, ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.add_special_tokens([*special, "<mask>"])
    ends = [(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    return tokenizer.to_str()


def write_tokenizer(folder, *, config=True):
    """tokenizer.json, and what names its special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    settings = {
        "tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 512, "bos_token": "<s>",
        "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>",
        "unk_token": "<unk>", "mask_token": "<mask>",
    }  # fmt: skip
    if config:
        write_json(folder / "tokenizer_config.json", settings)


def vocab_size():
    return len(json.loads(tokenizer_json())["model"]["vocab"])


def xlmr_config():
    from transformers import XLMRobertaConfig

    return XLMRobertaConfig(
        vocab_size=vocab_size(), hidden_size=N_HIDDEN, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40, max_position_embeddings=N_POSITIONS + 2, type_vocab_size=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip


def xlmr(seed, **options):
    import torch
    from transformers import XLMRobertaModel

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return XLMRobertaModel(xlmr_config(), **options).eval()


def llm_config(kind="mistral"):
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    return {"mistral": MistralConfig, "llama": LlamaConfig, "qwen2": Qwen2Config}[kind](
        vocab_size=60, hidden_size=N_LLM, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


LUSIFER = {
    "universal_learner_name_or_path": "nobody/xlm-aligned-for-mistral",
    "universal_learner_backbone_type": "xlm-r",
    "encoder_name_or_path": "nobody/Mistral-7B",
    "encoder_backbone_type": "mistral",
    "connection_type": "ff",
    "num_added_tokens": 0,
    "pooling_method": "mean",
    "encoder_lora_name": "encoder_lora",
    "universal_learner_lora_name": "universal_learner_lora",
    "encoder_lora_target_modules": "all",
    "universal_learner_lora_target_modules": "all",
    "loar_r": 4,
    "lora_alpha": 12,
    "dropout": 0.1,
    "attn_implementation": "flash_attention_2",
    "is_freeze_universal_learner": True,
    "is_freeze_encoder": False,
}  # the scale of adapters is 3


def lusifer_weights(config=LUSIFER, *, spelling="adapter", names=("learner_lora", "encoder_lora")):
    """State of a checkpoint: with adapters beside their layers, or in plain names added to them."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    llm = AutoModelForCausalLM.from_config(llm_config(config["encoder_backbone_type"])).eval()
    plain, adapted = {}, {}
    for prefix, model, name in (
        ("universal_learner.", xlmr(4), names[0]),
        ("encoder.", llm, names[1]),
    ):
        linear = {k for k, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        linear.discard("lm_head")
        for key, value in model.state_dict().items():
            layer, _, kind = key.rpartition(".")
            base = f"{prefix}base_model.model."
            if layer not in linear:
                plain[prefix + key] = adapted[base + key] = value
                continue
            adapted[f"{base}{layer}.base_layer.{kind}"] = value
            if kind == "weight":
                a = torch.randn(4, value.shape[1]) * 0.1
                b = torch.randn(value.shape[0], 4) * 0.1
                adapted[f"{base}{layer}.lora_A.{name}.weight"] = a
                adapted[f"{base}{layer}.lora_B.{name}.weight"] = b
                value = value + 3.0 * (b @ a)
            plain[prefix + key] = value
    state = plain if spelling == "plain" else adapted
    if config["connection_type"] == "ff":
        shapes = {"0": (N_HIDDEN, N_HIDDEN), "2": (N_LLM, N_HIDDEN)}
    else:
        shapes = {"0": (60, N_HIDDEN)}
        state["connection_module.embedding.weight"] = torch.randn(60, N_LLM)
    for place, shape in shapes.items():
        state[f"connection_module.ff.{place}.weight"] = torch.randn(shape) * 0.4
        state[f"connection_module.ff.{place}.bias"] = torch.randn(shape[0]) * 0.1
    if config["num_added_tokens"]:
        state["connection_module.added_tokens"] = torch.randn(config["num_added_tokens"], N_LLM)
    for place in ("0", "2"):
        state[f"output_projection.{place}.weight"] = torch.randn(N_LLM, N_LLM) * 0.3
        state[f"output_projection.{place}.bias"] = torch.randn(N_LLM) * 0.1
    return {name: value.clone().contiguous() for name, value in state.items()}


def write_lusifer(folder, *, spelling="adapter", bases=True, file="model.safetensors", **changes):
    """config.json and one file of weights; with `bases`, the two base configurations below."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = {**LUSIFER, **changes}
    write_json(folder / "config.json", config)
    state = lusifer_weights(config, spelling=spelling)
    if file.endswith(".safetensors"):
        save_file(state, str(folder / file))
    else:
        torch.save({"model": state}, folder / file)
    if bases:
        write_bases(folder, config["encoder_backbone_type"])
    return folder


def write_bases(folder, kind="mistral"):
    """What the names in a configuration of LUSIFER stand for."""
    write_tokenizer(folder / "universal_learner")
    xlmr_config().save_pretrained(folder / "universal_learner")
    llm_config(kind).save_pretrained(folder / "encoder")
    return folder


def dpr_weights(sides=("question", "ctx"), *, pooler=True):
    """State of two towers; their last layers have gains and offsets, as trained ones do."""
    import torch

    state = {}
    for seed, side in enumerate(sides):
        tower = xlmr(10 + seed, add_pooling_layer=pooler).state_dict()
        last = "encoder.layer.1.output.LayerNorm"
        tower[f"{last}.weight"] = torch.rand(N_HIDDEN) * 2.0
        tower[f"{last}.bias"] = torch.randn(N_HIDDEN)
        state |= {f"{side}_model.backbone.{name}": value for name, value in tower.items()}
    return state


def write_dpr(folder, *, state=None, **params):
    """config.json, tokenizer.json, the vocabulary by its misspelt name, and best.pt."""
    import torch

    write_tokenizer(folder, config=False)
    (folder / "sentencepece.bpe.model").write_bytes(b"unused")
    xlmr_config().save_pretrained(folder)
    torch.save(
        {
            "model_dict": dpr_weights() if state is None else state,
            "optimizer_dict": {"state": {0: {"exp_avg": torch.zeros(1_000)}}, "param_groups": []},
            "scheduler_dict": {"last_epoch": 3},
            "offset": 0,
            "epoch": 2,
            "encoder_params": {"pooling": "cls", "sequence_length": 40, **params},
        },
        folder / "best.pt",
    )
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
