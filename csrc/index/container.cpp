// SPDX-License-Identifier: Apache-2.0
#include "index/container.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"

namespace weft {
namespace {

// The first bytes show a transfer in text mode, which changes 0x89, \r\n or 0x1a.
constexpr std::array<unsigned char, 8> kMagic{0x89, 'W', 'E', 'F', 'T', '\r', '\n', 0x1a};
constexpr uint64_t kAlignment = 64;
constexpr uint64_t kMaxArrays = 1024;
constexpr size_t kMaxRank = 4;

struct Header {
  std::array<unsigned char, 8> magic;
  uint32_t version;
  uint32_t n_arrays;
  uint64_t table_bytes;
  uint64_t file_bytes;
  std::array<unsigned char, 28> reserved;
  uint32_t checksum;  // CRC-32C of everything before it in the header, then the table
};
static_assert(sizeof(Header) == 64 && offsetof(Header, checksum) == 60);

struct Entry {
  std::array<char, 48> name;
  uint8_t dtype;
  uint8_t rank;
  std::array<unsigned char, 6> reserved;
  std::array<uint64_t, kMaxRank> shape;
  uint64_t offset;
  uint64_t bytes;
  uint32_t checksum;  // CRC-32C of the payload
  std::array<unsigned char, 20> reserved_end;
};
static_assert(sizeof(Entry) == 128 && offsetof(Entry, shape) == 56 &&
              offsetof(Entry, offset) == 88 && offsetof(Entry, checksum) == 104);

struct DTypeInfo {
  const char* name;
  size_t size;
};
constexpr std::array<DTypeInfo, 11> kDTypes{{{"u8", 1},
                                             {"s8", 1},
                                             {"u16", 2},
                                             {"s16", 2},
                                             {"u32", 4},
                                             {"s32", 4},
                                             {"u64", 8},
                                             {"s64", 8},
                                             {"f16", 2},
                                             {"f32", 4},
                                             {"f64", 8}}};

constexpr const char* kRemedy = "the file is damaged, restore it or rebuild";

template <class... Parts>
[[noreturn]] void throw_corrupt(const std::string& path, const Parts&... parts) {
  throw Error(ErrorCode::corrupt, concat(path, ": ", parts...), path);
}

/// Rounds up to the alignment; the caller has made sure that it fits.
uint64_t align_up(uint64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

/// Product of the shape times the element size; false where it does not fit in 63 bits.
bool payload_bytes(std::span<const uint64_t> shape, DType dtype, uint64_t& bytes) {
  constexpr auto kLimit = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  bytes = dtype_size(dtype);
  for (const uint64_t extent : shape) {
    if (extent != 0 && bytes > kLimit / extent) {
      return false;
    }
    bytes *= extent;
  }
  return true;
}

bool good_name(std::string_view name) {
  return !name.empty() && name.size() < sizeof(Entry::name) &&
         name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string_view::npos;
}

template <class Bytes>
bool all_zero(const Bytes& bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](auto byte) { return static_cast<unsigned char>(byte) == 0; });
}

std::string shape_text(std::span<const uint64_t> shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += i == 0 ? "" : ", ";
    text += shape[i] == Container::kAny ? "any" : std::to_string(shape[i]);
  }
  return text + "]";
}

uint32_t header_checksum(const Header& header, const void* table, size_t table_bytes) {
  return crc32c(crc32c(0, &header, offsetof(Header, checksum)), table, table_bytes);
}

