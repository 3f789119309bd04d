# SPDX-License-Identifier: Apache-2.0
"""Encoders: texts to token embeddings. Importing this loads no model library."""

from weft.encoders.averaging import average_checkpoints
from weft.encoders.base import Encoder, FittedEncoder, load, require_same_encoder

__all__ = ["Encoder", "FittedEncoder", "average_checkpoints", "load", "require_same_encoder"]
