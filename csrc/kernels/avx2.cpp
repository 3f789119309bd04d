// SPDX-License-Identifier: Apache-2.0
//
// AVX2 with FMA and F16C: a group is two registers. VPMADDUBSW adds pairs of u8 * s8 products with
// 16-bit saturation, and widening its result to 32 bits costs a second multiplication, both on the
// same two ports. Signed bytes: the tile is moved by 128 and the rows are the s8 side, so that
// nothing saturates unless two neighbours in a row are extreme together; see Block. Codes are cut
// into nibbles: eight words of those fit 16 bits, 8 * 2 * 15 * 127 = 30,480, and are widened
// together; 8-bit codes are two planes, for their bytes are extreme too often for the first way.
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

#define WEFT_INLINE [[gnu::always_inline]] inline
#define WEFT_OWN_DOTS

namespace weft::kernels {
namespace {

constexpr size_t kRows = 4;
constexpr size_t kGroups = 1;

struct Ints {
  __m256i lo, hi;
};
struct Floats {
  __m256 lo, hi;
};
using Quads = Ints;
using Bytes = __m128i;
WEFT_INLINE __m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
WEFT_INLINE __m128i load128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
WEFT_INLINE void store256(void* p, __m256i a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
WEFT_INLINE void store128(void* p, __m128i a) { _mm_storeu_si128(static_cast<__m128i*>(p), a); }
WEFT_INLINE __m256i broadcast(const uint8_t* p) {
  int32_t word;
  __builtin_memcpy(&word, p, sizeof(word));
  return _mm256_set1_epi32(word);
}

WEFT_INLINE Quads load_quads(const int8_t* p) { return {load256(p), load256(p + 32)}; }
WEFT_INLINE int32_t sum_of(__m256i a) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
WEFT_INLINE int32_t byte_dot(const int8_t* x, const int8_t* row, size_t dim) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sums = _mm256_setzero_si256();
  for (size_t d = 0; d < dim; d += 32) {
    const __m256i value = load256(row + d);
    const __m256i signs = _mm256_sign_epi8(load256(x + d), value);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(value), signs);
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
  }
  return sum_of(sums);
}

WEFT_INLINE Ints load_ints(const int32_t* p) { return {load256(p), load256(p + 8)}; }
WEFT_INLINE Ints load_shorts(const int16_t* p) {
  return {_mm256_cvtepi16_epi32(load128(p)), _mm256_cvtepi16_epi32(load128(p + 8))};
}
WEFT_INLINE void store(int32_t* p, Ints a) {
  store256(p, a.lo);
  store256(p + 8, a.hi);
}
/// The low halves of both registers' words, in order.
WEFT_INLINE __m256i low_halves(Ints a) {
  const __m256i mask = _mm256_set1_epi32(0xffff);
  const __m256i mixed =
      _mm256_packus_epi32(_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask));
  return _mm256_permute4x64_epi64(mixed, 0xd8);
}
WEFT_INLINE void store_shorts(int16_t* p, Ints a) { store256(p, low_halves(a)); }
WEFT_INLINE void store_bytes(void* p, Ints a) {
  const __m256i bytes = _mm256_and_si256(low_halves(a), _mm256_set1_epi16(0xff));
  store128(p, _mm_packus_epi16(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
WEFT_INLINE Ints fill(int32_t a) { return {_mm256_set1_epi32(a), _mm256_set1_epi32(a)}; }
WEFT_INLINE Ints add(Ints a, Ints b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
WEFT_INLINE Ints sub(Ints a, Ints b) {
  return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)};
}
WEFT_INLINE Ints mul(Ints a, Ints b) {
  return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
WEFT_INLINE Ints both(Ints a, Ints b) {
  return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
WEFT_INLINE Ints larger(Ints a, Ints b) {
  return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
}
WEFT_INLINE Ints smaller(Ints a, Ints b) {
  return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)};
}
WEFT_INLINE Ints shift_right(Ints a, unsigned n) {
  const __m128i count = _mm_cvtsi32_si128(static_cast<int>(n));
  return {_mm256_sra_epi32(a.lo, count), _mm256_sra_epi32(a.hi, count)};
}
WEFT_INLINE unsigned at_least(Ints a, Ints b) {
  const __m256 lo = _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.lo, a.lo));
  const __m256 hi = _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.hi, a.hi));
  const int below = _mm256_movemask_ps(lo) | _mm256_movemask_ps(hi) << 8;
  return static_cast<unsigned>(~below & 0xffff);
}

