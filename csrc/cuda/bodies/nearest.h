// SPDX-License-Identifier: Apache-2.0
//
// The arg-max of builds: rows of bytes against centroids, on tensor cores, the product folded where it
// falls. What comes out are the numbers of NearestCentroids::find() and CentroidTree::assign(), bit for bit:
// every key that is compared is an integer, no two are equal, and the best of them are the same in any order.
//
// A warp takes 32 rows. Of a product with eight centroids each thread has two sums for each of four rows;
// it keeps what is best of its own columns, and the four threads of a quad are merged at the end. The depth of
// a product is permuted as in scan.h, so that rows and centroids are read as they lie.
#pragma once

#include "cuda/block.h"

namespace weft::cuda {

inline constexpr unsigned kRowTiles = 2;               ///< of 16 rows
inline constexpr unsigned kTileRows = 16 * kRowTiles;  ///< rows of a warp, one for each thread
inline constexpr unsigned kColumnsAtOnce = 8;
inline constexpr unsigned kPlaces = 4;  ///< cells of a row
inline constexpr unsigned kQuarters = 4;
inline constexpr unsigned kMostGroups = 512;
inline constexpr int32_t kLowest = INT32_MIN;
/// Instead of the bias of a column that is none: below every real sum, which is above -2^28.
inline constexpr int32_t kNever = -(1 << 30);

static_assert(kTileRows == kWarp);

/// Rows of bytes to compare with: sum = dot + bias.
struct Centroids {
  const int8_t* rows;   ///< [n][dim]
  const int32_t* bias;  ///< [n]
  uint32_t dim;         ///< padded: a multiple of 32
};

/// NearestCentroids in device memory.
struct NearestTable {
  Centroids all;            ///< those of a group together
  const uint32_t* numbers;  ///< [n], as the caller knows them
  const uint32_t* starts;   ///< [n_groups + 1]
  Centroids means;          ///< of the groups; rows null where all are compared
  uint32_t n, n_groups;
  uint32_t shift;
  uint32_t mean_shifts[kQuarters];
};

/// Shared by the threads of a warp.
struct NearestScratch {
  int32_t keys[kPlaces * 4][kTileRows];  ///< of the threads of a quad, then the best in front
  uint32_t wanted[kMostGroups / 32][kTileRows];  ///< a bit for each group
};

struct BestKeys {
  int32_t at[kPlaces];  ///< best first

  WEFT_BODY void insert(int32_t key) {
    WEFT_UNROLL for (unsigned i = 0; i < kPlaces; ++i) {
      const int32_t lower = at[i] < key ? at[i] : key;
      at[i] = at[i] < key ? key : at[i];
      key = lower;
    }
  }
  /// Sums below this cannot come in.
  WEFT_BODY int32_t limit(uint32_t shift) const {
    return (at[kPlaces - 1] >> 16) * (int32_t{1} << shift);
  }
};

/// 32 rows in registers. kSteps: dim / 32.
template <unsigned kSteps>
class TileOfRows {
 public:
  /// row(i): where row i lies, 16-byte aligned.
  template <class Row>
  WEFT_BODY TileOfRows(const Warp& warp, const Row& row, uint32_t) {
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
        const unsigned tile = i / 2, half = i % 2;
        const Words<2 * kSteps> words = *reinterpret_cast<const Words<2 * kSteps>*>(
            row(16 * tile + 8 * half + t / 4) + t % 4 * (8 * kSteps));
        WEFT_UNROLL for (unsigned step = 0; step < kSteps; ++step) {
          rows_[step][tile][t].at[half] = words.at[2 * step];
          rows_[step][tile][t].at[half + 2] = words.at[2 * step + 1];
        }
      }
    });
  }
  WEFT_BODY const Lane<Words<4>>& at(const Warp&, unsigned step, unsigned tile) const {
    return rows_[step][tile];
  }

 private:
  Lane<Words<4>> rows_[kSteps][kRowTiles];
};

