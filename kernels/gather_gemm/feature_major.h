// Token-major rows to feature-major tiles, tokens in adjacent lanes, and back.
#pragma once

#include <algorithm>

#include "native/simd.h"

namespace padst {

// A square matrix whose rows are `rows`, transposed.
inline void transpose(Vector<float, 4> (&rows)[4]) {
  using V = Vector<float, 4>;
  const V a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const V b = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const V c = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const V d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  rows[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  rows[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  rows[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  rows[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

inline void transpose(Vector<float, 8> (&rows)[8]) {
  using V = Vector<float, 8>;
  V pairs[8];
  for (int i = 0; i < 4; ++i) {
    const V a = rows[2 * i], b = rows[2 * i + 1];
    pairs[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[2 * i + 1] = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  V fours[8];
  for (int half = 0; half < 2; ++half) {
    for (int i = 0; i < 2; ++i) {
      const V a = pairs[4 * half + i], b = pairs[4 * half + i + 2];
      fours[4 * half + 2 * i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      fours[4 * half + 2 * i + 1] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    const V a = fours[i], b = fours[i + 4];
    rows[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    rows[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

inline int64_t mapped(const int32_t* map, int64_t i) { return map ? map[i] : i; }

// Side of the squares that are transposed in registers; tiles are a multiple of it wide.
template <class A>
constexpr int kSquare = std::is_same_v<A, float> ? (kLanes<A> < 8 ? 4 : 8) : 1;

// tile[map[f] * stride + t] = x[t * ldx + f] for `features` features; tokens up to width are zeros.
template <class T>
void to_feature_major(const T* x, int64_t ldx, int64_t tokens, int64_t features,
                      const int32_t* map, Accumulator<T>* tile, int64_t width, int64_t stride) {
  using A = Accumulator<T>;
  constexpr int n = kSquare<A>;
  int64_t f = 0;
  if constexpr (n > 1) {
    using V = Vector<A, n>;
    for (; f + n <= features; f += n) {
      for (int64_t t = 0; t < width; t += n) {
        V rows[n];
        for (int i = 0; i < n; ++i) {
          rows[i] = t + i < tokens ? load<V>(x + (t + i) * ldx + f) : V{};
        }
        transpose(rows);
        for (int i = 0; i < n; ++i) store(tile + mapped(map, f + i) * stride + t, rows[i]);
      }
    }
  }
  for (; f < features; ++f) {
    A* row = tile + mapped(map, f) * stride;
    for (int64_t t = 0; t < width; ++t) row[t] = t < tokens ? widen(x[t * ldx + f]) : A{0};
  }
}

// y[t * ldy + f] = tile[map[f] * width + t] for t < tokens.
template <class T>
void from_feature_major(const Accumulator<T>* tile, int64_t width, const int32_t* map,
                        int64_t tokens, int64_t features, T* y, int64_t ldy) {
  using A = Accumulator<T>;
  constexpr int n = kSquare<A>;
  int64_t f = 0;
  if constexpr (n > 1) {
    using V = Vector<A, n>;
    for (; f + n <= features; f += n) {
      for (int64_t t = 0; t < tokens; t += n) {
        V rows[n];
        for (int i = 0; i < n; ++i) rows[i] = load<V>(tile + mapped(map, f + i) * width + t);
        transpose(rows);
        for (int i = 0; i < n && t + i < tokens; ++i) store(y + (t + i) * ldy + f, rows[i]);
      }
    }
  }
  for (; f < features; ++f) {
    const A* row = tile + mapped(map, f) * width;
    for (int64_t t = 0; t < tokens; ++t) y[t * ldy + f] = narrow<T>(row[t]);
  }
}

}  // namespace padst
