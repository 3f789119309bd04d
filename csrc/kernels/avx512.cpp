// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): a group is one register. VPDPBUSD
// multiplies u8 by s8, so signed rows are moved by 128 and the sums start at -128 * sum of the
// lane; codes are unsigned as they are.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12 on its own _mm512_undefined_*()
#endif
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define WEFT_INLINE [[gnu::always_inline]] inline

namespace weft::kernels {
namespace {

constexpr size_t kRows = 8;
constexpr size_t kGroups = 2;

using Ints = __m512i;
using Floats = __m512;
using Bytes = __m128i;
using Quads = __m512i;
using Word = __m512i;

WEFT_INLINE Quads load_quads(const int8_t* p) { return _mm512_loadu_si512(p); }
WEFT_INLINE Word broadcast_word(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm512_set1_epi32(word);
}
WEFT_INLINE Ints dot(Ints sum, Quads tile, Word row) { return _mm512_dpbusd_epi32(sum, row, tile); }

WEFT_INLINE Ints load_ints(const int32_t* p) { return _mm512_loadu_si512(p); }
WEFT_INLINE Ints load_shorts(const int16_t* p) {
  return _mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
WEFT_INLINE void store(int32_t* p, Ints a) { _mm512_storeu_si512(p, a); }
WEFT_INLINE void store_shorts(int16_t* p, Ints a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a));
}
WEFT_INLINE void store_bytes(void* p, Ints a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
}
WEFT_INLINE Ints fill(int32_t a) { return _mm512_set1_epi32(a); }
WEFT_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
WEFT_INLINE Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
WEFT_INLINE Ints mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
WEFT_INLINE Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
WEFT_INLINE Ints larger(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
WEFT_INLINE Ints smaller(Ints a, Ints b) { return _mm512_min_epi32(a, b); }
WEFT_INLINE Ints shift_right(Ints a, unsigned n) {
  return _mm512_sra_epi32(a, _mm_cvtsi32_si128(static_cast<int>(n)));
}
WEFT_INLINE unsigned at_least(Ints a, Ints b) { return _mm512_cmpge_epi32_mask(a, b); }
WEFT_INLINE int32_t sum(Ints a) { return _mm512_reduce_add_epi32(a); }
template <unsigned kBits>
WEFT_INLINE Ints code_dot(Ints sums, const uint8_t* codes, const int8_t* planes) {
  const __m512i bytes = _mm512_loadu_si512(codes);
  const __m512i mask = _mm512_set1_epi8(static_cast<char>((1u << kBits) - 1));
  _Pragma("GCC unroll 8") for (unsigned slot = 0; slot < 8 / kBits; ++slot) {
    const __m512i levels = _mm512_and_si512(_mm512_srli_epi16(bytes, kBits * slot), mask);
    sums = _mm512_dpbusd_epi32(sums, levels, _mm512_load_si512(planes + 64 * slot));
  }
  return sums;
}

WEFT_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
WEFT_INLINE Floats load_halves(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
WEFT_INLINE void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
WEFT_INLINE void store_halves(uint16_t* p, Floats a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
WEFT_INLINE Floats fill(float a) { return _mm512_set1_ps(a); }
WEFT_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
WEFT_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
WEFT_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
WEFT_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
WEFT_INLINE Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
WEFT_INLINE Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
WEFT_INLINE Floats round(Floats a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
WEFT_INLINE Ints to_ints(Floats a) { return _mm512_cvtps_epi32(a); }
WEFT_INLINE Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
WEFT_INLINE float sum(Floats a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

WEFT_INLINE Bytes load_bytes(const uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
WEFT_INLINE void store_bytes(uint8_t* p, Bytes a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), a);
}
WEFT_INLINE Bytes larger(Bytes a, Bytes b) { return _mm_max_epu8(a, b); }
WEFT_INLINE unsigned any_at_least(Bytes a, Bytes b) {
  return static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(a, b), a)));
}
WEFT_INLINE uint32_t sum(Bytes a) {
  const __m128i two = _mm_sad_epu8(a, _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2));
}

struct SignedRow {
  static constexpr size_t kStaged = 1;
  static constexpr int32_t kOffset = 128;
  WEFT_INLINE static void stage(const uint8_t* in, uint8_t* out) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)));
  }
};
struct WideRow {
  static constexpr size_t kStaged = 0;
  static constexpr int32_t kOffset = 0;
};

