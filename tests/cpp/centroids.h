// SPDX-License-Identifier: Apache-2.0
//
// Random centroids as a back end takes them, and which are nearest by definition: loops and a sort.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "base/random.h"
#include "cuda/abi.h"

namespace weft::test {

inline constexpr uint32_t kPlaces = 4;  ///< cells of a row

inline int8_t small(Random& random, int widest) {
  return static_cast<int8_t>(static_cast<int>(random.below(2 * static_cast<uint64_t>(widest) + 1)) -
                             widest);
}

inline std::vector<int8_t> bytes_of(Random& random, size_t n, int widest) {
  std::vector<int8_t> out(n);
  std::generate(out.begin(), out.end(), [&] { return small(random, widest); });
  return out;
}

inline int32_t dot(const int8_t* a, const int8_t* b, uint32_t dim) {
  int32_t sum = 0;
  for (uint32_t d = 0; d < dim; ++d) {
    sum += a[d] * b[d];
  }
  return sum;
}

/// Centroids, in groups or not, and whatever numbers and biases.
struct CentroidTable {
  uint32_t dim, n, n_groups;
  std::vector<int8_t> rows, means;
  std::vector<int32_t> bias, mean_bias;
  std::vector<uint32_t> numbers, starts;
  weft_nearest plain{};

  CentroidTable(Random& random, uint32_t dims, uint32_t count, uint32_t groups, int widest)
      : dim(dims),
        n(count),
        n_groups(groups),
        rows(bytes_of(random, size_t{n} * dim, widest)),
        means(bytes_of(random, groups > 1 ? size_t{groups} * dim : 0, widest)),
        numbers(n),
        starts{0} {
    std::iota(numbers.begin(), numbers.end(), 0u);
    for (uint32_t i = n; i > 1; --i) {
      std::swap(numbers[i - 1], numbers[random.below(i)]);
    }
    for (uint32_t i = 0; i < n; ++i) {
      bias.push_back(-static_cast<int32_t>(random.below(static_cast<uint64_t>(widest) * 3 + 1)));
    }
    for (uint32_t group = 1; group < groups; ++group) {
      starts.push_back(static_cast<uint32_t>(random.below(n + 1)));
      mean_bias.push_back(-static_cast<int32_t>(random.below(50)));
    }
    mean_bias.push_back(0);
    starts.push_back(n);
    std::sort(starts.begin(), starts.end());
    const double reach = static_cast<double>(dim) * 127 * widest + 400;
    uint32_t shift = 0;
    while (reach / std::pow(2.0, shift) >= 32'767) {
      ++shift;
    }
    plain = {.struct_size = sizeof plain,
             .dim = dim,
             .n = n,
             .n_groups = n_groups,
             .shift = shift,
             .rows = rows.data(),
             .bias = bias.data(),
             .numbers = numbers.data(),
             .starts = starts.data(),
             .means = means.data(),
             .mean_bias = mean_bias.data(),
             .mean_shifts = {shift, shift, shift + 1, shift}};
  }

  /// Places of the best in `of` among [begin, end): larger values first, then smaller places.
  static std::vector<uint32_t> best(const int8_t* row, const std::vector<int8_t>& of,
                                    const std::vector<int32_t>& added, uint32_t dims,
                                    uint32_t shift, const std::vector<uint32_t>& places) {
    std::vector<std::array<int32_t, 2>> found;
    for (const uint32_t at : places) {
      const int32_t sum = dot(row, of.data() + size_t{at} * dims, dims) + added[at];
      found.push_back({-(sum >> shift), static_cast<int32_t>(at)});
    }
    std::sort(found.begin(), found.end());
    std::vector<uint32_t> out;
    for (size_t i = 0; i < std::min<size_t>(kPlaces, found.size()); ++i) {
      out.push_back(static_cast<uint32_t>(found[i][1]));
    }
    return out;
  }

  std::vector<uint32_t> cells(const int8_t* row) const {
    std::vector<uint32_t> places;
    const auto take = [&](uint32_t group) {
      for (uint32_t at = starts[group]; at < starts[group + 1]; ++at) {
        places.push_back(at);
      }
    };
    if (n_groups == 1) {
      take(0);
    }
    for (uint32_t quarter = 0; n_groups > 1 && quarter < 4; ++quarter) {
      std::vector<uint32_t> own(n_groups / 4);
      std::iota(own.begin(), own.end(), quarter * (n_groups / 4));
      for (const uint32_t group :
           best(row, means, mean_bias, dim, plain.mean_shifts[quarter], own)) {
        take(group);
      }
    }
    std::vector<uint32_t> out = best(row, rows, bias, dim, plain.shift, places);
    for (uint32_t& place : out) {
      place = numbers[place];
    }
    return out;
  }
};

}  // namespace weft::test
