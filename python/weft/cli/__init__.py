# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from weft.cli.app import app, main

__all__ = ["app", "main"]
