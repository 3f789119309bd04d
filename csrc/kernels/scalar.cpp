// SPDX-License-Identifier: Apache-2.0
//
// The native reference: plain loops over 16 lanes, compiled without auto-vectorisation. Runs
// anywhere.
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define WEFT_INLINE [[gnu::always_inline]] inline

namespace weft::kernels {
namespace {

constexpr size_t kRows = 1;
constexpr size_t kGroups = 1;

struct Ints {
  int32_t v[kLanes];
};
struct Floats {
  float v[kLanes];
};
struct Bytes {
  uint8_t v[kLanes];
};
struct Quads {
  const int8_t* data;
};
using Word = const uint8_t*;

/// One loop for every lane-wise operation.
template <class Vector, class Lane>
WEFT_INLINE Vector each(const Lane& lane) {
  Vector out;
  for (size_t i = 0; i < kLanes; ++i) out.v[i] = lane(i);
  return out;
}

WEFT_INLINE Quads load_quads(const int8_t* p) { return {p}; }
WEFT_INLINE Word broadcast_word(const uint8_t* p) { return p; }
WEFT_INLINE Ints dot(const Ints& sum, Quads tile, Word row) {
  return each<Ints>([&](size_t i) {
    int32_t lane = sum.v[i];
    for (size_t j = 0; j < 4; ++j) lane += tile.data[4 * i + j] * static_cast<int8_t>(row[j]);
    return lane;
  });
}
WEFT_INLINE int32_t byte_dot(const int8_t* x, const int8_t* row, size_t dim) {
  int32_t sum = 0;
  for (size_t d = 0; d < dim; ++d) sum += x[d] * row[d];
  return sum;
}

WEFT_INLINE Ints load_ints(const int32_t* p) {
  return each<Ints>([&](size_t i) { return p[i]; });
}
WEFT_INLINE Ints load_shorts(const int16_t* p) {
  return each<Ints>([&](size_t i) { return p[i]; });
}
WEFT_INLINE void store(int32_t* p, const Ints& a) {
  for (size_t i = 0; i < kLanes; ++i) p[i] = a.v[i];
}
WEFT_INLINE void store_shorts(int16_t* p, const Ints& a) {
  for (size_t i = 0; i < kLanes; ++i) p[i] = static_cast<int16_t>(a.v[i]);
}
WEFT_INLINE void store_bytes(void* p, const Ints& a) {
  for (size_t i = 0; i < kLanes; ++i) static_cast<uint8_t*>(p)[i] = static_cast<uint8_t>(a.v[i]);
}
WEFT_INLINE Ints fill(int32_t a) {
  return each<Ints>([&](size_t) { return a; });
}
WEFT_INLINE Ints add(const Ints& a, const Ints& b) {
  return each<Ints>(
      [&](size_t i) { return static_cast<int32_t>(uint32_t(a.v[i]) + uint32_t(b.v[i])); });
}
WEFT_INLINE Ints sub(const Ints& a, const Ints& b) {
  return each<Ints>(
      [&](size_t i) { return static_cast<int32_t>(uint32_t(a.v[i]) - uint32_t(b.v[i])); });
}
WEFT_INLINE Ints mul(const Ints& a, const Ints& b) {
  return each<Ints>(
      [&](size_t i) { return static_cast<int32_t>(uint32_t(a.v[i]) * uint32_t(b.v[i])); });
}
WEFT_INLINE Ints both(const Ints& a, const Ints& b) {
  return each<Ints>([&](size_t i) { return a.v[i] & b.v[i]; });
}
WEFT_INLINE Ints larger(const Ints& a, const Ints& b) {
  return each<Ints>([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
WEFT_INLINE Ints smaller(const Ints& a, const Ints& b) {
  return each<Ints>([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
WEFT_INLINE Ints shift_right(const Ints& a, unsigned n) {
  return each<Ints>([&](size_t i) { return a.v[i] >> n; });
}
WEFT_INLINE unsigned at_least(const Ints& a, const Ints& b) {
  unsigned mask = 0;
  for (size_t i = 0; i < kLanes; ++i) mask |= (a.v[i] >= b.v[i] ? 1u : 0u) << i;
  return mask;
}

WEFT_INLINE int32_t sum(const Ints& a) {
  int32_t total = 0;
  for (const int32_t lane : a.v) total += lane;
  return total;
}
template <unsigned kBits>
WEFT_INLINE Ints code_dot(const Ints& sums, const uint8_t* codes, const int8_t* planes) {
  constexpr int kMask = (1 << kBits) - 1;
  return each<Ints>([&](size_t i) {
    int32_t lane = sums.v[i];
    for (size_t j = 4 * i; j < 4 * i + 4; ++j) {
      for (size_t slot = 0; slot < 8 / kBits; ++slot) {
        lane += (codes[j] >> (kBits * slot) & kMask) * planes[64 * slot + j];
      }
    }
    return lane;
  });
}

WEFT_INLINE Floats load_floats(const float* p) {
  return each<Floats>([&](size_t i) { return p[i]; });
}
WEFT_INLINE void store(float* p, const Floats& a) {
  for (size_t i = 0; i < kLanes; ++i) p[i] = a.v[i];
}
WEFT_INLINE Floats fill(float a) {
  return each<Floats>([&](size_t) { return a; });
}
WEFT_INLINE Floats add(const Floats& a, const Floats& b) {
  return each<Floats>([&](size_t i) { return a.v[i] + b.v[i]; });
}
WEFT_INLINE Floats sub(const Floats& a, const Floats& b) {
  return each<Floats>([&](size_t i) { return a.v[i] - b.v[i]; });
}
WEFT_INLINE Floats mul(const Floats& a, const Floats& b) {
  return each<Floats>([&](size_t i) { return a.v[i] * b.v[i]; });
}
WEFT_INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  return each<Floats>([&](size_t i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
WEFT_INLINE Floats larger(const Floats& a, const Floats& b) {
  return each<Floats>([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
WEFT_INLINE Floats smaller(const Floats& a, const Floats& b) {
  return each<Floats>([&](size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
/// Adding 1.5 * 2^23 leaves no fraction bits; good for |a| <= 2^22, and callers stay below 256.
WEFT_INLINE Floats round(const Floats& a) {
  constexpr float kMagic = 12582912.0f;
  return each<Floats>([&](size_t i) { return (a.v[i] + kMagic) - kMagic; });
}
WEFT_INLINE Ints to_ints(const Floats& a) {
  const Floats rounded = round(a);
  return each<Ints>([&](size_t i) { return static_cast<int32_t>(rounded.v[i]); });
}
WEFT_INLINE Floats to_floats(const Ints& a) {
  return each<Floats>([&](size_t i) { return static_cast<float>(a.v[i]); });
}
WEFT_INLINE float sum(Floats a) {
  for (size_t half = kLanes / 2; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  }
  return a.v[0];
}

WEFT_INLINE float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
WEFT_INLINE uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

/// Subnormal halves are multiples of 2^-24; a NaN becomes quiet and keeps its upper payload.
WEFT_INLINE float half_value(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t exponent = half >> 10 & 31u;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return bits_to_float(float_to_bits(magnitude) | sign);
  }
  if (exponent == 31) {
    return bits_to_float(sign | 0x7f800000u | fraction << 13 | (fraction != 0 ? 0x400000u : 0u));
  }
  return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}
WEFT_INLINE uint16_t half_bits(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 65,536 and above
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: adding 1/2 rounds to multiples of 2^-24
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {  // rebias the exponent and round to even; a carry runs into the exponent, up to infinity
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}
WEFT_INLINE Floats load_halves(const uint16_t* p) {
  return each<Floats>([&](size_t i) { return half_value(p[i]); });
}
WEFT_INLINE void store_halves(uint16_t* p, const Floats& a) {
  for (size_t i = 0; i < kLanes; ++i) p[i] = half_bits(a.v[i]);
}

WEFT_INLINE Bytes load_bytes(const uint8_t* p) {
  return each<Bytes>([&](size_t i) { return p[i]; });
}
WEFT_INLINE void store_bytes(uint8_t* p, const Bytes& a) {
  for (size_t i = 0; i < kLanes; ++i) p[i] = a.v[i];
}
WEFT_INLINE unsigned any_at_least(const Bytes& a, const Bytes& b) {
  unsigned any = 0;
  for (size_t i = 0; i < kLanes; ++i) any |= a.v[i] >= b.v[i] ? 1u : 0u;
  return any;
}
WEFT_INLINE Bytes larger(const Bytes& a, const Bytes& b) {
  return each<Bytes>([&](size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
WEFT_INLINE uint32_t sum(const Bytes& a) {
  uint32_t total = 0;
  for (const uint8_t byte : a.v) total += byte;
  return total;
}
struct SignedRow {
  static constexpr size_t kStaged = 0;
  static constexpr int32_t kOffset = 0;
};
struct WideRow {
  static constexpr size_t kStaged = 1;
  static constexpr int32_t kOffset = -128;
  static void stage(const uint8_t* in, uint8_t* out) {
    for (size_t i = 0; i < 32; ++i) out[i] = in[i] ^ 0x80u;
  }
};
template <unsigned kBits>
WEFT_INLINE void expand_codes(const uint8_t* code, uint8_t* out) {
  constexpr size_t kPerByte = 8 / kBits;
  for (size_t i = 0; i < 32; ++i) {
    const size_t word = i / (4 * kPerByte);
    const unsigned shift = static_cast<unsigned>(kBits * (i / 4 % kPerByte));
    out[i] = static_cast<uint8_t>(code[4 * word + i % 4] >> shift & ((1u << kBits) - 1));
  }
}

#include "kernels/generic.inl"

}  // namespace

extern const Kernels scalar_table;
constinit const Kernels scalar_table = table_named<WordDots, WordDots, WordDots>("scalar");

}  // namespace weft::kernels
