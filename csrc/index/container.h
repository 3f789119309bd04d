// SPDX-License-Identifier: Apache-2.0
//
// The .weft container: named arrays in one immutable file. docs/format.md describes it in full.
//
//   offset 0     header, 64 bytes: magic, version, sizes, checksum of header and table
//   offset 64    table, 128 bytes an array: name, dtype, shape, offset, bytes, checksum
//   after it     payloads in table order, each from a multiple of 64, zeros between them, and zeros
//                to a multiple of 64 behind the last, where the file ends
//
// All integers are little-endian. Every file is read as hostile: nothing in it is used before it
// was checked against the size of the file.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/file.h"

namespace weft {

inline constexpr uint32_t kFormatVersion = 1;

/// Types of array elements; the numbers are those of the file.
enum class DType : uint8_t { u8, s8, u16, s16, u32, s32, u64, s64, f16, f32, f64 };

/// Bytes of one element, and its name in messages.
size_t dtype_size(DType dtype) noexcept;
const char* dtype_name(DType dtype) noexcept;

/// An array to be written. name: 1 to 47 of a-z, 0-9 and _; shape: 1 to 4 extents, 0 allowed.
struct ArraySpec {
  std::string name;
  DType dtype;
  std::vector<uint64_t> shape;
};

/// An array of a file; `bytes` belongs to the file.
struct NamedArray {
  std::string name;
  DType dtype;
  std::vector<uint64_t> shape;
  std::span<const std::byte> bytes;
};

/// Writes one container. The layout is fixed by the specs, so arrays may be filled in any
/// interleaving; the header is written last, hence an unfinished file is not a weft file.
class ContainerWriter {
 public:
  /// Error(invalid_argument) for a bad name, a name given twice, or a size that overflows.
  ContainerWriter(FileWriter file, std::vector<ArraySpec> arrays);

  /// The next n_bytes of array number `array`. One write each: hand over blocks, not elements.
  void append(size_t array, const void* data, size_t n_bytes);

  /// Another shape for the last array, while nothing of it is written: for the one
  /// whose size shows only after the others were filled.
  void set_last_shape(std::vector<uint64_t> shape);

  /// Checks that every array is full, writes padding, table and header, and returns the checksum of
  /// the header, which stands for the whole file: the table it covers holds a checksum per array.
  uint32_t finish();

  /// Size of the finished file.
  uint64_t file_bytes() const noexcept { return file_bytes_; }

 private:
  struct Layout {
    uint64_t offset = 0;
    uint64_t bytes = 0;
    uint64_t written = 0;
    uint32_t checksum = 0;
  };

  void place(size_t array);

  FileWriter file_;
  std::vector<ArraySpec> specs_;
  std::vector<Layout> layout_;
  uint64_t file_bytes_ = 0;
  bool finished_ = false;
};

/// A container opened for reading. Const is safe from any thread; copies share the mapped file.
class Container {
 public:
  /// Any extent, where array() is told the expected shape.
  static constexpr uint64_t kAny = UINT64_MAX;

  /// Maps the file and checks its structure, not the payloads: Error(corrupt) for anything damaged
  /// or foreign, Error(incompatible) for a newer format, Error(io) from the operating system.
  static Container open(const std::string& path);
  /// The same for bytes in memory, 8-byte aligned, which must outlive the container.
  static Container parse(std::span<const std::byte> bytes, const std::string& path);

  /// nullptr where there is no such array.
  const NamedArray* find(std::string_view name) const noexcept;

  /// The array `name` as elements, which must have the type T (f16 is read as its bits, uint16_t)
  /// and the extents given, kAny standing for any; Error(corrupt) naming what was found and
  /// expected.
  template <class T, class... Extents>
  std::span<const T> array(std::string_view name, Extents... extents) const {
    static_assert(std::is_arithmetic_v<T>);
    const std::array<uint64_t, sizeof...(Extents)> expected{static_cast<uint64_t>(extents)...};
    const NamedArray& found = require(name, dtype_of<T>(), expected);
    return {reinterpret_cast<const T*>(found.bytes.data()), found.bytes.size() / sizeof(T)};
  }

  /// Checks the checksum of every payload; Error(corrupt) naming the array.
  void verify() const;
  /// Whether the payload of arrays()[array] has its checksum.
  bool is_whole(size_t array) const noexcept;

  /// The checksum of header and table: what ContainerWriter::finish returned.
  uint32_t checksum() const noexcept { return checksum_; }
  const std::vector<NamedArray>& arrays() const noexcept { return arrays_; }
  const std::string& path() const noexcept { return path_; }
  uint64_t file_bytes() const noexcept { return file_bytes_; }

 private:
  Container() = default;

  template <class T>
  static constexpr DType dtype_of() {
    constexpr size_t kLog = sizeof(T) == 1 ? 0 : sizeof(T) == 2 ? 1 : sizeof(T) == 4 ? 2 : 3;
    if constexpr (std::is_floating_point_v<T>) {
      static_assert(sizeof(T) == 4 || sizeof(T) == 8);
      return sizeof(T) == 4 ? DType::f32 : DType::f64;
    } else {
      return static_cast<DType>(2 * kLog + (std::is_signed_v<T> ? 1 : 0));
    }
  }
  const NamedArray& require(std::string_view name, DType dtype,
                            std::span<const uint64_t> shape) const;

  std::shared_ptr<const MappedFile> file_;  // empty where the bytes are borrowed
  std::string path_;
  std::vector<NamedArray> arrays_;
  std::vector<uint32_t> checksums_;
  uint64_t file_bytes_ = 0;
  uint32_t checksum_ = 0;
};

}  // namespace weft
