// SPDX-License-Identifier: Apache-2.0
//
// Arbitrary bytes into the container reader: it answers or throws Error, never anything else. Built
// with -fsanitize=fuzzer -DWEFT_LIBFUZZER it is a libFuzzer target; without, a program that edits a
// valid file: fuzz_container [ITERATIONS] [SEED].
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/buffer.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/random.h"
#include "index/container.h"

namespace {

volatile uint32_t sink;

/// Opens the bytes and reads every byte of every array; true if the container was accepted.
bool read_all(std::span<const std::byte> bytes) {
  try {
    const weft::Container container = weft::Container::parse(bytes, "input");
    for (const weft::NamedArray& array : container.arrays()) {
      sink = weft::crc32c(0, array.bytes.data(), array.bytes.size());
      static_cast<void>(container.find(array.name));
    }
    container.verify();
    return true;
  } catch (const weft::Error& error) {
    if (error.code() != weft::ErrorCode::corrupt && error.code() != weft::ErrorCode::incompatible) {
      throw;  // another code from hostile bytes is a bug
    }
    return false;
  }
}

/// Corrects what the reader looks at first, so that edits reach what comes after it: the mark, the
/// version, the sizes in the header and its checksum.
void seal(std::span<std::byte> bytes) {
  constexpr size_t kHeader = 64;
  constexpr size_t kEntry = 128;
  if (bytes.size() < kHeader) {
    return;
  }
  constexpr unsigned char kStart[12] = {0x89, 'W', 'E', 'F', 'T', '\r', '\n', 0x1a, 1, 0, 0, 0};
  const auto n_arrays = static_cast<uint32_t>(
      std::min<size_t>(static_cast<size_t>(bytes[12]) % 9, (bytes.size() - kHeader) / kEntry));
  const uint64_t table_bytes = n_arrays * kEntry;
  const uint64_t file_bytes = bytes.size();
  std::memcpy(bytes.data(), kStart, sizeof kStart);
  std::memcpy(bytes.data() + 12, &n_arrays, 4);
  std::memcpy(bytes.data() + 16, &table_bytes, 8);
  std::memcpy(bytes.data() + 24, &file_bytes, 8);
  std::memset(bytes.data() + 32, 0, 28);
  const uint32_t crc = weft::crc32c(0, bytes.data(), 60);
  const uint32_t checksum = weft::crc32c(crc, bytes.data() + kHeader, table_bytes);
  std::memcpy(bytes.data() + 60, &checksum, 4);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  weft::AlignedBuffer<std::byte> bytes(size);
  std::copy_n(data, size, reinterpret_cast<uint8_t*>(bytes.data()));
  read_all(bytes.span());
  seal(bytes.span());
  read_all(bytes.span());
  return 0;
}

#ifndef WEFT_LIBFUZZER
namespace {

std::vector<uint8_t> valid_file() {
  std::FILE* file = std::tmpfile();
  WEFT_REQUIRE(file != nullptr, weft::ErrorCode::io, "cannot make a temporary file");
  using weft::DType;
  const std::vector<weft::ArraySpec> specs{{"codes", DType::u16, {40}},
                                           {"rows", DType::f16, {3, 32}},
                                           {"empty", DType::u8, {0}},
                                           {"offsets", DType::u64, {9}},
                                           {"quad", DType::s8, {2, 1, 3, 7}}};
  weft::ContainerWriter writer(weft::FileWriter(::fileno(file), "valid"), specs);
  for (size_t i = 0; i < specs.size(); ++i) {
    size_t n = weft::dtype_size(specs[i].dtype);
    for (const uint64_t extent : specs[i].shape) {
      n *= extent;
    }
    const std::vector<uint8_t> payload(n, 0x55);
    writer.append(i, payload.data(), n);
  }
  writer.finish();
  std::vector<uint8_t> bytes(writer.file_bytes());
  const size_t n_read = std::fread(bytes.data(), 1, bytes.size(), file);
  std::fclose(file);
  WEFT_REQUIRE(n_read == bytes.size(), weft::ErrorCode::io, "cannot read it back");
  return bytes;
}

/// One to four edits: a byte, a number of 8 bytes at a field's place, a cut, a piece copied
/// elsewhere.
void mutate(std::vector<uint8_t>& bytes, weft::Random& random) {
  constexpr uint64_t kNumbers[] = {0,        1,          63,         64,         128,
                                   1U << 31, 1ULL << 32, 1ULL << 63, UINT64_MAX, UINT64_MAX - 63};
  for (uint64_t edits = random.below(4) + 1; edits > 0 && bytes.size() > 8; --edits) {
    // mostly header and table: the payloads are not looked at
    const size_t reach = random.below(8) == 0 ? bytes.size() : std::min<size_t>(bytes.size(), 704);
    const size_t at = random.below(reach - 8 + 1);
    switch (random.below(7)) {
      case 0:
        bytes.resize(random.below(bytes.size() + 100));
        break;
      case 1:
        std::memcpy(bytes.data() + at / 8 * 8, &kNumbers[random.below(std::size(kNumbers))], 8);
        break;
      case 2: {
        const size_t n = random.below(std::min<size_t>(128, bytes.size() - at)) + 1;
        const size_t from = random.below(bytes.size() - n + 1);
        std::memmove(bytes.data() + at, bytes.data() + from, n);
        break;
      }
      case 3: {  // an array of bytes whose fields agree with each other
        const size_t entry = 64 + 128 * random.below(5);
        const uint64_t n =
            random.below(2) == 0 ? random.below(2000) : kNumbers[random.below(std::size(kNumbers))];
        const uint64_t shape[4] = {n, 0, 0, 0};
        if (entry + 128 <= bytes.size()) {
          bytes[entry + 48] = 0;
          bytes[entry + 49] = 1;
          std::memcpy(bytes.data() + entry + 56, shape, sizeof shape);
          std::memcpy(bytes.data() + entry + 96, &n, sizeof n);
        }
        break;
      }
      default:
        bytes[at] = static_cast<uint8_t>(random.below(2) == 0 ? random.below(256) : bytes[at] + 1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t iterations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100'000;
  weft::Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  const std::vector<uint8_t> valid = valid_file();
  weft::AlignedBuffer<std::byte> copy(valid.size());
  std::memcpy(copy.data(), valid.data(), valid.size());
  seal(copy.span());
  if (!read_all(copy.span())) {
    std::fputs("the unedited file was refused\n", stderr);
    return 1;
  }
  for (uint64_t i = 0; i < iterations; ++i) {
    std::vector<uint8_t> bytes = valid;
    mutate(bytes, random);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(iterations));
  return 0;
}
#endif
