// SPDX-License-Identifier: Apache-2.0
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "base/bitmap.h"
#include "base/buffer.h"
#include "base/checked.h"
#include "base/checksum.h"
#include "base/file.h"
#include "base/half.h"
#include "base/random.h"
#include "base/topk.h"
#include "check.h"
#include "files.h"

namespace weft::test {
namespace {

void test_checked() {
  constexpr size_t kMax = std::numeric_limits<size_t>::max();
  CHECK(checked_mul(0, kMax) == 0 && checked_mul(kMax, 1) == kMax && checked_mul(3, 5) == 15);
  CHECK(checked_add(kMax - 1, 1) == kMax);
  CHECK_ERROR(invalid_argument, checked_mul(kMax / 2 + 1, 2));
  CHECK_ERROR(corrupt, checked_mul(2, kMax / 2 + 1, ErrorCode::corrupt));
  CHECK_ERROR(corrupt, checked_add(kMax, 1, ErrorCode::corrupt));
}

void test_buffer() {
  for (size_t n : {0, 1, 3, 1000}) {
    AlignedBuffer<uint32_t> buffer(n);
    CHECK(buffer.size() == n && reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
    CHECK(std::ranges::all_of(buffer.span(), [](uint32_t x) { return x == 0; }));
  }
  AlignedBuffer<uint32_t> buffer(10);
  buffer[9] = 7;
  buffer.resize(10);
  CHECK(buffer[9] == 7);
  AlignedBuffer<uint32_t> moved = std::move(buffer);
  CHECK(moved[9] == 7 && buffer.size() == 0 && buffer.data() == nullptr);  // NOLINT: moved from
  moved.resize(20);
  CHECK(moved.size() == 20 && moved[9] == 0);
  CHECK_ERROR(invalid_argument, AlignedBuffer<uint64_t>(std::numeric_limits<size_t>::max() / 4));
}

void test_bitmap() {
  const std::array<uint64_t, 2> words{1ULL << 63, 1ULL << 5};
  const BitmapView bitmap{words.data(), 70};
  for (size_t i = 0; i < bitmap.size; ++i) {
    CHECK(bitmap.test(i) == (i == 63 || i == 69));
  }
}

/// The value of a finite binary16, from its definition.
double half_value(uint32_t half) {
  const int exponent = static_cast<int>(half >> 10) & 0x1f;
  const int mantissa = static_cast<int>(half & 0x3ffU);
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return (half & 0x8000U) != 0 ? -value : value;
}

bool half_is_finite(uint32_t half) { return (half & 0x7c00U) != 0x7c00U; }

void test_half() {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const float value = half_to_float(static_cast<uint16_t>(half));
    CHECK(std::signbit(value) == (half >= 0x8000));
    if (half_is_finite(half)) {
      CHECK(value == half_value(half));
    } else {
      CHECK((half & 0x3ffU) == 0 ? std::isinf(value) : std::isnan(value));
    }
    if (!std::isnan(value)) {
      CHECK(float_to_half(value) == half);
    }
  }
  // Between two neighbours only the halfway point matters: below it, on it (to even), above it.
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (uint32_t half = 0; half < 0x7c00; ++half) {
    const double upper = half == 0x7bff ? 65536.0 : half_value(half + 1);
    const auto middle = static_cast<float>((half_value(half) + upper) / 2);
    const uint32_t even = half + (half & 1U);
    for (const uint32_t sign : {0U, 0x8000U}) {
      const float signed_middle = sign == 0 ? middle : -middle;
      CHECK(float_to_half(std::nextafter(signed_middle, 0.0F)) == (sign | half));
      CHECK(float_to_half(signed_middle) == (sign | even));
      CHECK(float_to_half(std::nextafter(signed_middle, sign == 0 ? kInfinity : -kInfinity)) ==
            (sign | (half + 1)));
    }
  }
  CHECK(float_to_half(kInfinity) == 0x7c00 && float_to_half(-1e30F) == 0xfc00);
  const uint16_t nan = float_to_half(std::bit_cast<float>(0xff801234U));
  CHECK(nan >= 0xfe00);
  CHECK(bfloat_to_float(0x3fc0) == 1.5F && bfloat_to_float(0xc000) == -2.0F);
}

void test_random() {
  // Values of an implementation in another language, itself checked with the authors' numbers.
  Random first(42);
  CHECK(first.next() == 0x19e479e2aaa77bfb);
  CHECK(first.next() == 0x5e3efe753be27527);
  CHECK(first.next() == 0xc3ed7125b780200a);
  Random second(42, 1);
  CHECK(second.next() == 0x0cee3ac9ad457c96);
  Random below(42);
  CHECK(below.below(1000) == 731 && below.below(1000) == 263 && below.below(1000) == 970);
  Random uniform(42);
  CHECK(uniform.uniform() == 0.101142466F && uniform.uniform() == 0.36814868F);
  Random normal(42);
  for (const uint32_t bits : {0xbf4addd7U, 0x3fca7c1eU, 0x3dee111bU, 0xbd8dae05U}) {
    CHECK(std::bit_cast<uint32_t>(normal.normal()) == bits);
  }

  constexpr size_t kDraws = 100'000;
  Random random(7);
  std::array<size_t, 7> counts{};
  double sum = 0;
  double squares = 0;
  for (size_t i = 0; i < kDraws; ++i) {
    ++counts[random.below(counts.size())];
    const double x = random.normal();
    sum += x;
    squares += x * x;
    const float u = random.uniform();
    CHECK(u >= 0 && u < 1);
  }
  CHECK(std::abs(sum / kDraws) < 0.02 && std::abs(squares / kDraws - 1) < 0.03);
  for (const size_t count : counts) {
    CHECK(std::abs(static_cast<double>(count) - kDraws / 7.0) < 600);  // five deviations
  }
  CHECK(random.below(1) == 0);
}

void test_topk() {
  Random random(3);
  for (size_t n : {0, 1, 10, 500}) {
    std::vector<TopK::Entry> all;
    for (size_t i = 0; i < n; ++i) {  // few different scores: many ties
      all.emplace_back(static_cast<float>(random.below(9)) - 4, i);
    }
    std::vector<TopK::Entry> sorted = all;
    std::ranges::sort(sorted, [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first > b.first : a.second < b.second;
    });
    for (size_t k : {0, 1, 7, 100, 1000}) {
      for (size_t i = all.size(); i > 1; --i) {
        std::swap(all[i - 1], all[random.below(i)]);
      }
      TopK top(k);
      for (const auto& [score, doc] : all) {
        top.push(score, doc);
      }
      CHECK(top.full() == (n >= k));
      CHECK(top.threshold() ==
            (n >= k && k > 0 ? sorted[k - 1].first : -std::numeric_limits<float>::infinity()));
      const auto expected =
          std::vector(sorted.begin(), sorted.begin() + static_cast<ptrdiff_t>(std::min(n, k)));
      CHECK(top.take_sorted() == expected);
      CHECK(top.take_sorted().empty());
    }
  }
}

void test_checksum() {
  std::array<unsigned char, 32> bytes{};
  CHECK(crc32c(0, "", 0) == 0 && crc32c(0, "123456789", 9) == 0xe3069283);
  CHECK(crc32c(0, bytes.data(), 32) == 0x8a9136aa);  // RFC 3720, B.4
  bytes.fill(0xff);
  CHECK(crc32c(0, bytes.data(), 32) == 0x62a8ab43);
  std::iota(bytes.begin(), bytes.end(), static_cast<unsigned char>(0));
  CHECK(crc32c(0, bytes.data(), 32) == 0x46dd794e);
  std::reverse(bytes.begin(), bytes.end());
  CHECK(crc32c(0, bytes.data(), 32) == 0x113fdb5c);

  Random random(1);
  std::vector<unsigned char> data(300);
  for (auto& byte : data) {
    byte = static_cast<unsigned char>(random.next());
  }
  const uint32_t whole = crc32c(0, data.data(), data.size());
  for (size_t split = 0; split <= data.size(); ++split) {
    const uint32_t head = crc32c(0, data.data(), split);
    CHECK(head == crc32c_portable(0, data.data(), split));
    CHECK(crc32c(head, data.data() + split, data.size() - split) == whole);
    CHECK(crc32c_portable(head, data.data() + split, data.size() - split) == whole);
  }
}

int errno_of(const auto& action) {
  try {
    action();
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::io && !error.path().empty());
    CHECK(std::string(error.what()).find(error.path()) != std::string::npos);
    return error.system_errno();
  }
  return 0;
}

void test_mapped_file() {
  const TemporaryFolder folder;
  CHECK(errno_of([&] { MappedFile::open(folder / "absent"); }) == ENOENT);
  CHECK(errno_of([&] { MappedFile::open(folder / ""); }) == EISDIR);
  write_text(folder / "empty", "");
  CHECK(MappedFile::open(folder / "empty")->bytes().empty());
  write_text(folder / "text", "woven");
  const auto file = MappedFile::open(folder / "text");
  CHECK(file->bytes().size() == 5 && std::memcmp(file->bytes().data(), "woven", 5) == 0);
  CHECK(file->path() == folder / "text");
}

void test_file_writer() {
  const TemporaryFolder folder;
  const std::string path = folder / "out";
  {
    const OutputFile out(path);
    const FileWriter writer(out.fd(), path);
    writer.write_at(3, "def", 3);
    writer.write_at(0, "abc", 3);
    writer.write_at(6, nullptr, 0);
    CHECK(read_bytes(path) == "abcdef");

    FileWriter::fail_write(2, ENOSPC, true);
    writer.write_at(6, "g", 1);
    CHECK(errno_of([&] { writer.write_at(7, "hijk", 4); }) == ENOSPC);
    CHECK(read_bytes(path) == "abcdefghi");
    FileWriter::fail_write(1, EIO, false);
    CHECK(errno_of([&] { writer.write_at(9, "jk", 2); }) == EIO);
    writer.write_at(9, "jk", 2);
    FileWriter::fail_write(1, EIO, false);
    FileWriter::fail_none();
    writer.write_at(11, "l", 1);
    CHECK(read_bytes(path) == "abcdefghijkl");
    CHECK(errno_of([&] { writer.write_at(UINT64_MAX, "x", 1); }) == EFBIG);

    // A limit makes the system write 8 of 16 bytes first and refuse the rest.
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const rlimit small{20, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    const int code = errno_of([&] { writer.write_at(12, "0123456789abcdef", 16); });
    setrlimit(RLIMIT_FSIZE, &before);
    CHECK(code == EFBIG && read_bytes(path) == "abcdefghijkl01234567");
  }
  CHECK(errno_of([] { FileWriter(-1, "closed").write_at(0, "x", 1); }) == EBADF);
#ifdef __linux__
  const int full = ::open("/dev/full", O_WRONLY | O_CLOEXEC);
  CHECK(errno_of([&] { FileWriter(full, "full").write_at(0, "x", 1); }) == ENOSPC);
  ::close(full);
#endif
}

}  // namespace
}  // namespace weft::test

int main() {
  using namespace weft::test;
  test_checked();
  test_buffer();
  test_bitmap();
  test_half();
  test_random();
  test_topk();
  test_checksum();
  test_mapped_file();
  test_file_writer();
  return CHECK_RESULT;
}
