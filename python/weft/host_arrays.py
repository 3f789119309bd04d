# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries -> numpy arrays in host memory.

numpy, anything with DLPack or the array protocol, torch tensors (bfloat16 included; torch is never
imported here, only used where a tensor shows that it is loaded already). What lies in the memory of
a device is copied once, after the work that makes it: torch copies its tensors; the memory of
others, shown by `__cuda_array_interface__` or DLPack, is copied by the CUDA plug-in.
"""

from __future__ import annotations

import sys
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from weft import _native
from weft.errors import DeviceError, InvalidArgumentError, WeftError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BFLOAT16 = np.dtype([("bfloat16", "<u2")])
"""Stands for bfloat16, which numpy lacks."""

ON_HOST = (1, 3)
"""DLPack's kDLCPU and kDLCUDAHost."""
ON_CUDA = (2, 13)
"""DLPack's kDLCUDA and kDLCUDAManaged."""
LEGACY_STREAM = 1
"""CUDA's default stream, in DLPack as in the array interface; a copy on it waits for others."""
DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}
DLPACK_BFLOAT = 4


def host_array(value: object, what: str) -> NDArray[Any]:
    """Give `value` as a numpy array in host memory; bfloat16 has a dtype named so, or `BFLOAT16`.

    Nothing is copied where it is in host memory and the other library allows that.

    Raises
    ------
    InvalidArgumentError
        It is no array; the message begins with `what`.
    DeviceError
        It is in the memory of a GPU, and of a library other than torch, and there is no plug-in.
    """
    try:
        if isinstance(value, np.ndarray):
            return value
        if type(value).__module__.partition(".")[0] == "torch" and "torch" in sys.modules:
            return _from_torch(value)
        if hasattr(value, "__cuda_array_interface__"):
            return _fetched(_Lent.by_interface(value.__cuda_array_interface__), what)
        device = getattr(value, "__dlpack_device__", None)
        kind = ON_HOST[0] if device is None else int(device()[0])
        if kind in ON_CUDA:
            return _fetched(_Lent.by_dlpack(value), what)
        if kind not in ON_HOST:
            raise InvalidArgumentError(
                f"{what}: in the memory of a device of DLPack's type {kind}, expected host or CUDA "
                f"memory"
            )
        if device is not None and not hasattr(value, "__array__"):
            return np.from_dlpack(value)  # type: ignore[arg-type]
        return np.asarray(value)
    except WeftError:
        raise
    except (TypeError, ValueError, BufferError, RuntimeError, KeyError) as error:
        raise InvalidArgumentError(f"{what}: cannot be read as an array: {error}") from error


def _from_torch(tensor: Any) -> NDArray[Any]:  # noqa: ANN401
    torch = sys.modules["torch"]
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(BFLOAT16)
    array: NDArray[Any] = tensor.numpy()
    return array


class _Lent(NamedTuple):
    """Where a GPU has an array of another library, and who must be alive while it is read."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None  # in bytes
    dtype: np.dtype[Any]
    stream: int
    owner: object

    @staticmethod
    def by_interface(interface: dict[str, Any]) -> _Lent:
        """Read a `__cuda_array_interface__`, whose stream tells what a copy must wait for."""
        if interface.get("mask") is not None:
            raise ValueError("it has a mask")
        strides = interface.get("strides")
        return _Lent(
            interface["data"][0],
            tuple(interface["shape"]),
            None if strides is None else tuple(strides),
            np.dtype(interface["typestr"]),
            interface.get("stream") or LEGACY_STREAM,
            interface,
        )

    @staticmethod
    def by_dlpack(value: Any) -> _Lent:  # noqa: ANN401
        """Ask for a capsule whose array is ready for what comes on the default stream."""
        capsule = value.__dlpack__(stream=LEGACY_STREAM)
        address, shape, strides, code, bits = _native.dlpack_layout(capsule)
        if (code, bits) == (DLPACK_BFLOAT, 16):
            dtype = BFLOAT16
        elif code in DLPACK_KINDS:
            dtype = np.dtype(f"{DLPACK_KINDS[code]}{bits // 8}")
        else:
            raise TypeError(f"its values are {bits} bits of DLPack's type {code}")
        return _Lent(
            address,
            tuple(shape),
            None if strides is None else tuple(step * dtype.itemsize for step in strides),
            dtype,
            LEGACY_STREAM,
            capsule,
        )


def _fetched(lent: _Lent, what: str) -> NDArray[Any]:
    """Copy all that lies between the first and the last value."""
    if 0 in lent.shape:
        return np.empty(lent.shape, lent.dtype)
    steps = lent.strides
    if steps is None:
        inner = [1, *accumulate(reversed(lent.shape[1:]), mul)]
        steps = tuple(n * lent.dtype.itemsize for n in reversed(inner[: len(lent.shape)]))
    reach = [(n - 1) * step for n, step in zip(lent.shape, steps, strict=True)]
    below = sum(min(one, 0) for one in reach)
    above = sum(max(one, 0) for one in reach) + lent.dtype.itemsize
    try:
        data = _native.fetch(lent.address + below, above - below, lent.stream)
    except DeviceError as error:
        raise DeviceError(
            f"{what}: the array is in the memory of a GPU, and {error}; copy it to the host first"
        ) from error
    found: NDArray[Any] = np.ndarray(lent.shape, lent.dtype, data, -below, steps)
    return found
