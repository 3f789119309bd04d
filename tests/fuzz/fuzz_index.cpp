// SPDX-License-Identifier: Apache-2.0
//
// Edited files of a codec and of a segment: opened, verified, searched, decoded and merged, all of which
// answer or throw Error, never anything else, even where nobody has verified: fuzz_index [ITERATIONS]
// [SEED]. An input that takes over 20 seconds ends the program.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../cpp/collection.h"
#include "base/buffer.h"
#include "base/checksum.h"
#include "search/searcher.h"

namespace weft::test {
namespace {

constexpr size_t kHeader = 64;
constexpr size_t kEntry = 128;
constexpr size_t kChecksumPlace = 60;
constexpr unsigned kSeconds = 20;

/// The header's checksum of what the header and the table now are.
void seal(std::string& bytes) {
  uint64_t table_bytes = 0;
  if (bytes.size() >= kHeader) {
    std::memcpy(&table_bytes, bytes.data() + 16, sizeof table_bytes);
  }
  if (bytes.size() < kHeader || table_bytes > bytes.size() - kHeader) {
    return;
  }
  const uint32_t crc = crc32c(0, bytes.data(), kChecksumPlace);
  const uint32_t checksum = crc32c(crc, bytes.data() + kHeader, table_bytes);
  std::memcpy(bytes.data() + kChecksumPlace, &checksum, sizeof checksum);
}

/// One to four edits: mostly of payloads, where numbers point from one array into another.
void edit(std::string& bytes, Random& random) {
  constexpr uint64_t kNumbers[] = {0,          1,          2,          0xff,           0x100,
                                   0xffff,     0x10000,    0xff'ffff,  1U << 31,       UINT32_MAX,
                                   1ULL << 32, 1ULL << 63, UINT64_MAX, UINT64_MAX - 63};
  uint32_t n_arrays = 0;
  std::memcpy(&n_arrays, bytes.data() + 12, sizeof n_arrays);
  const std::string before = bytes;
  for (uint64_t edits = random.below(4) + 1; edits > 0; --edits) {
    // Every array is as likely to be met as any other: they are of very different sizes.
    uint64_t place[2] = {0, kHeader + kEntry * n_arrays};  // header and table
    if (random.below(4) != 0) {
      const size_t entry = kHeader + kEntry * random.below(n_arrays);
      std::memcpy(place, before.data() + entry + 88, sizeof place);  // offset and bytes
    }
    if (place[1] < 8) {
      continue;
    }
    const size_t at = place[0] + random.below(place[1] - 7);
    const uint64_t number =
        random.below(2) == 0 ? random.below(600) : kNumbers[random.below(std::size(kNumbers))];
    switch (random.below(5)) {
      case 0:
        std::memcpy(bytes.data() + place[0] + (at - place[0]) / 8 * 8, &number, 8);
        break;
      case 1:
        std::memcpy(bytes.data() + place[0] + (at - place[0]) / 2 * 2, &number, 2);
        break;
      case 2:  // a run of one byte
        std::memset(bytes.data() + at, static_cast<int>(random.below(256)),
                    random.below(std::min<uint64_t>(place[1] - (at - place[0]), 600)) + 1);
        break;
      case 3:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
        break;
      default:
        bytes[at] = static_cast<char>(random.below(256));
    }
  }
  seal(bytes);
  if (random.below(50) == 0) {
    bytes.resize(random.below(bytes.size() + 64));
  }
}

void write_bytes(const std::string& path, const std::string& bytes) {
  const OutputFile file(path);
  FileWriter(file.fd(), path).write_at(0, bytes.data(), bytes.size());
}

/// Makes a segment name another codec as its own, so that an edited codec is used.
void adopt(std::string& segment, const Codec& codec) {
  AlignedBuffer<std::byte> copy(segment.size());
  std::memcpy(copy.data(), segment.data(), segment.size());
  const Container container = Container::parse(copy.span(), "segment");
  const auto meta = reinterpret_cast<const char*>(container.find("meta")->bytes.data());
  const auto at = static_cast<size_t>(meta - reinterpret_cast<const char*>(copy.data()));
  const int64_t checksum = codec.checksum();
  std::memcpy(segment.data() + at + 7 * sizeof checksum, &checksum, sizeof checksum);
}

/// Everything that reads a segment, each on its own: the first error must not hide the next.
class Reader {
 public:
  template <class Use>
  void attempt(const Use& use) {
    try {
      use();
      ++n_answers;
    } catch (const Error& error) {
      const bool expected = error.code() == ErrorCode::corrupt ||
                            error.code() == ErrorCode::incompatible ||
                            error.code() == ErrorCode::invalid_argument;
      if (!expected) {
        throw;
      }
      ++n_errors;
    }
  }