/// The header, checked against the size of the file.
Header parse_header(std::span<const std::byte> bytes, const std::string& path) {
  Header header{};
  const size_t seen = std::min(bytes.size(), sizeof header);
  if (seen > 0) {
    std::memcpy(&header, bytes.data(), seen);
  }
  if (seen < kMagic.size() || header.magic != kMagic) {
    throw_corrupt(path, "not a weft file (it does not begin with the mark of one)");
  }
  if (seen < sizeof header) {
    throw_corrupt(path, "file of ", seen, " bytes: expected a header of 64 bytes; ", kRemedy);
  }
  if (header.version > kFormatVersion) {
    throw Error(ErrorCode::incompatible,
                concat(path, ": written by a newer weft (format ", header.version,
                       ", this one reads up to ", kFormatVersion, "); upgrade weft to read it"),
                path);
  }
  if (header.version == 0) {
    throw_corrupt(path, "format 0: expected 1..", kFormatVersion, "; ", kRemedy);
  }
  if (header.file_bytes != bytes.size()) {
    throw_corrupt(path, "file of ", bytes.size(), " bytes: expected ", header.file_bytes,
                  " as its header says; ", kRemedy);
  }
  if (header.n_arrays > kMaxArrays || header.table_bytes != header.n_arrays * sizeof(Entry) ||
      header.table_bytes > bytes.size() - sizeof header) {
    throw_corrupt(path, "table of ", header.n_arrays, " arrays in ", header.table_bytes,
                  " bytes: expected at most ", kMaxArrays, " of ", sizeof(Entry),
                  " bytes each, inside the file; ", kRemedy);
  }
  const std::byte* table = bytes.data() + sizeof header;
  if (header_checksum(header, table, static_cast<size_t>(header.table_bytes)) != header.checksum) {
    throw_corrupt(path, "header: checksum mismatch; ", kRemedy);
  }
  if (!all_zero(header.reserved)) {
    throw_corrupt(path, "header: reserved bytes are not zero; ", kRemedy);
  }
  return header;
}

/// One entry of the table, whose payload has to begin at the first multiple of 64 from `end`, where
/// the one before it ended, with zeros between; moves `end` behind it.
NamedArray parse_entry(const Entry& entry, std::span<const std::byte> file, uint64_t& end,
                       const std::string& subject, const std::string& path) {
  const auto terminator = std::find(entry.name.begin(), entry.name.end(), '\0');
  const std::string name(entry.name.begin(), terminator);
  if (!good_name(name) || !all_zero(std::span(terminator, entry.name.end()))) {
    throw_corrupt(path, subject, ": bad name; ", kRemedy);
  }
  if (entry.dtype >= kDTypes.size()) {
    throw_corrupt(path, name, ": dtype ", static_cast<unsigned>(entry.dtype), ", expected 0..",
                  kDTypes.size() - 1, "; ", kRemedy);
  }
  if (entry.rank < 1 || entry.rank > kMaxRank) {
    throw_corrupt(path, name, ": rank ", static_cast<unsigned>(entry.rank), ", expected 1..",
                  kMaxRank, "; ", kRemedy);
  }
  const auto dtype = static_cast<DType>(entry.dtype);
  const auto shape = std::span(entry.shape).first(entry.rank);
  if (!all_zero(entry.reserved) || !all_zero(entry.reserved_end) ||
      std::any_of(entry.shape.begin() + entry.rank, entry.shape.end(),
                  [](uint64_t extent) { return extent != 0; })) {
    throw_corrupt(path, name, ": reserved fields are not zero; ", kRemedy);
  }
  uint64_t expected = 0;
  if (!payload_bytes(shape, dtype, expected) || entry.bytes != expected) {
    throw_corrupt(path, name, ": ", entry.bytes, " bytes for ", dtype_name(dtype),
                  shape_text(shape), "; ", kRemedy);
  }
  const uint64_t begin = align_up(end);
  if (entry.offset != begin || begin > file.size() || entry.bytes > file.size() - begin) {
    throw_corrupt(path, name, ": ", entry.bytes, " bytes at ", entry.offset, ", expected at ",
                  begin, " in a file of ", file.size(), " bytes; ", kRemedy);
  }
  if (!all_zero(file.subspan(end, begin - end))) {
    throw_corrupt(path, name, ": the padding before it is not zero; ", kRemedy);
  }
  end = begin + entry.bytes;
  return {name, dtype, {shape.begin(), shape.end()}, file.subspan(begin, entry.bytes)};
}

}  // namespace

size_t dtype_size(DType dtype) noexcept { return kDTypes[static_cast<size_t>(dtype)].size; }
const char* dtype_name(DType dtype) noexcept { return kDTypes[static_cast<size_t>(dtype)].name; }

