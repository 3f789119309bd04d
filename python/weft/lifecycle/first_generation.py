# SPDX-License-Identifier: Apache-2.0
"""The first generation of an index: its configuration, and who is to encode for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weft.checks import FrozenDict
from weft.lifecycle.encoder_files import split
from weft.lifecycle.manifest import Manifest, publish
from weft.lifecycle.new_files import NewFiles
from weft.lifecycle.storage import Directory, os_errors

if TYPE_CHECKING:
    from weft.types import EncoderInfo, IndexConfig


def publish_first(directory: Directory, config: IndexConfig, info: EncoderInfo | None) -> Manifest:
    """Make the folder, and in it an index without documents."""
    with os_errors("create", directory.path):
        directory.path.mkdir(parents=True, exist_ok=True)
    files = NewFiles(directory)
    encoder_file = large = None
    if info is not None:
        info, large = split(info)
    if large is not None:
        encoder_file = files.write_encoder(large)
        directory.sync_directory()
    entries = FrozenDict(files.entries)
    manifest = Manifest(1, config, info, files=entries, encoder_file=encoder_file)
    publish(directory, manifest)
    Directory(directory.path.absolute().parent).sync_directory()
    return manifest
