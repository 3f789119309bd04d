// SPDX-License-Identifier: Apache-2.0
#include "base/parallel.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <mutex>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif
#ifdef __linux__
#include <sched.h>
#endif

#include "base/error.h"

namespace weft {
namespace {

using Body = std::function<void(size_t begin, size_t end, size_t worker)>;

/// One parallel_for call; lives on its caller's stack. All but next_block is guarded by the pool.
struct Job {
  const Body& body;
  size_t n;
  size_t grain;
  size_t n_blocks;
  size_t participants;
  size_t next_worker = 1;  // the number that the next worker to join gets
  size_t inside = 0;       // workers in this job now
  std::exception_ptr failure{};
  std::condition_variable left{};  // a worker left
  std::atomic<size_t> next_block{0};

  bool has_blocks() const { return next_block.load(std::memory_order_relaxed) < n_blocks; }
  void drop_blocks() { next_block.store(n_blocks, std::memory_order_relaxed); }

  /// Runs blocks until none is left; poll, if any, before each.
  void run(size_t worker, const std::function<bool()>& poll) {
    for (;;) {
      const size_t block = next_block.fetch_add(1, std::memory_order_relaxed);
      if (block >= n_blocks) {
        return;
      }
      WEFT_REQUIRE(!poll || !poll(), ErrorCode::cancelled, "cancelled");
      const size_t begin = block * grain;
      body(begin, begin + std::min(grain, n - begin), worker);
    }
  }
};

/// The workers, and the jobs that want more of them. Workers wait for jobs until the process ends,
/// so a pool is never destroyed.
class Pool {
 public:
  static Pool& instance() {
#ifndef _WIN32
    // The child of a fork has none of our workers and may find the mutex locked: it begins anew.
    static const int registered = ::pthread_atfork(nullptr, nullptr, [] { current = nullptr; });
    WEFT_REQUIRE(registered == 0, ErrorCode::out_of_memory, "cannot register a fork handler");
#endif
    Pool* pool = current.load();
    if (pool == nullptr) {
      auto fresh = std::make_unique<Pool>();
      if (current.compare_exchange_strong(pool, fresh.get())) {
        pool = fresh.release();
      }
    }
    return *pool;
  }

  /// The caller's side of a job.
  void run(Job& job, const std::function<bool()>& poll) {
    open(job);
    participate(job, 0, poll);
    {
      std::unique_lock lock(mutex_);
      std::erase(jobs_, &job);
      job.left.wait(lock, [&job] { return job.inside == 0; });
    }
    if (job.failure) {
      std::rethrow_exception(job.failure);
    }
  }

 private:
  /// Makes the workers that are missing and shows them the job.
  void open(Job& job) {
    const std::lock_guard lock(mutex_);
    for (; n_workers_ < job.participants - 1; ++n_workers_) {
      try {
        std::thread([this] { work(); }).detach();
      } catch (const std::system_error& error) {
        throw Error(
            ErrorCode::out_of_memory,
            concat("cannot start worker thread ", n_workers_ + 1, " of ", job.participants - 1,
                   ": ", error.code().message(), "; ask for fewer with threads= or WEFT_THREADS"),
            {}, error.code().value());
      }
    }
    jobs_.push_back(&job);
    for (size_t i = 1; i < job.participants; ++i) {
      wake_.notify_one();
    }
  }

  [[noreturn]] void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      wake_.wait(lock, [this, &job] { return (job = next_job()) != nullptr; });
      const size_t worker = job->next_worker++;
      ++job->inside;
      lock.unlock();
      participate(*job, worker, {});
      lock.lock();
      --job->inside;
      job->left.notify_one();  // under the lock: once it is released the job may be gone
    }
  }

  /// The oldest job that has blocks and room for one more worker.
  Job* next_job() {
    std::erase_if(jobs_, [](const Job* job) {
      return job->next_worker == job->participants || !job->has_blocks();
    });
    return jobs_.empty() ? nullptr : jobs_.front();
  }

  void participate(Job& job, size_t worker, const std::function<bool()>& poll) {
    try {
      job.run(worker, poll);
    } catch (...) {  // whatever it is, the caller of parallel_for gets it
      const std::lock_guard lock(mutex_);
      if (!job.failure) {
        job.failure = std::current_exception();
      }
      job.drop_blocks();
    }
  }

