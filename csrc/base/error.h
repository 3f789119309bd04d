// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace weft {

/// What went wrong, in terms the Python layer maps to one exception class each.
enum class ErrorCode : uint8_t {
  invalid_argument,
  not_found,
  corrupt,
  incompatible,
  io,
  out_of_memory,
  device,
  cancelled,
  internal,
};

/// The one exception the engine throws. `path` names the file concerned, `system_errno` the
/// operating system's reason; both may be empty.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message, std::string path = {}, int system_errno = 0)
      : std::runtime_error(message), code_(code), path_(std::move(path)), errno_(system_errno) {}

  ErrorCode code() const noexcept { return code_; }
  const std::string& path() const noexcept { return path_; }
  int system_errno() const noexcept { return errno_; }

 private:
  ErrorCode code_;
  std::string path_;
  int errno_;
};

/// Joins its arguments into one message (gcc 12 has no std::format).
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace weft

/// Throws Error(code) with the joined message unless `condition` holds: for what a caller or a file
/// can get wrong.
#define WEFT_REQUIRE(condition, code, ...)                      \
  do {                                                          \
    if (!(condition)) {                                         \
      throw ::weft::Error((code), ::weft::concat(__VA_ARGS__)); \
    }                                                           \
  } while (false)

/// Our own invariants: Error(internal) in debug and sanitizer builds, nothing in release.
#ifdef NDEBUG
#define WEFT_ASSERT(condition) ((void)0)
#else
#define WEFT_ASSERT(condition) \
  WEFT_REQUIRE((condition), ::weft::ErrorCode::internal, "broken invariant: " #condition)
#endif
