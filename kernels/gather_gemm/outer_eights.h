// Outer products of 8 columns with 8 rows, in full vectors of 16 lanes.
#pragma once

#include "native/simd.h"
#include "native/transpose.h"

#if defined(__AVX512F__)
namespace padst {

// A vector is 4 columns, time and again, or 4 rows, each for 4 columns: their product is 16 results.
using Fours = Vector<float>;

inline Fours repeated(const float* columns) {
  return bit_cast<Fours>(_mm512_broadcast_f32x4(_mm_loadu_ps(columns)));
}

// Rows first .. first + 3 of 8, each for 4 columns.
template <int first, int... I>
inline Fours spread(Fours rows, std::integer_sequence<int, I...>) {
  return detail::shuffled(rows, rows, std::integer_sequence<int, (first + I / 4)...>{});
}

// 8 rows as two vectors.
inline void spread_rows(const float* rows, float* to) {
  using Lanes = std::make_integer_sequence<int, 16>;
  const auto row = load_first<Fours>(rows, 8);
  store(to, spread<0>(row, Lanes{}));
  store(to + 16, spread<4>(row, Lanes{}));
}

// Columns s and s + 1 of four, 8 rows of each, from their products with the low and the high rows.
template <int s, int... I>
inline Fours by_column(Fours low, Fours high, std::integer_sequence<int, I...>) {
  return detail::shuffled(low, high,
                          std::integer_sequence<int, (I % 8 * 4 + I / 8 + s)...>{});
}

// PANELS panels of 8 columns, panel[token][column], with 8 spread rows: 8 x 8 results a panel, the
// rows of a column `tile` after those of the last, added to `to`.
template <int PANELS>
void add_outer_eights(const float* const* panels, const float* rows, int64_t tokens, int64_t tile,
                      float* to) {
  using Lanes = std::make_integer_sequence<int, 16>;
  using Row = Vector<float, 8>;
  Fours total[PANELS][2][2] = {};
  for (int64_t t = 0; t < tokens; ++t, rows += 32) {
    const Fours low = load<Fours>(rows), high = load<Fours>(rows + 16);
#pragma GCC unroll 4
    for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 2
      for (int q = 0; q < 2; ++q) {
        const Fours columns = repeated(panels[p] + t * 8 + q * 4);
        total[p][q][0] += columns * low;
        total[p][q][1] += columns * high;
      }
    }
  }
  const auto add = [&](Fours sums) {
    Row parts[2];
    std::memcpy(parts, &sums, sizeof sums);
    for (int i = 0; i < 2; ++i, to += tile) store(to, load<Row>(to) + parts[i]);
  };
#pragma GCC unroll 4
  for (int p = 0; p < PANELS; ++p) {
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      add(by_column<0>(total[p][q][0], total[p][q][1], Lanes{}));
      add(by_column<2>(total[p][q][0], total[p][q][1], Lanes{}));
    }
  }
}

// `count` panels, at most four.
inline void add_outer_eights(const float* const* panels, int64_t count, const float* rows,
                             int64_t tokens, int64_t tile, float* to) {
  switch (count) {
    case 4: return add_outer_eights<4>(panels, rows, tokens, tile, to);
    case 3: return add_outer_eights<3>(panels, rows, tokens, tile, to);
    case 2: return add_outer_eights<2>(panels, rows, tokens, tile, to);
    case 1: return add_outer_eights<1>(panels, rows, tokens, tile, to);
  }
}

}  // namespace padst
#endif
