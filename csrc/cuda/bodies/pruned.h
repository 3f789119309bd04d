// SPDX-License-Identifier: Apache-2.0
//
// A pruned search on its way through the stages of docs/architecture.md, several queries at a time: what
// is resident, what the host prepares, and what each stage leaves to the next. What a stage finds is a
// number in device memory, and launches are as large as they may have to be, so the host waits for none.
//
// Every choice is made by distinct integer keys, those of the CPU, so the same documents are chosen
// whatever the order in which threads come to them.
#pragma once

#include "cuda/bodies/scan.h"
#include "cuda/bodies/select.h"

namespace weft::cuda {

inline constexpr unsigned kBlockWarps = kSelectThreads / kWarp;
inline constexpr unsigned kScores = 256;  ///< of a centroid, in the table
inline constexpr unsigned kBins = 4'096;  ///< of sums of gains
inline constexpr uint32_t kLeastGain = 1, kMostGain = 1'023;
inline constexpr uint32_t kTableShare = 10, kGainShare = 3;  ///< see interact()
inline constexpr unsigned kColumns = 8;                      ///< centroids of a product
inline constexpr unsigned kPartsOfCell = 4;  ///< that warps share the children of a cell in
inline constexpr uint32_t kClosed = 0x8000'0000u;

/// In their order; some are launched more than once, with a number.
enum class Stage : uint32_t {
  count_survivors,
  score_cells,
  choose_cells,
  open_cells,
  score_children,
  order_lists,
  spend_budget,
  gather,  ///< number: of the merged token
  tally,
  collect,
  settle,
  interact,
  keep_interacted,
  skim,  ///< number: of the pass, as for refine
  keep_skimmed,
  refine
};

/// The centroids' tree, and the lists of documents at each fine one.
struct Tree {
  const int8_t* cells;       ///< [n_cells + 1][dim]; the last one is zero
  const uint32_t* children;  ///< [n_cells + 1]: fine centroids of cell c are children[c] .. [c + 1]
  const uint32_t* parents;   ///< [n_fine + 1]; n_cells for the last
  const uint64_t* offsets;   ///< [n_fine + 1]: postings of a fine centroid
  const uint32_t* postings;  ///< documents; Collection::n_docs for what only a damaged file holds
  uint32_t n_cells;

  friend bool operator==(const Tree&, const Tree&) = default;
};

/// A query as the host has prepared it.
struct PrunedQuery {
  const QueryPass* passes;
  const uint32_t* lanes;    ///< [n_merged] query tokens that stand for themselves and their like
  const uint32_t* weights;  ///< [n_merged] how many they stand for
  uint32_t n_passes, n_merged;
  uint32_t cell_shift;               ///< scores of cells are dot >> cell_shift ...
  int32_t cell_factor, fine_factor;  ///< ... and table entries those times factor / 2^15
  uint32_t gain_shift;
};

/// What a query has come to.
struct Progress {
  uint64_t n_postings;
  uint32_t n_opened;
  uint32_t bin_shift;
  uint32_t n_met;       ///< documents with a gain
  uint32_t n_boundary;  ///< of those, documents that may or may not be candidates
  uint32_t n_gathered, n_interacted, n_skimmed;  ///< candidates after each stage
};

struct List {
  uint32_t fine, score;
};

/// The lists of one merged token.
struct TokenLists {
  uint32_t n;       ///< there are
  uint32_t n_read;  ///< the best of them
  uint32_t floor;
};

struct PrunedDoc {
  uint32_t doc;
  uint32_t gain;
  uint32_t row;  ///< of Pruned::best
};

/// All of a launch. Arrays hold a query's share after another's.
struct Pruned {
  Collection all;
  Tree tree;
  const uint64_t* allow;  ///< one bit per document; null: all
  uint32_t* survivors;    ///< [n_fine] postings in `allow`; null: there is no filter
  const PrunedQuery* queries;
  uint32_t n_queries;
  uint32_t nbits;

  uint32_t nprobe, budget, wanted_survivors, floor_share;
  uint32_t ncandidates, ninteract, nrefine;  ///< kept by the stages
  uint32_t skims;                            ///< 1: interact is followed by skim

