// SPDX-License-Identifier: Apache-2.0
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "base/parallel.h"
#include "check.h"
#include "files.h"

namespace weft::test {
namespace {

/// Runs `action` in a child process; true if it returned true there.
template <class Action>
bool in_child(const Action& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);  // a child that hangs is a failure, not a wait for ever
    bool passed = false;
    try {
      passed = action();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "child: %s\n", error.what());
    }
    ::_exit(passed && failures == 0 ? 0 : 1);
  }
  int status = 0;
  return ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

/// Every index once, in blocks of `grain`, on worker numbers below `threads` used by one thread
/// each.
bool covers(size_t n, size_t threads, size_t grain) {
  std::vector<std::atomic<int>> seen(n);
  std::vector<std::set<std::thread::id>> users(threads);
  std::mutex mutex;
  std::atomic<bool> good{true};
  parallel_for(
      n, threads,
      [&](size_t begin, size_t end, size_t worker) {
        if (begin % grain != 0 || end <= begin || end > n || (end - begin != grain && end != n) ||
            worker >= threads) {
          good = false;
        }
        for (size_t i = begin; i < end; ++i) {
          ++seen[i];
        }
        const std::lock_guard lock(mutex);
        users[worker].insert(std::this_thread::get_id());
      },
      grain);
  for (const auto& count : seen) {
    good = good && count == 1;
  }
  for (const auto& threads_of_worker : users) {
    good = good && threads_of_worker.size() <= 1;
  }
  return good && (users[0].empty() || *users[0].begin() == std::this_thread::get_id());
}

void test_default_threads() {
  CHECK(in_child([] {
    ::setenv("WEFT_THREADS", "3", 1);
    return default_threads() == 3;
  }));
  for (const char* bad : {"", "0", "1025", "-1", "2x", " 2", "99999999999999999999"}) {
    CHECK(in_child([bad] {
      ::setenv("WEFT_THREADS", bad, 1);
      for (int again = 0; again < 2; ++again) {
        CHECK_ERROR(invalid_argument, default_threads());
        CHECK_ERROR(invalid_argument, parallel_for(9, 0, [](size_t, size_t, size_t) {}));
      }
      return true;
    }));
  }
  CHECK(in_child([] {
    ::unsetenv("WEFT_THREADS");
    return default_threads() >= 1 && default_threads() <= kMaxThreads;
  }));
}

void test_cgroup() {
  const TemporaryFolder root;
  const auto threads = [&](const std::string& membership) {
    write_text(root / "self", membership);
    return cgroup_threads(root / "self", root / "fs");
  };
  write_text(root / "fs/cpu.max", "max 100000\n");
  write_text(root / "fs/a/cpu.max", "150000 100000\n");
  write_text(root / "fs/a/b/cpu.max", "400000 100000\n");
  CHECK(threads("0::/\n") == 0);
  CHECK(threads("0::/a\n") == 2);
  CHECK(threads("0::/a/b\n") == 2);  // the parent's quota is smaller
  CHECK(threads("0::/gone/away\n") == 0);
  write_text(root / "fs/cpu,cpuacct/cpu.cfs_quota_us", "50000\n");
  write_text(root / "fs/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  write_text(root / "fs/cpuset/cpu.cfs_quota_us", "100\n");
  write_text(root / "fs/cpuset/cpu.cfs_period_us", "100\n");
  CHECK(threads("3:cpuset:/x\n4:cpu,cpuacct:/docker/x\n") == 1);
  write_text(root / "fs/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  CHECK(threads("4:cpu,cpuacct:/docker/x\n") == 0);
  CHECK(threads("nonsense\n:\n") == 0);
  CHECK(cgroup_threads(root / "absent", root / "fs") == 0);
}

void test_coverage() {
  for (size_t n : {0, 1, 2, 7, 64, 1000}) {
    for (size_t threads : {1, 2, 5}) {
      for (size_t grain : {1, 3, 64, 5000}) {
        CHECK(covers(n, threads, grain));
      }
    }
  }
  CHECK_ERROR(invalid_argument, parallel_for(9, 1025, [](size_t, size_t, size_t) {}));
  size_t last = 0;  // blocks at the upper end of size_t do not overflow
  parallel_for(SIZE_MAX, 1, [&](size_t, size_t end, size_t) { last = end; }, SIZE_MAX / 2 + 1);
  CHECK(last == SIZE_MAX);
}

/// All participants must be inside at once for the first call to end; the second, smaller one comes
/// while the workers are still on their way out of the first.
void test_participants() {
  for (int round = 0; round < 50; ++round) {
    std::atomic<size_t> inside{0};
    std::atomic<unsigned> workers{0};
    parallel_for(5, 5, [&](size_t, size_t, size_t worker) {
      workers |= 1U << worker;
      ++inside;
      while (inside < 5) {
        std::this_thread::yield();
      }
    });
    CHECK(workers == 0x1f);
    std::atomic<bool> good{true};
    parallel_for(20, 2, [&](size_t, size_t, size_t worker) {
      good = good && worker < 2;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    });
    CHECK(good);
  }
}

void test_nested() {
  std::atomic<size_t> sum{0};
  parallel_for(10, 4, [&](size_t outer, size_t, size_t) {
    parallel_for(10, 4, [&](size_t inner, size_t, size_t) {
      parallel_for(3, 2, [&](size_t, size_t, size_t) { sum += outer * 10 + inner; });
    });
  });
  CHECK(sum == 3 * 99 * 100 / 2);
}

void test_concurrent_callers() {
  std::vector<std::thread> callers;
  std::atomic<bool> good{true};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&good] {
      for (int round = 0; round < 50; ++round) {
        good = good && covers(100, 3, 7);
      }
    });
  }
  for (auto& caller : callers) {
    caller.join();
  }
  CHECK(good);
}