  uint64_t n_answers = 0;
  uint64_t n_errors = 0;
};

void read_everything(const std::shared_ptr<const Segment>& segment,
                     const std::shared_ptr<const Codec>& codec, MatrixView<const float> query,
                     const std::string& scratch, Reader& reader) {
  reader.attempt([&] { segment->verify(); });
  for (const SearchPath path : {SearchPath::pruned, SearchPath::exhaustive}) {
    reader.attempt([&] {
      SearchParams params;
      params.nprobe = 8;
      params.budget = 4'000;
      params.ncandidates = 60;
      params.nskim = 40;
      params.nrefine = 30;
      params.path = path;
      Searcher({segment}, codec, 1).search(query, 10, params, {});
    });
  }
  reader.attempt([&] {
    const Searcher searcher({segment}, codec, 1);
    const uint32_t docs[] = {0, segment->doc_count() - 1};
    std::array<float, 2> scores{};
    searcher.score(query, 0, docs, scores);
    std::vector<uint32_t> tokens(query.rows);
    std::vector<float> similarities(query.rows);
    searcher.align(query, 0, docs[1], tokens, similarities);
  });
  reader.attempt([&] {
    for (uint32_t doc = 0; doc < segment->doc_count(); ++doc) {
      std::vector<float> rows(segment->length(doc) * segment->dim());
      segment->read_rows(doc, rows.data());
      static_cast<void>(segment->find(segment->id(doc)));
    }
  });
  // Merging takes verified segments only; so does this.
  reader.attempt([&] {
    segment->verify();
    const std::array<uint32_t, 2> run{0, segment->doc_count()};
    const SegmentPart part{segment, {&run, 1}};
    const OutputFile file(scratch);
    merge_segments({file.fd(), scratch}, {&part, 1}, {});
  });
}

int run(uint64_t iterations, uint64_t seed) {
  const TemporaryFolder folder;
  const Collection whole(folder, 1);
  const std::string codec_bytes = read_bytes(folder / "1-codec");
  const std::string segment_bytes = read_bytes(folder / "1-segment-0");
  const std::string codec_path = folder / "codec", segment_path = folder / "segment";
  const std::vector<float> values = unit_rows(kTokens, 3);
  const MatrixView<const float> query{values.data(), kTokens, kDim, kDim};
  Random random(seed);
  Reader reader;
  read_everything(whole.segments[0], whole.codec, query, folder / "merged", reader);
  if (reader.n_errors != 0) {
    std::fputs("the unedited files were refused\n", stderr);
    return 1;
  }
  uint64_t n_opened = 0;
  for (uint64_t i = 0; i < iterations; ++i) {
    ::alarm(kSeconds);
    reader.attempt([&] {
      std::shared_ptr<const Codec> codec = whole.codec;
      std::string bytes = segment_bytes;
      if (random.below(3) == 0) {
        std::string edited = codec_bytes;
        edit(edited, random);
        write_bytes(codec_path, edited);
        codec = Codec::open(codec_path);
        adopt(bytes, *codec);
      }
      if (codec == whole.codec || random.below(2) == 0) {
        edit(bytes, random);
      }
      write_bytes(segment_path, bytes);
      const auto segment = Segment::open(segment_path, codec);
      ++n_opened;
      read_everything(segment, codec, query, folder / "merged", reader);
    });
  }
  std::printf("%llu inputs, %llu opened, %llu answers, %llu errors\n",
              static_cast<unsigned long long>(iterations),
              static_cast<unsigned long long>(n_opened),
              static_cast<unsigned long long>(reader.n_answers),
              static_cast<unsigned long long>(reader.n_errors));
  return 0;
}

}  // namespace
}  // namespace weft::test

int main(int argc, char** argv) {
  return weft::test::run(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 10'000,
                         argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
}
