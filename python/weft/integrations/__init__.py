# SPDX-License-Identifier: Apache-2.0
"""Classes in the shapes of other engines, over a weft index; one module for each neighbour.

A class takes the names, defaults and results of its model, and writes weft's own format. An
argument that means nothing here is accepted at its default and refused otherwise; search knobs at
their defaults mean weft's own operating point. What is done otherwise than there says so once, as
a `CompatibilityWarning`. None of these modules imports the engine it stands in for.
"""
