// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft {

/// Levels, one byte per dimension, to codes and back. The layout is that of kernels::CodeBlock: a
/// 32-bit word holds 32 / nbits dimensions so that one AND and one shift give four neighbouring
/// ones.
///
/// levels: dim bytes below 2^nbits; codes: dim * nbits / 8 bytes; dim: a multiple of 32; nbits: 1,
/// 2, 4 or 8. The two may not overlap.
void pack(const uint8_t* levels, size_t dim, unsigned nbits, uint8_t* codes);
void unpack(const uint8_t* codes, size_t dim, unsigned nbits, uint8_t* levels);

/// A row of int8 as kernels::CodeRow has it for codes of `nbits`: the element of every level, at the place of
/// that level among the codes. planes: room for planes_size(dim, nbits), 64-byte aligned.
void code_row(const int8_t* row, size_t dim, unsigned nbits, int8_t* planes);
constexpr size_t planes_size(size_t dim, unsigned nbits) {
  return (dim * nbits / 8 + 63) / 64 * 64 * (8 / nbits);
}

/// The second plane has a step kPlaneRatio times smaller; merged levels are ratio * upper + lower,
/// at most kPlaneMiddle = twice their middle.
inline constexpr int kPlaneRatio = 12;
inline constexpr int kPlaneMiddle = 15 * kPlaneRatio + 15;

/// One level of 0..195 per dimension, 12 * upper + lower, of two packed planes of 4 bits.
void merge_planes(const uint8_t* upper, const uint8_t* lower, size_t dim, uint8_t* out);

}  // namespace weft
