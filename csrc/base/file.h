// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace weft {

/// A file mapped read-only for the lifetime of this object. Const is safe from any thread, and
/// after fork.
class MappedFile {
 public:
  /// Error(io) with path and errno where the file is missing, unreadable or not a regular file. An
  /// empty file is allowed.
  static std::shared_ptr<const MappedFile> open(const std::string& path);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  const std::string& path() const noexcept { return path_; }

 private:
  MappedFile(std::string path, const std::byte* data, size_t size);

  std::string path_;
  const std::byte* data_;
  size_t size_;
};

/// Writes to a borrowed descriptor at absolute positions. Creating, syncing and publishing the file
/// is the owner's business. `path` appears in messages only.
class FileWriter {
 public:
  FileWriter(int fd, std::string path);

  /// Writes all n bytes, however many system calls that takes; Error(io) with path and errno.
  void write_at(uint64_t offset, const void* data, size_t n) const;

  const std::string& path() const noexcept { return path_; }

  /// For tests, process-wide: the n-th write_at from now (1 = the next) fails once with
  /// errno_value; `torn` writes half of its bytes first.
  static void fail_write(uint64_t n, int errno_value, bool torn);
  /// Takes fail_write back.
  static void fail_none();

 private:
  int fd_;
  std::string path_;
};

}  // namespace weft