/// The same, read where they are needed, for any dim.
template <>
class TileOfRows<0> {
 public:
  template <class Row>
  WEFT_BODY TileOfRows(const Warp& warp, const Row& row, uint32_t dim) {
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
        words_[i][t] = reinterpret_cast<const uint32_t*>(row(8 * i + t / 4)) + t % 4 * (dim / 16);
      }
    });
  }
  WEFT_BODY Lane<Words<4>> at(const Warp& warp, unsigned step, unsigned tile) const {
    Lane<Words<4>> out;
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned half = 0; half < 2; ++half) {
        out[t].at[half] = words_[2 * tile + half][t][2 * step];
        out[t].at[half + 2] = words_[2 * tile + half][t][2 * step + 1];
      }
    });
    return out;
  }

 private:
  Lane<const uint32_t*> words_[2 * kRowTiles];
};

/// A thread's share of a centroid.
template <unsigned kSteps>
struct Column {
  Words<2 * kSteps> words;

  WEFT_BODY void load(const Centroids& all, uint32_t column, unsigned p) {
    words = *reinterpret_cast<const decltype(words)*>(all.rows + uint64_t{column} * (32 * kSteps) +
                                                      p * (8 * kSteps));
  }
  WEFT_BODY uint32_t word(unsigned i) const { return words.at[i]; }
};

template <>
struct Column<0> {
  const uint32_t* words;

  WEFT_BODY void load(const Centroids& all, uint32_t column, unsigned p) {
    words = reinterpret_cast<const uint32_t*>(all.rows + uint64_t{column} * all.dim) +
            p * (all.dim / 16);
  }
  WEFT_BODY uint32_t word(unsigned i) const { return words[i]; }
};

/// The sums of 32 rows and the eight columns from `column` on; those at `end` and beyond are about kNever.
template <unsigned kSteps>
WEFT_BODY void multiply_eight(const Warp& warp, const TileOfRows<kSteps>& rows,
                              const Centroids& all, uint32_t column, uint32_t end,
                              Lane<Sums> (&sums)[kRowTiles]) {
  const unsigned n_steps = kSteps > 0 ? kSteps : all.dim / 32;
  Lane<Column<kSteps>> columns;
  warp.step([&](unsigned t) {
    const uint32_t mine = column + t / 4;
    columns[t].load(all, mine < end ? mine : end - 1, t % 4);
    WEFT_UNROLL for (unsigned i = 0; i < 2; ++i) {
      const uint32_t summed = column + 2 * (t % 4) + i;
      const int32_t bias = summed < end ? all.bias[summed] : kNever;
      WEFT_UNROLL for (unsigned tile = 0; tile < kRowTiles; ++tile) {
        sums[tile][t].at[i] = sums[tile][t].at[i + 2] = bias;
      }
    }
  });
  WEFT_UNROLL for (unsigned step = 0; step < n_steps; ++step) {
    Lane<uint32_t> low, high;
    warp.step([&](unsigned t) {
      low[t] = columns[t].word(2 * step);
      high[t] = columns[t].word(2 * step + 1);
    });
    WEFT_UNROLL for (unsigned tile = 0; tile < kRowTiles; ++tile) {
      multiply<true>(sums[tile], rows.at(warp, step, tile), low, high);
    }
  }
}

