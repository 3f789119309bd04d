// SPDX-License-Identifier: Apache-2.0
//
// Probe: scores of all cells, the best cells of every query token, scores of their children, every
// token's lists in order, and how many of them are read. See search/probe.h for what is computed.
#pragma once

#include "cuda/bodies/pruned.h"

namespace weft::cuda {

/// A thread's share of a centroid, the dims of place p, multiplied step by step.
template <unsigned kSteps>
struct Centroid {
  Words<2 * kSteps> words;

  WEFT_BODY void load(const int8_t* row, uint32_t, unsigned p) {
    words = *reinterpret_cast<const decltype(words)*>(row + p * (8 * kSteps));
  }
  WEFT_BODY uint32_t at(unsigned word) const { return words.at[word]; }
};

template <>
struct Centroid<0> {
  const uint32_t* words;

  WEFT_BODY void load(const int8_t* row, uint32_t dim, unsigned p) {
    words = reinterpret_cast<const uint32_t*>(row + p * (dim / 4));
  }
  WEFT_BODY uint32_t at(unsigned word) const { return words[word]; }
};

/// Scores of eight centroids by a pass: visit(token, column, score, table entry) for each product, by
/// the thread that has it. Token: its place in the pass. place(column): the centroid's row.
template <unsigned kSteps, class Place, class Visit>
WEFT_BODY void score_centroids(const Warp& warp, const QueryRows<kSteps>& rows, uint32_t dim,
                               uint32_t shift, int32_t factor, const Place& place,
                               const Visit& visit) {
  const unsigned n_steps = kSteps > 0 ? kSteps : dim / 32;
  Lane<Centroid<kSteps>> centroid;
  Lane<Sums> sums[kTiles];
  warp.step([&](unsigned t) {
    centroid[t].load(place(t / 4), dim, t % 4);
    WEFT_UNROLL for (unsigned i = 0; i < kTiles; ++i) sums[i][t] = Sums{};
  });
  WEFT_UNROLL for (unsigned step = 0; step < n_steps; ++step) {
    Lane<uint32_t> low, high;
    warp.step([&](unsigned t) {
      low[t] = centroid[t].at(2 * step);
      high[t] = centroid[t].at(2 * step + 1);
    });
    WEFT_UNROLL for (unsigned tile = 0; tile < kTiles; ++tile) {
      multiply<true>(sums[tile], rows.at(warp, step, tile), low, high);
    }
  }
  warp.step([&](unsigned t) {
    WEFT_UNROLL for (unsigned i = 0; i < 4 * kTiles; ++i) {
      const int32_t wide = sums[i / 4][t].at[i % 4] >> shift;
      const int32_t score = wide < INT16_MIN ? INT16_MIN : wide > INT16_MAX ? INT16_MAX : wide;
      const int32_t entry = (score * factor + (1 << 14)) >> 15;
      const int32_t most = kScores - 1;
      visit(16 * (i / 4) + 8 * (i % 4 / 2) + t / 4, 2 * (t % 4) + i % 2, score,
            entry < 0      ? 0
            : entry > most ? most
                           : entry);
    }
  });
}

/// Scores of cells 8 * number .. + 7 of all and so on, by every pass of a query.
template <unsigned kSteps>
WEFT_BODY void score_cells(const Warp& warp, const Pruned& all, uint32_t query, uint32_t number,
                           uint32_t n_warps) {
  const PrunedQuery& of = all.queries[query];
  const uint32_t n_cells = all.tree.n_cells, dim = all.all.dim;
  int16_t* const coarse = all.coarse + uint64_t{query} * all.lanes * n_cells;
  uint8_t* const table = all.table + uint64_t{query} * all.most_rows * all.lanes;
  uint32_t* const cells = all.cells + uint64_t{query} * (n_cells + 1);
  for (uint32_t pass = 0; pass < of.n_passes; ++pass) {
    const QueryRows<kSteps> rows(warp, of.passes[pass].rows);
    for (uint64_t first = uint64_t{number} * kColumns; first <= n_cells;
         first += uint64_t{n_warps} * kColumns) {
      const auto cell_of = [&](unsigned column) {  // the last one, of zeros, for those past it
        return first + column < n_cells ? first + column : n_cells;
      };
      score_centroids<kSteps>(
          warp, rows, dim, of.cell_shift, of.cell_factor,
          [&](unsigned column) { return all.tree.cells + cell_of(column) * dim; },
          [&](unsigned token, unsigned column, int32_t score, int32_t entry) {
            const uint64_t cell = cell_of(column);
            const uint32_t lane = pass * kPassRows + token;
            table[cell * all.lanes + lane] = static_cast<uint8_t>(entry);
            if (first + column < n_cells) {
              coarse[uint64_t{lane} * n_cells + cell] = static_cast<int16_t>(score);
            }
            if (lane == 0) {
              cells[cell] = kClosed;
            }
          });
    }
  }
}

/// The best nprobe cells of one merged token, ties to the lower cell.
WEFT_BODY void choose_cells(const Block& block, const Pruned& all, uint32_t query, uint32_t token,
                            PrunedShared& shared) {
  const PrunedQuery& of = all.queries[query];
  if (token >= of.n_merged) {
    return;
  }
  const uint32_t n_cells = all.tree.n_cells;
  const int16_t* const scores =
      all.coarse + (uint64_t{query} * all.lanes + of.lanes[token]) * n_cells;
  uint32_t* const cells = all.cells + uint64_t{query} * (n_cells + 1);
  uint32_t* const chosen =
      all.token_cells + (uint64_t{query} * all.most_merged + token) * all.nprobe;
  const auto key_at = [&](uint32_t cell) {
    return static_cast<uint32_t>(INT16_MAX - scores[cell]) << 16 | cell;
  };
  const auto last = kth_least<uint32_t>(block, shared, n_cells, all.nprobe, key_at);
  const uint32_t share = (n_cells + kSelectThreads - 1) / kSelectThreads;
  const auto each = [&](unsigned t, const auto& visit) {
    for (uint32_t cell = t * share; cell < (t + 1) * share && cell < n_cells; ++cell) {
      if (key_at(cell) <= last) {
        visit(cell);
      }
    }
  };
  block.step([&](unsigned t) {
    uint32_t n = 0;
    each(t, [&](uint32_t) { ++n; });
    shared.sums[t] = n;
  });
  add_up(block, shared.sums);
  block.step([&](unsigned t) {
    uint32_t at = t > 0 ? shared.sums[t - 1] : 0;
    each(t, [&](uint32_t cell) {
      chosen[at++] = cell;
      cells[cell] = 0;  // several tokens may say so: open_cells() gives it a place
    });
  });
}

/// Gives the children of every chosen cell their rows, and lists these cells.
WEFT_BODY void open_cells(const Block& block, const Pruned& all, uint32_t query,
                          PrunedShared& shared) {
  const uint32_t n_cells = all.tree.n_cells;
  uint32_t* const cells = all.cells + uint64_t{query} * (n_cells + 1);
  uint32_t* const opened = all.opened + uint64_t{query} * all.most_opened;
  uint64_t* const sums = shared.read[0];  // cells above, their children below
  const uint32_t share = (n_cells + kSelectThreads - 1) / kSelectThreads;
  const auto each = [&](unsigned t, const auto& visit) {
    for (uint32_t cell = t * share; cell < (t + 1) * share && cell < n_cells; ++cell) {
      if (cells[cell] != kClosed) {
        visit(cell, all.tree.children[cell + 1] - all.tree.children[cell]);
      }
    }
  };
  block.step([&](unsigned t) {
    uint64_t sum = 0;
    each(t, [&](uint32_t, uint32_t n) { sum += uint64_t{1} << 32 | n; });
    sums[t] = sum;
  });
  add_up(block, sums);
  block.step([&](unsigned t) {
    uint64_t before = t > 0 ? sums[t - 1] : 0;
    each(t, [&](uint32_t cell, uint32_t n) {
      opened[before >> 32] = cell;
      cells[cell] = n_cells + 1 + static_cast<uint32_t>(before) - all.tree.children[cell];
      before += uint64_t{1} << 32 | n;
    });
    if (t == kSelectThreads - 1) {
      all.progress[query].n_opened = static_cast<uint32_t>(sums[t] >> 32);
    }
  });
}

/// Scores of the children of opened cells.
template <unsigned kSteps>
WEFT_BODY void score_children(const Warp& warp, const Pruned& all, uint32_t query, uint32_t number,
                              uint32_t n_warps) {
  const PrunedQuery& of = all.queries[query];
  const uint32_t dim = all.all.dim;
  uint8_t* const table = all.table + uint64_t{query} * all.most_rows * all.lanes;
  const uint32_t* const cells = all.cells + uint64_t{query} * (all.tree.n_cells + 1);
  const uint32_t* const opened = all.opened + uint64_t{query} * all.most_opened;
  const uint32_t n_parts = all.progress[query].n_opened * kPartsOfCell;
  for (uint32_t pass = 0; pass < of.n_passes && number < n_parts; ++pass) {
    const QueryRows<kSteps> rows(warp, of.passes[pass].rows);
    for (uint32_t part = number; part < n_parts; part += n_warps) {
      const uint32_t cell = opened[part / kPartsOfCell];
      const uint32_t end = all.tree.children[cell + 1], row = cells[cell];
      for (uint32_t first = all.tree.children[cell] + part % kPartsOfCell * kColumns; first < end;
           first += kPartsOfCell * kColumns) {
        const auto fine_of = [&](unsigned column) {
          return first + column < end ? first + column : end - 1;
        };
        score_centroids<kSteps>(
            warp, rows, dim, of.passes[pass].shift, of.fine_factor,
            [&](unsigned column) { return all.all.centroids + uint64_t{fine_of(column)} * dim; },
            [&](unsigned token, unsigned column, int32_t, int32_t entry) {
              if (first + column < end) {
                table[uint64_t{first + column + row} * all.lanes + pass * kPassRows + token] =
                    static_cast<uint8_t>(entry);
              }
            });
      }
    }
  }
}

/// The lists of one merged token that are not empty, best score first, then by number: a counting sort.
/// Warps take the token's cells in a row each, so that one counts after the other.
WEFT_BODY void order_lists(const Block& block, const Pruned& all, uint32_t query, uint32_t token,
                           PrunedShared& shared) {
  const PrunedQuery& of = all.queries[query];
  if (token >= of.n_merged) {
    return;
  }
  const uint64_t number = uint64_t{query} * all.most_merged + token;
  const uint32_t* const chosen = all.token_cells + number * all.nprobe;
  const uint32_t* const cells = all.cells + uint64_t{query} * (all.tree.n_cells + 1);
  const uint8_t* const table =
      all.table + uint64_t{query} * all.most_rows * all.lanes + of.lanes[token];
  List* const lists = all.lists + number * all.most_lists;
  const uint32_t share = (all.nprobe + kBlockWarps - 1) / kBlockWarps;

  // visit(fine, bin) for 32 children at a time; those that are none get a bin of their own.
  const auto each = [&](const Warp& warp, unsigned w, const auto& visit) {
    for (uint32_t i = w * share; i < (w + 1) * share && i < all.nprobe; ++i) {
      const uint32_t cell = chosen[i], end = all.tree.children[cell + 1], row = cells[cell];
      for (uint32_t first = all.tree.children[cell]; first < end; first += kWarp) {
        Lane<uint32_t> bins;
        warp.step([&](unsigned t) {
          const uint32_t fine = first + t;
          const bool is_list = fine < end && all.tree.offsets[fine] < all.tree.offsets[fine + 1];
          bins[t] = is_list ? kScores - 1 - table[uint64_t{fine + row} * all.lanes] : kScores + t;
        });
        visit(first, bins);
      }
    }
  };
  block.step([&](unsigned t) {
    for (unsigned i = t; i < kBlockWarps * kScores; i += kSelectThreads) {
      shared.counts[i / kScores][i % kScores] = 0;
    }
  });
  block.each_warp([&](const Warp& warp, unsigned w) {
    each(warp, w, [&](uint32_t, const Lane<uint32_t>& bins) {
      warp.step([&](unsigned t) {
        if (bins[t] < kScores) {
          add(shared.counts[w][bins[t]], 1u);
        }
      });
    });
  });
  block.step([&](unsigned t) {
    uint32_t sum = 0;
    for (unsigned w = 0; w < kBlockWarps && t < kScores; ++w) {
      const uint32_t n = shared.counts[w][t];
      shared.counts[w][t] = sum;
      sum += n;
    }
    shared.sums[t] = sum;
  });
  add_up(block, shared.sums);
  block.step([&](unsigned t) {
    for (unsigned w = 0; w < kBlockWarps && t > 0 && t < kScores; ++w) {
      shared.counts[w][t] += shared.sums[t - 1];
    }
    if (t == 0) {
      all.token_lists[number].n = shared.sums[kScores - 1];
    }
  });
  block.each_warp([&](const Warp& warp, unsigned w) {
    each(warp, w, [&](uint32_t first, const Lane<uint32_t>& bins) {
      const Lane<Same> same = same_before(bins);
      Lane<uint32_t> at;
      warp.step([&](unsigned t) {
        at[t] = bins[t] < kScores ? shared.counts[w][bins[t]] + same[t].before : 0;
      });
      warp.step([&](unsigned t) {
        if (bins[t] < kScores) {
          lists[at[t]] = {first + t, kScores - 1 - bins[t]};
          if (same[t].before == 0) {
            shared.counts[w][bins[t]] += same[t].all;
          }
        }
      });
    });
  });
}

/// Round r reads the r-th best list of every token: how many rounds use up the budget, what floor that
/// gives a token that a document was not met in, and how sums of gains are binned.
WEFT_BODY void spend_budget(const Block& block, const Pruned& all, uint32_t query,
                            PrunedShared& shared) {
  const PrunedQuery& of = all.queries[query];
  const uint64_t number = uint64_t{query} * all.most_merged;
  TokenLists* const tokens = all.token_lists + number;
  const List* const lists = all.lists + number * all.most_lists;
  uint32_t n_rounds = 0;
  for (uint32_t token = 0; token < of.n_merged; ++token) {
    n_rounds = tokens[token].n > n_rounds ? tokens[token].n : n_rounds;
  }
  const uint32_t wanted = all.survivors == nullptr ? 0 : all.wanted_survivors;
  uint64_t read = 0, survived = 0;
  uint32_t n_read = 0;
  while (n_read < n_rounds && (read < all.budget || survived < wanted)) {
    block.step([&](unsigned t) {
      uint64_t postings = 0, survivors = 0;
      for (uint32_t token = 0; token < of.n_merged; ++token) {
        if (n_read + t < tokens[token].n) {
          const uint32_t fine = lists[uint64_t{token} * all.most_lists + n_read + t].fine;
          postings += all.tree.offsets[fine + 1] - all.tree.offsets[fine];
          survivors += wanted > 0 ? all.survivors[fine] : 0;
        }
      }
      shared.read[0][t] = postings;
      shared.read[1][t] = survivors;
      shared.sums[t] = 0;
    });
    add_up(block, shared.read[0]);
    add_up(block, shared.read[1]);
    block.step([&](unsigned t) {
      const uint64_t before = read + (t > 0 ? shared.read[0][t - 1] : 0);
      const uint64_t survived_before = survived + (t > 0 ? shared.read[1][t - 1] : 0);
      const bool goes_on =
          n_read + t < n_rounds && (before < all.budget || survived_before < wanted);
      if (goes_on) {
        add(shared.sums[0], 1u);
      }
    });
    const uint32_t more = shared.sums[0];
    read += shared.read[0][more - 1];
    survived += shared.read[1][more - 1];
    n_read += more;
    block.step([](unsigned) {});  // before the sums are set to 0 again
  }

  block.step([&](unsigned t) { shared.sums[t] = 0; });
  uint32_t* const bins = all.bins + uint64_t{query} * kBins;
  block.step([&](unsigned t) {
    for (uint32_t token = t; token < of.n_merged; token += kSelectThreads) {
      const List* const own = lists + uint64_t{token} * all.most_lists;
      TokenLists& out = tokens[token];
      out.n_read = n_read < out.n ? n_read : out.n;
      out.floor = out.n_read > 0 ? (own[out.n_read - 1].score * all.floor_share) >> 8 : 0;
      if (out.n_read > 0) {
        add(shared.sums[0], gain_of(of, token, own[0].score, out.floor));
      }
    }
    for (unsigned bin = t; bin < kBins; bin += kSelectThreads) {
      bins[bin] = 0;
    }
  });
  block.step([&](unsigned t) {
    if (t == 0) {
      Progress& progress = all.progress[query];
      progress.n_postings = read;
      progress.n_met = progress.n_boundary = progress.n_gathered = 0;
      progress.n_interacted = progress.n_skimmed = 0;
      progress.bin_shift = 0;
      while (shared.sums[0] >> progress.bin_shift >= kBins) {
        ++progress.bin_shift;
      }
    }
  });
}

}  // namespace weft::cuda
