// SPDX-License-Identifier: Apache-2.0
//
// Every kernel once, over the vector vocabulary that the including file has defined. Each ISA file
// includes this inside its anonymous namespace, so that no two of them share a symbol.
//
// A vector always has 16 lanes, one group of a tile; a narrow machine uses several registers for
// it.
//
//   Quads    64 tile bytes, four dimensions of 16 lanes      load_quads
//   Word     four bytes of one row, in every lane            broadcast_word
//   Ints     16 x s32   load_ints load_shorts store store_shorts store_bytes (the two narrow ones
//                       truncate) fill add sub mul both larger smaller shift_right (arithmetic)
//                       at_least (bit mask) dot(sum, Quads, Word) byte_dot (see row_dots)
//                       sum code_dot<nbits> (adds the products of 64 bytes of codes and their planes,
//                       in whichever lanes)
//   Floats   16 x f32   load_floats load_halves store store_halves fill add sub mul fma(a, b, c)
//                       larger smaller round to_ints to_floats sum (by halving)
//   Bytes    16 x u8    load_bytes store_bytes larger sum any_at_least (0 or not)
//   expand_codes<nbits> 32 codes to 32 bytes in dimension order
//   SignedRow, WideRow  how the bytes of s8 rows and of 8-bit codes reach dot(): as they lie there
//                       (kStaged = 0), or 32 at a time through stage() into kStaged * 32 bytes,
//                       after which dot() sees them moved by kOffset; AVX2 brings a Block and
//                       Dots of its own instead
//
// larger(a, b) is a > b ? a : b and smaller(a, b) is a < b ? a : b, so a NaN in `a` gives b; round
// and to_ints go to the nearest, ties to even. kRows x kGroups vectors of sums are kept in
// registers.
//
// Nothing overflows: |sum of products| <= 255 * 127 * 4,128 < 2^27, and moving rows by 128 adds at
// most 128 * |sums| <= 128 * 127 * 4,128 < 2^27 in between.

#define WEFT_UNROLL _Pragma("GCC unroll 16")
#define WEFT_PREFETCH(address) __builtin_prefetch(address)

constexpr size_t kMaxDim = 4128;
constexpr size_t kChunk = 32;  // dim is a multiple of it

#include "kernels/tiles.inl"

// ---- Tables, accumulators -----------------------------------------------------------------------

WEFT_INLINE const uint8_t* table_row(const ScoreTable& table, uint32_t parent, uint8_t child) {
  const uint32_t cell = table.cells[parent < table.n_cells ? parent : table.n_cells];
  const size_t row = (cell & 0x7fffffffu) + size_t{child & (0u - (cell >> 31))};
  return table.rows + row * table.groups * kLanes;
}

template <size_t kG>
WEFT_INLINE uint32_t table_best(const ScoreTable& table, size_t group, const uint16_t* parents,
                                const uint8_t* children, size_t n, uint8_t* out) {
  Bytes best[kG];
  WEFT_UNROLL for (size_t g = 0; g < kG; ++g) best[g] = Bytes{};
  for (size_t t = 0; t < n; ++t) {
    const uint8_t* row = table_row(table, parents[t], children[t]) + group * kLanes;
    WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
      best[g] = larger(best[g], load_bytes(row + g * kLanes));
    }
  }
  uint32_t total = 0;
  WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
    store_bytes(out + (group + g) * kLanes, best[g]);
    total += sum(best[g]);
  }
  return total;
}

uint32_t table_maxsim(const ScoreTable& table, const uint16_t* parents, const uint8_t* children,
                      size_t n, uint8_t* best) {
  size_t group = 0;
  uint32_t total = 0;
  for (; group + 4 <= table.groups; group += 4) {
    total += table_best<4>(table, group, parents, children, n, best);
  }
  for (; group + 2 <= table.groups; group += 2) {
    total += table_best<2>(table, group, parents, children, n, best);
  }
  if (group < table.groups) total += table_best<1>(table, group, parents, children, n, best);
  return total;
}

/// kG groups, or as many as the table has for 0.
template <size_t kG>
WEFT_INLINE size_t leaders_of(const ScoreTable& table, const uint16_t* parents,
                              const uint8_t* children, size_t n, const uint8_t* least,
                              uint32_t* leaders) {
  const size_t lanes = (kG > 0 ? kG : table.groups) * kLanes;
  size_t count = 0;
  for (size_t t = 0; t < n; ++t) {
    const uint8_t* row = table_row(table, parents[t], children[t]);
    unsigned reached = 0;
    for (size_t l = 0; l < lanes; l += kLanes) {
      reached |= any_at_least(load_bytes(row + l), load_bytes(least + l));
    }
    leaders[count] = static_cast<uint32_t>(t);
    count += reached != 0 ? 1 : 0;
  }
  return count;
}

size_t table_leaders(const ScoreTable& table, const uint16_t* parents, const uint8_t* children,
                     size_t n, const uint8_t* least, uint32_t* leaders) {
  switch (table.groups) {
    case 1:
      return leaders_of<1>(table, parents, children, n, least, leaders);
    case 2:
      return leaders_of<2>(table, parents, children, n, least, leaders);
    default:
      return leaders_of<0>(table, parents, children, n, least, leaders);
  }
}

