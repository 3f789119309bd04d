# SPDX-License-Identifier: Apache-2.0
"""The large settings of an encoder, in a file of their own that the manifest names.

A calibration has megabytes a language, which every commit would write anew and every reader of the
manifest would parse. The file is canonical JSON, `{setting: value}`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from weft.arrays import crc32c
from weft.errors import CorruptIndexError
from weft.lifecycle.manifest import canonical
from weft.lifecycle.snapshot import require_checksum, require_size

if TYPE_CHECKING:
    from weft.lifecycle.manifest import Manifest
    from weft.lifecycle.storage import Directory
    from weft.types import EncoderInfo

LARGE = 4_096
"""Bytes of JSON from which on a setting is not part of the manifest."""


def split(info: EncoderInfo) -> tuple[EncoderInfo, bytes | None]:
    """Give what the manifest says of an encoder, and what its file holds if there is to be one."""
    settings = info.settings
    large = {name: value for name, value in settings.items() if len(canonical(value)) >= LARGE}
    if not large:
        return info, None
    small = {name: value for name, value in settings.items() if name not in large}
    return replace(info, settings=small), canonical(large)


def encoder_of(directory: Directory, manifest: Manifest) -> EncoderInfo | None:
    """Give what made the embeddings, with all of its settings.

    Raises
    ------
    CorruptIndexError
        The file of the large ones is missing, or not the one that the manifest names.
    """
    if manifest.encoder is None or manifest.encoder_file is None:
        return manifest.encoder
    path = require_size(directory, manifest, manifest.encoder_file)
    data = directory.read(path.name)
    require_checksum(manifest, path, crc32c(data))
    try:
        return replace(manifest.encoder, settings={**manifest.encoder.settings, **json.loads(data)})
    except (ValueError, TypeError) as error:
        raise CorruptIndexError(
            f"{path}: not settings of an encoder ({error})", str(path)
        ) from error
