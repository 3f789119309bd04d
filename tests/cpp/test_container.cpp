// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "base/checksum.h"
#include "base/random.h"
#include "check.h"
#include "files.h"
#include "index/container.h"

namespace weft::test {
namespace {

constexpr size_t kHeader = 64;
constexpr size_t kEntry = 128;

// Offsets inside header and entry, as docs/format.md has them.
constexpr size_t kVersion = 8;
constexpr size_t kArrays = 12;
constexpr size_t kTableBytes = 16;
constexpr size_t kFileBytes = 24;
constexpr size_t kReserved = 32;
constexpr size_t kChecksum = 60;
constexpr size_t kDType = 48;
constexpr size_t kRank = 49;
constexpr size_t kShape = 56;
constexpr size_t kOffset = 88;
constexpr size_t kBytes = 96;

const std::vector<ArraySpec> kSpecs{
    {"codes", DType::u16, {5}},
    {"rows", DType::f16, {3, 32}},
    {"empty", DType::u8, {0}},
    {"quad", DType::s32, {2, 1, 3, 2}},
    {"scale", DType::f64, {1}},
    {"full_64", DType::u64, {2, 4}},
    {"also_empty", DType::s64, {0, 128}},
    {"last", DType::s8, {7}},
};

std::string payload(size_t array) {
  size_t n = dtype_size(kSpecs[array].dtype);
  for (const uint64_t extent : kSpecs[array].shape) {
    n *= extent;
  }
  std::string bytes(n, '\0');
  Random random(array);
  std::ranges::generate(bytes, [&] { return static_cast<char>(random.next() | 1U); });  // no zeros
  return bytes;
}

/// Writes kSpecs, the arrays interleaved in pieces of 5 bytes; returns the checksum.
uint32_t write_sample(const std::string& path) {
  const OutputFile out(path);
  ContainerWriter writer(FileWriter(out.fd(), path), kSpecs);
  std::vector<std::string> rest;
  for (size_t i = 0; i < kSpecs.size(); ++i) {
    rest.push_back(payload(i));
  }
  for (bool more = true; more;) {
    more = false;
    for (size_t i = 0; i < rest.size(); ++i) {
      const size_t n = std::min<size_t>(5, rest[i].size());
      writer.append(i, rest[i].data(), n);
      rest[i].erase(0, n);
      more = more || !rest[i].empty();
    }
  }
  const uint32_t checksum = writer.finish();
  CHECK(read_bytes(path).size() == writer.file_bytes());
  return checksum;
}

std::string sample() {
  const TemporaryFolder folder;
  write_sample(folder / "sample.weft");
  return read_bytes(folder / "sample.weft");
}

/// Parses a copy of `bytes` of exactly their size, so that a sanitizer sees the first byte too far.
void with_container(std::string_view bytes, const std::function<void(const Container&)>& use = {}) {
  AlignedBuffer<char> copy(bytes.size());
  std::ranges::copy(bytes, copy.data());
  const Container container = Container::parse(std::as_bytes(copy.span()), "sample.weft");
  if (use) {
    use(container);
  }
}

template <class T>
void put(std::string& bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
}

template <class T>
T get(const std::string& bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

/// Makes the checksum right again after an edit, as an attacker would.
void seal(std::string& bytes) {
  const uint32_t crc = crc32c(0, bytes.data(), kChecksum);
  const size_t table =
      std::min<size_t>(get<uint32_t>(bytes, kArrays) * kEntry, bytes.size() - kHeader);
  put(bytes, kChecksum, crc32c(crc, bytes.data() + kHeader, table));
}

size_t entry(size_t array) { return kHeader + array * kEntry; }

void test_round_trip() {
  const TemporaryFolder folder;
  const std::string path = folder / "sample.weft";
  const uint32_t checksum = write_sample(path);
  const Container container = Container::open(path);
  container.verify();
  CHECK(container.checksum() == checksum && container.path() == path);
  CHECK(container.arrays().size() == kSpecs.size() && container.file_bytes() % 64 == 0);
  for (size_t i = 0; i < kSpecs.size(); ++i) {
    const NamedArray* array = container.find(kSpecs[i].name);
    CHECK(array != nullptr && array->dtype == kSpecs[i].dtype && array->shape == kSpecs[i].shape);
    const std::string expected = payload(i);
    CHECK(array->bytes.size() == expected.size() &&
          std::equal(expected.begin(), expected.end(),
                     reinterpret_cast<const char*>(array->bytes.data())));
    CHECK(reinterpret_cast<uintptr_t>(array->bytes.data()) % 64 == 0);
  }
  CHECK(container.find("absent") == nullptr && container.find("code") == nullptr);

  CHECK(container.array<uint16_t>("codes", 5).size() == 5);
  CHECK(container.array<uint16_t>("rows", 3, Container::kAny).size() == 96);  // f16 as its bits
  CHECK(container.array<int32_t>("quad", 2, 1, 3, 2).size() == 12);
  CHECK(container.array<double>("scale", 1).size() == 1);
  CHECK(container.array<int64_t>("also_empty", 0, 128).empty());
  CHECK_ERROR(corrupt, container.array<uint16_t>("absent", 5));
  CHECK_ERROR(corrupt, container.array<int16_t>("codes", 5));
  CHECK_ERROR(corrupt, container.array<uint16_t>("codes", 6));
  CHECK_ERROR(corrupt, container.array<uint16_t>("codes", 5, 1));
  CHECK_ERROR(corrupt, container.array<uint16_t>("codes"));
  CHECK_ERROR(corrupt, container.array<uint32_t>("rows", 3, 32));
}

void test_no_arrays() {
  const TemporaryFolder folder;
  const OutputFile out(folder / "none.weft");
  ContainerWriter(FileWriter(out.fd(), "none.weft"), {}).finish();
  CHECK(Container::open(folder / "none.weft").arrays().empty());
}

void test_last_shape() {
  const TemporaryFolder folder;
  const OutputFile out(folder / "file");
  ContainerWriter writer(FileWriter(out.fd(), "file"),
                         {{"first", DType::u8, {3}}, {"last", DType::u16, {0}}});
  writer.append(0, "abc", 3);
  CHECK_ERROR(invalid_argument, writer.set_last_shape({UINT64_MAX}));
  CHECK_ERROR(invalid_argument, writer.set_last_shape({}));
  writer.set_last_shape({2, 50});
  const std::string bytes(200, 'x');
  writer.append(1, bytes.data(), 100);
  CHECK_ERROR(internal, writer.set_last_shape({2, 51}));
  writer.append(1, bytes.data(), 100);
  writer.finish();
  CHECK(read_bytes(folder / "file").size() == writer.file_bytes());
  const Container container = Container::open(folder / "file");
  container.verify();
  CHECK(container.array<uint16_t>("last", 2, 50)[99] == 'x' * 257);
}

void test_writer_refuses() {
  const FileWriter file(-1, "unused");
  const auto refused = [&](std::vector<ArraySpec> specs) {
    CHECK_ERROR(invalid_argument, ContainerWriter(file, std::move(specs)));
  };
  for (const std::string& name :
       {std::string(), std::string(48, 'a'), std::string("Codes"), std::string("a b"),
        std::string("a\0b", 3), std::string("\xc3\xa9")}) {
    refused({{name, DType::u8, {1}}});
  }
  refused({{"a", DType::u8, {1}}, {"b", DType::u8, {1}}, {"a", DType::u8, {1}}});
  refused({{"a", DType::u8, {}}});
  refused({{"a", DType::u8, {1, 1, 1, 1, 1}}});
  refused({{"a", DType::u16, {UINT64_MAX}}});
  refused({{"a", DType::u8, {1ULL << 32, 1ULL << 32}}});
  refused({{"a", DType::u8, {1ULL << 62}}, {"b", DType::u8, {1ULL << 62}}});
  refused({{"a", DType::u8, {(1ULL << 63) - 1}}});
  refused({{"a", static_cast<DType>(11), {1}}});
  refused(std::vector<ArraySpec>(1025, {"a", DType::u8, {1}}));

  const TemporaryFolder folder;
  const OutputFile out(folder / "file");
  ContainerWriter writer(FileWriter(out.fd(), "file"), {{"a", DType::u16, {2}}});
  CHECK_ERROR(internal, writer.append(1, "x", 1));
  CHECK_ERROR(internal, writer.append(0, "12345", 5));
  writer.append(0, "123", 3);
  CHECK_ERROR(internal, writer.append(0, "45", 2));
  CHECK_ERROR(internal, writer.finish());
  CHECK_ERROR(corrupt, Container::open(folder / "file"));
  writer.append(0, "4", 1);
  writer.finish();
  CHECK_ERROR(internal, writer.append(0, "5", 0));
  CHECK_ERROR(internal, writer.finish());
  CHECK(Container::open(folder / "file").array<uint16_t>("a", 2)[1] == '3' + 256 * '4');
}

void test_every_truncation() {
  const std::string bytes = sample();
  with_container(bytes);
  for (size_t n = 0; n < bytes.size(); ++n) {
    CHECK_ERROR(corrupt, with_container(std::string_view(bytes).substr(0, n)));
  }
  for (size_t n : {1, 63, 64, 128}) {
    CHECK_ERROR(corrupt, with_container(bytes + std::string(n, '\0')));
  }
}

/// True if the byte belongs to a payload; the rest is header, table and padding.
bool in_payload(const std::string& bytes, size_t position) {
  for (size_t i = 0; i < kSpecs.size(); ++i) {
    const auto offset = get<uint64_t>(bytes, entry(i) + kOffset);
    if (position >= offset && position < offset + get<uint64_t>(bytes, entry(i) + kBytes)) {
      return true;
    }
  }
  return false;
}

void test_every_flipped_bit() {
  const std::string bytes = sample();
  for (size_t position = 0; position < bytes.size(); ++position) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = bytes;
      damaged[position] = static_cast<char>(damaged[position] ^ (1 << bit));
      if (in_payload(bytes, position)) {
        with_container(
            damaged, [](const Container& container) { CHECK_ERROR(corrupt, container.verify()); });
      } else if (position >= kVersion && position < kArrays && damaged[kVersion] != 0) {
        CHECK_ERROR(incompatible, with_container(damaged));
      } else {
        CHECK_ERROR(corrupt, with_container(damaged));
      }
    }
  }
}

/// Edits behind a checksum that is right: each must be found by the check made for it.
void test_sealed_edits() {
  const std::string bytes = sample();
  const size_t last = kSpecs.size() - 1;
  const auto expect = [&](std::string_view text, const std::function<void(std::string&)>& edit) {
    std::string edited = bytes;
    edit(edited);
    seal(edited);
    try {
      with_container(edited);
      report(false, std::string(text).c_str(), __FILE__, __LINE__);
    } catch (const Error& error) {
      const bool named = std::string_view(error.what()).find(text) != std::string_view::npos;
      report(named && error.path() == "sample.weft", error.what(), __FILE__, __LINE__);
      CHECK(error.code() ==
            (text.starts_with("newer") ? ErrorCode::incompatible : ErrorCode::corrupt));
    }
  };
  const auto set = [&](std::string_view text, size_t offset, auto value) {
    expect(text, [=](std::string& b) { put(b, offset, value); });
  };
  set("not a weft file", 0, uint8_t{'W'});
  set("not a weft file", 7, uint8_t{'\n'});
  set("format 0", kVersion, uint32_t{0});
  set("newer weft (format 2", kVersion, uint32_t{2});
  set("newer weft", kVersion, UINT32_MAX);
  set("file of", kFileBytes, uint64_t{bytes.size() + 64});
  set("table of 9", kArrays, uint32_t{9});
  set("table of 4294967295", kArrays, UINT32_MAX);
  set("table of 8", kTableBytes, uint64_t{0});
  expect("table of 1025", [](std::string& b) {
    b.resize(kHeader + 1026 * kEntry);
    put(b, kFileBytes, uint64_t{b.size()});
    put(b, kArrays, uint32_t{1025});
    put(b, kTableBytes, uint64_t{1025 * kEntry});
  });
  expect("table of 900", [](std::string& b) {
    put(b, kArrays, uint32_t{900});
    put(b, kTableBytes, uint64_t{900 * kEntry});
  });
  set("reserved", kReserved, uint8_t{1});
  set("reserved", kChecksum - 1, uint8_t{1});

  for (size_t i = 0; i < kSpecs.size(); ++i) {
    const size_t e = entry(i);
    const std::string& name = kSpecs[i].name;
    set("bad name", e, uint8_t{0});
    set("bad name", e, uint8_t{'A'});
    set("bad name", e + 47, uint8_t{'a'});
    expect("bad name",
           [=](std::string& b) { std::fill_n(b.begin() + static_cast<ptrdiff_t>(e), 48, 'a'); });
    set(name + ": dtype 11", e + kDType, uint8_t{11});
    set(name + ": dtype 255", e + kDType, uint8_t{255});
    set(name + ": rank 0", e + kRank, uint8_t{0});
    set(name + ": rank 5", e + kRank, uint8_t{5});
    set(name + ": reserved", e + 50, uint8_t{1});
    set(name + ": reserved", e + 108, uint8_t{1});
    set(name + ": reserved", e + 127, uint8_t{1});
    const auto extent = get<uint64_t>(bytes, e + kShape);
    set(name, e + kShape, extent + 1);
    set(name, e + kShape, UINT64_MAX);
    set(name, e + kShape, extent + (1ULL << 63));
    if (kSpecs[i].shape.size() < 4) {
      set(name + ": reserved", e + kShape + 24, uint64_t{1});
    }
    const auto offset = get<uint64_t>(bytes, e + kOffset);
    for (const uint64_t wrong : {uint64_t{0}, offset + 64, offset - 64, offset + 1,
                                 offset | (uint64_t{1} << 63), ~uint64_t{0}, ~uint64_t{63}}) {
      set(name, e + kOffset, wrong);
    }
    const auto n_bytes = get<uint64_t>(bytes, e + kBytes);
    set(name, e + kBytes, n_bytes + 1);
    set(name, e + kBytes, UINT64_MAX - offset + 1);
  }
  expect("named twice", [](std::string& b) { b.replace(entry(3), 48, b, entry(0), 48); });
  expect("codes: ", [](std::string& b) {  // shape and bytes agree, and reach beyond the file
    put(b, entry(0) + kShape, uint64_t{1} << 20);
    put(b, entry(0) + kBytes, uint64_t{1} << 21);
  });
  expect("rows: ", [](std::string& b) {  // the same, running into the next array
    put(b, entry(0) + kShape, uint64_t{64});
    put(b, entry(0) + kBytes, uint64_t{128});
  });
  expect("rows: the padding", [](std::string& b) {
    put(b, entry(0) + kShape, uint64_t{4});
    put(b, entry(0) + kBytes, uint64_t{8});
  });
  expect("rows: ", [](std::string& b) {  // the file ends where the padding before it begins
    b.resize(get<uint64_t>(b, entry(0) + kOffset) + get<uint64_t>(b, entry(0) + kBytes));
    put(b, kFileBytes, uint64_t{b.size()});
  });
  expect("zeros behind the last array", [=](std::string& b) {
    put(b, entry(last) + kShape, uint64_t{6});
    put(b, entry(last) + kBytes, uint64_t{6});
  });
  expect("zeros behind the last array", [](std::string& b) {
    b += std::string(64, '\0');
    put(b, kFileBytes, uint64_t{b.size()});
  });
}

void test_messages() {
  std::string bytes = sample();
  bytes[get<uint64_t>(bytes, entry(1) + kOffset)] ^= 1;
  with_container(bytes, [](const Container& container) {
    try {
      container.verify();
    } catch (const Error& error) {
      CHECK(std::string(error.what()) ==
            "sample.weft: rows: checksum mismatch (array 2 of 8); the file is damaged, restore it "
            "or rebuild");
    }
    try {
      container.array<uint16_t>("codes", 6);
    } catch (const Error& error) {
      CHECK(std::string(error.what()) ==
            "sample.weft: codes: found u16[5], expected u16[6]; the file is damaged, restore it or "
            "rebuild");
    }
  });
}

/// Every write of a file fails in turn, whole or torn: the error comes through, and what is left is
/// refused.
void test_failing_writes() {
  const TemporaryFolder folder;
  const std::string path = folder / "sample.weft";
  for (const bool torn : {false, true}) {
    uint64_t n = 1;
    for (;; ++n) {
      FileWriter::fail_write(n, ENOSPC, torn);
      try {
        write_sample(path);
        break;
      } catch (const Error& error) {
        CHECK(error.code() == ErrorCode::io && error.system_errno() == ENOSPC &&
              error.path() == path);
        CHECK_ERROR(corrupt, Container::open(path));
      }
    }
    FileWriter::fail_none();
    CHECK(n > 30);
    Container::open(path).verify();
  }
}

}  // namespace
}  // namespace weft::test

int main() {
  using namespace weft::test;
  test_round_trip();
  test_no_arrays();
  test_last_shape();
  test_writer_refuses();
  test_every_truncation();
  test_every_flipped_bit();
  test_sealed_edits();
  test_messages();
  test_failing_writes();
  return CHECK_RESULT;
}
