# SPDX-License-Identifier: Apache-2.0
"""What this installation is, and what it runs on."""

from __future__ import annotations

from typing import Any

from weft import _native


def info() -> dict[str, Any]:
    """Tell what this installation of weft is and what it runs on.

    "devices" are the names that `Index.searcher` and `Index.writer` take here, beside "auto";
    "cuda_build" tells what became of the CUDA plug-in: its state and, unless that is "ready", why.

    Examples
    --------
    >>> import weft
    >>> weft.info()["devices"][0]
    'cpu'
    """
    cuda = _native.devices()
    names = [gpu["device"] for gpu in cuda["devices"]]
    return {**_native.info(), "devices": ["cpu", *names], "cuda_build": cuda}


def build_device(name: str) -> _native.BuildDevice | None:
    """Give the device of that name for a build; None is the CPU, which "auto" may choose, too."""
    return _native.build_device(str(name))
