// SPDX-License-Identifier: Apache-2.0
//
// The hot loops behind one table of function pointers per instruction set.
//
// Layout. Lanes are query tokens: a tile holds its rows in groups of 16, and four neighbouring
// dimensions of one lane lie together, data[group][dim / 4][16][4], so that four bytes of a
// document token are broadcast and multiplied into 16 lanes without any horizontal sum. Padding
// lanes are zero.
//
// Precision. Integer entries are exact and therefore equal on every instruction set; the value
// ranges below are what makes that possible. Float entries add in the order stated, with one fused
// multiply-add per term, so that they too give the same bits everywhere.
//
// Ranges. Every int8 value handed in lies in [-127, 127]; dim is a multiple of 32 and at most
// 4,128; hence |dot| <= 127 * 127 * 4,128 < 2^27. Codes are unsigned, at most 255.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace weft::kernels {

inline constexpr size_t kLanes = 16;

/// Rows (query tokens, or document tokens during a build) as lanes. Borrowed, 64-byte aligned.
struct ByteTile {
  const int8_t* data;   ///< [groups][dim / 4][16][4]
  const int32_t* sums;  ///< [groups * 16]: sum over dim of each lane
  size_t groups;        ///< lanes / 16, at least 1
  size_t dim;           ///< padded: a multiple of 32
  bool half = false;    ///< the last 8 lanes are padding: their products need not be computed

  size_t lanes() const { return groups * kLanes; }
};

/// The same in f32: data[group][dim][16]. dim is the unpadded one.
struct FloatTile {
  const float* data;
  size_t groups;
  size_t dim;

  size_t lanes() const { return groups * kLanes; }
};

/// Residual codes of consecutive tokens. Element d of a token is `nbits` wide. A 32-bit
/// little-endian word of a code holds 32 / nbits dimensions; with p = 8 / nbits, bits [nbits * s,
/// nbits * (s + 1)) of byte j of word w belong to dimension (w * p + s) * 4 + j, for s < p: one AND
/// and one shift give four neighbouring dimensions.
struct CodeBlock {
  const uint8_t* codes;       ///< [n][dim * nbits / 8]
  const int16_t* base;        ///< [rows][lanes] base scores
  const uint32_t* base_rows;  ///< [n]: which row of `base`
  const float* base_scale;    ///< [n]: factor of the base score
  const float* code_scale;    ///< [n]: factor of the doubled residual dot
  int32_t middle;             ///< twice the middle level: 2^nbits - 1
  unsigned nbits;             ///< 1, 2, 4 or 8
  size_t n;
  /// [n]: which tokens of `codes` are meant, ascending; null: the first n. Everything else goes by
  /// place in this list.
  const uint32_t* tokens;
};

/// One row, laid out as codes are: code_row() in quantizer/packing.h makes it.
struct CodeRow {
  /// [ceil(dim * nbits / 512)][8 / nbits][64]: for 64 bytes of codes and each of their slots the elements
  /// that these stand for; zeros past the last. 64-byte aligned.
  const int8_t* planes;
  int32_t sum;  ///< over dim
  size_t dim;
};

/// u8 scores of centroids: a row of `groups * 16` bytes per centroid.
struct ScoreTable {
  const uint8_t* rows;    ///< the table has 255 rows of slack behind the last one
  const uint32_t* cells;  ///< [n_cells + 1]: low 31 bits = first row, high bit = add the child
  uint32_t n_cells;
  size_t groups;
};

/// accumulate() keeps one word per document: the query token that wrote last, and the sum of gains.
inline constexpr unsigned kSumBits = 22;
inline constexpr uint32_t kSumMask = (1u << kSumBits) - 1;

struct Kernels {
  const char* name;  ///< "scalar", "avx2", "avx512" or "neon"

  /// dots[r * lanes + l] = sum_d tile[l][d] * rows[r][d]. rows: n * dim, 16-byte aligned.
  void (*tile_dots)(const ByteTile& tile, const int8_t* rows, size_t n, int32_t* dots);

  /// The four best rows of every lane. With v = (dot + bias[r]) >> shift (arithmetic; the caller
  /// picks a shift that makes v fit int16), the key of row r is v * 65536 + (65535 - (first + r)),
  /// so a larger key is a better row and equal values go to the smaller number. keys: [4][lanes],
  /// best first, updated in place; fill with INT32_MIN before the first call. first + n <= 65,536.
  void (*nearest)(const ByteTile& tile, const int8_t* rows, const int32_t* bias, size_t n,
                  uint32_t first, unsigned shift, int32_t* keys);

