// SPDX-License-Identifier: Apache-2.0
#include "quantizer/packing.h"

#include <algorithm>
#include <cstring>

namespace weft {

namespace {

// Four levels travel in one 32-bit word. Shifts stay inside each byte, so the byte order of the
// machine does not matter.

uint32_t load_word(const uint8_t* in) {
  uint32_t word;
  std::memcpy(&word, in, sizeof word);
  return word;
}

void store_word(uint8_t* out, uint32_t word) { std::memcpy(out, &word, sizeof word); }

template <unsigned nbits>
void pack_levels(const uint8_t* levels, size_t dim, uint8_t* codes) {
  constexpr size_t kParts = 8 / nbits;
  for (size_t d = 0; d < dim; d += 4 * kParts, codes += 4) {
    uint32_t word = 0;
    for (size_t s = 0; s < kParts; ++s) {
      word |= load_word(levels + d + 4 * s) << (nbits * s);
    }
    store_word(codes, word);
  }
}

template <unsigned nbits>
void unpack_levels(const uint8_t* codes, size_t dim, uint8_t* levels) {
  constexpr size_t kParts = 8 / nbits;
  constexpr uint32_t kMask = ((1u << nbits) - 1) * 0x01010101u;
  for (size_t d = 0; d < dim; d += 4 * kParts, codes += 4) {
    const uint32_t word = load_word(codes);
    for (size_t s = 0; s < kParts; ++s) {
      store_word(levels + d + 4 * s, (word >> (nbits * s)) & kMask);
    }
  }
}

}  // namespace

void pack(const uint8_t* levels, size_t dim, unsigned nbits, uint8_t* codes) {
  switch (nbits) {
    case 1:
      return pack_levels<1>(levels, dim, codes);
    case 2:
      return pack_levels<2>(levels, dim, codes);
    case 4:
      return pack_levels<4>(levels, dim, codes);
    default:
      std::memcpy(codes, levels, dim);
  }
}

void unpack(const uint8_t* codes, size_t dim, unsigned nbits, uint8_t* levels) {
  switch (nbits) {
    case 1:
      return unpack_levels<1>(codes, dim, levels);
    case 2:
      return unpack_levels<2>(codes, dim, levels);
    case 4:
      return unpack_levels<4>(codes, dim, levels);
    default:
      std::memcpy(levels, codes, dim);
  }
}

void code_row(const int8_t* row, size_t dim, unsigned nbits, int8_t* planes) {
  const size_t n_slots = 8 / nbits;
  std::fill_n(planes, planes_size(dim, nbits), int8_t{0});
  for (size_t d = 0; d < dim; d += 4) {
    const size_t slot = d / 4 % n_slots;
    const size_t byte = d / (4 * n_slots) * 4;
    std::memcpy(planes + (byte / 64 * n_slots + slot) * 64 + byte % 64, row + d, 4);
  }
}

void merge_planes(const uint8_t* upper, const uint8_t* lower, size_t dim, uint8_t* out) {
  constexpr uint32_t kLow = 0x0f0f0f0fu;
  for (size_t d = 0; d < dim; d += 8, upper += 4, lower += 4) {
    const uint32_t u = load_word(upper);
    const uint32_t l = load_word(lower);
    // 12 * 15 + 15 = 195 fits a byte: nothing carries into the neighbour.
    store_word(out + d, (u & kLow) * kPlaneRatio + (l & kLow));
    store_word(out + d + 4, (u >> 4 & kLow) * kPlaneRatio + (l >> 4 & kLow));
  }
}

}  // namespace weft
