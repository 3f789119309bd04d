// SPDX-License-Identifier: Apache-2.0
#include "index/segment.h"

#include <algorithm>
#include <cmath>

#include "base/half.h"
#include "index/inverted_lists.h"

namespace weft {

namespace {

constexpr uint64_t kMaxSegmentTokens = uint64_t{1} << 24;

void require_monotone(std::span<const uint64_t> offsets, uint64_t end, const char* name,
                      const std::string& path) {
  bool good = !offsets.empty() && offsets.front() == 0 && offsets.back() == end;
  for (size_t i = 1; good && i < offsets.size(); ++i) {
    good = offsets[i - 1] <= offsets[i];
  }
  if (!good) {
    throw Error(ErrorCode::corrupt,
                concat(name, ": expected offsets that rise from 0 to ", end,
                       "; the file is damaged, restore it or rebuild"),
                path);
  }
}

}  // namespace

Rerank parse_rerank(std::string_view name) {
  for (const Rerank rerank : {Rerank::none, Rerank::plane, Rerank::f16}) {
    if (name == rerank_name(rerank)) {
      return rerank;
    }
  }
  throw Error(ErrorCode::invalid_argument,
              concat("rerank=\"", name, "\": expected \"plane\", \"f16\" or \"none\""));
}

std::string_view rerank_name(Rerank rerank) noexcept {
  constexpr std::string_view kNames[] = {"none", "plane", "f16"};
  return kNames[static_cast<size_t>(rerank)];
}

std::shared_ptr<const Segment> Segment::open(const std::string& path,
                                             std::shared_ptr<const Codec> codec) {
  return std::shared_ptr<const Segment>(new Segment(path, Container::open(path), std::move(codec)));
}

Segment::Segment(std::string path, Container container, std::shared_ptr<const Codec> codec)
    : path_(std::move(path)), container_(std::move(container)), codec_(std::move(codec)) {
  const auto meta = container_.array<int64_t>("meta", SegmentMeta::kCount);
  meta_ = {meta[0], meta[1], meta[2], meta[3], meta[4], meta[5], meta[6], meta[7]};
  const auto bad = [&](auto&&... parts) {
    throw Error(ErrorCode::corrupt, concat(parts...), path_);
  };
  if (meta_.version != 1) {
    throw Error(ErrorCode::incompatible,
                concat("segment version ", meta_.version, ": this weft reads version 1"), path_);
  }
  if (meta_.dim < 1 || meta_.dim > 4'128 || meta_.rerank < 0 || meta_.rerank > 2 ||
      meta_.n_docs < 0 || meta_.n_docs > static_cast<int64_t>(kMaxSegmentTokens) ||
      meta_.n_tokens < 0 || meta_.n_tokens > static_cast<int64_t>(kMaxSegmentTokens)) {
    bad("meta: a value is out of range; the file is damaged, restore it or rebuild");
  }
  doc_offsets_ = container_.array<uint64_t>("doc_offsets", doc_count() + size_t{1});
  require_monotone(doc_offsets_, token_count(), "doc_offsets", path_);
  read_ids();
  const auto n = static_cast<size_t>(token_count());
  if (has_codes()) {
    read_codes();
    read_lists();
  } else if (rerank() != Rerank::f16) {
    bad("meta: a segment without codes must store f16 rows");
  }
  if (rerank() == Rerank::f16) {
    rows_ = container_.array<uint16_t>("rows", n, dim());
  }
}

void Segment::read_ids() {
  id_offsets_ = container_.array<uint64_t>("id_offsets", doc_count() + size_t{1});
  id_bytes_ = container_.array<uint8_t>("id_bytes", static_cast<size_t>(id_offsets_.back()));
  require_monotone(id_offsets_, id_bytes_.size(), "id_offsets", path_);
  id_order_ = container_.array<uint32_t>("id_order", doc_count());
  id_ranks_.assign(doc_count(), 0);
  for (uint32_t rank = 0; rank < doc_count(); ++rank) {
    if (id_order_[rank] >= doc_count()) {
      throw Error(ErrorCode::corrupt,
                  concat("id_order: entry ", rank, " is ", id_order_[rank], ", expected less than ",
                         doc_count(), "; the file is damaged, restore it or rebuild"),
                  path_);
    }
    id_ranks_[id_order_[rank]] = rank;
  }
}

void Segment::read_codes() {
  if (codec_ == nullptr) {
    throw Error(ErrorCode::incompatible, "segment holds codes, found no codec", path_);
  }
  const auto n = static_cast<size_t>(token_count());
  if (meta_.dim != static_cast<int64_t>(codec_->dim()) ||
      meta_.padded_dim != static_cast<int64_t>(codec_->padded_dim()) ||
      meta_.nbits != static_cast<int64_t>(codec_->nbits())) {
    throw Error(ErrorCode::corrupt, "meta: dim or nbits differ from the codec's", path_);
  }
  const size_t padded = codec_->padded_dim();
  parents_ = container_.array<uint16_t>("parents", n);
  children_ = container_.array<uint8_t>("children", n);
  steps_ = container_.array<uint16_t>("steps", n);
  multipliers_ = container_.array<uint8_t>("multipliers", n);
  codes_ = container_.array<uint8_t>("codes", n, padded * codec_->nbits() / 8);
  if (rerank() == Rerank::plane) {
    plane_ = container_.array<uint8_t>("plane", n, padded / 2);
    plane_multipliers_ = container_.array<uint8_t>("plane_multipliers", n);
  }
}

void Segment::read_lists() {
  const std::vector<uint32_t> own = codec_->child_offsets_of(codec_checksum());
  if (own.empty()) {
    throw Error(ErrorCode::incompatible,
                concat("segment was encoded with codec ", codec_checksum(), ", found ",
                       codec_->checksum(), ", which has not grown from it"),
                path_);
  }
  width_ = posting_width(doc_count());
  list_offsets_ = container_.array<uint64_t>("list_offsets", own.back() + size_t{1});
  if (list_offsets_.back() > token_count()) {
    throw Error(ErrorCode::corrupt, "list_offsets: more postings than tokens", path_);
  }
  require_monotone(list_offsets_, list_offsets_.back(), "list_offsets", path_);
  if (codec_checksum() != codec_->checksum()) {
    spread_offsets_.reserve(codec_->n_fine() + size_t{1});
    for (size_t cell = 0; cell < codec_->n_coarse(); ++cell) {
      const auto first = list_offsets_.begin() + own[cell],
                 last = list_offsets_.begin() + own[cell + 1];
      spread_offsets_.insert(spread_offsets_.end(), first, last);
      spread_offsets_.resize(codec_->child_offsets()[cell + 1], *last);
    }
    spread_offsets_.push_back(list_offsets_.back());
    list_offsets_ = spread_offsets_;
  }
  postings_ = container_.array<uint8_t>(
      "postings", static_cast<size_t>(list_offsets_.back()) * width_ + kPostingSlack);
}

std::string_view Segment::id(uint32_t doc) const noexcept {
  const char* bytes = reinterpret_cast<const char*>(id_bytes_.data());
  return {bytes + id_offsets_[doc], static_cast<size_t>(id_offsets_[doc + 1] - id_offsets_[doc])};
}

std::optional<uint32_t> Segment::find(std::string_view wanted) const noexcept {
  const auto place =
      std::lower_bound(id_order_.begin(), id_order_.end(), wanted,
                       [this](uint32_t doc, std::string_view value) { return id(doc) < value; });
  if (place == id_order_.end() || id(*place) != wanted) {
    return std::nullopt;
  }
  return *place;
}

void Segment::read_rows(uint32_t doc, float* out) const {
  const auto first = static_cast<size_t>(doc_offsets_[doc]);
  const size_t n = length(doc);
  if (!rows_.empty()) {
    std::transform(rows_.begin() + static_cast<ptrdiff_t>(first * dim()),
                   rows_.begin() + static_cast<ptrdiff_t>((first + n) * dim()), out, half_to_float);
    return;
  }
  if (!has_codes()) {
    return;  // a segment of empty documents
  }
  codec_->decode(encoded(first, n), out);
}

EncodedView Segment::encoded(size_t first, size_t n) const noexcept {
  const size_t padded = codec_->padded_dim();
  const bool plane = !plane_.empty();
  return {.n = n,
          .parents = parents_.data() + first,
          .children = children_.data() + first,
          .steps = steps_.data() + first,
          .multipliers = multipliers_.data() + first,
          .codes = codes_.data() + first * padded * codec_->nbits() / 8,
          .plane = plane ? plane_.data() + first * padded / 2 : nullptr,
          .plane_multipliers = plane ? plane_multipliers_.data() + first : nullptr};
}

void Segment::verify() const {
  container_.verify();
  const auto bad = [&](auto&&... parts) {
    throw Error(ErrorCode::corrupt,
                concat(parts..., "; the file is damaged, restore it or rebuild"), path_);
  };
  for (uint32_t rank = 1; rank < doc_count(); ++rank) {
    if (!(id(id_order_[rank - 1]) < id(id_order_[rank]))) {
      bad("id_order: ids are not sorted, or one occurs twice, at ", rank);
    }
  }
  for (size_t i = 0; i < rows_.size(); ++i) {
    if ((rows_[i] & 0x7c00u) == 0x7c00u) {
      bad("rows: value ", i, " is not finite");
    }
  }
  if (!has_codes()) {
    return;
  }
  const auto child_offsets = codec_->child_offsets();
  for (size_t t = 0; t < parents_.size(); ++t) {
    const uint16_t parent = parents_[t];
    if (parent >= codec_->n_coarse()) {
      bad("parents: token ", t, " has code ", parent, ", expected less than ", codec_->n_coarse());
    }
    if (children_[t] >= child_offsets[parent + size_t{1}] - child_offsets[parent]) {
      bad("children: token ", t, " has child ", int{children_[t]}, ", its cell has fewer");
    }
    const float step = half_to_float(steps_[t]);
    if (!(step >= 0.0f) || !std::isfinite(step)) {
      bad("steps: token ", t, " has step ", step);
    }
  }
  const InvertedLists lists = build_lists(parents_, children_, doc_offsets_, child_offsets);
  if (!std::ranges::equal(lists.offsets, list_offsets_) ||
      !std::ranges::equal(lists.postings, postings_)) {
    bad("postings: the inverted lists do not belong to the codes");
  }
}

}  // namespace weft