  static std::atomic<Pool*> current;

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Job*> jobs_;
  size_t n_workers_ = 0;
};

std::atomic<Pool*> Pool::current{nullptr};

std::optional<uint64_t> parse_number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = error == std::errc() && end == text.data() + text.size();
  return whole ? std::optional(value) : std::nullopt;
}

/// The n-th word of a file's first line; empty where there is none.
std::string read_word(const std::string& path, int n) {
  std::ifstream in(path);
  std::string word;
  for (int i = 0; i <= n; ++i) {
    word.clear();
    in >> word;
  }
  return word;
}

/// The quota of one control group's folder in CPUs, rounded up; 0 = none.
size_t folder_quota(const std::string& folder) {
  auto quota = parse_number(read_word(folder + "/cpu.max", 0));
  auto period = parse_number(read_word(folder + "/cpu.max", 1));
  if (!quota || !period) {
    quota = parse_number(read_word(folder + "/cpu.cfs_quota_us", 0));
    period = parse_number(read_word(folder + "/cpu.cfs_period_us", 0));
  }
  if (!quota || !period || *quota == 0 || *period == 0) {
    return 0;
  }
  return static_cast<size_t>((*quota - 1) / *period + 1);
}

/// The smallest quota of `path` and its parents below `root`; 0 = none.
size_t hierarchy_quota(const std::string& root, std::string path) {
  size_t least = 0;
  for (;;) {
    const size_t quota = folder_quota(root + path);
    if (quota != 0 && (least == 0 || quota < least)) {
      least = quota;
    }
    if (path.empty()) {
      return least;
    }
    path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
  }
}

size_t usable_cpus() {
#ifdef __linux__
  std::vector<unsigned long> mask(1024);  // 65,536 CPUs
  const size_t n_bytes = mask.size() * sizeof(unsigned long);
  auto* set = reinterpret_cast<cpu_set_t*>(mask.data());
  if (::sched_getaffinity(0, n_bytes, set) == 0) {
    return static_cast<size_t>(CPU_COUNT_S(n_bytes, set));
  }
#endif
  return std::max<size_t>(1, std::thread::hardware_concurrency());
}

size_t find_default_threads() {
  if (const char* text = std::getenv("WEFT_THREADS"); text != nullptr) {
    const auto value = parse_number(text);
    WEFT_REQUIRE(value && *value >= 1 && *value <= kMaxThreads, ErrorCode::invalid_argument,
                 "WEFT_THREADS=", text, ": expected a number in 1..", kMaxThreads);
    return static_cast<size_t>(*value);
  }
  const size_t quota = cgroup_threads("/proc/self/cgroup", "/sys/fs/cgroup");
  const size_t cpus = usable_cpus();
  return std::clamp<size_t>(quota == 0 ? cpus : std::min(cpus, quota), 1, kMaxThreads);
}

}  // namespace

size_t cgroup_threads(const std::string& membership, const std::string& mount) {
  size_t least = 0;
  std::ifstream in(membership);
  for (std::string line; std::getline(in, line);) {  // id:controllers:path
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string root = mount;  // version 2 names no controllers
    if (!controllers.empty()) {
      if (concat(',', controllers, ',').find(",cpu,") == std::string::npos) {
        continue;
      }
      root += '/' + controllers;
    }
    std::string path = line.substr(second + 1);
    if (path == "/") {
      path.clear();
    }
    const size_t quota = hierarchy_quota(root, path);
    if (quota != 0 && (least == 0 || quota < least)) {
      least = quota;
    }
  }
  return least;
}

size_t default_threads() {
  static const size_t threads = find_default_threads();
  return threads;
}

void parallel_for(size_t n, size_t threads, const Body& body, size_t grain,
                  const std::function<bool()>& poll) {
  WEFT_REQUIRE(threads <= kMaxThreads, ErrorCode::invalid_argument, "threads=", threads,
               ": expected 1..", kMaxThreads, ", or 0 for the default");
  if (n == 0) {
    return;
  }
  grain = std::max<size_t>(grain, 1);
  const size_t n_blocks = (n - 1) / grain + 1;
  const size_t participants = n_blocks == 1 ? 1 : threads == 0 ? default_threads() : threads;
  Job job{body, n, grain, n_blocks, std::min(participants, n_blocks)};
  if (job.participants == 1) {
    job.run(0, poll);
  } else {
    Pool::instance().run(job, poll);
  }
}

}  // namespace weft
