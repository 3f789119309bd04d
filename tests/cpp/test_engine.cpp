// SPDX-License-Identifier: Apache-2.0
//
// Threads in the engine itself: building and searching give the same bits for any number of them, and one
// searcher serves many callers at once. Right answers are the business of the Python tests; this program is
// what the thread sanitizer runs.
#include <cstdint>
#include <thread>
#include <vector>

#include "check.h"
#include "collection.h"
#include "search/searcher.h"

namespace weft::test {
namespace {

constexpr uint32_t kDepth = 10;

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