  /// out[r] = sum_d x[d] * rows[r][d]: one row against n rows. 16-byte aligned.
  void (*row_dots)(const int8_t* x, const int8_t* rows, size_t n, size_t dim, int32_t* out);

  /// base[i] = saturate_int16(dots[i] >> shift); table[i] = clamp((base[i] * factor + 2^14) >> 15,
  /// 0, 255). 0 <= factor <= 32,767. n: a multiple of 16.
  void (*quantize_dots)(const int32_t* dots, size_t n, unsigned shift, int16_t factor,
                        int16_t* base, uint8_t* table);

  /// best[l] = the largest table entry that any of the n tokens reaches in lane l; returns their
  /// sum. Token t reads row (c & 0x7fffffff) + (c >> 31 ? children[t] : 0) with
  /// c = cells[min(parents[t], n_cells)].
  uint32_t (*table_maxsim)(const ScoreTable& table, const uint16_t* parents,
                           const uint8_t* children, size_t n, uint8_t* best);

  /// Writes the t, ascending, whose table row reaches least[l] in any lane l; returns how many.
  /// `leaders` has room for n + 1.
  size_t (*table_leaders)(const ScoreTable& table, const uint16_t* parents, const uint8_t* children,
                          size_t n, const uint8_t* least, uint32_t* leaders);

  /// For every posting d = min(docs[i], limit): if the high bits of words[d] differ from `stamp`,
  /// add `gain` to its low kSumBits bits and set the stamp; otherwise leave it. `docs` holds n
  /// unsigned little-endian numbers of `width` bytes (2 or 3) with 4 readable bytes of slack behind
  /// them.
  void (*accumulate)(const uint8_t* docs, size_t n, unsigned width, uint32_t limit, uint32_t gain,
                     uint32_t stamp, uint32_t* words);

  /// bins[min((words[i] & kSumMask) >> shift, n_bins - 1)] += 1 for every i whose sum is not 0.
  void (*histogram)(const uint32_t* words, size_t n, unsigned shift, uint32_t n_bins,
                    uint32_t* bins);

  /// Writes the i with (words[i] & kSumMask) >= least (least >= 1), ascending; returns how many.
  /// `docs` has room for n + 16.
  size_t (*collect)(const uint32_t* words, size_t n, uint32_t least, uint32_t* docs);

  /// best[l] = max(best[l], fma(code_scale[t], (float)(2 * dot - middle * sums[l]),
  ///                            base_scale[t] * (float)base[base_rows[t]][l]))
  /// over the block's tokens, where dot = sum_d tile[l][d] * code[t][d]. What the maximum is taken of
  /// also goes to scores[place][lane], unless `scores` is null.
  void (*score_codes)(const ByteTile& tile, const CodeBlock& block, float* best, float* scores);

  /// scores[t] = what score_codes() gives a lane that holds this row, bit for bit, for the first n tokens:
  /// `block.tokens` is null. Of each row of `block.base`, which has 16 lanes, the first counts.
  void (*score_row)(const CodeRow& row, const CodeBlock& block, float* scores);

  /// best[l] = max(best[l], s) over rows, s = sum over d ascending of fma(tile[l][d], row[d], s)
  /// from 0.
  void (*maxsim_rows)(const FloatTile& tile, const float* rows, size_t stride, size_t n,
                      float* best);

  /// levels[d] = round_half_even(clamp(fma(row[d], 1 / step, middle / 2), 0, middle)) for the step
  /// among `widest * factors[i] * 2 / middle` (widest = max |row|) whose least-squares
  /// reconstruction loses least: with z = level - middle / 2, the largest (row.z)^2 / (z.z); the
  /// first of equals wins. Returns the least-squares step row.z / z.z, and 0 (levels = middle / 2
  /// rounded down) for a zero row. `middle` is odd. 1 / step is computed as middle / (widest *
  /// factors[i] * 2); sums run over 16 interleaved partial sums, fused, joined by halving.
  float (*quantize_row)(const float* row, size_t dim, const float* factors, size_t n_factors,
                        int32_t middle, uint8_t* levels);

  /// out[d] = clamp(round_half_even(row[d] * scale), -127, 127); NaN gives 0.
  void (*to_int8)(const float* row, size_t dim, float scale, int8_t* out);

  /// IEEE binary16, round to nearest even.
  void (*half_to_float)(const uint16_t* in, size_t n, float* out);
  void (*float_to_half)(const float* in, size_t n, uint16_t* out);
};

}  // namespace weft::kernels
