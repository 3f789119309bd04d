// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/bitmap.h"
#include "index/segment.h"
#include "search/backend.h"
#include "search/base_scores.h"
#include "search/query.h"

namespace weft {

/// For a query of one token and documents of one at most: the `keep` documents of `matching` (one bitmap
/// per segment) that score best by their codes, in no order, with all that tie with the last of them.
/// Scores are those of DocumentScorer, bit for bit, at the speed at which codes are read: no candidate is
/// made of a document that is far from the best. `base` knows every centroid. A document whose score is
/// no number is left out.
std::vector<ScannedDoc> scan(std::span<const std::shared_ptr<const Segment>> segments,
                             const PreparedQuery& query, const BaseScores& base,
                             std::span<const BitmapView> matching, size_t keep, size_t threads,
                             const std::function<bool()>& poll);

}  // namespace weft
