// Outer products of a few gathered columns with the lanes of a row block, summed over tokens.
#pragma once

#include <algorithm>

#include "native/simd.h"

namespace padst {

// A packed tile: kPlanes vectors of tokens. Vectors of 16 adjacent columns lie side by side, then
// come those of their next tokens.
constexpr int64_t kPlanes = 8, kSide = 16;

inline int64_t packed_row(int64_t column) {
  return column / kSide * (kSide * kPlanes) + column % kSide;
}

// Whether row blocks fill vectors of the accumulation type.
template <class A>
bool fills_vectors(int64_t tile) {
  return tile % kLanes<A> == 0 || (tile % 8 == 0 && kLanes<A> == 16);
}

// COLUMNS x ROWS vectors of results, added to `to`. Columns are adjacent where NEXT, else anywhere.
template <class V, int COLUMNS, int ROWS, bool NEXT>
void add_outer(const Element<V>* const* columns, const Element<V>* rows, int64_t tile,
               int64_t tokens, Element<V>* to) {
  using A = Element<V>;
  constexpr int lanes = kLanesOf<V>;
  V total[COLUMNS][ROWS];
#pragma GCC unroll 16
  for (int c = 0; c < COLUMNS; ++c) {
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) total[c][r] = load<V>(to + c * tile + r * lanes);
  }
  const A* column[COLUMNS];
#pragma GCC unroll 16
  for (int c = 0; c < COLUMNS; ++c) column[c] = NEXT ? columns[0] + c * kLanes<A> : columns[c];
  for (int64_t start = 0; start < tokens; start += kLanes<A>) {
    const int64_t plane = start * kSide, count = std::min<int64_t>(kLanes<A>, tokens - start);
    for (int64_t t = plane; t < plane + count; ++t, rows += tile) {
      V row[ROWS];
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; ++r) row[r] = load<V>(rows + r * lanes);
#pragma GCC unroll 16
      for (int c = 0; c < COLUMNS; ++c) {
#pragma GCC unroll 2
        for (int r = 0; r < ROWS; ++r) total[c][r] += row[r] * column[c][t];
      }
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < COLUMNS; ++c) {
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) store(to + c * tile + r * lanes, total[c][r]);
  }
}

// All `tile` lanes of COLUMNS columns.
template <class V, int COLUMNS, bool NEXT>
void add_outer_rows(const Element<V>* const* columns, const Element<V>* rows, int64_t tile,
                    int64_t tokens, Element<V>* to) {
  constexpr int lanes = kLanesOf<V>;
  int64_t v = 0;
  if constexpr (COLUMNS <= 8) {
    for (; v + 2 * lanes <= tile; v += 2 * lanes) {
      add_outer<V, COLUMNS, 2, NEXT>(columns, rows + v, tile, tokens, to + v);
    }
  }
  for (; v + lanes <= tile; v += lanes) {
    add_outer<V, COLUMNS, 1, NEXT>(columns, rows + v, tile, tokens, to + v);
  }
}

// The outer products of `count` columns, of which each `adjacent` lie side by side.
template <class V>
void add_outer_columns(const Element<V>* const* columns, int64_t count, int64_t adjacent,
                       const Element<V>* rows, int64_t tile, int64_t tokens, Element<V>* to) {
  int64_t c = 0;
  if (adjacent % 16 == 0 && tile < 2 * kLanesOf<V>) {
    for (; c + 16 <= count; c += 16) {
      add_outer_rows<V, 16, true>(columns + c, rows, tile, tokens, to + c * tile);
    }
  } else if (adjacent % 8 == 0) {
    for (; c + 8 <= count; c += 8) {
      add_outer_rows<V, 8, true>(columns + c, rows, tile, tokens, to + c * tile);
    }
  }
  for (; c + 8 <= count; c += 8) {
    add_outer_rows<V, 8, false>(columns + c, rows, tile, tokens, to + c * tile);
  }
  for (; c + 4 <= count; c += 4) {
    add_outer_rows<V, 4, false>(columns + c, rows, tile, tokens, to + c * tile);
  }
  for (; c < count; ++c) {
    add_outer_rows<V, 1, false>(columns + c, rows, tile, tokens, to + c * tile);
  }
}

}  // namespace padst
