// SPDX-License-Identifier: Apache-2.0
#include "search/query.h"

#include <algorithm>
#include <cmath>

#include "base/buffer.h"
#include "kernels/dispatch.h"

namespace weft {

namespace {

/// Tokens whose cosine is at least this are one token for probe and gather (docs/adr/0016).
constexpr double kSameToken = 0.95;

}  // namespace

PreparedQuery::PreparedQuery(MatrixView<const float> rows, const Codec* codec)
    : n_tokens(rows.rows), exact(rows) {
  if (codec == nullptr) {
    return;
  }
  const kernels::Kernels& kernel = kernels::active();
  const size_t padded = codec->padded_dim();
  AlignedBuffer<float> turned(n_tokens * padded);
  float widest = 0.0f;
  for (size_t i = 0; i < n_tokens; ++i) {
    float* out = turned.data() + i * padded;
    codec->rotation().apply(rows.row(i), out);
    float squared = 0.0f;
    for (size_t d = 0; d < padded; ++d) {
      widest = std::max(widest, std::fabs(out[d]));
      squared += out[d] * out[d];
    }
    lengths.push_back(std::sqrt(squared));
  }
  rotated_exact = FloatTileBuffer({turned.data(), n_tokens, padded, padded});
  scale = widest / 127.0f;
  AlignedBuffer<int8_t> bytes(n_tokens * padded);
  for (size_t i = 0; i < n_tokens; ++i) {
    kernel.to_int8(turned.data() + i * padded, padded, widest > 0.0f ? 127.0f / widest : 0.0f,
                   bytes.data() + i * padded);
  }
  rotated = ByteTileBuffer({bytes.data(), n_tokens, padded, padded});

  const size_t lanes = rotated.view().lanes();
  AlignedBuffer<int32_t> dots(n_tokens * lanes);
  kernel.tile_dots(rotated.view(), bytes.data(), n_tokens, dots.data());
  const auto dot = [&](size_t i, size_t j) { return static_cast<double>(dots[i * lanes + j]); };
  for (size_t i = 0; i < n_tokens; ++i) {
    longest = std::max(longest, std::sqrt(dot(i, i)));
    const auto same = std::find_if(merged.begin(), merged.end(), [&](const Merged& other) {
      const size_t j = other.lane;
      return dot(i, j) > 0.0 &&
             dot(i, j) * dot(i, j) >= kSameToken * kSameToken * dot(i, i) * dot(j, j);
    });
    if (same == merged.end()) {
      merged.push_back({static_cast<uint32_t>(i), 1});
    } else {
      ++same->weight;
    }
  }
}

}  // namespace weft
