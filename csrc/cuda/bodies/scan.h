// SPDX-License-Identifier: Apache-2.0
//
// The exhaustive scan: MaxSim of every document with 32 tokens of a query, from the codes alone.
//
//   score(q, t) = fma(code_scale, 2 * (q . levels) - middle * sum(q), base_scale * ((q . c) >> shift))
//
// with t's fine centroid c, base_scale = m * base_unit and code_scale = step * (m * code_unit): the
// operations of DocumentScorer in the same order, so that a score is the same float as on the CPU. A
// warp takes a document, eight tokens at a time; nothing but the score leaves it. Both products run on
// tensor cores. A centroid's row is multiplied for each token at it, instead of kept as a table of scores
// that would take 1.3 bytes per token of the collection for every query (docs/adr/0025).
//
// The depth of a product is permuted, alike for both factors, so that thread p of a quad reads dims
// [p * dim / 4, (p + 1) * dim / 4) of its token, which lie together in the files as they are: no
// shuffle, no other layout in device memory. Step s multiplies, of these, dims 8 s .. 8 s + 7.
//
// Integers stay below 2^29: |q . levels| <= 127 * 255 * 4,128 < 2^27.
#pragma once

#include "cuda/block.h"

namespace weft::cuda {

inline constexpr unsigned kTiles = 2;               ///< of 16 query tokens
inline constexpr unsigned kPassRows = 16 * kTiles;  ///< query tokens of a pass
inline constexpr unsigned kTokensAtOnce = 8;

/// Documents in device memory. Numbers of documents run through the segments, each of which begins at
/// a multiple of 64; those in between are empty.
struct Collection {
  const uint8_t* codes;        ///< [n_tokens][dim * nbits / 8], see kernels::CodeBlock
  const int8_t* centroids;     ///< [n_fine + 1][dim]; the last one is zero
  const uint32_t* fines;       ///< [n_tokens]: n_fine for what only a damaged file holds
  const uint16_t* steps;       ///< [n_tokens] f16
  const uint8_t* multipliers;  ///< [n_tokens]: least + u * grid
  const uint64_t* offsets;     ///< [n_docs + 1]
  const uint32_t* ranks;       ///< [n_docs]: place of the id among all
  uint32_t n_docs;
  uint32_t n_fine;
  uint32_t dim;  ///< padded: a multiple of 32
  float least, grid;

  friend bool operator==(const Collection&, const Collection&) = default;
};

/// At most 32 tokens of one query.
struct QueryPass {
  /// [dim / 32][kTiles][32 threads] as multiply() wants its rows: depth step s, place p in the quad,
  /// half h holds dims p * dim / 4 + 8 s + 4 h .. + 3.
  const Words<4>* rows;
  float* scores;  ///< [n_docs]
  float base_unit, code_unit;
  uint32_t shift;
  uint32_t n_tokens;
  uint32_t resumes;  ///< 1: add to the scores of the passes before
  int32_t sums[kPassRows];
};

/// Rows of a query in registers, or read where they are needed for dims with no kernel of their own.
template <unsigned kSteps>
class QueryRows {
 public:
  WEFT_BODY QueryRows(const Warp& warp, const Words<4>* rows) {
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned step = 0; step < kSteps; ++step) {
        WEFT_UNROLL for (unsigned tile = 0; tile < kTiles; ++tile) {
          rows_[step][tile][t] = rows[(step * kTiles + tile) * kWarp + t];
        }
      }
    });
  }
  WEFT_BODY const Lane<Words<4>>& at(const Warp&, unsigned step, unsigned tile) const {
    return rows_[step][tile];
  }

 private:
  Lane<Words<4>> rows_[kSteps][kTiles];
};

template <>
class QueryRows<0> {
 public:
  WEFT_BODY QueryRows(const Warp&, const Words<4>* rows) : rows_(rows) {}
  WEFT_BODY Lane<Words<4>> at(const Warp& warp, unsigned step, unsigned tile) const {
    Lane<Words<4>> out;
    warp.step([&](unsigned t) { out[t] = rows_[(step * kTiles + tile) * kWarp + t]; });
    return out;
  }

