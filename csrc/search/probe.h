// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "search/base_scores.h"
#include "search/params.h"
#include "search/query.h"

namespace weft {

/// How scores become table entries, (dot >> shift) * factor / 2^15 for either level of centroids, and
/// entries become gains.
struct TableGrid {
  double unit;  ///< score = table entry * unit
  unsigned coarse_shift, fine_shift;
  int16_t coarse_factor, fine_factor;
  unsigned gain_shift;   ///< gains are halved this often so that a sum of them fits
  uint32_t floor_share;  ///< SearchParams::floor * 256
};
TableGrid table_grid(const PreparedQuery& query, const Codec& codec, const SearchParams& params);

/// One inverted list to read, and what a document found in it gains.
struct ProbedList {
  uint32_t fine;
  uint32_t gain;
};

/// What probe found, and its buffers, reused between queries.
///
/// `table` holds u8 scores of centroids, rows of `lanes` bytes: first every coarse centroid and the
/// sentinel, then the children of each opened cell; unit: table_unit per step.
struct Probe {
  size_t lanes = 0;
  double table_unit = 0.0;  ///< score = table entry * table_unit
  AlignedBuffer<uint8_t> table;
  AlignedBuffer<uint32_t> cells;  ///< where a cell's rows are; see kernels::ScoreTable

  /// Lists in the order of reading: those of merged token i are [list_ends[i - 1], list_ends[i]).
  std::vector<ProbedList> lists;
  std::vector<size_t> list_ends;
  unsigned gain_shift = 0;   ///< gains are halved this often so that a sum of them fits
  uint64_t largest_sum = 0;  ///< no document can gain more
  uint64_t n_postings = 0;

  // Scratch.
  std::vector<AlignedBuffer<int32_t>> dots;  ///< per thread
  AlignedBuffer<int16_t> coarse;             ///< int16 scores of the coarse centroids
  std::vector<uint32_t> opened;
  std::vector<std::vector<uint32_t>> token_cells;
  std::vector<uint8_t> cell_open;
  std::vector<std::vector<ProbedList>> token_lists;
  std::vector<uint32_t> round;

  kernels::ScoreTable score_table(const Codec& codec) const {
    return {table.data(), cells.data(), codec.n_coarse(), lanes / kernels::kLanes};
  }
};

/// Counts postings of documents that a filter lets through, in the lists of some fine centroids.
using CountPostings = std::function<uint64_t(std::span<const uint32_t> fines)>;

/// Fills `out`: the best `nprobe` cells of every merged token with their children's scores, which `scores`
/// knows afterwards, and the same number of lists for every token, best first, until `budget` postings are
/// read.
/// list_lengths[f]: postings of fine centroid f summed over all segments of the snapshot.
/// surviving: given where there is a filter. Then lists are read beyond the budget until `ncandidates` of
/// their postings survive, or `budget` of them if that is less; docs/adr/0021.
/// Floor and equal lists: engine design, measured in docs/performance.md [WARP25] [TACHIOM26].
void probe(const PreparedQuery& query, const Codec& codec, std::span<const uint32_t> list_lengths,
           const SearchParams& params, size_t threads, BaseScores& scores, Probe& out,
           const CountPostings& surviving = {});

}  // namespace weft
