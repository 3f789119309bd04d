# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of PyLate, as PyLate encodes with them.

`modules.json` lists a transformer and the layers that project its states. The lengths are those of
`config_sentence_transformers.json`: `max_seq_length` holds whatever the last call has left there.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

import torch

from weft.encoders.colbert import (
    ColbertEncoder,
    Layer,
    Layout,
)
from weft.encoders.loading import load_model, load_tokenizer, read_weights
from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windowed import Options
    from weft.types import EncoderInfo

_DEFAULTS: dict[str, Any] = {
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 32,
    "document_length": 180,
    "do_query_expansion": True,
    "attend_to_expansion_tokens": False,
    "skiplist_words": list(string.punctuation),
}
_ACTIVATIONS = "torch.nn.modules."


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> ColbertEncoder:
    """Load a folder that PyLate has saved.

    Raises
    ------
    InvalidArgumentError
        If modules.json lists no transformer or no layer behind it, or a file is missing.
    """
    modules = checkpoint.modules()
    parts = [(str(part.get("type", "")), str(part.get("path", ""))) for part in modules]
    folders = [path for kind, path in parts if kind.endswith("Transformer")]
    if len(folders) != 1:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: modules.json lists {len(folders)} transformers, expected one"
        )
    layers = [_layer(checkpoint, path) for kind, path in parts if kind.endswith("Dense")]
    if not layers:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: no trained projection in the checkpoint, it would be "
            f"random; expected a Dense module in modules.json"
        )
    folder = checkpoint.folder / folders[0]
    saved = checkpoint.json("config_sentence_transformers.json")
    found = {
        name: value if saved.get(name) is None else saved[name] for name, value in _DEFAULTS.items()
    }
    expands = bool(found["do_query_expansion"])
    prompts = saved.get("prompts") or {}
    layout = Layout(
        recipe="pylate",
        markers=(str(found["query_prefix"]), str(found["document_prefix"])),
        lengths=(int(found["query_length"]), int(found["document_length"])),
        query_policy="fixed" if expands else "none",
        attend=expands and bool(found["attend_to_expansion_tokens"]),
        skiplist="pylate",
        words=tuple(found["skiplist_words"]),
        prompt=str(prompts.get(saved.get("default_prompt_name")) or ""),
    )
    return ColbertEncoder(
        checkpoint,
        load_model(checkpoint, folder, options),
        load_tokenizer(checkpoint, folder),
        layers,
        layout,
        options,
        info,
    )


def _layer(checkpoint: Checkpoint, path: str) -> Layer:
    config = checkpoint.json(f"{path}/config.json")
    folder = checkpoint.folder / path
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    file = next((file for file in files if file.is_file()), None)
    if file is None or not config:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: {folder}: expected config.json and model.safetensors"
        )
    held = read_weights(file, lambda _: True)
    shape = (config.get("out_features"), config.get("in_features"))
    adds = bool(config.get("use_residual", False))
    wanted = {"linear.weight": shape}
    if adds and shape[0] != shape[1]:
        wanted["residual.weight"] = shape
    for name, expected in wanted.items():
        found = tuple(held[name].shape) if name in held else "nothing"
        if found != expected:
            raise InvalidArgumentError(
                f"model {checkpoint.name}: {file}: {name} is {found}, expected {expected} by its "
                f"config.json"
            )
    return Layer(
        held["linear.weight"].float(),
        bias=held["linear.bias"].float() if "linear.bias" in held else None,
        activation=_activation(checkpoint, config.get("activation_function")),
        residual=held["residual.weight"].float() if "residual.weight" in wanted else None,
        adds_input=adds and "residual.weight" not in wanted,
    )


def _activation(checkpoint: Checkpoint, name: object) -> torch.nn.Module:
    """Make an activation of torch by the name it was saved with; code of others is never run."""
    if name is None:
        return torch.nn.Identity()
    path = str(name)
    made = getattr(torch.nn, path.rpartition(".")[2], None)
    if path.startswith(_ACTIVATIONS) and isinstance(made, type):
        layer = made()
        if isinstance(layer, torch.nn.Module):
            return layer
    raise InvalidArgumentError(
        f"model {checkpoint.name}: activation_function {path!r}, expected one of torch.nn"
    )
