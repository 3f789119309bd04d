// SPDX-License-Identifier: Apache-2.0
//
// A codec at rest: docs/format.md says which arrays its file holds.
#include <algorithm>
#include <bit>

#include "base/error.h"
#include "index/container.h"
#include "quantizer/codec.h"

namespace weft {

namespace {

enum Meta : size_t {
  kVersion,
  kDim,
  kPaddedDim,
  kNbits,
  kSeed,
  kCoarse,
  kFine,
  kTokens,
  kAncestors,
  kMetaCount
};

/// Of a file that says more, nothing is believed.
constexpr int64_t kMaxAncestors = 4'096;

AlignedBuffer<int8_t> copied(std::span<const int8_t> values) {
  AlignedBuffer<int8_t> out(values.size());
  std::ranges::copy(values, out.data());
  return out;
}

}  // namespace

std::shared_ptr<const Codec> Codec::open(const std::string& path) {
  const Container file = Container::open(path);
  const std::span<const int64_t> meta = file.array<int64_t>("meta", kMetaCount);
  if (meta[kVersion] != kCodecVersion) {
    throw Error(ErrorCode::incompatible,
                concat("codec version ", meta[kVersion], ": this weft reads version ",
                       kCodecVersion, "; use the weft it was made with, or rebuild the index"),
                path);
  }
  constexpr int64_t kMost[kMetaCount] = {kCodecVersion,
                                         kMaxDim,
                                         pad_dim(kMaxDim),
                                         8,
                                         INT64_MAX,
                                         kMaxCoarse,
                                         int64_t{kMaxCoarse} * kMaxChildren,
                                         INT64_MAX,
                                         kMaxAncestors};
  for (size_t i = 0; i < kMetaCount; ++i) {
    const int64_t least = i == kAncestors ? 0 : 1;
    if (i != kSeed && (meta[i] < least || meta[i] > kMost[i])) {
      throw Error(ErrorCode::corrupt,
                  concat("meta: value ", i, " is ", meta[i], ", expected ", least, "..", kMost[i],
                         "; the file is damaged, restore it or rebuild"),
                  path);
    }
  }
  const auto scales = file.array<float>("scales", 2);
  const auto offsets = file.array<uint32_t>("child_offsets", meta[kCoarse] + 1);
  const auto error = file.array<uint32_t>("error", 1);
  const auto n_coarse = static_cast<size_t>(meta[kCoarse]);
  const auto ancestors = file.array<uint32_t>("ancestors", meta[kAncestors]);
  const auto sizes = file.array<uint16_t>("ancestor_children", meta[kAncestors], n_coarse);
  std::vector<Ancestor> grown_from;
  for (size_t i = 0; i < ancestors.size(); ++i) {
    const auto children = sizes.subspan(i * n_coarse, n_coarse);
    grown_from.push_back({ancestors[i], {children.begin(), children.end()}});
  }
  return std::make_shared<const Codec>(Codec::from_parts(
      {.dim = static_cast<size_t>(meta[kDim]),
       .nbits = static_cast<unsigned>(meta[kNbits]),
       .seed = std::bit_cast<uint64_t>(meta[kSeed]),
       .n_tokens = static_cast<uint64_t>(meta[kTokens]),
       .coarse_scale = scales[0],
       .fine_scale = scales[1],
       .error = error[0],
       .tree = {.dim = static_cast<size_t>(meta[kPaddedDim]),
                .coarse = copied(file.array<int8_t>("coarse", meta[kCoarse], meta[kPaddedDim])),
                .fine = copied(file.array<int8_t>("fine", meta[kFine], meta[kPaddedDim])),
                .child_offsets = {offsets.begin(), offsets.end()}},
       .ancestors = std::move(grown_from)},
      path));
}

uint32_t Codec::write(const FileWriter& file) const {
  const int64_t meta[kMetaCount] = {kCodecVersion,
                                    static_cast<int64_t>(dim()),
                                    static_cast<int64_t>(padded_dim()),
                                    static_cast<int64_t>(nbits_),
                                    std::bit_cast<int64_t>(seed_),
                                    n_coarse(),
                                    n_fine(),
                                    static_cast<int64_t>(n_tokens_),
                                    static_cast<int64_t>(ancestors_.size())};
  const float scales[2] = {coarse_scale_, fine_scale_};
  ContainerWriter out(file, {{"meta", DType::s64, {kMetaCount}},
                             {"coarse", DType::s8, {n_coarse(), padded_dim()}},
                             {"fine", DType::s8, {n_fine(), padded_dim()}},
                             {"scales", DType::f32, {2}},
                             {"child_offsets", DType::u32, {child_offsets().size()}},
                             {"error", DType::u32, {1}},
                             {"ancestors", DType::u32, {ancestors_.size()}},
                             {"ancestor_children", DType::u16, {ancestors_.size(), n_coarse()}}});
  out.append(0, meta, sizeof meta);
  out.append(1, coarse().data(), coarse().size_bytes());
  out.append(2, fine().data(), fine().size_bytes());
  out.append(3, scales, sizeof scales);
  out.append(4, child_offsets().data(), child_offsets().size_bytes());
  out.append(5, &error_, sizeof error_);
  for (const Ancestor& ancestor : ancestors_) {
    out.append(6, &ancestor.checksum, sizeof ancestor.checksum);
  }
  for (const Ancestor& ancestor : ancestors_) {
    out.append(7, ancestor.children.data(), ancestor.children.size() * sizeof(uint16_t));
  }
  return out.finish();
}

}  // namespace weft
