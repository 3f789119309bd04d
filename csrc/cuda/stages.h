// SPDX-License-Identifier: Apache-2.0
//
// How the stages of a pruned search are launched: which group of threads runs a body, how many of them
// there are, and what each takes. The same for every runtime.
#pragma once

#include "cuda/bodies/gather.h"
#include "cuda/bodies/probe.h"
#include "cuda/bodies/rank.h"

namespace weft::cuda {

inline constexpr unsigned kStageWarps = 8;  ///< in a thread block of warps

constexpr bool is_for_blocks(Stage stage) {
  switch (stage) {
    case Stage::choose_cells:
    case Stage::open_cells:
    case Stage::order_lists:
    case Stage::spend_budget:
    case Stage::tally:
    case Stage::collect:
    case Stage::settle:
    case Stage::keep_interacted:
    case Stage::keep_skimmed:
      return true;
    default:
      return false;
  }
}

/// Warps or thread blocks for each query; `many`: as many warps as keep the device busy.
inline uint32_t groups_of(Stage stage, const Pruned& all, uint32_t many) {
  const uint32_t warps = (many + all.n_queries - 1) / all.n_queries;
  const auto at_most = [&](uint64_t useful, uint32_t limit) {
    return static_cast<uint32_t>(useful < 1 ? 1 : useful < limit ? useful : limit);
  };
  switch (stage) {
    case Stage::choose_cells:
    case Stage::order_lists:
      return all.most_merged;
    case Stage::tally:
    case Stage::collect:
      return at_most(warps / kBlockWarps, 64);
    case Stage::count_survivors:
      return at_most(all.all.n_fine, many);
    case Stage::score_cells:
      return at_most(all.tree.n_cells / kColumns + 1, many);
    case Stage::score_children:
      return at_most(uint64_t{all.most_opened} * kPartsOfCell, warps);
    case Stage::gather:
      return at_most(all.most_lists, warps);
    case Stage::interact:
      return at_most(all.ncandidates, warps);
    case Stage::skim:
      return at_most(all.ninteract, warps);
    case Stage::refine:
      return at_most(all.nrefine, warps);
    default:
      return 1;
  }
}

/// Thread block x of n_x of one query.
template <Stage kStage>
WEFT_BODY void block_share(const Block& block, const Pruned& all, uint32_t query, uint32_t x,
                           uint32_t n_x, PrunedShared& shared) {
  Progress& progress = all.progress[query];
  if constexpr (kStage == Stage::choose_cells) {
    choose_cells(block, all, query, x, shared);
  } else if constexpr (kStage == Stage::open_cells) {
    open_cells(block, all, query, shared);
  } else if constexpr (kStage == Stage::order_lists) {
    order_lists(block, all, query, x, shared);
  } else if constexpr (kStage == Stage::spend_budget) {
    spend_budget(block, all, query, shared);
  } else if constexpr (kStage == Stage::tally) {
    tally(block, all, query, x, n_x, shared);
  } else if constexpr (kStage == Stage::collect) {
    collect(block, all, query, x, n_x, shared);
  } else if constexpr (kStage == Stage::settle) {
    settle(block, all, query, shared);
  } else if constexpr (kStage == Stage::keep_interacted) {
    cut(block, all, query, all.found, progress.n_gathered, all.ninteract, all.kept,
        progress.n_interacted, shared);
  } else {
    static_assert(kStage == Stage::keep_skimmed);
    cut(block, all, query, all.kept, progress.n_interacted, all.nrefine, all.found,
        progress.n_skimmed, shared);
  }
}

/// Warp x of n_x of one query, where neither bits nor dims matter.
template <Stage kStage>
WEFT_BODY void warp_share(const Warp& warp, const Pruned& all, uint32_t query, uint32_t number,
                          uint32_t x, uint32_t n_x) {
  if constexpr (kStage == Stage::count_survivors) {
    count_survivors(warp, all, x, n_x);
  } else if constexpr (kStage == Stage::gather) {
    gather(warp, all, query, number, x, n_x);
  } else {
    static_assert(kStage == Stage::interact);
    interact(warp, all, query, x, n_x);
  }
}

template <Stage kStage, unsigned kSteps>
WEFT_BODY void centroids_share(const Warp& warp, const Pruned& all, uint32_t query, uint32_t x,
                               uint32_t n_x) {
  if constexpr (kStage == Stage::score_cells) {
    score_cells<kSteps>(warp, all, query, x, n_x);
  } else {
    static_assert(kStage == Stage::score_children);
    score_children<kSteps>(warp, all, query, x, n_x);
  }
}

/// Calls run.template operator()<kStage>() for one of kStages.
template <Stage... kStages, class Run>
void with_stage(Stage stage, const Run& run) {
  const auto try_one = [&]<Stage kStage>() {
    if (stage == kStage) {
      run.template operator()<kStage>();
    }
  };
  (try_one.template operator()<kStages>(), ...);
}

template <class Run>
void with_block_stage(Stage stage, const Run& run) {
  with_stage<Stage::choose_cells, Stage::open_cells, Stage::order_lists, Stage::spend_budget,
             Stage::tally, Stage::collect, Stage::settle, Stage::keep_interacted,
             Stage::keep_skimmed>(stage, run);
}

}  // namespace weft::cuda
