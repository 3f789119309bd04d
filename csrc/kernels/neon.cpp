// SPDX-License-Identifier: Apache-2.0
//
// Armv8.2-A with the dot product (Cortex-A55/A75, Neoverse, Apple): a group is four registers. SDOT
// multiplies s8 by s8, so signed rows are used as they lie; 8-bit codes are moved by 128.
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define WEFT_INLINE [[gnu::always_inline]] inline

namespace weft::kernels {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kGroups = 1;

struct Ints {
  int32x4_t v[4];
};
struct Floats {
  float32x4_t v[4];
};
struct Quads {
  int8x16_t v[4];
};
using Bytes = uint8x16_t;
using Word = int8x16_t;

/// One loop for every operation: a register at a time.
template <class Vector, class Register>
WEFT_INLINE Vector each(const Register& compute) {
  Vector out;
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) out.v[i] = compute(i);
  return out;
}

WEFT_INLINE Quads load_quads(const int8_t* p) {
  return each<Quads>([&](int i) { return vld1q_s8(p + 16 * i); });
}
WEFT_INLINE Word broadcast_word(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}
WEFT_INLINE Ints dot(const Ints& sum, const Quads& tile, Word row) {
  return each<Ints>([&](int i) { return vdotq_s32(sum.v[i], tile.v[i], row); });
}
WEFT_INLINE int32_t byte_dot(const int8_t* x, const int8_t* row, size_t dim) {
  int32x4_t low = vdupq_n_s32(0);
  int32x4_t high = vdupq_n_s32(0);
  for (size_t d = 0; d < dim; d += 32) {
    low = vdotq_s32(low, vld1q_s8(x + d), vld1q_s8(row + d));
    high = vdotq_s32(high, vld1q_s8(x + d + 16), vld1q_s8(row + d + 16));
  }
  return vaddvq_s32(vaddq_s32(low, high));
}

