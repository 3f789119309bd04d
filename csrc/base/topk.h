// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace weft {

/// The k best (score, doc) pairs pushed, in the order (score descending, doc ascending). The result
/// does not depend on the order of pushes. Scores must not be NaN. Not thread-safe.
class TopK {
 public:
  using Entry = std::pair<float, uint64_t>;

  explicit TopK(size_t k) : k_(k) {}

  void push(float score, uint64_t doc) {
    const Entry entry{score, doc};
    if (heap_.size() < k_) {
      heap_.push_back(entry);
      std::push_heap(heap_.begin(), heap_.end(), before);
    } else if (k_ > 0 && before(entry, heap_.front())) {
      std::pop_heap(heap_.begin(), heap_.end(), before);
      heap_.back() = entry;
      std::push_heap(heap_.begin(), heap_.end(), before);
    }
  }

  /// A score below this one cannot enter: the worst score kept, or -inf until full.
  float threshold() const {
    return full() && k_ > 0 ? heap_.front().first : -std::numeric_limits<float>::infinity();
  }
  bool full() const { return heap_.size() == k_; }

  /// The pairs kept, best first; leaves this object empty.
  std::vector<Entry> take_sorted() {
    std::sort_heap(heap_.begin(), heap_.end(), before);
    return std::exchange(heap_, {});
  }

 private:
  static bool before(const Entry& a, const Entry& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  }

  size_t k_;
  std::vector<Entry> heap_;  // the worst entry in front
};

}  // namespace weft