WEFT_INLINE int32_t sum(Ints a) { return sum_of(_mm256_add_epi32(a.lo, a.hi)); }
/// Half of code_dot(): 32 bytes. Slots add up to 8 * 2 * 127, 4 * 6 * 127 or 2 * 30 * 127 at most; a byte's
/// two nibbles are widened apart.
template <unsigned kBits>
WEFT_INLINE __m256i half_code_dot(__m256i sums, const uint8_t* codes, const int8_t* planes) {
  constexpr unsigned kPart = kBits == 8 ? 4 : kBits;
  const __m256i bytes = load256(codes);
  const __m256i mask = _mm256_set1_epi8((1 << kPart) - 1);
  __m256i pairs = _mm256_setzero_si256();
  _Pragma("GCC unroll 8") for (unsigned slot = 0; slot < 8 / kPart; ++slot) {
    const __m256i levels =
        _mm256_and_si256(_mm256_srli_epi16(bytes, static_cast<int>(kPart * slot)), mask);
    const __m256i x = load256(planes + (kBits == 8 ? 0 : 64 * slot));
    const __m256i products = _mm256_maddubs_epi16(levels, x);
    if (kBits == 8) {
      const __m256i weight = _mm256_set1_epi16(slot == 0 ? 1 : 16);
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(products, weight));
    } else {
      pairs = _mm256_add_epi16(pairs, products);
    }
  }
  if (kBits == 8) return sums;
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
template <unsigned kBits>
WEFT_INLINE Ints code_dot(Ints sums, const uint8_t* codes, const int8_t* planes) {
  return {half_code_dot<kBits>(sums.lo, codes, planes),
          half_code_dot<kBits>(sums.hi, codes + 32, planes + 32)};
}