WEFT_INLINE Ints load_ints(const int32_t* p) {
  return each<Ints>([&](int i) { return vld1q_s32(p + 4 * i); });
}
WEFT_INLINE Ints load_shorts(const int16_t* p) {
  return each<Ints>([&](int i) { return vmovl_s16(vld1_s16(p + 4 * i)); });
}
WEFT_INLINE void store(int32_t* p, const Ints& a) {
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.v[i]);
}
WEFT_INLINE void store_shorts(int16_t* p, const Ints& a) {
  for (int i = 0; i < 4; ++i) vst1_s16(p + 4 * i, vmovn_s32(a.v[i]));
}
WEFT_INLINE void store_bytes(void* p, const Ints& a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(static_cast<int8_t*>(p), vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
WEFT_INLINE Ints fill(int32_t a) {
  return each<Ints>([&](int) { return vdupq_n_s32(a); });
}
WEFT_INLINE Ints add(const Ints& a, const Ints& b) {
  return each<Ints>([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
}
WEFT_INLINE Ints sub(const Ints& a, const Ints& b) {
  return each<Ints>([&](int i) { return vsubq_s32(a.v[i], b.v[i]); });
}
WEFT_INLINE Ints mul(const Ints& a, const Ints& b) {
  return each<Ints>([&](int i) { return vmulq_s32(a.v[i], b.v[i]); });
}
WEFT_INLINE Ints both(const Ints& a, const Ints& b) {
  return each<Ints>([&](int i) { return vandq_s32(a.v[i], b.v[i]); });
}
WEFT_INLINE Ints larger(const Ints& a, const Ints& b) {
  return each<Ints>([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); });
}
WEFT_INLINE Ints smaller(const Ints& a, const Ints& b) {
  return each<Ints>([&](int i) { return vminq_s32(a.v[i], b.v[i]); });
}
WEFT_INLINE Ints shift_right(const Ints& a, unsigned n) {
  const int32x4_t left = vdupq_n_s32(-static_cast<int32_t>(n));
  return each<Ints>([&](int i) { return vshlq_s32(a.v[i], left); });
}
WEFT_INLINE unsigned at_least(const Ints& a, const Ints& b) {
  const uint32x4_t bits = {1, 2, 4, 8};
  unsigned mask = 0;
  for (int i = 0; i < 4; ++i) {
    mask |= vaddvq_u32(vandq_u32(vcgeq_s32(a.v[i], b.v[i]), bits)) << (4 * i);
  }
  return mask;
}

WEFT_INLINE int32_t sum(const Ints& a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
/// SDOT takes a code for signed: a byte goes as two nibbles.
template <unsigned kBits>
WEFT_INLINE Ints code_dot(const Ints& sums, const uint8_t* codes, const int8_t* planes) {
  constexpr unsigned kPart = kBits == 8 ? 4 : kBits;
  const uint8x16_t mask = vdupq_n_u8((1 << kPart) - 1);
  return each<Ints>([&](int i) {
    const uint8x16_t bytes = vld1q_u8(codes + 16 * i);
    int32x4_t total = sums.v[i];
    _Pragma("GCC unroll 8") for (unsigned slot = 0; slot < 8 / kPart; ++slot) {
      const int8x16_t right = vdupq_n_s8(static_cast<int8_t>(-static_cast<int>(kPart * slot)));
      const int8x16_t levels = vreinterpretq_s8_u8(vandq_u8(vshlq_u8(bytes, right), mask));
      const int8x16_t x = vld1q_s8(planes + 16 * i + (kBits == 8 ? 0 : 64 * slot));
      if (kBits == 8 && slot == 1) {
        total = vaddq_s32(total, vshlq_n_s32(vdotq_s32(vdupq_n_s32(0), levels, x), 4));
      } else {
        total = vdotq_s32(total, levels, x);
      }
    }
    return total;
  });
}

WEFT_INLINE Floats load_floats(const float* p) {
  return each<Floats>([&](int i) { return vld1q_f32(p + 4 * i); });
}
WEFT_INLINE Floats load_halves(const uint16_t* p) {
  return each<Floats>(
      [&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
WEFT_INLINE void store(float* p, const Floats& a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
WEFT_INLINE void store_halves(uint16_t* p, const Floats& a) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
WEFT_INLINE Floats fill(float a) {
  return each<Floats>([&](int) { return vdupq_n_f32(a); });
}
WEFT_INLINE Floats sub(const Floats& a, const Floats& b) {
  return each<Floats>([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
}
WEFT_INLINE Floats add(const Floats& a, const Floats& b) {
  return each<Floats>([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
}
WEFT_INLINE Floats mul(const Floats& a, const Floats& b) {
  return each<Floats>([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
}
WEFT_INLINE Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  return each<Floats>([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
}
WEFT_INLINE Floats larger(const Floats& a, const Floats& b) {
  return each<Floats>([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
WEFT_INLINE Floats smaller(const Floats& a, const Floats& b) {
  return each<Floats>([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
}
WEFT_INLINE Floats round(const Floats& a) {
  return each<Floats>([&](int i) { return vrndnq_f32(a.v[i]); });
}
WEFT_INLINE Ints to_ints(const Floats& a) {
  return each<Ints>([&](int i) { return vcvtnq_s32_f32(a.v[i]); });
}
WEFT_INLINE Floats to_floats(const Ints& a) {
  return each<Floats>([&](int i) { return vcvtq_f32_s32(a.v[i]); });
}
WEFT_INLINE float sum(const Floats& a) {
  const float32x4_t low = vaddq_f32(a.v[0], a.v[2]);
  const float32x4_t high = vaddq_f32(a.v[1], a.v[3]);
  const float32x4_t four = vaddq_f32(low, high);
  return vaddv_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}

WEFT_INLINE Bytes load_bytes(const uint8_t* p) { return vld1q_u8(p); }
WEFT_INLINE void store_bytes(uint8_t* p, Bytes a) { vst1q_u8(p, a); }
WEFT_INLINE Bytes larger(Bytes a, Bytes b) { return vmaxq_u8(a, b); }
WEFT_INLINE unsigned any_at_least(Bytes a, Bytes b) { return vmaxvq_u8(vcgeq_u8(a, b)); }
WEFT_INLINE uint32_t sum(Bytes a) { return vaddlvq_u8(a); }

struct SignedRow {
  static constexpr size_t kStaged = 0;
  static constexpr int32_t kOffset = 0;
};
struct WideRow {
  static constexpr size_t kStaged = 1;
  static constexpr int32_t kOffset = -128;
  WEFT_INLINE static void stage(const uint8_t* in, uint8_t* out) {
    const uint8x16_t sign = vdupq_n_u8(0x80);
    vst1q_u8(out, veorq_u8(vld1q_u8(in), sign));
    vst1q_u8(out + 16, veorq_u8(vld1q_u8(in + 16), sign));
  }
};

/// Output word i is input word i / p shifted by nbits * (i % p), p = 8 / nbits.
template <unsigned kBits>
WEFT_INLINE void expand_codes(const uint8_t* code, uint8_t* out) {
  constexpr int kPerByte = 8 / kBits;
  const uint8x16_t mask = vdupq_n_u8((1 << kBits) - 1);
  uint32x4_t halves[2];
  if constexpr (kBits == 4) {
    const uint8x16_t bytes = vld1q_u8(code);
    const uint32x4_t lower = vreinterpretq_u32_u8(bytes);
    const uint32x4_t upper = vreinterpretq_u32_u8(vshrq_n_u8(bytes, 4));
    halves[0] = vzip1q_u32(lower, upper);
    halves[1] = vzip2q_u32(lower, upper);
  } else {
    for (int i = 0; i < 2; ++i) {
      uint32_t word;
      __builtin_memcpy(&word, code + 4 * (4 * i / kPerByte), sizeof(word));
      const int32x4_t slots = vaddq_s32(int32x4_t{0, 1, 2, 3}, vdupq_n_s32(4 * i % kPerByte));
      const int32x4_t left = vmulq_n_s32(slots, -static_cast<int32_t>(kBits));
      halves[i] = vshlq_u32(vdupq_n_u32(word), left);
    }
  }
  vst1q_u8(out, vandq_u8(vreinterpretq_u8_u32(halves[0]), mask));
  vst1q_u8(out + 16, vandq_u8(vreinterpretq_u8_u32(halves[1]), mask));
}

#include "kernels/generic.inl"

}  // namespace

extern const Kernels neon_table;
constinit const Kernels neon_table = table_named<WordDots, WordDots, WordDots>("neon");

}  // namespace weft::kernels