template <unsigned kWidth>
WEFT_INLINE uint32_t read_doc(const uint8_t* docs, size_t i, uint32_t limit) {
  const uint8_t* p = docs + i * kWidth;
  uint32_t doc = static_cast<uint32_t>(p[0] | p[1] << 8);
  if constexpr (kWidth == 3) doc |= static_cast<uint32_t>(p[2]) << 16;
  return doc < limit ? doc : limit;
}

template <unsigned kWidth>
WEFT_INLINE void accumulate_of(const uint8_t* docs, size_t n, uint32_t limit, uint32_t gain,
                               uint32_t stamp, uint32_t* words) {
  constexpr size_t kAhead = 16;
  for (size_t i = 0; i < n; ++i) {
    const size_t ahead = i + kAhead < n ? i + kAhead : n - 1;
    WEFT_PREFETCH(words + read_doc<kWidth>(docs, ahead, limit));
    const uint32_t doc = read_doc<kWidth>(docs, i, limit);
    const uint32_t word = words[doc];
    const uint32_t added = ((word + gain) & kSumMask) | stamp << kSumBits;
    words[doc] = word >> kSumBits == stamp ? word : added;
  }
}

void accumulate(const uint8_t* docs, size_t n, unsigned width, uint32_t limit, uint32_t gain,
                uint32_t stamp, uint32_t* words) {
  if (width == 2) {
    accumulate_of<2>(docs, n, limit, gain, stamp, words);
  } else {
    accumulate_of<3>(docs, n, limit, gain, stamp, words);
  }
}

/// Calls visit(i) for every i whose sum is at least `least`, ascending.
template <class Visit>
WEFT_INLINE void visit_sums(const uint32_t* words, size_t n, uint32_t least, const Visit& visit) {
  const Ints bound = fill(static_cast<int32_t>(least));
  const Ints mask = fill(static_cast<int32_t>(kSumMask));
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Ints sums = both(load_ints(reinterpret_cast<const int32_t*>(words + i)), mask);
    for (unsigned hits = at_least(sums, bound); hits != 0; hits &= hits - 1) {
      visit(i + static_cast<size_t>(__builtin_ctz(hits)));
    }
  }
  for (; i < n; ++i) {
    if ((words[i] & kSumMask) >= least) visit(i);
  }
}

void histogram(const uint32_t* words, size_t n, unsigned shift, uint32_t n_bins, uint32_t* bins) {
  visit_sums(words, n, 1, [&](size_t i) {
    const uint32_t bin = (words[i] & kSumMask) >> shift;
    bins[bin < n_bins ? bin : n_bins - 1] += 1;
  });
}

size_t collect(const uint32_t* words, size_t n, uint32_t least, uint32_t* docs) {
  if (least > kSumMask) return 0;
  size_t count = 0;
  visit_sums(words, n, least, [&](size_t i) { docs[count++] = static_cast<uint32_t>(i); });
  return count;
}

// ---- Floats -------------------------------------------------------------------------------------

template <size_t kR, size_t kG>
WEFT_INLINE void float_block(const FloatTile& tile, size_t group, const float* const* rows,
                             float* best) {
  const float* lanes = tile.data + group * tile.dim * kLanes;
  const size_t group_size = tile.dim * kLanes;
  Floats acc[kR][kG];
  WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
    WEFT_UNROLL for (size_t g = 0; g < kG; ++g) acc[r][g] = fill(0.0f);
  }
  for (size_t d = 0; d < tile.dim; ++d) {
    Floats q[kG];
    WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
      q[g] = load_floats(lanes + g * group_size + d * kLanes);
    }
    WEFT_UNROLL for (size_t r = 0; r < kR; ++r) {
      const Floats value = fill(rows[r][d]);
      WEFT_UNROLL for (size_t g = 0; g < kG; ++g) acc[r][g] = fma(q[g], value, acc[r][g]);
    }
  }
  WEFT_UNROLL for (size_t g = 0; g < kG; ++g) {
    Floats top = load_floats(best + (group + g) * kLanes);
    WEFT_UNROLL for (size_t r = 0; r < kR; ++r) top = larger(acc[r][g], top);
    store(best + (group + g) * kLanes, top);
  }
}

void maxsim_rows(const FloatTile& tile, const float* rows, size_t stride, size_t n, float* best) {
  for (size_t first = 0; first < n; first += kRows) {
    const float* pointers[kRows];
    for (size_t r = 0; r < kRows; ++r) {
      const size_t row = first + r < n ? first + r : n - 1;
      pointers[r] = rows + row * stride;
    }
    size_t group = 0;
    for (; group + kGroups <= tile.groups; group += kGroups) {
      float_block<kRows, kGroups>(tile, group, pointers, best);
    }
    if constexpr (kGroups > 1) {
      for (; group < tile.groups; ++group) float_block<kRows, 1>(tile, group, pointers, best);
    }
  }
}

