// SPDX-License-Identifier: Apache-2.0
//
// What the plug-in's host code needs of a machine with devices. Defined twice: runtime_cuda.cu makes
// libweft_cuda.so of it, runtime_host.cpp, over memcpy and loops, libweft_emu.so for tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "cuda/abi.h"
#include "cuda/bodies/assign.h"
#include "cuda/bodies/pruned.h"
#include "cuda/bodies/scan.h"
#include "cuda/bodies/select.h"

namespace weft::cuda {

/// Copies a text into a field of the interface, as much of it as there is room for.
template <size_t kSize>
void copy_text(std::string_view text, char (&field)[kSize]) {
  const size_t n = std::min(text.size(), kSize - 1);
  std::copy_n(text.data(), n, field);
  field[n] = '\0';
}

extern const char* const kBackendName;
extern const char* const kToolkit;

/// Never throws.
void probe(weft_probe& out);
/// Error(device) unless there is such a device.
void describe(int device, weft_device& out);

/// Copies memory that another library has on a device to the host, after what was given to a stream
/// before: 1 is the legacy default stream, 2 that of the thread, anything else a handle.
void fetch(void* to, const void* from, size_t bytes, uint64_t stream);

/// Around each call: gives the thread back with the device that its owner had chosen for it.
class CallersDevice {
 public:
  CallersDevice();
  ~CallersDevice();
  CallersDevice(const CallersDevice&) = delete;
  CallersDevice& operator=(const CallersDevice&) = delete;

 private:
  void* context_ = nullptr;
};

/// Some queries against all documents.
struct ScanLaunch {
  Collection all;
  const uint64_t* allow;
  const QueryPass* passes;  ///< in device memory
  uint32_t n_passes;
  unsigned nbits;
};

/// One round of selections for some queries that differ in where their keys are alone.
struct SelectLaunch {
  Selection first;         ///< of the first query
  uint64_t scores_stride;  ///< elements from one query to the next
  uint64_t keys_stride;
  uint64_t kept_stride;
  uint32_t n_queries;

  uint32_t slice_count() const { return (first.n + kSlice - 1) / kSlice; }
};

/// Work on one device, done in the order in which it is given; one thread at a time. Device memory that
/// it gives out serves all queues of the device. Throws Error(device), or out_of_memory.
class Queue {
 public:
  explicit Queue(int device);
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;

  void* allocate(size_t bytes);
  void release(void* memory) noexcept;
  /// `from` may be changed on return.
  void upload(void* to, const void* from, size_t bytes);
  /// Waits for what was given before, too.
  void download(void* to, const void* from, size_t bytes);
  /// As upload() and download(), without waiting: host memory is left alone until wait().
  void upload_later(void* to, const void* from, size_t bytes);
  void download_later(void* to, const void* from, size_t bytes);
  /// Host memory that a device reads and writes while the host goes on.
  void* allocate_pinned(size_t bytes);
  void release_pinned(void* memory) noexcept;
  void scan(const ScanLaunch& launch);
  void select(const SelectLaunch& launch);
  void stage(Stage stage, const Pruned& all, uint32_t number = 0);
  /// Runs what `record` gives to this queue, which must be launches alone and the same for equal `all`:
  /// they may be kept and launched again as one.
  void replay(const Pruned& all, const std::function<void()>& record);
  void clear(void* memory, size_t bytes);
  void build(const Batch& batch, BuildStage stage);
  void wait();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft::cuda
