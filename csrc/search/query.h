// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "base/views.h"
#include "quantizer/codec.h"
#include "quantizer/tile.h"

namespace weft {

/// One query made ready once: as given for the exact stages, rotated and quantised to int8 (one scale)
/// for the integer ones.
struct PreparedQuery {
  /// A token that stands for itself and its near-duplicates in probe and gather. Queries padded with
  /// [MASK] tokens hold many near-equal rows; without merging they would spend the posting budget on
  /// one direction. Interact, refine and rerank use every token, so scores are sums over all tokens.
  struct Merged {
    uint32_t lane;
    uint32_t weight;
  };

  PreparedQuery(MatrixView<const float> rows, const Codec* codec);

  size_t n_tokens;
  FloatTileBuffer exact;  ///< the rows as given
  FloatTileBuffer
      rotated_exact;  ///< the same, rotated; this and what follows: empty without a codec
  ByteTileBuffer rotated;
  float scale = 0.0f;          ///< rotated row = int8 * scale
  double longest = 0.0;        ///< largest length of an int8 row
  std::vector<float> lengths;  ///< of each row
  std::vector<Merged> merged;
};

}  // namespace weft