/// The best keys of 32 rows while columns go by; a thread's own until they are merged.
template <unsigned kSteps>
class BestColumns {
 public:
  WEFT_BODY explicit BestColumns(const Warp& warp) {
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
        WEFT_UNROLL for (unsigned place = 0; place < kPlaces; ++place) {
          best_[i][t].at[place] = kLowest;
        }
      }
    });
  }

  /// Columns [begin, end), as [begin - zero, end - zero) in the keys, for the rows whose bit is set in
  /// wanted[row]; null: all rows.
  WEFT_BODY void compare(const Warp& warp, const TileOfRows<kSteps>& rows, const Centroids& all,
                         uint32_t begin, uint32_t end, uint32_t zero, uint32_t shift,
                         const uint32_t* wanted, uint32_t bit) {
    Lane<int32_t> limit[2 * kRowTiles];
    Lane<uint32_t> wants;
    warp.step([&](unsigned t) {
      wants[t] = 0;
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
        const uint32_t mine = wanted == nullptr ? 1u : wanted[8 * i + t / 4] >> bit & 1u;
        limit[i][t] = mine != 0 ? best_[i][t].limit(shift) : INT32_MAX;
        wants[t] |= mine;
      }
    });
    if (votes(wants) == 0) {
      return;
    }
    for (uint32_t column = begin; column < end; column += kColumnsAtOnce) {
      Lane<Sums> sums[kRowTiles];
      multiply_eight(warp, rows, all, column, end, sums);
      warp.step([&](unsigned t) {
        WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
          WEFT_UNROLL for (unsigned j = 0; j < 2; ++j) {
            const int32_t sum = sums[i / 2][t].at[2 * (i % 2) + j];
            if (sum >= limit[i][t]) {
              const uint32_t place = column + 2 * (t % 4) + j - zero;
              best_[i][t].insert((sum >> shift) * 65'536 + static_cast<int32_t>(65'535 - place));
              limit[i][t] = best_[i][t].limit(shift);
            }
          }
        }
      });
    }
  }

  /// keys[0..3][row]: what is best of each row.
  WEFT_BODY void merge(const Warp& warp, NearestScratch& scratch) const {
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
        WEFT_UNROLL for (unsigned place = 0; place < kPlaces; ++place) {
          scratch.keys[t % 4 * kPlaces + place][8 * i + t / 4] = best_[i][t].at[place];
        }
      }
    });
    warp.step([&](unsigned t) {
      BestKeys best{{kLowest, kLowest, kLowest, kLowest}};
      for (unsigned i = 0; i < 4 * kPlaces; ++i) {
        best.insert(scratch.keys[i][t]);
      }
      WEFT_UNROLL for (unsigned place = 0; place < kPlaces; ++place) {
        scratch.keys[place][t] = best.at[place];
      }
    });
  }

 private:
  Lane<BestKeys> best_[2 * kRowTiles];
};

/// The place that a key names.
WEFT_BODY uint32_t place_of(int32_t key) { return 65'535 - (static_cast<uint32_t>(key) & 65'535); }

/// scratch.keys[0..3][i]: the best of row i. Every group is gone through, and those that no row of the
/// warp wants are passed over.
template <unsigned kSteps>
WEFT_BODY void find_nearest(const Warp& warp, const TileOfRows<kSteps>& rows,
                            const NearestTable& table, NearestScratch& scratch) {
  const bool grouped = table.means.rows != nullptr;
  if (grouped) {
    warp.step([&](unsigned t) {
      for (unsigned word = 0; word < (table.n_groups + 31) / 32; ++word) {
        scratch.wanted[word][t] = 0;
      }
    });
    const uint32_t width = table.n_groups / kQuarters;
    for (unsigned quarter = 0; quarter < kQuarters; ++quarter) {
      const uint32_t begin = quarter * width;
      BestColumns<kSteps> best(warp);
      best.compare(warp, rows, table.means, begin, begin + width, begin, table.mean_shifts[quarter],
                   nullptr, 0);
      best.merge(warp, scratch);
      warp.step([&](unsigned t) {
        for (unsigned place = 0; place < kPlaces; ++place) {
          const uint32_t group = begin + place_of(scratch.keys[place][t]);
          scratch.wanted[group / 32][t] |= 1u << group % 32;
        }
      });
    }
  }
  BestColumns<kSteps> best(warp);
  for (uint32_t group = 0; group < table.n_groups; ++group) {
    best.compare(warp, rows, table.all, table.starts[group], table.starts[group + 1], 0,
                 table.shift, grouped ? scratch.wanted[group / 32] : nullptr, group % 32);
  }
  best.merge(warp, scratch);
}

}  // namespace weft::cuda
