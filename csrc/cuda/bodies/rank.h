// SPDX-License-Identifier: Apache-2.0
//
// Interact, skim and refine: scores of candidates from more and more of what is stored, and the best of
// them. See search/interact.h and search/ranker.h for what is computed.
#pragma once

#include "cuda/bodies/gather.h"
#include "cuda/bodies/pruned.h"

namespace weft::cuda {

inline constexpr unsigned kLeadersHeld = kTokensAtOnce + kWarp;  ///< by a warp that skims
inline constexpr unsigned kRowThreads = 8;  ///< read 32 entries of a token's row

/// Candidates number, number + n_warps ...: the largest table entries of their tokens, and their keys.
WEFT_BODY void interact(const Warp& warp, const Pruned& all, uint32_t query, uint32_t number,
                        uint32_t n_warps) {
  const PrunedQuery& of = all.queries[query];
  const uint32_t n = all.progress[query].n_gathered;
  const uint8_t* const table = all.table + uint64_t{query} * all.most_rows * all.lanes;
  const uint32_t* const cells = all.cells + uint64_t{query} * (all.tree.n_cells + 1);
  const uint64_t first = uint64_t{query} * all.ncandidates;
  for (uint32_t i = number; i < n; i += n_warps) {
    const PrunedDoc& doc = all.found[first + i];
    const uint64_t begin = all.all.offsets[doc.doc], end = all.all.offsets[doc.doc + 1];
    uint32_t sum = 0;
    for (uint32_t pass = 0; pass < of.n_passes; ++pass) {
      Lane<uint32_t> best, bytes;
      warp.step([&](unsigned t) {  // a fourth of the tokens, four entries of each
        best[t] = 0;
        for (uint64_t at = begin + t / kRowThreads; at < end; at += kWarp / kRowThreads) {
          const uint64_t row = row_of(all, cells, all.all.fines[at]);
          const uint8_t* const entries = table + row * all.lanes + pass * kPassRows;
          best[t] =
              larger_bytes(best[t], reinterpret_cast<const uint32_t*>(entries)[t % kRowThreads]);
        }
      });
      largest_bytes(best);
      warp.step([&](unsigned t) {
        uint8_t* const out = all.best + (first + i) * all.lanes + pass * kPassRows;
        bytes[t] = 0;
        if (t < kRowThreads) {
          reinterpret_cast<uint32_t*>(out)[t] = best[t];
          for (unsigned at = 0; at < 32; at += 8) {
            bytes[t] += best[t] >> at & 255;
          }
        }
      });
      sum += sum_of(bytes);
    }
    warp.step([&](unsigned t) {
      if (t == 0) {
        const uint32_t value = kTableShare * sum + kGainShare * (doc.gain << of.gain_shift);
        all.keys[first + i] = key_of_sum(value, doc.doc);
      }
    });
  }
}

/// Keeps the candidates with the least keys, `keep` of them, and of those with kNoKey none; where there
/// are no more than `keep`, all.
WEFT_BODY void cut(const Block& block, const Pruned& all, uint32_t query, const PrunedDoc* from,
                   uint32_t n, uint32_t keep, PrunedDoc* to, uint32_t& n_kept,
                   PrunedShared& shared) {
  const uint64_t first = uint64_t{query} * all.ncandidates;
  const uint64_t* const keys = all.keys + first;
  const auto last =
      kth_least<uint64_t>(block, shared, n, keep, [&](uint32_t i) { return keys[i]; });
  block.step([&](unsigned t) {
    for (uint32_t i = t; i < n; i += kSelectThreads) {
      if (n <= keep || (keys[i] <= last && keys[i] != kNoKey)) {
        const PrunedDoc& doc = from[first + i];
        to[first + add(n_kept, 1u)] = {doc.doc, doc.gain, i};
      }
    }
  });
}

/// Whether a token's entries reach the largest ones of its document, for any token of the query.
WEFT_BODY bool is_leader(const uint8_t* row, const uint8_t* best, uint32_t lanes) {
  bool leads = false;
  for (uint32_t at = 0; at < lanes; at += 16) {
    const auto entries = *reinterpret_cast<const Words<4>*>(row + at);
    const auto most = *reinterpret_cast<const Words<4>*>(best + at);
    WEFT_UNROLL for (unsigned i = 0; i < 4; ++i) {
      leads |= any_byte_reaches(entries.at[i], larger_bytes(most.at[i], 0x0101'0101u));
    }
  }
  return leads;
}

/// Scores candidates number, number + n_warps ... by pass `pass` of their query, if it has so many;
/// after its last pass they have keys, and refine has given kNoKey to the places past them.
/// kSkims: by their leaders alone, and not at all where refine takes every candidate.
/// leaders: kLeadersHeld numbers, shared by the warp.
template <unsigned kBits, unsigned kSteps, bool kSkims>
WEFT_BODY void score_candidates(const Warp& warp, const Pruned& all, uint32_t query, uint32_t pass,
                                uint32_t number, uint32_t n_warps,
                                [[maybe_unused]] uint32_t* leaders) {
  const PrunedQuery& of = all.queries[query];
  const Progress& progress = all.progress[query];
  const bool was_skimmed = !kSkims && all.skims != 0;
  const PrunedDoc* const docs = was_skimmed ? all.found : all.kept;
  const uint32_t n = was_skimmed ? progress.n_skimmed : progress.n_interacted;
  if (pass >= of.n_passes || (kSkims && n <= all.nrefine)) {
    return;
  }
  const uint8_t* const table = all.table + uint64_t{query} * all.most_rows * all.lanes;
  const uint32_t* const cells = all.cells + uint64_t{query} * (all.tree.n_cells + 1);
  const uint64_t first = uint64_t{query} * all.ncandidates;
  const bool is_last = pass + 1 == of.n_passes;
  CodeScorer<kBits, kSteps> scorer(warp, all.all, of.passes[pass]);
  for (uint32_t i = number; i < n; i += n_warps) {
    const PrunedDoc& doc = docs[first + i];
    const uint64_t begin = all.all.offsets[doc.doc], end = all.all.offsets[doc.doc + 1];
    const float before = pass > 0 ? all.scores[first + i] : 0.0f;
    float total = -HUGE_VALF;
    if constexpr (!kSkims) {
      total = begin < end ? scorer.score(begin, end, before) : total;
    } else if (begin < end) {
      const uint8_t* const best = all.best + (first + doc.row) * all.lanes;
      uint32_t held = 0;
      bool any = false;
      scorer.start();
      for (uint64_t at = begin; at < end; at += kWarp) {
        Lane<uint32_t> leads, rest;
        warp.step([&](unsigned t) {
          leads[t] = 0;
          if (at + t < end) {
            const uint64_t row = row_of(all, cells, all.all.fines[at + t]);
            leads[t] = is_leader(table + row * all.lanes, best, of.n_passes * kPassRows) ? 1 : 0;
          }
        });
        const uint32_t bits = votes(leads);
        const bool at_end = at + kWarp >= end;
        any = any || bits != 0;
        warp.step([&](unsigned t) {
          if (leads[t] != 0) {
            leaders[held + count_below(bits, t)] = static_cast<uint32_t>(at - begin) + t;
          } else if (at_end && !any && t == 0) {  // the first token, where none leads
            leaders[0] = 0;
          }
        });
        held += count_below(bits, kWarp);
        held = at_end && !any ? 1 : held;
        uint32_t done = 0;
        while (held - done >= kTokensAtOnce || (at_end && done < held)) {
          scorer.add(
              [&](unsigned j) { return begin + leaders[done + j < held ? done + j : held - 1]; });
          done = done + kTokensAtOnce < held ? done + kTokensAtOnce : held;
        }
        warp.step([&](unsigned t) { rest[t] = done + t < held ? leaders[done + t] : 0; });
        warp.step([&](unsigned t) {
          if (done + t < held) {
            leaders[t] = rest[t];
          }
        });
        held -= done;
      }
      total = scorer.finish(before);
    }
    warp.step([&](unsigned t) {
      if (t == 0) {
        all.scores[first + i] = total;
        if (is_last) {
          all.keys[first + i] = key_of(total, all.all.ranks[doc.doc]);
        }
      }
    });
  }
  if (is_last && !kSkims) {
    warp.step([&](unsigned t) {
      for (uint64_t i = n + uint64_t{number} * kWarp + t; i < all.nrefine;
           i += uint64_t{n_warps} * kWarp) {
        all.keys[first + i] = kNoKey;
      }
    });
  }
}

}  // namespace weft::cuda
