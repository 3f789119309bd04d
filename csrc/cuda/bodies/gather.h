// SPDX-License-Identifier: Apache-2.0
//
// Gather and select: the gains of documents from the lists that are read, and the documents with the
// largest sums. See search/gather.h for what is computed.
//
// A document's word is {token + 1: 16 bits, its best gain: 16, sum: 32}. A posting of token i with gain g
// finds `base`, the sum without token i, and raises the word to {i + 1, g, base + g}. All postings of one
// (document, token) find the same base, so the largest is right in any order; tokens come one launch
// after another. Who finds a word at 0 lists the document, so nothing of the size of the collection is
// read or cleared.
#pragma once

#include "cuda/bodies/pruned.h"

namespace weft::cuda {

WEFT_BODY uint32_t sum_in(uint64_t word) { return static_cast<uint32_t>(word); }
WEFT_BODY uint64_t word_of(uint32_t token, uint32_t gain, uint32_t sum) {
  return uint64_t{token + 1} << 48 | uint64_t{gain} << 32 | sum;
}
/// Larger sums first, then lower documents.
WEFT_BODY uint64_t key_of_sum(uint32_t sum, uint32_t doc) { return uint64_t{~sum} << 32 | doc; }

/// Counts the postings of documents in `allow`, of lists number, number + n_warps ...
WEFT_BODY void count_survivors(const Warp& warp, const Pruned& all, uint32_t number,
                               uint32_t n_warps) {
  for (uint64_t fine = number; fine < all.all.n_fine; fine += n_warps) {
    const uint64_t end = all.tree.offsets[fine + 1];
    Lane<uint32_t> n;
    warp.step([&](unsigned t) {
      n[t] = 0;
      for (uint64_t at = all.tree.offsets[fine] + t; at < end; at += kWarp) {
        const uint32_t doc = all.tree.postings[at];
        n[t] += doc < all.all.n_docs && is_in(all.allow, doc) ? 1 : 0;
      }
    });
    const uint32_t sum = sum_of(n);
    warp.step([&](unsigned t) {
      if (t == 0) {
        all.survivors[fine] = sum;
      }
    });
  }
}

/// Reads lists number, number + n_warps ... of one merged token.
WEFT_BODY void gather(const Warp& warp, const Pruned& all, uint32_t query, uint32_t token,
                      uint32_t number, uint32_t n_warps) {
  const PrunedQuery& of = all.queries[query];
  if (token >= of.n_merged) {
    return;
  }
  const uint64_t at_token = uint64_t{query} * all.most_merged + token;
  const TokenLists& own = all.token_lists[at_token];
  const List* const lists = all.lists + at_token * all.most_lists;
  uint64_t* const words = all.words + uint64_t{query} * (all.all.n_docs + uint64_t{1});
  uint32_t* const met = all.met + uint64_t{query} * all.all.n_docs;
  for (uint32_t i = number; i < own.n_read; i += n_warps) {
    const uint32_t gain = gain_of(of, token, lists[i].score, own.floor);
    const uint64_t end = all.tree.offsets[lists[i].fine + 1];
    for (uint64_t at = all.tree.offsets[lists[i].fine]; at < end; at += kWarp) {
      Lane<uint32_t> docs, is_new, place;
      warp.step([&](unsigned t) {
        is_new[t] = 0;
        docs[t] = at + t < end ? all.tree.postings[at + t] : all.all.n_docs;
        if (docs[t] < all.all.n_docs && is_in(all.allow, docs[t])) {
          uint64_t& word = words[docs[t]];
          const uint64_t seen = glance(word);
          const auto best =
              static_cast<uint32_t>(seen >> 48 == token + 1 ? seen >> 32 & 0xffff : 0);
          is_new[t] = raise(word, word_of(token, gain, sum_in(seen) - best + gain)) == 0 ? 1 : 0;
        }
      });
      const uint32_t bits = votes(is_new);
      if (bits != 0) {
        warp.step([&](unsigned t) {
          place[t] = t == 0 ? add(all.progress[query].n_met, count_below(bits, kWarp)) : 0;
        });
        const uint32_t first = read(place, 0);
        warp.step([&](unsigned t) {
          if (is_new[t] != 0) {
            met[first + count_below(bits, t)] = docs[t];
          }
        });
      }
    }
  }
}

/// Counts the sums of documents met, those of thread blocks `number`, number + n_blocks ...
WEFT_BODY void tally(const Block& block, const Pruned& all, uint32_t query, uint32_t number,
                     uint32_t n_blocks, PrunedShared& shared) {
  const Progress& progress = all.progress[query];
  const uint64_t* const words = all.words + uint64_t{query} * (all.all.n_docs + uint64_t{1});
  const uint32_t* const met = all.met + uint64_t{query} * all.all.n_docs;
  uint32_t* const bins = all.bins + uint64_t{query} * kBins;
  if (uint64_t{number} * kSelectThreads >= progress.n_met) {
    return;
  }
  block.step([&](unsigned t) {
    for (unsigned bin = t; bin < kBins; bin += kSelectThreads) {
      shared.bins[bin] = 0;
    }
  });
  block.step([&](unsigned t) {
    for (uint64_t i = uint64_t{number} * kSelectThreads + t; i < progress.n_met;
         i += uint64_t{n_blocks} * kSelectThreads) {
      const uint32_t bin = sum_in(words[met[i]]) >> progress.bin_shift;
      add(shared.bins[bin < kBins ? bin : kBins - 1], 1u);
    }
  });
  block.step([&](unsigned t) {
    for (unsigned bin = t; bin < kBins; bin += kSelectThreads) {
      if (shared.bins[bin] != 0) {
        add(bins[bin], shared.bins[bin]);
      }
    }
  });
}

/// Of the bins from the highest down, the first one that brings `ncandidates` documents, or the last one.
WEFT_BODY uint32_t find_cut(const Block& block, const Pruned& all, const uint32_t* bins,
                            PrunedShared& shared) {
  constexpr unsigned kShare = kBins / kSelectThreads;
  block.step([&](unsigned t) {
    uint32_t sum = 0;
    for (unsigned i = 0; i < kShare; ++i) {
      sum += bins[kBins - 1 - t * kShare - i];
    }
    shared.sums[t] = sum;
    if (t == 0) {
      shared.number = 0;
    }
  });
  add_up(block, shared.sums);
  block.step([&](unsigned t) {
    uint32_t above = t > 0 ? shared.sums[t - 1] : 0;
    if (above < all.ncandidates && shared.sums[t] >= all.ncandidates) {
      uint32_t bin = kBins - 1 - t * kShare;
      while (above + bins[bin] < all.ncandidates) {
        above += bins[bin--];
      }
      shared.number = bin;
    }
  });
  return shared.number;
}

/// Documents above the cut become candidates, those in its bin are listed; no word is needed any more.
WEFT_BODY void collect(const Block& block, const Pruned& all, uint32_t query, uint32_t number,
                       uint32_t n_blocks, PrunedShared& shared) {
  Progress& progress = all.progress[query];
  uint64_t* const words = all.words + uint64_t{query} * (all.all.n_docs + uint64_t{1});
  const uint32_t* const met = all.met + uint64_t{query} * all.all.n_docs;
  uint64_t* const boundary = all.boundary + uint64_t{query} * all.all.n_docs;
  PrunedDoc* const found = all.found + uint64_t{query} * all.ncandidates;
  if (uint64_t{number} * kSelectThreads >= progress.n_met) {
    return;
  }
  const uint32_t cut = find_cut(block, all, all.bins + uint64_t{query} * kBins, shared);
  block.step([&](unsigned t) {
    for (uint64_t i = uint64_t{number} * kSelectThreads + t; i < progress.n_met;
         i += uint64_t{n_blocks} * kSelectThreads) {
      const uint32_t doc = met[i], sum = sum_in(words[doc]);
      const uint32_t shifted = sum >> progress.bin_shift;
      const uint32_t bin = shifted < kBins ? shifted : kBins - 1;
      words[doc] = 0;
      if (bin > cut) {
        found[add(progress.n_gathered, 1u)] = {doc, sum, 0};
      } else if (bin == cut) {
        boundary[add(progress.n_boundary, 1u)] = key_of_sum(sum, doc);
      }
    }
  });
}

/// The best of the documents in the cut's bin are the last candidates.
WEFT_BODY void settle(const Block& block, const Pruned& all, uint32_t query, PrunedShared& shared) {
  Progress& progress = all.progress[query];
  const uint64_t* const boundary = all.boundary + uint64_t{query} * all.all.n_docs;
  PrunedDoc* const found = all.found + uint64_t{query} * all.ncandidates;
  const uint32_t n = progress.n_boundary, wanted = all.ncandidates - progress.n_gathered;
  block.step([](unsigned) {});  // before any thread adds to it
  const auto last =
      kth_least<uint64_t>(block, shared, n, wanted, [&](uint32_t i) { return boundary[i]; });
  block.step([&](unsigned t) {
    for (uint32_t i = t; i < n; i += kSelectThreads) {
      if (boundary[i] <= last) {
        found[add(progress.n_gathered, 1u)] = {static_cast<uint32_t>(boundary[i]),
                                               ~static_cast<uint32_t>(boundary[i] >> 32), 0};
      }
    }
  });
}

}  // namespace weft::cuda