ContainerWriter::ContainerWriter(FileWriter file, std::vector<ArraySpec> arrays)
    : file_(std::move(file)), specs_(std::move(arrays)), layout_(specs_.size()) {
  WEFT_REQUIRE(specs_.size() <= kMaxArrays, ErrorCode::invalid_argument, specs_.size(),
               " arrays: expected at most ", kMaxArrays);
  file_bytes_ = sizeof(Header) + specs_.size() * sizeof(Entry);
  for (size_t i = 0; i < specs_.size(); ++i) {
    const ArraySpec& spec = specs_[i];
    WEFT_REQUIRE(good_name(spec.name), ErrorCode::invalid_argument, "array name \"", spec.name,
                 "\": expected 1 to ", sizeof(Entry::name) - 1, " of a-z, 0-9 and _");
    WEFT_REQUIRE(std::none_of(specs_.begin(), specs_.begin() + static_cast<ptrdiff_t>(i),
                              [&](const ArraySpec& other) { return other.name == spec.name; }),
                 ErrorCode::invalid_argument, spec.name, ": array named twice");
    WEFT_REQUIRE(static_cast<size_t>(spec.dtype) < kDTypes.size(), ErrorCode::invalid_argument,
                 spec.name, ": unknown dtype");
    layout_[i].offset = align_up(file_bytes_);
    place(i);
  }
}

void ContainerWriter::set_last_shape(std::vector<uint64_t> shape) {
  WEFT_REQUIRE(!specs_.empty() && !finished_ && layout_.back().written == 0, ErrorCode::internal,
               "the shape of the last array cannot change any more");
  specs_.back().shape = std::move(shape);
  place(specs_.size() - 1);
}

/// Takes the array's bytes from its shape, and the file's size from where it then ends.
void ContainerWriter::place(size_t array) {
  constexpr uint64_t kLimit = std::numeric_limits<int64_t>::max() - kAlignment;
  const ArraySpec& spec = specs_[array];
  Layout& layout = layout_[array];
  WEFT_REQUIRE(!spec.shape.empty() && spec.shape.size() <= kMaxRank, ErrorCode::invalid_argument,
               spec.name, ": rank ", spec.shape.size(), ", expected 1..", kMaxRank);
  WEFT_REQUIRE(payload_bytes(spec.shape, spec.dtype, layout.bytes) && layout.offset <= kLimit &&
                   layout.bytes <= kLimit - layout.offset,
               ErrorCode::invalid_argument, spec.name, ": the size of ", dtype_name(spec.dtype),
               shape_text(spec.shape), " overflows");
  file_bytes_ = align_up(layout.offset + layout.bytes);
}

void ContainerWriter::append(size_t array, const void* data, size_t n_bytes) {
  WEFT_REQUIRE(array < layout_.size() && !finished_, ErrorCode::internal, "array ", array, " of ",
               layout_.size(), ": cannot append to it");
  Layout& layout = layout_[array];
  WEFT_REQUIRE(n_bytes <= layout.bytes - layout.written, ErrorCode::internal, specs_[array].name,
               ": ", layout.written, " + ", n_bytes, " bytes, expected at most ", layout.bytes);
  if (n_bytes == 0) {
    return;
  }
  file_.write_at(layout.offset + layout.written, data, n_bytes);
  layout.checksum = crc32c(layout.checksum, data, n_bytes);
  layout.written += n_bytes;
}

