# SPDX-License-Identifier: Apache-2.0
"""How an index is kept: files, manifests, commits, builds, snapshots, checks and repair."""
