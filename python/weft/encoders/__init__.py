# SPDX-License-Identifier: Apache-2.0
"""Encoders: texts to token embeddings. Importing this loads no model library."""

from weft.encoders.averaging import average_checkpoints
from weft.encoders.base import Encoder, FittedEncoder, load, require_same_encoder
from weft.encoders.fields import FieldEmbeddings, FieldEncoder
from weft.encoders.joined import fields_of

__all__ = [
    "Encoder",
    "FieldEmbeddings",
    "FieldEncoder",
    "FittedEncoder",
    "average_checkpoints",
    "fields_of",
    "load",
    "require_same_encoder",
]
