// SPDX-License-Identifier: Apache-2.0
#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <limits>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace weft {
namespace {

[[noreturn]] void throw_io(const char* action, const std::string& path, int code) {
  throw Error(ErrorCode::io,
              concat(path, ": ", action, ": ", std::generic_category().message(code)), path, code);
}

/// A descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }
  int get() const noexcept { return fd_; }

 private:
  int fd_;
};

// The planned failure of FileWriter::fail_write: calls left until it (0 = none), its errno and
// kind.
std::atomic<uint64_t> writes_until_failure{0};
std::atomic<int> planned_errno{0};
std::atomic<bool> planned_torn{false};

/// Counts this call; true for the one that has to fail.
bool fails_now() {
  uint64_t left = writes_until_failure.load();
  while (left > 0 && !writes_until_failure.compare_exchange_weak(left, left - 1)) {
  }
  return left == 1;
}

void write_all(int fd, const std::string& path, uint64_t offset, const std::byte* data, size_t n) {
  constexpr size_t kLargestCall = size_t{1}
                                  << 30;  // a system call may refuse more than INT_MAX bytes
  while (n > 0) {
    const ssize_t done = ::pwrite(fd, data, std::min(n, kLargestCall), static_cast<off_t>(offset));
    if (done < 0) {
      if (errno == EINTR) {
        continue;
      }
      throw_io("cannot write", path, errno);
    }
    if (done == 0) {
      throw_io("cannot write", path, ENOSPC);
    }
    const auto written = static_cast<size_t>(done);
    data += written;
    offset += written;
    n -= written;
  }
}

}  // namespace

MappedFile::MappedFile(std::string path, const std::byte* data, size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

MappedFile::~MappedFile() {
  if (size_ > 0) {
    ::munmap(const_cast<std::byte*>(data_), size_);
  }
}

std::shared_ptr<const MappedFile> MappedFile::open(const std::string& path) {
  int fd = -1;
  do {  // O_NONBLOCK: opening a pipe must not wait for its writer
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (fd < 0 && errno == EINTR);
  const Descriptor file(fd);
  struct stat status{};
  if (fd < 0 || ::fstat(fd, &status) != 0) {
    throw_io("cannot open", path, errno);
  }
  if (!S_ISREG(status.st_mode)) {
    throw_io("not a regular file", path, S_ISDIR(status.st_mode) ? EISDIR : EINVAL);
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > std::numeric_limits<size_t>::max()) {
    throw_io("cannot map", path, EFBIG);
  }
  void* data = nullptr;
  if (size > 0) {
    data = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
      throw_io("cannot map", path, errno);
    }
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(path, static_cast<const std::byte*>(data), static_cast<size_t>(size)));
}

FileWriter::FileWriter(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

void FileWriter::write_at(uint64_t offset, const void* data, size_t n) const {
  const auto* bytes = static_cast<const std::byte*>(data);
  if (fails_now()) {
    if (planned_torn) {
      write_all(fd_, path_, offset, bytes, n / 2);
    }
    throw_io("cannot write", path_, planned_errno);
  }
  constexpr auto kLast = static_cast<uint64_t>(std::numeric_limits<off_t>::max());
  if (offset > kLast || n > kLast - offset) {
    throw_io("cannot write", path_, EFBIG);
  }
  write_all(fd_, path_, offset, bytes, n);
}

void FileWriter::fail_write(uint64_t n, int errno_value, bool torn) {
  planned_errno = errno_value;
  planned_torn = torn;
  writes_until_failure = n;
}

void FileWriter::fail_none() { writes_until_failure = 0; }

}  // namespace weft
