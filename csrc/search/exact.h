// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/buffer.h"
#include "base/parallel.h"
#include "base/topk.h"
#include "base/views.h"
#include "quantizer/tile.h"

namespace weft {

/// Rows of either width: exactly one of the two is set.
struct ExactRows {
  RaggedView<const float> f32;
  RaggedView<const uint16_t> f16;

  size_t size() const noexcept { return f32.offsets.empty() ? f16.size() : f32.size(); }
};

/// scores[i] = MaxSim(query, document i) in f32: sum over query rows of the largest dot product with a
/// document row; -infinity for a document without rows. The definition everything else is measured
/// against [COLBERTV2 §3.1]. Same bits for any number of threads. Error(invalid_argument) names the first
/// row that is not finite or all zero.
void maxsim(MatrixView<const float> query, const ExactRows& docs, std::span<float> scores,
            size_t threads, const std::function<bool()>& poll = {});

/// The exact top k of many queries over rows that stream by: ground truth without holding the
/// collection. An int8 pass with a rigorous error bound leaves out documents that cannot enter a
/// query's top k; those that might are scored in f32, so the result is that of maxsim().
class Truth {
 public:
  Truth(RaggedView<const float> queries, size_t k, size_t threads);

  /// Scores the documents of `docs`; document i has number first_doc + i.
  void scan(RaggedView<const uint16_t> docs, uint64_t first_doc,
            const std::function<bool()>& poll = {});

  size_t query_count() const noexcept { return queries_.size(); }
  size_t k() const noexcept { return k_; }
  /// Best first: (score, document number), ties by document number.
  std::vector<std::pair<float, uint64_t>> result(size_t query) const;

 private:
  struct Query {
    FloatTileBuffer exact;
    ByteTileBuffer bytes;
    size_t n_tokens;
    float scale;       ///< row = int8 * scale + error
    float length_sum;  ///< sum of row lengths
    float error_sum;   ///< sum of the lengths of the rounding errors
  };

  size_t dim_;
  size_t k_;
  size_t threads_;
  std::vector<Query> queries_;
  std::vector<std::vector<TopK>> tops_;  ///< [worker][query]
};

}  // namespace weft
