# SPDX-License-Identifier: Apache-2.0
"""The network of LUSIFER, put together from two configurations and one file of weights.

The published file holds adapters beside the weights that they change. They are added to them on
loading, W + (alpha / r) B A (Hu et al. 2021), so that nothing of them is left to compute.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from weft.encoders.loading import build_model, read_weights, unpickled
from weft.errors import InvalidArgumentError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windowed import Options

    Weights = dict[str, torch.Tensor]

LLMS = ("mistral", "llama", "qwen2")
POOLINGS = ("mean", "weightedmean", "cls", "lasttoken")

_ADAPTER = re.compile(r"(.+)\.lora_([AB])(?:\.(.+))?\.weight")


class LusiferModel:
    """XLM-R, a connector, a language model that attends both ways, pooling, and a projection.

    Parameters
    ----------
    learner, llm
        The two transformers; the second takes `inputs_embeds`.
    connector
        From hidden states of the first to inputs of the second.
    added
        float `[n_added, width]`, inputs put behind every padded sequence; n_added may be 0.
    projection
        From a pooled state to the vector; None leaves it out.
    pooling
        One of `POOLINGS`.
    """

    def __init__(
        self,
        learner: PreTrainedModel,
        connector: torch.nn.Sequential,
        added: torch.Tensor,
        llm: PreTrainedModel,
        projection: torch.nn.Sequential | None,
        pooling: str,
    ) -> None:
        self.learner, self.llm = learner.eval(), llm.eval()
        self._connector, self._added, self._projection = connector, added, projection
        self._pooling = pooling

    def to(self, device: torch.device) -> LusiferModel:
        """Move all of it to a device."""
        self.learner, self.llm = self.learner.to(device), self.llm.to(device)
        self._connector, self._added = self._connector.to(device), self._added.to(device)
        self._projection = None if self._projection is None else self._projection.to(device)
        return self

    @property
    def width(self) -> int:
        """Values in a vector."""
        return int(self.llm.config.hidden_size)

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Give `[n, width]` for `ids` and `mask` int64 `[n, length]`; mask is 1, then 0."""
        states = self._connector(self.learner(ids, attention_mask=mask).last_hidden_state)
        states = torch.cat([states, self._added.expand(len(ids), -1, -1)], dim=1)
        mask = pad(mask, (0, len(self._added)), value=1)
        hidden = mask[:, None, None, :].expand(-1, 1, mask.shape[1], -1) == 0
        both_ways = torch.zeros(hidden.shape, dtype=states.dtype, device=states.device)
        both_ways.masked_fill_(hidden, torch.finfo(states.dtype).min)
        states = self.llm(
            inputs_embeds=states, attention_mask=both_ways, use_cache=False
        ).last_hidden_state
        vectors = self._pooled(states, mask)
        return vectors if self._projection is None else self._projection(vectors)

    def _pooled(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return states[:, 0]
        if self._pooling == "lasttoken":
            last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
            return states[torch.arange(len(states), device=states.device), last]
        weights = mask * mask.cumsum(dim=1) if self._pooling == "weightedmean" else mask
        summed = (states * weights[..., None].float()).sum(dim=1)
        return (summed / weights.sum(dim=1, keepdim=True)).to(states.dtype)


def build(
    checkpoint: Checkpoint, bases: Path, options: Options, *, projected: bool
) -> LusiferModel:
    """Put the network of a checkpoint together.

    Parameters
    ----------
    checkpoint
        With `config.json` and the weights.
    bases
        Folder with `universal_learner/config.json` and `encoder/config.json`.
    options
        Tell the type that the model computes in.
    projected
        Whether vectors go through the output projection.

    Raises
    ------
    InvalidArgumentError
        If something is missing, or of a kind that is not known.
    """
    config = checkpoint.json("config.json")
    _require_known(checkpoint, config)
    state = _state(checkpoint)
    dtype = options.torch_dtype()
    lora = (float(config.get("lora_alpha", 32)), int(config.get("loar_r", 16)))
    named = merged(state, "universal_learner.", *lora)
    learner = build_model(checkpoint, bases / "universal_learner", named, options)
    named = merged(state, "encoder.", *lora)
    named = {name.removeprefix("model."): value for name, value in named.items()}
    llm = build_model(checkpoint, bases / "encoder", named, options)
    added = state.get("connection_module.added_tokens", torch.zeros(0, llm.config.hidden_size))
    n_added = int(config.get("num_added_tokens", 0))
    if len(added) != n_added:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: {len(added)} added tokens in its weights, but "
            f"num_added_tokens={n_added} in its config.json; expected equal numbers"
        )
    return LusiferModel(
        learner,
        _connector(state, str(config.get("connection_type", "ff"))).to(dtype),
        added.to(dtype),
        llm,
        _two_layers(state, "output_projection.").to(dtype) if projected else None,
        str(config.get("pooling_method", "mean")),
    )