void test_exceptions() {
  for (size_t threads : {1, 4}) {
    std::atomic<size_t> blocks{0};
    bool thrown = false;
    try {
      parallel_for(100'000, threads, [&](size_t begin, size_t, size_t) {
        ++blocks;
        if (begin >= 100) {
          throw std::runtime_error("block");
        }
      });
    } catch (const std::runtime_error& error) {
      thrown = std::string(error.what()) == "block";
    }
    CHECK(thrown && blocks <= 101 + threads);
    CHECK(covers(50, threads, 2));  // the pool is none the worse for it
  }
  // the others stop at their next block
  constexpr size_t kMany = 100'000'000;
  std::atomic<bool> about_to_throw{false};
  std::atomic<size_t> blocks{0};
  CHECK_ERROR(corrupt, parallel_for(kMany, 2, [&](size_t, size_t, size_t worker) {
                if (worker == 0) {
                  while (blocks == 0) {
                    std::this_thread::yield();
                  }
                  about_to_throw = true;
                  throw Error(ErrorCode::corrupt, "from the caller");
                }
                ++blocks;
                while (!about_to_throw) {
                  std::this_thread::yield();
                }
              }));
  CHECK(blocks < kMany - 1);

  std::atomic<bool> worker_inside{false};  // thrown by a worker while the caller is inside a block
  CHECK_ERROR(corrupt, parallel_for(2, 2, [&](size_t, size_t, size_t worker) {
                if (worker == 1) {
                  worker_inside = true;
                  throw Error(ErrorCode::corrupt, "from a worker");
                }
                while (!worker_inside) {
                  std::this_thread::yield();
                }
              }));
}

void test_poll() {
  for (size_t threads : {1, 3}) {
    const auto caller = std::this_thread::get_id();
    std::atomic<int> polls{0};
    const auto wait_for_polls = [&](size_t, size_t, size_t worker) {
      while (worker != 0 && polls < 3) {  // leave the caller its blocks
        std::this_thread::yield();
      }
    };
    CHECK_ERROR(cancelled, parallel_for(1000, threads, wait_for_polls, 1, [&] {
                  CHECK(std::this_thread::get_id() == caller);
                  return ++polls == 3;
                }));
    CHECK(polls == 3);
    bool thrown = false;
    try {
      parallel_for(
          9, threads, [](size_t, size_t, size_t) { std::this_thread::yield(); }, 1,
          []() -> bool { throw std::logic_error("poll"); });
      thrown = threads > 1;  // the workers may have taken every block before the caller's first
    } catch (const std::logic_error&) {
      thrown = true;
    }
    CHECK(thrown);
    std::atomic<size_t> sum{0};
    parallel_for(
        100, threads, [&](size_t i, size_t, size_t) { sum += i; }, 1, [] { return false; });
    CHECK(sum == 4950);
  }
}

void test_fork() {
  CHECK(covers(100, 4, 1));
  CHECK(in_child([] { return covers(100, 4, 1) && in_child([] { return covers(100, 4, 1); }); }));
  CHECK(covers(100, 4, 1));
}

#ifndef __SANITIZE_THREAD__  // which refuses thread numbers that a child of several threads uses
                             // again
/// Fork while another thread keeps the pool's mutex busy.
void test_fork_while_busy() {
  std::atomic<bool> done{false};
  std::thread busy([&done] {
    while (!done) {
      covers(64, 3, 1);
    }
  });
  for (int round = 0; round < 20; ++round) {
    CHECK(in_child([] { return covers(100, 4, 1); }));
  }
  done = true;
  busy.join();
}
#endif

void test_stop_flag() {
  const StopFlag flag;
  const StopFlag copy = flag;
  CHECK(!copy.stopped());
  flag.stop();
  CHECK(copy.stopped() && !StopFlag().stopped());
}

}  // namespace
}  // namespace weft::test

int main() {
  using namespace weft::test;
  test_default_threads();  // first: it needs a process that has not looked yet
  test_cgroup();
  test_coverage();
  test_participants();
  test_nested();
  test_concurrent_callers();
  test_exceptions();
  test_poll();
  test_fork();
#ifndef __SANITIZE_THREAD__
  test_fork_while_busy();
#endif
  test_stop_flag();
  return CHECK_RESULT;
}
