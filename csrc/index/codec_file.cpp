// SPDX-License-Identifier: Apache-2.0
//
// A codec at rest. Arrays, in file order:
//   meta           s64 [8]                    version, dim, padded_dim, nbits, seed, n_coarse,
//   n_fine, n_tokens coarse         s8  [n_coarse][padded_dim] fine           s8
//   [n_fine][padded_dim] scales         f32 [2]                    coarse_scale, fine_scale
//   child_offsets  u32 [n_coarse + 1]
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
  kMetaCount
};

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
                                         INT64_MAX};
  for (size_t i = 0; i < kMetaCount; ++i) {
    if (i != kSeed && (meta[i] < 1 || meta[i] > kMost[i])) {
      throw Error(ErrorCode::corrupt,
                  concat("meta: value ", i, " is ", meta[i], ", expected 1..", kMost[i],
                         "; the file is damaged, restore it or rebuild"),
                  path);
    }
  }
  const auto scales = file.array<float>("scales", 2);
  const auto offsets = file.array<uint32_t>("child_offsets", meta[kCoarse] + 1);
  return std::make_shared<const Codec>(Codec::from_parts(
      {.dim = static_cast<size_t>(meta[kDim]),
       .nbits = static_cast<unsigned>(meta[kNbits]),
       .seed = std::bit_cast<uint64_t>(meta[kSeed]),
       .n_tokens = static_cast<uint64_t>(meta[kTokens]),
       .coarse_scale = scales[0],
       .fine_scale = scales[1],
       .tree = {.dim = static_cast<size_t>(meta[kPaddedDim]),
                .coarse = copied(file.array<int8_t>("coarse", meta[kCoarse], meta[kPaddedDim])),
                .fine = copied(file.array<int8_t>("fine", meta[kFine], meta[kPaddedDim])),
                .child_offsets = {offsets.begin(), offsets.end()}}},
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
                                    static_cast<int64_t>(n_tokens_)};
  const float scales[2] = {coarse_scale_, fine_scale_};
  ContainerWriter out(file, {{"meta", DType::s64, {kMetaCount}},
                             {"coarse", DType::s8, {n_coarse(), padded_dim()}},
                             {"fine", DType::s8, {n_fine(), padded_dim()}},
                             {"scales", DType::f32, {2}},
                             {"child_offsets", DType::u32, {child_offsets().size()}}});
  out.append(0, meta, sizeof meta);
  out.append(1, coarse().data(), coarse().size_bytes());
  out.append(2, fine().data(), fine().size_bytes());
  out.append(3, scales, sizeof scales);
  out.append(4, child_offsets().data(), child_offsets().size_bytes());
  return out.finish();
}

}  // namespace weft
