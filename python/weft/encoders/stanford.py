# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of Stanford ColBERT, as its own runtime encodes with them; JaColBERT is one.

Of `artifact.metadata`, flat or under `config`, only what changes rows is read: names of models and
paths in it are left over from training and never looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel

from weft.encoders.colbert import (
    ColbertEncoder,
    Layer,
    Layout,
)
from weft.encoders.loading import (
    load_model,
    load_tokenizer,
    loading,
    read_weights,
    require_complete,
    unpickled,
)
from weft.encoders.skiplists import PUNCTUATION
from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windowed import Options
    from weft.types import EncoderInfo

    Tensors = dict[str, torch.Tensor]

_DEFAULTS: dict[str, Any] = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 32,
    "doc_maxlen": 220,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "interaction": "colbert",
    "similarity": "cosine",
}


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> ColbertEncoder:
    """Load a folder or a `.dnn` file with its tokenizer and metadata beside it.

    Raises
    ------
    InvalidArgumentError
        If there is no projection or no tokenizer, or if its interaction is not ColBERT's.
    """
    tokenizer = load_tokenizer(checkpoint, checkpoint.folder)
    if checkpoint.file is None:
        metadata = _metadata(checkpoint.json("artifact.metadata"))
        model = load_model(checkpoint, checkpoint.folder, options)
        weight = _projection(checkpoint)
    else:
        held = unpickled(checkpoint.file)
        beside = checkpoint.json("artifact.metadata")
        metadata = _metadata(beside or dict(held.get("arguments") or {}))
        model, weight = _from_state(checkpoint, held.get("model_state_dict") or {}, options)
    if metadata["interaction"] != "colbert":
        raise InvalidArgumentError(
            f"model {checkpoint.name}: interaction {metadata['interaction']!r} is not supported; "
            f"expected 'colbert'"
        )
    layout = Layout(
        recipe="stanford",
        markers=(metadata["query_token_id"], metadata["doc_token_id"]),
        lengths=(int(metadata["query_maxlen"]), int(metadata["doc_maxlen"])),
        query_policy="fixed",
        attend=bool(metadata["attend_to_mask_tokens"]),
        skiplist="stanford" if metadata["mask_punctuation"] else "none",
        words=PUNCTUATION,
        similarity=str(metadata["similarity"]),
        pads_are_masks=True,
    )
    return ColbertEncoder(
        checkpoint, model, tokenizer, [Layer(weight.float())], layout, options, info
    )


def _metadata(saved: dict[str, Any]) -> dict[str, Any]:
    nested = saved.get("config")
    found = nested if isinstance(nested, dict) else saved
    return {name: found.get(name, value) for name, value in _DEFAULTS.items()}


def _projection(checkpoint: Checkpoint) -> torch.Tensor:
    for path in checkpoint.weights():
        found = read_weights(path, lambda name: name == "linear.weight")
        if found:
            return found["linear.weight"]
    raise InvalidArgumentError(
        f"model {checkpoint.name}: no trained projection in the checkpoint, it would be random; "
        f"expected linear.weight beside the encoder's weights"
    )


def _from_state(
    checkpoint: Checkpoint, state: Tensors, options: Options
) -> tuple[PreTrainedModel, torch.Tensor]:
    """Make the model of a `.dnn` file from the config.json beside it."""
    named = {name.removeprefix("module."): value for name, value in state.items()}
    if "linear.weight" not in named:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: no linear.weight in model_state_dict, its projection would "
            f"be random; expected a checkpoint of ColBERT"
        )
    with loading(checkpoint.name):
        config = AutoConfig.from_pretrained(str(checkpoint.folder), local_files_only=True)
        model = AutoModel.from_config(config, dtype=options.torch_dtype())
        prefix = f"{model.base_model_prefix}."
        inner = {
            name.removeprefix(prefix): value
            for name, value in named.items()
            if name.startswith(prefix)
        }
        report = model.load_state_dict(inner, strict=False)
    require_complete(checkpoint, report.missing_keys)
    return model, named["linear.weight"]
