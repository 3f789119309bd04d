# SPDX-License-Identifier: Apache-2.0
"""Late-interaction search: token embeddings in, MaxSim rankings with known recall out.

Examples
--------
>>> import numpy as np, weft
>>> index = weft.Index.create("first.index", weft.IndexConfig(dim=8))
>>> index.add(["a", "b"], [np.eye(8)[:3], np.eye(8)[3:]])
2
>>> index.search(np.eye(8)[4:6], k=1).ids
('b',)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from weft import _native

if TYPE_CHECKING:
    from weft import encoders, evaluation, sources
    from weft.arrays import maxsim
    from weft.errors import (
        CorruptIndexError,
        DeviceError,
        IncompatibleIndexError,
        IndexExistsError,
        IndexLockedError,
        InternalError,
        InvalidArgumentError,
        MissingExtraError,
        NotFoundError,
        OutOfMemoryError,
        StorageError,
        WeftError,
        WriterClosedError,
    )
    from weft.exporting import Exported, export
    from weft.fields import DenseConfig, SparseConfig
    from weft.fusion import ReciprocalRank, Rerank, Weighted
    from weft.hybrid import HybridSearcher
    from weft.hybrid_retriever import HybridRetriever
    from weft.importing import Imported, import_index
    from weft.index import Index
    from weft.installation import info
    from weft.lifecycle.health import DenseInfo, IndexInfo, Problem, Repair
    from weft.lifecycle.planning import Plan, plan
    from weft.retriever import Retriever
    from weft.searcher import Searcher
    from weft.types import (
        Alignment,
        Document,
        EncoderInfo,
        Hit,
        Hits,
        IndexConfig,
        Match,
        OperatingPoint,
        SearchParams,
        TokenEmbeddings,
    )
    from weft.writer import Writer

__all__ = [
    "Alignment",
    "CorruptIndexError",
    "DenseConfig",
    "DenseInfo",
    "DeviceError",
    "Document",
    "EncoderInfo",
    "Exported",
    "Hit",
    "Hits",
    "HybridRetriever",
    "HybridSearcher",
    "Imported",
    "IncompatibleIndexError",
    "Index",
    "IndexConfig",
    "IndexExistsError",
    "IndexInfo",
    "IndexLockedError",
    "InternalError",
    "InvalidArgumentError",
    "Match",
    "MissingExtraError",
    "NotFoundError",
    "OperatingPoint",
    "OutOfMemoryError",
    "Plan",
    "Problem",
    "ReciprocalRank",
    "Repair",
    "Rerank",
    "Retriever",
    "SearchParams",
    "Searcher",
    "SparseConfig",
    "StorageError",
    "TokenEmbeddings",
    "WeftError",
    "Weighted",
    "Writer",
    "WriterClosedError",
    "encoders",
    "evaluation",
    "export",
    "import_index",
    "info",
    "maxsim",
    "plan",
    "sources",
]

# Where each name lives; a module is imported when one of its names is first used.
_MODULES = {
    "arrays": ("maxsim",),
    "exporting": ("Exported", "export"),
    "fusion": ("ReciprocalRank", "Rerank", "Weighted"),
    "lifecycle.health": ("DenseInfo", "IndexInfo", "Problem", "Repair"),
    "hybrid": ("HybridSearcher",),
    "hybrid_retriever": ("HybridRetriever",),
    "importing": ("Imported", "import_index"),
    "index": ("Index",),
    "installation": ("info",),
    "fields": ("DenseConfig", "SparseConfig"),
    "lifecycle.planning": ("Plan", "plan"),
    "retriever": ("Retriever",),
    "searcher": ("Searcher",),
    "types": (
        *("Alignment", "Document", "EncoderInfo", "Hit", "Hits", "IndexConfig", "Match"),
        *("OperatingPoint", "SearchParams", "TokenEmbeddings"),
    ),
    "writer": ("Writer",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = ("encoders", "evaluation", "sources")


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "__version__":
        value: Any = _native.info()["version"]
    elif name in _SUBMODULES:
        value = importlib.import_module(f"weft.{name}")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"weft.{_HOME[name]}"), name)
    elif name in __all__:
        value = getattr(importlib.import_module("weft.errors"), name)
    else:
        raise AttributeError(f"module 'weft' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