uint32_t ContainerWriter::finish() {
  WEFT_REQUIRE(!finished_, ErrorCode::internal, "container finished twice");
  std::vector<Entry> table(specs_.size());
  uint64_t end = sizeof(Header) + table.size() * sizeof(Entry);
  constexpr std::array<std::byte, kAlignment> kZeros{};
  const auto pad = [this, &end, &kZeros](uint64_t until) {
    if (until > end) {
      file_.write_at(end, kZeros.data(), static_cast<size_t>(until - end));
    }
  };
  for (size_t i = 0; i < specs_.size(); ++i) {
    const ArraySpec& spec = specs_[i];
    const Layout& layout = layout_[i];
    WEFT_REQUIRE(layout.written == layout.bytes, ErrorCode::internal, spec.name, ": ",
                 layout.written, " bytes written, expected ", layout.bytes);
    Entry& entry = table[i];
    std::copy(spec.name.begin(), spec.name.end(), entry.name.begin());
    entry.dtype = static_cast<uint8_t>(spec.dtype);
    entry.rank = static_cast<uint8_t>(spec.shape.size());
    std::copy(spec.shape.begin(), spec.shape.end(), entry.shape.begin());
    entry.offset = layout.offset;
    entry.bytes = layout.bytes;
    entry.checksum = layout.checksum;
    pad(layout.offset);
    end = layout.offset + layout.bytes;
  }
  pad(file_bytes_);

  Header header{};
  header.magic = kMagic;
  header.version = kFormatVersion;
  header.n_arrays = static_cast<uint32_t>(table.size());
  header.table_bytes = table.size() * sizeof(Entry);
  header.file_bytes = file_bytes_;
  header.checksum = header_checksum(header, table.data(), static_cast<size_t>(header.table_bytes));
  if (!table.empty()) {
    file_.write_at(sizeof header, table.data(), table.size() * sizeof(Entry));
  }
  file_.write_at(0, &header, sizeof header);
  finished_ = true;
  return header.checksum;
}

Container Container::open(const std::string& path) {
  const auto file = MappedFile::open(path);
  Container container = parse(file->bytes(), path);
  container.file_ = file;
  return container;
}

Container Container::parse(std::span<const std::byte> bytes, const std::string& path) {
  const Header header = parse_header(bytes, path);
  Container container;
  container.path_ = path;
  container.file_bytes_ = bytes.size();
  container.checksum_ = header.checksum;
  uint64_t end = sizeof header + header.table_bytes;
  for (size_t i = 0; i < header.n_arrays; ++i) {
    Entry entry;
    std::memcpy(&entry, bytes.data() + sizeof header + i * sizeof entry, sizeof entry);
    const std::string subject = concat("array ", i + 1, " of ", header.n_arrays);
    NamedArray array = parse_entry(entry, bytes, end, subject, path);
    if (container.find(array.name) != nullptr) {
      throw_corrupt(path, array.name, ": array named twice; ", kRemedy);
    }
    container.arrays_.push_back(std::move(array));
    container.checksums_.push_back(entry.checksum);
  }
  if (align_up(end) != bytes.size() || !all_zero(bytes.subspan(end))) {
    throw_corrupt(path, "file of ", bytes.size(), " bytes: expected ", align_up(end),
                  " with zeros behind the last array, which ends at ", end, "; ", kRemedy);
  }
  return container;
}

const NamedArray* Container::find(std::string_view name) const noexcept {
  const auto found = std::find_if(arrays_.begin(), arrays_.end(),
                                  [name](const NamedArray& array) { return array.name == name; });
  return found == arrays_.end() ? nullptr : &*found;
}

bool Container::is_whole(size_t array) const noexcept {
  const std::span<const std::byte> bytes = arrays_[array].bytes;
  return crc32c(0, bytes.data(), bytes.size()) == checksums_[array];
}

void Container::verify() const {
  for (size_t i = 0; i < arrays_.size(); ++i) {
    if (!is_whole(i)) {
      throw_corrupt(path_, arrays_[i].name, ": checksum mismatch (array ", i + 1, " of ",
                    arrays_.size(), "); ", kRemedy);
    }
  }
}

const NamedArray& Container::require(std::string_view name, DType dtype,
                                     std::span<const uint64_t> shape) const {
  const NamedArray* array = find(name);
  if (array == nullptr) {
    throw_corrupt(path_, name, ": no such array; ", kRemedy);
  }
  const bool same_dtype =
      array->dtype == dtype || (array->dtype == DType::f16 && dtype == DType::u16);
  const bool same_shape = std::equal(
      array->shape.begin(), array->shape.end(), shape.begin(), shape.end(),
      [](uint64_t found, uint64_t expected) { return expected == kAny || found == expected; });
  if (!same_dtype || !same_shape) {
    throw_corrupt(path_, name, ": found ", dtype_name(array->dtype), shape_text(array->shape),
                  ", expected ", dtype_name(dtype), shape_text(shape), "; ", kRemedy);
  }
  return *array;
}

}  // namespace weft
