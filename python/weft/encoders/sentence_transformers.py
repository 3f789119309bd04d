# SPDX-License-Identifier: Apache-2.0
"""Late-interaction checkpoints as sentence-transformers >= 6 loads them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder
from torch.nn.functional import normalize

from weft.encoders.loading import loading
from weft.encoders.settings import check_settings
from weft.encoders.windowed import OVERLAP, Options, WindowedEncoder, prompt_of
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo, TokenEmbeddings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sentence_transformers.base.modules import Transformer

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windows import Piece

_NO_LIMIT = 1_000_000


class MultiVectorAdapter(WindowedEncoder):
    """A `MultiVectorEncoder`: Stanford ColBERT, PyLate and native checkpoints.

    Prompts, lengths, query expansion, skiplist and projection are the checkpoint's. Long texts are
    split where the model would cut them off.
    """

    def __init__(
        self, model: MultiVectorEncoder, name: str, fingerprint: str, options: Options
    ) -> None:
        transformer = model[0]
        window = min(model.max_seq_length or _NO_LIMIT, _NO_LIMIT)
        expansion = transformer.query_expansion
        query_length = expansion["length"] if expansion else transformer.query_length
        lengths = (
            min(query_length or window, window), min(transformer.document_length or window, window),
        )  # fmt: skip
        prompts = (
            prompt_of(model.prompts, "query"),
            prompt_of(model.prompts, "document", "passage", "corpus"),
        )
        super().__init__(model.tokenizer, prompts, lengths, options)
        self._model = model.eval()
        self._prompts = {"query": prompts[0], "document": prompts[1]}
        dim = int(model.get_embedding_dimension())
        if options.dim not in {None, dim}:
            raise InvalidArgumentError(f"dim={options.dim}: the model {name} gives {dim}")
        skiplist = [word for part in model for word in getattr(part, "skiplist_words", [])]
        unknown = model.tokenizer.unk_token_id
        self._skipped = set(model.tokenizer.convert_tokens_to_ids(skiplist)) - {unknown}
        self._info = EncoderInfo(
            name=name,
            recipe="st",
            dim=dim,
            fingerprint=fingerprint,
            query_length=lengths[0],
            document_length=lengths[1],
            settings={
                "overlap": OVERLAP,
                "query_prompt": prompts[0],
                "document_prompt": prompts[1],
                "query_expansion": dict(expansion) if expansion else None,
                "skiplist": "".join(skiplist) if all(len(w) == 1 for w in skiplist) else skiplist,
            },
        )

    @staticmethod
    def from_checkpoint(
        checkpoint: Checkpoint, options: Options, info: EncoderInfo | None
    ) -> MultiVectorAdapter:
        """Load a checkpoint; one without a trained projection is refused."""
        _require_projection(checkpoint)
        with loading(checkpoint.name):
            model = MultiVectorEncoder(
                str(checkpoint.folder), device=str(options.torch_device()), local_files_only=True
            )
        model.to(dtype=options.torch_dtype())
        _set_lengths(model[0], options, info)
        return MultiVectorAdapter(model, checkpoint.name, checkpoint.fingerprint(), options)

    @staticmethod
    def from_model(model: MultiVectorEncoder, options: Options) -> MultiVectorAdapter:
        """Wrap a loaded model where it is; its fingerprint is made from the weights in memory."""
        if not isinstance(model, MultiVectorEncoder):
            raise InvalidArgumentError(
                f"model: {type(model).__name__}, expected a path, a name or a MultiVectorEncoder"
            )
        _set_lengths(model[0], options, None)
        options = replace(options, device=str(model.device))
        return MultiVectorAdapter(model, "MultiVectorEncoder", _fingerprint(model), options)

    @property
    def info(self) -> EncoderInfo:
        """What an index stores."""
        return self._info

    def n_rows(self, piece: Piece) -> int:
        """Give how many rows a piece has: all but those whose tokens are on the skiplist."""
        if not piece.of_text.any():
            return 0
        return sum(token not in self._skipped for token in piece.ids)

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows."""
        return np.zeros((0, self._info.dim), np.float32)

    def run(self, pieces: list[Piece], task: str) -> list[TokenEmbeddings]:
        """Encode one batch as queries or documents."""
        texts = [piece.text for piece in pieces]
        features = self._model.preprocess(texts, prompt=self._prompts[task] or None, task=task)
        ids = features["input_ids"].numpy()
        features = {
            name: value.to(self.device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        output = self._model(features, task=task)
        values = normalize(output["token_embeddings"].float(), dim=-1).cpu().numpy()
        scored = output["attention_mask"].bool().cpu().numpy()
        result = []
        for row, piece in enumerate(pieces):
            spans = _row_spans(piece, ids[row])
            result.append(
                TokenEmbeddings(
                    values[row][scored[row]], None if spans is None else spans[scored[row]]
                )
            )
        return result


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> MultiVectorAdapter:
    """Load a late-interaction checkpoint as sentence-transformers does."""
    check_settings("st", options.settings, ())
    return MultiVectorAdapter.from_checkpoint(checkpoint, options, info)


def _row_spans(piece: Piece, ids: NDArray[np.int64]) -> NDArray[np.uint32] | None:
    """Give the spans of a padded row; None unless it has exactly the tokens of the piece."""
    if piece.spans is None:
        return None
    n = len(piece.ids)
    for begin in (0, len(ids) - n):  # padded on the right, on the left
        if begin >= 0 and ids[begin : begin + n].tolist() == piece.ids:
            spans = np.full((len(ids), 2), piece.start, np.uint32)
            spans[begin : begin + n] = piece.spans
            return spans
    return None


def _require_projection(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that sentence-transformers would complete with random weights."""
    modules = checkpoint.modules()
    if any(str(module.get("type", "")).endswith("MultiVectorMask") for module in modules):
        return  # a native checkpoint lists all its parts
    if any(str(module.get("type", "")).endswith("Dense") for module in modules):
        return
    if "linear.weight" in _weight_names(checkpoint):
        return
    raise InvalidArgumentError(
        f"model {checkpoint.name}: no trained projection in the checkpoint, it would be random; "
        f"expected linear.weight beside the encoder's weights, or a Dense module in modules.json"
    )


def _weight_names(checkpoint: Checkpoint) -> set[str]:
    names: set[str] = set()
    for path in checkpoint.files():
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(str(path), framework="pt") as file:
                names.update(file.keys())
        elif path.suffix == ".bin":
            names.update(torch.load(path, map_location="meta", weights_only=True))
    return names


def _set_lengths(transformer: Transformer, options: Options, info: EncoderInfo | None) -> None:
    """Apply the lengths asked for; a model with query expansion is made longer by it."""
    query_length = options.query_length or (info.query_length if info else None)
    expansion = transformer.query_expansion
    if query_length is not None and expansion:
        transformer.query_length = None
        transformer.query_expansion = {**expansion, "length": query_length}
    elif query_length is not None:
        transformer.query_length = query_length
    document_length = options.document_length or (info.document_length if info else None)
    if document_length is not None:
        transformer.document_length = document_length


def _fingerprint(model: MultiVectorEncoder) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().flatten()[:: max(1, tensor.numel() // 1024)]
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:32]
