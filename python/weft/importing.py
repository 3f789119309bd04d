# SPDX-License-Identifier: Apache-2.0
"""Taking over the index of another engine: decode its documents, write them, say what is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from weft.errors import IndexExistsError, InvalidArgumentError
from weft.exporting import stored_rows
from weft.foreign import ForeignIndex
from weft.index import Index
from weft.types import IndexConfig

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from weft.foreign import Block
    from weft.types import Progress

COMPARED_DOCUMENTS, COMPARED_ROWS = 64, 64


@dataclass(frozen=True)
class Imported:
    """What `import_index` found and what it made of it.

    Attributes
    ----------
    source
        "fast-plaid", "next-plaid", "pylate" or "colbert-ai".
    n_docs, n_tokens
        What was taken over.
    nbits
        Bits of a dimension in the residuals of the source.
    cosine
        Mean over some rows: how near what weft stores is to what the source says.
    lost
        What the source does not hold, and what has no counterpart.
    """

    source: str
    n_docs: int
    n_tokens: int
    nbits: int
    cosine: float
    lost: tuple[str, ...]


def import_index(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    ids: str | os.PathLike[str] | None = None,
    config: IndexConfig | None = None,
    encoder: object = None,
    device: str = "cpu",
    threads: int | None = None,
    max_ram: int | str | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Make an index of the documents in an index of fast-plaid, next-plaid, PyLate or ColBERT.

    The source is read chunk by chunk and not changed; no model runs and no peer is needed, only
    torch for the `.pt` files of ColBERT. Interrupted, the same call goes on where it stopped.

    Parameters
    ----------
    path
        Where to make the index: a folder that does not exist or is empty.
    folder
        The source: the folder with `metadata.json`, or PyLate's folder above it.
    ids
        A file with one id a line, for all documents of the source in their order. None: the ids
        that PyLate keeps, and else the numbers "0", "1", ...
    config
        None: the defaults, with the source's dim.
    encoder
        What made the embeddings, as for `Index.create`; then the index can be searched with texts.
    device, threads, max_ram, progress
        As for `Index.writer`; the stage that reads is "read".

    Raises
    ------
    NotFoundError
        There is no such folder.
    InvalidArgumentError
        It is not an index of these engines; says what is missing.
    CorruptIndexError
        One of its files is damaged; says which.
    MissingExtraError
        It has `.pt` files and torch is not installed.
    IndexExistsError
        There is something at `path`.

    Examples
    --------
    >>> import pathlib, numpy as np, weft
    >>> old = pathlib.Path("old")
    >>> old.mkdir()
    >>> np.save(old / "centroids.npy", np.eye(8, dtype=np.float32))
    >>> np.save(old / "bucket_weights.npy", np.array([-0.1, 0.1], np.float32))  # 1 bit
    >>> np.save(old / "0.codes.npy", np.arange(8))
    >>> np.save(old / "0.residuals.npy", np.full((8, 1), 0b01010101, np.uint8))
    >>> _ = (old / "doclens.0.json").write_text("[3, 5]")
    >>> _ = (old / "metadata.json").write_text('{"num_chunks": 1}')
    >>> imported = weft.import_index("taken-over.index", old)
    >>> imported.n_docs, imported.lost[-1]
    (2, 'texts: the source keeps none')
    """
    source = ForeignIndex(Path(folder), None if ids is None else Path(ids))
    if config is None:
        config = IndexConfig(dim=source.dim)
    if config.dim != source.dim:
        raise InvalidArgumentError(f"dim={config.dim}: expected the source's, {source.dim}")
    index = Index.create(path, config, encoder=encoder, exist_ok=True)
    if index.generation != 1:
        raise IndexExistsError(f"{path}: an index is there already; choose another path")
    sample: dict[str, NDArray[np.float32]] = {}
    with index.writer(
        device=device, threads=threads, max_ram=max_ram, progress=progress, resume=True
    ) as writer:
        n_added = 0
        for block in source:
            writer.add(block.ids, (block.values, block.offsets), metadata=block.metadata)
            _keep_some(sample, block, n_added, max(source.n_docs // COMPARED_DOCUMENTS, 1))
            n_added += len(block.ids)
            if progress is not None:
                progress("read", source.n_read, source.n_docs)
        if n_added == 0:
            raise InvalidArgumentError(f"{folder}: no documents in it, expected at least one")
    return Imported(
        source=source.kind,
        n_docs=len(index),
        n_tokens=index.info.n_tokens,
        nbits=source.nbits,
        cosine=_mean_cosine(sample, index),
        lost=tuple(source.lost()),
    )


def _keep_some(
    sample: dict[str, NDArray[np.float32]], block: Block, n_before: int, step: int
) -> None:
    """Keep the first rows of every so many documents, to compare them with what is stored."""
    for i in range(-n_before % step, len(block.ids), step):
        begin, end = block.offsets[i], block.offsets[i + 1]
        sample[block.ids[i]] = np.array(block.values[begin : min(end, begin + COMPARED_ROWS)])


def _mean_cosine(sample: dict[str, NDArray[np.float32]], index: Index) -> float:
    ids = list(sample)
    stored = stored_rows(index.searcher(), ids)
    given = np.concatenate([sample[doc_id] for doc_id in ids]).astype(np.float64)
    found = np.concatenate(
        [rows[: len(sample[doc_id])] for doc_id, rows in zip(ids, stored, strict=True)]
    ).astype(np.float64)
    lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(found, axis=1)
    return float((np.einsum("ij,ij->i", given, found) / lengths).mean())
