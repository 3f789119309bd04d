// SPDX-License-Identifier: Apache-2.0
//
// A machine made up of loops: each device runs the same bodies, with its threads and thread blocks in
// another order. Memory is handed out full of rubbish, and shared memory becomes so for each block. What may
// be done later is done as late as can be, so that a host that does not wait reads and writes what is wrong.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <numeric>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/random.h"
#include "cuda/launch.h"
#include "cuda/stages.h"

namespace weft::cuda {

const char* const kBackendName = "emu";
const char* const kToolkit = "none";

namespace {

constexpr int kDevices = 3;
constexpr std::array<const char*, kDevices> kNames = {"threads ascending", "threads descending",
                                                      "threads shuffled"};
constexpr uint64_t kTotalBytes = uint64_t{1} << 30;
constexpr uint32_t kWarps = 24;
constexpr uint8_t kRubbish = 0xa5;
static_assert(kPlanThreads == kSelectThreads);

/// 0 .. n - 1 in the order of a device.
std::vector<unsigned> order_of(int device, size_t n) {
  std::vector<unsigned> order(n);
  std::iota(order.begin(), order.end(), 0u);
  if (device == 1) {
    std::reverse(order.begin(), order.end());
  } else if (device == 2) {
    Random random(n, 0);
    for (size_t i = n; i > 1; --i) {
      std::swap(order[i - 1], order[random.below(i)]);
    }
  }
  return order;
}

}  // namespace

void probe(weft_probe& out) {
  out.state = WEFT_READY;
  out.n_devices = kDevices;
}

void describe(int device, weft_device& out) {
  WEFT_REQUIRE(device >= 0 && device < kDevices, ErrorCode::device, "device ", device,
               ": expected 0..", kDevices - 1);
  out.major = out.minor = 0;
  out.total_bytes = out.free_bytes = kTotalBytes;
  copy_text(kNames[static_cast<size_t>(device)], out.name);
}

void fetch(void* to, const void* from, size_t bytes, uint64_t) { std::memcpy(to, from, bytes); }

CallersDevice::CallersDevice() = default;
CallersDevice::~CallersDevice() = default;

struct Queue::State {
  int device;
  std::vector<unsigned> lanes, threads;
  std::vector<std::function<void()>> later;

  void settle() {
    for (const auto& work : std::exchange(later, {})) {
      work();
    }
  }
  void build(const Batch& batch, BuildStage stage) const;
};

Queue::Queue(int device)
    : state_(new State{device, order_of(device, kWarp), order_of(device, kSelectThreads), {}}) {
  weft_device found{};
  describe(device, found);
}

Queue::~Queue() { state_->settle(); }

void* Queue::allocate(size_t bytes) {
  WEFT_REQUIRE(bytes <= kTotalBytes, ErrorCode::out_of_memory, "device memory: ", bytes,
               " bytes needed, ", kTotalBytes, " free");
  void* const memory = std::malloc(bytes);  // exactly as much, for the address sanitizer
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  std::memset(memory, kRubbish, bytes);
  return memory;
}

void Queue::release(void* memory) noexcept {
  state_->settle();
  std::free(memory);
}

void* Queue::allocate_pinned(size_t bytes) { return allocate(bytes); }

void Queue::release_pinned(void* memory) noexcept { release(memory); }

void Queue::upload(void* to, const void* from, size_t bytes) {
  state_->settle();
  std::memcpy(to, from, bytes);
}

void Queue::download(void* to, const void* from, size_t bytes) {
  state_->settle();
  std::memcpy(to, from, bytes);
}

void Queue::upload_later(void* to, const void* from, size_t bytes) {
  state_->later.emplace_back([=] { std::memcpy(to, from, bytes); });
}

void Queue::download_later(void* to, const void* from, size_t bytes) {
  upload_later(to, from, bytes);
}

void Queue::wait() { state_->settle(); }

void Queue::scan(const ScanLaunch& launch) {
  const uint32_t n_warps = std::max(kWarps, launch.n_passes);
  with_instance(launch.nbits, launch.all.dim, [&]<unsigned kBits, unsigned kSteps>() {
    for (const unsigned number : order_of(state_->device, n_warps)) {
      scan_share<kBits, kSteps>(Warp{state_->lanes.data()}, launch, number, n_warps);
    }
  });
}

void Queue::stage(Stage stage, const Pruned& all, uint32_t number) {
  const uint32_t n_x = groups_of(stage, all, kWarps);
  const bool is_for_all = stage == Stage::count_survivors;
  const uint32_t n_queries = is_for_all ? 1 : all.n_queries;
  for (const unsigned group : order_of(state_->device, size_t{n_x} * n_queries)) {
    const uint32_t x = group % n_x, query = group / n_x;
    if (is_for_blocks(stage)) {
      PrunedShared shared;
      std::memset(&shared, kRubbish, sizeof shared);
      with_block_stage(stage, [&]<Stage kStage>() {
        block_share<kStage>(Block{state_->threads.data(), state_->lanes.data()}, all, query, x, n_x,
                            shared);
      });
      continue;
    }
    const Warp warp{state_->lanes.data()};
    with_stage<Stage::count_survivors, Stage::gather, Stage::interact>(
        stage, [&]<Stage kStage>() { warp_share<kStage>(warp, all, query, number, x, n_x); });
    with_stage<Stage::score_cells, Stage::score_children>(stage, [&]<Stage kStage>() {
      if (all.all.dim == 128) {
        centroids_share<kStage, 4>(warp, all, query, x, n_x);
      } else {
        centroids_share<kStage, 0>(warp, all, query, x, n_x);
      }
    });
    with_stage<Stage::skim, Stage::refine>(stage, [&]<Stage kStage>() {
      with_instance(all.nbits, all.all.dim, [&]<unsigned kBits, unsigned kSteps>() {
        std::array<uint32_t, kLeadersHeld> leaders;
        leaders.fill(UINT32_MAX);
        score_candidates<kBits, kSteps, kStage == Stage::skim>(warp, all, query, number, x, n_x,
                                                               leaders.data());
      });
    });
  }
}

void Queue::replay(const Pruned&, const std::function<void()>& record) { record(); }

void Queue::clear(void* memory, size_t bytes) { std::memset(memory, 0, bytes); }

void Queue::select(const SelectLaunch& launch) {
  std::vector<uint64_t> keys(kSlice);
  const uint32_t n_slices = launch.slice_count();
  for (const unsigned block : order_of(state_->device, size_t{n_slices} * launch.n_queries)) {
    std::memset(keys.data(), kRubbish, keys.size() * sizeof keys[0]);
    select_share(Block{state_->threads.data()}, launch, block % n_slices, block / n_slices,
                 keys.data());
  }
}

void Queue::build(const Batch& batch, BuildStage stage) {
  state_->later.emplace_back([this, batch, stage] { state_->build(batch, stage); });
}

void Queue::State::build(const Batch& batch, BuildStage stage) const {
  if (stage == BuildStage::plan) {
    uint32_t sums[2][kPlanThreads];
    std::memset(sums, kRubbish, sizeof sums);
    plan_visits(PlanBlock{threads.data()}, batch, sums);
    return;
  }
  const uint32_t dim = batch.table.all.dim;
  with_build_stage(stage, dim, [&]<BuildStage kStage, unsigned kSteps>() {
    for (const unsigned number : order_of(device, kWarps)) {
      std::vector<uint8_t> scratch(build_scratch(kStage, dim), kRubbish);
      build_share<kStage, kSteps>(Warp{lanes.data()}, batch, number, kWarps, scratch.data());
    }
  });
}

}  // namespace weft::cuda
