// SPDX-License-Identifier: Apache-2.0
//
// What the files of Searcher share.

#include <bit>
#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "search/searcher.h"

namespace weft {

using Clock = std::chrono::steady_clock;

inline double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

/// Adds the time since the last call to one stage.
class StageClock {
 public:
  explicit StageClock(Found& found) : found_(found) {}
  void finished(Stage stage) {
    found_.milliseconds[static_cast<size_t>(stage)] += milliseconds_since(last_);
    last_ = Clock::now();
  }

 private:
  Found& found_;
  Clock::time_point last_ = Clock::now();
};

inline uint64_t count(std::span<const BitmapView> bitmaps) {
  uint64_t n = 0;
  for (const BitmapView& bitmap : bitmaps) {
    for (size_t word = 0; word < bitmap.word_count(); ++word) {
      n += static_cast<uint64_t>(std::popcount(bitmap.words[word]));
    }
  }
  return n;
}

struct Searcher::Scratch {
  BaseScores base;
  Probe probe;
  Accumulators accumulators;
  RankScratch rank;
  std::vector<std::vector<uint64_t>> allowed_words;
  std::vector<BitmapView> allowed;
};

/// Borrows a scratch from the pool and returns it.
class Searcher::Lease {
 public:
  explicit Lease(const Searcher& owner) : owner_(owner) {
    const std::lock_guard lock(owner_.pool_mutex_);
    if (!owner_.pool_.empty()) {
      scratch_ = std::move(owner_.pool_.back());
      owner_.pool_.pop_back();
    } else {
      scratch_ = std::make_unique<Scratch>();
    }
  }
  ~Lease() {
    const std::lock_guard lock(owner_.pool_mutex_);
    owner_.pool_.push_back(std::move(scratch_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Scratch& operator*() const noexcept { return *scratch_; }

 private:
  const Searcher& owner_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace weft
