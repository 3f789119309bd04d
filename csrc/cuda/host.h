// SPDX-License-Identifier: Apache-2.0
//
// What the files of the plug-in's host code share: device memory, and errors on their way out.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "base/error.h"
#include "cuda/runtime.h"

namespace weft::cuda {

/// Device memory of one queue's device.
class Memory {
 public:
  Memory(Queue& queue, size_t bytes)
      : queue_(&queue), data_(queue.allocate(std::max<size_t>(bytes, 1))), bytes_(bytes) {}
  ~Memory() { queue_->release(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  size_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  void upload(size_t at, const void* from, size_t bytes) const {
    if (bytes > 0) {
      queue_->upload(as<char>() + at, from, bytes);
    }
  }

 private:
  Queue* queue_;
  void* data_;
  size_t bytes_;
};

/// At least so many values in a memory that is used again; what was there is lost.
template <class T>
T* grow(Queue& queue, std::unique_ptr<Memory>& memory, size_t n) {
  if (memory == nullptr || memory->bytes() < n * sizeof(T)) {
    memory.reset();
    memory = std::make_unique<Memory>(queue, n * sizeof(T));
  }
  return memory->template as<T>();
}

/// Runs a call of the ABI: 0, or 1 + the code of what it threw.
template <class Call>
int32_t guarded(weft_error* error, const Call& call) noexcept {
  const auto fail = [&](ErrorCode code, const char* text) {
    copy_text(text, error->text);
    return 1 + static_cast<int32_t>(code);
  };
  try {
    const CallersDevice kept;
    call();
    return 0;
  } catch (const Error& thrown) {
    return fail(thrown.code(), thrown.what());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::out_of_memory, "host memory: not enough for this call");
  } catch (const std::exception& thrown) {
    return fail(ErrorCode::internal, thrown.what());
  }
}

// Entries of the table that build_host.cpp defines.
int32_t open_builder(int32_t number, const weft_nearest* nearest, const weft_encoding* encoding,
                     uint32_t tokens_at_once, weft_builder** out, weft_error* error);
void close_builder(weft_builder* builder);
int32_t label_with(weft_builder* builder, const weft_label_args* args, weft_error* error);
int32_t encode_with(weft_builder* builder, const weft_encode_args* args, weft_error* error);

}  // namespace weft::cuda
