# SPDX-License-Identifier: Apache-2.0
"""What this installation is."""

from __future__ import annotations

from weft import _native


def info() -> dict[str, object]:
    """Tell what this installation of weft is and what it runs on.

    Examples
    --------
    >>> import weft
    >>> weft.info()["devices"]
    ['cpu']
    """
    return _native.info()