 private:
  const Words<4>* rows_;
};

/// The levels of dims 4 * quad .. + 3, one byte each, from the word that holds them.
template <unsigned kBits>
WEFT_BODY uint32_t levels_of(uint32_t word, unsigned quad) {
  if constexpr (kBits == 8) {
    return word;
  } else {
    constexpr uint32_t kMask = ((1u << kBits) - 1) * 0x01010101u;
    return word >> (kBits * (quad % (8 / kBits))) & kMask;
  }
}

/// A thread's share of a token, the dims of place p: loaded at once.
template <unsigned kBits, unsigned kSteps>
struct Token {
  Words<kSteps * kBits / 4> codes;
  Words<2 * kSteps> centroid;

  WEFT_BODY void load(const Collection& all, uint64_t token, unsigned p) {
    constexpr uint64_t kDim = 32 * kSteps;
    codes = reinterpret_cast<const decltype(codes)*>(all.codes)[4 * token + p];
    const uint64_t fine = all.fines[token];
    centroid =
        *reinterpret_cast<const decltype(centroid)*>(all.centroids + fine * kDim + p * (kDim / 4));
  }
  WEFT_BODY uint32_t levels(unsigned step, unsigned half) const {
    const unsigned quad = 2 * step + half;
    return levels_of<kBits>(codes.at[quad * kBits / 8], quad);
  }
  WEFT_BODY uint32_t base(unsigned step, unsigned half) const {
    return centroid.at[2 * step + half];
  }
};

/// The same, read word by word, for any dim.
template <unsigned kBits>
struct Token<kBits, 0> {
  const uint32_t* codes;
  const uint32_t* centroid;
  unsigned first;  ///< of the quads of four dims

  WEFT_BODY void load(const Collection& all, uint64_t token, unsigned p) {
    codes = reinterpret_cast<const uint32_t*>(all.codes + token * (all.dim * kBits / 8));
    centroid =
        reinterpret_cast<const uint32_t*>(all.centroids + uint64_t{all.fines[token]} * all.dim);
    first = p * (all.dim / 16);
  }
  WEFT_BODY uint32_t levels(unsigned step, unsigned half) const {
    const unsigned quad = first + 2 * step + half;
    return levels_of<kBits>(codes[quad * kBits / 8], quad);
  }
  WEFT_BODY uint32_t base(unsigned step, unsigned half) const {
    return centroid[first + 2 * step + half];
  }
};