/// 32 codes of kBits bits: 16, 8 or 4 bytes.
template <unsigned kBits>
WEFT_INLINE __m128i load_code(const uint8_t* code) {
  if constexpr (kBits == 4) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(code));
  if constexpr (kBits == 2) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(code));
  int32_t word;
  __builtin_memcpy(&word, code, sizeof(word));
  return _mm_cvtsi32_si128(word);
}

/// Output word i is input word i / p shifted by nbits * (i % p), p = 8 / nbits.
template <unsigned kBits>
WEFT_INLINE void expand_codes(const uint8_t* code, uint8_t* out) {
  constexpr int kPerByte = 8 / kBits;
  const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i slots = _mm256_and_si256(numbers, _mm256_set1_epi32(kPerByte - 1));
  const __m256i sources = _mm256_srli_epi32(numbers, kPerByte == 2 ? 1 : kPerByte == 4 ? 2 : 3);
  const __m256i shifts = _mm256_mullo_epi32(slots, _mm256_set1_epi32(kBits));
  const __m256i from = _mm256_castsi128_si256(load_code<kBits>(code));
  const __m256i spread = _mm256_srlv_epi32(_mm256_permutevar8x32_epi32(from, sources), shifts);
  const __m256i bytes = _mm256_and_si256(spread, _mm256_set1_epi8((1 << kBits) - 1));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
}

WEFT_INLINE int32_t byte_dot(const int8_t* x, const int8_t* row, size_t dim) {
  __m256i sums = _mm256_setzero_si256();
  __m256i row_sums = _mm256_setzero_si256();
  for (size_t d = 0; d < dim; d += 32) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + d));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + d));
    sums = _mm256_dpbusd_epi32(sums, _mm256_xor_si256(b, _mm256_set1_epi8(-128)), a);
    row_sums = _mm256_dpbusd_epi32(row_sums, _mm256_set1_epi8(1), a);
  }
  const __m256i eight = _mm256_sub_epi32(sums, _mm256_slli_epi32(row_sums, 7));
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

#include "kernels/generic.inl"

/// WordDots, but the upper eight lanes of the last group are left alone where they are padding: half a
/// register costs half as much on processors that split 512 bits.
struct HalfDots {
  static constexpr bool kHalves = true;

  template <size_t kR, size_t kG, bool kHalf>
  WEFT_INLINE static void run(const ByteTile& tile, size_t group, const Block& block,
                              Ints (&acc)[kR][kG]) {
    if constexpr (!kHalf) {
      WordDots::run<kR, kG, false>(tile, group, block, acc);
    } else {
      const int8_t* quads = tile.data + group * tile.dim * kLanes;
      const int8_t* last = quads + (kG - 1) * tile.dim * kLanes;
      __m256i sums[kR];
      WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
        sums[r] = _mm512_castsi512_si256(acc[r][kG - 1]);
      }
      for (size_t d = 0; d < tile.dim; d += kChunk) {
        WEFT_UNROLL for (size_t i = 0; i < kChunk; i += 4) {
          const __m256i half =
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(last + (d + i) * kLanes));
          WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
            const Word word = broadcast_word(block.rows[r] + d + i);
            sums[r] = _mm256_dpbusd_epi32(sums[r], _mm512_castsi512_si256(word), half);
            if constexpr (kG == 2) {
              acc[r][0] = dot(acc[r][0], load_quads(quads + (d + i) * kLanes), word);
            }
          }
        }
      }
      WEFT_UNROLL for (size_t r = 0; r < kR; ++r) acc[r][kG - 1] = _mm512_zextsi256_si512(sums[r]);
    }
  }
};

}  // namespace

extern const Kernels avx512_table;
constinit const Kernels avx512_table = table_named<HalfDots, WordDots, HalfDots>("avx512");

}  // namespace weft::kernels
