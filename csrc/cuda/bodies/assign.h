// SPDX-License-Identifier: Apache-2.0
//
// A batch of tokens on its way to codes, stage by stage. Between the search for cells and that among
// children the (token, cell) pairs, the visits, are put together by cell, so that a cell's children are read
// once for 32 of them. The order of visits within a cell is left open, and nothing depends on it: each leaves
// one result at a place of its own.
#pragma once

#include "cuda/bodies/encode.h"
#include "cuda/bodies/nearest.h"

namespace weft::cuda {

inline constexpr unsigned kPlanThreads = 512;
using PlanBlock = Group<kPlanThreads>;

/// The best child of one visit.
struct FoundChild {
  int32_t value;
  uint32_t child;
};

/// At most 32 visits of one cell, from `first` to its end.
struct VisitTile {
  uint32_t first, cell;
};

/// Everything a stage reads or writes; arrays in device memory.
struct Batch {
  NearestTable table;
  Encoding how;
  const uint16_t* rows;  ///< f16 [n][row_dim]
  int8_t* bytes;         ///< [n][dim]
  uint16_t* labels;      ///< [n]: the nearest centroid is all that is asked for; else null
  uint16_t* cells;       ///< [n][4]
  uint32_t* counts;      ///< [cells]: visits; 0 before and after
  uint32_t* ends;        ///< [cells]: of the visits of each, once they are there
  uint32_t* visits;      ///< token * 4 + place, by cell
  VisitTile* tiles;
  uint32_t* n_tiles;
  FoundChild* found;  ///< [n][4]
  CodeArrays out;
  uint32_t n;

