// SPDX-License-Identifier: Apache-2.0
#include "search/gather.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/dispatch.h"

namespace weft {

namespace {

constexpr uint32_t kBins = 4'096;
/// Stamps have 32 - kSumBits bits and 0 means "never": after so many tokens they start again.
constexpr uint32_t kStamps = (1u << (32 - kernels::kSumBits)) - 1;

constexpr size_t kListsAhead = 4;

void prefetch_list(const Segment& segment, uint32_t fine) {
  const auto offsets = segment.list_offsets();
  const uint8_t* first = segment.postings() + offsets[fine] * segment.width();
  const uint8_t* last = segment.postings() + offsets[fine + size_t{1}] * segment.width();
  for (; first < last; first += 64) {
    __builtin_prefetch(first);
  }
}

void read_lists(const Segment& segment, const Probe& probe, AlignedBuffer<uint32_t>& words,
                const kernels::Kernels& kernel) {
  const size_t n_docs = segment.doc_count();
  const auto offsets = segment.list_offsets();
  uint32_t stamp = 0;
  size_t next = 0;
  for (const size_t end : probe.list_ends) {
    if (++stamp > kStamps) {
      for (size_t i = 0; i <= n_docs; ++i) {
        words[i] &= kernels::kSumMask;
      }
      stamp = 1;
    }
    for (; next < end; ++next) {
      // Lists are short and lie scattered: each is fetched while the ones before it are read.
      if (next + kListsAhead < probe.lists.size()) {
        prefetch_list(segment, probe.lists[next + kListsAhead].fine);
      }
      const ProbedList& list = probe.lists[next];
      const uint64_t begin = offsets[list.fine];
      kernel.accumulate(segment.postings() + begin * segment.width(),
                        static_cast<size_t>(offsets[list.fine + size_t{1}] - begin),
                        segment.width(), segment.doc_count(), list.gain, stamp, words.data());
    }
  }
  words[n_docs] = 0;  // what damaged postings pointed at
}

/// Forgets what the documents outside `allow` were given; costs next to nothing where few are outside.
void forget_others(BitmapView allow, uint32_t* sums) {
  for (size_t word = 0; word < allow.word_count(); ++word) {
    const size_t first = 64 * word;
    const size_t n = std::min<size_t>(64, allow.size - first);
    uint64_t others = ~allow.words[word] & (~uint64_t{0} >> (64 - n));
    if (others == ~uint64_t{0}) {
      std::fill_n(sums + first, n, 0u);
      continue;
    }
    for (; others != 0; others &= others - 1) {
      sums[first + static_cast<size_t>(std::countr_zero(others))] = 0;
    }
  }
}

}  // namespace

uint64_t count_postings(std::span<const std::shared_ptr<const Segment>> segments,
                        std::span<const BitmapView> allow, std::span<const uint32_t> fines) {
  uint64_t n = 0;
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = *segments[s];
    const auto offsets = segment.list_offsets();
    const size_t width = segment.width();
    const uint32_t mask = width == 2 ? 0xffffu : 0xff'ffffu;
    const size_t last_doc = segment.doc_count() - 1;
    for (size_t i = 0; i < fines.size(); ++i) {
      if (i + kListsAhead < fines.size()) {
        prefetch_list(segment, fines[i + kListsAhead]);
      }
      const uint8_t* posting = segment.postings() + offsets[fines[i]] * width;
      const uint8_t* end = segment.postings() + offsets[fines[i] + size_t{1}] * width;
      for (; posting < end; posting += width) {
        uint32_t doc;
        std::memcpy(&doc, posting, sizeof doc);  // there is slack behind the last one
        n += static_cast<uint64_t>(allow[s].test(std::min<size_t>(doc & mask, last_doc)));
      }
    }
  }
  return n;
}

void keep_largest(std::vector<Candidate>& candidates, size_t count) {
  if (candidates.size() <= count) {
    return;
  }
  // The count-th largest value decides about all others; they keep their order, which sorting would not.
  std::vector<uint32_t> values(candidates.size());
  std::ranges::transform(candidates, values.begin(), &Candidate::value);
  const auto last = values.begin() + static_cast<ptrdiff_t>(count) - 1;
  std::ranges::nth_element(values, last, std::greater<>());
  const uint32_t least = *last;
  auto equal = std::count(values.begin(), last + 1, least);
  std::erase_if(candidates, [&](const Candidate& candidate) {
    return candidate.value < least || (candidate.value == least && equal-- <= 0);
  });
}

std::vector<Candidate> gather(std::span<const std::shared_ptr<const Segment>> segments,
                              const Probe& probe, std::span<const BitmapView> allow,
                              uint32_t ncandidates, Accumulators& scratch) {
  const kernels::Kernels& kernel = kernels::active();
  scratch.words.resize(segments.size());
  unsigned shift = 0;
  while ((probe.largest_sum >> shift) >= kBins) {
    ++shift;
  }
  scratch.bins.assign(kBins, 0);
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = *segments[s];
    auto& words = scratch.words[s];
    const size_t n_docs = segment.doc_count();
    if (words.size() != n_docs + 1) {
      words.resize(n_docs + 1);
    } else {
      std::fill_n(words.data(), n_docs + 1, 0u);
    }
    read_lists(segment, probe, words, kernel);
    if (!allow.empty()) {
      forget_others(allow[s], words.data());
    }
    kernel.histogram(words.data(), n_docs, shift, kBins, scratch.bins.data());
  }

  // The largest bin from which on there are enough documents; bin 0 starts at sum 1.
  uint64_t reached = 0;
  uint32_t bin = kBins;
  while (bin > 0 && reached < ncandidates) {
    reached += scratch.bins[--bin];
  }
  const uint32_t least = std::max(1u, bin << shift);
  std::vector<Candidate> candidates;
  candidates.reserve(reached);
  for (size_t s = 0; s < segments.size(); ++s) {
    const size_t n_docs = segments[s]->doc_count();
    scratch.docs.resize(n_docs + 16);
    const uint32_t* words = scratch.words[s].data();
    const size_t found = kernel.collect(words, n_docs, least, scratch.docs.data());
    for (size_t i = 0; i < found; ++i) {
      const uint32_t doc = scratch.docs[i];
      candidates.push_back({{static_cast<uint32_t>(s), doc}, words[doc] & kernels::kSumMask});
    }
  }
  keep_largest(candidates, ncandidates);
  return candidates;
}

}  // namespace weft
