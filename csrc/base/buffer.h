// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <type_traits>
#include <utility>

#include "base/checked.h"

namespace weft {

/// Owned array of plain values, 64-byte aligned and zeroed. Movable (a moved-from buffer is empty),
/// not copyable. std::bad_alloc passes through.
template <class T>
class AlignedBuffer {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  static constexpr size_t kAlignment = 64;

  explicit AlignedBuffer(size_t n = 0) : data_(allocate(n)), size_(n) {}
  AlignedBuffer(AlignedBuffer&& other) noexcept
      : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    data_ = std::move(other.data_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }

  T* data() noexcept { return data_.get(); }
  const T* data() const noexcept { return data_.get(); }
  size_t size() const noexcept { return size_; }
  std::span<T> span() noexcept { return {data(), size_}; }
  std::span<const T> span() const noexcept { return {data(), size_}; }
  T& operator[](size_t i) noexcept { return data_.get()[i]; }
  const T& operator[](size_t i) const noexcept { return data_.get()[i]; }

  /// Makes room for n zeroed elements. Contents are lost unless n equals size(): then they stay.
  void resize(size_t n) {
    if (n != size_) {
      *this = AlignedBuffer(n);
    }
  }

  /// Makes room for at least n elements, as resize() does, where there is less.
  void grow(size_t n) {
    if (size_ < n) {
      resize(n);
    }
  }

 private:
  struct Free {
    void operator()(T* p) const noexcept {
      ::operator delete(static_cast<void*>(p), std::align_val_t{kAlignment});
    }
  };

  static T* allocate(size_t n) {
    if (n == 0) {
      return nullptr;
    }
    const size_t n_bytes = checked_mul(n, sizeof(T));
    void* p = ::operator new(n_bytes, std::align_val_t{kAlignment});
    std::memset(p, 0, n_bytes);
    return static_cast<T*>(p);
  }

  std::unique_ptr<T, Free> data_;
  size_t size_;
};

}  // namespace weft
