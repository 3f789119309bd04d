// SPDX-License-Identifier: Apache-2.0
//
// Integers all the way: with one int8 scale per query and one per level of centroids, every dot of a
// level is in the same unit, so a score is dot * query.scale * level_scale. Two fixed-point factors
// bring both levels to the same u8 unit; the largest entry is bounded by (longest query row) x (longest
// centroid), hence nothing saturates.
#include "search/probe.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/parallel.h"
#include "kernels/dispatch.h"

namespace weft {

namespace {

constexpr size_t kRowsAtOnce = 128;  // dots of so many centroids stay in the L1 cache
constexpr size_t kCellsAtOnce = 16;  // taken by a thread at a time
constexpr uint32_t kMaxGain = 1'023;

/// Fixed-point factor that turns (dot >> shift) of a level into table units.
int16_t table_factor(double level_scale, unsigned shift, double query_scale, double table_unit) {
  const double factor =
      level_scale * query_scale * std::ldexp(1.0, static_cast<int>(shift)) / table_unit * 32'768.0;
  return static_cast<int16_t>(std::clamp(std::lround(factor), 0L, 32'767L));
}

void score_rows(const kernels::Kernels& kernel, const kernels::ByteTile& tile,
                std::span<const int8_t> rows, unsigned shift, int16_t factor,
                AlignedBuffer<int32_t>& dots, int16_t* base, uint8_t* table) {
  const size_t n = rows.size() / tile.dim;
  const size_t lanes = tile.lanes();
  for (size_t first = 0; first < n; first += kRowsAtOnce) {
    const size_t count = std::min(kRowsAtOnce, n - first);
    kernel.tile_dots(tile, rows.data() + first * tile.dim, count, dots.data());
    kernel.quantize_dots(dots.data(), count * lanes, shift, factor, base + first * lanes,
                         table + first * lanes);
  }
}

/// The best `wanted` cells of every merged token. A bound first: of the largest scores of 4 * wanted
/// groups of cells, the wanted-th largest is reached by at least `wanted` cells, and the few cells above
/// it are sorted. No selection over all cells, no branch per cell and lane.
void choose_cells(const PreparedQuery& query, uint32_t n_cells, size_t wanted, Probe& out) {
  const size_t lanes = out.lanes;
  const size_t n_groups = std::min<size_t>(4 * wanted, n_cells);
  wanted = std::min<size_t>(wanted, n_cells);
  std::vector<uint8_t> tops(n_groups * lanes, 0);
  for (size_t cell = 0; cell < n_cells; ++cell) {
    const uint8_t* row = out.table.data() + cell * lanes;
    uint8_t* top = tops.data() + (cell % n_groups) * lanes;
    for (size_t lane = 0; lane < lanes; ++lane) {
      top[lane] = std::max(top[lane], row[lane]);
    }
  }
  constexpr uint8_t kNever = 255;
  std::vector<uint8_t> least(lanes, kNever);
  std::vector<uint32_t> token_of_lane(lanes, UINT32_MAX);
  std::vector<uint8_t> column(n_groups);
  for (uint32_t token = 0; token < query.merged.size(); ++token) {
    const size_t lane = query.merged[token].lane;
    for (size_t group = 0; group < n_groups; ++group) {
      column[group] = tops[group * lanes + lane];
    }
    std::nth_element(column.begin(), column.begin() + static_cast<ptrdiff_t>(wanted - 1),
                     column.end(), std::greater<>());
    least[lane] = column[wanted - 1];
    token_of_lane[lane] = token;
  }
  out.token_cells.resize(query.merged.size());
  for (auto& cells : out.token_cells) {
    cells.clear();
  }
  for (uint32_t cell = 0; cell < n_cells; ++cell) {
    const uint8_t* row = out.table.data() + size_t{cell} * lanes;
    uint8_t any = 0;
    for (size_t lane = 0; lane < lanes; ++lane) {
      any |= static_cast<uint8_t>(row[lane] >= least[lane]);
    }
    if (any == 0) {
      continue;
    }
    for (size_t lane = 0; lane < lanes; ++lane) {
      if (row[lane] >= least[lane] && token_of_lane[lane] != UINT32_MAX) {
        out.token_cells[token_of_lane[lane]].push_back(cell);
      }
    }
  }
  for (uint32_t token = 0; token < query.merged.size(); ++token) {
    auto& cells = out.token_cells[token];
    const size_t lane = query.merged[token].lane;
    const auto better = [&](uint32_t a, uint32_t b) {
      const int16_t score_a = out.coarse[a * lanes + lane];
      const int16_t score_b = out.coarse[b * lanes + lane];
      return score_a != score_b ? score_a > score_b : a < b;
    };
    if (cells.size() > wanted) {
      std::nth_element(cells.begin(), cells.begin() + static_cast<ptrdiff_t>(wanted), cells.end(),
                       better);
      cells.resize(wanted);
    }
  }
}

/// Scores every coarse centroid.
void score_cells(const PreparedQuery& query, const Codec& codec, const TableGrid& grid,
                 Probe& out) {
  const kernels::ByteTile tile = query.rotated.view();
  const size_t lanes = tile.lanes(), n_cells = codec.n_coarse();
  out.coarse.grow(n_cells * lanes);
  out.table.grow((n_cells + 1 + codec.n_fine() + 255) * lanes);
  out.dots.resize(std::max<size_t>(out.dots.size(), 1));
  out.dots[0].grow(kRowsAtOnce * lanes);
  score_rows(kernels::active(), tile, codec.coarse(), grid.coarse_shift, grid.coarse_factor,
             out.dots[0], out.coarse.data(), out.table.data());
  // The sentinel row is what a damaged code reads: the lowest score there is.
  std::fill_n(out.table.data() + n_cells * lanes, lanes, uint8_t{0});
}

/// Scores the children of every chosen cell and points `cells` at their rows.
void open_cells(const PreparedQuery& query, const Codec& codec, const TableGrid& grid,
                size_t threads, BaseScores& scores, Probe& out) {
  const uint32_t n_cells = codec.n_coarse();
  const auto child_offsets = codec.child_offsets();
  out.cell_open.assign(n_cells, 0);
  for (const auto& cells : out.token_cells) {
    for (const uint32_t cell : cells) {
      out.cell_open[cell] = 1;
    }
  }
  out.opened.clear();
  size_t n_rows = size_t{n_cells} + 1;
  for (uint32_t cell = 0; cell < n_cells; ++cell) {
    out.cells[cell] = cell;
    if (out.cell_open[cell] != 0) {
      out.cells[cell] = static_cast<uint32_t>(n_rows) | 0x8000'0000u;
      n_rows += child_offsets[cell + 1] - child_offsets[cell];
      out.opened.push_back(cell);
    }
  }
  out.cells[n_cells] = n_cells;
  const size_t lanes = out.lanes;
  WEFT_ASSERT(n_rows + 255 <= out.table.size() / lanes);
  const kernels::ByteTile tile = query.rotated.view();
  out.dots.resize(std::max(out.dots.size(), threads));
  const auto open = [&](size_t first, size_t last, size_t worker) {
    out.dots[worker].grow(kRowsAtOnce * lanes);
    for (size_t i = first; i < last; ++i) {
      // Cells lie scattered: the children of the next one are fetched while these are scored.
      if (i + 1 < out.opened.size()) {
        const uint32_t* next = child_offsets.data() + out.opened[i + 1];
        for (size_t at = next[0] * tile.dim; at < next[1] * tile.dim; at += 64) {
          __builtin_prefetch(codec.fine().data() + at, 0, 2);
        }
      }
      const uint32_t cell = out.opened[i];
      const size_t begin = child_offsets[cell], count = child_offsets[cell + 1] - begin;
      uint8_t* rows = out.table.data() + (out.cells[cell] & 0x7fff'ffffu) * lanes;
      score_rows(kernels::active(), tile, codec.fine().subspan(begin * tile.dim, count * tile.dim),
                 grid.fine_shift, grid.fine_factor, out.dots[worker], scores.fill(begin, count),
                 rows);
    }
  };
  parallel_for(out.opened.size(), threads, open, kCellsAtOnce);
}

}  // namespace

TableGrid table_grid(const PreparedQuery& query, const Codec& codec, const SearchParams& params) {
  TableGrid grid{};
  // Lengths of int8 rows, so bounds of dots, are exact up to double rounding.
  const double longest_score = query.longest * query.scale *
                               std::max(codec.longest_coarse() * codec.coarse_scale(),
                                        codec.longest_fine() * codec.fine_scale());
  grid.unit = std::max(longest_score / 255.0, 1e-30);
  grid.coarse_shift = shift_for(query.longest * codec.longest_coarse());
  grid.fine_shift = base_grid(query, codec).shift;
  grid.coarse_factor =
      table_factor(codec.coarse_scale(), grid.coarse_shift, query.scale, grid.unit);
  grid.fine_factor = table_factor(codec.fine_scale(), grid.fine_shift, query.scale, grid.unit);
  // A sum of gains must fit kSumBits: no token can gain more than 255 times its weight.
  uint64_t bound = 0;
  for (const auto& merged : query.merged) {
    bound += uint64_t{255} * merged.weight;
  }
  while ((bound >> grid.gain_shift) > kernels::kSumMask / 2) {
    ++grid.gain_shift;
  }
  grid.floor_share = static_cast<uint32_t>(std::lround(params.floor * 256.0f));
  return grid;
}

void probe(const PreparedQuery& query, const Codec& codec, std::span<const uint32_t> list_lengths,
           const SearchParams& params, size_t threads, BaseScores& scores, Probe& out,
           const CountPostings& surviving) {
  const size_t lanes = query.rotated.view().lanes();
  const uint32_t n_cells = codec.n_coarse();
  out.lanes = lanes;
  out.cells.grow(size_t{n_cells} + 1);
  const TableGrid grid = table_grid(query, codec, params);
  out.table_unit = grid.unit;
  score_cells(query, codec, grid, out);
  choose_cells(query, n_cells, params.nprobe, out);
  open_cells(query, codec, grid, threads, scores, out);

  // Every token's lists, best first: a counting sort over the 256 scores, ties by centroid number.
  const auto child_offsets = codec.child_offsets();
  out.token_lists.resize(query.merged.size());
  size_t rounds = 0;
  for (uint32_t token = 0; token < query.merged.size(); ++token) {
    const size_t lane = query.merged[token].lane;
    auto& cells = out.token_cells[token];
    std::sort(cells.begin(), cells.end());
    std::array<uint32_t, 257> starts{};
    const auto visit = [&](auto&& each) {
      for (const uint32_t cell : cells) {
        const uint8_t* row = out.table.data() + (out.cells[cell] & 0x7fff'ffffu) * lanes + lane;
        for (uint32_t fine = child_offsets[cell]; fine < child_offsets[cell + 1]; ++fine) {
          if (list_lengths[fine] != 0) {
            each(fine, *row);
          }
          row += lanes;
        }
      }
    };
    visit([&](uint32_t, uint8_t score) { ++starts[256u - score]; });
    for (size_t i = 1; i < starts.size(); ++i) {
      starts[i] += starts[i - 1];
    }
    auto& lists = out.token_lists[token];
    lists.resize(starts[256]);
    visit([&](uint32_t fine, uint8_t score) { lists[starts[255u - score]++] = {fine, score}; });
    rounds = std::max(rounds, lists.size());
  }

  // Round r reads the r-th best list of every token: equal lists, until the budget is used.
  out.n_postings = 0;
  const uint64_t wanted = surviving ? std::min(params.budget, params.ncandidates) : 0;
  uint64_t survivors = 0;
  size_t n_rounds = 0;
  for (; n_rounds < rounds && (out.n_postings < params.budget || survivors < wanted); ++n_rounds) {
    out.round.clear();
    for (const auto& lists : out.token_lists) {
      if (n_rounds < lists.size()) {
        out.round.push_back(lists[n_rounds].fine);
        out.n_postings += list_lengths[lists[n_rounds].fine];
      }
    }
    if (survivors < wanted) {
      survivors += surviving(out.round);
    }
  }

  out.gain_shift = grid.gain_shift;
  out.lists.clear();
  out.list_ends.clear();
  out.largest_sum = 0;
  for (uint32_t token = 0; token < query.merged.size(); ++token) {
    const auto& lists = out.token_lists[token];
    const size_t count = std::min(n_rounds, lists.size());
    const uint32_t floor = count > 0 ? (lists[count - 1].gain * grid.floor_share) >> 8 : 0;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t gain =
          ((lists[i].gain - floor) * query.merged[token].weight) >> out.gain_shift;
      out.lists.push_back({lists[i].fine, std::clamp(gain, 1u, kMaxGain)});
    }
    out.largest_sum += count > 0 ? out.lists[out.lists.size() - count].gain : 0;
    out.list_ends.push_back(out.lists.size());
  }
}

}  // namespace weft