WEFT_INLINE Floats load_floats(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
WEFT_INLINE Floats load_halves(const uint16_t* p) {
  return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))};
}
WEFT_INLINE void store(float* p, Floats a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
WEFT_INLINE void store_halves(uint16_t* p, Floats a) {
  store128(p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  store128(p + 8, _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
WEFT_INLINE Floats fill(float a) { return {_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
WEFT_INLINE Floats add(Floats a, Floats b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
WEFT_INLINE Floats sub(Floats a, Floats b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
WEFT_INLINE Floats mul(Floats a, Floats b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
WEFT_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
WEFT_INLINE Floats larger(Floats a, Floats b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
WEFT_INLINE Floats smaller(Floats a, Floats b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
WEFT_INLINE Floats round(Floats a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
WEFT_INLINE Ints to_ints(Floats a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
WEFT_INLINE Floats to_floats(Ints a) {
  return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)};
}
WEFT_INLINE float sum(Floats a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

WEFT_INLINE Bytes load_bytes(const uint8_t* p) { return load128(p); }
WEFT_INLINE void store_bytes(uint8_t* p, Bytes a) { store128(p, a); }
WEFT_INLINE Bytes larger(Bytes a, Bytes b) { return _mm_max_epu8(a, b); }
WEFT_INLINE unsigned any_at_least(Bytes a, Bytes b) {
  return static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(a, b), a)));
}
WEFT_INLINE uint32_t sum(Bytes a) {
  const __m128i two = _mm_sad_epu8(a, _mm_setzero_si128());
  return static_cast<uint32_t>(_mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2));
}

/// Sums of two neighbouring bytes.
WEFT_INLINE __m256i pair_sums(__m256i bytes) {
  return _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
}
WEFT_INLINE __m256i crowded(__m256i pairs) {
  return _mm256_cmpgt_epi16(_mm256_abs_epi16(pairs), _mm256_set1_epi16(128));
}
WEFT_INLINE __m256i times_128(__m256i pairs) {
  return _mm256_madd_epi16(pairs, _mm256_set1_epi16(128));
}

/// Rows whose sums are in registers together: signed bytes, of which no two neighbours add up to
/// more than 128 either way, so that 255 times them fits 16 bits. Where a row has such a crowded
/// pair (few have one of centroids, which are near to normal), the second byte is taken out of the
/// row, to be multiplied on its own.
struct Block {
  const uint8_t* rows[kRows];
  int32_t starts[kRows];  // -128 * the sum of the row, which takes the tile back to where it was
  bool thinned;           // something was taken out of one of them
  size_t n_taken[kRows];  // words of the row that something was taken out of; behind such a row lie

  /// what was taken out, in its place and 0 elsewhere,
  const uint8_t* taken(size_t r, size_t dim) const { return rows[r] + dim; }
  /// and the offsets of those words.
  const uint16_t* places(size_t r, size_t dim) const {
    return reinterpret_cast<const uint16_t*>(rows[r] + 2 * dim);
  }

  template <class Row, size_t kR>
  WEFT_INLINE void stage(size_t dim, uint8_t* out) {
    Row::template stage<kR>(*this, dim, out);
  }

  /// Moves row r to `out`, and what is taken out of it behind.
  [[gnu::noinline]] void thin_out(size_t r, size_t dim, uint8_t* out) {
    auto* words = reinterpret_cast<uint16_t*>(out + 2 * dim);
    __m256i sums = _mm256_setzero_si256();
    size_t n = 0;
    for (size_t d = 0; d < dim; d += 32) {
      const __m256i bytes = load256(rows[r] + d);
      const __m256i pairs = pair_sums(bytes);
      const __m256i second = _mm256_and_si256(bytes, _mm256_slli_epi16(crowded(pairs), 8));
      sums = _mm256_add_epi32(sums, times_128(pairs));
      store256(out + d, _mm256_xor_si256(bytes, second));
      store256(out + dim + d, second);
      auto bits = static_cast<unsigned>(_mm256_movemask_epi8(crowded(pairs)));
      while (bits != 0) {
        const unsigned word = static_cast<unsigned>(__builtin_ctz(bits)) / 4;
        words[n++] = static_cast<uint16_t>(d + 4 * word);
        bits &= ~(15u << 4 * word);
      }
    }
    rows[r] = out;
    starts[r] = -sum_of(sums);
    n_taken[r] = n;
  }
};

struct SignedRow {
  static constexpr size_t kStaged = 3;
  static constexpr int32_t kOffset = 0;

  template <size_t kR>
  WEFT_INLINE static void stage(Block& block, size_t dim, uint8_t* out) {
    __m256i sums[kR];
    __m256i widest[kR];
    for (size_t r = 0; r < kR; ++r) sums[r] = widest[r] = _mm256_setzero_si256();
    for (size_t d = 0; d < dim; d += 32) {
#pragma GCC unroll 4
      for (size_t r = 0; r < kR; ++r) {
        const __m256i pairs = pair_sums(load256(block.rows[r] + d));
        sums[r] = _mm256_add_epi16(sums[r], pairs);  // 129 * 128 at most where none is crowded
        widest[r] = _mm256_max_epi16(widest[r], _mm256_abs_epi16(pairs));
      }
    }
    __m256i all = widest[0];
#pragma GCC unroll 4
    for (size_t r = 0; r < kR; ++r) {
      block.starts[r] = -sum_of(times_128(sums[r]));
      all = _mm256_max_epi16(all, widest[r]);
    }
    block.thinned = _mm256_movemask_epi8(crowded(all)) != 0;
    if (!block.thinned) return;
#pragma GCC unroll 4
    for (size_t r = 0; r < kR; ++r) {
      block.n_taken[r] = 0;
      if (_mm256_movemask_epi8(crowded(widest[r])) != 0) {
        block.thin_out(r, dim, out + r * kStaged * dim);
      }
    }
  }
};

/// A byte becomes its lower and its upper nibble, 32 bytes of each.
struct WideRow {
  static constexpr size_t kStaged = 2;
  static constexpr int32_t kOffset = 0;

  template <size_t kR>
  WEFT_INLINE static void stage(Block& block, size_t dim, uint8_t* out) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (size_t r = 0; r < kR; ++r, out += kStaged * dim) {
      for (size_t d = 0; d < dim; d += 32) {
        const __m256i bytes = load256(block.rows[r] + d);
        store256(out + kStaged * d, _mm256_and_si256(bytes, mask));
        store256(out + kStaged * d + 32, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask));
      }
      block.rows[r] = out;
    }
  }
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

#include "kernels/generic.inl"

/// Dots of signed bytes.
struct ByteDots {
  static constexpr bool kHalves = false;

  /// Tile bytes as u8: they move by 128.
  WEFT_INLINE static Quads load_moved(const int8_t* p) {
    const __m256i flip = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(load256(p), flip), _mm256_xor_si256(load256(p + 32), flip)};
  }
  WEFT_INLINE static void add_word(Ints& sums, Quads quads, __m256i word) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i lo = _mm256_madd_epi16(_mm256_maddubs_epi16(quads.lo, word), ones);
    const __m256i hi = _mm256_madd_epi16(_mm256_maddubs_epi16(quads.hi, word), ones);
    sums = add(sums, {lo, hi});
    asm("" : "+x"(sums.lo), "+x"(sums.hi));  // or gcc regroups the sums and spills
  }

  template <size_t kR, size_t kG, bool kHalf>
  WEFT_INLINE static void run(const ByteTile& tile, size_t group, const Block& block,
                              Ints (&acc)[kR][kG]) {
    const int8_t* quads = tile.data + group * tile.dim * kLanes;
    WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
      acc[r][0] = add(acc[r][0], fill(block.starts[r]));
    }
    for (size_t d = 0; d < tile.dim; d += kChunk) {
      WEFT_UNROLL for (size_t i = 0; i < kChunk; i += 4) {
        const Quads q = load_moved(quads + (d + i) * kLanes);
        WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
          add_word(acc[r][0], q, broadcast(block.rows[r] + d + i));
        }
      }
    }
    if (!block.thinned) return;
    WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
      for (size_t i = 0; i < block.n_taken[r]; ++i) {
        const size_t d = block.places(r, tile.dim)[i];
        add_word(acc[r][0], load_moved(quads + d * kLanes),
                 broadcast(block.taken(r, tile.dim) + d));
      }
    }
  }
};

/// Dots of rows that were staged as `kPlanes` planes of nibbles.
template <size_t kPlanes>
struct NibbleDots {
  static constexpr bool kHalves = false;

  template <size_t kR, size_t kG, bool kHalf>
  WEFT_INLINE static void run(const ByteTile& tile, size_t group, const Block& block,
                              Ints (&acc)[kR][kG]) {
    constexpr size_t kOnce = kPlanes == 1 ? kR : 2;  // rows whose sums fit the registers
    const int8_t* quads = tile.data + group * tile.dim * kLanes;
    WEFT_UNROLL for (size_t first = 0; first < kR; first += kOnce) {
      for (size_t d = 0; d < tile.dim; d += kChunk) {
        Ints narrow[kOnce][kPlanes];
        WEFT_UNROLL for (size_t r = 0; r < kOnce; ++r) {
          WEFT_UNROLL for (size_t p = 0; p < kPlanes; ++p) narrow[r][p] = fill(0);
        }
        WEFT_UNROLL for (size_t i = 0; i < kChunk; i += 4) {
          const Quads q = load_quads(quads + (d + i) * kLanes);
          WEFT_UNROLL for (size_t r = 0; r < kOnce; ++r) {
            WEFT_UNROLL for (size_t p = 0; p < kPlanes; ++p) {
              const __m256i word = broadcast(block.rows[first + r] + d * kPlanes + p * kChunk + i);
              Ints& sums = narrow[r][p];
              sums.lo = _mm256_add_epi16(sums.lo, _mm256_maddubs_epi16(word, q.lo));
              sums.hi = _mm256_add_epi16(sums.hi, _mm256_maddubs_epi16(word, q.hi));
              asm("" : "+x"(sums.lo), "+x"(sums.hi));  // or gcc regroups the sums and spills
            }
          }
        }
        WEFT_UNROLL for (size_t r = 0; r < kOnce; ++r) {
          WEFT_UNROLL for (size_t p = 0; p < kPlanes; ++p) {
            const __m256i weight = _mm256_set1_epi16(p == 0 ? 1 : 16);
            acc[first + r][0] =
                add(acc[first + r][0], {_mm256_madd_epi16(narrow[r][p].lo, weight),
                                        _mm256_madd_epi16(narrow[r][p].hi, weight)});
          }
        }
      }
    }
  }
};

}  // namespace

extern const Kernels avx2_table;
constinit const Kernels avx2_table =
    table_named<ByteDots, ByteDots, NibbleDots<1>, NibbleDots<2>>("avx2");

}  // namespace weft::kernels
