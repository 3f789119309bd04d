// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace weft {

/// Called now and then from the thread that started a long operation: what it is doing, how much is
/// done and of how much. May throw Error(cancelled) to end it. May be empty.
using Progress = std::function<void(const char* stage, uint64_t done, uint64_t total)>;

/// Copyable handle to one shared flag: any copy stops them all. Thread-safe.
class StopFlag {
 public:
  StopFlag() : flag_(std::make_shared<std::atomic<bool>>(false)) {}
  void stop() const noexcept { flag_->store(true, std::memory_order_relaxed); }
  bool stopped() const noexcept { return flag_->load(std::memory_order_relaxed); }

 private:
  std::shared_ptr<std::atomic<bool>> flag_;
};

inline constexpr size_t kMaxThreads = 1024;

/// WEFT_THREADS if set (1..1024, else Error(invalid_argument)), otherwise the smaller of the CPUs
/// this process may run on and its control group's quota, rounded up. Looked up once, on first use.
size_t default_threads();

/// The CPU quota, rounded up, of the control groups listed in the file `membership`
/// (/proc/self/cgroup) and mounted under `mount` (/sys/fs/cgroup), of version 1 or 2, their parents
/// included; 0 where there is none.
size_t cgroup_threads(const std::string& membership, const std::string& mount);

/// Calls body(begin, end, worker) for blocks of `grain` indices that together cover [0, n) once.
///
/// Blocks are handed out dynamically to `threads` participants (0 = default_threads(), at most
/// 1,024); the caller is worker 0, and no two participants of one call share a worker number below
/// `threads`, so that scratch space can be indexed by it. With one thread, or n <= grain,
/// everything runs inline, block by block.
///
/// The first exception stops the others at their next block and is rethrown here. `poll` runs on
/// the caller before each of its blocks; returning true ends the call with Error(cancelled). Nested
/// calls and calls from several threads at once are safe and share one pool of workers, which are
/// made on first use; after fork the child makes its own.
void parallel_for(size_t n, size_t threads,
                  const std::function<void(size_t begin, size_t end, size_t worker)>& body,
                  size_t grain = 1, const std::function<bool()>& poll = {});

}  // namespace weft