  WEFT_BODY uint32_t n_places() const { return table.n < kPlaces ? table.n : kPlaces; }
};

enum class BuildStage : uint8_t { bytes, cells, plan, visit, children, codes };

/// Cells of tokens 32 * number .. + 31.
template <unsigned kSteps>
WEFT_BODY void find_cells(const Warp& warp, const Batch& batch, uint32_t number,
                          NearestScratch& scratch) {
  const uint32_t first = number * kTileRows;
  const TileOfRows<kSteps> rows(
      warp,
      [&](unsigned i) {
        const uint32_t row = first + i < batch.n ? first + i : batch.n - 1;
        return batch.bytes + uint64_t{row} * batch.table.all.dim;
      },
      batch.table.all.dim);
  find_nearest(warp, rows, batch.table, scratch);
  warp.step([&](unsigned t) {
    const uint32_t row = first + t;
    for (unsigned place = 0; row < batch.n && place < batch.n_places(); ++place) {
      const uint32_t at = place_of(scratch.keys[place][t]);
      const uint32_t cell = batch.table.numbers[at < batch.table.n ? at : batch.table.n - 1];
      if (batch.labels == nullptr) {
        batch.cells[row * kPlaces + place] = static_cast<uint16_t>(cell);
        add(batch.counts[cell], 1);
      } else if (place == 0) {
        batch.labels[row] = static_cast<uint16_t>(cell);
      }
    }
  });
}

/// Where the visits of each cell go, and the tiles of 32 they are taken in. One block; sums: [2][its
/// threads], shared.
WEFT_BODY void plan_visits(const PlanBlock& block, const Batch& batch,
                           uint32_t (&sums)[2][kPlanThreads]) {
  const uint32_t share = (batch.table.n + kPlanThreads - 1) / kPlanThreads;
  const auto each = [&](unsigned t, const auto& visit) {
    for (uint32_t cell = t * share; cell < (t + 1) * share && cell < batch.table.n; ++cell) {
      visit(cell);
    }
  };
  block.step([&](unsigned t) {
    sums[0][t] = sums[1][t] = 0;
    each(t, [&](uint32_t cell) {
      sums[0][t] += batch.counts[cell];
      sums[1][t] += (batch.counts[cell] + kTileRows - 1) / kTileRows;
    });
  });
  block.step([&](unsigned t) {
    if (t < 2) {
      uint32_t before = 0;
      for (uint32_t& sum : sums[t]) {
        const uint32_t own = sum;
        sum = before;
        before += own;
      }
      if (t == 1) {
        *batch.n_tiles = before;
      }
    }
  });
  block.step([&](unsigned t) {
    uint32_t at = sums[0][t], tile = sums[1][t];
    each(t, [&](uint32_t cell) {
      const uint32_t count = batch.counts[cell];
      batch.counts[cell] = 0;
      batch.ends[cell] = at;  // grows as visits come
      for (uint32_t i = 0; i < count; i += kTileRows) {
        batch.tiles[tile++] = {at + i, cell};
      }
      at += count;
    });
  });
}

/// Visits first .. first + 31 to their cells.
WEFT_BODY void put_visits(const Warp& warp, const Batch& batch, uint32_t first) {
  warp.step([&](unsigned t) {
    const uint32_t visit = first + t;
    if (visit < batch.n * kPlaces && visit % kPlaces < batch.n_places()) {
      batch.visits[add(batch.ends[batch.cells[visit]], 1)] = visit;
    }
  });
}

/// The best child of each visit of a tile: dot + bias, of equals the smaller number.
template <unsigned kSteps>
WEFT_BODY void find_children(const Warp& warp, const Batch& batch, uint32_t number,
                             FoundChild (&scratch)[4][kTileRows]) {
  const VisitTile tile = batch.tiles[number];
  const uint32_t end = batch.ends[tile.cell];
  const uint32_t begin_child = batch.how.child_offsets[tile.cell];
  const uint32_t end_child = batch.how.child_offsets[tile.cell + 1];
  const Centroids fine{batch.how.fine, batch.how.fine_bias, batch.how.dim};
  const TileOfRows<kSteps> rows(
      warp,
      [&](unsigned i) {
        const uint32_t at = tile.first + i < end ? tile.first + i : end - 1;
        return batch.bytes + uint64_t{batch.visits[at] / kPlaces} * batch.how.dim;
      },
      batch.how.dim);
  Lane<FoundChild> best[2 * kRowTiles];
  warp.step([&](unsigned t) {
    WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) best[i][t] = {kLowest, 0};
  });
  for (uint32_t column = begin_child; column < end_child; column += kColumnsAtOnce) {
    Lane<Sums> sums[kRowTiles];
    multiply_eight(warp, rows, fine, column, end_child, sums);
    warp.step([&](unsigned t) {
      WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
        WEFT_UNROLL for (unsigned j = 0; j < 2; ++j) {
          const int32_t sum = sums[i / 2][t].at[2 * (i % 2) + j];
          const bool better = sum > best[i][t].value;
          best[i][t].value = better ? sum : best[i][t].value;
          best[i][t].child = better ? column + 2 * (t % 4) + j - begin_child : best[i][t].child;
        }
      }
    });
  }
  warp.step([&](unsigned t) {
    WEFT_UNROLL for (unsigned i = 0; i < 2 * kRowTiles; ++i) {
      scratch[t % 4][8 * i + t / 4] = best[i][t];
    }
  });
  warp.step([&](unsigned t) {
    FoundChild first = scratch[0][t];
    for (unsigned i = 1; i < 4; ++i) {
      const FoundChild other = scratch[i][t];
      if (other.value > first.value || (other.value == first.value && other.child < first.child)) {
        first = other;
      }
    }
    if (tile.first + t < end) {
      batch.found[batch.visits[tile.first + t]] = first;
    }
  });
}

/// Codes of token `number`: of equal children that in the nearer cell.
WEFT_BODY void write_codes(const Warp& warp, const Batch& batch, uint32_t number, float* scratch) {
  unsigned place = 0;
  FoundChild best = batch.found[uint64_t{number} * kPlaces];
  for (unsigned i = 1; i < batch.n_places(); ++i) {
    const FoundChild other = batch.found[uint64_t{number} * kPlaces + i];
    if (other.value > best.value) {
      best = other;
      place = i;
    }
  }
  encode(warp, batch.how, batch.rows + uint64_t{number} * batch.how.row_dim, number,
         batch.cells[number * kPlaces + place], best.child, batch.out, scratch);
}

}  // namespace weft::cuda
