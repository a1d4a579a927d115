// Dot products over tokens in the lanes.
#pragma once

#include "gather_gemm/outer_products.h"
#include "native/transpose.h"

namespace padst {

// How many vectors are summed over their lanes at a time.
template <class A>
constexpr int kSummed = kLanes<A> < 8 ? kLanes<A> : 8;

namespace detail {

// Sum i of vectors of `count` in lane i of every `count` lanes, over these lanes.
template <int count, class V>
__attribute__((always_inline)) inline V lane_sums(V* vectors) {
  using Lanes = std::make_integer_sequence<int, kLanesOf<V>>;
  if constexpr (count == 1) {
    return vectors[0];
  } else {
    constexpr int half = count / 2;
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) {
      const V a = vectors[i], b = vectors[i + half];
      vectors[i] = exchanged<half, false>(a, b, Lanes{}) + exchanged<half, true>(a, b, Lanes{});
    }
    return lane_sums<half>(vectors);
  }
}

}  // namespace detail

// The lane sums of kSummed vectors.
template <class V>
__attribute__((always_inline)) inline auto summed(V* vectors) {
  constexpr int n = kSummed<Element<V>>;
  const V all = detail::lane_sums<n>(vectors);
  if constexpr (kLanesOf<V> == n) {
    return all;
  } else {
    Vector<Element<V>, n> parts[2];
    std::memcpy(parts, &all, sizeof all);
    return parts[0] + parts[1];
  }
}

// `count` <= kSummed dot products of columns with one row over PLANES planes, added to `to`. A
// plane holds a vector of tokens for each column and row.
template <class A, int PLANES>
void add_row_dots(const A* const* columns, const A* row, int64_t plane, int64_t count, A* to) {
  using V = Vector<A>;
  constexpr int n = kSummed<A>;
  V rows[PLANES];
#pragma GCC unroll 8
  for (int p = 0; p < PLANES; ++p) rows[p] = load<V>(row + p * plane);
  V total[n];
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    const A* column = columns[i];
    V sum = load<V>(column) * rows[0];
#pragma GCC unroll 8
    for (int p = 1; p < PLANES; ++p) {
      sum += load<V>(column + p * plane) * rows[p];
    }
    total[i] = sum;
  }
  using Part = Vector<A, n>;
  store_first(to, load_first<Part>(to, count) + summed(total), count);
}

// COLUMNS x ROWS dot products over `planes` planes, added to `to`.
template <class A, int COLUMNS, int ROWS>
void add_dots(const A* const* columns, const A* const* rows, int64_t planes, int64_t plane,
              A* to, int64_t to_stride) {
  using V = Vector<A>;
  constexpr int n = kSummed<A>, padded = (COLUMNS * ROWS + n - 1) / n * n;
  V total[padded] = {};
  for (int64_t i = 0; i < planes * plane; i += plane) {
    V row[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) row[r] = load<V>(rows[r] + i);
#pragma GCC unroll 8
    for (int c = 0; c < COLUMNS; ++c) {
      const V column = load<V>(columns[c] + i);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) total[c * ROWS + r] += column * row[r];
    }
  }
  A sums[padded];
  for (int i = 0; i < padded; i += n) store(sums + i, summed(total + i));
  for (int c = 0; c < COLUMNS; ++c) {
    for (int r = 0; r < ROWS; ++r) to[c * to_stride + r] += sums[c * ROWS + r];
  }
}

// The dot products of COLUMNS columns with `count` rows.
template <class A, int COLUMNS>
void add_dot_rows(const A* const* columns, const A* const* rows, int64_t count, int64_t planes,
                  int64_t plane, A* to, int64_t to_stride) {
  const auto step = [&](auto n, auto kernel) {
    for (; count >= n; count -= n) {
      kernel(columns, rows, planes, plane, to, to_stride);
      rows += n;
      to += n;
    }
  };
  step(4, add_dots<A, COLUMNS, 4>);
  step(2, add_dots<A, COLUMNS, 2>);
  step(1, add_dots<A, COLUMNS, 1>);
}

}  // namespace padst