  uint32_t most_merged, most_passes, lanes;  ///< of one query; lanes: 32 for each pass
  uint32_t most_opened, most_rows, most_lists;

  Progress* progress;       ///< [1]
  int16_t* coarse;          ///< [lanes][n_cells] scores of cells
  uint8_t* table;           ///< [most_rows][lanes]: cells, a row of zeros, children of opened cells
  uint32_t* cells;          ///< [n_cells + 1]: kClosed, or what to add to a child to have its row
  uint32_t* opened;         ///< [most_opened]
  uint32_t* token_cells;    ///< [most_merged][nprobe], ascending
  TokenLists* token_lists;  ///< [most_merged]
  List* lists;              ///< [most_merged][most_lists], best first
  uint64_t* words;          ///< [n_docs + 1]: see gather(); zero before and after
  uint32_t* met;            ///< [n_docs]
  uint64_t* boundary;       ///< [n_docs]
  uint32_t* bins;           ///< [kBins]
  PrunedDoc *found, *kept;  ///< [ncandidates]
  uint8_t* best;            ///< [ncandidates][lanes]: largest table entry of a document
  float* scores;            ///< [ncandidates]
  uint64_t* keys;           ///< [ncandidates]

  friend bool operator==(const Pruned&, const Pruned&) = default;
};

/// Shared memory of a thread block.
struct PrunedShared {
  union {
    uint32_t bins[kBins];
    uint32_t counts[kBlockWarps][kScores];
    uint64_t read[2][kSelectThreads];
  };
  uint32_t sums[kSelectThreads];
  uint64_t key;
  uint32_t number, other;
};

/// The row of a fine centroid's scores: its own, or its cell's where that was not opened.
WEFT_BODY uint32_t row_of(const Pruned& all, const uint32_t* cells, uint32_t fine) {
  const uint32_t cell = all.tree.parents[fine];
  const uint32_t first = cells[cell];
  return first == kClosed ? cell : fine + first;
}

/// What a document gains from a list of a merged token.
WEFT_BODY uint32_t gain_of(const PrunedQuery& query, uint32_t token, uint32_t score,
                           uint32_t floor) {
  const uint32_t gain = ((score - floor) * query.weights[token]) >> query.gain_shift;
  return gain < kLeastGain ? kLeastGain : gain > kMostGain ? kMostGain : gain;
}

/// Each of kSelectThreads values becomes the sum of itself and those before it.
template <class T>
WEFT_BODY void add_up(const Block& block, T* values) {
  for (unsigned apart = 1; apart < kSelectThreads; apart *= 2) {
    PerThread<T, kSelectThreads> before;
    block.step([&](unsigned t) { before[t] = t >= apart ? values[t - apart] : T{0}; });
    block.step([&](unsigned t) { values[t] += before[t]; });
  }
}

/// The k-th least of n keys, k >= 1, digit by digit from the highest; the greatest possible where there
/// are no more than k.
template <class Key, class KeyAt>
WEFT_BODY Key kth_least(const Block& block, PrunedShared& shared, uint32_t n, uint32_t k,
                        const KeyAt& key_at) {
  if (n <= k) {
    return static_cast<Key>(~Key{0});
  }
  Key found = 0;
  for (unsigned digit = sizeof(Key); digit-- > 0;) {
    const unsigned shift = 8 * digit;
    block.step([&](unsigned t) { shared.sums[t] = 0; });
    block.step([&](unsigned t) {
      for (uint32_t i = t; i < n; i += kSelectThreads) {
        const Key key = key_at(i);
        if (digit + 1 == sizeof(Key) || key >> shift >> 8 == found >> shift >> 8) {
          add(shared.sums[key >> shift & 255], 1u);
        }
      }
    });
    add_up(block, shared.sums);
    block.step([&](unsigned t) {
      const uint32_t before = t > 0 ? shared.sums[t - 1] : 0;
      if (before < k && k <= shared.sums[t]) {
        shared.number = t;
        shared.other = before;
      }
    });
    found |= static_cast<Key>(shared.number) << shift;
    k -= shared.other;
  }
  return found;
}

}  // namespace weft::cuda
