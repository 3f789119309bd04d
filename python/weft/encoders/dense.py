# SPDX-License-Identifier: Apache-2.0
"""Models of one vector per text, as sentence-transformers runs them; Granite is one.

A text is a document of one row, a long one of one row per window. Pooling is what `modules.json`
says. A folder without it would be pooled by the mean, whatever the model was trained with, so that
has to be asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import PreTrainedTokenizerBase

from weft.encoders.loading import check_cut, load_model, loading
from weft.encoders.settings import Setting, check_settings
from weft.encoders.vectors import VectorEncoder
from weft.encoders.windowed import OVERLAP, Options, check_lengths, prompt_of
from weft.errors import InvalidArgumentError
from weft.types import EncoderInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weft.encoders.checkpoint import Checkpoint
    from weft.encoders.windows import Piece

SETTINGS = (
    Setting("pooling", choices=("cls", "mean", "lasttoken")),
    Setting("on_long", choices=("split", "truncate")),
    Setting("force_dim", bool),
)
"""What a user can change; the first two are stored with the index.

pooling
    Of a folder without modules.json, and of no other.
on_long, force_dim
    As for `weft.encoders.colbert.SETTINGS`.
"""


class DenseEncoder(VectorEncoder):
    """A `SentenceTransformer`: one row of unit length for a query or a window.

    Rows that the model does not scale are scaled here, so documents rank by cosine. Cut rows are
    scaled after the cut.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: SentenceTransformer,
        options: Options,
        info: EncoderInfo | None,
    ) -> None:
        stored = {} if info is None else info.settings
        settings = {**stored, **options.settings}
        window = int(model.max_seq_length)
        lengths = options.lengths(info, (window, window))
        check_lengths(lengths, 4, window)
        prompts = (
            prompt_of(model.prompts, "query"),
            prompt_of(model.prompts, "document", "passage", "corpus"),
        )
        on_long = str(settings.get("on_long", "split"))
        super().__init__(model.tokenizer, prompts, lengths, options, on_long=on_long)
        self._model = model.eval()
        self._prompts = {"query": prompts[0], "document": prompts[1]}
        self._lengths = {"query": lengths[0], "document": lengths[1]}
        width = int(model.get_embedding_dimension())
        self._dim = options.dim or (info.dim if info else width)
        if info is None or self._dim != info.dim:
            force = bool(options.settings.get("force_dim", False))
            check_cut(checkpoint, width, self._dim, force=force)
        self._info = EncoderInfo(
            name=checkpoint.name,
            recipe="dense",
            dim=self._dim,
            fingerprint=checkpoint.fingerprint(),
            query_length=lengths[0],
            document_length=lengths[1],
            settings={
                "pooling": settings.get("pooling"),
                "on_long": on_long,
                "overlap": OVERLAP,
                "query_prompt": prompts[0],
                "document_prompt": prompts[1],
                "similarity": "cosine",
            },
        )

    @property
    def info(self) -> EncoderInfo:
        """What an index stores."""
        return self._info

    def no_rows(self) -> NDArray[np.float32]:
        """Give an array of no rows."""
        return np.zeros((0, self._dim), np.float32)

    def vectors(self, pieces: list[Piece], task: str) -> NDArray[np.float32]:
        """Give one row for each piece, `[n, dim]`."""
        self._model.max_seq_length = self._lengths[task]
        found: Any = self._model.encode(
            [piece.text for piece in pieces],
            prompt=self._prompts[task] or None,
            batch_size=len(pieces),
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        rows = found.float().cpu().numpy()[:, : self._dim]
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: NDArray[np.float32] = rows / np.maximum(norms, np.finfo(np.float32).tiny)
        return unit


def load(checkpoint: Checkpoint, options: Options, info: EncoderInfo | None) -> DenseEncoder:
    """Load a folder of sentence-transformers, or of transformers if its pooling is given.

    Raises
    ------
    InvalidArgumentError
        If nothing says how the model pools, or two things do; or it is no transformer.
    """
    check_settings("dense", options.settings, SETTINGS)
    stored = info.settings.get("pooling") if info else None
    pooling = options.settings.get("pooling", stored)
    has_modules = bool(checkpoint.modules())
    if not has_modules and pooling is None:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: no modules.json, so nothing says how it pools; expected the "
            f"option pooling=cls (Granite), pooling=mean or pooling=lasttoken"
        )
    if has_modules and pooling is not None:
        raise InvalidArgumentError(
            f"model {checkpoint.name}: pooling={pooling}, but its modules.json says how it pools; "
            f"expected no such option"
        )
    if not has_modules:
        load_model(checkpoint, checkpoint.folder, options)  # refuses what is not complete
    with loading(checkpoint.name):
        folder, device = str(checkpoint.folder), str(options.torch_device())
        if has_modules:
            model = SentenceTransformer(folder, device=device, local_files_only=True)
        else:
            transformer = Transformer(folder)
            width = transformer.get_embedding_dimension()
            model = SentenceTransformer(
                modules=[transformer, Pooling(width, pooling)], device=device
            )
    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        kind = type(model[0]).__name__
        raise InvalidArgumentError(
            f"model {checkpoint.name}: its first module is a {kind}, which reads texts without a "
            f"tokenizer of transformers; expected a Transformer"
        )
    model.to(dtype=options.torch_dtype())
    return DenseEncoder(checkpoint, model, options, info)
