# SPDX-License-Identifier: Apache-2.0
"""The engine of weft; private, see weft for the public API.

Arrays are C-contiguous and of exactly the dtype stated; `threads=0` chooses. Errors are the classes
of weft.errors.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeAlias, type_check_only

import numpy as np
from numpy.typing import NDArray

_Progress: TypeAlias = Callable[[str, int, int], None]

@type_check_only
class _Type(type): ...

def info() -> dict[str, Any]: ...
def devices() -> dict[str, Any]: ...
def use_backend(library: str) -> None: ...
def fetch(address: int, n_bytes: int, stream: int) -> NDArray[np.uint8]: ...
def dlpack_layout(
    capsule: object,
) -> tuple[int, list[int], list[int] | None, int, int]: ...
def crc32c(data: bytes | bytearray | memoryview | NDArray[Any], crc: int = 0) -> int: ...
def normalize_rows(
    values: NDArray[Any], bfloat16: bool = False
) -> tuple[NDArray[np.float16], int, int]: ...
def maxsim(
    query: NDArray[np.float32], values: NDArray[Any], offsets: NDArray[np.uint64], threads: int = 0
) -> NDArray[np.float32]: ...
def read_arrays(path: str) -> dict[str, NDArray[Any]]: ...
def whole_arrays(path: str, names: Sequence[str]) -> dict[str, NDArray[Any]]: ...
def damaged_arrays(path: str) -> list[str]: ...
def map_arrays(path: str) -> tuple[dict[str, NDArray[Any]], int]: ...
def build_device(device: str) -> BuildDevice | None: ...
def write_segment(
    fd: int,
    path: str,
    codec: Codec | None,
    rows: NDArray[np.float16],
    offsets: NDArray[np.uint64],
    id_bytes: NDArray[np.uint8],
    id_offsets: NDArray[np.uint64],
    rerank: str,
    threads: int = 0,
    progress: _Progress | None = None,
    device: BuildDevice | None = None,
) -> dict[str, int]: ...
def merge_segments(
    fd: int,
    path: str,
    parts: Sequence[tuple[Segment, NDArray[np.uint32]]],
    progress: _Progress | None = None,
) -> dict[str, int]: ...
def write_tombstones(fd: int, path: str, words: NDArray[np.uint64], n_docs: int) -> int: ...
def read_tombstones(path: str) -> tuple[NDArray[np.uint64], int, int]: ...

class ContainerWriter(metaclass=_Type):
    def __init__(
        self, fd: int, path: str, arrays: Sequence[tuple[str, str, Sequence[int]]]
    ) -> None: ...
    def append(self, array: int, values: NDArray[Any]) -> None: ...
    def finish(self) -> int: ...

class BuildDevice(metaclass=_Type):
    def __init__(self, *args: NoReturn, **kwargs: NoReturn) -> None: ...  # made by the engine alone
    @property
    def name(self) -> str: ...

class Codec(metaclass=_Type):
    def __init__(self, *args: NoReturn, **kwargs: NoReturn) -> None: ...  # made by the engine alone
    @staticmethod
    def train(
        rows: NDArray[np.float16],
        *,
        nbits: int,
        n_coarse: int,
        n_fine: int,
        iterations: int,
        seed: int,
        max_sample_bytes: int,
        threads: int,
        progress: _Progress | None,
        n_tokens: int = 0,
        device: BuildDevice | None = None,
    ) -> Codec: ...
    @staticmethod
    def open(path: str) -> Codec: ...
    def grow(
        self,
        rows: NDArray[np.float16],
        *,
        n_more: int,
        iterations: int,
        n_tokens: int,
        max_sample_bytes: int,
        threads: int,
        used: Sequence[int],
        progress: _Progress | None,
        device: BuildDevice | None = None,
    ) -> Codec: ...
    def share_beyond(self, rows: NDArray[np.float16], threads: int) -> float: ...
    def write(self, fd: int, path: str) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def padded_dim(self) -> int: ...
    @property
    def nbits(self) -> int: ...
    @property
    def n_coarse(self) -> int: ...
    @property
    def n_fine(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def error(self) -> int: ...
    @property
    def checksum(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

class Segment(metaclass=_Type):
    def __init__(self, *args: NoReturn, **kwargs: NoReturn) -> None: ...  # made by the engine alone
    @staticmethod
    def open(path: str, codec: Codec | None) -> Segment: ...
    @property
    def n_docs(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def checksum(self) -> int: ...
    @property
    def codec_checksum(self) -> int: ...
    @property
    def has_codes(self) -> bool: ...
    @property
    def rerank(self) -> str: ...
    def ids(self, docs: NDArray[np.uint32]) -> list[str]: ...
    def find(self, id: str) -> int: ...
    def lengths(self) -> NDArray[np.uint32]: ...
    def rows(self, doc: int) -> NDArray[np.float32]: ...
    def verify(self) -> None: ...

class SearchParams(metaclass=_Type):
    def __init__(
        self,
        *,
        nprobe: int,
        budget: int,
        ncandidates: int,
        nskim: int,
        nrefine: int,
        nrerank: int,
        exhaustive: bool = False,
        floor: float = 0.75,
    ) -> None: ...

class Found(metaclass=_Type):
    def __init__(self, *args: NoReturn, **kwargs: NoReturn) -> None: ...  # made by the engine alone
    @property
    def ids(self) -> list[str]: ...
    @property
    def segments(self) -> NDArray[np.uint32]: ...
    @property
    def docs(self) -> NDArray[np.uint32]: ...
    @property
    def scores(self) -> NDArray[np.float32]: ...
    @property
    def n_matching(self) -> int: ...
    @property
    def timings_ms(self) -> dict[str, float]: ...
    @property
    def counts(self) -> dict[str, int]: ...
    @property
    def path(self) -> str: ...

class Searcher(metaclass=_Type):
    def __init__(
        self,
        segments: Sequence[Segment],
        codec: Codec | None,
        threads: int = 0,
        deleted: Sequence[NDArray[np.uint64] | None] | None = None,
        device: str = "cpu",
    ) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def device(self) -> str: ...
    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        params: SearchParams,
        allow: Sequence[NDArray[np.uint64] | None] | None = None,
    ) -> Found: ...
    def search_batch(
        self,
        values: NDArray[np.float32],
        offsets: NDArray[np.uint64],
        k: int,
        params: SearchParams,
        allow: Sequence[NDArray[np.uint64] | None] | None = None,
    ) -> list[Found]: ...
    def score(
        self, query: NDArray[np.float32], segment: int, docs: NDArray[np.uint32]
    ) -> NDArray[np.float32]: ...
    def align(
        self, query: NDArray[np.float32], segment: int, doc: int
    ) -> tuple[NDArray[np.uint32], NDArray[np.float32]]: ...

class Truth(metaclass=_Type):
    def __init__(
        self, values: NDArray[np.float32], offsets: NDArray[np.uint64], k: int, threads: int = 0
    ) -> None: ...
    def scan(
        self,
        rows: NDArray[np.float16],
        offsets: NDArray[np.uint64],
        first_doc: int,
    ) -> None: ...
    def result(self) -> tuple[NDArray[np.uint32], NDArray[np.float32]]: ...