/// Scores documents by one pass of a query, eight tokens at a time. kSteps: dim / 32, or 0 for any dim.
template <unsigned kBits, unsigned kSteps>
class CodeScorer {
 public:
  WEFT_BODY CodeScorer(const Warp& warp, const Collection& all, const QueryPass& query)
      : warp_(warp), all_(all), query_(query), rows_(warp, query.rows) {
    constexpr int32_t kMiddle = (1 << kBits) - 1;
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kTiles; ++i) {
        centre_[i / 2][i % 2][t] = kMiddle * query_.sums[8 * i + t / 4];
      }
    });
  }

  /// Begins a document.
  WEFT_BODY void start() {
    warp_.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kTiles; ++i) best_[i / 2][i % 2][t] = -HUGE_VALF;
    });
  }

  /// place(i): the number of the i-th of eight tokens; one that comes again changes nothing.
  template <class Place>
  WEFT_BODY void add(const Place& place) {
    const unsigned n_steps = kSteps > 0 ? kSteps : all_.dim / 32;
    Lane<Token<kBits, kSteps>> token;
    Lane<Sums> codes[kTiles], base[kTiles];
    warp_.step([&](unsigned t) {
      token[t].load(all_, place(t / 4), t % 4);
      WEFT_UNROLL for (unsigned i = 0; i < kTiles; ++i) codes[i][t] = base[i][t] = Sums{};
    });
    WEFT_UNROLL for (unsigned step = 0; step < n_steps; ++step) {
      Lane<uint32_t> level[2], centroid[2];
      warp_.step([&](unsigned t) {
        WEFT_UNROLL for (unsigned half = 0; half < 2; ++half) {
          level[half][t] = token[t].levels(step, half);
          centroid[half][t] = token[t].base(step, half);
        }
      });
      WEFT_UNROLL for (unsigned tile = 0; tile < kTiles; ++tile) {
        const auto& factor = rows_.at(warp_, step, tile);
        multiply<false>(codes[tile], factor, level[0], level[1]);
        multiply<true>(base[tile], factor, centroid[0], centroid[1]);
      }
    }
    warp_.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned column = 0; column < 2; ++column) {
        const uint64_t of = place(2 * (t % 4) + column);
        const float m = all_.least + static_cast<float>(all_.multipliers[of]) * all_.grid;
        const float base_scale = m * query_.base_unit;
        const float code_scale = half_value(all_.steps[of]) * (m * query_.code_unit);
        const bool is_known = all_.fines[of] < all_.n_fine;
        WEFT_UNROLL for (unsigned i = 0; i < 2 * kTiles; ++i) {
          const unsigned tile = i / 2, half = i % 2;
          const int32_t dot = codes[tile][t].at[2 * half + column];
          const int32_t base_dot = base[tile][t].at[2 * half + column] >> query_.shift;
          const auto residual = static_cast<float>(2 * dot - centre_[tile][half][t]);
          const auto base_score = static_cast<float>(is_known ? base_dot : INT16_MIN);
          const float score = fmaf(code_scale, residual, base_scale * base_score);
          float& top = best_[tile][half][t];
          top = score > top ? score : top;
        }
      }
    });
  }

  /// `total` and the largest score of each query token, added up in their order.
  WEFT_BODY float finish(float total) {
    WEFT_UNROLL for (unsigned i = 0; i < 2 * kTiles; ++i) {
      largest_of_quad(best_[i / 2][i % 2]);
      WEFT_UNROLL for (unsigned row = 0; row < 8; ++row) {
        const float value = read(best_[i / 2][i % 2], 4 * row);
        total = 8 * i + row < query_.n_tokens ? total + value : total;
      }
    }
    return total;
  }

  /// All tokens of a document, which has some.
  WEFT_BODY float score(uint64_t begin, uint64_t end, float total) {
    start();
    for (uint64_t at = begin; at < end; at += kTokensAtOnce) {
      // The last token stands for those past it: that changes no maximum.
      add([&](unsigned i) { return at + i < end ? at + i : end - 1; });
    }
    return finish(total);
  }

 private:
  const Warp& warp_;
  const Collection& all_;
  const QueryPass& query_;
  const QueryRows<kSteps> rows_;
  Lane<int32_t> centre_[kTiles][2];
  Lane<float> best_[kTiles][2];
};

WEFT_BODY bool is_in(const uint64_t* allow, uint64_t doc) {
  return allow == nullptr || (allow[doc / 64] >> doc % 64 & 1) != 0;
}

/// Scores documents first, first + stride ... of those in `allow` (one bit each; null: all); the
/// others get -infinity.
template <unsigned kBits, unsigned kSteps>
WEFT_BODY void scan(const Warp& warp, const Collection& all, const uint64_t* allow,
                    const QueryPass& query, uint32_t first, uint32_t stride) {
  CodeScorer<kBits, kSteps> scorer(warp, all, query);
  for (uint64_t doc = first; doc < all.n_docs; doc += stride) {
    const uint64_t begin = all.offsets[doc], end = all.offsets[doc + 1];
    float total = -HUGE_VALF;
    if (begin < end && is_in(allow, doc)) {
      total = scorer.score(begin, end, query.resumes != 0 ? query.scores[doc] : 0.0f);
    }
    warp.step([&](unsigned t) {
      if (t == 0) {
        query.scores[doc] = total;
      }
    });
  }
}

}  // namespace weft::cuda