def _require_known(checkpoint: Checkpoint, config: dict[str, Any]) -> None:
    for name, default, known in (
        ("universal_learner_backbone_type", None, ("xlm-r",)),
        ("encoder_backbone_type", "mistral", LLMS),
        ("connection_type", "ff", ("ff", "embedding_table")),
        ("pooling_method", "mean", POOLINGS),
    ):
        found = config.get(name, default)
        if found not in known:
            raise InvalidArgumentError(
                f"model {checkpoint.name}: {name}={found!r} in its config.json is not supported; "
                f"expected {' or '.join(map(repr, known))}"
            )


def _state(checkpoint: Checkpoint) -> Weights:
    """Read all weights but those of the language model's output layer."""
    state: Weights = {}
    for path in checkpoint.weights():
        if path.suffix == ".safetensors":
            state.update(read_weights(path, lambda name: "lm_head." not in name))
            continue
        held = unpickled(path)
        trained = held.get("model")  # as a trainer saves it
        held = trained if isinstance(trained, dict) else held
        state.update({name: value for name, value in held.items() if "lm_head." not in name})
    return state


def merged(state: Weights, prefix: str, alpha: float, rank: int) -> Weights:
    """Give the weights below a prefix by their plain names, with adapters added to them.

    Raises
    ------
    InvalidArgumentError
        If an adapter is of another rank or kind, has no weight to change, or is one of two.
    """
    plain: Weights = {}
    adapters: dict[str, dict[str, dict[str, torch.Tensor]]] = {}
    for full, value in state.items():
        if not full.startswith(prefix):
            continue
        name = full.removeprefix(prefix).removeprefix("base_model.model.")
        found = _ADAPTER.fullmatch(name)
        if found:
            layer, side, adapter = found.groups()
            adapters.setdefault(layer, {}).setdefault(adapter or "", {})[side] = value
        elif "lora_" in name:
            raise InvalidArgumentError(f"{full}: an adapter of this kind is not supported")
        else:
            plain[name.replace(".base_layer.", ".")] = value
    for layer, named in adapters.items():
        one, *others = named.values()
        weight = plain.get(f"{layer}.weight")
        if others or weight is None or set(one) != {"A", "B"}:
            raise InvalidArgumentError(
                f"{prefix}{layer}: adapters {sorted(named)} do not fit; expected one, with its "
                f"A, its B and the weight that they change"
            )
        if len(one["A"]) != rank:
            raise InvalidArgumentError(
                f"{prefix}{layer}: an adapter of rank {len(one['A'])}, expected loar_r={rank}"
            )
        change = one["B"].float() @ one["A"].float()
        plain[f"{layer}.weight"] = (weight.float() + (alpha / rank) * change).to(weight.dtype)
    return plain


def _connector(state: Weights, kind: str) -> torch.nn.Sequential:
    if kind == "ff":
        return _two_layers(state, "connection_module.ff.")
    table = _get(state, "connection_module.embedding.weight")
    chosen = _linear(state, "connection_module.ff.0")
    mixed = torch.nn.Linear(*table.shape, bias=False)
    mixed.weight = torch.nn.Parameter(table.T)
    return torch.nn.Sequential(chosen, torch.nn.Softmax(dim=-1), mixed)


def _two_layers(state: Weights, prefix: str) -> torch.nn.Sequential:
    first, second = _linear(state, f"{prefix}0"), _linear(state, f"{prefix}2")
    return torch.nn.Sequential(first, torch.nn.ReLU(), second)


def _linear(state: Weights, name: str) -> torch.nn.Linear:
    weight = _get(state, f"{name}.weight")
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = torch.nn.Parameter(weight)
    layer.bias = torch.nn.Parameter(_get(state, f"{name}.bias"))
    return layer


def _get(state: Weights, name: str) -> torch.Tensor:
    if name in state:
        return state[name]
    hint = "; use_projection=false leaves it out" if name.startswith("output_projection") else ""
    raise InvalidArgumentError(f"{name}: not in the checkpoint, it would be random{hint}")