/// The level of each value, still a float.
WEFT_INLINE Floats level_of(Floats value, Floats inverse, Floats half, Floats middle) {
  const Floats position = fma(value, inverse, half);
  return round(smaller(larger(position, fill(0.0f)), middle));
}

constexpr size_t kFactors = 4;  // tried together, to keep the units busy

float quantize_row(const float* row, size_t dim, const float* factors, size_t n_factors,
                   int32_t middle, uint8_t* levels) {
  alignas(64) float lanes[kLanes];
  Floats widest_lanes = fill(0.0f);
  for (size_t d = 0; d < dim; d += kLanes) {
    const Floats value = load_floats(row + d);
    widest_lanes = larger(larger(value, sub(fill(0.0f), value)), widest_lanes);
  }
  store(lanes, widest_lanes);
  float widest = 0.0f;
  for (const float lane : lanes) widest = lane > widest ? lane : widest;
  if (!(widest > 0.0f)) {
    for (size_t d = 0; d < dim; ++d) levels[d] = static_cast<uint8_t>(middle / 2);
    return 0.0f;
  }

  const float top = static_cast<float>(middle);
  const float half = top * 0.5f;
  float best = -1.0f;
  float best_step = 0.0f;
  float best_inverse = 0.0f;
  for (size_t first = 0; first < n_factors; first += kFactors) {
    float inverse[kFactors];
    Floats dots[kFactors];
    Floats norms[kFactors];
    WEFT_UNROLL for (size_t i = 0; i < kFactors; ++i) {
      const size_t factor = first + i < n_factors ? first + i : n_factors - 1;
      inverse[i] = top / (widest * factors[factor] * 2.0f);
      dots[i] = fill(0.0f);
      norms[i] = fill(0.0f);
    }
    for (size_t d = 0; d < dim; d += kLanes) {
      const Floats value = load_floats(row + d);
      WEFT_UNROLL for (size_t i = 0; i < kFactors; ++i) {
        const Floats level = level_of(value, fill(inverse[i]), fill(half), fill(top));
        const Floats z = sub(level, fill(half));
        dots[i] = fma(value, z, dots[i]);
        norms[i] = fma(z, z, norms[i]);
      }
    }
    WEFT_UNROLL for (size_t i = 0; i < kFactors; ++i) {
      const float dot = sum(dots[i]);
      const float norm = sum(norms[i]);
      const float score = dot * dot / norm;
      if (score > best) {
        best = score;
        best_step = dot / norm;
        best_inverse = inverse[i];
      }
    }
  }
  for (size_t d = 0; d < dim; d += kLanes) {
    const Floats level = level_of(load_floats(row + d), fill(best_inverse), fill(half), fill(top));
    store_bytes(levels + d, to_ints(level));
  }
  return best_step;
}

void to_int8(const float* row, size_t dim, float scale, int8_t* out) {
  const Floats zero = fill(0.0f);
  for (size_t d = 0; d < dim; d += kLanes) {
    const Floats value = mul(load_floats(row + d), fill(scale));
    const Floats above = smaller(larger(value, zero), fill(127.0f));
    const Floats below = larger(smaller(value, zero), fill(-127.0f));
    store_bytes(out + d, to_ints(add(above, below)));  // one of the two is 0; both for a NaN
  }
}

void half_to_float(const uint16_t* in, size_t n, float* out) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load_halves(in + i));
  if (i < n) {
    uint16_t halves[kLanes] = {};
    alignas(64) float floats[kLanes];
    for (size_t j = i; j < n; ++j) halves[j - i] = in[j];
    store(floats, load_halves(halves));
    for (size_t j = i; j < n; ++j) out[j] = floats[j - i];
  }
}

void float_to_half(const float* in, size_t n, uint16_t* out) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_halves(out + i, load_floats(in + i));
  if (i < n) {
    float floats[kLanes] = {};
    uint16_t halves[kLanes];
    for (size_t j = i; j < n; ++j) floats[j - i] = in[j];
    store_halves(halves, load_floats(floats));
    for (size_t j = i; j < n; ++j) out[j] = halves[j - i];
  }
}

// ---- The table ----------------------------------------------------------------------------------

/// Every entry of kernels.h; `Nearest` serves a build's full tiles, `Narrow` codes of at most 4 bits,
/// `Wide` those of 8.
template <class Dots, class Nearest, class Narrow, class Wide = Dots>
constexpr Kernels table_named(const char* name) {
  return {.name = name,
          .tile_dots = tile_dots<Dots>,
          .nearest = nearest<Nearest>,
          .row_dots = row_dots,
          .quantize_dots = quantize_dots,
          .table_maxsim = table_maxsim,
          .table_leaders = table_leaders,
          .accumulate = accumulate,
          .histogram = histogram,
          .collect = collect,
          .score_codes = score_codes<Wide, Narrow>,
          .score_row = score_row,
          .maxsim_rows = maxsim_rows,
          .quantize_row = quantize_row,
          .to_int8 = to_int8,
          .half_to_float = half_to_float,
          .float_to_half = float_to_half};
}
