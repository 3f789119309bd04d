// SPDX-License-Identifier: Apache-2.0
#include "index/tombstones.h"

#include "base/error.h"
#include "index/container.h"

namespace weft {

namespace {

constexpr int64_t kVersion = 1;
constexpr int64_t kMaxDocs = int64_t{1} << 24;

bool fits(std::span<const uint64_t> words, uint64_t n_docs) {
  return words.size() == bitmap_words(n_docs) &&
         (n_docs % 64 == 0 || words.back() >> (n_docs % 64) == 0);
}

}  // namespace

uint32_t write_tombstones(FileWriter file, std::span<const uint64_t> words, uint64_t n_docs) {
  WEFT_REQUIRE(fits(words, n_docs), ErrorCode::invalid_argument, "tombstones: ", words.size(),
               " words for ", n_docs, " documents, or a bit beyond them");
  ContainerWriter out(std::move(file),
                      {{"meta", DType::s64, {2}}, {"deleted", DType::u64, {words.size()}}});
  const int64_t meta[2] = {kVersion, static_cast<int64_t>(n_docs)};
  out.append(0, meta, sizeof meta);
  out.append(1, words.data(), words.size_bytes());
  return out.finish();
}

Tombstones read_tombstones(const std::string& path) {
  const Container container = Container::open(path);
  container.verify();
  const auto meta = container.array<int64_t>("meta", 2);
  if (meta[0] != kVersion) {
    throw Error(ErrorCode::incompatible,
                concat("tombstones of version ", meta[0], ": this weft reads version ", kVersion),
                path);
  }
  const auto words = container.array<uint64_t>("deleted", Container::kAny);
  const auto n_docs = static_cast<uint64_t>(meta[1]);
  if (meta[1] < 0 || meta[1] > kMaxDocs || !fits(words, n_docs)) {
    throw Error(ErrorCode::corrupt,
                concat("deleted: ", words.size(), " words for ", meta[1],
                       " documents; the file is damaged, restore it or rebuild"),
                path);
  }
  return {{words.begin(), words.end()}, n_docs, container.checksum()};
}

}  // namespace weft
