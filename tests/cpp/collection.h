// SPDX-License-Identifier: Apache-2.0
//
// A small collection around a few directions: the files of its codec and of two segments.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "files.h"
#include "index/segment_builder.h"

namespace weft::test {

inline constexpr size_t kDim = 40;
inline constexpr size_t kDocs = 400;
inline constexpr size_t kTokens = 12;  // of every document, and of a query

/// Unit rows around a few directions, as f32.
inline std::vector<float> unit_rows(size_t n, uint64_t seed) {
  Random directions(7);
  std::vector<float> centres(32 * kDim);
  for (float& value : centres) {
    value = directions.normal();
  }
  Random random(seed);
  std::vector<float> rows(n * kDim);
  for (size_t i = 0; i < n; ++i) {
    const float* centre = centres.data() + random.below(32) * kDim;
    double square = 0;
    for (size_t d = 0; d < kDim; ++d) {
      rows[i * kDim + d] = centre[d] + random.normal();
      square += rows[i * kDim + d] * rows[i * kDim + d];
    }
    for (size_t d = 0; d < kDim; ++d) {
      rows[i * kDim + d] /= static_cast<float>(std::sqrt(square));
    }
  }
  return rows;
}

/// The same documents in two segments under one codec, built by `threads` threads.
struct Collection {
  std::shared_ptr<const Codec> codec;
  std::vector<std::shared_ptr<const Segment>> segments;
  std::string bytes;  // of all its files

  Collection(const TemporaryFolder& folder, size_t threads) {
    std::vector<uint16_t> rows;
    for (const float value : unit_rows(kDocs * kTokens, 1)) {
      rows.push_back(float_to_half(value));
    }
    const MatrixView<const uint16_t> all{rows.data(), kDocs * kTokens, kDim, kDim};
    const std::string name = folder / std::to_string(threads);
    {
      CodecParams params;
      params.threads = threads;
      const OutputFile file(name + "-codec");
      Codec::train(all, params).write({file.fd(), name + "-codec"});
    }
    codec = Codec::open(name + "-codec");
    bytes = read_bytes(name + "-codec");
    constexpr size_t kHalf = kDocs / 2;
    for (size_t part = 0; part < 2; ++part) {
      std::string ids;
      std::vector<uint64_t> offsets{0}, id_offsets{0};
      for (size_t doc = part * kHalf; doc < (part + 1) * kHalf; ++doc) {
        ids += "document " + std::to_string(doc);
        id_offsets.push_back(ids.size());
        offsets.push_back(offsets.back() + kTokens);
      }
      const std::string path = name + "-segment-" + std::to_string(part);
      const OutputFile file(path);
      write_segment({file.fd(), path}, codec,
                    make_ragged(all.slice(part * kHalf * kTokens, kHalf * kTokens),
                                std::span<const uint64_t>(offsets)),
                    {{reinterpret_cast<const uint8_t*>(ids.data()), ids.size()}, id_offsets},
                    Rerank::plane, threads, {});
      segments.push_back(Segment::open(path, codec));
      bytes += read_bytes(path);
    }
  }
};

}  // namespace weft::test
