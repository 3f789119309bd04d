// SPDX-License-Identifier: Apache-2.0
//
// Threads in the engine itself: building and searching give the same bits for any number of them, and one
// searcher serves many callers at once. Right answers are the business of the Python tests; this program is
// what the thread sanitizer runs.
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/half.h"
#include "base/random.h"
#include "check.h"
#include "files.h"
#include "index/segment_builder.h"
#include "search/searcher.h"

namespace weft::test {
namespace {

constexpr size_t kDim = 40;
constexpr size_t kDocs = 400;
constexpr size_t kTokens = 12;  // of every document, and of a query
constexpr uint32_t kDepth = 10;

/// Unit rows around a few directions, as f32.
std::vector<float> unit_rows(size_t n, uint64_t seed) {
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

SearchParams params_of(size_t query) {
  SearchParams params;
  params.nprobe = 8;
  params.budget = 2'000;
  params.ncandidates = 200;
  params.nskim = 100;
  params.path = query % 4 == 3 ? SearchPath::exhaustive : SearchPath::pruned;
  return params;
}

bool same(const Found& a, const Found& b) {
  if (a.scores != b.scores || a.docs.size() != b.docs.size()) {
    return false;
  }
  for (size_t i = 0; i < a.docs.size(); ++i) {
    if (a.docs[i].segment != b.docs[i].segment || a.docs[i].doc != b.docs[i].doc) {
      return false;
    }
  }
  return true;
}

void test_threads_change_no_bit() {
  constexpr size_t kQueries = 16;
  constexpr size_t kCallers = 4;
  const TemporaryFolder folder;
  const Collection one(folder, 1), four(folder, 4);
  CHECK(one.bytes == four.bytes);

  const std::vector<float> values = unit_rows(kQueries * kTokens, 2);
  const auto query = [&](size_t i) {
    return MatrixView<const float>{values.data() + i * kTokens * kDim, kTokens, kDim, kDim};
  };
  const Searcher alone(one.segments, one.codec, 1);
  std::vector<Found> expected;
  for (size_t i = 0; i < kQueries; ++i) {
    expected.push_back(alone.search(query(i), kDepth, params_of(i), {}));
    CHECK(expected.back().docs.size() == kDepth);
  }

  // Callers share a searcher, which spreads each of their queries over threads of its own.
  const Searcher shared(four.segments, four.codec, 4);
  std::vector<size_t> n_different(kCallers, 0);
  {
    std::vector<std::jthread> callers;
    for (size_t caller = 0; caller < kCallers; ++caller) {
      callers.emplace_back([&, caller] {
        for (size_t turn = 0; turn < kQueries; ++turn) {
          const size_t i = (turn + caller) % kQueries;
          n_different[caller] +=
              !same(expected[i], shared.search(query(i), kDepth, params_of(i), {}));
        }
      });
    }
  }
  CHECK(n_different == std::vector<size_t>(kCallers, 0));

  std::vector<uint64_t> offsets;
  for (size_t i = 0; i <= kQueries; ++i) {
    offsets.push_back(i * kTokens);
  }
  const MatrixView<const float> all{values.data(), kQueries * kTokens, kDim, kDim};
  const auto batch = shared.search_batch(make_ragged(all, std::span<const uint64_t>(offsets)),
                                         kDepth, params_of(0), {});
  for (size_t i = 0; i < kQueries; ++i) {
    CHECK(same(batch[i], alone.search(query(i), kDepth, params_of(0), {})));
  }
}

}  // namespace
}  // namespace weft::test

int main() {
  weft::test::test_threads_change_no_bit();
  return CHECK_RESULT;
}
